"""Where weights are, and how they are read: the cache, checksums, and files that can run no code.

Environment: IQGUIDE_CACHE (or XDG_CACHE_HOME/iqguide, or ~/.cache/iqguide) is where downloads go; IQGUIDE_OFFLINE=1 or
HF_HUB_OFFLINE=1 forbids them; HF_ENDPOINT is a mirror to use for huggingface.co.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import WeightsError
from .catalog import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

logger = logging.getLogger(__name__)
ASSETS = Path(__file__).resolve().parent / "assets"
HUB = "https://huggingface.co"


def cache_dir() -> Path:
    """The folder of downloaded weights."""
    if os.environ.get("IQGUIDE_CACHE"):
        return Path(os.environ["IQGUIDE_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "iqguide"


def is_offline() -> bool:
    """Whether IQGUIDE_OFFLINE or HF_HUB_OFFLINE forbids downloads."""
    values = (os.environ.get(name, "") for name in ("IQGUIDE_OFFLINE", "HF_HUB_OFFLINE"))
    return any(value.strip().lower() in ("1", "true", "yes", "on") for value in values)


def default_path(spec: ModelSpec) -> Path:
    """Where the default weights of a model are, or would be."""
    return (ASSETS if spec.bundled else cache_dir()) / spec.filename


def is_cached(spec: ModelSpec) -> bool:
    """Whether the default weights of a model are on this machine."""
    return spec.trained and default_path(spec).is_file()


def find_weights(spec: ModelSpec, weights: str | os.PathLike[str] = "default") -> Path:
    """The weights file of a model, downloaded and verified where that is needed.

    Args:
        spec: the model.
        weights: "default", or the path of a file.

    Returns:
        Path of a file that exists.

    Raises:
        WeightsError: no such file, downloads are off, the download failed, or the checksum is wrong.
    """
    if weights != "default":
        path = Path(weights).expanduser()
        if not path.is_file():
            raise WeightsError(f"there is no weights file {path}; give 'default', 'random' or a path. {_how_to(spec)}")
        return path
    if not spec.trained:
        raise WeightsError(f"there are no trained weights of {spec.name}: nobody has published any. {_how_to(spec)}")
    path = default_path(spec)
    if spec.bundled:
        if not path.is_file():
            raise WeightsError(f"{path}, which comes with the package, is missing; install the package again.")
        return path
    if not path.is_file():
        _fetch(spec, path)
    verify(path, spec)
    return path


def _fetch(spec: ModelSpec, path: Path) -> None:
    from .download import download

    if is_offline():
        reason = f"the weights of {spec.name} are not on this machine and downloads are off"
        raise WeightsError(f"{reason} (IQGUIDE_OFFLINE or HF_HUB_OFFLINE). {_how_to(spec)}")
    size = f"{spec.megabytes} MB, " if spec.megabytes else ""
    # A warning, because a licence must be seen where logging is not set up; it comes once, with the download.
    logger.warning("Downloading the weights of %s (%slicence: %s) to %s", spec.name, size, spec.licence, path)
    try:
        download(source_url(spec), path, sha256=spec.sha256 or _read_record(path).get("sha256"))
    except WeightsError as error:
        raise WeightsError(f"{error} {_how_to(spec)}") from error


def source_url(spec: ModelSpec) -> str:
    """Where to download from; HF_ENDPOINT names a mirror of the Hugging Face hub."""
    mirror = os.environ.get("HF_ENDPOINT")
    return spec.url.replace(HUB, mirror.rstrip("/"), 1) if mirror and spec.url.startswith(HUB) else spec.url


def _how_to(spec: ModelSpec) -> str:
    if not spec.trained:
        return "Train it (docs/training.md says how) and give the path of the file; 'random' is for tests."
    if spec.bundled:
        return "Without one, weights='default' takes the file that comes with the package."
    return f"By hand: fetch {spec.url} (licence: {spec.licence}) and put it at {default_path(spec)}, or give its path."


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def verify(path: Path, spec: ModelSpec) -> None:
    """Hold a cached file to its checksum: the known one, else the one recorded at first use.

    The record is a small json file beside the weights; a file whose size and time have not changed is not read again.

    Raises:
        WeightsError: the checksum is another, or a file without a record holds no weights.
    """
    record, status = _read_record(path), path.stat()
    expected = spec.sha256 or record.get("sha256")
    seen = {"size": status.st_size, "mtime_ns": status.st_mtime_ns}
    if record.get("sha256") == expected and expected and all(record.get(key) == seen[key] for key in seen):
        return
    actual = sha256_of(path)
    if expected and actual != expected:
        raise WeightsError(
            f"{path} has sha256 {actual}; expected {expected}: delete it to download it again"
            f"{'' if spec.sha256 else f', and {_record_path(path)} too if its publisher replaced it'}."
        )
    if not looks_like_weights(path):
        raise WeightsError(f"{path} holds no weights, perhaps a web page; delete it to download it again.")
    _write_record(path, {"url": spec.url, "licence": spec.licence, "sha256": actual, **seen})


def looks_like_weights(path: Path) -> bool:
    """Whether a file begins as safetensors do, or as what torch.save writes (an archive, formerly a pickle)."""
    with path.open("rb") as file:
        start = file.read(9)
    header = int.from_bytes(start[:8], "little")
    is_safetensors = start[8:] == b"{" and header <= path.stat().st_size
    return is_safetensors or start.startswith((b"PK\x03\x04", b"\x80"))


def _record_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _read_record(path: Path) -> dict[str, Any]:
    record = _record_path(path)
    if not record.is_file():
        return {}
    try:
        return dict(json.loads(record.read_text("utf-8")))
    except (ValueError, TypeError) as error:
        raise WeightsError(f"the checksum record {record} is damaged; delete it.") from error


def _write_record(path: Path, record: dict[str, Any]) -> None:
    whole = _record_path(path)
    part = whole.with_name(f"{whole.name}.{os.getpid()}.part")
    try:
        part.write_text(json.dumps(record, indent=2) + "\n", "utf-8")
        os.replace(part, whole)
    except OSError as error:  # a shared cache may be read-only; then the file is hashed at every use
        logger.info("cannot record the checksum of %s (%s)", path, error)


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
    _check_tensors(state, path)
    return dict(state), metadata


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


def _check_tensors(state: Any, path: Path) -> None:
    import torch

    if not isinstance(state, Mapping) or not state or not all(isinstance(t, torch.Tensor) for t in state.values()):
        raise WeightsError(f"{path} holds no flat dict of tensors; expected a state dict.")
    broken = [name for name, t in state.items() if t.is_floating_point() and not torch.isfinite(t).all()]
    if broken:
        raise WeightsError(f"{path} holds NaN or infinite numbers in {broken[0]} (and {len(broken) - 1} more tensors).")


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
    """Copy a state dict into a module, strictly; `source` names the file in the WeightsError of a mismatch."""
    check_layout({name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}, state, source)
    module.load_state_dict(state)
