"""Small made pictures in the layout of a training folder."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from torch import Tensor

from iqguide.training import calibrate
from iqguide.training.config import FinetuneConfig
from iqguide.training.data import clean_photographs, split


def texture(rng: np.random.Generator, side: int) -> Image.Image:
    """A picture with large soft shapes and fine grain, unlike any other drawn from `rng`."""
    shapes = Image.fromarray(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8))
    soft = np.asarray(shapes.resize((side, side), Image.Resampling.BICUBIC), dtype=float)
    return Image.fromarray((soft + rng.normal(0, 12, soft.shape)).clip(0, 255).astype(np.uint8))


def training_folder(root: Path, clean: int = 10, scored: int = 15, side: int = 160) -> Path:
    """DIR/pristine/images/*.jpg, and DIR/live-challenge/images/*.jpg with mos.csv (scores from 30 in steps of 4)."""
    rng = np.random.default_rng(0)
    for folder, count in (("pristine", clean), ("live-challenge", scored)):
        (root / folder / "images").mkdir(parents=True)
        for number in range(count):
            texture(rng, side).save(root / folder / "images" / f"{number:02}.jpg", quality=95)
    rows = [f"{number:02}.jpg,{30 + 4 * number},18" for number in range(scored)]
    (root / "live-challenge" / "mos.csv").write_text("\n".join(["image,mos,std", *rows]) + "\n", "utf-8")
    return root


def held_out_crops(config: FinetuneConfig, each: int = 4) -> Tensor:
    """The crops by which a run puts its margin on its scale."""
    photographs = split(clean_photographs(config.data, config.clean))[1]
    return calibrate.held_out_crops(photographs, config.crop, config.seed, each)


def referenced_table(root: Path, references: int = 6, each: int = 4, side: int = 96) -> Path:
    """DIR/mos.csv of ever more blurred pictures, each with its reference; the score falls with the blur."""
    rng = np.random.default_rng(1)
    root.mkdir(parents=True)
    rows = ["image,mos,reference"]
    for source in range(references):
        clean = texture(rng, side)
        clean.save(root / f"r{source}.png")
        for level in range(each):
            clean.filter(ImageFilter.GaussianBlur(0.4 + level)).save(root / f"r{source}-{level}.png")
            rows.append(f"r{source}-{level}.png,{90 - 20 * level},r{source}.png")
    (root / "mos.csv").write_text("\n".join(rows) + "\n", "utf-8")
    return root
