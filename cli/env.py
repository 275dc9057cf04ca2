"""`iqguide env`: versions, devices and folders, for a report."""

from __future__ import annotations

import argparse
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from .. import __version__
from ..models.cache import cache_dir, is_offline
from .console import OK

PACKAGES = (
    *("torch", "diffusers", "open_clip_torch", "timm", "transformers", "accelerate"),
    *("safetensors", "huggingface_hub", "numpy", "pillow", "scipy", "xformers"),
)


def run_env(options: argparse.Namespace) -> int:
    """Print versions, devices and folders."""
    print(f"iqguide          {__version__}")
    print(f"python           {platform.python_version()} on {platform.platform()}")
    for package in PACKAGES:
        try:
            print(f"{package:<16} {version(package)}")
        except PackageNotFoundError:
            print(f"{package:<16} not installed")
    for index in range(torch.cuda.device_count()):
        memory = torch.cuda.get_device_properties(index).total_memory / 2**30
        print(f"cuda:{index}           {torch.cuda.get_device_name(index)}, {memory:.0f} GiB")
    built = torch.version.cuda or torch.version.hip
    print(f"cuda             {built or 'not'} built in, {torch.cuda.device_count()} devices")
    print(f"mps              {'available' if torch.backends.mps.is_available() else 'not available'}")
    print(f"cpu              {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    print(f"weights          {cache_dir()}{' (offline)' if is_offline() else ''}")
    return OK
