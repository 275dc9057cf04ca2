"""What is installed and how it is found: the wheel, the requirements, a clone under ComfyUI's name."""

import ast
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest depends on it there

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
NOT_PACKAGED = {"tests", "recipes", "benchmarks", "docs", "web", "build", "dist", "out", "runs"}
MB = 1024 * 1024


def run(*command, cwd=None) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def source_files() -> list[Path]:
    """Every file of the repository, as git would clone it once it is committed; relative to the root."""
    if (ROOT / ".git").exists():
        listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT).split("\0")
        return [Path(name) for name in listed if name and (ROOT / name).is_file()]
    hidden = {".venv", "build", "dist", "out", "runs", "__pycache__"}
    found = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
    return [path for path in found if not hidden & set(path.parts)]


def copy_repository(target: Path) -> Path:
    for name in source_files():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name)
    return target


def expected_in_wheel() -> set[str]:
    """Modules of the listed packages, the assets, the workflows and the typing marker."""
    wanted = set()
    for path in source_files():
        in_package = path.suffix == ".py" and path.parts[0] not in NOT_PACKAGED
        in_data = path.parts[:2] == ("models", "assets") or path.parts[0] == "workflows"
        in_data |= path.name in ("py.typed", "adjectives.csv")
        if in_package or in_data:
            wanted.add(f"iqguide/{path.as_posix()}")
    return wanted


def test_package_list_equals_the_folders():
    modules = [path for path in source_files() if path.parts[0] not in NOT_PACKAGED]
    folders = {path.parent.as_posix() for path in modules if path.name == "__init__.py"}
    names = {"iqguide" if folder == "." else f"iqguide.{folder.replace('/', '.')}" for folder in folders}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == names


def test_requirements_equal_the_dependencies():
    lines = (ROOT / "requirements.txt").read_text("utf-8").split("\n")
    assert [line for line in lines if line and not line.startswith("#")] == PROJECT["project"]["dependencies"]


def test_dependencies_have_no_upper_bound():
    assert [line for line in PROJECT["project"]["dependencies"] if re.search(r"<|==|~=|!=|,", line)] == []


def test_extras_exist():
    assert {"dev", "formats", "train", "xformers"} <= set(PROJECT["project"]["optional-dependencies"])


def test_version_is_written_in_one_place():
    tree = ast.parse((ROOT / "__init__.py").read_text("utf-8"))
    values = [
        node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__version__"
    ]
    assert len(values) == 1
    assert re.fullmatch(r"\d+\.\d+\.\d+", values[0])
    assert "version" not in PROJECT["project"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "iqguide.__version__"}
    assert PROJECT["tool"]["comfy"]["version"]["path"] == "__init__.py"


def test_bundled_files_are_small():
    sizes = {path: (ROOT / path).stat().st_size for path in source_files() if path.parts[:2] == ("models", "assets")}
    assert {str(path): size for path, size in sizes.items() if size > 20 * MB} == {}
    assert sum(sizes.values()) <= 40 * MB


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    source = copy_repository(tmp_path_factory.mktemp("source"))
    target = tmp_path_factory.mktemp("wheel")
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--quiet")
    run(sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", target, source)
    (path,) = target.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def clean_python(wheel, tmp_path_factory) -> Path:
    """A fresh virtual environment that holds the wheel and sees the dependencies of this one, nothing else of it."""
    venv = tmp_path_factory.mktemp("clean") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv)
    python = venv / "bin" / "python"
    options = ("--no-deps", "--no-index", "--disable-pip-version-check", "--quiet")
    run(sys.executable, "-m", "pip", "--python", python, "install", *options, wheel)
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    # A path in a .pth file is searched, but the .pth files in it are not read: an editable iqguide stays out of sight.
    paths = dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
    (Path(site) / "dependencies.pth").write_text("\n".join(paths) + "\n", "utf-8")
    return python


def test_wheel_holds_the_package_and_nothing_else(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")}
    info = {name for name in names if ".dist-info/" in name}
    assert names - info == expected_in_wheel()
    assert {"LICENSE", "NOTICE"} <= {Path(name).name for name in info}


def test_wheel_states_its_version_and_command(wheel):
    import iqguide

    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        (commands,) = (name for name in archive.namelist() if name.endswith(".dist-info/entry_points.txt"))
        assert f"\nVersion: {iqguide.__version__}\n" in archive.read(metadata).decode()
        assert "iqguide = iqguide.cli:main" in archive.read(commands).decode()


def test_wheel_runs_in_a_clean_environment(clean_python, tmp_path):
    where = run(clean_python, "-c", "import iqguide; print(iqguide.__file__)", cwd=tmp_path).strip()
    assert Path(where).is_relative_to(clean_python.parents[1])
    code = "import iqguide, torch; print(iqguide.create_model('tiny')(torch.full((1, 3, 64, 64), 0.5)).shape[0])"
    assert run(clean_python, "-c", code, cwd=tmp_path).strip() == "1"


def test_command_of_the_wheel(clean_python, tmp_path):
    command = clean_python.with_name("iqguide")
    listed = run(command, "--help", cwd=tmp_path)
    assert [name for name in ("demo", "score", "rank", "sample", "models", "env") if name not in listed] == []
    models = run(command, "models", cwd=tmp_path)
    assert [name for name in ("tiny", "qualiclip", "clipiqa") if name not in models] == []


def test_help_does_not_import_torch(clean_python, tmp_path):
    code = (
        "import sys, iqguide.cli\n"
        "try:\n    iqguide.cli.main(['--help'])\n"
        "except SystemExit as end:\n    assert end.code in (0, None)\n"
        "assert 'torch' not in sys.modules"
    )
    run(clean_python, "-c", code, cwd=tmp_path)


LOAD_AS_COMFYUI_DOES = """
import importlib, importlib.util, pathlib, sys, torch

folder = pathlib.Path(sys.argv[1])
name = str(folder).replace(".", "_x_")  # so ComfyUI names the module of a custom node
spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
package = importlib.util.module_from_spec(spec)
sys.modules[name] = package
spec.loader.exec_module(package)

for path in sorted(folder.rglob("*.py")):
    parts = path.relative_to(folder).with_suffix("").parts
    if any(part.startswith("comfy") for part in parts):
        continue  # needs ComfyUI
    if parts[0] in {"cli", "models", "guidance", "search", "images", "rewards", "rerank", "training"}:
        importlib.import_module(".".join([name, *parts]).removesuffix(".__init__"))

model = package.create_model("tiny")
assert type(model).__module__.startswith(name), type(model).__module__
scores = model(torch.full((2, 3, 64, 64), 0.5))
assert scores.shape == (2,) and scores.isfinite().all()
assert "iqguide" not in sys.modules, "an absolute import inside the package"
"""


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    return copy_repository(tmp_path_factory.mktemp("custom_nodes.v1") / "ComfyUI-IQGuide")


def test_clone_loads_as_a_custom_node(clone, tmp_path):
    run(sys.executable, "-c", LOAD_AS_COMFYUI_DOES, clone, cwd=tmp_path)


def test_suite_runs_in_a_clone_of_that_name(clone):
    pytest_command = Path(sys.executable).with_name("pytest")
    out = run(pytest_command, "-q", "-p", "no:cacheprovider", "tests/test_architecture.py", "-k", "table", cwd=clone)
    assert re.search(r"\d+ passed", out)
