"""Settings of a training run: a JSON or TOML file, and flags that overrule it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, ClassVar

from ..images import MIN_SIDE
from ..models.catalog import get_spec
from .options import Parser, add_flags, build, hints, plain_type
from .run_settings import RunSettings, Started, add_start_flags, check_choices

MODELS = ("tiny", "qualiclip", "bpclip", "bpclip-fr", "bpclip-mini")
WEIGHTS = (
    *("ranking_weight", "severity_weight", "mos_weight", "squared_weight", "prompt_weight"),
    *("alignment_weight", "penalty_weight", "attack_weight", "denoised_weight"),
)


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(RunSettings):
    """One fine-tuning run. Each default is written here and nowhere else; the second part of a type is its help.

    The defaults are those of `tiny`; recipes/configs/ has a file for each of the others.
    """

    RANGES: ClassVar[dict] = RunSettings.RANGES | {
        **dict.fromkeys(("ladders", "scored"), (1, math.inf)),
        **dict.fromkeys(("cut", "aligned", *WEIGHTS), (0, math.inf)),
        **dict.fromkeys(("attack_step", "consistency_margin", "rank_margin"), (0, math.inf)),
        **dict.fromkeys(("ladder_levels", "levels"), (2, math.inf)),
        **dict.fromkeys(("crop", "scored_crop"), (MIN_SIDE, math.inf)),
    }
    FORMER_NAMES: ClassVar[dict] = {
        "mos_weight": "opinion_weight",
        "scored": "opinions",
        "scored_crop": "opinion_crop",
        "ladder_levels": "rungs",
        "short_side": "validation_size",
    }
    """Settings by the names that earlier versions gave them, which files and flags may still use."""

    model: Annotated[str, f"what to train: {', '.join(MODELS)}"] = "tiny"
    options: Annotated[dict, "of create_model, json; its config as a dict"] = field(default_factory=dict)
    data: Annotated[Path, "folder with pristine/ and live-challenge/"] = Path("data")
    clean: Annotated[Path | None, "folder of clean photographs in place of pristine/images"] = None
    out: Annotated[Path, "where checkpoints and the result go"] = Path("runs/tiny")
    init: Annotated[Path | None, "start from this file ('default': the model's own weights), not from random ones"] = (
        None
    )
    freeze: Annotated[tuple[str, ...], "parameters that stay: beginnings of their names"] = ()
    lr_factors: Annotated[dict, "learning rate by the beginning of a parameter's name, as a factor of lr; json"] = (
        field(default_factory=dict)
    )
    teacher: Annotated[Path | None, "SqueezeNet 1.0 state dict that labels crops; without it people's scores alone"] = (
        None
    )
    denoised: Annotated[Path | None, "cache of denoised predictions made by recipes/demo_generator/denoised.py"] = None
    gradient_checkpointing: Annotated[bool, "compute activations twice instead of keeping them"] = False
    ladders: Annotated[int, "photographs a batch and process that are degraded step by step"] = 6
    ladder_levels: Annotated[int, "crops per ladder, the clean one included"] = 4
    crop: Annotated[int, "side of the ladder crops, px"] = 128
    cut: Annotated[int, "crops of each clean photograph that are cut ahead; 0 reads the photograph at every draw"] = 20
    scored: Annotated[int, "human-scored crops a batch and process"] = 8
    scored_crop: Annotated[int, "side of the human-scored crops, px"] = 224
    vertical: Annotated[bool, "mirror scored crops upside down too, half of the time"] = False
    aligned: Annotated[int, "pictures a batch and process whose gradient must point back to the clean picture"] = 4
    ranking_weight: Annotated[float, "of the ranking of each ladder"] = 1.0
    severity_weight: Annotated[float, "of the regression on how severe the degradation is"] = 0.3
    mos_weight: Annotated[float, "of the human scores"] = 1.0
    squared_weight: Annotated[float, "of the squared error of the human scores, on a scale from 0 to 1"] = 0.0
    prompt_weight: Annotated[float, "of the three ranking losses of QualiCLIP"] = 0.0
    levels: Annotated[int, "L of these losses: levels of each photograph's degradation"] = 5
    twins: Annotated[str, "what degrades the crops of these losses: own or published distortions"] = "own"
    consistency_margin: Annotated[float, "similarities of two crops may differ so much"] = 2.5e-3
    rank_margin: Annotated[float, "similarities of two levels shall differ so much"] = 6.75e-2
    alignment_weight: Annotated[float, "of the direction of the gradient"] = 1.0
    penalty_weight: Annotated[float, "of the input-gradient penalty"] = 0.02
    attack_weight: Annotated[float, "of what a climb up the gradient gains without restoring the picture"] = 1.0
    attack_step: Annotated[float, "RMS of the longest climb, pictures in [0, 1]"] = 0.06
    denoised_weight: Annotated[float, "of the ranking of denoised predictions"] = 1.0

    def __post_init__(self) -> None:
        check_choices(self, {"model": MODELS, "twins": ("own", "published")})
        super().__post_init__()
        for start, factor in self.lr_factors.items():
            if not isinstance(factor, int | float) or not 0 <= factor < math.inf:
                raise ValueError(f"lr_factors has {factor!r} for {start!r}; expected a number of 0 or more.")
        if self.twins == "published" and self.levels > 5:
            raise ValueError(f"levels is {self.levels}; expected at most 5, which is how many are published.")
        if self.prompt_weight and self.model != "qualiclip":
            raise ValueError(f"prompt_weight is {self.prompt_weight} and {self.model} has no prompts; set it to 0.")
        if not (any(getattr(self, name) for name in WEIGHTS[:5]) or self.aligns or self.predicts):
            raise ValueError(
                "no objective has a weight above 0, so nothing would be learnt; give ranking_weight or another."
            )

    @property
    def folder(self) -> Path:
        """Where checkpoints go."""
        return self.out

    @property
    def result(self) -> Path:
        """The file of the result."""
        return self.out / f"{self.model}.safetensors"

    @property
    def aligns(self) -> bool:
        """Whether pictures are seen for the sake of their gradient."""
        return self.aligned > 0 and (self.second_order or self.attack_weight > 0)

    @property
    def predicts(self) -> bool:
        """Whether denoised predictions are ranked."""
        return self.denoised is not None and self.aligned > 0 and self.denoised_weight > 0

    @property
    def second_order(self) -> bool:
        """Whether the gradient in the pictures is differentiated once more."""
        return self.alignment_weight > 0 or self.penalty_weight > 0

    @property
    def uses_mos(self) -> bool:
        """Whether people's scores are learnt from."""
        return bool(self.mos_weight or self.squared_weight)

    @property
    def degrades(self) -> bool:
        """Whether clean photographs are degraded."""
        return bool(self.ranking_weight or self.severity_weight or self.prompt_weight or self.aligns)

    @property
    def full_reference(self) -> bool:
        """Whether the model compares pictures with a reference."""
        return get_spec(self.model).full_reference

    @property
    def fits_score(self) -> bool:
        """Whether the model's score is fitted to people's scores after the last step."""
        return self.model == "tiny"


