"""Settings of the training commands: frozen dataclasses whose fields are flags, held to their ranges.

A field is `name: Annotated[type, "help"]`, with a default or, where the flag has to be given, without one. A class may
have `RANGES`, the lowest and the highest value by name, which its `__post_init__` hands to `check_ranges`, and
`FORMER_NAMES`, what earlier versions called a setting.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from pathlib import Path
from types import UnionType
from typing import Any, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from ..errors import one_line

Settings = TypeVar("Settings")
SEEDS = (0, 2**32 - 1)
"""The range of a seed: numpy takes no larger one."""


class Parser(argparse.ArgumentParser):
    """A parser that says what is wrong and nothing else: the flags are many, and `--help` lists them."""

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(2, f"iqguide: error: {' '.join(message.split())}\n")


def check_ranges(settings: object, ranges: dict[str, tuple[float, float]]) -> None:
    """Raise ValueError where an attribute is no number from the lowest to the highest one of its name."""
    for name, (low, high) in ranges.items():
        value = getattr(settings, name)
        if not low <= value <= high or math.isinf(value):
            expected = f"{low} or more" if high == math.inf else f"{low} to {high}"
            expected += ", a finite number" if math.isinf(value) else ""
            raise ValueError(f"{name} is {value}; expected {expected}.")


def parse_within(
    parser: Parser, ranges: dict[str, tuple[float, float]], arguments: list[str] | None
) -> argparse.Namespace:
    """The settings on the command line; exit where a number is outside its range, see `check_ranges`."""
    settings = parser.parse_args(arguments)
    try:
        check_ranges(settings, ranges)
    except ValueError as error:
        parser.error(str(error))
    return settings


def hints(kind: type) -> dict[str, tuple[Any, str]]:
    """The type and the help of each setting of a class."""
    annotated = get_type_hints(kind, include_extras=True)
    return {item.name: get_args(annotated[item.name]) for item in dataclasses.fields(kind)}


def plain_type(hint: Any) -> tuple[type, bool]:
    """The type of a setting, and whether it may be None."""
    if get_origin(hint) in (Union, UnionType):
        inner = next(each for each in get_args(hint) if each is not type(None))
        return get_origin(inner) or inner, True
    return get_origin(hint) or hint, False


def add_flags(parser: argparse.ArgumentParser, kind: type) -> None:
    """A flag for every setting of a class, absent from the result where it is not given."""
    former = getattr(kind, "FORMER_NAMES", {})
    annotated = hints(kind)
    for item in dataclasses.fields(kind):
        hint, text = annotated[item.name]
        required, default = _default(item)
        flags = [f"--{name.replace('_', '-')}" for name in (item.name, former.get(item.name)) if name]
        shown = text if required else f"{text} ({default})"
        options = {"default": argparse.SUPPRESS, "required": required, "help": shown.replace("%", "%%")}
        parser.add_argument(*flags, **_reading(hint), **options)


def _default(item: dataclasses.Field) -> tuple[bool, Any]:
    """Whether a flag has to be given, and what counts without it."""
    if item.default_factory is not dataclasses.MISSING:
        return False, item.default_factory()
    return item.default is dataclasses.MISSING, item.default


def _reading(hint: Any) -> dict[str, Any]:
    """How argparse reads a setting."""
    kind, _ = plain_type(hint)
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if kind is dict:
        return {"type": json_object}
    if kind is tuple:
        inner = next(
            each for each in (get_args(hint), *map(get_args, get_args(hint))) if each and each[0] in (str, float)
        )
        return {"type": inner[0], "nargs": "*" if Ellipsis in inner else len(inner)}
    return {"type": kind}


def json_object(text: str) -> dict[str, Any]:
    """A dict on the command line."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"got {text!r}; expected JSON such as '{{\"name\": 1}}'")
    return value


def build(kind: type[Settings], values: dict[str, Any], parser: argparse.ArgumentParser) -> Settings:
    """The settings, or an exit with one sentence."""
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    try:
        return kind(**values)
    except (ValueError, OSError) as error:
        parser.error(one_line(error))


def parse_settings(kind: type[Settings], module: str, arguments: list[str] | None = None) -> Settings:
    """Read the command line of a training module.

    Args:
        kind: a dataclass of settings.
        module: its name in `iqguide.training`, for the help.
        arguments: what to read; None for the process' own.
    """
    parser = Parser(prog=f"accelerate launch -m iqguide.training.{module}", allow_abbrev=False)
    add_flags(parser, kind)
    return build(kind, vars(parser.parse_args(arguments)), parser)


def jsonable(settings: object) -> dict[str, Any]:
    """The settings as a run's record holds them."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(settings).items()}
