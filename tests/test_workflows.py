"""The workflows that come with the pack: whole, in step with the nodes, and each with a twin that the server runs."""

import json
from pathlib import Path

import pytest
from PIL import Image
from test_node_schemas import read_schemas

ROOT = Path(__file__).resolve().parents[1]
PATHS = sorted((ROOT / "workflows").glob("*.json"))
LOADERS = ("CheckpointLoaderSimple", "UNETLoader", "DualCLIPLoader", "VAELoader", "CLIPTextEncode")


@pytest.fixture(scope="module")
def schemas():
    return {schema["id"]: schema for schema in read_schemas()}


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def workflow(request):
    return json.loads(request.param.read_text("utf-8"))


def twin(path: Path) -> dict:
    return json.loads((ROOT / "tests" / "workflows_api" / path.name).read_text("utf-8"))


def values_of(node, schema) -> dict:
    """Of the widgets, by name; after a seed the frontend keeps what becomes of it after a run."""
    values, found = list(node["widgets_values"]), {}
    for each in schema["inputs"]:
        if "default" in each:
            found[each["id"]] = values.pop(0)
            assert not each.get("control_after_generate") or values.pop(0) in ("fixed", "randomize")
    assert values == []
    return found


def ours(workflow) -> list[dict]:
    return [node for node in workflow["nodes"] if node["type"].startswith("IQGuide")]


def test_there_are_workflows_and_each_has_a_twin():
    assert len(PATHS) >= 6
    assert [path.name for path in PATHS] == sorted(path.name for path in (ROOT / "tests/workflows_api").glob("*.json"))


def test_links_join_what_they_say(workflow):
    nodes = {node["id"]: node for node in workflow["nodes"]}
    assert len(nodes) == len(workflow["nodes"])
    for number, source, out_slot, target, in_slot, kind in workflow["links"]:
        output, entry = nodes[source]["outputs"][out_slot], nodes[target]["inputs"][in_slot]
        assert number in output["links"]
        assert entry["link"] == number
        assert kind == output["type"]
        assert entry["type"] in (kind, "*")
    links = {link[0] for link in workflow["links"]}
    assert {entry["link"] for node in nodes.values() for entry in node["inputs"]} - {None} == links


def test_no_node_covers_another(workflow):
    title = 40  # above a node's place, with a gap
    boxes = [(*node["pos"], *node["size"]) for node in workflow["nodes"]]
    for index, (x, y, width, height) in enumerate(boxes):
        for left, top, across, down in boxes[index + 1 :]:
            apart = x + width <= left or left + across <= x
            assert apart or y + height <= top - title or top + down <= y - title


def test_every_workflow_has_a_thumbnail():
    for path in PATHS:
        with Image.open(path.with_suffix(".jpg")) as picture:
            assert picture.format == "JPEG"
        assert path.with_suffix(".jpg").stat().st_size < 100_000


def test_nodes_have_the_inputs_outputs_and_widgets_of_today(workflow, schemas):
    assert ours(workflow)
    for node in ours(workflow):
        schema = schemas[node["type"]]
        assert sorted(entry["name"] for entry in node["inputs"]) == sorted(each["id"] for each in schema["inputs"])
        assert [entry["name"] for entry in node["outputs"]] == [each["id"] for each in schema["outputs"]]
        values = values_of(node, schema)
        for widget in (each for each in schema["inputs"] if each["id"] in values):
            value = values[widget["id"]]
            if "options" in widget:
                assert value in widget["options"]
            elif "min" in widget:
                assert widget["min"] <= value <= widget["max"]
            else:
                assert type(value) is type(widget["default"])
        required = {each["id"] for each in schema["inputs"] if not each["optional"] and "default" not in each}
        assert required <= {entry["name"] for entry in node["inputs"] if entry["link"] is not None}


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_the_twin_is_the_same_but_for_the_models(path, schemas):
    workflow = json.loads(path.read_text("utf-8"))
    kinds = {node["id"]: node["type"] for node in workflow["nodes"]}
    same = {str(number): kind for number, kind in kinds.items() if kind not in LOADERS}
    found = twin(path)
    assert {number: node["class_type"] for number, node in found.items() if number != "tiny"} == same
    for _, source, out_slot, target, in_slot, _ in workflow["links"]:
        if str(target) in same:
            node = next(node for node in workflow["nodes"] if node["id"] == target)
            start = found[str(target)]["inputs"][node["inputs"][in_slot]["name"]]
            assert start == [str(source), out_slot] if str(source) in same else start[0] == "tiny"
    for node in ours(workflow):
        values = values_of(node, schemas[node["type"]])
        given = found[str(node["id"])]["inputs"]
        assert {name: given[name] for name in values} == values
