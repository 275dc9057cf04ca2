"""Quality models as files: how each class is written and read again, alone or in the layout of the Hugging Face hub."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.utils import LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import WeightsError, written_whole
from .cache import is_offline
from .catalog import MODELS, ModelSpec
from .seed import fixed_seed
from .weights import COUNTER, load_strict, read_weights

FILENAME = "model.safetensors"
SPREADS = ("margin_std", "pooled_std", "score_scale")
"""Buffers of calibration that divide, or that a margin is multiplied by."""


class HubModel(PyTorchModelHubMixin, library_name="iqguide", tags=["image-quality-assessment"]):
    """What makes an `nn.Module` of this package a file, a folder or a repository, and the other way round.

    `save(path)` and `load(path)` work on one safetensors file. Its metadata hold a JSON text `config`: the name of the
    class (`model`) and what that class needs to build the model again. `save_pretrained(folder)`,
    `from_pretrained(folder or repository)` and `push_to_hub(repository)` work on a folder of the hub's layout:
    model.safetensors, and config.json, which names the class.

    A class says with `saved_tensors` and `saved_config` what is written, and with `load` how it is read.
    """

    spec: ModelSpec | None = None
    """What the catalog says of the model; None for one that `create_model` has not made."""

    def save(self, path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None) -> None:
        """Write a file that `load` and `create_model(name, weights=path)` read: the whole file, or nothing.

        Args:
            path: a name that ends in .safetensors.
            metadata: what else the file says of itself, such as which pictures were held out.

        Raises:
            OSError: the file cannot be written; a former file of that name is still there.
        """
        config = json.dumps({"model": type(self).__name__, **self._named(), **self.saved_config()})
        tensors = {name: tensor.contiguous().cpu() for name, tensor in self.saved_tensors().items()}
        try:
            with written_whole(path) as unfinished:
                save_file(tensors, unfinished, {**(metadata or {}), "config": config})
        except SafetensorError as error:  # what safetensors raises for a full disk
            raise OSError(f"cannot write {path}: {error}; free some space or choose another folder.") from error

    def _named(self) -> dict[str, str]:
        """The name in the catalog, where `create_model` made the model: its working size goes by it."""
        return {} if self.spec is None else {"name": self.spec.name}

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> nn.Module:
        """Read a file of `save`, also one of an earlier version.

        This one is for classes that are built without arguments; the others have their own.

        Returns:
            The model on the CPU in float32, in training mode.

        Raises:
            WeightsError: the file cannot be read, holds another class, or has another layout.
        """
        tensors, config = read_saved(path, cls.__name__)
        if config:
            raise bad_config(path, f"unknown: {', '.join(sorted(config))}")
        with fixed_seed(0):
            model = cls()
        load_strict(model, tensors, path)
        check_spreads(model, path)
        return model

    def saved_tensors(self) -> dict[str, Tensor]:
        """The state dict in half precision where it is a matrix, without the counters of training."""
        state = {name: tensor for name, tensor in self.state_dict().items() if not name.endswith(COUNTER)}
        return {name: tensor.half() if tensor.ndim > 1 else tensor.float() for name, tensor in state.items()}

    def saved_config(self) -> dict[str, Any]:
        """What the class needs to build the model again, as JSON can hold it."""
        return {}

    def _save_pretrained(self, save_directory: Path) -> None:
        self.save(save_directory / FILENAME)
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

        Returns:
            The model as `create_model` makes it: frozen, in evaluation mode.

        Raises:
            WeightsError: the repository is not in the cache and downloads are off, or there is another model in it.
        """
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
        if os.path.isdir(model_id):
            path = Path(model_id) / FILENAME
        else:
            known = ("revision", "cache_dir", "force_download", "token", "local_files_only")
            path = Path(hf_hub_download(model_id, FILENAME, **{name: options[name] for name in known}))
        with torch.inference_mode(False), torch.device("cpu"):
            model = cls.load(path).to(map_location).eval().requires_grad_(False)
            model.spec = _spec_in(path)
            return model


def save_model(model: nn.Module, path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None) -> None:
    """Write a model that `create_model(name, weights=path)` reads; see `HubModel.save`.

    Raises:
        TypeError: not a quality model of this package.
        OSError: the file cannot be written; a former file of that name is still there.
    """
    if not isinstance(model, HubModel):
        raise TypeError(f"got {type(model).__name__}; expected a quality model that create_model has made.")
    model.save(path, metadata)


def read_saved(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and config of a weights file; the config is empty where the file has none.

    Args:
        path: of the file.
        kind: name of the class that it should hold. Files of version 0.1 do not name their class.

    Raises:
        WeightsError: the file cannot be read, or holds another class.
    """
    tensors, metadata = read_weights(path)
    try:
        config = json.loads(metadata.get("config", "{}"))
    except (ValueError, RecursionError) as error:
        raise bad_config(path, error) from error
    if not isinstance(config, dict):
        raise bad_config(path, "no object")
    holds = config.pop("model", kind)
    config.pop("name", None)  # of the catalog
    if holds != kind:
        raise WeightsError(f"{path} holds a {holds}; expected a {kind}: use {holds}.from_pretrained.")
    return tensors, config


def _spec_in(path: Path) -> ModelSpec | None:
    """What the catalog says of the model in a file that has been read, where the file names it."""
    with safe_open(path, "pt") as file:
        name = json.loads((file.metadata() or {}).get("config", "{}")).get("name")
    return MODELS.get(name) if isinstance(name, str) else None


def check_spreads(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Refuse a model whose calibration is upside down or without a spread: its order or its numbers would be wrong.

    Raises:
        WeightsError: a spread or a scale is not positive.
    """
    for name, buffer in model.named_buffers(recurse=False):
        if name in SPREADS and not (buffer > 0).all():
            raise WeightsError(f"{path} holds {buffer.min():g} in {name}; expected positive numbers: it is damaged.")


def bad_config(path: str | os.PathLike[str], reason: object) -> WeightsError:
    """The error of a config that cannot be used."""
    return WeightsError(f"{path} has a config that this version does not know ({reason}); get the file again.")
