"""ComfyUI: a MODEL that guides its own sampling, whatever sampler, scheduler or guider node uses it.

    patched = patch_model(model, RewardGuidance(reward), patchers=[reward_patcher], vae=vae)

Guidance looks at the prediction after CFG and changes that alone. ComfyUI runs nodes under `torch.inference_mode`; the
gradient leaves it by itself (guidance/gradient.py). All networks are loaded together with the model, before the first
step, and none while it samples.
"""

import logging
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy_execution.utils import get_executing_context
from torch import Tensor

from ..evaluation import Evaluation
from ..noise_level import noise_level_of
from ..prediction_only import PredictionOnlyGuidance
from ..reward_guidance import RewardGuidance
from .decoders import TINY_BYTES, find_decoder

logger = logging.getLogger(__name__)

ATTACHMENT = "iqguide"
LEVELS = (0.01, 0.99)
"""Noise levels that 100 and 0 percent stand for: the log of sigma / alpha has no end of its own."""
CROP_PIXELS = 512
"""Side of the square that a whole VAE decodes; a tiny decoder decodes everything."""
REWARD_BYTES = 2000
"""What the backward pass through a reward keeps per pixel; RN50 in float32 at 512 pixels has 1900."""


def patch_model(
    model: ModelPatcher,
    guidance: RewardGuidance,
    *,
    patchers: Sequence[ModelPatcher] = (),
    vae: Any | None = None,
    decoder: str = "auto",
    percent: tuple[float, float] | None = None,
    crop_pixels: int = 0,
    whole_picture: bool = False,
) -> ModelPatcher:
    """A clone of a MODEL that guides every sampling it is used for; the original is not touched.

    Args:
        model: a ComfyUI MODEL: eps, v or flow prediction, latents (B, C, h, w) or (B, C, T, h, w), or pixels.
        guidance: settings; a `decoder` in it is used as it is.
        patchers: of the networks inside the reward, loaded together with the model.
        vae: a ComfyUI VAE for the model's latents; may be None where a tiny decoder is found or none is needed.
        decoder: "auto", "tiny" or "vae", see `find_decoder`.
        percent: (start, end) of the sampling in ComfyUI's sense, 0 <= start < end <= 1, instead of the guidance's
            `noise_window`; turned into noise levels by the model's own schedule when sampling begins.
        crop_pixels: side of the square that is decoded, if the guidance itself has no `crop`; 0: everything with a tiny
            decoder, 512 with a VAE.
        whole_picture: never decode a crop: for rewards that compare with a reference.

    Returns:
        The clone. `patches_of` finds the log on it, also after further nodes have cloned it.

    Raises:
        ValueError: `percent` is no window, or there is no decoder; while sampling: latents that hold no pictures.

    Notes:
        One sample (or video frame) is decoded and differentiated at a time, unless `guidance.chunk` says otherwise, so
        the memory does not grow with the batch.
    """
    if percent is not None and not 0 <= percent[0] < percent[1] <= 1:
        raise ValueError(f"start and end percent are {percent}; expected 0 <= start < end <= 1.")
    patched = model.clone()
    if guidance.scale != 0 and guidance.decoder is None:
        own_decoder = find_decoder(model, vae, decoder)
        guidance = replace(guidance, decoder=own_decoder)
        side = crop_pixels or (CROP_PIXELS if own_decoder.bytes_per_pixel > TINY_BYTES else 0)
        if guidance.crop is None and side and not whole_picture:
            guidance = replace(guidance, crop=max(side // own_decoder.factor, 1))
        patchers = [*patchers, *([own_decoder.patcher] if own_decoder.patcher is not None else [])]
    patch = Patch(replace(guidance, chunk=guidance.chunk or 1), percent)
    key = f"{ATTACHMENT}-{uuid.uuid4()}"  # a model may be guided more than once
    patched.set_model_sampler_post_cfg_function(patch.guide)
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, key, patch.around_sampling)
    if guidance.scale != 0:
        patched.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, key, patch.around_loading)
        patched.set_additional_models(key, list(patchers))
    patched.set_attachments(ATTACHMENT, (*patches_of(model), patch))
    return patched


def patches_of(model: ModelPatcher) -> tuple["Patch", ...]:
    """The guidances of a MODEL, in the order in which they were put on."""
    return model.get_attachment(ATTACHMENT) or ()


