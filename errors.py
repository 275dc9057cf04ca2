"""The package's exceptions, how a person is told of an error, and how files appear whole or not at all."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class ImageError(ValueError):
    """A picture that cannot be read, or whose values or shape do not fit; one sentence with the way out."""


class WeightsError(RuntimeError):
    """Weights are missing, damaged, not what they should be, or cannot be fetched; the message says what to do."""


FOR_PEOPLE = (ValueError, OSError, ImportError, WeightsError)
"""Errors whose message alone says what to do; the traceback of any other is wanted."""


def one_line(error: BaseException) -> str:
    """What an error says, on one line and without the number that the system gives it."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(text.split()) or type(error).__name__


@contextmanager
def one_sentence(expected: tuple[type[Exception], ...] = FOR_PEOPLE) -> Iterator[None]:
    """Turn the expected errors inside into an exit with one sentence; IQGUIDE_DEBUG=1 leaves them as they are."""
    try:
        yield
    except expected as error:
        if os.environ.get("IQGUIDE_DEBUG"):
            raise
        raise SystemExit(f"iqguide: error: {one_line(error)}") from error


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Make a folder for results where it is missing, and find out before the work whether it can be written to.

    Raises:
        OSError: it cannot be made, or be written to; the message names the way out.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"cannot make the folder {folder} ({error.strerror}); choose another one."
        raise OSError(error.errno, message) from error
    if not os.access(folder, os.W_OK):
        raise PermissionError(errno.EACCES, f"cannot write to the folder {folder}; choose another one.")
    return folder


@contextmanager
def claimed(folder: str | os.PathLike[str]) -> Iterator[None]:
    """While open, this process alone writes results into a folder; the claim ends with the process, however it ends.

    Raises:
        OSError: another process has claimed it.
    """
    try:
        import fcntl  # not on Windows, where nothing is claimed

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        yield
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        message = f"another run is writing to {folder}; wait for it, or choose another folder."
        raise OSError(error.errno, message) from error
    except OSError:
        pass  # a file system without locks
    try:
        yield
    finally:
        os.close(handle)


LONGEST_NAME = 255
"""Bytes of a file's name, on nearly every file system."""


def fitted_name(stem: str, ending: str) -> str:
    """A file name: the stem, cut where it would be longer than a file system takes, and the ending."""
    while len(os.fsencode(stem + ending)) > LONGEST_NAME:
        stem = stem[:-1]
    return stem + ending


@contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary file beside `path` to be written inside the block; it takes the place of `path` at the end.

    After an exception inside the block the temporary file is gone and `path` is as it was. Its name is short, so any
    name that the file system allows can be written.

    Raises:
        OSError: with the path and the way out in its text.
    """
    path = Path(path)
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}.part")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        message = f"cannot write {path}: {error.strerror or error}; free some space or choose another folder."
        raise OSError(error.errno, message) from error
    finally:
        temporary.unlink(missing_ok=True)


def atomic_write(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file that appears complete or not at all, see `written_whole`.

    Args:
        path: where the file shall be; an existing file is replaced. What is no plain file, such as a link, a pipe or
            /dev/stdout, is written to as it is.
        content: all of it.

    Raises:
        OSError: with the path and the way out in its text; `path` is as it was.
    """
    path = Path(path)
    if path.is_symlink() or (path.exists() and not path.is_file()):
        path.write_bytes(content)
        return
    with written_whole(path) as temporary:
        temporary.write_bytes(content)
