"""What a run of learning prompts is given: its settings, its samples, and the crops it sees."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from ..errors import make_folder
from ..images import MIN_SIDE, load_images, resize_short_side
from ..models.learned_prompts import TEXTS
from .batches import visit
from .datasets import load_dataset
from .run_settings import RunSettings, check_choices
from .sample import Sample
from .splits import named_split, seeded_splits

CROPS = 6
"""Kind of draws, which must not repeat others."""


@dataclass(frozen=True, kw_only=True)
class PromptConfig(RunSettings):
    """One run. Each default is written here and nowhere else."""

    RANGES: ClassVar[dict] = RunSettings.RANGES | {"batch": (1, math.inf), "crop": (MIN_SIDE, math.inf)}

    dataset: Annotated[str, "scored pictures: a name as `iqguide evaluate` takes"]
    root: Annotated[Path, "its folder, or the table of `csv`"]
    out: Annotated[Path, "where the learned prompts go, .pth"]
    model: Annotated[str, "qualiclip+ or clipiqa+"] = "qualiclip+"
    base: Annotated[str, "the CLIP to learn on: a file, or the default weights of QualiCLIP or CLIP-IQA"] = "default"
    epochs: Annotated[float, "passes over the training part; 0: steps count"] = 50.0
    batch: Annotated[int, "pictures a step and process"] = 8
    crop: Annotated[int, "side of the random crops, px"] = 384
    short_side: Annotated[int | None, "pictures are reduced to this short side first, px; 0 for never"] = 0
    warmup: Annotated[int, "steps until the highest learning rate"] = 1
    last_lr: Annotated[float, "share of the learning rate that is left at the end"] = 0.0
    weight_decay: Annotated[float, "of AdamW; without one it is Adam"] = 0.0
    beta2: Annotated[float, "of AdamW"] = 0.999
    clip: Annotated[float, "longest gradient"] = 1e6
    ema: Annotated[float, "decay of the running average of the vectors; 0 for none"] = 0.0
    mixed_precision: Annotated[str, "no, bf16 or fp16"] = "no"

    def __post_init__(self) -> None:
        check_choices(self, {"model": tuple(TEXTS)})
        super().__post_init__()
        if self.out.is_dir():
            raise ValueError(f"{self.out} is a folder; expected the name of a file, such as {self.out / 'plus.pth'}.")
        if self.out.suffix == ".json":
            raise ValueError(f"{self.out} is where the settings go; expected another ending, such as .pth.")

    @property
    def folder(self) -> Path:
        """Where checkpoints go."""
        return self.out.with_name(f"{self.out.stem}-run")

    @property
    def result(self) -> Path:
        """The file of the result."""
        return self.out

    @property
    def record(self) -> Path:
        """The file of settings and figures."""
        return self.out.with_suffix(".json")


@dataclass(frozen=True)
class Parts:
    """The samples of a run, split."""

    learnt: list[Sample]
    validation: list[Sample]
    held_out: list[Sample]

    def fingerprint(self) -> str:
        """A digest of names, sizes and scores: another list of pictures has another one."""
        lines = [
            f"{sample.image.name}\t{sample.image.stat().st_size}\t{sample.normalised_mos!r}"
            for part in vars(self).values()
            for sample in [*part, Sample(Path(__file__), 0.0)]  # an end of each part
        ]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


class RandomCrops(Dataset):
    """Batches of random square crops of scored pictures, mirrored half of the time.

    Batch `number` has the crops (b, 3, crop, crop) in [0, 1] and the normalised MOS (b,) of its place in the whole run;
    every picture is seen once in every pass.
    """

    def __init__(self, samples: Sequence[Sample], config: PromptConfig, process: int = 0, processes: int = 1) -> None:
        self.samples, self.config, self.process, self.processes = samples, config, process, processes

    def __len__(self) -> int:
        return self.config.steps * self.config.accumulate

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        config = self.config
        first = (number * self.processes + self.process) * config.batch
        picks = [visit(config.seed, CROPS, place, len(self.samples)) for place in range(first, first + config.batch)]
        crops = [self.cut(pick, place) for place, pick in enumerate(picks, first)]
        return {"images": torch.stack(crops), "mos": torch.tensor([self.samples[n].normalised_mos for n in picks])}

    def cut(self, index: int, place: int) -> Tensor:
        """The crop (3, crop, crop) of a picture at a place of the run."""
        size, rng = self.config.crop, np.random.default_rng([self.config.seed, CROPS, place, 1])
        image = whole(self.samples[index], self.config)
        if min(image.shape[2:]) < size:
            image = resize_short_side(image, size)
        top, left = (int(rng.integers(side - size + 1)) for side in image.shape[2:])
        image = image[0, :, top : top + size, left : left + size]
        return image.flip(2) if rng.random() < 0.5 else image


def whole(sample: Sample, config: PromptConfig) -> Tensor:
    """A picture (1, 3, H, W) in [0, 1] at its working size."""
    image = load_images(sample.image)
    return resize_short_side(image, config.working_side, enlarge=False) if config.working_side else image


def split_samples(config: PromptConfig) -> Parts:
    """Training, validation and held-out samples, as `parts.scored_parts` splits them."""
    samples = load_dataset(config.dataset, config.root, config.scale, config.lower_is_better)
    train, test = named_split(samples, config.split, config.dataset)
    aside = [n for n in train if samples[n].part == "validation"] if config.validation and not config.split else []
    if config.validation and not aside:
        aside = train[seeded_splits([samples[n] for n in train], 1, config.validation)[0][1]].tolist()
    learnt = [n for n in train if n not in set(aside)]
    return Parts(*([samples[n] for n in part] for part in (learnt, aside, test)))


def gather(config: PromptConfig) -> Parts:
    """The samples, once everything that could end a run without its result is checked.

    Raises:
        ValueError: the data set is not what it should be (see `load_dataset`), too small to learn from or to measure
            on, or a picture is damaged.
        FileNotFoundError: pictures are missing.
        OSError: OUT cannot be written.
    """
    parts = split_samples(config)
    if len(parts.learnt) < config.batch:
        raise ValueError(
            f"{len(parts.learnt)} pictures to learn from are less than a batch of {config.batch}; reduce batch."
        )
    aside = {"held out": parts.held_out} | ({"for validation": parts.validation} if config.validation else {})
    for what, part in aside.items():
        if len({sample.normalised_mos for sample in part}) < 2 or len(part) < 5:
            raise ValueError(f"{len(part)} pictures are {what}; expected five or more, with different scores.")
    for sample in tqdm([*parts.learnt, *parts.validation, *parts.held_out], desc="pictures"):
        load_images(sample.image)
    make_folder(config.out.parent)
    return parts
