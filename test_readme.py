"""The README: each block of code does what it says, and what it promises is so.

A comment above a block tells how it is tried; see run_block(). A block without one is a failure.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from typing import NamedTuple

import pytest

from conftest import HERE
from conftest import Launched
from conftest import eventually
from conftest import graded
from python_env import BUILTIN_ROWS
from python_env import LIMITS
from python_env import build_parser
from test_inference import Api
from test_inference import completion

README = (HERE / "README.md").read_text("utf-8")


class Block(NamedTuple):
    """A block of code: how it is tried (the comment above it), its language, its text."""

    how: str
    language: str
    code: str

    @property
    def expected(self) -> str:
        """What it is to print: its comments that begin with an arrow."""
        return "\n".join(re.findall("# -> (.*)", self.code))


FENCED = re.compile(r"(?m)(?:^<!-- (.*) -->\n)?^```(\w+)\n((?:.*\n)*?)^```$")
BLOCKS = [Block(*found) for found in FENCED.findall(README)]


def blocks(how: str) -> list[Block]:
    """Those whose comment begins so."""
    return [block for block in BLOCKS if block.how.startswith(how)]


def test_every_block_is_tried_somewhere():
    assert len(BLOCKS) * 2 == len(re.findall("(?m)^```", README))
    places = ("test", "run by .ci/run", "by hand: test_trainers.py")
    assert [block.code for block in BLOCKS if not block.how.startswith(places)] == []


# ── Blocks that run here ──────────────────────────────────────────────────────────────────────────


class Stage:
    """A folder where the README's blocks run one after the other, with servers that go on."""

    def __init__(self, folder: Path, servers: contextlib.ExitStack) -> None:
        self.folder = folder
        self.servers = servers
        self.ports = {port: str(free_port()) for port in ("8000", "8001")}
        names = [name for name in os.environ if re.match("PYTHON_ENV_|MAX_CONCURRENT", name)]
        self.environment = {name: os.environ[name] for name in os.environ.keys() - names}
        self.environment["PYTHONPATH"] = str(HERE)
        for name in ("inference.py", "examples"):
            (folder / name).symlink_to(HERE / name)
        # The README says `python`, whatever the interpreter of these tests is called.
        python = folder / "bin" / "python"
        python.parent.mkdir()
        python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        python.chmod(0o755)
        self.environment["PATH"] = f"{python.parent}:{os.environ['PATH']}"

    def options(self) -> dict[str, Any]:
        streams = {"text": True, "stdin": subprocess.DEVNULL}
        return {"cwd": self.folder, "env": self.environment, **streams}

    def start(self, *arguments: str) -> None:
        """A server that goes on until the end; returns when it listens."""
        command = [sys.executable, *arguments]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, **self.options())
        self.servers.enter_context(server)
        self.servers.callback(server.terminate)
        assert server.stdout
        assert "http://" in server.stdout.readline()

    def run(self, *command: str) -> str:
        """What a command prints. It must end well."""
        done = subprocess.run(command, capture_output=True, timeout=60, **self.options())
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def moved(self, code: str) -> str:
        """The code with free ports in place of those that the README names."""
        return re.sub(r"(?<=\W)80[08][01]\b", lambda found: self.ports[found[0]], code)

    def run_block(self, block: Block) -> None:
        code = self.moved(block.code)
        saved = re.search(r"saved as ([\w.]+)(, and started)?", block.how)
        if saved:
            (self.folder / saved[1]).write_text(code)
            if saved[2]:
                self.start(saved[1])
        elif block.language == "text":
            command = re.search("of `python (.*)`", block.how)
            assert command
            assert self.run(sys.executable, *command[1].split()) == block.code.strip()
        elif block.language == "bash":
            if "curl" in code and not shutil.which("curl"):
                pytest.skip("there is no curl")
            assert self.run("bash", "-c", code) == block.expected
        else:
            assert self.run(sys.executable, "-c", code) == block.expected


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with contextlib.ExitStack() as servers:
        stage = Stage(tmp_path_factory.mktemp("readme"), servers)
        stage.start("-m", "python_env", "serve", "--port", stage.ports["8000"])
        yield stage


