"""The rule of every command that writes files: never onto an input, never over what it has not written itself."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from ..errors import fitted_name

MARK = "iqguide"
"""Keyword of the text in a PNG that says what has written it."""


def check_targets(
    targets: Iterable[str | os.PathLike[str]],
    inputs: Iterable[str | os.PathLike[str]] = (),
    own: str | None = None,
    overwrite: bool = False,
) -> None:
    """Find out before the work whether a file would be written over.

    Args:
        targets: what is going to be written. What is no file, such as a pipe or /dev/stdout, may be written to.
        inputs: what is read, and never written to; of a folder everything that it holds.
        own: what a PNG says of itself (`MARK`), or a table begins with, that the same command wrote earlier; such a
            file is replaced.
        overwrite: whether any other file than an input may be replaced.

    Raises:
        ValueError: a target is an input, or exists already; says the ways out.
    """
    inputs = [Path(path) for path in inputs]
    read = {key for key in map(_key, inputs) if key is not None}
    folders = [path.resolve() for path in inputs if path.is_dir()]
    for target in map(Path, targets):
        key = _key(target)
        if key is None or not target.is_file() or Path("/dev") in target.parents:
            continue
        if own and key not in read and _is_own(target, own):
            continue
        if key in read or any(target.resolve().is_relative_to(folder) for folder in folders):
            raise ValueError(f"{target} is read by this command and would be written over; choose another place.")
        if not overwrite:
            raise ValueError(
                f"{target} exists already, and this command has not written it; choose another place, or add "
                "--overwrite."
            )


def unique_names(stems: Sequence[str], suffix: str) -> list[str]:
    """A file name for each stem: the stem, with its place in front where two would have one name.

    Each is cut to what a file system takes. Names that differ in case alone count as one, as for some file systems.
    """
    width = len(str(len(stems)))
    plain = [fitted_name(stem, suffix) for stem in stems]
    folded = [name.casefold() for name in plain]
    names = [
        name if folded.count(name.casefold()) == 1 else fitted_name(f"{place:0{width}}_{stem}", suffix)
        for place, (name, stem) in enumerate(zip(plain, stems, strict=True), 1)
    ]
    if len({name.casefold() for name in names}) < len(names):  # a stem is called like another with its place
        names = [fitted_name(f"{place:0{width}}_{stem}", suffix) for place, stem in enumerate(stems, 1)]
    return names


def _key(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """What tells one file from another, whichever name it goes by; None where there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _is_own(path: Path, own: str) -> bool:
    if path.suffix.lower() != ".png":
        with path.open("rb") as file:
            return file.read(len(own)) == own.encode()
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            return picture.info.get(MARK) == own
    except (OSError, ValueError, SyntaxError):  # no PNG, whatever it is called
        return False
