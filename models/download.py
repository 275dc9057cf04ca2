"""Downloading one file: resumable, verified, and never half there under its real name."""

from __future__ import annotations

import os
import shutil
import ssl
import time
import urllib.error
import urllib.request
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from tqdm.auto import tqdm

from ..errors import WeightsError
from .weights import looks_like_weights, sha256_of

ATTEMPTS = 4
PAUSE_S = 2.0
TIMEOUT_S = 30.0


def download(url: str, target: Path, *, sha256: str | None = None) -> None:
    """Fetch a weights file into place.

    The bytes go to `target`.part, which a later call continues when the server still has the same file (Range with
    If-Range); only a complete file with the right checksum, which begins as weights do, takes the real name. Processes
    that want the same file at the same time wait for the first. The progress bar goes to stderr.

    Args:
        url: http or https address.
        target: where the file shall be; its folder is made.
        sha256: checksum to hold it to, if known.

    Raises:
        WeightsError: the network, the server, the disk or the checksum says no, or what comes is no weights.
    """
    from huggingface_hub.utils import WeakFileLock

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(target.with_name(f"{target.name}.lock")):
            if not target.is_file():  # else another process has fetched it while we waited
                part = target.with_name(f"{target.name}.part")
                _fetch(url, part)
                _validator_path(part).unlink(missing_ok=True)
                _check(part, sha256, url)
                os.replace(part, target)
    except OSError as error:
        raise WeightsError(
            f"cannot write {target} ({error.strerror or error}); free space there, or set IQGUIDE_CACHE to another "
            "folder."
        ) from error


def _fetch(url: str, part: Path) -> None:
    """Transfer, again after a fault of the network, until the part is whole."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _transfer(url, part)
        except urllib.error.HTTPError as error:
            if error.code == 416:  # the part is as long as the file, or longer
                if error.headers.get("Content-Range") == f"bytes */{part.stat().st_size}":
                    return None
                part.unlink()
            elif (error.code < 500 and error.code != 429) or attempt == ATTEMPTS:
                raise WeightsError(f"{url} answers {error.code} {error.reason}.") from error
        except (urllib.error.URLError, ConnectionError, TimeoutError, ssl.SSLError, HTTPException) as error:
            if attempt == ATTEMPTS:
                reason = getattr(error, "reason", None) or error
                raise WeightsError(
                    f"cannot download {url} ({reason}); run it again to go on where it stopped."
                ) from error
        time.sleep(PAUSE_S)
    raise WeightsError(f"{url} refuses the range that it was asked for.")


def _transfer(url: str, part: Path) -> None:
    validator = _validator_path(part)
    start = part.stat().st_size if part.is_file() and validator.is_file() else 0
    headers = {"User-Agent": "iqguide", "Accept-Encoding": "identity"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": validator.read_text("utf-8")}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S) as response:
        if response.status != 206:
            start = 0
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            validator.unlink()  # so that the next attempt starts afresh
            raise ConnectionError("the server sent another range than asked for")
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        _check_space(part, total - start if total else 0)
        _remember(validator, response)
        _write(response, part, start, total)
    if total is not None and part.stat().st_size != total:
        raise ConnectionError(f"the connection closed after {part.stat().st_size} of {total} bytes")


def _write(response: HTTPResponse, part: Path, start: int, total: int | None) -> None:
    name = part.name.removesuffix(".part")
    with (
        part.open("ab" if start else "wb") as file,
        tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=name) as bar,
    ):
        while block := response.read(1 << 18):
            file.write(block)
            bar.update(len(block))


def _validator_path(part: Path) -> Path:
    return part.with_name(f"{part.name}.etag")


def _remember(validator: Path, response: HTTPResponse) -> None:
    """Keep the strong ETag that a later If-Range needs; without one a part is never continued."""
    etag = response.headers.get("ETag", "")
    if etag and not etag.startswith("W/"):
        validator.write_text(etag, "utf-8")
    else:
        validator.unlink(missing_ok=True)


def _check_space(part: Path, needed: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        raise WeightsError(
            f"{part.parent} has {free / 1e6:.0f} MB free and the download needs {needed / 1e6:.0f} MB; "
            "free space there, or set IQGUIDE_CACHE to another folder."
        )


def _check(part: Path, sha256: str | None, url: str) -> None:
    if sha256 and (actual := sha256_of(part)) != sha256:
        part.unlink()
        raise WeightsError(f"{url} has sha256 {actual}; expected {sha256}: damaged or replaced; nothing was kept.")
    if not looks_like_weights(part):
        part.unlink()
        raise WeightsError(f"{url} sends no weights, perhaps a web page; nothing was kept.")
