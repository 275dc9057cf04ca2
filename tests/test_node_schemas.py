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
    return json.loads(output_of(str(ROOT / "tests" / "read_schemas.py"), *options).rsplit("SCHEMAS", 1)[1])


def with_standin(program: str):
    """What a program prints as JSON that works on the nodes without ComfyUI."""
    start = f"import json, sys; sys.path.append({str(ROOT / 'tests')!r}); import read_schemas as r; r.use_standin()\n"
    return json.loads(output_of("-c", start + program).splitlines()[-1])


def output_of(*arguments) -> str:
    command = [sys.executable, "-P", *arguments]
    if sys.version_info < (3, 11):
        command.remove("-P")
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ, cwd=ROOT.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout


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


def test_comfyui_checks_all_inputs_that_a_node_does_not_name_to_check_itself(schemas):
    """With keywords of any name in `validate_inputs` it would check none."""
    for schema in schemas.values():
        assert schema["validates_any"] is False, schema["id"]
        assert set(schema["validates"]) <= {each["id"] for each in schema["inputs"]}
    assert schemas["IQGuideQualityGuidance"]["validates"] == ["start_percent", "end_percent"]


def test_values_that_are_linked_are_not_judged_before_the_run():
    found = with_standin("""
from iqguide.nodes import attributes, best_of_n, guide
window = guide.QualityGuidance.validate_inputs
words = attributes.AttributeGuidance.validate_inputs
shares = best_of_n.BestOfNSampler.validate_inputs
print(json.dumps([
    [window(None, 0.9), window(0.4, None), window(None, None), window(0.2, 0.9), words(None, None, 1.0),
     words("", 0.0, 1.0), words("Sharp / Blurry", 0.0, 1.0), shares(None), shares("0.5")],
    [window(None, 1.5), window(-0.1, None), window(0.9, 0.2), window(float("nan"), 0.9), words("Sharp", None, None),
     words(None, 0.5, 0.5), shares("0.7, 0.4")],
]))
""")
    assert found[0] == [True] * 9
    sentences = ["end_percent is 1.5", "start_percent is -0.1", "start must be below end", "start_percent is nan"]
    sentences += ["expected wanted / unwanted", "start must be below end", "drop_at is (0.7, 0.4)"]
    for sentence, message in zip(sentences, found[1], strict=True):
        assert sentence in message


def test_nodes_that_read_a_file_notice_that_it_was_replaced(tmp_path):
    file = tmp_path / "mine.safetensors"
    file.touch()
    program = f"""
import os, folder_paths
from iqguide.nodes import attributes, load
folder_paths.get_full_path_or_raise = lambda folder, name: {str(file)!r} if folder == "iqa" else None
def prints():
    nodes = load.LoadQualityModel, attributes.AttributeGuidance
    return [node.fingerprint_inputs(weights="mine.safetensors", strength=0.1) for node in nodes]
found = []
for seconds in (1000, 2000):
    os.utime({str(file)!r}, (seconds, seconds))
    found.append(prints())
print(json.dumps([*found, attributes.AttributeGuidance.fingerprint_inputs(weights="default"), load.time_of(None)]))
"""
    assert with_standin(program) == [[1000, 1000], [2000, 2000], 0, 0]


def test_what_could_not_give_a_score_is_refused():
    found = with_standin("""
import torch
from iqguide.nodes.combine import combine
from iqguide.nodes.quality_model import QualityModel, score_images
model = QualityModel("mean", lambda images: images.mean((1, 2, 3)))
both = combine(model, model, "mean rank", 0.0, 0.0)
def said(function, *given):
    try:
        return str(function(*given))
    except ValueError as error:
        return "ValueError: " + str(error)
nothing = torch.zeros(0, 8, 8, 3)
print(json.dumps([said(combine, model, model, "weighted sum", 0.0, 0.0), said(score_images, model, nothing),
                  said(score_images, both, nothing), both.name]))
""")
    assert found[0].startswith("ValueError: both weights are 0")
    assert all(each.startswith("ValueError: got a batch of no pictures") for each in found[1:3])
    assert found[3] == "mean rank of mean and mean"


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
    from iqguide.guidance.noise_level import ratio_of

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
    from iqguide.nodes.parse_shares import parse_shares
    from iqguide.search.halving import HALVING

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