HINTS = hints(FinetuneConfig)


def read_config(path: Path) -> dict[str, Any]:
    """The settings in a JSON or TOML file, or those of the run that wrote a `run.json`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, has a key that is no setting, or a value of a wrong type.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no config {path}.")
    try:
        values = _toml(path) if path.suffix == ".toml" else json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read ({error}); expected JSON or TOML.") from error
    values = values.get("config", values) if isinstance(values, dict) else values  # run.json
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds {values!r}; expected settings by their names.")
    current = {former: name for name, former in FinetuneConfig.FORMER_NAMES.items()}
    values = {current.get(key, key): value for key, value in values.items()}
    for key, value in values.items():
        if key not in HINTS:
            close = get_close_matches(key, HINTS, n=1)
            raise ValueError(f"{path} has an unknown key {key!r}{f'; did you mean {close[0]!r}?' if close else '.'}")
        values[key] = _typed(key, value, path)
    return values


def _toml(path: Path) -> dict[str, Any]:
    try:
        import tomllib
    except ImportError as error:
        raise ValueError("TOML needs Python 3.11 or newer") from error
    return tomllib.loads(path.read_text("utf-8"))


def _typed(name: str, value: Any, source: object) -> Any:
    """A value of a file as the setting has it."""
    kind, optional = plain_type(HINTS[name][0])
    if value is None and optional:
        return None
    accepted = {Path: str, float: (int, float), tuple: list}.get(kind, kind)
    if not isinstance(value, accepted) or (kind is not bool and isinstance(value, bool)):
        raise ValueError(f"{name} in {source} is {value!r}; expected {kind.__name__}.")
    item = float if name == "scale" else str
    if kind is tuple and not all(isinstance(each, (int, float) if item is float else str) for each in value):
        raise ValueError(f"{name} in {source} is {value!r}; expected {'numbers' if item is float else 'texts'}.")
    return kind(value)


def parse_config(arguments: list[str] | None = None) -> tuple[FinetuneConfig, Started]:
    """Read the command line; every field of `FinetuneConfig` is a flag, which goes before the file of `--config`.

    Args:
        arguments: what to read; None for the process' own.

    Returns:
        The settings, and whether to resume from the last checkpoint in `out` or to overwrite what is there.
    """
    parser = Parser(prog="accelerate launch -m iqguide.training.finetune")
    parser.add_argument("--config", type=Path, help="JSON or TOML file of settings, or a run.json to run again")
    add_flags(parser, FinetuneConfig)
    add_start_flags(parser)
    flags = vars(parser.parse_args(arguments))
    started, path = Started(flags.pop("resume"), flags.pop("overwrite")), flags.pop("config")
    try:
        values = read_config(path) if path else {}
    except (ValueError, OSError) as error:
        parser.error(str(error))
    return build(FinetuneConfig, values | flags, parser), started