# In their order, because some use what an earlier one has saved.
RUNNABLE = [
    block
    for block in blocks("test")
    if not block.how.startswith(("test: beside formats", "test: on a", "test: with "))
]


@pytest.mark.parametrize("block", RUNNABLE, ids=lambda block: block.code.strip()[:40])
def test_a_block_prints_what_it_says(stage, block):
    stage.run_block(block)


def test_the_rows_of_all_formats_play(stage):
    (block,) = blocks("test: beside formats.jsonl")
    shutil.copy(HERE / "formats.jsonl", stage.folder)
    lines = stage.run(sys.executable, "-W", "ignore", "-c", block.code).splitlines()
    assert len(lines) > 20
    assert [line for line in lines if not line.startswith("1.0 ")] == []


def test_a_model_plays_the_server_by_the_command_of_the_readme(stage):
    pytest.importorskip("openai")
    (block,) = blocks("test: with a stand-in for the model")
    with Api(lambda asked: completion("```python\nx = 1\n```")) as api:
        stage.ports["8080"] = str(api.server.server_port)
        lines = stage.run("bash", "-c", stage.moved(block.code)).splitlines()
    listed = [line.split()[1] for line in lines if line.startswith("[START]")]
    assert listed == [f"task={row['task_id']}" for row in BUILTIN_ROWS]
    assert len([line for line in lines if line.startswith("[END]")]) == len(listed)


# ── Blocks that need more ─────────────────────────────────────────────────────────────────────────


def test_the_space_gets_all_that_its_image_is_made_of(tmp_path):
    (block,) = blocks("test: with a repository of its own for the Space")
    if not shutil.which("git"):
        pytest.skip("there is no git")
    shutil.copytree(HERE, tmp_path / "here", ignore=shutil.ignore_patterns(".git", ".venv*", "*_"))
    space = tmp_path / "space.git"
    subprocess.run(["git", "init", "-q", "--bare", str(space)], check=True)
    names = ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL")
    subprocess.run(
        ["bash", "-euc", re.sub(r"https://huggingface\S+", str(space), block.code)],
        cwd=tmp_path / "here",
        env={**os.environ, **dict.fromkeys(names, "somebody")},
        check=True,
        capture_output=True,
    )
    listing = ["git", "-C", str(space), "ls-tree", "--name-only", "HEAD"]
    pushed = subprocess.run(listing, check=True, capture_output=True, text=True).stdout.split()
    copied = " ".join(re.findall("(?m)^COPY (.*) ", (HERE / "Dockerfile").read_text())).split()
    needed = [name for name in copied if not name.endswith("*")]  # with a star: if there is one
    assert {*pushed} >= {"README.md", "Dockerfile", *needed}


@pytest.mark.docker
def test_the_docker_commands_serve_with_full_isolation():
    (block,) = blocks("test: on a Docker engine")
    engine = shutil.which("docker") and not subprocess.run(["docker", "version"]).returncode
    if not engine and "docker" not in os.environ.get("PYTHON_ENV_REQUIRED", ""):
        pytest.skip("no Docker engine answers")
    port = str(free_port())
    tag = f"python-env-readme-{os.getpid()}"
    code = block.code.replace("-p 127.0.0.1:8000", f"-p 127.0.0.1:{port}")
    code = re.sub(r"\bpython-env\b", tag, code).replace("docker run", f"docker run --name {tag}")
    with subprocess.Popen(["bash", "-euc", code], cwd=HERE, stdout=subprocess.DEVNULL) as running:
        try:
            health = eventually(lambda: get(f"http://127.0.0.1:{port}/health", running), 120)
            assert '"full":true' in health
        finally:
            subprocess.run(["docker", "stop", tag], capture_output=True)
            running.wait(20)
            subprocess.run(["docker", "rmi", "-f", tag], capture_output=True)


def get(url: str, running: subprocess.Popen[bytes]) -> str:
    """What a server says there, or nothing yet."""
    assert running.poll() is None
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return reply.read().decode()
    except OSError:
        time.sleep(0.2)
        return ""


# ── What it promises ──────────────────────────────────────────────────────────────────────────────

