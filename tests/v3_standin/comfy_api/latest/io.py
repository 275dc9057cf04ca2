"""Inputs, outputs and schemas. Unknown keywords are errors, as in ComfyUI."""

from dataclasses import dataclass, field
from enum import Enum


def without_none(values):
    return {key: value for key, value in values.items() if value is not None}


class Input:
    keywords = ("display_name", "optional", "tooltip", "advanced")

    def __init__(self, id, **given):
        unknown = set(given) - set(self.keywords)
        if unknown:
            raise TypeError(f"{self.io_type} has no keyword {sorted(unknown)}")
        self.id = id
        self.given = {"optional": False} | given

    def as_dict(self):
        return without_none(self.given)

    def get_io_type(self):
        return self.io_type


class Output:
    def __init__(self, id=None, display_name=None, tooltip=None, is_output_list=False):
        self.id, self.tooltip, self.is_output_list = id, tooltip, is_output_list
        self.display_name = display_name or id

    def get_io_type(self):
        return self.io_type


def comfytype(io_type, *keywords):
    name = {"io_type": io_type}
    inputs = type("Input", (Input,), {**name, "keywords": (*Input.keywords, *keywords)})
    return type(io_type, (), {**name, "Input": inputs, "Output": type("Output", (Output,), name)})


def Custom(io_type):
    return comfytype(io_type)


WIDGET = ("default", "socketless", "force_input")
Boolean = comfytype("BOOLEAN", *WIDGET, "label_on", "label_off")
Int = comfytype("INT", *WIDGET, "min", "max", "step", "control_after_generate")
Float = comfytype("FLOAT", *WIDGET, "min", "max", "step", "round")
String = comfytype("STRING", *WIDGET, "multiline", "placeholder")
Combo = comfytype("COMBO", *WIDGET, "options")
KINDS = ("CONDITIONING", "IMAGE", "LATENT", "MASK", "MODEL", "VAE")
Conditioning, Image, Latent, Mask, Model, Vae = (comfytype(name) for name in KINDS)
AnyType = comfytype("*")


class Hidden(str, Enum):
    unique_id = "UNIQUE_ID"
    prompt = "PROMPT"
    extra_pnginfo = "EXTRA_PNGINFO"


@dataclass
class Schema:
    node_id: str
    display_name: str = None
    category: str = "sd"
    inputs: list = field(default_factory=list)
    outputs: list = field(default_factory=list)
    hidden: list = field(default_factory=list)
    description: str = ""
    search_aliases: list = field(default_factory=list)
    is_input_list: bool = False
    is_output_node: bool = False
    is_experimental: bool = False
    not_idempotent: bool = False


class ComfyNode:
    hidden = None


class NodeOutput:
    pass
