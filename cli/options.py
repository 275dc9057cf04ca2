"""The options of every sub-command, for argparse. Nothing heavy is imported here, so `--help` is quick."""

from __future__ import annotations

import argparse
from importlib import import_module
from typing import Any

from .arguments import counting, dimensions, finite, positive, seed_list, shares, strength

JUDGE = "lite"
"""The quality model that scores files and judges samples; `tiny`, which is made to be climbed, steers."""


def add_commands(commands: Any) -> None:
    """Add every sub-command to an argparse subparsers object; `run` of the parsed options runs it."""
    for add in (_add_demo, _add_score, _add_rank, _add_sample, _add_evaluate, _add_models, _add_env):
        add(commands)


def _add(commands: Any, name: str, module: str, text: str) -> argparse.ArgumentParser:
    """A sub-command, which is the function `run_NAME` of a module of this package, imported when it is called."""

    def run(options: argparse.Namespace) -> int:
        return getattr(import_module(module, __package__), f"run_{name}")(options)

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


def _add_model_options(parser: argparse.ArgumentParser, model: str = "tiny") -> None:
    parser.add_argument("--model", default=model, help="quality model; `iqguide models` lists them; tiny+lite is both")
    parser.add_argument("--weights", default="default", help="'default', 'random', or a weights file for the model")
    parser.add_argument("--device", help="such as cuda, mps or cpu (default: the best there is)")


def _add_demo(commands: Any) -> None:
    parser = _add(
        commands,
        "demo",
        ".demo",
        "generate with the bundled generator unguided, guided, best of 8 and both: a table and a picture",
    )
    parser.add_argument("--out", default="out/demo", metavar="DIR", help="folder for demo.png")
    parser.add_argument("--seeds", type=positive, default=4, metavar="COUNT", help="number of seeds")
    parser.add_argument("--steps", type=positive, help="denoising steps (default: 25)")
    parser.add_argument("--best-of", type=positive, default=8, metavar="N", help="candidates an image")
    parser.add_argument("--prompt", default="", help="words that the bundled generator knows: see its model card")
    _add_model_options(parser)


def _add_score(commands: Any) -> None:
    parser = _add(commands, "score", ".score", "print a quality score for each image")
    parser.add_argument("paths", nargs="+", metavar="PATH", help="image files, and folders of them")
    _add_reading_options(parser)
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument(
        "--json", action="store_true", help='print [{"path": ..., "score": ..., "error": null}, ...] and nothing else'
    )
    shape.add_argument(
        "--csv", action="store_true", help="print the columns path,score,error,percentile,word and nothing else"
    )
    parser.add_argument(
        "--explain",
        action="store_true",
        help="also print what each score is made of (in --json: parts); not for lite, tiny",
    )
    parser.add_argument("--explain-to", metavar="DIR", help="draw what each score is made of as bars into DIR/NAME.png")
    _add_overwrite(parser)
    _add_model_options(parser, JUDGE)


def _add_overwrite(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--overwrite", action="store_true", help="replace files that this command has not written; never what it reads"
    )


def _add_rank(commands: Any) -> None:
    parser = _add(commands, "rank", ".score", "list the best images of a folder, best first")
    parser.add_argument("paths", nargs="+", metavar="DIR", help="folders of images, and image files")
    parser.add_argument("--top", type=positive, metavar="K", help="how many (default: all)")
    parser.add_argument("--copy-to", metavar="DIR", help="copy them there; no file is overwritten")
    _add_reading_options(parser)
    parser.add_argument("--json", action="store_true", help="print them as `iqguide score --json` does")
    _add_model_options(parser, JUDGE)


def _add_reading_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--recursive", action="store_true", help="look into the folders inside the folders too")
    parser.add_argument(
        "--size",
        type=counting,
        metavar="PIXELS",
        help="images with a longer short side are reduced to this one before scoring, and none is enlarged; 0 for never"
        " (default: the sizes that `iqguide models` shows for the model)",
    )
    parser.add_argument("--reference", metavar="PATH", help="what a full-reference model compares the images with")


def _add_sample(commands: Any) -> None:
    parser = _add(commands, "sample", ".sample", "generate images, guided or best of N or both")
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
        nargs="?",
        const=JUDGE,
        metavar="MODEL",
        help=f"score the images by a second model that steers nothing (alone: {JUDGE}), and warn if it falls while the"
        " first one rises; PROMPT comes before it; costs one more unguided image a seed",
    )
    parser.add_argument("--judge-weights", default="default", metavar="WEIGHTS", help="of the judge, as --weights")
    parser.add_argument(
        "--resume", action="store_true", help="keep the images that DIR has from the same command, and make the others"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace what DIR has from other commands (default: refuse to)"
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
    parser = _add(commands, "evaluate", ".evaluate", "measure how well a model agrees with people on a data set")
    parser.epilog = (
        "Data sets: live-challenge, koniq-10k (z-scored MOS; koniq-10k-raw for the ratings' mean), spaq, flive, bid,"
        " uhd-iqa, kadid-10k, tid2013, csiq, live, pipal, agiqa-3k, agiqa-1k, aigiqa-20k, aigciqa2023, each as it was"
        " released, and csv: a table with the columns image,mos[,std][,reference][,split]. Under `accelerate"
        " launch -m iqguide.cli evaluate ...` the images are split over the GPUs, and over N processes on CPUs under"
        " `ACCELERATE_USE_CPU=true torchrun --nproc-per-node N -m iqguide.cli evaluate ...`."
    )
    parser.add_argument("--dataset", required=True, metavar="NAME", help="which data set; see below")
    parser.add_argument("--root", required=True, metavar="DIR", help="its folder; for csv the table")
    parser.add_argument(
        "--split",
        default="all",
        metavar="NAME",
        help="all images, test for the official test part, ten for those of ten seeded splits by reference, a number"
        " for one of these, pyiqa[-N] for IQA-PyTorch's, or a json file that lists the test images",
    )
    parser.add_argument(
        "--group-alike", action="store_true", help="near-identical images stay on one side of the ten splits"
    )
    parser.add_argument(
        "--scale",
        type=float,
        nargs=2,
        metavar=("WORST", "BEST"),
        help="published scores of the worst and the best quality (default: the data set's; for csv the table's ends)",
    )
    parser.add_argument(
        "--lower-is-better", action="store_true", help="the lowest score, of --scale or of the table, is the best"
    )
    parser.add_argument(
        "--logistic",
        type=int,
        choices=[4, 5],
        default=4,
        help="parameters of the curve before the fitted PLCC: four as VQEG's, or five as in newer papers",
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
    _add_overwrite(parser)
    parser.add_argument(
        "--json", action="store_true", help='print {"srcc", "plcc", "plcc_fitted", ...} and nothing else'
    )
    _add_model_options(parser)


def _add_models(commands: Any) -> None:
    parser = _add(commands, "models", ".models", "list the quality models: weights here or not, licence, paper")
    parser.add_argument("--json", action="store_true", help="print them as a list of objects and nothing else")


def _add_env(commands: Any) -> None:
    _add(commands, "env", ".env", "print versions, devices and folders, for a report")