VECTOR = """\
class Vector:
    def __init__(self, x): self.x = x
    def scale(self, k): return Vector(self.x * k)
    def __mul__(self, k): return Vector(self.x * k)
    def __add__(self, k): return Vector(self.x + k)
def make(): return Vector(1)
"""
STACK = """\
class Stack:
    def __init__(self): self.items = []
    def push(self, item): self.items.append(item)
kept = []
def get(): return kept
"""

# Words of the README; the agent's code; tests that pass in the same process.
NOT_CROSSED = {
    "a seed": (
        "import random\ndef f(): return random.random()",
        "import random\nrandom.seed(1)\nx = random.random()\nrandom.seed(1)\nassert f() == x",
    ),
    "or of the code": (
        "import os\ndef f(): os.environ['NAME'] = 'x'",
        "import os\nf()\nassert os.environ['NAME'] == 'x'",
    ),
    "logging": (
        "import logging\ndef f(): logging.getLogger('a').warning('x')",
        "import logging\nseen = []\nclass Seen(logging.Handler):\n"
        "    def emit(self, record): seen.append(record)\n"
        "logging.getLogger('a').addHandler(Seen())\nf()\nassert seen",
    ),
    "`os.environ`": (
        "import os\ndef f(): return os.environ['NAME']",
        "import os\nos.environ['NAME'] = 'x'\nassert f() == 'x'",
    ),
    "files": (
        "def f(): return open('name').read()",
        "with open('name', 'w') as file:\n    file.write('x')\nassert f() == 'x'",
    ),
    "the working directory": (
        "import os\ndef f(): return os.getcwd()",
        "import os\nos.mkdir('new')\nos.chdir('new')\nassert f().endswith('new')",
    ),
    "`items = stack.items`": (
        STACK,
        "stack = Stack()\nitems = stack.items\nstack.push(1)\nassert items == [1]",
    ),
    "`log.attach(sink)`": (
        "class Log:\n    def attach(self, sink): self.sink = sink\n"
        "    def add(self, item): self.sink.append(item)",
        "sink = []\nlog = Log()\nlog.attach(sink)\nlog.add(1)\nassert sink == [1]",
    ),
    "A descriptor of the agent's with `__set__`": (
        "class Positive:\n    def __set__(self, owner, value):\n"
        "        if value < 0: raise ValueError",
        "class Thing:\n    n = Positive()\nraised = False\ntry:\n    Thing().n = -1\n"
        "except ValueError:\n    raised = True\nassert raised",
    ),
    "`v.scale(2) * 2`": (VECTOR, "v = Vector(1)\nassert (v.scale(2) * 2).x == 4"),
    "`make() + 1`": (VECTOR, "assert (make() + 1).x == 2"),
    "nor does `make() - make()`": (
        VECTOR.replace("__add__(self, k): return Vector(self.x + k)", "__sub__(self, k): return 3"),
        "assert make() - make() == 3",
    ),
    "a list, a dict or an argument": (
        f"{VECTOR}kinds = [Vector]",
        "assert kinds == [Vector] and (Vector(1) * 2).x == 2",
    ),
    "a class that nothing tells to be one": (
        "class node:\n    def __eq__(self, other): return other == 1",
        "assert node() == 1",
    ),
}

# And what it says to cross.
CROSSED = {
    "standard output": (
        "def f(): print('hi')",
        "import contextlib, io\nout = io.StringIO()\n"
        "with contextlib.redirect_stdout(out):\n    f()\nassert out.getvalue() == 'hi\\n'",
    ),
    '`patch("module.name")`': (
        "import os\ndef f(): return os.getcwd()",
        "from unittest.mock import patch\nwith patch('os.getcwd', lambda: 3):\n    assert f() == 3",
    ),
    "`time.time`": (
        "import time\ndef f(): return time.time()",
        "from unittest.mock import patch\nwith patch('time.time', lambda: 3):\n    assert f() == 3",
    ),
    "`v * 2` on `v = Vector(1)`": (VECTOR, "v = Vector(1)\nassert (v * 2).x == 2"),
    "as `Node(1).value` or `V(1) + V(2)` does": (
        "class Node:\n    def __init__(self, value): self.value = value\n"
        "    def __eq__(self, other): return self.value == other.value",
        "assert Node(1).value == 1\nassert Node(1) == Node(1)",
    ),
    "`get().append(1)`": (STACK, "get().append(1)\nassert get() == [1]"),
    "warnings' filters": (
        "import warnings\ndef f(): warnings.warn('old', DeprecationWarning)",
        "import warnings\nwith warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n    f()\nassert str(caught[0].message) == 'old'",
    ),
    'Write "class `node`" into the prompt': (
        "class node:\n    def __eq__(self, other): return other == 1",
        "assert node() == 1",
    ),
}


