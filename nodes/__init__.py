"""The ComfyUI nodes. `extension` is imported by ComfyUI alone, through `comfy_entrypoint` of the package."""
