"""Search: draw many candidates and keep the best; in diffusers, and (comfy_*) in ComfyUI. One file a search."""
