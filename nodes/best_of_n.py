"""Node: Best-of-N Sampler."""

from typing import Any

import comfy.utils
from comfy.model_patcher import ModelPatcher
from comfy.samplers import KSampler
from comfy_api.latest import io, ui
from torch import Tensor

from ..guidance.comfy.decoders import CHOICES, find_decoder, pictures_of, tiny_decoder_path
from ..rerank import best_first
from ..search.comfy_best_of_n import Finished, Sampling, best_of_n
from .labels import grid, ranked_labels
from .parse_shares import DEFAULT_SHARES, parse_shares, seeds_from
from .quality_model import IQ_MODEL, QualityModel, score_images
from .tables import number, to_json
from .text import show


class BestOfNSampler(io.ComfyNode):
    """A KSampler that samples many candidates and returns the best."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="IQGuideBestOfNSampler",
            display_name="Best-of-N Sampler",
            category="iqguide",
            description="Sample many candidates, drop the worse half on the way, and return the best.",
            search_aliases=["ksampler", "best of n", "rejection sampling", "halving", "search", "image quality"],
            inputs=[
                io.Model.Input("model", tooltip="The diffusion model; with Quality Guidance, too."),
                IQ_MODEL.Input("quality_model", tooltip="From Load Quality Model; judges the candidates."),
                io.Conditioning.Input("positive", tooltip="The prompt."),
                io.Conditioning.Input("negative", tooltip="The negative prompt."),
                io.Latent.Input("latent_image", tooltip="One latent, from which all candidates start: batch_size 1."),
                io.Vae.Input("vae", tooltip="The model's VAE; decodes the candidates that are finished."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**64 - 1,
                    control_after_generate=True,
                    tooltip="Of the first candidate; the others count on from it.",
                ),
                io.Int.Input("candidates", default=8, min=1, max=1024, tooltip="How many begin."),
                io.Int.Input("keep", default=1, min=1, max=1024, tooltip="How many are returned, best first."),
                io.Int.Input("steps", default=20, min=1, max=10000, tooltip="As in KSampler."),
                io.Float.Input("cfg", default=8.0, min=0.0, max=100.0, step=0.1, round=0.01, tooltip="As in KSampler."),
                io.Combo.Input(
                    "sampler_name",
                    options=KSampler.SAMPLERS,
                    default="euler",
                    tooltip="As in KSampler. dpm_adaptive and samplers of other packs take one candidate at a time.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=KSampler.SCHEDULERS,
                    default="simple",
                    tooltip="As in KSampler.",
                ),
                io.Float.Input(
                    "denoise", default=1.0, min=0.01, max=1.0, step=0.01, tooltip="As in KSampler; below 1 for img2img."
                ),
                io.String.Input(
                    "drop_at",
                    default=DEFAULT_SHARES,
                    tooltip="Shares of the steps after which the worse half is dropped, with commas between; empty: "
                    "all candidates are finished.",
                ),
                io.Combo.Input(
                    "decoder",
                    options=list(CHOICES),
                    default=CHOICES[0],
                    tooltip="What shows unfinished candidates to the quality model. tiny: a TAESD file in "
                    "models/vae_approx, fast. vae: the VAE. auto: tiny if there is one.",
                    advanced=True,
                ),
                io.Int.Input(
                    "batch_size",
                    default=0,
                    min=0,
                    max=1024,
                    tooltip="Candidates sampled at once: memory and speed only. 0: as many as fit.",
                    advanced=True,
                ),
                io.Image.Input(
                    "reference",
                    optional=True,
                    tooltip="One picture of the size that is sampled, for models that compare with a reference.",
                ),
            ],
            outputs=[
                io.Latent.Output("latents", tooltip="The best candidates, best first."),
                io.Image.Output("images", tooltip="The same, decoded."),
                io.Float.Output("scores", is_output_list=True, tooltip="Their scores, as a list."),
                io.Int.Output(
                    "seeds",
                    is_output_list=True,
                    tooltip="Their seeds, as a list; KSampler makes each of them again from its seed.",
                ),
                io.String.Output("table", tooltip="JSON: every candidate with its seed, its score, where it ended."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, drop_at: str | None = None) -> bool | str:
        """The shares can be read. ComfyUI checks itself what is not named here; what is linked is None."""
        if drop_at is None:
            return True
        try:
            parse_shares(drop_at)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        quality_model: QualityModel,
        positive: Any,
        negative: Any,
        latent_image: dict[str, Any],
        vae: Any,
        seed: int,
        candidates: int,
        keep: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        denoise: float,
        drop_at: str,
        decoder: str,
        batch_size: int,
        reference: Tensor | None = None,
    ) -> io.NodeOutput:
        """Sample."""
        if decoder == "auto":
            decoder = "tiny" if tiny_decoder_path(model.get_model_object("latent_format")) else "vae"
        quick = find_decoder(model, None, "tiny") if decoder == "tiny" else None

        def score(latents: Tensor) -> Tensor:
            images = decoded(vae, latents) if quick is None else pictures_of(model, quick, latents)
            return scores_of(quality_model, images, len(latents), reference)

        sampling = Sampling(
            model, positive, negative, latent_image, steps, cfg, sampler_name, scheduler, denoise=denoise
        )
        finished = best_of_n(
            sampling,
            seeds_from(seed, candidates),
            score,
            keep=keep,
            shares=parse_shares(drop_at),
            batch_size=batch_size,
        )
        images = decoded(vae, finished.latents)
        scores = scores_of(quality_model, images, len(finished.seeds), reference)
        usable = int(scores.isfinite().sum())
        best = best_first(scores).tolist()[: min(keep, usable)]
        scores = scores.tolist()
        chosen = [scores[index] for index in best]
        show(cls, f"kept {len(best)} of {candidates}, best {number(chosen[0])}, seed {finished.seeds[best[0]]}")
        frames = images.unflatten(0, (len(finished.seeds), -1))[best]
        winners = ranked_labels([each[0] for each in frames], chosen)
        # the latest preview stays on the node, in place of what it returns
        comfy.utils.ProgressBar(1).update_absolute(1, preview=("JPEG", grid(winners), None))
        return io.NodeOutput(
            as_latent(latent_image, finished.latents[best]),
            frames.flatten(0, 1),
            chosen,
            [finished.seeds[index] for index in best],
            table_of(quality_model, finished, scores, best),
            ui=ui.PreviewImage(winners, cls=cls),
        )


def decoded(vae: Any, latents: Tensor) -> Tensor:
    """IMAGE (N x frames, H, W, C), as the node VAE Decode makes it."""
    images = vae.decode(latents)
    return images.flatten(0, 1) if images.ndim == 5 else images


def scores_of(quality_model: QualityModel, images: Tensor, count: int, reference: Tensor | None) -> Tensor:
    """One score per candidate (count,): the mean over its frames."""
    scores = score_images(quality_model, images, reference=reference, shows_progress=False)
    return scores.unflatten(0, (count, -1)).mean(1)


def as_latent(latent: dict[str, Any], samples: Tensor) -> dict[str, Any]:
    """A LATENT like another, of other samples; what says of an empty one how its noise is made is left out."""
    left_out = ("batch_index", "downscale_ratio_spacial", "downscale_ratio_temporal")
    return {name: value for name, value in latent.items() if name not in left_out} | {"samples": samples}


def table_of(quality_model: QualityModel, finished: Finished, scores: list[float], best: list[int]) -> str:
    """Every candidate, the finished ones in the order of their seeds and then the others, as JSON."""
    rows = [
        {"seed": seed, "score": score, "kept": index in best, "dropped_at": None}
        for index, (seed, score) in enumerate(zip(finished.seeds, scores, strict=True))
    ]
    rows += [
        {"seed": each.seed, "score": each.score, "kept": False, "dropped_at": each.share} for each in finished.dropped
    ]
    return to_json({"model": quality_model.name, "candidates": rows})
