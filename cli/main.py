"""The command `iqguide`: score, rank, sample, evaluate, demo, models, env. Nothing heavy is imported before."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import one_line
from .arguments import counting, dimensions, finite, positive, seed_list, shares, strength
from .console import FAILED, INTERRUPTED, OK

PACKAGES = (
    *("torch", "diffusers", "open_clip_torch", "timm", "transformers", "accelerate"),
    *("safetensors", "huggingface_hub", "numpy", "pillow", "scipy", "xformers"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: without the name of the program; None takes those of the process.

    Returns:
        The exit status: 0 when it worked, 2 for a usage error or when nothing could be done, 130 after Ctrl-C.
    """
    options = build_parser().parse_args(arguments)
    logging.basicConfig(format="iqguide: %(message)s")
    logging.getLogger(__package__).setLevel(logging.INFO)
    try:
        status = options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        return OK
    except KeyboardInterrupt:
        print("iqguide: interrupted.", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if os.environ.get("IQGUIDE_DEBUG") or not _is_for_people(error):
            raise
        print(f"iqguide: error: {one_line(error)}", file=sys.stderr)
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
    for add in (_add_demo, _add_score, _add_rank, _add_sample, _add_evaluate, _add_models, _add_env):
        add(commands)
    return parser


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from .. import __version__

        print(f"iqguide {__version__}")
        parser.exit()


def _add(commands: Any, name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", formatter_class=_HelpFormatter
    )
    parser.set_defaults(run=run)
    return parser


class _HelpFormatter(argparse.HelpFormatter):
    """Appends the default of an option to its help, where there is one to name."""

    def _get_help_string(self, action: argparse.Action) -> str:
        named = action.default not in (None, False, argparse.SUPPRESS) and action.option_strings
        return f"{action.help} (default: %(default)s)" if named else str(action.help)


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="tiny", help="quality model; `iqguide models` lists them")
    parser.add_argument("--weights", default="default", help="'default', 'random', or a weights file for the model")
    parser.add_argument("--device", help="such as cuda, mps or cpu (default: the best there is)")


def _add_demo(commands: Any) -> None:
    parser = _add(
        commands,
        "demo",
        _demo,
        "generate with the bundled generator unguided, guided, best of 8 and both: a table and a picture",
    )
    parser.add_argument("--out", default="out/demo", metavar="DIR", help="folder for demo.png")
    parser.add_argument("--seeds", type=positive, default=4, metavar="COUNT", help="number of seeds")
    parser.add_argument("--steps", type=positive, help="denoising steps (default: 25)")
    parser.add_argument("--best-of", type=positive, default=8, metavar="N", help="candidates an image")
    parser.add_argument("--prompt", default="", help="words that the bundled generator knows: see its model card")
    _add_model_options(parser)


def _add_score(commands: Any) -> None:
    parser = _add(commands, "score", _score, "print a quality score for each image")
    parser.add_argument("paths", nargs="+", metavar="PATH", help="image files, and folders of them")
    _add_reading_options(parser)
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument(
        "--json", action="store_true", help='print [{"path": ..., "score": ..., "error": null}, ...] and nothing else'
    )
    shape.add_argument("--csv", action="store_true", help="print the columns path,score,error and nothing else")
    parser.add_argument(
        "--explain", action="store_true", help="also print what each score is made of (in --json: parts); not for tiny"
    )
    parser.add_argument("--explain-to", metavar="DIR", help="draw what each score is made of as bars into DIR/NAME.png")
    _add_model_options(parser)


def _add_rank(commands: Any) -> None:
    parser = _add(commands, "rank", _rank, "list the best images of a folder, best first")
    parser.add_argument("paths", nargs="+", metavar="DIR", help="folders of images, and image files")
    parser.add_argument("--top", type=positive, metavar="K", help="how many (default: all)")
    parser.add_argument("--copy-to", metavar="DIR", help="copy them there; no file is overwritten")
    _add_reading_options(parser)
    parser.add_argument("--json", action="store_true", help="print them as `iqguide score --json` does")
    _add_model_options(parser)


def _add_reading_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--recursive", action="store_true", help="look into the folders inside the folders too")
    parser.add_argument(
        "--size",
        type=counting,
        metavar="PIXELS",
        help="images with a longer short side are reduced to this one before scoring; 0 for never"
        " (default: the size that `iqguide models` shows for the model)",
    )
    parser.add_argument("--reference", metavar="PATH", help="what a full-reference model compares the images with")


