"""The examples, as their readers run them: real processes, a real terminal, a real Ctrl-C.

TRL itself is for test_trainers.py; here its rules are checked, and an environment is called as TRL
calls it. OpenEnv's own client comes in where PYTHON_ENV_PEERS names an interpreter that has it.
"""

from __future__ import annotations

import importlib.util
import inspect
import itertools
import json
import os
import pty
import signal
import subprocess
import sys
import typing
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from conftest import HERE
from conftest import Launched
from conftest import command_line
from conftest import descendants
from conftest import eventually
from conftest import human_eval
from conftest import processes

EVALUATE = HERE / "examples" / "evaluate.py"
PEERS = os.environ.get("PYTHON_ENV_PEERS", "")


def load(name: str) -> ModuleType:
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(name, HERE / "examples" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


# ── evaluate.py ───────────────────────────────────────────────────────────────────────────────────

# A task as HumanEval has it, one of our own, and a program; then a task whose grading always fails.
ADD = {
    "task_id": "He/0",
    "prompt": 'import math\n\ndef add(a, b):\n    """Their sum."""\n',
    "entry_point": "add",
    "test": "def check(add):\n    assert add(1, 2) == 3\n    assert add(0, 0) == 0\n",
}
DOUBLE = {
    "task_id": "own",
    # The prompt shows a function, but a completion does not go on from it: it is no Python.
    "prompt": "Repair this:\n\ndef double(x): return x\n",
    "entry_point": "double",
    "tests": "assert double(4) == 8\nassert double(0) == 0",
}
UPPER = {"task_id": 7, "question": "Print it in capitals.", "inputs": ["a\n"], "outputs": ["A\n"]}
BROKEN = {"task_id": "broken", "tests": "assert f() == 1", "helpers": "raise OSError('no disk')"}

# (task_id, completion, reward)
SAMPLES = [
    ("He/0", "    return math.floor(a + b)\n", 1.0),
    ("He/0", "def add(a, b):\n    return 0\n", 0.5),
    ("He/0", "Like this:\n\n```python\ndef add(a, b): return a + b\n```\nor so.", 1.0),
    ("own", "double = lambda x: 2 * x", 1.0),
    ("own", "```\ndef double(x):\n    return x\n```\n", 0.5),
    ("own", "def double(x) return 2 * x", 0.0),
    (7, "print(input().upper())", 1.0),
    (7, "print(input())", 0.0),
    (7, "print(input())", 0.0),  # twice the same: two samples
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def samples_of(rows: list[tuple[Any, str, float]]) -> list[dict[str, Any]]:
    return [{"task_id": name, "completion": completion} for name, completion, _ in rows]


class Evaluation:
    """A folder with tasks.jsonl and samples.jsonl, and runs of evaluate.py on them."""

    def __init__(self, folder: Path) -> None:
        self.out = folder / "out.jsonl"
        self.tasks = write(folder / "tasks.jsonl", [ADD, DOUBLE, UPPER])
        self.samples = write(folder / "samples.jsonl", samples_of(SAMPLES))
        self.tmp = folder / "tmp"
        self.tmp.mkdir()

    def start(self, *flags: str, **options: Any) -> subprocess.Popen[str]:
        # Without PYTHON_ENV_PEERS, which a server would warn of on the standard error.
        clean = {name: v for name, v in os.environ.items() if not name.startswith("PYTHON_ENV_")}
        files = (str(self.samples), f"--tasks={self.tasks}", f"--out={self.out}")
        return subprocess.Popen(
            [sys.executable, str(EVALUATE), *files, *flags],
            stdout=subprocess.PIPE,
            text=True,
            env={**clean, "PYTHONPATH": str(HERE), "TMPDIR": str(self.tmp)},
            **{"stderr": subprocess.PIPE, **options},
        )

    def run(self, *flags: str, status: int = 0) -> tuple[str, str]:
        """What it prints on its standard output and on standard error."""
        with self.start(*flags) as process:
            said = process.communicate(timeout=120)
        assert process.returncode == status, said
        return said

    def rewards(self) -> Counter[tuple[str, str, float]]:
        return Counter((row["task_id"], row["completion"], row["reward"]) for row in read(self.out))


WANTED = Counter((str(name), completion, reward) for name, completion, reward in SAMPLES)


@pytest.fixture
def evaluation(tmp_path: Path) -> Iterator[Evaluation]:
    """Whatever a run does: no process of it is left, and no file of them."""
    made = Evaluation(tmp_path)
    yield made
    eventually(lambda: not processes(made.tmp))
    assert not [*made.tmp.iterdir()]


def test_every_sample_gets_a_line_and_pass_at_k_is_printed(evaluation):
    said, errors = evaluation.run("--k", "1", "2", "3", "4")
    assert evaluation.rewards() == WANTED
    for row in read(evaluation.out):
        assert [*row] == ["task_id", "completion", "passed", "reward", "feedback"]
        assert row["passed"] == (row["reward"] == 1.0)
        assert row["feedback"]
    # 2 of 3, 1 of 3, 1 of 3 samples passed. pass@4 is left out: no task has as many.
    assert said.splitlines() == [
        "4 of 9 samples passed, of 3 tasks",
        "pass@1: 0.4444",
        f"pass@2: {(1 + 2 / 3 + 2 / 3) / 3:.4f}",
        "pass@3: 1.0000",
    ]
    assert errors == ""  # no bar, because it is no terminal


def test_a_running_server_is_sent_the_rows(evaluation, server):
    evaluation.run("--base-url", server.url)
    assert evaluation.rewards() == WANTED


def test_the_estimator_is_unbiased():
    estimate = load("evaluate").pass_at_k
    for total, passed in ((5, 0), (5, 2), (5, 5), (7, 3), (1, 1)):
        samples = [True] * passed + [False] * (total - passed)
        for k in range(1, total + 1):
            draws = [*itertools.combinations(samples, k)]
            assert estimate(total, passed, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_ctrl_c_and_the_same_command_goes_on(evaluation):
    # The last samples use their whole time, so that the run is interrupted before its end.
    waits = "import time\nwhile True: time.sleep(0.01)"
    slow = [{"task_id": "own", "completion": waits}] * 2
    write(evaluation.samples, [*samples_of(SAMPLES), *slow])
    flags = ("--timeout", "2", "--workers", "1")
    with evaluation.start(*flags) as process:
        eventually(lambda: evaluation.out.exists() and len(read(evaluation.out)) >= len(SAMPLES))
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on" in errors
    assert "Traceback" not in errors
    before = evaluation.out.read_text()
    assert len(before.splitlines()) < len(SAMPLES) + 2

    evaluation.out.write_text(before + '{"task_id": "own", "comp')  # as if it was killed there
    said, _ = evaluation.run(*flags)
    assert evaluation.out.read_text().startswith(before)
    assert evaluation.rewards() == WANTED + Counter({("own", waits, 0.0): 2})
    assert said.startswith("4 of 11 samples passed")

    complete = evaluation.out.read_text()
    assert evaluation.run(*flags)[0] == said
    assert evaluation.out.read_text() == complete


def test_results_of_other_samples_stay_and_do_not_count(evaluation):
    other = {"task_id": "own", "completion": "", "passed": True, "reward": 1.0, "feedback": "x"}
    write(evaluation.out, [other])
    said, _ = evaluation.run()
    assert said.startswith("4 of 9 samples passed")
    assert read(evaluation.out)[0] == other


def test_a_bad_row_is_named_by_its_line_and_may_be_left_out(evaluation):
    write(evaluation.tasks, [ADD, {"task_id": "bad", "prompt": "no tests"}, DOUBLE, UPPER])
    _, errors = evaluation.run(status=2)
    assert "tasks.jsonl" in errors
    assert "line 2" in errors
    said, _ = evaluation.run("--skip-bad-tasks")
    assert said.startswith("4 of 9 samples passed")


def test_a_terminal_sees_a_bar(evaluation):
    here, there = pty.openpty()
    with evaluation.start(stderr=there) as process:
        os.close(there)
        process.communicate(timeout=120)
    seen = os.read(here, 100_000).decode()
    os.close(here)
    assert process.returncode == 0
    assert "█" in seen
    assert "9 of 9" in seen
    assert seen.endswith("\x1b[K")  # it is gone in the end


def test_what_gets_no_verdict_is_named_and_not_counted(evaluation):
    write(evaluation.tasks, [ADD, DOUBLE, UPPER, BROKEN])
    write(
        evaluation.samples,
        [*samples_of(SAMPLES), {"task_id": "broken", "completion": "def f(): return 1"}],
    )
    said, errors = evaluation.run(status=1)
    assert evaluation.rewards() == WANTED
    assert said.startswith("4 of 9 samples passed, of 3 tasks; 1 tasks have none\npass@1: 0.4444\n")
    assert len(errors.splitlines()) == 1
    assert errors.startswith("no verdict, not counted: broken: ")
    assert "the helpers raised OSError" in errors


def test_a_server_that_is_killed_costs_no_sample(evaluation):
    naps = [
        {"task_id": "own", "completion": f"import time\ntime.sleep(0.3)  # {i}"} for i in range(9)
    ]
    write(evaluation.samples, [*naps, *samples_of(SAMPLES)])
    with evaluation.start("--workers", "2") as process:
        eventually(lambda: evaluation.out.exists() and evaluation.out.read_text())
        (embedded,) = [
            child for child in descendants(process.pid) if "serve" in command_line(child)
        ]
        os.kill(embedded, signal.SIGKILL)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert evaluation.rewards() == WANTED + Counter(
        ("own", each["completion"], 0.0) for each in naps
    )
    for folder in evaluation.tmp.iterdir():  # which a killed server cannot remove
        folder.rmdir()


def test_wrong_files_are_told_by_their_lines(evaluation):
    write(evaluation.samples, [{"task_id": "He/0", "completion": ""}, {"task_id": "He/1"}])
    assert "samples.jsonl:2: expected a task_id of the task file" in evaluation.run(status=2)[1]
    evaluation.samples.write_text("oops")
    assert "samples.jsonl, line 1: no JSON object" in evaluation.run(status=2)[1]
    evaluation.tasks.write_text('{"task_id": "a"}\n')
    assert "no tests" in evaluation.run(status=2)[1]


def test_human_eval_gets_the_verdicts_of_its_own_harness(evaluation):
    rows = human_eval()[::8]
    write(evaluation.tasks, rows)
    wanted = {}
    for row in rows:
        right = row["canonical_solution"]
        whole = row["prompt"] + right
        for completion in (right, whole, f"```python\n{whole}```", "    raise ValueError\n"):
            wanted[row["task_id"], completion] = completion != "    raise ValueError\n"
    write(evaluation.samples, [{"task_id": name, "completion": c} for name, c in wanted])
    said, _ = evaluation.run("--timeout", "30")
    got = {(row["task_id"], row["completion"]): row["passed"] for row in read(evaluation.out)}
    assert got == wanted
    assert "pass@1: 0.7500" in said


# ── guess.py ──────────────────────────────────────────────────────────────────────────────────────

OFFICIAL = """
import sys
from openenv.core import GenericEnvClient

with GenericEnvClient(base_url=sys.argv[1]).sync() as env:
    print(env.reset(seed=7).observation["text"])
    for number in (50, 42):
        result = env.step({"number": number})
        print(result.observation["text"], result.reward, result.done)
"""


@pytest.fixture(scope="module")
def guessing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launched]:
    example = (str(HERE / "examples" / "guess.py"), "0")
    folder = tmp_path_factory.mktemp("guess")
    with Launched(folder, command=example, PYTHONPATH=str(HERE)) as launched:
        yield launched


def test_ones_own_environment_is_played_by_its_client(guessing):
    guess = load("guess")
    with guess.GuessEnv(guessing.url) as env, guess.GuessEnv(guessing.url) as other:
        assert env.reset(seed=7).observation.text == "a number from 1 to 100"
        other.reset(seed=8)
        result = env.step(guess.Guess(50))
        assert result.observation == guess.Hint("lower", reward=0.0)
        result = env.step(guess.Guess(42))
        assert (result.observation.text, result.reward, result.done) == ("right", 1.0, True)
        assert other.step(guess.Guess(42)).observation.text != "right"


def test_a_number_out_of_bounds_is_refused_and_the_session_goes_on(guessing):
    guess = load("guess")
    with guess.GuessEnv(guessing.url) as env:
        env.reset(seed=7)
        with pytest.raises(Exception, match="number"):
            env.step(guess.Guess(101))
        assert env.step(guess.Guess(42)).done


@pytest.mark.skipif(not PEERS, reason="PYTHON_ENV_PEERS names no interpreter with openenv")
def test_ones_own_environment_is_played_by_openenvs_client(guessing):
    environment = {**os.environ, "NO_PROXY": "127.0.0.1"}
    played = subprocess.run(
        [PEERS, "-c", OFFICIAL, guessing.url],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
    )
    assert played.stdout.splitlines() == [
        "a number from 1 to 100",
        "lower 0.0 False",
        "right 1.0 True",
    ], played.stderr


# ── trl_agent.py ──────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def trl_agent() -> Iterator[ModuleType]:
    module = load("trl_agent")
    yield module
    module.server().close()


def public_methods(kind: type) -> set[str]:
    """As TRL looks for them: functions of the class that do not begin with an underscore."""
    return {
        name for name, _ in inspect.getmembers(kind, inspect.isfunction) if not name.startswith("_")
    }


def ask(text: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]


def test_its_tools_are_documented_as_trl_asks(trl_agent):
    assert public_methods(trl_agent.PythonAgent) == {"reset", "run_python"}
    tool = trl_agent.PythonAgent.run_python
    hints = typing.get_type_hints(tool)
    text = inspect.getdoc(tool)
    assert hints.pop("return") is str
    assert [*hints] == [*inspect.signature(tool).parameters][1:]
    summary, _, rest = text.partition("\n\nArgs:\n")
    arguments, _, returns = rest.partition("\n\nReturns:\n")
    assert summary
    assert returns
    assert [line.split(":")[0].strip() for line in arguments.splitlines()] == [*hints]


def test_rollouts_are_played_as_trl_plays_them(trl_agent):
    agents = [trl_agent.PythonAgent() for _ in range(3)]
    rows = [
        {"prompt": ask("Double it."), "tests": "assert f(1) == 2\nassert f(0) == 0", "level": None},
        {"prompt": ask(ADD["prompt"]), **{k: ADD[k] for k in ("test", "entry_point")}},
        {
            "prompt": [{"role": "user", "content": [{"type": "text", "text": "Go."}]}],
            "task_id": "ledger",
        },
    ]
    words = [agent.reset(**row) for agent, row in zip(agents, rows, strict=True)]
    assert words[:2] == [None, None]
    assert "ledger" in words[2].lower()  # because the row does not say what the task is
    assert trl_agent.reward(environments=agents, prompts=[], completions=[]) == [0.0] * 3

    assert agents[0].run_python(code="def f(x): return x\nprint('hm')\nf(1)") == (
        "hm\n--> 1\n1 of 2 tests passed."
    )
    assert agents[1].run_python(code="def add(a, b): return math.floor(a + b)").startswith("2 of 2")
    assert agents[2].run_python(code="print('x' * 9_000)").count("x") == trl_agent.MOST_CHARS
    assert trl_agent.reward(environments=agents) == [0.5, 1.0, 0.0]
    assert agents[0].run_python(code="def f(x): return 2 * x").startswith("2 of 2")
    assert agents[0].run_python(code="del f") == "The task is over."
    assert trl_agent.reward(environments=agents) == [1.0, 1.0, 0.0]

    agents[0].reset(prompt=ask("Do it."), **BROKEN)
    with pytest.raises(Exception, match="helpers raised OSError"):
        agents[0].run_python(code="def f(): return 1")
    agents[1].reset(**rows[1])
    assert trl_agent.reward(environments=agents) == [None, 0.0, 0.0]
