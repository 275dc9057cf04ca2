"""What a command imports: a bundled model brings its own network, so scoring with it waits for no other library."""

import json
import subprocess
import sys

import pytest
from PIL import Image

from iqguide.models import MODELS
from iqguide.models.cache import default_path
from iqguide.models.weights import read_weights

OTHERS = ("timm", "torchvision", "open_clip", "transformers", "diffusers", "accelerate", "scipy", "torch._dynamo")
BUNDLED = [name for name, spec in MODELS.items() if spec.bundled]


def imported_by(code, *arguments):
    """Names of `OTHERS` that a fresh Python has imported at the end of some code."""
    code = f"import sys\n{code}\nprint('imported', *[name for name in {OTHERS!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].split()[1:]


def needs(name):
    """Of a ResNet, timm has the network, and imports the rest."""
    config = json.loads(read_weights(default_path(MODELS[name]))[1].get("config", "{}"))
    return ["timm", "torchvision", "torch._dynamo"] if "resnet" in config.get("backbone", "") else []


@pytest.mark.parametrize("name", BUNDLED)
def test_scoring_with_a_bundled_model_imports_no_other_network(name, tmp_path):
    Image.linear_gradient("L").save(tmp_path / "one.png")
    code = "from iqguide.cli.main import main\nassert main(['score', '--model', *sys.argv[1:]]) == 0"
    assert imported_by(code, name, str(tmp_path / "one.png")) == needs(name)


def test_making_tiny_from_python_imports_no_other_network():
    assert imported_by("import iqguide\niqguide.create_model('tiny')") == []


def test_the_public_names_of_the_room_load_when_they_are_used():
    code = "import iqguide.models as models\nnames = [getattr(models, name).__name__ for name in models.__all__[:2]]"
    assert "open_clip" in imported_by(f"{code}\nassert names == ['create_model', 'list_models']")
    assert imported_by("from iqguide.models import MODELS, ClipConfig, BPCLIPConfig, is_cached") == []
