"""Where weights are: the cache of downloads, the files that come with the package, and their checksums.

Environment: IQGUIDE_CACHE (or XDG_CACHE_HOME/iqguide, or ~/.cache/iqguide) is where downloads go; IQGUIDE_OFFLINE=1 or
HF_HUB_OFFLINE=1 forbids them; HF_ENDPOINT is a mirror to use for huggingface.co.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

from ..errors import WeightsError
from .catalog import ModelSpec
from .weights import looks_like_weights, sha256_of

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
    faults = []
    for url in filter(None, (spec.url, spec.copy_url)):
        try:
            return download(mirrored(url), path, sha256=_expected(spec, path), megabytes=spec.megabytes)
        except WeightsError as error:
            faults.append(str(error))
    raise WeightsError(f"{' '.join(faults)} {_how_to(spec)}")


def mirrored(url: str) -> str:
    """An address of the Hugging Face hub at the mirror that HF_ENDPOINT names; any other as it is."""
    mirror = os.environ.get("HF_ENDPOINT")
    return url.replace(HUB, mirror.rstrip("/"), 1) if mirror and url.startswith(HUB) else url


def _expected(spec: ModelSpec, path: Path) -> str | None:
    """The checksum that is known, or its first digits; else the one recorded at first use."""
    return spec.sha256 or _read_record(path).get("sha256")


def _how_to(spec: ModelSpec) -> str:
    if not spec.trained:
        return "Train it (docs/training.md says how) and give the path of the file; 'random' is for tests."
    if spec.bundled:
        return "Without one, weights='default' takes the file that comes with the package."
    also = f" or {spec.copy_url}" if spec.copy_url else ""
    licence, path = spec.licence, default_path(spec)
    return f"By hand: fetch {spec.url}{also} (licence: {licence}) and put it at {path}, or give its path."


def verify(path: Path, spec: ModelSpec) -> None:
    """Hold a cached file to its checksum: the known one, else the one recorded at first use.

    The record is a small json file beside the weights; a file whose size and time have not changed is not read again.

    Raises:
        WeightsError: the checksum is another, or a file without a record holds no weights.
    """
    record, status, expected = _read_record(path), path.stat(), _expected(spec, path)
    seen = {"size": status.st_size, "mtime_ns": status.st_mtime_ns}
    known = record.get("sha256")
    if known and known.startswith(expected) and all(record.get(key) == seen[key] for key in seen):
        return
    actual = sha256_of(path)
    if expected and not actual.startswith(expected):
        raise WeightsError(
            f"{path} has sha256 {actual}; expected {expected}: delete it to download it again"
            f"{'' if spec.sha256 else f', and {_record_path(path)} too if its publisher replaced it'}."
        )
    if not looks_like_weights(path):
        raise WeightsError(f"{path} holds no weights, perhaps a web page; delete it to download it again.")
    _write_record(path, {"url": spec.url, "licence": spec.licence, "sha256": actual, **seen})


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
