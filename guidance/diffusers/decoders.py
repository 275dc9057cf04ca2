"""From the latents that a scheduler sees to pictures: finding and wrapping a decoder.

Pipelines and autoencoders are taken by what they have (`vae`, `vae_scale_factor`, `prepare_latents`; `decode`,
`config`), so those of other packages work too where they follow diffusers.
"""

import copy
import logging
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from diffusers import AutoencoderTiny
from torch import Tensor, nn

from ..gradient import Decoder, clamp_towards_range
from .latents import Family, Grid, as_given, family_of
from .replace import observed

logger = logging.getLogger(__name__)

_HOST_HOOKS = ("_hf_hook", "_diffusers_hook", "_old_forward", "forward")  # set on instances by offloading


class VaeDecoder:
    """A `Decoder` made of a pipeline family and an autoencoder.

    It works on a private view of the autoencoder (shared weights that need no gradient, evaluation mode), so neither
    the pipeline nor its flags change. The view follows the latents to their device. Autoencoders in float16 that ask
    for it (`force_upcast`, as that of SDXL does) are read as float32.

    Args:
        vae: with `decode(z, return_dict=False)` and `config`, such as AutoencoderKL or AutoencoderTiny.
        family: layout and units of the latents.
        factor: how much smaller latents are than pictures; needed for packed latents only.
        height: of the pictures, in pixels; needed for packed latents that `watch` does not see being made.
        width: of the pictures, in pixels.
        checkpoint: recompute activations in the backward pass instead of keeping them.
    """

    def __init__(
        self,
        vae: nn.Module,
        family: Family,
        *,
        factor: int = 8,
        height: int | None = None,
        width: int | None = None,
        checkpoint: bool = False,
    ) -> None:
        if (height is None) != (width is None):
            raise ValueError(f"got height={height} and width={width}; expected both or neither.")
        self.name = f"{type(vae).__name__} {getattr(vae.config, '_name_or_path', '') or ''}".strip()
        self.family = family
        self._vae = _private_view(vae)
        self._factor = factor
        self._grid: Grid = None
        if height is not None:
            self._note_size(height, width)
        if checkpoint and getattr(vae, "_supports_gradient_checkpointing", False):
            self._vae.enable_gradient_checkpointing()

    def __call__(self, latents: Tensor) -> Tensor:
        """Latents as the scheduler sees them, any floating dtype -> images (N, 3, H, W), float32 in [0, 1].

        Latents of a video with F > 1 frames give (N, F, 3, H, W).
        The values are those of the pipeline's own pictures; see `clamp_towards_range` for the gradient.
        """
        weight = next(self._vae.parameters())
        if weight.device != latents.device:
            with torch.inference_mode(False):
                self._vae.to(latents.device)
        z = self.family.to_vae(self.family.unpack(latents, self._grid), self._vae)
        z = z.to(weight.dtype)
        if z.ndim == 4:  # convolutions keep this layout, and are a fifth faster in it on CPUs
            z = z.contiguous(memory_format=torch.channels_last)
        pixels = self._vae.decode(z, return_dict=False)[0].float()
        if pixels.ndim == 5:  # video: one frame is a picture
            pixels = pixels[:, :, 0] if pixels.shape[2] == 1 else pixels.movedim(2, 1)
        return clamp_towards_range(pixels * 0.5 + 0.5)

    def watch(self, pipe: Any) -> AbstractContextManager[None]:
        """While open, learn the size of the pictures from the pipeline's calls, where latents do not tell it."""
        if not self.family.needs_grid or not hasattr(pipe, "prepare_latents"):  # modular pipelines have blocks instead
            return nullcontext()
        return observed(pipe, "prepare_latents", lambda call, _: self._note_size(call["height"], call["width"]))

    def _note_size(self, height: int, width: int) -> None:
        self._grid = (int(height) // self._factor, int(width) // self._factor)


def find_decoder(
    pipe: Any,
    decoder: Decoder | nn.Module | None = None,
    *,
    unpack: Callable[[Tensor], Tensor] | None = None,
    height: int | None = None,
    width: int | None = None,
    load_tiny: Callable[[str], nn.Module | None] | None = None,
) -> Decoder:
    """The decoder with which guidance looks at the latents of a pipeline.

    Chosen in this order: `decoder`; the pipeline's own autoencoder if it is an AutoencoderTiny; the family's
    AutoencoderTiny if `load_tiny` finds it and it fits; the pipeline's own autoencoder, with gradient checkpointing.

    Args:
        pipe: a pipeline whose class, or a parent of it, is in `FAMILIES`; any other with `decoder` or `unpack`.
        decoder: a function (see `Decoder`), used as it is; or an autoencoder with `decode` and `config`
            for the pipeline's latents, used with the family's layout and its own scaling.
        unpack: for pipelines that are not in the table: latents as the scheduler sees them -> what the `decode` of the
            autoencoder takes.
        height: of the pictures, in pixels, for packed latents; otherwise learnt from the call by `VaeDecoder.watch`.
        width: of the pictures, in pixels.
        load_tiny: hub name -> an AutoencoderTiny that is on this machine, or None.

    Returns:
        A `Decoder`; a `VaeDecoder` unless a plain function was given.

    Raises:
        ValueError: the pipeline is not in the table and neither function was given; only one of height and width was.
    """
    if decoder is not None and not hasattr(decoder, "decode"):
        return decoder
    family = family_of(pipe) if unpack is None else Family(lambda latents, _: unpack(latents), as_given, None)
    vae, checkpoint = decoder, False
    if vae is None:
        vae = _tiny_for(pipe, family, load_tiny)
    if vae is None:
        vae, checkpoint = pipe.vae, True
    factor = getattr(pipe, "vae_scale_factor", 8)
    wrapped = VaeDecoder(vae, family, factor=factor, height=height, width=width, checkpoint=checkpoint)
    logger.info("guidance decodes the latents of %s with %s", type(pipe).__name__, wrapped.name)
    return wrapped


def local_tiny(name: str) -> AutoencoderTiny | None:
    """The AutoencoderTiny of this name from the local cache; None if it is not there. Never goes to the network."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about arguments that diffusers passes on
        try:
            return AutoencoderTiny.from_pretrained(name, local_files_only=True)
        except OSError:  # what diffusers raises for files that are not in the cache
            return None


def _tiny_for(pipe: Any, family: Family, load_tiny: Callable[[str], nn.Module | None] | None) -> nn.Module | None:
    """The pipeline's own AutoencoderTiny, else one found by name that has latents of the same shape, else None."""
    if any(cls.__name__ == "AutoencoderTiny" for cls in type(pipe.vae).__mro__):
        return pipe.vae
    tiny = load_tiny(family.tiny) if load_tiny is not None and family.tiny is not None else None
    if tiny is None:
        return None
    same_channels = tiny.config.latent_channels == pipe.vae.config.latent_channels
    same_factor = 2 ** (len(tiny.config.decoder_block_out_channels) - 1) == pipe.vae_scale_factor
    if not (same_channels and same_factor):
        return None
    return tiny.to(next(pipe.vae.parameters()).dtype)


def _private_view(vae: nn.Module) -> nn.Module:
    """The same network in other module objects: weights shared and frozen, no encoder, no offloading hooks."""
    vae = getattr(vae, "_orig_mod", vae)  # under torch.compile
    if any(parameter.is_meta for parameter in vae.parameters()):
        raise ValueError(
            f"the weights of {type(vae).__name__} are offloaded layer by layer; expected a decoder whose weights stay "
            "in memory: give decoder=AutoencoderTiny.from_pretrained(...), or use enable_model_cpu_offload()."
        )
    with torch.inference_mode(False):
        memo: dict[int, Any] = {id(p): nn.Parameter(_usable(p), requires_grad=False) for p in vae.parameters()}
        memo |= {id(buffer): _usable(buffer) for buffer in vae.buffers()}
        for module in vae.modules():  # hooks may hold other models: they are not copied, and then left out
            memo |= {id(vars(module)[hook]): None for hook in _HOST_HOOKS if hook in vars(module)}
        view = copy.deepcopy(vae, memo)
        for module in view.modules():
            for hook in _HOST_HOOKS:
                vars(module).pop(hook, None)
        if hasattr(view, "encoder"):
            view.encoder = nn.Identity()  # some autoencoders count the layers of theirs, even to decode
        if next(view.parameters()).dtype == torch.float16 and getattr(vae.config, "force_upcast", False):
            view.float()
    return view.eval()


def _usable(tensor: Tensor) -> Tensor:
    """The same values, outside the graph; a copy if the tensor was made in inference mode, which allows no gradient."""
    return tensor.detach().clone() if tensor.is_inference() else tensor.detach()
