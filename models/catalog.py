"""What quality models there are: weights, licence, paper and sizes of each. No torch here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any


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
    copy_url: str | None = None
    """Where the same weights are too; tried when nothing comes from `url`."""
    sha256: str | None = None
    """Checksum of the file, or its first digits; None when its publisher gives none: then that of the first download is
    recorded and held to."""
    base: ModelSpec | None = None
    """The weights that this one needs as well: the CLIP on which its prompts were learned."""
    paper: str | None = None
    """Where the method is described."""
    native_size: int | None = None
    """Short side in px to which larger pictures are reduced before scoring; models resize nothing themselves."""
    least_size: int | None = None
    """Short side in px to which smaller pictures are enlarged before scoring, by measurement: see docs/models.md."""
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


PYIQA = "https://huggingface.co/chaofengc/IQA-PyTorch-Weights/resolve/main/"
NC, NC_SA = (f"{licence} 4.0 (non-commercial use only)" for licence in ("CC BY-NC", "CC BY-NC-SA"))
QUALICLIP_PAPER, CLIPIQA_PAPER = "https://arxiv.org/abs/2403.11176", "https://arxiv.org/abs/2207.12396"
BPCLIP_PAPER = "https://arxiv.org/abs/2506.17969"

LITE = ModelSpec(
    name="lite",
    summary="EfficientNet-Lite0 fine-tuned on people's scores and on degradations; scores, ranks and judges",
    licence="Apache-2.0",
    filename="lite.safetensors",
    native_size=512,
    least_size=96,
    megabytes=7,
)
TINY = ModelSpec(
    name="tiny",
    summary="small network that comes with the package; trained for guidance as well as for scoring",
    licence="Apache-2.0",
    filename="tiny.safetensors",
    native_size=512,
    least_size=128,
    megabytes=4,
)
QUALICLIP = ModelSpec(
    name="qualiclip",
    summary="CLIP RN50 fine-tuned to rank degradations, read through 7 antonym pairs of prompts",
    licence=NC,
    filename="qualiclip.pth",
    url="https://github.com/miccunifi/QualiCLIP/releases/download/weights/qualiclip.pth",
    copy_url=f"{PYIQA}QualiCLIP.pth",
    paper=QUALICLIP_PAPER,
    native_size=512,
    megabytes=408,
)
CLIPIQA = ModelSpec(
    name="clipiqa",
    summary="CLIP RN50 as OpenAI trained it, read through 'Good photo.' / 'Bad photo.' or any antonym pairs",
    licence="MIT",
    filename="resnet50_clip.openai.safetensors",
    # A fixed revision: what is behind this address never changes.
    url="https://huggingface.co/timm/resnet50_clip.openai/resolve/"
    "00fd56258d8020fda2c9a8b683cf883d477ad3eb/open_clip_model.safetensors",
    paper=CLIPIQA_PAPER,
    native_size=512,
    megabytes=408,
)
CLIP_VIT_L14 = ModelSpec(
    name="CLIP ViT-L/14",
    summary="CLIP ViT-L/14 as OpenAI trained it, the base of 'clipiqa+_vitL14_512'",
    licence="MIT",
    filename="vit_large_patch14_clip_224.openai.safetensors",
    url="https://huggingface.co/timm/vit_large_patch14_clip_224.openai/resolve/main/open_clip_model.safetensors",
    paper=CLIPIQA_PAPER,
    megabytes=1711,
)
"""No model of its own: weights that another one needs."""


def _qualiclip_plus(name: str, data: str, native_size: int) -> ModelSpec:
    filename = f"QualiCLIP+_{name.partition('-')[2] or 'koniq'}.pth"
    return ModelSpec(
        name=name,
        summary=f"QualiCLIP with prompts learned from people's scores on {data}; needs QualiCLIP's weights too",
        licence=NC_SA,
        filename=filename,
        url=PYIQA + filename.replace("+", "%2B"),
        base=QUALICLIP,
        paper=QUALICLIP_PAPER,
        native_size=native_size,
        megabytes=2,
    )


def _clipiqa_plus(name: str, summary: str, filename: str, base: ModelSpec, native_size: int) -> ModelSpec:
    return ModelSpec(
        name=name,
        summary=summary,
        licence=NC_SA,
        filename=filename,
        url=PYIQA + filename.replace("+", "%2B"),
        sha256=filename.rpartition("-")[2].removesuffix(".pth"),  # as torch.hub names files: their first 8 digits
        base=base,
        paper=CLIPIQA_PAPER,
        native_size=native_size,
    )


def _bpclip(name: str, summary: str, **options: Any) -> ModelSpec:
    filename = f"{name}.safetensors"
    return ModelSpec(name=name, summary=summary, filename=filename, paper=BPCLIP_PAPER, **options)


MODELS: dict[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        LITE,
        TINY,
        QUALICLIP,
        CLIPIQA,
        _qualiclip_plus("qualiclip+", "KonIQ-10k", 768),
        _qualiclip_plus("qualiclip+-clive", "LIVE Challenge", 512),
        _qualiclip_plus("qualiclip+-flive", "FLIVE", 416),
        _qualiclip_plus("qualiclip+-spaq", "SPAQ", 512),
        _clipiqa_plus(
            "clipiqa+",
            "CLIP-IQA with a context learned from people's scores on KonIQ-10k; needs CLIP's weights too",
            "CLIP-IQA+_learned_prompts-603f3273.pth",
            base=CLIPIQA,
            native_size=768,
        ),
        _clipiqa_plus(
            "clipiqa+_rn50_512",
            "the same with a context for each prompt, learned on KonIQ-10k at 512x384; needs CLIP's weights too",
            "CLIPIQA+_RN50_512-89f5d940.pth",
            base=CLIPIQA,
            native_size=384,
        ),
        _clipiqa_plus(
            "clipiqa+_vitL14_512",
            "the same with CLIP ViT-L/14, whose weights (1.7 GB) it needs too",
            "CLIPIQA+_ViTL14_512-e66488f2.pth",
            base=CLIP_VIT_L14,
            native_size=384,
        ),
        _bpclip(
            "bpclip",
            "ResNet-50 pyramid read from the bottom up and compared with 40 adjectives",
            licence="of whoever trains them",
            native_size=384,
            trained=False,
        ),
        _bpclip(
            "bpclip-fr",
            "the same, comparing a picture with a reference",
            licence="of whoever trains them",
            native_size=384,
            full_reference=True,
            trained=False,
        ),
        _bpclip(
            "bpclip-mini",
            "bpclip on an EfficientNet-Lite0, 4 million parameters; says in words what is wrong with a picture",
            licence="Apache-2.0",
            native_size=512,
            least_size=96,
            megabytes=8,
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
