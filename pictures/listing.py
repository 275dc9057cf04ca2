"""The one way in which folders are searched for pictures, and what is said of the files that are left out."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from .formats import why_not

NAMED = 3
"""How many files of one kind are named before the rest is only counted."""

HIDDEN, INSIDE, TWICE = "hidden", "a folder inside, not searched", "a folder that is listed already"
DANGLING, NO_FILE, CLOSED = "a link to nothing", "a pipe or a device", "cannot be read: {}"


@dataclass
class Listing:
    """The pictures that were found, in order, and everything else by the reason why it was left out."""

    files: list[Path] = field(default_factory=list)
    left_out: dict[str, list[Path]] = field(default_factory=dict)

    def leave_out(self, path: Path, reason: str) -> None:
        """Note a file or folder that is not taken."""
        self.left_out.setdefault(reason, []).append(path)

    def remarks(self) -> list[str]:
        """A sentence for each reason: how many were left out, and the first of them."""
        return [
            f"left out {len(paths)} ({reason}): {', '.join(map(str, paths[:NAMED]))}"
            + (f" and {len(paths) - NAMED} more." if len(paths) > NAMED else ".")
            for reason, paths in self.left_out.items()
        ]


def list_pictures(paths: Iterable[str | os.PathLike[str]], recursive: bool = True) -> Listing:
    """Files as they are given, folders as the pictures in them, sorted by path; nothing is opened.

    Taken are regular files with an ending of `formats.suffixes()`; links are followed, and a folder is searched once,
    whichever way leads to it. Hidden files and folders (.name, with them the ._name of macOS) are left out.

    Args:
        paths: files, which are taken unseen, and folders.
        recursive: whether the folders inside the folders are searched too.

    Returns:
        The files, each once, and what was left out.

    Raises:
        OSError: a folder that was given itself cannot be read.
    """
    listing = Listing()
    files: list[Path] = []
    seen: set[tuple[int, int]] = set()
    for path in map(Path, paths):
        if not path.is_dir():
            files.append(path)
            continue
        os.scandir(path).close()  # what was asked for by name is an error where it cannot be read
        inside: list[Path] = []
        _search(path, recursive, inside, listing, seen)
        files += sorted(inside)
    listing.files = list(dict.fromkeys(files))
    return listing


def no_pictures(paths: Iterable[str | os.PathLike[str]], recursive: bool = True) -> ValueError:
    """What is said when there is no picture at all."""
    hint = "" if recursive else " Add --recursive to look into the folders inside."
    names = ", ".join(map(os.fspath, paths))
    return ValueError(f"there is no image in {names}; expected files such as .png or .jpg.{hint}")


def _search(folder: Path, recursive: bool, files: list[Path], listing: Listing, seen: set[tuple[int, int]]) -> None:
    """Add what is below a folder; folders wait on a list of their own, so that no depth is too deep."""
    waiting = [folder]
    while waiting:
        folder = waiting.pop()
        status = folder.stat()
        if (status.st_dev, status.st_ino) in seen:
            listing.leave_out(folder, TWICE)
            continue
        seen.add((status.st_dev, status.st_ino))
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            listing.leave_out(folder, CLOSED.format(error.strerror))
            continue
        for entry in entries:
            path = Path(folder, entry.name)
            reason = _reason(entry, path, recursive)
            if reason is not None:
                listing.leave_out(path, reason)
            elif entry.is_dir():
                waiting.append(path)
            else:
                files.append(path)


def _reason(entry: os.DirEntry[str], path: Path, recursive: bool) -> str | None:
    """Why an entry of a folder is left out; None for a picture, and for a folder that is searched."""
    if entry.name.startswith("."):
        return HIDDEN
    try:
        mode = entry.stat().st_mode
    except OSError as error:
        return DANGLING if entry.is_symlink() else CLOSED.format(error.strerror)
    if stat.S_ISDIR(mode):
        return None if recursive else INSIDE
    return why_not(path) if stat.S_ISREG(mode) else NO_FILE
