"""The pack in a started ComfyUI server: it loads, is quick and quiet, and its workflows run through /prompt."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

import iqguide
from iqguide.models import save_bpclip

pytestmark = pytest.mark.comfy
ROOT = Path(__file__).resolve().parents[1]
API = sorted((ROOT / "tests" / "workflows_api").glob("*.json"))
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
FOLDER = "ComfyUI-IQGuide"
FOLDERS = {"CheckpointLoaderSimple": "checkpoints", "UNETLoader": "diffusion_models", "VAELoader": "vae"}
FOLDERS |= {"DualCLIPLoader": "text_encoders"}
# Of the frontend: nothing in front of the graph, above all not the templates that it offers at a first visit.
SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False, "Comfy.Graph.CanvasInfo": False}


def files_named_in_workflows():
    """The models that the workflows load, as folder / file."""
    for path in WORKFLOWS:
        for node in json.loads(path.read_text("utf-8"))["nodes"]:
            if node["type"] in FOLDERS:
                files = (value for value in node["widgets_values"] if value.endswith(".safetensors"))
                yield from (Path(FOLDERS[node["type"]]) / file for file in files)


class Server:
    """A ComfyUI on the CPU, with this repository and the tiny models as its custom nodes."""

    def __init__(self, base: Path):
        self.base = base
        for name in ("custom_nodes", "input"):
            (base / name).mkdir()
        (base / "custom_nodes" / FOLDER).symlink_to(ROOT)
        shutil.copy2(ROOT / "tests" / "comfy_tiny_models.py", base / "custom_nodes")
        (base / "models" / "iqa").mkdir(parents=True)
        judge = iqguide.create_model("bpclip-mini", weights="random")
        save_bpclip(judge, base / "models" / "iqa" / "bpclip-mini.safetensors")
        for file in files_named_in_workflows():  # empty, only for the lists in the frontend
            (base / "models" / file).parent.mkdir(exist_ok=True)
            (base / "models" / file).touch()
        (base / "input" / "pictures").mkdir()
        for name, size in (("a", (96, 64)), ("b", (64, 80))):
            Image.effect_noise(size, 60).convert("RGB").save(base / "input" / "pictures" / f"{name}.png")
        (base / "user" / "default").mkdir(parents=True)
        (base / "user" / "default" / "comfy.settings.json").write_text(json.dumps(SETTINGS), "utf-8")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        flags = "--cpu --disable-api-nodes --disable-auto-launch --database-url sqlite:///:memory:".split()
        command = [sys.executable, "main.py", *flags, "--base-directory", str(base), "--port", str(self.port)]
        self.log = base / "log.txt"
        environment = {**os.environ, "IQGUIDE_TESTS": str(ROOT / "tests")}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=os.environ["COMFYUI_DIR"], env=environment, stdout=log, stderr=subprocess.STDOUT
            )

    def get(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as answer:
            return answer.read().decode()

    def wait(self, seconds=400):
        for _ in range(seconds):
            assert self.process.poll() is None, self.log.read_text("utf-8")[-3000:]
            try:
                return self.get("/system_stats")
            except (urllib.error.URLError, ConnectionError):
                time.sleep(1)
        raise AssertionError(self.log.read_text("utf-8")[-3000:])

    def run(self, prompt, seconds=300):
        """Outputs of all output nodes; fails with the server's message."""
        body = json.dumps({"prompt": prompt}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/prompt", body)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                number = json.loads(answer.read())["prompt_id"]
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from error
        for _ in range(2 * seconds):
            history = json.loads(self.get(f"/history/{number}"))
            if number in history:
                assert history[number]["status"]["status_str"] == "success", history[number]["status"]
                return history[number]["outputs"]
            time.sleep(0.5)
        raise AssertionError("the workflow did not end")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("comfy"))
    try:
        server.wait()
        yield server
    finally:
        server.process.terminate()
        server.process.wait(30)


@pytest.fixture(scope="module")
def object_info(server):
    return json.loads(server.get("/object_info"))


