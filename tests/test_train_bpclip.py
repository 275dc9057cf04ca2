"""Training of a whole BPCLIP for a time."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from made_photographs import training_folder

import iqguide
from iqguide.models.adjectives import ENCODER, read_pairs
from iqguide.models.bpclip_backbone import LitePyramid
from iqguide.models.bpclip_config import FULL
from iqguide.training import dimensions, train_bpclip

PAIRS = read_pairs()
FEW = "--minutes=0.03 --kinds=1 --photographs=1 --levels=2 --crop=64 --scored=3 --scored-crop=64".split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = training_folder(tmp_path_factory.mktemp("data"))
    other = training_folder(tmp_path_factory.mktemp("other"), side=128) / "live-challenge"
    (root / "biq2021").mkdir()
    (other / "images").rename(root / "biq2021" / "images")
    rows = [line.split(",") for line in (other / "mos.csv").read_text().splitlines()[1:]]
    scores = [f"{name},{float(mos) / 100}" for name, mos, _ in rows]
    (root / "biq2021" / "mos.csv").write_text("\n".join(["image,mos", *scores]) + "\n", "utf-8")
    return root


@pytest.fixture(scope="module")
def trunk(tmp_path_factory):
    """Stands for the published file: the backbone's tensors in its order, others behind them."""
    path = tmp_path_factory.mktemp("trunk") / "trunk.pt"
    torch.manual_seed(5)
    torch.save(LitePyramid().state_dict() | {"head": torch.zeros(3)}, path)
    return path


def test_the_whole_network_is_trained_for_a_time(folder, trunk, tmp_path, on_the_cpu):
    train_bpclip.main([f"--data={folder}", f"--trunk={trunk}", f"--out={tmp_path}", *FEW])
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["last"]["steps"] >= 1
    assert {"ranking", "severity", "meaning", "mos"} <= record["last"].keys()
    trained = iqguide.create_model("bpclip-mini", weights=tmp_path / "bpclip-mini.safetensors")
    assert trained(torch.rand(1, 3, 64, 64)).isfinite().all()
    assert trained.config.text_source == ENCODER


def test_ladders_are_drawn_with_what_their_words_should_say(folder, on_the_cpu):
    args = train_bpclip.parse(["--data=" + str(folder), "--out=", "--kinds=5", "--photographs=2", "--crop=64"])
    material = train_bpclip.gather(args, PAIRS, torch.device("cpu"))
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    images, severities, wanted = train_bpclip.draw_ladders(material, args, rng, generator)
    assert images.shape == (10 * 4, 3, 64, 64)
    assert 0 <= images.min() < images.max() <= 1
    assert severities.shape == (10, 4)
    assert (severities.diff(dim=1) > 0).all()
    torch.testing.assert_close(wanted[:, 0], torch.full((10, 20), dimensions.BEST))
    means = wanted @ dimensions.averages(PAIRS)
    assert (means.diff(dim=1).amin(2) < 0).all()


def test_the_full_size_takes_the_same_way(folder, tmp_path, on_the_cpu):
    """A ResNet and CLIP's text tower in the place of their own sizes."""
    sizes = {"backbone": "resnet18", "channels": [16] * 4, "width": 16, "heads": 2, "mask_width": 8, "text_dim": 16}
    config = dataclasses.replace(FULL, **sizes | {"channels": (16,) * 4})
    torch.save(iqguide.models.BPCLIP(config, torch.randn(40, 16)).backbone.state_dict(), tmp_path / "resnet.pt")
    flags = [f"--sizes={json.dumps(sizes)}", f"--trunk={tmp_path / 'resnet.pt'}", f"--data={folder}"]
    train_bpclip.main(["--model=bpclip", *flags, f"--out={tmp_path}", *FEW])
    trained = iqguide.create_model("bpclip", weights=tmp_path / "bpclip.safetensors")
    assert trained.config.backbone == "resnet18"
    assert trained(torch.rand(1, 3, 64, 64)).isfinite().all()
