"""A ComfyUI custom node, for tests alone: tiny models with random weights, so that workflows run with no download.

It stands in for the loaders and prompts of a workflow. The file is copied into custom_nodes of a started server.
"""

import os
import sys

sys.path.insert(0, os.environ["IQGUIDE_TESTS"])
import tiny_comfy
import torch


class TinyModels:
    RETURN_TYPES = ("MODEL", "CONDITIONING", "CONDITIONING", "VAE")
    FUNCTION = "make"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"kind": (list(tiny_comfy.KINDS),)}}

    def make(self, kind):
        make, channels = tiny_comfy.KINDS[kind]
        prompts = tiny_comfy.conditioning(seed=1), tiny_comfy.conditioning(seed=2)
        with torch.inference_mode(False):  # weights are drawn in place
            return (make(), *prompts, tiny_comfy.taesd_vae(channels))


NODE_CLASS_MAPPINGS = {"TinyModels": TinyModels}
