"""BPCLIP: a ResNet pyramid read from the bottom up and compared with 40 adjectives, with or without a reference.

Source:
    "BPCLIP: A Bottom-up Image Quality Assessment from Distortion to Semantics Based on CLIP" (2025), arXiv 2506.17969,
    written from the paper; its authors published neither code nor weights. What the paper leaves open and we
    completed: all adjectives but five, the names of the dimensions and the pairing (adjectives.py); bare words as
    prompts; the text tower (any CLIP); width 512, 8 heads, hidden sizes (chosen to fit the size that the paper's
    figure 5 shows); how the tokens become one vector (a weighted mean); no dropout; the score held to [0, 1];
    and, with a reference, that no picture scores above the reference itself.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import WeightsError
from .adjectives import adjectives
from .attention import check_backend
from .bpclip_backbone import make_backbone, pixel_statistics
from .bpclip_blocks import Attention, GatedLocalPooling, Level, PositionalEncoding
from .bpclip_config import LITE, BPCLIPConfig, read_config
from .checks import check_pictures, working_dtype
from .describe import Description
from .hub import HubModel, check_spreads, read_saved
from .raw_scale import raw_units
from .seed import fixed_seed
from .weights import load_strict


class BPCLIP(nn.Module, HubModel):
    """BPCLIP; without a reference a Reward, with one a model for `iqguide.FullReference`.

    `model(images)` (with a reference: `model(images, reference)`) is the score in [0, 1]; `model.margin(...)` the same
    order without bounds, in standard deviations over clean photographs once `calibrate_margin` has measured them;
    `model.raw(...)` is equation 9 itself, what training works on; `model.similarities(...)` equation 8;
    `model.describe(...)` puts it in words. All differentiable.

    With a reference no picture scores above the reference itself: the score is the smaller of what the network says
    of (image, reference) and of (reference, reference). The paper has no such bound; ours makes identical pictures
    score highest whatever the training has left undone.

    Args:
        config: sizes.
        text_features: (2 P, text_dim), one per adjective, positive and negative in turn, of any length.
    """

    def __init__(self, config: BPCLIPConfig, text_features: Tensor) -> None:
        super().__init__()
        self.config = config
        self.backbone = make_backbone(config)
        channels = self.backbone.feature_info.channels()
        self.pools = nn.ModuleList(
            GatedLocalPooling(count, config.width, config.mask_width, config.full_reference) for count in channels
        )
        self.positions = PositionalEncoding(config.width, config.positions)
        self.levels = nn.ModuleList(
            Level(config.width, config.heads, config.text_dim, config.weight_branch) for _ in channels[1:]
        )
        seen = len(text_features) if config.anchors == "adjectives" else config.text_dim
        self.head = nn.Sequential(
            nn.Linear(len(self.levels) * seen, config.head_width), nn.ReLU(), nn.Linear(config.head_width, 1)
        )
        nn.init.constant_(self.head[-1].bias, 0.5)  # the middle of the opinions, so that no score starts at a bound
        self.register_buffer("text_features", F.normalize(text_features.float(), dim=-1))
        self.register_buffer("margin_mean", torch.tensor(0.0))
        self.register_buffer("margin_std", torch.tensor(1.0))
        for name, values in zip(("pixel_mean", "pixel_std"), pixel_statistics(config), strict=True):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor, reference: Tensor | None = None) -> Tensor:
        """Score.

        Args:
            images: (N, 3, H, W) RGB in [0, 1], any floating dtype, both sides at least 32 px; not resized.
            reference: (N, 3, H, W) or (1, 3, H, W), the undistorted pictures; only for a full-reference model.

        Returns:
            (N,) in [0, 1], higher is better; float32 (float64 for a float64 model).

        Raises:
            TypeError: no floating-point tensor.
            ValueError: wrong shape, too small, a reference of another size, one too many or none where one is needed.
        """
        return self._bounded(images, reference).clamp(0, 1)

    def margin(self, images: Tensor, reference: Tensor | None = None) -> Tensor:
        """Unbounded score (N,) in standard deviations over clean photographs; arguments as in `forward`."""
        mean, std = (buffer.to(working_dtype(buffer.dtype)) for buffer in (self.margin_mean, self.margin_std))
        return (self._bounded(images, reference) - mean) / std

    def raw(self, images: Tensor, reference: Tensor | None = None) -> Tensor:
        """The head's output p (N,), equation 9, which training fits to opinions in [0, 1]; arguments as `forward`."""
        return self.judge(self.vectors(self.maps(images), self._reference_maps(images, reference)))

    def training_score(self, images: Tensor, reference: Tensor | None = None) -> Tensor:
        """What training works on, (N,) in raw units (models/raw_scale.py); arguments as in `forward`."""
        return raw_units(100 * self.raw(images, reference))

    def activation_stages(self) -> list[nn.Module]:
        """The parts whose activations take most memory in training, from the picture on."""
        if self.config.backbone == LITE:
            return list(self.backbone.stages)
        return [self.backbone.get_submodule(f"layer{n}") for n in range(1, 5)]

    def allow_second_order(self) -> None:
        """Compute attention in the only way that can be differentiated twice."""
        self.set_attention("math")

    def similarities(self, images: Tensor, reference: Tensor | None = None) -> Tensor:
        """Cosine of each level with each adjective, (N, levels, 2 P), equation 8; arguments as in `forward`."""
        return self.cosines(self.vectors(self.maps(images), self._reference_maps(images, reference)))

    def describe(self, image: Tensor, reference: Tensor | None = None) -> Description:
        """What the model sees in one picture, in words.

        Args:
            image: (1, 3, H, W) or (3, H, W), as in `forward`.
            reference: of the same shape, for a full-reference model.

        Returns:
            The score; `dimensions`: for each dimension the mean over its pairs and the levels of half the difference
            of the cosines with the positive and the negative adjective, in [-1, 1], above 0 where the positive words
            fit better; `adjectives`: the mean cosine over the levels, in [-1, 1]. How a score per dimension is made
            from the adjectives is ours.

        Raises:
            ValueError: as `forward`, more than one picture, or a model without adjectives.
        """
        if self.config.anchors == "none":
            raise ValueError("this model has no adjectives (anchors='none'); it can only be asked for its score.")
        batches = [x if x is None or x.ndim == 4 else x[None] for x in (image, reference)]
        if len(batches[0]) != 1:
            raise ValueError(f"got {len(batches[0])} pictures; expected one: model.describe(images[0]).")
        cosines = self.similarities(*batches).mean(1)[0].tolist()
        words = adjectives(self.config.pairs)
        differences: dict[str, list[float]] = {}
        for (dimension, _, _), positive, negative in zip(self.config.pairs, cosines[::2], cosines[1::2], strict=True):
            differences.setdefault(dimension, []).append((positive - negative) / 2)
        dimensions = {name: sum(values) / len(values) for name, values in differences.items()}
        parts = {"dimensions": dimensions, "adjectives": dict(zip(words, cosines, strict=True))}
        return Description(self(*batches).item(), parts)

    def maps(self, images: Tensor) -> list[Tensor]:
        """The five feature maps (N, C_i, h_i, w_i) of pictures as in `forward`, strides 2 to 32."""
        check_pictures(images)
        pixels = (images.to(working_dtype(images.dtype)) - self.pixel_mean) / self.pixel_std
        return self.backbone(pixels.to(self.positions.grid.dtype))

    def vectors(self, maps: list[Tensor], reference: list[Tensor] | None) -> Tensor:
        """Feature maps, and those of the reference -> the levels' vectors x_i (N, levels, text_dim), equation 7."""
        size = tuple(maps[-1].shape[2:])
        reference = [None] * len(maps) if reference is None else reference
        return self.read([pool(own, other, size) for pool, own, other in zip(self.pools, maps, reference, strict=True)])

    def read(self, pooled: list[Tensor]) -> Tensor:
        """What the pools make of each level, (N, width, H, W) each -> the levels' vectors x_i (N, levels, text_dim)."""
        tokens = [self.positions(plane).flatten(2).transpose(1, 2) for plane in pooled]
        vectors = []
        for level, shallow, deep in zip(self.levels, tokens[:-1], tokens[1:], strict=True):
            vectors.append(level(shallow, deep) if self.config.direction == "bottom-up" else level(deep, shallow))
        return torch.stack(vectors, 1)

    def judge(self, vectors: Tensor) -> Tensor:
        """Levels' vectors (N, levels, text_dim) -> p (N,), equations 8 and 9, in float32 or better."""
        seen = self.seen(vectors)
        x = seen.to(working_dtype(seen.dtype)).flatten(1)
        first, last = self.head[0], self.head[2]
        with torch.autocast(x.device.type, enabled=False):
            x = F.relu(F.linear(x, first.weight.to(x), first.bias.to(x)))
            return F.linear(x, last.weight.to(x), last.bias.to(x)).squeeze(1)

    def seen(self, vectors: Tensor) -> Tensor:
        """What the head reads of the levels' vectors: their cosines with the adjectives, or they themselves."""
        return self.cosines(vectors) if self.config.anchors == "adjectives" else vectors

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> BPCLIP:
        """Read a file of `save`, with or without a reference; see `HubModel.load`."""
        tensors, values = read_saved(path, cls.__name__)
        if not values:
            raise WeightsError(f"{path} has no config; expected a file that save_model has written.")
        config = read_config(values, path)
        with fixed_seed(0):
            model = cls(config, torch.ones(len(adjectives(config.pairs)), config.text_dim))
        load_strict(model, tensors, path)
        check_spreads(model, path)
        return model

    def saved_config(self) -> dict[str, Any]:
        """Sizes and choices."""
        return dataclasses.asdict(self.config)

    @torch.no_grad()
    def calibrate_margin(self, batches: Iterable[Tensor]) -> None:
        """Measure mean and spread of the margin over clean photographs and keep them; for a model without reference.

        Args:
            batches: images as in `forward`, at the size at which the model will be used; two or more in all.

        Raises:
            ValueError: there are fewer than two pictures, or all have the same margin.
        """
        raw = torch.cat([self.raw(images) for images in batches])
        if len(raw) < 2 or not raw.std() > 0:
            raise ValueError(f"got {len(raw)} pictures without spread; expected two or more different photographs.")
        self.margin_mean.copy_(raw.mean())
        self.margin_std.copy_(raw.std())

    def set_attention(self, backend: str) -> None:
        """Choose the implementation of attention: "sdpa", "xformers" or "math" (see `attention.attend`)."""
        check_backend(backend)
        for module in self.modules():
            if isinstance(module, Attention):
                module.backend = backend

    def _reference_maps(self, images: Tensor, reference: Tensor | None) -> list[Tensor] | None:
        """The maps of the reference, one for each picture; None for a model that takes no reference."""
        check_pictures(images)
        if not self.config.full_reference:
            if reference is not None:
                raise ValueError("this model takes no reference; use 'bpclip-fr' to compare pictures with one.")
            return None
        if reference is None:
            raise ValueError("this model compares pictures with a reference; expected model(images, reference).")
        check_pictures(reference)
        if images.shape[2:] != reference.shape[2:] or len(reference) not in (1, len(images)):
            raise ValueError(
                f"images have shape {tuple(images.shape)} and the reference {tuple(reference.shape)}; expected equal "
                "sizes and one reference, or one per image: resize or crop one of them."
            )
        return [maps.expand(len(images), -1, -1, -1) for maps in self.maps(reference)]

    def _bounded(self, images: Tensor, reference: Tensor | None) -> Tensor:
        """`raw`; with a reference at most what the reference itself gets."""
        others = self._reference_maps(images, reference)
        scores = self.judge(self.vectors(self.maps(images), others))
        return scores if others is None else torch.minimum(scores, self.judge(self.vectors(others, others)))

    def cosines(self, vectors: Tensor) -> Tensor:
        """Of levels' vectors (N, levels, text_dim) with the adjectives, (N, levels, 2 P), in float32 or better."""
        vectors = F.normalize(vectors.to(working_dtype(vectors.dtype)), dim=-1)
        with torch.autocast(vectors.device.type, enabled=False):
            return vectors @ self.text_features.to(vectors).T
