"""The file where somebody has vendored it: under another name, in a package with a type checker and
a linter of its own; and the client where there is no Linux."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import HERE
from conftest import Launched
from python_env import ConnectionFailed
from python_env import PythonAction
from python_env import PythonEnv

pytestmark = pytest.mark.slow

TRAIN = '''
"""What a vendor writes: the environment is a module of their package."""

import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor

from .vendor import rl_env


def play(url: str) -> rl_env.StepResult[rl_env.PythonObservation]:
    with rl_env.PythonEnv(url) as env:
        env.reset(tests="assert f() == 1")
        return env.step("def f(): return 1")


def fail(url: str) -> None:
    with rl_env.PythonEnv(url) as env:
        env.reset("no-such-task")


def main() -> None:
    with rl_env.PythonEnv() as env:
        for method in ("fork", "spawn", "forkserver"):
            context = multiprocessing.get_context(method)
            with ProcessPoolExecutor(1, context) as pool:
                result = pool.submit(play, env.base_url).result(60)
                seen: rl_env.PythonObservation = result.observation
                print(method, type(seen).__module__, result.reward, seen.feedback)
                try:
                    pool.submit(fail, env.base_url).result(60)
                except rl_env.ServerError as error:
                    print(method, error.code, pickle.loads(pickle.dumps(error)).code)


if __name__ == "__main__":
    main()
'''


@pytest.fixture(scope="module")
def vendored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package `project`, which has the file as project.vendor.rl_env."""
    folder = tmp_path_factory.mktemp("vendored")
    vendor = folder / "project" / "vendor"
    vendor.mkdir(parents=True)
    shutil.copyfile(HERE / "python_env.py", vendor / "rl_env.py")
    (vendor / "__init__.py").touch()
    (folder / "project" / "__init__.py").touch()
    (folder / "project" / "train.py").write_text(TRAIN.lstrip())
    return folder


def python(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    # Without the variables of these tests, of which a server warns.
    clean = {name: v for name, v in os.environ.items() if not name.startswith("PYTHON_ENV_")}
    return subprocess.run(
        (sys.executable, *arguments),
        cwd=folder,
        env=clean,
        capture_output=True,
        text=True,
        timeout=600,
    )


# ── Their linter and their type checkers, with the settings that they have by default ─────────────


@pytest.mark.parametrize(
    "command",
    [
        ("ruff", "check", "--isolated", "."),
        ("mypy", "project"),
        ("pyright", "--pythonpath", sys.executable, "project"),
    ],
    ids=lambda command: command[0],
)
def test_it_passes_the_default_settings_of(vendored, command):
    pytest.importorskip(command[0])
    said = python(vendored, "-m", *command)
    assert said.returncode == 0, said.stdout + said.stderr
    assert " warning" not in said.stdout.replace("0 warnings", "")


def test_those_tools_would_find_a_fault(vendored):
    broken = vendored / "broken.py"
    broken.write_text("from project.vendor.rl_env import PythonEnv\n\nPythonEnv().step(3)\nx = y\n")
    try:
        for command in (("ruff", "check", "--isolated"), ("mypy",), ("pyright",)):
            pytest.importorskip(command[0])
            assert python(vendored, "-m", *command, broken.name).returncode == 1
    finally:
        broken.unlink()


# ── All of it works there ─────────────────────────────────────────────────────────────────────────


def test_an_embedded_server_and_pickling_work_under_another_name(vendored):
    said = python(vendored, "-m", "project.train")
    wanted = []
    for method in ("fork", "spawn", "forkserver"):
        wanted.append(f"{method} project.vendor.rl_env 1.0 1 of 1 tests passed.")
        wanted.append(f"{method} VALIDATION_ERROR VALIDATION_ERROR")
    assert said.stdout.splitlines() == wanted, said.stderr
    assert said.stderr == ""


def test_the_command_line_works_under_another_name(vendored, tmp_path):
    row = {"task_id": "a", "tests": "assert f() == 1", "solution": "def f(): return 1"}
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text(json.dumps(row))
    module = ("-m", "project.vendor.rl_env")
    assert "reward 1.00  done True" in python(vendored, *module, "demo").stdout
    assert python(vendored, *module, "check", tasks).stdout == "1 of 1 rows are sound\n"

    folder = tmp_path / "tmp"
    folder.mkdir()
    command = (*module, "serve", "--port", "0", "--require-isolation")
    with Launched(folder, command=command, PYTHONPATH=str(vendored)) as server:
        with server.session() as env:
            env.reset(tests="import math\nassert math.floor(f()) == 1")
            assert env.step(PythonAction("def f(): return 1.5")).reward == 1.0
        assert not list(vendored.glob("core*"))


# ── The client where there is no Linux ────────────────────────────────────────────────────────────

# Windows has none of these modules and names. (Those that the standard library itself needs on this
# machine have to stay: select.epoll, socket.AF_UNIX.)
ELSEWHERE = """
import asyncio, concurrent.futures, logging, os, signal, socket, subprocess, sys, tempfile, time
import urllib.request
import websockets.server, websockets.sync.client

for name in "fcntl resource termios pwd grp pty tty syslog readline curses posix".split():
    sys.modules[name] = None
MISSING = {
    os: "fork forkpty register_at_fork getuid geteuid getgid getegid killpg getpgid setsid getsid"
    " wait wait4 waitid WNOHANG WEXITED WNOWAIT P_ALL P_PIDFD O_NONBLOCK O_CLOEXEC O_DIRECTORY"
    " O_NOFOLLOW O_TMPFILE O_PATH mkfifo nice sched_getaffinity pidfd_open memfd_create statvfs"
    " pread pwrite uname getloadavg sysconf set_blocking get_blocking fchdir",
    signal: "SIGKILL SIGALRM SIGHUP SIGQUIT SIGUSR1 SIGCHLD SIGPIPE SIGSTOP SIGCONT SIGXCPU SIGSYS"
    " alarm setitimer ITIMER_REAL pthread_sigmask pthread_kill sigwait SIG_BLOCK SIG_UNBLOCK",
    socket: "SCM_RIGHTS MSG_DONTWAIT MSG_NOSIGNAL MSG_CMSG_CLOEXEC CMSG_LEN CMSG_SPACE send_fds"
    " recv_fds SO_PEERCRED SO_REUSEPORT SOCK_CLOEXEC SOCK_NONBLOCK SOCK_SEQPACKET TCP_USER_TIMEOUT",
    time: "clock_gettime CLOCK_MONOTONIC CLOCK_BOOTTIME tzset",
}
for module, names in MISSING.items():
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)

import python_env

sys.platform = "win32"
with python_env.PythonEnv(sys.argv[1]) as env:
    env.reset(tests="assert f() == 1")
    print(env.step("def f(): return 1").reward, env.state().done, len(env.tasks()) > 0)
try:
    python_env.PythonEnv()
except python_env.ConnectionFailed as error:
    print(error)
"""


def test_the_client_needs_no_linux(server):
    said = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, server.url],
        cwd=HERE,
        capture_output=True,
        text=True,
        timeout=120,
    )
    played, refused = said.stdout.splitlines() or ("", said.stderr)
    assert played == "1.0 True True", said.stderr
    assert refused.startswith("an embedded server needs Linux, and this is win32; base_url= ")
    assert said.stderr == ""


def test_an_embedded_server_elsewhere_is_refused_with_the_remedy(monkeypatch: Any):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ConnectionFailed, match="this is darwin; base_url= connects to a running"):
        PythonEnv()