@pytest.mark.parametrize("words", NOT_CROSSED)
def test_what_does_not_cross_passes_only_inside(server: Launched, words):
    assert words in README
    code, tests = NOT_CROSSED[words]
    with server.session() as env:
        assert graded(env, code, {"tests": tests}).reward == 0.0
        inside = graded(env, code, {"tests": tests, "judge": "inside"})
        assert inside.reward == 1.0
        assert "Judged inside" in inside.observation.feedback


@pytest.mark.parametrize("words", CROSSED)
def test_what_crosses_passes_apart(server: Launched, words):
    assert words in README
    code, tests = CROSSED[words]
    with server.session() as env:
        row = {"prompt": "Define the class `node`.", "tests": tests}
        assert graded(env, code, row).reward == 1.0


def flags() -> dict[str, Any]:
    """The flags of `serve` that --help shows, with their defaults."""
    commands = build_parser()._subparsers
    assert commands
    (choices,) = (action.choices for action in commands._group_actions)
    actions = choices["serve"]._actions
    shown = [action for action in actions if "==SUPPRESS==" not in (action.help, action.default)]
    return {action.option_strings[0]: action.default for action in shown}


def test_every_flag_is_in_the_table_with_its_variable_and_default(monkeypatch):
    for name in os.environ:
        if re.match("PYTHON_ENV_|MAX_CONCURRENT", name):
            monkeypatch.delenv(name)
    expected = set()
    for flag, default in flags().items():
        variable = "PYTHON_ENV_" + flag[2:].upper().replace("-", "_")
        shown = f"`{default:g}`" if isinstance(default, float) else f"`{default}`"
        expected.add((f"`{flag}`", f"`{variable}`", shown if default else "–"))
    rows = re.findall(r"(?m)^\| (`--\S+`) \| (\S+) \| (\S+) \|", README)
    assert set(rows) == expected
    assert len(rows) == len(expected)


def test_every_format_of_the_table_has_a_row_in_formats_jsonl():
    table = README.split("| Format |")[1].split("\n\n")[0]
    named = re.findall(r"(?m)^\| ([\w+, -]+) \|", table)
    assert len(named) >= 10
    rows = (HERE / "formats.jsonl").read_text()
    for name in ", ".join(named).split(", "):
        assert f'{{"format": "{name}' in rows, name


def test_the_limits_are_those_of_the_code():
    kib = 1024
    mib = 1024 * kib
    limits = LIMITS
    for words in (
        f"{limits.code_bytes // kib} KiB of code, {limits.output_bytes // kib} KiB of each output",
        f"{limits.result_chars:,} characters of result",
        f"{limits.task_steps} steps, {limits.transcript_bytes // mib} MiB of code, "
        f"{limits.replay_s:g} s to run earlier steps again",
        f"{limits.threads} threads, {limits.open_files} open files, "
        f"{limits.file_bytes // mib} MiB a file, {limits.folder_bytes // mib} MiB and "
        f"{limits.folder_entries:,} entries in its folder, {limits.cpu_s // 60} min of CPU",
        f"{limits.source_bytes // mib} MiB each for prompt, tests, setup, helpers and solution",
        f"{limits.message_bytes // mib} MiB a message or body, {limits.connections:,} connections",
    ):
        assert words in README.replace("\n", " "), words


def test_the_commands_that_ci_runs_are_found_by_their_comments():
    script = (HERE / ".ci" / "run").read_text()
    for block in blocks("run by .ci/run"):
        comment = block.code.splitlines()[0].removeprefix("# ").split(":")[0]
        assert comment in script
