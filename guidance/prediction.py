"""The denoised latent from what a diffusion model puts out, and back.

Everything is written for x = alpha * x0 + sigma * noise with any alpha and sigma: variance preserving (alpha^2 +
sigma^2 = 1), variance exploding (alpha = 1) and flow matching (alpha = 1 - sigma) are special cases. What the model
puts out is named as in diffusers:

* `epsilon`: the noise;
* `sample`: x0 itself;
* `v_prediction`: (alpha * noise - sigma * x0) / r with r = sqrt(alpha^2 + sigma^2), that is v for the latent scaled to
  unit variance, which is how k-diffusion's schedulers use v models (Salimans and Ho 2022, "Progressive Distillation
  for Fast Sampling of Diffusion Models", appendix D, https://arxiv.org/abs/2202.00512);
* `flow_prediction`: noise - x0.
"""

import math

from torch import Tensor

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample", "flow_prediction")


def denoised_from_output(output: Tensor, sample: Tensor, alpha: float, sigma: float, prediction_type: str) -> Tensor:
    """The clean latent x0 that a model output implies.

    Args:
        output: model output, any shape, floating.
        sample: the noisy latent x in the same units as alpha and sigma, same shape.
        alpha: factor of the clean latent in x, >= 0 (> 0 for epsilon).
        sigma: factor of the noise in x, >= 0.
        prediction_type: "epsilon", "v_prediction", "sample" or "flow_prediction".

    Returns:
        x0, same shape; differentiable in `output` and `sample`.

    Raises:
        ValueError: for another prediction type.
    """
    if prediction_type == "sample":
        return output
    if prediction_type == "epsilon":
        return (sample - sigma * output) / alpha
    if prediction_type == "v_prediction":
        norm = math.hypot(alpha, sigma)
        return (alpha / norm**2) * sample - (sigma / norm) * output
    if prediction_type == "flow_prediction":
        return (sample - sigma * output) / (alpha + sigma)
    raise _unknown(prediction_type)


def output_shift(shift: Tensor, alpha: float, sigma: float, prediction_type: str) -> Tensor | float:
    """The change of a model output when the clean latent moves by `shift` and the noise stays what it is.

    The noisy latent then moves by alpha * shift. An epsilon output does not change at all.

    Args:
        shift: how far x0 moves, any shape.
        alpha: factor of the clean latent in x.
        sigma: factor of the noise in x.
        prediction_type: "epsilon", "v_prediction", "sample" or "flow_prediction".

    Returns:
        Change of the output, same shape, or 0.0.

    Raises:
        ValueError: for another prediction type.
    """
    if prediction_type == "sample":
        return shift
    if prediction_type == "epsilon":
        return 0.0
    if prediction_type == "v_prediction":
        return shift * (-sigma / math.hypot(alpha, sigma))
    if prediction_type == "flow_prediction":
        return -shift
    raise _unknown(prediction_type)


def output_change(change: Tensor, alpha: float, sigma: float, prediction_type: str) -> Tensor:
    """The change of a model output that changes its x0 by `change` while the noisy latent stays what it is.

    Args:
        change: change of x0, any shape.
        alpha: factor of the clean latent in x.
        sigma: factor of the noise in x, > 0 unless prediction_type is "sample".
        prediction_type: "epsilon", "v_prediction", "sample" or "flow_prediction".

    Returns:
        Change of the output, same shape.

    Raises:
        ValueError: for another prediction type.
    """
    if prediction_type == "sample":
        return change
    if prediction_type == "epsilon":
        return change * (-alpha / sigma)
    if prediction_type == "v_prediction":
        return change * (-math.hypot(alpha, sigma) / sigma)
    if prediction_type == "flow_prediction":
        return change * (-(alpha + sigma) / sigma)
    raise _unknown(prediction_type)


def _unknown(prediction_type: str) -> ValueError:
    return ValueError(
        f"prediction_type is {prediction_type!r}; expected one of {', '.join(PREDICTION_TYPES)}."
        " Set it in the scheduler's configuration."
    )
