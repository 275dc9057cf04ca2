"""Writing quality models as safetensors, to a file or in the layout of the Hugging Face hub, and reading the latter."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.utils import LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from ..errors import WeightsError, written_whole

FILENAME = "model.safetensors"


def save_model(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a model that `create_model(name, weights=path)` reads: whole, or not at all.

    Matrices of `tiny` and BPCLIP are written in half precision, QualiCLIP and CLIP-IQA as they are: a fine-tuning at
    the published learning rate moves them by less than half precision can tell.

    Args:
        model: Tiny, QualiCLIP, ClipIQA or BPCLIP, as `create_model` or a training makes it.
        path: a name that ends in .safetensors.

    Raises:
        TypeError: another kind of model.
        OSError: the file cannot be written; a former one of that name is still there.
    """
    from .antonyms import AntonymScore
    from .bpclip import BPCLIP
    from .bpclip_files import save_bpclip
    from .tiny import Tiny

    writers = {Tiny: save_tiny, BPCLIP: save_bpclip, AntonymScore: _save_antonyms}
    writer = next((writer for kind, writer in writers.items() if isinstance(model, kind)), None)
    if writer is None:
        raise TypeError(f"got {type(model).__name__}; expected a quality model that create_model has made.")
    try:
        with written_whole(path) as unfinished:
            writer(model, unfinished)
    except SafetensorError as error:  # what safetensors raises for a full disk
        raise OSError(f"cannot write {path}: {error}; free some space or choose another folder.") from error


def save_tiny(model: nn.Module, path: Path) -> None:
    """Half-precision safetensors, calibration included, as `create_model("tiny", weights=path)` reads it."""
    state = {k: v.half() if v.ndim > 1 else v.float() for k, v in model.state_dict().items() if "num_batches" not in k}
    save_file({k: v.contiguous().cpu() for k, v in state.items()}, path, metadata={"config": "{}"})


def _save_antonyms(model: nn.Module, path: Path) -> None:
    from .clip import sizes_of

    config = {
        "clip": dataclasses.asdict(sizes_of(model.visual)),
        "temperature": model.temperature,
        "pairs": model.pairs,
    }
    state = {name: tensor.contiguous().cpu() for name, tensor in model.state_dict().items()}
    save_file(state, path, metadata={"config": json.dumps(config)})


class HubModel(PyTorchModelHubMixin, library_name="iqguide", tags=["image-quality-assessment"]):
    """`save_pretrained(folder)`, `from_pretrained(folder or repository)` and `push_to_hub(repository)` of a model.

    The folder holds model.safetensors, which brings all that is needed to build the model, and config.json, which names
    the class. What `from_pretrained` returns is as `create_model` makes it: frozen, in evaluation mode, on the CPU.
    """

    def _save_pretrained(self, save_directory: Path) -> None:
        save_model(self, save_directory / FILENAME)
        (save_directory / "config.json").write_text(json.dumps({"model": type(self).__name__}) + "\n", "utf-8")

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *, local_files_only: bool = False, **options: Any
    ) -> nn.Module:
        """Read a model from a folder, or a repository of the Hugging Face hub.

        Args:
            pretrained_model_name_or_path: what `save_pretrained` has written, or the name of a repository.
            local_files_only: take a repository from the hub's cache alone, as under IQGUIDE_OFFLINE or HF_HUB_OFFLINE.
            options: of huggingface_hub: `revision`, `cache_dir`, `force_download`, `token`; `map_location`, a device.

        Raises:
            WeightsError: the repository is not in the cache and downloads are off, or there is another model in it.
        """
        from .weights import is_offline

        name, local = pretrained_model_name_or_path, local_files_only or is_offline()
        try:
            return super().from_pretrained(name, local_files_only=local, **options)
        except LocalEntryNotFoundError as error:
            if not local:  # the hub cannot be reached; its own message says so
                raise
            raise WeightsError(
                f"{name} is not in the Hugging Face cache and downloads are off (IQGUIDE_OFFLINE, HF_HUB_OFFLINE or "
                "local_files_only); give the path of a folder of save_pretrained, or allow the download."
            ) from error

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str, map_location: str = "cpu", strict: bool = True, **options: Any
    ) -> nn.Module:
        """What the mixin's public method calls; the file's layout is always held to strictly."""
        from .create import create_model

        if os.path.isdir(model_id):
            path = Path(model_id) / FILENAME
        else:
            known = ("revision", "cache_dir", "force_download", "token", "local_files_only")
            path = Path(hf_hub_download(model_id, FILENAME, **{name: options[name] for name in known}))
        found = _class_in(path)
        if found != cls.__name__:
            raise WeightsError(f"{model_id} holds a {found}; expected a {cls.__name__}: use {found}.from_pretrained.")
        names = {"Tiny": "tiny", "QualiCLIP": "qualiclip", "ClipIQA": "clipiqa", "BPCLIP": _bpclip_name(path)}
        return create_model(names[found], weights=path, device=map_location)


def _metadata(path: Path) -> dict[str, Any]:
    from .weights import read_weights

    return json.loads(read_weights(path)[1].get("config", "{}"))


def _class_in(path: Path) -> str:
    """The class of the model in a file, by its metadata, so that one is not read as another."""
    found = _metadata(path)
    if "clip" in found:
        from .qualiclip import PAIRS

        return "QualiCLIP" if [tuple(pair) for pair in found["pairs"]] == list(PAIRS) else "ClipIQA"
    return "BPCLIP" if "full_reference" in found else "Tiny"


def _bpclip_name(path: Path) -> str:
    return "bpclip-fr" if _metadata(path).get("full_reference") else "bpclip"
