r"""Learn the context of QualiCLIP+ or CLIP-IQA+ from people's scores.

    accelerate launch -m iqguide.training.prompts --model qualiclip+ --dataset koniq-10k --root DIR --out runs/plus.pth

Both towers stay as they are; 16 vectors per prompt are learned by mean squared error and Pearson correlation on random
crops. The result is written in the published layout; beside it, with the ending .json, the settings and the agreement
with people on the held-out part (the official test part, else that of the first of ten seeded splits).

Source:
    Settings as in the configuration files of QualiCLIP+ in IQA-PyTorch at 01ae427 (options/train/QualiCLIP): Adam,
    2e-3, cosine over 50 epochs, batch 8, crops of 384 px, mirrored half of the time, both losses with weight 1.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..errors import atomic_write, make_folder, one_sentence
from ..images import MIN_SIDE, WorkingSize, load_images, resize_short_side
from ..models.learned_prompts import TEXTS, PromptTuning, save_prompts, start_tuning
from . import objectives
from .correlation import correlations
from .datasets import Sample, load_dataset, official_split, seeded_splits
from .evaluate import score_samples
from .options import SEEDS, Parser, check_ranges

RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("epochs", "batch"), (1, math.inf)),
    **dict.fromkeys(("short_side", "lr"), (0, math.inf)),
    "crop": (MIN_SIDE, math.inf),
    "seed": SEEDS,
}
"""Lowest and highest value of a setting."""


@dataclass(frozen=True)
class PromptConfig:
    """One run. Each default is written here and nowhere else."""

    dataset: str
    """As `iqguide evaluate` names it."""
    root: str
    """Its folder, or the table of `csv`."""
    out: str
    """Where the learned prompts go, .pth."""
    model: str = "qualiclip+"
    """qualiclip+ or clipiqa+."""
    base: str = "default"
    """The CLIP to learn on: a file, or the default weights of QualiCLIP or CLIP-IQA."""
    epochs: int = 50
    """Passes over the training part."""
    batch: int = 8
    """Pictures a step and process."""
    crop: int = 384
    """Side of the random crops, px."""
    short_side: int = 0
    """Pictures are reduced to this short side first, px; 0 for never. 512 for SPAQ."""
    lr: float = 2e-3
    """Learning rate at the start; falls along a cosine."""
    seed: int = 0
    """Of everything random."""

    def __post_init__(self) -> None:
        check_ranges(self, RANGES)
        if self.model not in TEXTS:
            raise ValueError(f"model is {self.model!r}; expected one of {', '.join(TEXTS)}.")
        if 0 < self.short_side < MIN_SIDE:
            raise ValueError(f"short_side is {self.short_side}; expected 0 or {MIN_SIDE} or more.")


class RandomCrops(Dataset):
    """Random square crops of scored pictures, mirrored half of the time: (3, crop, crop) in [0, 1], normalised MOS."""

    def __init__(self, samples: list[Sample], crop: int, short_side: int) -> None:
        self.samples, self.crop, self.short_side = samples, crop, short_side

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, float]:
        image = load_images(self.samples[index].image)
        if self.short_side:
            image = resize_short_side(image, self.short_side, enlarge=False)
        if min(image.shape[2:]) < self.crop:
            image = resize_short_side(image, self.crop)
        top, left = (int(torch.randint(side - self.crop + 1, ())) for side in image.shape[2:])
        image = image[0, :, top : top + self.crop, left : left + self.crop]
        return (image.flip(2) if torch.rand(()) < 0.5 else image), self.samples[index].normalised_mos


def loss_of(scores: Tensor, mos: Tensor) -> Tensor:
    """Mean squared error + (1 - Pearson correlation) / 2 of scores (N,) and mos (N,) in [0, 1]."""
    return F.mse_loss(scores, mos) + objectives.correlation(scores, mos)


def parts(samples: list[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Training and held-out samples: the official split, or the first seeded one."""
    official = any(sample.part == "test" for sample in samples)
    train, test = official_split(samples) if official else seeded_splits(samples, 1)[0]
    return [samples[i] for i in train], [samples[i] for i in test]


