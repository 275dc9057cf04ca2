"""The commands of the repository and the guards of the suite itself."""

import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")


def test_no_test_reaches_the_network():
    with socket.socket() as client, pytest.raises(RuntimeError, match="do not use the network"):
        client.connect(("192.0.2.1", 80))  # RFC 5737: an address of no machine


def test_this_machine_can_be_reached():
    with socket.socket() as server, socket.socket() as client:
        server.bind(("127.0.0.1", 0))
        server.listen()
        client.connect(server.getsockname())


def test_first_commands_of_the_readme_are_make_targets():
    block = re.search(r"```\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL).group(1)
    assert re.findall(r"^make (\w+)", block, re.MULTILINE) == ["demo", "test"]
    for target in ("demo", "test"):
        assert re.search(rf"^{target}: \$\(READY\)", MAKEFILE, re.MULTILINE)


def test_phony_targets_exist():
    phony = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE).group(1).split()
    assert [name for name in phony if not re.search(rf"^{name}:", MAKEFILE, re.MULTILINE)] == []


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def copy_makefile(folder: Path) -> None:
    shutil.copy2(ROOT / "Makefile", folder)
    (folder / "pyproject.toml").touch()


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    # `make test` hands its own flags down to a make started by a test.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    command = ["make", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


def script(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n" + body, "utf-8")
    path.chmod(0o755)
    return path


@needs_make
def test_make_refuses_an_old_python(tmp_path):
    old = script(tmp_path / "old", '[ "$1" = --version ] && echo Python 3.9.1 && exit 0\nexit 1\n')
    copy_makefile(tmp_path)
    done = make(tmp_path, "test", f"PYTHON={old}")
    assert done.returncode != 0
    assert "Python 3.10 or newer" in done.stderr
    assert "Python 3.9.1" in done.stderr
    assert not (tmp_path / ".venv").exists()


@needs_make
def test_make_installs_once_and_again_when_the_dependencies_change(tmp_path):
    script(tmp_path / ".venv/bin/python", "echo installed >> installs\n")
    script(tmp_path / ".venv/bin/pytest", "echo ran >> runs\n")
    copy_makefile(tmp_path)
    make(tmp_path, "test").check_returncode()
    make(tmp_path, "test").check_returncode()
    assert (tmp_path / "installs").read_text() == "installed\n"
    assert (tmp_path / "runs").read_text() == "ran\nran\n"
    # The timestamp of a file system may be coarse: a minute is later on all of them.
    stamp = (tmp_path / ".venv/.ready").stat().st_mtime
    os.utime(tmp_path / "pyproject.toml", (stamp + 60, stamp + 60))
    make(tmp_path, "test").check_returncode()
    assert (tmp_path / "installs").read_text() == "installed\ninstalled\n"


@needs_make
def test_the_suite_runs_in_a_fresh_environment_for_each_set_of_versions(tmp_path):
    """What is installed is recorded; the suite fails with one of the sets."""
    python = script(
        tmp_path / "python",
        """[ "$2" = venv ] || exit 0
        mkdir -p $3/bin && cp fake $3/bin/python && cp fake $3/bin/pytest
        echo environment >> log\n""",
    )
    script(
        tmp_path / "fake",
        """[ "$3" = install ] && cat build/constraints.txt >> log
        [ "$2" = pip ] && exit 0
        echo suite $* >> log; ! grep -q torch==2.14.1 build/constraints.txt\n""",
    )
    copy_makefile(tmp_path)
    (tmp_path / "requirements.txt").write_text("torch>=2.4\nnumpy>=1.24\n")
    done = make(tmp_path, "test-versions", f"PYTHON={python}", "ARGS=-x")
    assert done.returncode != 0
    assert done.stderr.splitlines()[-2] == "The suite fails with: torch==2.14.1"
    environment, suite = "environment", "suite -x"
    lowest = [environment, "torch==2.4", "numpy==1.24", suite]
    assert (tmp_path / "log").read_text().splitlines() == [
        *lowest,
        environment,
        "torch==2.14.1",
        suite,
        environment,
        suite,
    ]
    assert not (tmp_path / "build/fresh").exists()
    make(tmp_path, "test-versions", f"PYTHON={python}", "VERSIONS=newest").check_returncode()


@needs_make
def test_a_failed_install_is_tried_again(tmp_path):
    script(tmp_path / ".venv/bin/python", "exit 1\n")
    copy_makefile(tmp_path)
    assert make(tmp_path, "setup").returncode != 0
    assert not (tmp_path / ".venv/.ready").exists()
