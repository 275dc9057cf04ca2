"""The code blocks of the README run, and its commands, files and links exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")])
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def pipe(tmp_path):
    """A real Stable Diffusion pipeline of a few thousand parameters that takes prompts."""
    from tiny_pipelines import SIZE, prompted_pipeline

    pipe = prompted_pipeline(tmp_path)
    assert pipe.unet.config.sample_size * pipe.vae_scale_factor == SIZE
    return pipe


def block(call: str) -> str:
    (found,) = (code for code in BLOCKS if call in code)
    return found


def in_few_steps(code: str) -> str:
    return code.replace('at dusk"', 'at dusk", num_inference_steps=4')


def test_every_block_is_run_below():
    calls = ("load_images(", "best_of_n(", "with guided(")
    assert sorted(BLOCKS) == sorted(block(call) for call in calls)


def test_score_block(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png"):
        Image.effect_noise((64, 40), 60).convert("RGB").save(name)
    names = {}
    exec(block("load_images("), names)
    assert names["images"].shape[:3] == (2, 3, 512)
    assert "tensor(" in capsys.readouterr().out


def test_best_of_n_block(tmp_path, monkeypatch, pipe):
    monkeypatch.chdir(tmp_path)
    names = {"pipe": pipe}
    exec(in_few_steps(block("best_of_n(")), names)
    assert len(names["ranking"].scores) == 8
    assert names["ranking"].scores.argmax() == names["ranking"].order[0]
    with Image.open("best.png") as best:
        assert best.size == tuple(names["ranking"].best.shape[:0:-1])


def test_guided_block(pipe):
    settings = {"num_inference_steps": 4, "output_type": "pt"}
    plain = pipe("a lighthouse", generator=torch.manual_seed(0), **settings).images
    names = {"pipe": pipe}
    exec(in_few_steps(block("with guided(")), names)
    assert isinstance(names["image"], Image.Image)
    again = pipe("a lighthouse", generator=torch.manual_seed(0), **settings).images
    assert torch.equal(plain, again)  # the pipeline is left as it was found


def test_commands_of_the_table_exist():
    commands = re.findall(r"^\| `iqguide (\w+)", README, re.MULTILINE)
    assert {"demo", "score", "rank", "sample", "models", "env"} <= set(commands)
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-m", "iqguide.cli", command, "--help"], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        (row,) = re.findall(rf"^\| `iqguide {command}([^`]*)`", README, re.MULTILINE)
        options = re.findall(r"--[a-z-]+", row)
        assert [option for option in options if option not in done.stdout] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_local_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text("utf-8"))
    local = [target for target in targets if not target.startswith(("http://", "https://", "mailto:"))]
    assert [target for target in local if not (page.parent / target).exists()] == []


def test_notices_of_the_training_data_are_there():
    notice = (ROOT / "NOTICE").read_text("utf-8")
    required = (
        "Copyright (c) 2015 The University of Texas at Austin",
        "Permission is hereby granted, without written agreement",
        "Massive Online Crowdsourced Study of Subjective and Objective",
        "LIVE In the Wild Image Quality Challenge Database",
        "Cloudinary",
        "Unsplash License",
        "CC0 1.0",
    )
    assert [text for text in required if text not in notice] == []
    assert "CC BY-SA 4.0" in README
    assert README.count("D. Ghadiyaram and A.C. Bovik") == 2
