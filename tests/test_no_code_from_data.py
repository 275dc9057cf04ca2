"""Nothing that is read may run code: pickles in every file of a checkpoint, of a folder of weights and of the cache."""

import ast
import dataclasses
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from made_photographs import training_folder

import iqguide
from iqguide.errors import WeightsError
from iqguide.models.cache import default_path, find_weights
from iqguide.models.catalog import get_spec
from iqguide.models.weights import read_weights
from iqguide.training import finetune
from iqguide.training.config import FinetuneConfig
from iqguide.training.run_settings import Started

ROOT = Path(__file__).resolve().parents[1]
SMALL = {
    **{"crop": 48, "scored_crop": 48, "ladders": 1, "ladder_levels": 3, "scored": 3, "aligned": 0, "cut": 1},
    **{"steps": 1, "mixed_precision": "no", "measure": False},
}


class Planted:
    """Unpickling one makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def plain_pickle(path, mark):
    path.write_bytes(pickle.dumps({"state": Planted(mark)}))


def torch_archive(path, mark):
    torch.save({"state": Planted(mark)}, path)


PLANTS = [plain_pickle, torch_archive]


@pytest.fixture
def mark(tmp_path):
    """The file that a planted pickle makes; it may not be there after the test."""
    path = tmp_path / "ran"
    yield path
    assert not path.exists()


def test_the_plant_works(tmp_path):
    for number, plant in enumerate(PLANTS):
        plant(tmp_path / "file", tmp_path / f"ran-{number}")
        torch.load(tmp_path / "file", weights_only=False) if number else pickle.loads((tmp_path / "file").read_bytes())
        assert (tmp_path / f"ran-{number}").exists()


# --- checkpoints ---


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run with a running average: every kind of file is there."""
    data = training_folder(tmp_path_factory.mktemp("data"))
    config = FinetuneConfig(data=data, out=tmp_path_factory.mktemp("runs") / "run", **SMALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        finetune.train(config)
    return config


FILES = ("average.safetensors", "model.safetensors", "optimizer.safetensors", "random-0.safetensors")
JSONS = ("settings.json", "state.json")


def test_a_checkpoint_has_these_files_and_no_others(run):
    checkpoint = run.out / "checkpoint-0000001"
    assert sorted(path.name for path in checkpoint.iterdir()) == sorted([*FILES, *JSONS])
    for path in checkpoint.iterdir():
        content = path.read_bytes()
        assert not content.startswith((b"\x80", b"PK")), path  # how pickles and torch's archives begin


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
@pytest.mark.parametrize("name", [*FILES, *JSONS])
def test_a_checkpoint_from_elsewhere_runs_no_code(run, tmp_path, mark, name, plant):
    shutil.copytree(run.out, tmp_path / "copy")
    plant(tmp_path / "copy" / "checkpoint-0000001" / name, mark)
    with pytest.raises(ValueError, match=r"checkpoint-0000001 cannot be read"):
        finetune.prepare(dataclasses.replace(run, out=tmp_path / "copy"), Started(resume=True))


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
def test_files_of_other_programs_in_a_checkpoint_are_not_looked_at(run, tmp_path, mark, plant):
    """Those that accelerate writes, and the ones of earlier versions among them."""
    shutil.copytree(run.out, tmp_path / "copy")
    names = ("optimizer.bin", "scheduler.bin", "sampler.bin", "scaler.pt", "random_states_0.pkl", "rng.npy")
    for name in (*names, "custom_checkpoint_0.pkl", "pytorch_model.bin", "optimizer.pt"):
        plant(tmp_path / "copy" / "checkpoint-0000001" / name, mark)
    prepared = finetune.prepare(dataclasses.replace(run, out=tmp_path / "copy"), Started(resume=True))
    assert prepared[-1].step == 1


@pytest.mark.usefixtures("on_the_cpu")
def test_a_checkpoint_of_an_earlier_version_is_refused_in_one_sentence(run, tmp_path, mark):
    folder = tmp_path / "copy" / "checkpoint-0000001"
    folder.mkdir(parents=True)
    shutil.copy(run.out / "checkpoint-0000001/settings.json", folder)
    torch_archive(folder / "optimizer.bin", mark)
    with pytest.raises(FileNotFoundError, match=r"has no state\.json"):
        finetune.prepare(dataclasses.replace(run, out=tmp_path / "copy"), Started(resume=True))


# --- weights ---


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.pt", "w.bin", "w.ckpt", "w"])
def test_a_file_of_weights_runs_no_code(tmp_path, mark, name, plant):
    plant(tmp_path / name, mark)
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        read_weights(tmp_path / name)
    for model in ("tiny", "qualiclip", "clipiqa", "bpclip-mini"):
        with pytest.raises(WeightsError):
            iqguide.create_model(model, weights=tmp_path / name)


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "pytorch_model.bin"])
def test_a_folder_of_weights_runs_no_code(tmp_path, mark, name, plant):
    folder = tmp_path / "saved"
    iqguide.create_model("tiny").save_pretrained(folder)
    plant(folder / name, mark)
    kind = type(iqguide.create_model("tiny"))
    if name == "model.safetensors":
        with pytest.raises(WeightsError):
            kind.from_pretrained(folder)
    else:  # never read as anything but text, if at all
        try:
            kind.from_pretrained(folder)
        except (ValueError, WeightsError):  # no JSON
            pass


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
@pytest.mark.parametrize("ending", ["", ".json"], ids=["weights", "record"])
def test_the_cache_runs_no_code(tmp_path, monkeypatch, mark, ending, plant):
    monkeypatch.setenv("IQGUIDE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("IQGUIDE_OFFLINE", "1")
    spec = get_spec("qualiclip")
    path = default_path(spec)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"PK\x03\x04 as an archive begins")
    plant(path.with_name(path.name + ending), mark)
    with pytest.raises(WeightsError):
        iqguide.create_model("qualiclip")
    with pytest.raises(WeightsError):
        read_weights(find_weights(spec))


