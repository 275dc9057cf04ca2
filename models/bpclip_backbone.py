"""The backbone of a BPCLIP: a ResNet of timm."""

from __future__ import annotations

from torch import nn

from .bpclip_config import BPCLIPConfig

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def make_backbone(config: BPCLIPConfig) -> nn.Module:
    """The ResNet of a config with random weights: pictures -> five maps, strides 2 to 32.

    The last batch normalisation of each block starts at 1/2: at timm's 0 frozen blocks would be dead, at 1 the signal
    grows from block to block.
    """
    import timm  # which takes seconds

    narrow = {}
    if config.channels is not None:
        narrow = {"channels": config.channels, "stem_type": "deep", "stem_width": config.channels[0] // 2}
    network = timm.create_model(config.backbone, features_only=True, zero_init_last=False, **narrow)
    norms = [name for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)]
    blocks = {name.rpartition(".")[0] for name in norms if name.startswith("layer") and "downsample" not in name}
    for block in blocks:
        last = max(name for name in norms if name.startswith(f"{block}.bn"))
        nn.init.constant_(network.get_submodule(last).weight, 0.5)
    return timm.layers.freeze_batch_norm_2d(network) if config.batch_norm == "frozen" else network
