"""Reading weights files: they can run no code, and are held to the layout of the model that they are for."""

from __future__ import annotations

import hashlib
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import WeightsError

if TYPE_CHECKING:
    import os

    from torch import Tensor, nn

COUNTER = "num_batches_tracked"
"""How the names of batch normalisation's counters end."""
WHOLE = (COUNTER, "input_resolution", "context_length", "vocab_size")
"""How the names of tensors end that may hold whole numbers: the counters, and three numbers in OpenAI's state dicts."""


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def looks_like_weights(path: Path) -> bool:
    """Whether a file begins as safetensors do, or as what torch.save writes (an archive, formerly a pickle)."""
    with path.open("rb") as file:
        start = file.read(9)
    header = int.from_bytes(start[:8], "little")
    is_safetensors = start[8:] == b"{" and header <= path.stat().st_size
    return is_safetensors or start.startswith((b"PK\x03\x04", b"\x80"))


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """`read_weights` for what is not only weights: tensors of any kind of number."""
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"there is no weights file {path}.")
    try:
        state, metadata = _read_safetensors(path) if path.suffix == ".safetensors" else (_read_torch(path), {})
    except Exception as error:
        raise WeightsError(
            f"{path} cannot be read as weights ({_reason(error)}); it is damaged or holds code (pickles and TorchScript"
            " are refused): give a .safetensors file or a plain state dict."
        ) from error
    if not isinstance(state, Mapping) or not state or not all(map(_is_named_tensor, state.items())):
        raise WeightsError(f"{path} holds no flat dict of tensors; expected a state dict.")
    return dict(state), metadata


def read_weights(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a state dict without running any code from it.

    Args:
        path: a .safetensors file, or a state dict saved by torch.save (also one wrapped as `{"state_dict": ...}`, with
            or without the prefix `module.`).

    Returns:
        Tensors by name, on the CPU, and the file's metadata (safetensors only, else empty).

    Raises:
        WeightsError: missing, damaged, a pickle or TorchScript archive, not a flat dict of tensors, or not finite.
    """
    tensors, metadata = read_tensors(path)
    check_numbers(tensors, Path(path))
    return tensors, metadata


def _reason(error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError):
        return "no plain state dict"  # torch's own words explain how to run the code in it
    reason = (str(error).strip().splitlines() or [""])[0].rstrip(".:")
    return f"{type(error).__name__}: {reason[:120]}"


def _read_safetensors(path: Path) -> tuple[Any, dict[str, str]]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}


def _read_torch(path: Path) -> Any:
    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected pickle protocol")  # the error that follows says it
        state = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if isinstance(state, Mapping) and state and all(str(name).startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return state


def _is_named_tensor(item: tuple[Any, Any]) -> bool:
    import torch

    return isinstance(item[0], str) and isinstance(item[1], torch.Tensor)


def check_numbers(state: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that are no finite floating-point numbers; counters, which no score needs, are whole numbers.

    Raises:
        WeightsError: a tensor is of another kind, or holds NaN, infinity or what float32 cannot hold.
    """
    import torch

    kinds = {name: _kind(tensor) for name, tensor in state.items() if not name.endswith(WHOLE)}
    wrong = [f"{name} ({kind})" for name, kind in kinds.items() if kind]
    if wrong:
        raise WeightsError(
            f"{path} holds other than floating-point numbers in {wrong[0]} (and {len(wrong) - 1} more tensors); "
            "expected weights as they were trained, not quantised or complex."
        )
    broken = [name for name in kinds if not torch.isfinite(state[name].float()).all()]
    if broken:
        raise WeightsError(f"{path} holds NaN or infinite numbers in {broken[0]} (and {len(broken) - 1} more tensors).")


def _kind(tensor: Tensor) -> str:
    """What is wrong with the numbers of a tensor: nothing, for an ordinary one."""
    import torch

    if not tensor.is_floating_point():
        return str(tensor.dtype).removeprefix("torch.")
    if tensor.is_meta:
        return "no values"
    return "" if tensor.layout == torch.strided else str(tensor.layout).removeprefix("torch.")


def check_layout(expected: Mapping[str, tuple[int, ...]], state: Mapping[str, Tensor], source: object) -> None:
    """Compare names and shapes strictly.

    Args:
        expected: shape by name.
        state: tensors by name.
        source: what the message calls the file.

    Raises:
        WeightsError: a tensor is missing, unexpected or of another shape.
    """
    faults = []
    for word, names in (("missing", expected.keys() - state.keys()), ("unexpected", state.keys() - expected.keys())):
        if names:
            faults.append(f"{len(names)} {word} (first: {min(names)})")
    for name in sorted(expected.keys() & state.keys()):
        if tuple(state[name].shape) != tuple(expected[name]):
            faults.append(f"{name} has shape {tuple(state[name].shape)}, expected {tuple(expected[name])}")
            break
    if faults:
        raise WeightsError(f"{source} has another layout than this model: {'; '.join(faults)}.")


def load_strict(module: nn.Module, state: Mapping[str, Tensor], source: object) -> None:
    """Copy a state dict into a module, strictly but for the counters of batch normalisation, which no score needs.

    Args:
        module: what to fill.
        state: tensors by name.
        source: what the message calls the file.

    Raises:
        WeightsError: a tensor is missing, unexpected or of another shape.
    """
    own = module.state_dict()
    counters = {name: tensor for name, tensor in own.items() if name.endswith(COUNTER)}
    wanted = {name: tensor for name, tensor in state.items() if name in own or not name.endswith(COUNTER)}
    complete = {**counters, **wanted}
    check_layout({name: tuple(tensor.shape) for name, tensor in own.items()}, complete, source)
    module.load_state_dict(complete)
