"""Print the schemas of all nodes as JSON: with the ComfyUI that COMFYUI_DIR names (--real), or with the stand-in.

A program of its own, so that neither leaves its modules in the process of the tests.
"""

import asyncio
import inspect
import json
import os
import sys
from pathlib import Path
from unittest.mock import MagicMock

TESTS = Path(__file__).resolve().parent
HOST = ("comfy", "comfy.cli_args", "comfy.ldm.models.autoencoder", "comfy.model_management", "comfy.model_patcher")
HOST += ("comfy.patcher_extension", "comfy.sd", "comfy.taesd.taesd", "comfy.utils", "comfy_execution.graph_utils")
HOST += ("comfy_execution.utils",)
HOST += ("comfy.k_diffusion.sampling", "comfy.sample", "comfy.sampler_helpers", "comfy.samplers")
HOST += ("folder_paths", "latent_preview", "server")
LISTED = {"sampler_name": ["euler", "dpmpp_2m"], "scheduler": ["simple", "karras"]}  # of the longer lists of ComfyUI


def use_standin():
    sys.path.insert(0, str(TESTS / "v3_standin"))
    for name in HOST:
        sys.modules[name] = MagicMock()
    sampler = sys.modules["comfy.samplers"].KSampler
    sampler.SAMPLERS, sampler.SCHEDULERS = LISTED["sampler_name"], LISTED["scheduler"]
    sys.modules["folder_paths"].folder_names_and_paths = {}
    sys.modules["folder_paths"].models_dir = ""
    sys.modules["folder_paths"].supported_pt_extensions = {".safetensors"}
    sys.modules["folder_paths"].get_filename_list.return_value = []


def use_comfyui():
    sys.path.insert(0, os.environ["COMFYUI_DIR"])
    from comfy.cli_args import args

    args.cpu = True
    import utils.extra_config  # noqa: F401 - before the `nodes` of older versions hide it, as in ComfyUI's main.py


def as_plain(node):
    schema = node.define_schema()
    check = inspect.getfullargspec(vars(node)["validate_inputs"].__func__) if "validate_inputs" in vars(node) else None

    def of(each):
        found = {"id": each.id, "type": each.get_io_type()}
        found |= {key: value for key, value in each.as_dict().items() if value is not None}
        if each.id in LISTED:
            found["options"] = [option for option in LISTED[each.id] if option in found["options"]]
        return found

    def out(each):
        return {"id": each.id, "type": each.get_io_type(), "tooltip": each.tooltip, "list": each.is_output_list}

    return {
        "id": schema.node_id,
        "display_name": schema.display_name,
        "category": schema.category,
        "description": schema.description,
        "search_aliases": schema.search_aliases,
        "is_input_list": schema.is_input_list,
        "is_output_node": schema.is_output_node,
        "validates": check.args[1:] if check else [],
        "validates_any": check is not None and check.varkw is not None,
        "hidden": [hidden.value for hidden in schema.hidden],
        "inputs": [
            {k: v for k, v in of(each).items() if k not in ("multiselect", "multiline")} for each in schema.inputs
        ],
        "outputs": [out(each) for each in schema.outputs],
    }


async def main():
    import iqguide

    extension = await iqguide.comfy_entrypoint()
    await extension.on_load()
    nodes = await extension.get_node_list()
    return [as_plain(node) for node in nodes]


if __name__ == "__main__":
    use_comfyui() if "--real" in sys.argv else use_standin()
    sys.stdout.write("SCHEMAS" + json.dumps(asyncio.run(main())))