def test_the_pack_loads_without_a_word(server, object_info):
    log = server.log.read_text("utf-8")
    ours = [line for line in log.splitlines() if FOLDER in line]
    assert len(ours) == 1, ours  # the line of the import times
    (seconds,) = re.findall(r" ([\d.]+) seconds: ", ours[0])
    assert float(seconds) < 1.0  # torch is there already
    assert len([name for name in object_info if name.startswith("IQGuide")]) == 9


def test_help_and_translations_are_served(server, object_info):
    for name in (name for name in object_info if name.startswith("IQGuide")):
        assert server.get(f"/extensions/{FOLDER}/docs/{name}.md").startswith("# ")
    texts = json.loads(server.get("/i18n"))
    assert texts["zh"]["nodeDefs"]["IQGuideScoreImages"]["display_name"] == "图像打分"


def test_the_workflows_are_offered(server):
    offered = json.loads(server.get("/workflow_templates"))
    assert set(offered[FOLDER]) == {path.stem for path in (ROOT / "workflows").glob("*.json")}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_fit_the_live_object_info(path, object_info):
    for node in json.loads(path.read_text("utf-8"))["nodes"]:
        known = object_info[node["type"]]
        inputs = {**known["input"].get("required", {}), **known["input"].get("optional", {})}
        for entry in node["inputs"]:
            kind = inputs[entry["name"]][0]
            assert entry["type"] == ("COMBO" if isinstance(kind, list) else kind)
        outputs = [entry["type"] for entry in node["outputs"]]
        assert outputs == known["output"][: len(outputs)]  # ComfyUI's own nodes gain some: those of the oldest version
        assert {entry["name"] for entry in node["inputs"] if entry["link"]} >= {
            name for name in known["input"].get("required", {}) if not is_widget(inputs[name])
        }


def is_widget(given):
    return isinstance(given[0], list) or given[0] in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


@pytest.mark.parametrize("path", API, ids=lambda path: path.stem)
def test_workflows_run(path, server):
    outputs = server.run(json.loads(path.read_text("utf-8")))
    assert outputs
    for images in (output["images"] for output in outputs.values() if "images" in output):
        for image in images:
            folder = server.base / {"temp": "temp", "output": "output"}[image["type"]]
            with Image.open(folder / image["subfolder"] / image["filename"]) as picture:
                assert min(picture.size) >= 32


def test_strength_zero_gives_the_same_picture(server):
    prompt = json.loads((ROOT / "tests" / "workflows_api" / "guided_sd.json").read_text("utf-8"))
    (guide,) = (node for node in prompt.values() if node["class_type"] == "IQGuideQualityGuidance")
    (sampler,) = (node for node in prompt.values() if node["class_type"] == "KSampler")
    prompt = {key: node for key, node in prompt.items() if node["class_type"] != "IQGuideGuidanceReport"}

    def picture():
        outputs = server.run(prompt)
        (image,) = next(output["images"] for output in outputs.values() if "images" in output)
        with Image.open(server.base / "output" / image["subfolder"] / image["filename"]) as opened:
            return opened.convert("RGB").tobytes()

    guided = picture()
    guide["inputs"]["strength"] = 0.0
    without = picture()
    sampler["inputs"]["model"] = guide["inputs"]["model"]
    assert picture() == without
    assert guided != without


def test_the_picture_is_saved_while_quality_guidance_is_bypassed(server):
    prompt = json.loads((ROOT / "tests" / "workflows_api" / "guided_sd.json").read_text("utf-8"))
    (number,) = (number for number, node in prompt.items() if node["class_type"] == "IQGuideQualityGuidance")
    source = prompt.pop(number)["inputs"]["model"]
    (sampler,) = (node for node in prompt.values() if node["class_type"] == "KSampler")
    sampler["inputs"]["seed"] += 1  # what another test has run already is not run again
    for node in prompt.values():  # as the frontend sends it: what was connected to the node is connected to its MODEL
        node["inputs"] |= {name: source for name, value in node["inputs"].items() if value == [number, 0]}
    outputs = server.run(prompt)
    saved, report = (
        next(outputs[number]["images"] for number, node in prompt.items() if node["class_type"] == name)
        for name in ("SaveImage", "IQGuideGuidanceReport")
    )
    assert [image["type"] for image in (*saved, *report)] == ["output", "temp"]


