"""The command `iqguide`: score, rank, sample, evaluate, demo, models, env. Nothing heavy is imported before."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

from ..errors import FOR_PEOPLE, one_line
from .console import FAILED, INTERRUPTED, OK, STDERR
from .options import add_commands


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: without the name of the program; None takes those of the process.

    Returns:
        The exit status: 0 when it worked, 2 for a usage error or when nothing could be done, 130 after Ctrl-C.
    """
    options = build_parser().parse_args(arguments)
    logging.basicConfig(format="iqguide: %(message)s")
    logging.getLogger(__package__.rpartition(".")[0]).setLevel(logging.INFO)
    try:
        status = options.run(options)
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        return OK
    except KeyboardInterrupt:
        print("iqguide: interrupted.", file=STDERR)
        return INTERRUPTED
    except Exception as error:
        if os.environ.get("IQGUIDE_DEBUG") or not isinstance(error, FOR_PEOPLE):
            raise
        print(f"iqguide: error: {one_line(error)}", file=STDERR)
        return FAILED
    finally:
        _drop_unwritten()
    return status


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; its `run` is the function of the sub-command."""
    parser = argparse.ArgumentParser(
        prog="iqguide",
        description="Score images, pick the best, and steer diffusion sampling by the score.",
        epilog="IQGUIDE_DEBUG=1 shows where an error comes from; IQGUIDE_OFFLINE=1 forbids downloads.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    add_commands(commands)
    return parser


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from .. import __version__

        print(f"iqguide {__version__}")
        parser.exit()


def _drop_unwritten() -> None:
    """What could not be written goes nowhere, or the interpreter would fail on it once more at exit."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