class Patch:
    """One guidance on one MODEL: its settings, and the logs of its samplings."""

    def __init__(self, guidance: RewardGuidance, percent: tuple[float, float] | None) -> None:
        self.guidance = guidance
        self.percent = percent
        self.log: list[Evaluation] = []  # of the latest sampling
        self.logs: dict[str, list[Evaluation]] = {}  # of the latest sampling in each node, by its id; oldest first
        self._run: PredictionOnlyGuidance | None = None
        self._sampling: Any = None
        self._own_functions: list[Any] = []
        self._left = False

    def around_sampling(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """OUTER_SAMPLE wrapper: begin a run, and say so if guidance never did anything."""
        guider, sigmas = executor.class_obj, args[3]
        if self.guidance.scale != 0 and len(kwargs.get("latent_shapes") or ()) > 1:
            raise ValueError(
                "this model packs sound and pictures into one latent, which guidance cannot decode; take the quality "
                "guidance off its MODEL."
            )
        self._sampling = guider.model_patcher.get_model_object("model_sampling")
        self._own_functions = list(guider.model_options.get("sampler_post_cfg_function", []))
        guidance = self._with_window()
        run = guidance.start()
        self._run = PredictionOnlyGuidance(run, [ratio_at(self._sampling, sigma) for sigma in sigmas.tolist()])
        self.log = run.log
        context = get_executing_context()
        if context is not None:
            self.logs.pop(context.node_id, None)
            self.logs[context.node_id] = run.log
        self._left = False
        try:
            result = executor(*args, **kwargs)
        finally:
            self._run = None
        if not self._left:
            self._warn_if_idle()
        return result

    def leave(self) -> dict[str, Any]:
        """While sampling, which is left here: the state of the run, for `resume` in another sampling."""
        self._left = True
        return self._run.state_dict()

    def resume(self, state: dict[str, Any], device: torch.device) -> None:
        """While sampling, which has just begun: go on with the state of a run that was left."""
        self._run.load_state_dict(state, device)

    def around_loading(self, executor: Any, model: ModelPatcher, noise_shape: Any, *args: Any, **kwargs: Any) -> Any:
        """PREPARE_SAMPLING wrapper: make room for the backward pass before the models are loaded."""
        comfy.model_management.free_memory(self.activation_bytes(noise_shape), model.load_device)
        return executor(model, noise_shape, *args, **kwargs)

    def activation_bytes(self, latent_shape: Sequence[int]) -> int:
        """What one gradient keeps in memory, estimated from the shape of the latents."""
        decoder = self.guidance.decoder
        factor = getattr(decoder, "factor", 8)
        rows, columns = latent_shape[-2:]
        crop = self.guidance.crop or max(rows, columns)
        pixels = min(rows, crop) * min(columns, crop) * factor**2
        return self.guidance.chunk * pixels * (getattr(decoder, "bytes_per_pixel", 0) + REWARD_BYTES)

    def guide(self, args: dict[str, Any]) -> Tensor:
        """Post-CFG function: the guided prediction, or the very same tensor where nothing is to be done."""
        denoised = args["denoised"]
        comfy.model_management.throw_exception_if_processing_interrupted()
        if self.guidance.scale == 0:  # off: nothing is asked of the latents, only the log is written
            return denoised if self._run is None else self._run(denoised, self._ratio(args))
        if self._run is None:
            raise RuntimeError("guidance was called outside a sampling; use this MODEL with a sampler node.")
        if denoised.ndim not in (4, 5):
            raise ValueError(f"latents have shape {tuple(denoised.shape)}; guidance needs those of pictures or video.")
        frames = denoised.movedim(2, 1).flatten(0, 1) if denoised.ndim == 5 else denoised
        guided = self._run(frames, self._ratio(args), noise_stays=self._is_plus_plus(args["model_options"]))
        if guided is frames:
            return denoised
        if denoised.ndim == 5:
            return guided.unflatten(0, (denoised.shape[0], denoised.shape[2])).movedim(1, 2)
        return guided

    def _ratio(self, args: dict[str, Any]) -> float:
        return ratio_at(self._sampling, float(args["sigma"].flatten()[0]))

    def _is_plus_plus(self, model_options: dict[str, Any]) -> bool:
        """Whether the sampler looks at the unguided prediction: CFG++ samplers add a post-CFG function of their own."""
        functions = model_options.get("sampler_post_cfg_function", [])
        return any(function not in self._own_functions for function in functions)

    def _with_window(self) -> RewardGuidance:
        if self.percent is None or self.guidance.scale == 0:
            return self.guidance
        low, high = LEVELS
        sigmas = [float(self._sampling.percent_to_sigma(percent)) for percent in self.percent]
        start, end = (noise_level_of(ratio_at(self._sampling, sigma)) for sigma in sigmas)
        start = min(start, high)
        return replace(self.guidance, noise_window=(start, min(max(end, low), 0.99 * start)))

    def _warn_if_idle(self) -> None:
        if self.guidance.scale != 0 and not any(entry.skipped is None for entry in self.log):
            reasons = sorted({str(entry.skipped) for entry in self.log}) or ["the sampler never asked the model"]
            logger.warning("Quality guidance changed nothing: %s.", "; ".join(reasons))


def ratio_at(sampling: Any, sigma: float) -> float:
    """Sigma / alpha of a model's noising x = alpha * x0 + sigma * noise, read off what the model itself does.

    Args:
        sampling: a ComfyUI `model_sampling` object: eps and v have alpha = 1, flow has alpha = 1 - sigma.
        sigma: in the model's own units.

    Returns:
        The ratio, in [0, inf].
    """
    level = torch.tensor([sigma], dtype=torch.float64)
    one, zero = torch.ones(1, 1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    noise = sampling.noise_scaling(level, one.clone(), zero.clone()).item()
    alpha = sampling.noise_scaling(level, zero.clone(), one.clone()).item()
    return noise / alpha if alpha > 0 else float("inf")
