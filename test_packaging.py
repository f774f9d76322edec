"""The wheel and the source distribution: what is in them, and that they work where they are
installed. Slow, and pip needs a package index."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path
from typing import Any
from typing import NamedTuple

import pytest

import python_env
from conftest import HERE

pytestmark = pytest.mark.slow

BUILD = """
import sys
from setuptools import build_meta
folder = sys.argv[1]  # before setuptools sets it
build_meta.build_sdist(folder)
build_meta.build_wheel(folder)
"""
NOT_SHIPPED = {".gitignore"}
UNTRACKED = (".git", ".venv", "build", "dist", "*.egg-info", "__pycache__", ".*_cache")


def run(*command: str | Path, **options: Any) -> str:
    """What a command prints, which must succeed."""
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600, **options)
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"
    return ended.stdout


def make_venv(folder: Path, *requirements: str | Path) -> Path:
    """The interpreter of a new virtual environment that has these installed."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *requirements)
    return python


class Built(NamedTuple):
    wheel: Path
    sdist: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("built")
    shutil.copytree(HERE, folder / "source", ignore=shutil.ignore_patterns(*UNTRACKED))
    builder = make_venv(folder / "builder", "setuptools>=77")
    run(builder, "-c", BUILD, folder, cwd=folder / "source")
    (wheel,) = folder.glob("*.whl")
    (sdist,) = folder.glob("*.tar.gz")
    return Built(wheel, sdist)


@pytest.fixture(scope="module")
def installed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a virtual environment that has the wheel."""
    return make_venv(tmp_path_factory.mktemp("user") / "venv", built.wheel)


def metadata(wheel: zipfile.ZipFile) -> Message:
    (name,) = [name for name in wheel.namelist() if name.endswith("/METADATA")]
    return Parser().parsestr(wheel.read(name).decode())


def test_the_wheel_has_the_module_and_its_stubs_and_nothing_else(built):
    with zipfile.ZipFile(built.wheel) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        source = (HERE / "python_env.py").read_bytes()
        assert names == {"python_env.py", "python_env-stubs/__init__.pyi"}
        assert all(wheel.read(name) == source for name in names)
        assert any(name.endswith("/licenses/LICENSE") for name in wheel.namelist())
        said = metadata(wheel)
    assert built.wheel.name == f"openenv_python_env-{python_env.__version__}-py3-none-any.whl"
    assert said["Name"] == "openenv-python-env"
    assert said["Version"] == python_env.__version__
    assert said["License-Expression"] == "MIT"
    assert said["Requires-Python"] == ">=3.10"
    assert said["Project-URL"].startswith("OpenEnv, https://")
    required = [name for name in said.get_all("Requires-Dist", []) if "extra ==" not in name]
    assert required == ["websockets>=15"]


def test_the_source_distribution_has_all_that_git_has(built):
    if not (HERE / ".git").exists() or not shutil.which("git"):
        pytest.skip("this is no checkout, so nothing tells what should be there")
    tracked = set(run("git", "ls-files", cwd=HERE).splitlines()) - NOT_SHIPPED
    with tarfile.open(built.sdist) as archive:
        shipped = {member.name.partition("/")[2] for member in archive.getmembers()}
    assert tracked <= shipped, f"MANIFEST.in does not name {sorted(tracked - shipped)}"


def test_the_tests_run_from_the_source_distribution(built, tmp_path):
    with tarfile.open(built.sdist) as archive:
        archive.extractall(tmp_path)
    (source,) = tmp_path.iterdir()
    run(sys.executable, "-m", "pytest", "-q", "test_models.py", "test_formats.py", cwd=source)


def test_the_installed_wheel_plays_the_demo(installed, tmp_path):
    command = installed.with_name("python-env")
    assert run(command, "--version", cwd=tmp_path) == f"python-env {python_env.__version__}\n"
    assert "reward 1.00  done True" in run(command, "demo", cwd=tmp_path)
    where = run(installed, "-c", "import python_env; print(python_env.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parents[1])


def test_the_source_distribution_installs_the_same(built, tmp_path):
    python = make_venv(tmp_path / "venv", built.sdist)
    (site,) = (tmp_path / "venv" / "lib").glob("*/site-packages")
    assert (site / "python_env-stubs" / "__init__.pyi").read_bytes() == (
        site / "python_env.py"
    ).read_bytes()
    assert "reward 1.00  done True" in run(python, "-m", "python_env", "demo", cwd=tmp_path)


# ── Type checkers, which find the stubs ───────────────────────────────────────────────────────────

SCRIPT = """
from typing_extensions import assert_type

from python_env import PythonAction, PythonEnv, PythonObservation, PythonState, StepResult

with PythonEnv() as env:
    assert_type(env, PythonEnv)
    first = env.reset("ledger", seed=1)
    result = env.step("1 + 1")
    assert_type(first, StepResult[PythonObservation])
    assert_type(result.observation, PythonObservation)
    assert_type(result.observation.tests_passed, int)
    assert_type(result.reward, float | None)
    assert_type(env.step(PythonAction("1"), timeout_s=2.0).done, bool)
    assert_type(env.state(), PythonState)
assert_type(PythonEnv.from_docker_image("image"), PythonEnv)
assert_type(PythonEnv.from_hub("owner/name"), PythonEnv)
assert_type(PythonEnv().sync().connect(), PythonEnv)
"""
WRONG = """
from python_env import PythonAction, PythonEnv

PythonEnv().step(3)
PythonAction("1", tiemout_s=3)
PythonEnv().nonsense
"""
CHECKERS = {
    "mypy": ("--strict", "--python-executable"),
    "pyright": ("--pythonpath",),
}


def check(checker: str, python: Path, script: Path) -> subprocess.CompletedProcess[str]:
    """What a type checker of the tests' environment says of a script that `python` would run."""
    pytest.importorskip(checker)
    command = (sys.executable, "-m", checker, *CHECKERS[checker], python, script.name)
    folder = script.parent
    return subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=folder)


@pytest.mark.parametrize("checker", CHECKERS)
def test_a_type_checker_knows_the_installed_module(installed, tmp_path, checker):
    every = "".join(f"from python_env import {name}\n" for name in python_env.__all__)
    (tmp_path / "script.py").write_text(every + SCRIPT)
    said = check(checker, installed, tmp_path / "script.py")
    assert said.returncode == 0, said.stdout + said.stderr


@pytest.mark.parametrize("checker", CHECKERS)
def test_a_type_checker_finds_what_is_wrong(installed, tmp_path, checker):
    (tmp_path / "script.py").write_text(WRONG)
    said = check(checker, installed, tmp_path / "script.py")
    found = [line for line in said.stdout.splitlines() if "error:" in line or " - error" in line]
    assert said.returncode == 1
    assert len(found) == 3, said.stdout
    for line, number in zip(found, (4, 5, 6), strict=True):
        assert f"script.py:{number}:" in line
