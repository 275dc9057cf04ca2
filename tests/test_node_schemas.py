"""The interface of the ComfyUI nodes, read through a stand-in of its V3 API, and help and translations for each."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
NODES = {
    "IQGuideLoadQualityModel",
    "IQGuideCombineQualityModels",
    "IQGuideScoreImages",
    "IQGuideRankImages",
    "IQGuideScoreAndSave",
    "IQGuideQualityGuidance",
    "IQGuideAttributeGuidance",
    "IQGuideBestOfNSampler",
    "IQGuideGuidanceReport",
}


def read_schemas(*options) -> list[dict]:
    command = [sys.executable, "-P", str(ROOT / "tests" / "read_schemas.py"), *options]
    if sys.version_info < (3, 11):
        command.remove("-P")
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ, cwd=ROOT.parent)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.rsplit("SCHEMAS", 1)[1])


@pytest.fixture(scope="module")
def schemas() -> dict[str, dict]:
    return {schema["id"]: schema for schema in read_schemas()}


def test_the_nodes_are_these(schemas):
    """Ids are for ever: workflows name them."""
    assert set(schemas) == NODES


def test_every_node_can_be_found_and_understood(schemas):
    for schema in schemas.values():
        assert schema["id"].startswith("IQGuide")
        assert schema["category"] == "iqguide"
        assert schema["display_name"]
        assert schema["description"].endswith(".")
        assert len(schema["search_aliases"]) >= 2
        for each in (*schema["inputs"], *schema["outputs"]):
            assert each["tooltip"].endswith("."), (schema["id"], each["id"])


def test_ids_are_unique_and_are_what_execute_takes(schemas):
    for schema in schemas.values():
        ids = [each["id"] for each in schema["inputs"]]
        assert len(set(ids)) == len(ids)
        assert all(re.fullmatch(r"[a-z_]+", name) for name in ids)


def test_defaults_are_within_their_limits(schemas):
    for schema in schemas.values():
        for each in schema["inputs"]:
            if "min" in each:
                assert each["min"] <= each["default"] <= each["max"], (schema["id"], each["id"])
            if "options" in each:
                assert each["default"] in each["options"], (schema["id"], each["id"])


def test_what_a_beginner_need_not_see_comes_last(schemas):
    """Old values of widgets are kept in order in a workflow: widgets that are added later are advanced ones."""
    for schema in schemas.values():
        widgets = [each for each in schema["inputs"] if "default" in each]
        advanced = [each.get("advanced", False) for each in widgets]
        assert advanced == sorted(advanced), schema["id"]


def test_the_guidance_node_has_the_defaults_of_the_library(schemas):
    from iqguide import RewardGuidance

    defaults = {each["id"]: each.get("default") for each in schemas["IQGuideQualityGuidance"]["inputs"]}
    assert defaults["strength"] == RewardGuidance.scale
    assert defaults["max_drift"] == RewardGuidance.max_drift
    assert defaults["every"] == RewardGuidance.every


def test_the_guidance_nodes_push_about_as_much_as_the_library(schemas):
    """In percent of ComfyUI a window lies elsewhere for each kind of model; docs/comfyui.md has these numbers."""
    from iqguide import RewardGuidance
    from iqguide.guidance.schedule import ratio_of

    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alphas = np.cumprod(1 - betas)
    kinds = {
        "eps": lambda percent: np.sqrt((1 - alphas) / alphas)[round((1 - percent) * 999)],
        "flow": lambda percent: ratio_of(1 - percent),
        "flow, shift 3": lambda percent: 3 * ratio_of(1 - percent),
    }
    start, stop = map(ratio_of, RewardGuidance.noise_window)
    for node in ("IQGuideQualityGuidance", "IQGuideAttributeGuidance"):
        defaults = {each["id"]: each.get("default") for each in schemas[node]["inputs"]}
        for kind, ratio in kinds.items():
            length = math.log(ratio(defaults["start_percent"]) / ratio(defaults["end_percent"]))
            expected = {"eps": 0.74, "flow": 1.16, "flow, shift 3": 1.16}[kind]
            assert length / math.log(start / stop) == pytest.approx(expected, abs=0.01), kind


def test_the_sampler_drops_where_the_library_drops(schemas):
    from iqguide.guidance.search import HALVING
    from iqguide.nodes.pruning import parse_shares

    (drop_at,) = (each for each in schemas["IQGuideBestOfNSampler"]["inputs"] if each["id"] == "drop_at")
    assert parse_shares(drop_at["default"]) == HALVING


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_node_is_translated(schemas, language):
    texts = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text("utf-8"))
    assert set(texts) == NODES
    for name, schema in schemas.items():
        entry = texts[name]
        assert set(entry["inputs"]) == {each["id"] for each in schema["inputs"]}
        assert len(entry["outputs"]) == len(schema["outputs"])
        if language == "en":
            assert entry["display_name"] == schema["display_name"]
            assert entry["description"] == schema["description"]
            assert {key: value["tooltip"] for key, value in entry["inputs"].items()} == {
                each["id"]: each["tooltip"] for each in schema["inputs"]
            }
        else:
            assert all(re.search(r"[\u4e00-\u9fff]", value["tooltip"]) for value in entry["inputs"].values()), name


def test_every_node_has_a_help_page(schemas):
    for name, schema in schemas.items():
        page = (ROOT / "web" / "docs" / f"{name}.md").read_text("utf-8")
        assert page.startswith(f"# {schema['display_name']}\n")
        missing = [each["id"] for each in (*schema["inputs"], *schema["outputs"]) if f"`{each['id']}`" not in page]
        assert missing == [], name


def test_there_is_no_help_page_without_a_node():
    assert {page.stem for page in (ROOT / "web" / "docs").glob("*.md")} == NODES


@pytest.mark.comfy
def test_the_stand_in_reads_what_comfyui_reads(schemas):
    assert {schema["id"]: schema for schema in read_schemas("--real")} == schemas
