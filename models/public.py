"""The public names of this room that need torch; `__init__` takes them from here when one is first used."""

from .bpclip import BPCLIP
from .clipiqa import ClipIQA
from .create import create_model
from .hub import save_model
from .qualiclip import QualiCLIP

save_bpclip = save_model
"""`save_model` under its former name for a BPCLIP."""

__all__ = ["BPCLIP", "ClipIQA", "QualiCLIP", "create_model", "save_bpclip", "save_model"]
