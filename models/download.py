"""Downloading one file: verified, and never half there under its real name. huggingface_hub does the transfer."""

from __future__ import annotations

import os
import re
import shutil
import time
from pathlib import Path

from huggingface_hub import get_hf_file_metadata
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import WeakFileLock

from ..errors import WeightsError
from .weights import looks_like_weights, sha256_of

SHA256 = re.compile("[0-9a-f]{64}")
"""The ETag of a large file on the Hugging Face hub: its checksum."""
ATTEMPTS = 4
PAUSE_S = 2.0


def download(url: str, target: Path, *, sha256: str | None = None, megabytes: int | None = None) -> None:
    """Fetch a weights file into place.

    The file grows in a folder `target`.part; only when it is complete, has the right checksum and begins as weights do
    does it take the real name. A connection that breaks is taken up where it stopped. So is a download that was
    interrupted, in a later call, where the server states the checksum of the file, as the Hugging Face hub does: then
    what was put together is known to be right. Processes that want the same file at the same time wait for the first.
    The progress bar goes to stderr.

    Args:
        url: http or https address.
        target: where the file shall be; its folder is made.
        sha256: checksum to hold it to, or its first digits, if known.
        megabytes: about how large it is, to see beforehand whether there is room for it.

    Raises:
        WeightsError: the network, the server, the disk or the checksum says no, or what comes is no weights.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(target.with_name(f"{target.name}.lock")):
            if not target.is_file():  # else another process has fetched it while we waited
                _check_space(target.parent, megabytes or 0)
                _fetch(url, target, sha256)
    except OSError as error:
        raise WeightsError(
            f"cannot write {target} ({error.strerror or error}); free space there, or set IQGUIDE_CACHE to another "
            "folder."
        ) from error


def _fetch(url: str, target: Path, sha256: str | None) -> None:
    folder = target.with_name(f"{target.name}.part")
    folder.mkdir(exist_ok=True)
    keep = False
    try:
        stated = _stated_checksum(url)
        part = folder / (stated or "file")
        keep = stated is not None  # so that a later call can go on with it
        _transfer(url, part, target.name, resume=keep)
        keep = False
        _check(part, [checksum for checksum in (sha256, stated) if checksum], url)
        os.replace(part, target)
    finally:
        if not keep:
            shutil.rmtree(folder)


def _stated_checksum(url: str) -> str | None:
    """The checksum that the server states; None where it states none."""
    try:
        etag = get_hf_file_metadata(url, token=False).etag or ""
    except Exception as error:
        raise _explained(error, url) from error
    return etag if SHA256.fullmatch(etag) else None


def _transfer(url: str, part: Path, name: str, *, resume: bool) -> None:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with part.open("ab" if resume else "wb") as file:
                return http_get(url, file, resume_size=file.tell(), displayed_filename=name)
        except Exception as error:
            if isinstance(error, HfHubHTTPError) and error.response.status_code == 416:  # it was whole already
                return None
            if not _connection_broke(error) or attempt == ATTEMPTS:
                raise _explained(error, url) from error
        time.sleep(PAUSE_S)  # not every version of the client tries again by itself


def _connection_broke(error: Exception) -> bool:
    """Whether the connection broke; else the server or the disk has refused."""
    of_the_disk = isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError)
    return not of_the_disk and not isinstance(error, HfHubHTTPError)


def _explained(error: Exception, url: str) -> Exception:
    """An error of the transfer for people; the clients' own differ from version to version."""
    if isinstance(error, HfHubHTTPError):
        return WeightsError(f"{url} answers {error.response.status_code}.")
    if not _connection_broke(error):
        return error
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return WeightsError(f"cannot download {url} ({reason}); try it again later.")


def _check_space(folder: Path, needed_mb: int) -> None:
    free_mb = shutil.disk_usage(folder).free / 1e6
    if needed_mb > free_mb:
        raise WeightsError(
            f"{folder} has {free_mb:.0f} MB free and the download needs {needed_mb} MB; "
            "free space there, or set IQGUIDE_CACHE to another folder."
        )


def _check(part: Path, checksums: list[str], url: str) -> None:
    """Hold a complete file to checksums, or first digits of them, and to what weights begin with."""
    actual = sha256_of(part) if checksums else ""
    wrong = next((checksum for checksum in checksums if not actual.startswith(checksum)), None)
    if wrong:
        raise WeightsError(f"{url} has sha256 {actual}; expected {wrong}: damaged or replaced; nothing was kept.")
    if not looks_like_weights(part):
        raise WeightsError(f"{url} sends no weights, perhaps a web page; nothing was kept.")