def _add_sample(commands: Any) -> None:
    parser = _add(commands, "sample", _sample, "generate images, guided or best of N or both")
    parser.epilog = (
        "DIR/samples.json lists for each image: seed, candidate_seed (of the winner among seed*N ... seed*N+N-1), score"
        " of the file, time_s (wall time of generating and choosing) and nfe: rows that went through the denoiser for"
        " this image, over all steps and candidates; with classifier-free guidance a step is two rows. Equal seeds"
        " start from equal noise, with and without --guide. With --judge also judge, its score of the file; and if"
        " something steered, plain_score and plain_judge, of what the first candidate's seed makes unguided."
        " Under `accelerate launch -m iqguide.cli sample ...` the seeds are split over the GPUs, and over N processes"
        " on CPUs under `ACCELERATE_USE_CPU=true torchrun --nproc-per-node N -m iqguide.cli sample ...`."
    )
    parser.add_argument("prompt", nargs="?", default="", metavar="PROMPT", help="what to generate (default: nothing)")
    parser.add_argument(
        "--pipeline", default="demo", metavar="demo|HUB-ID|PATH", help="a diffusers pipeline; demo is bundled"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for SEED.png and samples.json")
    parser.add_argument("--seeds", type=seed_list, default="0", help="such as 7, 0:64 (64 is left out) or 1,5,9")
    parser.add_argument(
        "--guide",
        type=strength,
        nargs="?",
        const="default",
        metavar="SCALE",
        help="guide by the model's score, with this strength or the default one; PROMPT comes before it",
    )
    parser.add_argument("--best-of", type=positive, metavar="N", help="draw N candidates an image and keep the best")
    parser.add_argument(
        "--halving",
        type=shares,
        nargs="?",
        const=True,
        metavar="SHARES",
        help="drop the worse half of the candidates after these shares of the steps, such as 0.3,0.6 (alone: 0.4,0.7);"
        " PROMPT comes before it; needs --best-of",
    )
    parser.add_argument(
        "--decoder",
        metavar="vae|HUB-ID|PATH",
        help="with which --guide and --halving look at predictions: the pipeline's own autoencoder, or an"
        " AutoencoderTiny (default: a tiny one for --guide if it is on this machine, else the own one)",
    )
    parser.add_argument(
        "--judge",
        metavar="MODEL",
        help="score the images by a second model that steers nothing, and warn if it falls while the first one rises;"
        " costs one more unguided image a seed",
    )
    parser.add_argument("--judge-weights", default="default", metavar="WEIGHTS", help="of the judge, as --weights")
    parser.add_argument(
        "--resume", action="store_true", help="keep the images that DIR has from the same command, and make the others"
    )
    parser.add_argument(
        "--steps", type=positive, help="denoising steps (default: 25 for demo, else the pipeline's own)"
    )
    parser.add_argument("--size", type=dimensions, metavar="N|WxH", help="pixels (default: the pipeline's own)")
    parser.add_argument(
        "--batch-size",
        type=positive,
        default=1,
        metavar="N",
        help="images generated at once: N seeds that follow each other, or N candidates of one image with --best-of;"
        " a batch that is not full costs as much as a full one, and several processes share whole batches",
    )
    parser.add_argument("--negative-prompt", metavar="TEXT", help="what not to generate")
    parser.add_argument(
        "--guidance-scale",
        type=finite,
        metavar="X",
        help="classifier-free guidance (default: 3 for demo, else the pipeline's own)",
    )
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        help="of the pipeline (default: float32 on a CPU, else bfloat16 where it is fast, else float16)",
    )
    _add_model_options(parser)