def test_each_report_is_of_the_sampler_that_it_follows(server):
    """Two samplers of one guided MODEL, of three and of five steps, and a report after the picture of each."""
    prompt = json.loads((ROOT / "tests" / "workflows_api" / "guided_sd.json").read_text("utf-8"))
    (first,) = (number for number, node in prompt.items() if node["class_type"] == "KSampler")
    (decode,) = (number for number, node in prompt.items() if node["class_type"] == "VAEDecode")
    (report,) = (number for number, node in prompt.items() if node["class_type"] == "IQGuideGuidanceReport")
    prompt[first]["inputs"] |= {"steps": 3, "seed": 77}
    prompt[report]["inputs"]["after"] = [decode, 0]
    second = json.loads(json.dumps(prompt[first]))
    second["inputs"] |= {"steps": 5, "latent_image": [first, 0], "denoise": 0.9}
    prompt |= {
        "901": second,
        "902": json.loads(json.dumps(prompt[decode])),
        "903": json.loads(json.dumps(prompt[report])),
    }
    prompt["902"]["inputs"]["samples"] = ["901", 0]
    prompt["903"]["inputs"]["after"] = ["902", 0]
    shown = {"904": [report, 1], "905": ["903", 1]}
    prompt |= {number: {"class_type": "PreviewAny", "inputs": {"source": link}} for number, link in shown.items()}

    def steps():
        outputs = server.run(prompt)
        return [len(json.loads(outputs[number]["text"][0])[0]) for number in shown]

    assert steps() == [3, 5]
    prompt["901"]["inputs"]["steps"] = 4  # the first sampler and its report are not run again
    assert steps() == [3, 4]


@pytest.fixture(scope="module")
def page(server):
    """ComfyUI's own frontend in a headless Chromium; CHROMIUM names the program if it is not on the path."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("there is no Chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1600, "height": 900})
        page.set_default_timeout(400_000)
        page.goto(f"http://127.0.0.1:{server.port}/", wait_until="domcontentloaded")
        page.wait_for_function("window.app && window.app.canvas && window.app.extensionManager?.command")
        page.wait_for_timeout(5_000)  # it opens a workflow of its own
        yield page
        browser.close()


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_the_frontend_shows_the_workflows(path, page):
    """With IQGUIDE_SCREENSHOTS=folder it leaves pictures there."""
    workflow = json.loads(path.read_text("utf-8"))
    page.evaluate("workflow => window.app.loadGraphData(workflow)", workflow)
    shown = page.evaluate("() => JSON.parse(JSON.stringify(window.app.graph.serialize()))")
    assert {str(node["id"]): node["type"] for node in shown["nodes"]} == {
        str(node["id"]): node["type"] for node in workflow["nodes"]
    }
    values = {str(node["id"]): node.get("widgets_values") or [] for node in shown["nodes"]}
    assert values == {str(node["id"]): node["widgets_values"] for node in workflow["nodes"]}
    assert joins(shown) == joins(workflow)
    wrong = "() => window.app.graph._nodes.filter(node => node.has_errors).map(node => node.type)"
    assert page.evaluate(wrong) == []
    if folder := os.environ.get("IQGUIDE_SCREENSHOTS"):
        page.evaluate("() => window.app.extensionManager.command.execute('Comfy.Canvas.FitView')")
        page.wait_for_timeout(3_000)
        page.screenshot(path=Path(folder) / f"{path.stem}.png")


def joins(workflow):
    """Links by the names of the inputs: the frontend puts those of widgets last."""
    nodes = {str(node["id"]): node for node in workflow["nodes"]}
    ends = [map(str, link[1:5]) for link in workflow["links"]]
    return sorted((start, slot, end, nodes[end]["inputs"][int(entry)]["name"]) for start, slot, end, entry in ends)
