"""What every test shares: no network, a fixed seed, the data folder, the devices, and the reasons for skipping."""

import logging
import os
import socket
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub, which reads it once
# Before torch starts its threads: on tensors as small as these they wait for each other, for minutes on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from accelerate.state import AcceleratorState

ROOT = Path(__file__).resolve().parents[1]
LOCAL_HOSTS = {"127.0.0.1", "::1", "localhost"}
DEVICES = ["cpu"]
if torch.cuda.is_available():
    DEVICES.append(pytest.param("cuda", marks=pytest.mark.gpu))


def pytest_collection_modifyitems(items):
    """Skip, with the reason, what this machine cannot run."""
    needs = {
        "data": (bool(os.environ.get("IQGUIDE_DATA")), "IQGUIDE_DATA does not name a folder of photographs"),
        "gpu": (torch.cuda.is_available(), "no CUDA device"),
        "comfy": (bool(os.environ.get("COMFYUI_DIR")), "COMFYUI_DIR does not name a ComfyUI checkout"),
    }
    for item in items:
        for marker, (available, reason) in needs.items():
            if item.get_closest_marker(marker) and not available:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def seed():
    """Every test starts from the same global random state."""
    torch.manual_seed(0)
    return 0


@pytest.fixture(autouse=True)
def log_level():
    """The command sets the level of the package's logger for its process; the next test finds it as it was."""
    logger = logging.getLogger("iqguide")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """A connection to anything but this machine is an error, not a slow test."""
    connect = socket.socket.connect

    def guarded(self, address):
        if self.family != getattr(socket, "AF_UNIX", None) and address[0] not in LOCAL_HOSTS:
            raise RuntimeError(f"a test tried to connect to {address}; tests do not use the network")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository root, which is also the package."""
    return ROOT


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder that IQGUIDE_DATA names (pristine/, live-challenge/, tid2013-6ref/, ...); skips without it."""
    value = os.environ.get("IQGUIDE_DATA")
    if not value:
        pytest.skip("IQGUIDE_DATA does not name a folder of photographs")
    path = Path(value).resolve()
    if not path.is_dir():
        pytest.fail(f"IQGUIDE_DATA={value} is not a folder")
    return path


@pytest.fixture(params=DEVICES)
def device(request) -> torch.device:
    """Every device of this machine in turn: the CPU, and CUDA when there is one."""
    return torch.device(request.param)


@pytest.fixture(scope="session")
def squeezenet():
    """torchvision's layers with random weights, and their state dict in the layout of the network's authors."""
    torchvision = pytest.importorskip("torchvision", exc_type=ImportError)
    reference = torchvision.models.squeezenet1_0(weights=None).features.eval()
    fires = dict(zip((3, 4, 5, 7, 8, 9, 10, 12), range(2, 10), strict=True))  # place in the list -> number
    weights = {f"conv1.{key}": value for key, value in reference[0].state_dict().items()}
    for place, number in fires.items():
        names = {"squeeze": "conv1x1_1", "expand1x1": "conv1x1_2", "expand3x3": "conv3x3_2"}
        for theirs, ours in names.items():
            layer = getattr(reference[place], theirs)
            weights |= {f"fire{number}/{ours}.{key}": value for key, value in layer.state_dict().items()}
    return reference, fires, weights


@pytest.fixture(scope="module")
def on_the_cpu():
    """accelerate on the CPU, whatever the machine has; its state is forgotten before and after."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        AcceleratorState._reset_state(reset_partial_state=True)
        yield
    AcceleratorState._reset_state(reset_partial_state=True)