def _add_evaluate(commands: Any) -> None:
    parser = _add(commands, "evaluate", _evaluate, "measure how well a model agrees with people on a data set")
    parser.epilog = (
        "Data sets: live-challenge, koniq-10k, spaq, flive, kadid-10k, tid2013, csiq, live, agiqa-3k, agiqa-1k, each as"
        " it was released, and csv: a table with the columns image,mos[,std][,reference][,split]. Under `accelerate"
        " launch -m iqguide.cli evaluate ...` the images are split over the GPUs, and over N processes on CPUs under"
        " `ACCELERATE_USE_CPU=true torchrun --nproc-per-node N -m iqguide.cli evaluate ...`."
    )
    parser.add_argument("--dataset", required=True, metavar="NAME", help="which data set; see below")
    parser.add_argument("--root", required=True, metavar="DIR", help="its folder; for csv the table")
    parser.add_argument(
        "--split",
        choices=["all", "test", "ten"],
        default="all",
        help="all images, the official test part, or the test parts of ten seeded splits by reference",
    )
    parser.add_argument(
        "--group-alike",
        action="store_true",
        help="near-identical images stay on one side of the ten splits; for sets of up to some thousand images",
    )
    parser.add_argument(
        "--scale",
        type=float,
        nargs=2,
        metavar=("WORST", "BEST"),
        help="published scores of the worst and the best quality (default: the data set's; for csv the table's ends)",
    )
    parser.add_argument(
        "--size",
        type=counting,
        metavar="PIXELS",
        help="images with a longer short side are reduced to this one; 0 for never (default: the model's size)",
    )
    parser.add_argument(
        "--bootstrap", type=counting, default=1000, metavar="DRAWS", help="for the intervals; 0 for none"
    )
    parser.add_argument("--csv", metavar="FILE", help="write score, mos and opinion of each image")
    parser.add_argument("--plot", metavar="FILE", help="draw scores against opinions, with the fitted curve")
    parser.add_argument(
        "--json", action="store_true", help='print {"srcc", "plcc", "plcc_fitted", ...} and nothing else'
    )
    _add_model_options(parser)


def _add_models(commands: Any) -> None:
    parser = _add(commands, "models", _models, "list the quality models: weights here or not, licence, paper")
    parser.add_argument("--json", action="store_true", help="print them as a list of objects and nothing else")


def _add_env(commands: Any) -> None:
    _add(commands, "env", _env, "print versions, devices and folders, for a report")


def _demo(options: argparse.Namespace) -> int:
    from .sample import run_demo

    return run_demo(options)


def _score(options: argparse.Namespace) -> int:
    from .score import run_score

    return run_score(options)


def _rank(options: argparse.Namespace) -> int:
    from .score import run_rank

    return run_rank(options)


def _sample(options: argparse.Namespace) -> int:
    from .sample import run_sample

    return run_sample(options)


def _evaluate(options: argparse.Namespace) -> int:
    from .evaluate import run_evaluate

    return run_evaluate(options)


def _models(options: argparse.Namespace) -> int:
    from ..models import MODELS, is_cached

    rows = []
    for spec in MODELS.values():
        here = "bundled" if spec.bundled else "cached"
        if not is_cached(spec):
            here = "missing" if spec.bundled else "not downloaded" if spec.trained else "not trained"
        row = {"name": spec.name, "weights": here, "megabytes": spec.megabytes, "native_size": spec.native_size}
        rows.append({**row, "licence": spec.licence, "paper": spec.paper, "summary": spec.summary})
    if options.json:
        print(json.dumps(rows, indent=1))
        return OK
    for row in rows:
        size = f"{row['megabytes']} MB" if row["megabytes"] else ""
        limit = f"{row['native_size']} px" if row["native_size"] else "any size"
        print(f"{row['name']:<12} {row['weights']:<15} {size:<8} {limit:<9} {row['licence']}")
        print(f"{'':<12} {row['summary']}" + (f"; {row['paper']}" if row["paper"] else ""))
    return OK


def _env(options: argparse.Namespace) -> int:
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch

    from .. import __version__
    from ..models.weights import cache_dir, is_offline

    print(f"iqguide          {__version__}")
    print(f"python           {platform.python_version()} on {platform.platform()}")
    for package in PACKAGES:
        try:
            print(f"{package:<16} {version(package)}")
        except PackageNotFoundError:
            print(f"{package:<16} not installed")
    for index in range(torch.cuda.device_count()):
        memory = torch.cuda.get_device_properties(index).total_memory / 2**30
        print(f"cuda:{index}           {torch.cuda.get_device_name(index)}, {memory:.0f} GiB")
    built = torch.version.cuda or torch.version.hip
    print(f"cuda             {built or 'not'} built in, {torch.cuda.device_count()} devices")
    print(f"mps              {'available' if torch.backends.mps.is_available() else 'not available'}")
    print(f"cpu              {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    print(f"weights          {cache_dir()}{' (offline)' if is_offline() else ''}")
    return OK


def _is_for_people(error: Exception) -> bool:
    """Whether the message alone says what to do; anything else is a defect, and its traceback is wanted."""
    from ..errors import WeightsError

    return isinstance(error, (ValueError, OSError, ImportError, WeightsError))


def _drop_unwritten() -> None:
    """What could not be written to stdout goes nowhere, or the interpreter would fail on it once more at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
