"""The table of models, and that listing it is light."""

import dataclasses
import subprocess
import sys

import pytest

from iqguide.models import MODELS, ModelSpec, WeightsError, is_cached, list_models
from iqguide.models.cache import find_weights
from iqguide.models.catalog import get_spec, nearest
from iqguide.models.create import _builder


def test_each_entry_is_complete():
    assert list_models() == list(MODELS)
    for name, spec in MODELS.items():
        assert spec.name == name
        assert spec.licence
        assert spec.summary
        assert spec.min_side >= 32
        if spec.bundled:
            assert spec.licence == "Apache-2.0"
        elif not spec.trained:
            assert spec.url is None
        else:
            assert spec.url.startswith("https://")
            assert spec.paper.startswith("https://")
        assert spec.sha256 is None or len(bytes.fromhex(spec.sha256)) in (4, 32)  # the first digits, or all
        assert spec.base is None or spec.base.trained


def test_weights_under_a_non_commercial_licence_say_so():
    assert "non-commercial" in MODELS["qualiclip"].licence


def test_what_is_not_trained_is_neither_bundled_nor_cached():
    untrained = [spec for spec in MODELS.values() if not spec.trained]
    assert "bpclip" in [spec.name for spec in untrained]
    for spec in untrained:
        assert not spec.bundled
        assert not is_cached(spec)
        with pytest.raises(WeightsError, match=rf"no trained weights of {spec.name}.*docs/training\.md.*path"):
            find_weights(spec)


def test_two_models_never_share_a_file_by_accident():
    files = {(spec.filename, spec.url) for spec in MODELS.values()}
    assert len({filename for filename, _ in files}) == len(files)


def test_every_name_can_be_made_by_a_function_of_its_own():
    assert len({_builder(name) for name in MODELS}) == len(MODELS)


def test_entries_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        MODELS["tiny"].url = "https://example.org"
    assert not ModelSpec(name="x", summary="", licence="", filename="x", url="https://example.org/x").bundled


@pytest.mark.parametrize(("given", "meant"), [("Qualiclip", "qualiclip"), ("clip-iqa", "clipiqa"), ("tinny", "tiny")])
def test_nearest_name(given, meant):
    assert nearest(given, MODELS) == f" Did you mean {meant!r}?"
    with pytest.raises(ValueError, match=f"Did you mean '{meant}'"):
        get_spec(given)


def test_nothing_near():
    assert nearest("bpclip-fr", ["tiny"]) == ""


def test_listing_does_not_import_torch(tmp_path):
    code = (
        "import sys; from iqguide.models import MODELS, is_cached; [is_cached(spec) for spec in MODELS.values()];"
        "assert not {'torch', 'open_clip', 'numpy', 'huggingface_hub', 'safetensors'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