def gather(config: PromptConfig) -> tuple[list[Sample], list[Sample]]:
    """Samples to learn from and held out, once everything that could end a run without its result is checked.

    Raises:
        ValueError: the data set is not what it should be (see `load_dataset`), too small to learn from or to measure
            on, or a picture is damaged.
        FileNotFoundError: pictures are missing.
        OSError: OUT cannot be written.
    """
    learnt, held_out = parts(load_dataset(config.dataset, Path(config.root)))
    if len(learnt) < config.batch:
        raise ValueError(f"{len(learnt)} pictures to learn from are less than a batch of {config.batch}; reduce batch.")
    if len({sample.normalised_mos for sample in held_out}) < 2 or len(held_out) < 5:
        raise ValueError(f"{len(held_out)} pictures are held out; expected five or more, with different scores.")
    for sample in tqdm([*learnt, *held_out], desc="pictures"):
        load_images(sample.image)
    out = Path(config.out)
    make_folder(out.parent)
    if out.is_dir():
        raise ValueError(f"{out} is a folder; expected the name of a file, such as {out / 'plus.pth'}.")
    if out.suffix == ".json":
        raise ValueError(f"{out} is where the settings go; expected another ending, such as .pth.")
    return learnt, held_out


def train(config: PromptConfig) -> PromptTuning:
    """Learn the prompts and write OUT and OUT's .json; returns the model.

    Raises:
        ValueError, FileNotFoundError, OSError: as `gather`.
        WeightsError: the base is missing or damaged.
    """
    accelerator = Accelerator()
    set_seed(config.seed, device_specific=True)
    learnt, held_out = gather(config)
    tuning = start_tuning(config.model, base=config.base, seed=config.seed).train()
    optimiser = torch.optim.Adam([tuning.prompts.ctx], config.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.epochs)
    crops = DataLoader(RandomCrops(learnt, config.crop, config.short_side), config.batch, shuffle=True, drop_last=True)
    model, optimiser, crops = accelerator.prepare(tuning, optimiser, crops)
    progress = tqdm(total=config.epochs * len(crops), desc="prompts", disable=not accelerator.is_main_process)
    for _ in range(config.epochs):
        for images, mos in crops:
            loss = loss_of(model(images).float(), mos.float())
            optimiser.zero_grad()
            accelerator.backward(loss)
            optimiser.step()
            progress.update()
        progress.set_postfix(loss=f"{loss.item():.4f}")
        schedule.step()
    progress.close()
    tuning = accelerator.unwrap_model(model).eval()
    if accelerator.is_main_process:
        write(tuning, config)
    figures = measure(tuning, held_out, config, accelerator)
    if accelerator.is_main_process:
        record(config, figures)
    return tuning


def measure(
    tuning: PromptTuning, held_out: list[Sample], config: PromptConfig, accelerator: Accelerator
) -> dict[str, float]:
    """Agreement with people on the held-out part, whole pictures."""
    scores = score_samples(
        tuning, held_out, WorkingSize(most=config.short_side or None), accelerator.device, full_reference=False
    )
    return correlations(
        scores, torch.tensor([sample.normalised_mos for sample in held_out], dtype=torch.float64).numpy()
    )


def write(tuning: PromptTuning, config: PromptConfig) -> None:
    """The prompts, complete or not at all."""
    content = io.BytesIO()
    save_prompts(tuning.prompts, content)
    atomic_write(config.out, content.getvalue())


def record(config: PromptConfig, figures: dict[str, float]) -> None:
    """The settings and figures beside the prompts."""
    found = {**dataclasses.asdict(config), "held_out": figures, "torch": torch.__version__}
    atomic_write(Path(config.out).with_suffix(".json"), f"{json.dumps(found, indent=2)}\n".encode())


def main(arguments: list[str] | None = None) -> None:
    """Learn prompts with the settings on the command line; what is wrong with them is said in one sentence."""
    parser = Parser(prog="accelerate launch -m iqguide.training.prompts")
    for item in dataclasses.fields(PromptConfig):
        required = item.default is dataclasses.MISSING
        kind = str if required else type(item.default)
        shown = {} if required else {"default": item.default, "help": "(%(default)s)"}
        parser.add_argument(f"--{item.name.replace('_', '-')}", type=kind, required=required, **shown)
    given = vars(parser.parse_args(arguments))
    with one_sentence():
        train(PromptConfig(**given))


if __name__ == "__main__":
    main()
