"""Node: Load Quality Model."""

import os
from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..errors import WeightsError
from ..images import WorkingSize
from ..models import MODELS, ModelSpec, is_cached, list_models
from ..models.create import create_model
from ..rewards import working_size
from .quality_model import IQ_MODEL, QualityModel

FOLDER = "iqa"
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DEFAULT = "default"
REQUIREMENTS = Path(__file__).resolve().parents[1] / "requirements.txt"


def add_model_folder() -> None:
    """Make models/iqa known to ComfyUI; folders of that name in extra_model_paths.yaml are kept."""
    extensions = set(folder_paths.supported_pt_extensions)
    known, _ = folder_paths.folder_names_and_paths.get(FOLDER, ([], extensions))
    own = os.path.join(folder_paths.models_dir, FOLDER)
    folder_paths.folder_names_and_paths[FOLDER] = (list(dict.fromkeys([*known, own])), extensions)


def offered_models() -> list[str]:
    """All models; without files in models/iqa those of which trained weights are known."""
    files = folder_paths.get_filename_list(FOLDER) if _has_folder() else []
    return [name for name in list_models() if MODELS[name].trained or files]


def time_of(weights: str | None) -> float:
    """When a file of models/iqa was changed; 0 for the default weights, and for a name that is linked (None)."""
    if weights in (None, DEFAULT):
        return 0.0
    return os.path.getmtime(folder_paths.get_full_path_or_raise(FOLDER, weights))


def default_path(spec: ModelSpec, download: bool) -> str:
    """Where default weights are: a file of models/iqa, or "default" where they are on this machine or may be fetched.

    Raises:
        ValueError: they are not on this machine and downloading was not asked for.
    """
    if spec.bundled or is_cached(spec):
        return DEFAULT
    path = folder_paths.get_full_path(FOLDER, spec.filename)
    if path:
        return path
    if not spec.trained:
        raise ValueError(f"no trained weights of {spec.name} are known; put {spec.filename} into models/{FOLDER}.")
    if not download:
        size = f"{spec.megabytes} MB, " if spec.megabytes else ""
        raise ValueError(
            f"the weights of {spec.name} ({size}licence {spec.licence}) are not on this machine; put {spec.filename} "
            f"into models/{FOLDER}, or switch download on."
        )
    return DEFAULT


def load_quality_model(
    name: str, weights: str, precision: str, resize: bool, download: bool, **options: Any
) -> QualityModel:
    """Make a quality model under a patcher of its own; `options` are those of `create_model`.

    Raises:
        ValueError: the weights are not on this machine and downloading was not asked for.
        WeightsError: the file does not fit the model, is damaged, or cannot be fetched.
        ImportError: a package of requirements.txt is missing.
    """
    spec = MODELS[name]
    path = default_path(spec, download) if weights == DEFAULT else folder_paths.get_full_path_or_raise(FOLDER, weights)
    if spec.base is not None:
        options["base"] = default_path(spec.base, download)
    try:
        model = create_model(name, weights=path, device="cpu", dtype=PRECISIONS[precision], **options)
    except WeightsError as error:
        if path != DEFAULT or spec.bundled:
            raise
        raise WeightsError(f"{error} For ComfyUI put it into models/{FOLDER} as {spec.filename}.") from error
    except ImportError as error:
        raise ImportError(f"{error}; {name} needs it: install {REQUIREMENTS} into ComfyUI's Python.") from error
    devices = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    patcher = ModelPatcher(model, *devices)
    size = working_size(model) if resize else WorkingSize()
    return QualityModel(name, model, (patcher,), spec.full_reference, size)


class LoadQualityModel(io.ComfyNode):
    """A quality model by name."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="IQGuideLoadQualityModel",
            display_name="Load Quality Model",
            category="iqguide",
            description="Load a model that scores the quality of pictures. tiny comes with the pack.",
            search_aliases=["iqa", "image quality", "aesthetic", "qualiclip", "clip-iqa", "bpclip", "score model"],
            inputs=[
                io.Combo.Input(
                    "model",
                    options=offered_models(),
                    default="tiny",
                    tooltip="The quality model. tiny is small, fast and made for guidance; the others read CLIP.",
                ),
                io.Combo.Input(
                    "weights",
                    options=[DEFAULT, *folder_paths.get_filename_list(FOLDER)] if _has_folder() else [DEFAULT],
                    default=DEFAULT,
                    tooltip="default: the model's own weights. Or a file of the same model in models/iqa.",
                ),
                io.Boolean.Input(
                    "download",
                    default=False,
                    tooltip="Fetch default weights that are not on this machine. Their licence is that of their "
                    "authors; qualiclip is for non-commercial use only.",
                ),
                io.Combo.Input(
                    "precision",
                    options=list(PRECISIONS),
                    default="float32",
                    tooltip="Of the network. float32 is exact; the others save memory and change scores slightly.",
                    advanced=True,
                ),
                io.Boolean.Input(
                    "resize",
                    default=True,
                    tooltip="Bring pictures to the size that the model was made for before scoring them. Scores of "
                    "very large and very small pictures mean little otherwise.",
                    advanced=True,
                ),
            ],
            outputs=[IQ_MODEL.Output("quality_model", tooltip="For the other nodes of this category.")],
        )

    @classmethod
    def fingerprint_inputs(cls, weights: str | None = DEFAULT, **inputs: object) -> float:
        """Load again when the file has changed."""
        return time_of(weights)

    @classmethod
    def execute(cls, model: str, weights: str, download: bool, precision: str, resize: bool) -> io.NodeOutput:
        """Load."""
        return io.NodeOutput(load_quality_model(model, weights, precision, resize, download))


def _has_folder() -> bool:
    return FOLDER in folder_paths.folder_names_and_paths
