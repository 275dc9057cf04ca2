"""What quality models there are: weights, licence, paper and sizes of each. No torch here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches


@dataclass(frozen=True)
class ModelSpec:
    """What is known of a quality model before it is made."""

    name: str
    """What `create_model` calls it."""
    summary: str
    """One line for people."""
    licence: str
    """Licence of the weights, which is not the licence of this package."""
    filename: str
    """Name of the weights file in the cache, or in models/assets when `url` is None."""
    url: str | None = None
    """Where the weights are downloaded from; None when they come with the package, or when there are none."""
    sha256: str | None = None
    """Checksum of the file; None when its publisher gives none: then the first download is recorded and held to."""
    paper: str | None = None
    """Where the method is described."""
    native_size: int | None = None
    """Short side in px to which large pictures are best reduced before scoring; models resize nothing themselves."""
    min_side: int = 32
    """Smallest height or width in px."""
    score_range: tuple[float, float] = (0.0, 1.0)
    """Range of the score; higher is better."""
    megabytes: int | None = None
    """Size of the file, in MB."""
    full_reference: bool = False
    """Whether the model compares pictures with a reference: `model(images, reference)`."""
    trained: bool = True
    """False where no trained weights exist: then `weights` is "random" or a file that one has trained."""

    @property
    def bundled(self) -> bool:
        """Whether the weights come with the package."""
        return self.trained and self.url is None


MODELS: dict[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        ModelSpec(
            name="tiny",
            summary="small network that comes with the package; trained for guidance as well as for scoring",
            licence="Apache-2.0",
            filename="tiny.safetensors",
            native_size=512,
            megabytes=4,
        ),
        ModelSpec(
            name="qualiclip",
            summary="CLIP RN50 fine-tuned to rank degradations, read through 7 antonym pairs of prompts",
            licence="CC BY-NC 4.0 (non-commercial use only)",
            filename="qualiclip.pth",
            url="https://github.com/miccunifi/QualiCLIP/releases/download/weights/qualiclip.pth",
            paper="https://arxiv.org/abs/2403.11176",
            native_size=512,
            megabytes=408,
        ),
        ModelSpec(
            name="clipiqa",
            summary="CLIP RN50 as OpenAI trained it, read through 'Good photo.' / 'Bad photo.' or any antonym pairs",
            licence="MIT",
            filename="resnet50_clip.openai.safetensors",
            # A fixed revision: what is behind this address never changes.
            url="https://huggingface.co/timm/resnet50_clip.openai/resolve/"
            "00fd56258d8020fda2c9a8b683cf883d477ad3eb/open_clip_model.safetensors",
            paper="https://arxiv.org/abs/2207.12396",
            native_size=512,
            megabytes=408,
        ),
        ModelSpec(
            name="qualiclip+",
            summary="QualiCLIP with prompts learned from people's scores on KonIQ-10k; needs QualiCLIP's weights too",
            licence="CC BY-NC-SA 4.0 (non-commercial use only)",
            filename="QualiCLIP+_koniq.pth",
            url="https://huggingface.co/chaofengc/IQA-PyTorch-Weights/resolve/main/QualiCLIP%2B_koniq.pth",
            paper="https://arxiv.org/abs/2403.11176",
            native_size=512,
            megabytes=2,
        ),
        ModelSpec(
            name="clipiqa+",
            summary="CLIP-IQA with a context learned from people's scores on KonIQ-10k; needs CLIP's weights too",
            licence="CC BY-NC-SA 4.0 (non-commercial use only)",
            filename="CLIP-IQA+_learned_prompts-603f3273.pth",
            url="https://huggingface.co/chaofengc/IQA-PyTorch-Weights/resolve/main/"
            "CLIP-IQA%2B_learned_prompts-603f3273.pth",
            paper="https://arxiv.org/abs/2207.12396",
            native_size=768,
        ),
        ModelSpec(
            name="bpclip",
            summary="ResNet-50 pyramid read from the bottom up and compared with 40 adjectives",
            licence="of whoever trains them",
            filename="bpclip.safetensors",
            paper="https://arxiv.org/abs/2506.17969",
            native_size=384,
            trained=False,
        ),
        ModelSpec(
            name="bpclip-fr",
            summary="the same, comparing a picture with a reference",
            licence="of whoever trains them",
            filename="bpclip-fr.safetensors",
            paper="https://arxiv.org/abs/2506.17969",
            native_size=384,
            full_reference=True,
            trained=False,
        ),
        ModelSpec(
            name="bpclip-mini",
            summary="bpclip at a size that trains on a desktop: half-width ResNet-18, 5 million parameters",
            licence="Apache-2.0",
            filename="bpclip-mini.safetensors",
            paper="https://arxiv.org/abs/2506.17969",
            native_size=512,
            megabytes=10,
        ),
    )
}


def list_models() -> list[str]:
    """Names that `create_model` takes."""
    return list(MODELS)


def get_spec(name: str) -> ModelSpec:
    """The entry of one model.

    Raises:
        ValueError: there is no such model; the message names the nearest.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}.{nearest(name, MODELS)} Known: {', '.join(sorted(MODELS))}.")
    return MODELS[name]


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence that suggests the known name nearest to a mistyped one, with a space before it, or nothing."""
    close = get_close_matches(str(name).lower(), known, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
