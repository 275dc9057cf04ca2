"""Configs are held to known values and ranges before anything is built of them: they may come from a file."""

from __future__ import annotations


def check_whole(config: object, **ranges: tuple[int, int]) -> None:
    """Hold fields of a config, or the members of tuples, to whole numbers within ranges.

    Args:
        config: with the fields.
        ranges: field -> lowest and highest value.

    Raises:
        ValueError: a value is something else.
    """
    for name, (low, high) in ranges.items():
        field = getattr(config, name)
        for value in field if isinstance(field, tuple) else (field,):
            if type(value) is not int or not low <= value <= high:
                raise ValueError(f"{name} is {field!r}; expected whole numbers from {low} to {high}.")


def check_flags(config: object, *names: str) -> None:
    """Hold fields of a config to True or False.

    Raises:
        ValueError: a value is something else.
    """
    for name in names:
        if type(getattr(config, name)) is not bool:
            raise ValueError(f"{name} is {getattr(config, name)!r}; expected True or False.")