# --- the source ---


def loaders(source: str) -> list[str]:
    """Calls that can run code from a file: (what, line)."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name, keywords = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            safe = {
                "torch.load": keywords.get("weights_only") == "True",
                "np.load": keywords.get("allow_pickle", "False") == "False",
                "numpy.load": keywords.get("allow_pickle", "False") == "False",
            }
            if not safe.get(name, True) or name in FORBIDDEN or name.endswith(FORBIDDEN_METHODS):
                found.append(f"{name}, line {node.lineno}")
            if keywords.get("trust_remote_code") == "True" or keywords.get("allow_pickle") == "True":
                found.append(f"{name} with a switch that allows code, line {node.lineno}")
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found += [f"import of {name}, line {node.lineno}" for name in names if name.split(".")[0] in MODULES]
    return found


FORBIDDEN = {
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "eval", "exec", "compile", "torch.jit.load", "torch.hub.load"),
    *("torch.package.PackageImporter", "joblib.load", "yaml.load", "yaml.unsafe_load", "pd.read_pickle"),
}
FORBIDDEN_METHODS = (".load_state", ".read_pickle", ".load_extern")  # accelerator.load_state reads pickles
MODULES = {"dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml"}


def package_sources() -> list[Path]:
    rooms = ("models", "guidance", "search", "nodes", "training", "cli", "recipes", "workflows")
    return sorted([*ROOT.glob("*.py"), *(path for room in rooms for path in (ROOT / room).rglob("*.py"))])


def test_nothing_in_the_package_and_its_recipes_loads_pickles():
    assert {str(path): calls for path in package_sources() if (calls := loaders(path.read_text("utf-8")))} == {}


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "import pickle\npickle.loads(data)",
        "accelerator.load_state(folder)",
        "import joblib",
        "from dill import loads",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "torch.jit.load(path)",
    ],
)
def test_the_reader_sees_them(source):
    assert loaders(source)


@pytest.mark.parametrize(
    "source", ["torch.load(path, weights_only=True)", "np.load(path)", "import pickle", "load_file(p)"]
)
def test_the_reader_lets_others_pass(source):
    assert not loaders(source)
