"""Chapters 4, 11 and 12: steps, episodes, and their processes.

One fresh worker a graded step, one judge a session; nothing of one grading is seen by the next;
and a right answer is paid, whoever dies meanwhile.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import itertools
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import websockets

import python_env
from conftest import BUSY_S
from conftest import DOUBLE
from conftest import HERE
from conftest import HONEST
from conftest import IN_REPL
from conftest import HostedPython
from conftest import Launched
from conftest import abort
from conftest import all_processes
from conftest import ask
from conftest import call
from conftest import command_line
from conftest import descendants
from conftest import eventually
from conftest import graded
from conftest import hear
from conftest import kill
from conftest import named
from conftest import open_tcp
from conftest import processes
from conftest import request
from conftest import run_code
from conftest import tell
from conftest import ws
from conftest import zombies
from python_env import InvalidRequest
from python_env import PythonAction
from python_env import PythonEnvironment
from python_env import Sandbox
from python_env import ServerError
from python_env import builtin_tasks

# Three asserts, each for a function of its own.
THREE = {"tests": "assert f(2) == 4\nassert g(2) == 8\nassert h(-1) == 1"}
F = "def f(x): return x * x"
G = "def g(x): return x * f(x)"


def play(env, *codes, timeout_s=10.0):
    """The results of steps with these codes, one after another."""
    return [env.step(PythonAction(code, timeout_s=timeout_s)) for code in codes]


def rewards(env, *codes):
    return [result.reward for result in play(env, *codes)]


# ── the interpreter ───────────────────────────────────────────────────────────────────────────────

RESULTS = {
    "1 + 1": "2",
    "x = 5": None,
    "x = 5\nx": "5",
    "None": None,
    "1; 2": "2",
    "": None,
    "# nothing": None,
    "for i in range(3): i": None,
    "for i in range(3):\n    i": None,
    "max(\n  1,\n  2,\n  )": "2",
    "x = 5\n'''\n  if x:\n    x'''": r"'\n  if x:\n    x'",
    "'é\\ud800'": r"'é\ud800'",
    "__name__": "'__main__'",
    "import pickle\nclass A: pass\ntype(pickle.loads(pickle.dumps(A()))) is A": "True",
    "import dataclasses\n@dataclasses.dataclass\nclass P:\n    x: int\nP(1)": "P(x=1)",
    "import os\nos.getcwd() == os.environ['HOME'] == os.environ['TMPDIR']": "True",
    "import tempfile\nwith tempfile.TemporaryFile() as t: t.write(b'x')": None,
    "import asyncio\nasync def f(): return 5\nasyncio.run(f())": "5",
}


@pytest.mark.parametrize("code", RESULTS)
def test_the_last_expression_is_the_result(env, code):
    seen = run_code(env, code)
    assert seen.stderr == ""
    assert seen.exit_code == 0
    assert seen.result == RESULTS[code]


def test_names_files_and_imports_persist(env):
    run_code(env, "import math\ndef area(r): return math.pi * r * r")
    run_code(env, "open('kept', 'w').write('text')")
    assert run_code(env, "area(1)").result == "3.141592653589793"
    assert run_code(env, "open('kept').read()").result == "'text'"


def test_names_persist_after_an_exception(env):
    run_code(env, "x = 5")
    assert run_code(env, "1/0").exit_code == 1
    assert run_code(env, "x").result == "5"


def test_nothing_persists_over_a_reset(env):
    run_code(env, "x = open('kept', 'w').write('text')")
    env.reset(**IN_REPL)
    assert "NameError" in run_code(env, "x").stderr
    assert run_code(env, "import os; os.listdir()").result == "[]"


def test_a_long_repr_keeps_its_head_and_tail(env):
    result = run_code(env, "list(range(100_000))").result
    assert result.startswith("[0, 1, 2")
    assert result.endswith("99998, 99999]")
    assert "characters cut" in result
    assert len(result) < 8_192 + 100


# Code, words of its traceback, and how many of the code's own lines it shows at least.
TRACEBACKS = [
    ("def f():\n    return 1 / 0\nf()", ["ZeroDivisionError: division by zero"], 2),
    (
        "try: {}['k']\nexcept KeyError as e: raise ValueError('v') from e",
        ["KeyError: 'k'", "direct cause", "ValueError: v"],
        2,
    ),
    (
        "try: {}['k']\nexcept KeyError: raise ValueError('v')",
        ["During handling", "ValueError: v"],
        2,
    ),
    ("import json\njson.loads('{')", ["JSONDecodeError: Expecting property name"], 1),
    ("a = 1\nb = = 2", ["b = = 2", "SyntaxError: invalid syntax"], 1),
    ("[][0].x", ["IndexError: list index out of range"], 1),
    ("class E(BaseException): pass\nraise E('own')", ["E: own"], 1),
    (
        "class E(Exception):\n    def __str__(self): raise self\nraise E",
        ["E: <"],
        1,
    ),
    ("class R:\n    def __repr__(self): return 1 / 0\nR()", ["ZeroDivisionError"], 1),
    ("'\\0'\n\0", ["null byte"], 0),
    ("'\ud800'", ["surrogates not allowed"], 0),
]


@pytest.mark.parametrize("code, words, lines", TRACEBACKS, ids=[case[1][0] for case in TRACEBACKS])
def test_tracebacks_show_the_code_s_own_lines_only(env, code, words, lines):
    seen = run_code(env, code)
    assert seen.exit_code == 1
    assert seen.result is None
    for word in words:
        assert word in seen.stderr
    shown = re.findall(r'File "(.*?)"', seen.stderr)
    assert len(shown) >= lines
    assert set(shown) <= {"<step 1>"}
    assert "python_env" not in seen.stderr
    assert "worker program" not in seen.stderr


# Code, its exit code, and a word of its standard error.
EXITS = [
    ("raise SystemExit", 0, ""),
    ("raise SystemExit(3)", 3, ""),
    ("exit(300)", 300 % 256, ""),
    ("raise SystemExit('why')", 1, "why\n"),
    ("raise KeyboardInterrupt", 1, "KeyboardInterrupt"),
    ("bytearray(1 << 40)", 1, "MemoryError"),
    ("while True: pass", 124, ""),
    ("import time; time.sleep(99)", 124, ""),
]
DEATHS = [
    ("import os; os._exit(7)", 7),
    ("import os; os.abort()", 128 + 6),
    ("import os; os.kill(os.getpid(), 9)", 128 + 9),
    ("import ctypes; ctypes.string_at(0)", 128 + 11),
]


@pytest.mark.parametrize("code, exit_code, word", EXITS)
def test_an_exit_code_tells_how_a_step_ended(env, code, exit_code, word):
    seen = run_code(env, code, timeout_s=0.5)
    assert seen.exit_code == exit_code
    assert word in seen.stderr
    again = run_code(env, "6 * 7")
    assert again.result == "42"
    assert "interpreter is new" not in again.feedback


@pytest.mark.parametrize("code, exit_code", DEATHS)
def test_an_interpreter_that_dies_is_replaced_and_that_is_said(env, code, exit_code):
    seen = run_code(env, code)
    assert seen.exit_code == exit_code
    assert "interpreter was restarted" in seen.feedback
    again = run_code(env, "6 * 7")
    assert again.result == "42"
    assert "interpreter is new" in again.feedback


def test_an_interpreter_that_dies_between_two_steps_is_replaced_and_that_is_said(env):
    run_code(env, "import os, threading\nthreading.Timer(0.05, os._exit, (1,)).start()")
    end = time.monotonic() + 10
    seen = run_code(env, "1")
    while not seen.feedback and time.monotonic() < end:
        seen = run_code(env, "1")
    assert "interpreter" in seen.feedback
    assert run_code(env, "2").result == "2"


def test_a_time_out_that_is_obeyed_keeps_the_state(env):
    run_code(env, "kept = 1")
    assert run_code(env, "while True: kept += 1", timeout_s=0.2).exit_code == 124
    assert run_code(env, "kept > 1").result == "True"


def test_standard_input_is_empty_even_after_exit_has_closed_it(env):
    assert "EOFError" in run_code(env, "input()").stderr
    assert run_code(env, "exit()").exit_code == 0
    assert run_code(env, "import sys; sys.stdin.read()").result == "''"


# Code, and what it writes to standard output and to standard error.
OUTPUTS = [
    ("print('a', end='')", "a", ""),
    ("import os; os.write(1, b'low'); os.write(2, b'er')", "low", "er"),
    ("import ctypes; l = ctypes.CDLL(None); l.puts(b'from C'); l.fflush(None)", "from C\n", ""),
    ("import sys; sys.stdout.buffer.write(b'\\xff\\xc3')", "\ufffd\ufffd", ""),
    ("import sys; print('w', file=sys.stderr)", "", "w\n"),
    ("print('\\ud800€')", "\\ud800€\n", ""),
]


@pytest.mark.parametrize("code, stdout, stderr", OUTPUTS)
def test_output_is_captured_at_the_descriptors(env, code, stdout, stderr):
    seen = run_code(env, code)
    assert seen.stdout == stdout
    assert seen.stderr == stderr


def test_a_warning_is_shown_with_its_line(env):
    seen = run_code(env, "import warnings; warnings.warn('old')")
    assert seen.stderr.startswith("<step 1>:1: UserWarning: old\n")


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_flood_of_output_keeps_its_head_and_tail(env, stream):
    code = f"import sys\nprint('HEAD' + '\\0' * 10**6 + 'TAIL', file=sys.{stream})"
    seen = run_code(env, code)
    text = getattr(seen, stream)
    assert text.startswith("HEAD")
    assert text.endswith("TAIL\n")
    assert "bytes cut" in text
    # A NUL takes six bytes of JSON, and still the answer fits the official client's message.
    assert len(json.dumps(text)) < 2**20
    assert run_code(env, "print(1)").stdout == "1\n"


@pytest.mark.parametrize(
    "code",
    [
        "import sys; sys.stdout.close(); sys.stderr.close()",
        "import sys; sys.stdout = sys.stderr = None",
        "import os; os.close(1)",
        "import os; os.dup2(0, 1)",
    ],
)
def test_a_closed_or_replaced_stdout_is_back_at_the_next_step(env, code):
    assert run_code(env, code).exit_code == 0
    seen = run_code(env, "print('out'); 1 / 0")
    assert seen.stdout == "out\n"
    assert "ZeroDivisionError" in seen.stderr


# ── one fresh worker a graded step ────────────────────────────────────────────────────────────────


def test_an_episode_of_many_steps_is_judged_as_a_whole(env):
    env.reset(**THREE)
    paid = rewards(env, F, "import time", G, "1 / 0", "h = abs")
    assert paid == pytest.approx([1 / 3, 1 / 3, 2 / 3, 2 / 3, 1])
    assert env.state().done
    with pytest.raises(ServerError, match="over"):
        run_code(env, "1")


def test_a_step_runs_once_and_the_next_one_sees_it_once(env):
    env.reset(tests="assert f() == 2\nassert f() == 3")
    first = play(env, "runs = []\nruns.append(1)\ndef f(): return len(runs)\nruns")[0]
    assert first.observation.result == "[1]"
    assert first.reward == 0.0
    second = play(env, "runs.append(2)\nruns")[0]
    assert second.observation.result == "[1, 2]"
    assert second.reward == 0.5


def test_what_the_agent_sees_and_what_is_judged_are_one_run(env):
    env.reset(tests="assert f() == 1\nassert g() == 1")
    code = "import os\nbit = os.urandom(1)[0] % 2\nprint(bit)\ndef f(): return bit"
    seen = [(result.observation.stdout, result.reward) for result in play(env, *[code] * 12)]
    assert set(seen) <= {("0\n", 0.0), ("1\n", 0.5)}


def test_what_was_printed_earlier_is_not_printed_again(env):
    env.reset(**DOUBLE)
    outputs = [r.observation.stdout for r in play(env, "print(1)", "print(2)", "print(3)")]
    assert outputs == ["1\n", "2\n", "3\n"]


def test_files_of_earlier_steps_are_there(env):
    env.reset(**DOUBLE)
    play(env, "with open('kept', 'w') as file: file.write('text')")
    assert run_code(env, "open('kept').read()").result == "'text'"


def test_standard_input_of_earlier_steps_is_replayed(env):
    env.reset(**DOUBLE)
    env.step(PythonAction("line = input()", stdin="typed\n"))
    assert run_code(env, "line").result == "'typed'"


UNDONE = {
    "timed out": "h = abs\nopen('left', 'w').close()\nwhile True: pass",
    "exited": "h = abs\nopen('left', 'w').close()\nimport os\nos._exit(0)",
    "crashed": "h = abs\nopen('left', 'w').close()\nimport ctypes\nctypes.string_at(0)",
    "killed itself": "h = abs\nopen('left', 'w').close()\nimport os\nos.kill(os.getpid(), 9)",
}


@pytest.mark.parametrize("how", UNDONE)
def test_a_step_that_did_not_end_by_itself_earns_nothing(env, how):
    env.reset(**THREE)
    play(env, F, G)
    undone = play(env, UNDONE[how], timeout_s=0.3)[0]
    assert undone.reward == 0.0
    assert not undone.done


@pytest.mark.parametrize("how", UNDONE)
def test_a_step_that_did_not_end_by_itself_undoes_itself_and_nothing_else(env, how):
    env.reset(**THREE)
    play(env, F, G)
    play(env, UNDONE[how], timeout_s=0.3)
    look = play(env, "import os\n(f(3), g(3), 'h' in globals(), os.listdir())")[0]
    assert look.observation.result == "(9, 27, False, [])"
    assert look.reward == pytest.approx(2 / 3)
    assert env.state().best_reward == pytest.approx(2 / 3)
    assert rewards(env, "h = abs") == [1.0]


def test_a_step_that_raised_is_kept_as_far_as_it_came(env):
    env.reset(**THREE)
    assert rewards(env, F + "\n1 / 0\n" + G, "1") == pytest.approx([1 / 3, 1 / 3])


def test_a_replay_that_takes_too_long_ends_the_episode():
    with HostedPython(replay_s=1.0) as hosted, hosted.session() as env:
        env.reset(**THREE)
        nap = "import time; time.sleep(0.6)"
        assert rewards(env, F, nap) == pytest.approx([1 / 3, 1 / 3])
        play(env, nap)
        last = play(env, "1")[0]
        assert last.reward == 0.0
        assert last.done
        assert "replay" in last.observation.feedback
        assert env.state().done
        assert graded(env, HONEST, DOUBLE).reward == 1.0


DRAWS = {
    "random": "import random\ndraw = random.random",
    "str hashes": "def draw(seen=[]): seen.append(0); return hash('text' * len(seen))",
    "set order": "def draw(): return [*{'a', 'b', 'c', 'd', 'e', 'f'}]",
    "numpy": "import numpy\ndraw = lambda: float(numpy.random.rand())",
}


@pytest.mark.parametrize("seed", [None, 7])
@pytest.mark.parametrize("what", DRAWS)
def test_chance_is_alike_in_each_worker_of_an_episode(env, what, seed):
    if what == "numpy":
        pytest.importorskip("numpy")
    env.reset(**DOUBLE, seed=seed)
    first = run_code(env, f"{DRAWS[what]}\nvalue = draw()\nvalue").result
    assert first
    assert run_code(env, "value").result == first
    assert run_code(env, "value").result == first


def test_chance_goes_on_where_the_last_step_left_it(env):
    env.reset(**DOUBLE, seed=3)
    at_once = run_code(env, "import random\n[random.random(), random.random()]").result
    env.reset(**DOUBLE, seed=3)
    first = run_code(env, "import random\nrandom.random()").result
    second = run_code(env, "random.random()").result
    assert at_once == f"[{first}, {second}]"


def test_each_graded_step_has_a_process_of_its_own(env):
    env.reset(**DOUBLE)
    pids = {run_code(env, "import os\nos.getpid()").result for _ in range(5)}
    assert len(pids) == 5


# ── the repl keeps one worker ─────────────────────────────────────────────────────────────────────


def test_the_repl_s_steps_run_in_one_process(env):
    pids = {run_code(env, "import os\nos.getpid()").result for _ in range(5)}
    assert len(pids) == 1


def test_the_repl_keeps_its_threads_between_steps(env):
    code = """
import threading, time
ticks = []
def tick():
    while True:
        ticks.append(time.monotonic())
        time.sleep(0.01)
threading.Thread(target=tick, daemon=True).start()
"""
    run_code(env, code)
    before = int(run_code(env, "len(ticks)").result)
    assert eventually(lambda: int(run_code(env, "len(ticks)").result) > before + 20)


def test_a_thread_of_the_repl_runs_while_no_step_does(box, env):
    # It notes how late it is; were it stopped between the steps, it would be so by a second.
    code = """
import threading, time
late = []
def watch():
    while True:
        begun = time.monotonic()
        time.sleep(0.01)
        late.append(time.monotonic() - begun)
threading.Thread(target=watch, daemon=True).start()
begun = time.monotonic()
"""
    run_code(env, code)
    with box.session() as other:
        other.reset(**IN_REPL)
        run_code(other, "import time; time.sleep(1.5)")
    assert float(run_code(env, "max(late)").result) < 1.0


# ── one judge a session ───────────────────────────────────────────────────────────────────────────

PURE = {"tests": "assert f(1) == 0\nassert f(2) == 4"}
IMPURE = {"tests": "import os\nos.environ['LEFT'] = '1'\n" + PURE["tests"]}


@pytest.fixture
def own(tmp_path):
    """A server of this test's own, whose processes may die."""
    tmp = tmp_path / "own"
    tmp.mkdir()
    with Launched(tmp) as launched:
        yield launched
        eventually(lambda: not zombies(launched.process.pid))


def judges(server):
    """The pids of all judges, those of the sessions' own and those of forks of one."""
    everyone = all_processes()
    zygotes = named(server.process.pid, "zygote")
    found = [pid for pid in named(server.process.pid, "judge") if pid in everyone]
    own = [pid for pid in found if everyone[pid].parent in zygotes]
    return own, [pid for pid in found if everyone[pid].parent in own]


def session_judges(server):
    return judges(server)[0]


@pytest.mark.parametrize("row", [PURE, IMPURE], ids=["tests that leave nothing", "tests that do"])
def test_a_session_s_gradings_have_one_judge(own, row):
    with own.session() as env:
        seen = []
        for _ in range(2):
            env.reset(**row)
            for _ in range(3):
                assert play(env, HONEST)[0].reward == 0.5
                seen.append(session_judges(own))
        assert len(seen[0]) == 1
        assert seen == [seen[0]] * 6


def test_each_session_has_a_judge_of_its_own(own):
    with own.session() as one, own.session() as other:
        assert graded(one, HONEST, PURE).reward == 0.5
        assert graded(other, HONEST, PURE).reward == 0.5
        assert len(session_judges(own)) == 2


def test_a_judge_whose_time_was_up_is_replaced(own):
    with own.session() as env:
        graded(env, HONEST, PURE)
        (first,) = session_judges(own)
        endless = {"tests": "assert f(1)\nwhile True: pass"}
        assert graded(env, HONEST, endless, timeout_s=0.3).reward < 1.0
        assert graded(env, HONEST, PURE).reward == 0.5
        (second,) = session_judges(own)
        assert second != first


def test_processes_are_shown_by_their_names(own):
    with own.session() as env:
        graded(env, HONEST, PURE)
        roles = ("zygote", "judge", "worker")
        eventually(lambda: all(named(own.process.pid, role) for role in roles))
        for pid in descendants(own.process.pid):
            assert len(command_line(pid)) < 200


# ── nothing of one grading is seen by the next ────────────────────────────────────────────────────

CHANNELS = {}


def channel(name, look, change, before=""):
    """A way for one run of the tests to leave something for the next.

    `look` is an expression that is true once `change` was done in this process; `before` are
    statements that both need.
    """
    assert name not in CHANNELS
    CHANNELS[name] = f"{before}\nassert not ({look})\n{change}\nassert {look}\nassert f(1) == 0"


channel("a module's attribute", "hasattr(math, 'left')", "math.left = 1", "import math")
channel(
    "a module's function",
    "json.dumps(1) == 'left'",
    "json.dumps = lambda *a, **k: 'left'",
    "import json",
)
channel(
    "a class's attribute",
    "hasattr(collections.Counter, 'left')",
    "collections.Counter.left = 1",
    "import collections",
)
channel("the environment", "'LEFT' in os.environ", "os.environ['LEFT'] = '1'", "import os")
channel("a file", "os.path.exists('left')", "open('left', 'w').close()", "import os")
channel(
    "a file in the home folder",
    "os.path.exists(os.path.expanduser('~/left'))",
    "open(os.path.expanduser('~/left'), 'w').close()",
    "import os",
)
channel(
    "a temporary file",
    "'left' in os.listdir(tempfile.gettempdir())",
    "open(tempfile.gettempdir() + '/left', 'w').close()",
    "import os, tempfile",
)
channel(
    "the working directory",
    "os.path.basename(os.getcwd()) == 'left'",
    "os.mkdir('left'); os.chdir('left')",
    "import os",
)
channel(
    "random's state",
    "random.getstate() == random.Random(5).getstate()",
    "random.seed(5)",
    "import random",
)
channel(
    "the recursion limit",
    "sys.getrecursionlimit() == 777",
    "sys.setrecursionlimit(777)",
    "import sys",
)
channel(
    "a thread",
    "threading.active_count() > 1",
    "threading.Thread(target=threading.Event().wait, daemon=True).start()",
    "import threading",
)
channel(
    "the decimal context",
    "decimal.getcontext().prec == 3",
    "decimal.getcontext().prec = 3",
    "import decimal",
)
channel(
    "the locale",
    "locale.setlocale(locale.LC_CTYPE) == 'C'",
    "locale.setlocale(locale.LC_CTYPE, 'C')",
    "import locale",
)
channel(
    "the time zone",
    "time.tzname[0] == 'LEFT'",
    "os.environ['TZ'] = 'LEFT3'; time.tzset()",
    "import os, time",
)
channel(
    "warnings filters",
    "warnings.filters[0][:1] == ('error',)",
    "warnings.simplefilter('error')",
    "import warnings",
)
channel(
    "a functools cache",
    "fnmatch._compile_pattern.cache_info().currsize > 30",
    "[fnmatch.fnmatch('a', f'left{n}*') for n in range(40)]",
    "import fnmatch",
)
channel(
    "the line cache", "'left' in linecache.cache", "linecache.cache['left'] = 1", "import linecache"
)
channel("sys.modules", "'left' in sys.modules", "sys.modules['left'] = sys", "import sys")
channel("sys.path", "'left' in sys.path", "sys.path.append('left')", "import sys")
channel("sys.meta_path", "None in sys.meta_path", "sys.meta_path.append(None)", "import sys")
channel("an imported module", "'wave' in sys.modules", "import wave", "import sys")
channel("builtins", "hasattr(builtins, 'left')", "builtins.left = 1", "import builtins")
channel(
    "a builtin function",
    "builtins.sum([]) == 'left'",
    "builtins.sum = lambda *a: 'left'",
    "import builtins",
)
channel(
    "builtins, by a generator's frame",
    "'left' in (i for i in [1]).gi_frame.f_builtins",
    "(i for i in [1]).gi_frame.f_builtins['left'] = 1",
)
channel(
    "the frames below, by a running generator",
    "seen('left')",
    "leave('left')",
    """
def frames():
    found = []
    def look():
        frame = running.gi_frame.f_back
        while frame:
            found.append(frame.f_globals)
            frame = frame.f_back
        yield 1
    running = look()
    next(running)
    return found
def seen(name): return any(name in space for space in frames()[2:])
def leave(name):
    for space in frames()[2:]: space[name] = 1
""",
)
for name, find in {
    "a function's globals, by a class pattern": """
def g(): pass
Function = type(g)
match g:
    case Function(__globals__=found):
        run = found["__builtins__"]["eval"]
""",
    "a builtin's name that is bound elsewhere": "run = eval\nfor eval in (): pass",
    "the builtins' own name": "run = __builtins__['eval']\nfor __builtins__ in (): pass",
    "a name of numpy and of another module": """
import numpy as found
run = found.random.bit_generator.re.enum.sys.modules['builtins'].eval
if f(1) == 0:
    import random as found
""",
}.items():
    channel(
        name,
        "'left' in modules",
        "modules['left'] = 1",
        f"{find}\nmodules = run('__import__(\"sys\").modules')",
    )
channel(
    "a signal's handler",
    "signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN",
    "signal.signal(signal.SIGUSR1, signal.SIG_IGN)",
    "import signal",
)
channel(
    "the blocked signals",
    "signal.SIGUSR1 in signal.pthread_sigmask(signal.SIG_BLOCK, [])",
    "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])",
    "import signal",
)
channel("gc's thresholds", "gc.get_threshold()[0] == 77", "gc.set_threshold(77, 7, 7)", "import gc")
channel("gc's switch", "gc.isenabled()", "gc.enable()", "import gc")
channel("gc's callbacks", "print in gc.callbacks", "gc.callbacks.append(print)", "import gc")
channel(
    "the umask",
    "mask() == 0o123",
    "os.umask(0o123)",
    "import os\ndef mask():\n    now = os.umask(0)\n    os.umask(now)\n    return now",
)
channel("standard output", "sys.stdout is None", "sys.stdout = None", "import sys")
channel("the arguments", "'left' in sys.argv", "sys.argv.append('left')", "import sys")
channel("a trace function", "sys.getprofile()", "sys.setprofile(lambda *a: None)", "import sys")
channel("an exception hook", "sys.excepthook is print", "sys.excepthook = print", "import sys")
channel(
    "the switch interval",
    "sys.getswitchinterval() > 0.5",
    "sys.setswitchinterval(0.7)",
    "import sys",
)
channel(
    "an exit handler",
    "atexit._ncallbacks() > 99",
    "for n in range(100): atexit.register(print)",
    "import atexit",
)
channel(
    "a descriptor",
    "is_open(120)",
    "os.dup2(0, 120)  # beyond where hide() puts the judge's own",
    """
import os
def is_open(fd):
    try: return bool(os.fstat(fd))
    except OSError: return False
""",
)
channel(
    "the abstract classes' registry",
    "isinstance(json.JSONDecoder(), collections.abc.Sized)",
    "collections.abc.Sized.register(json.JSONDecoder)",
    "import collections.abc, json",
)
channel(
    "copyreg's table",
    "json.JSONDecoder in copyreg.dispatch_table",
    "copyreg.pickle(json.JSONDecoder, repr)",
    "import copyreg, json",
)
channel(
    "a single-dispatch function",
    "int in pprint.pprint.left.registry",
    "pprint.pprint.left.register(int, print)",
    "import functools, pprint\n"
    "if not hasattr(pprint.pprint, 'left'): pprint.pprint.left = functools.singledispatch(print)",
)
channel(
    "a codec",
    "has('left')",
    "codecs.register({'left': codecs.lookup('utf-8')}.get)",
    """
import codecs
def has(name):
    try: return bool(codecs.lookup(name))
    except LookupError: return False
""",
)
channel(
    "logging's level",
    "logging.root.manager.disable == 50",
    "logging.disable(50)",
    "import logging",
)
channel(
    "a module's default argument",
    "'left' in textwrap.dedent.__kwdefaults__",
    "textwrap.dedent.__kwdefaults__['left'] = 1",
    "import textwrap\ntextwrap.dedent.__kwdefaults__ = textwrap.dedent.__kwdefaults__ or {}",
)
channel(
    "a context variable",
    "any(variable.name == 'left' for variable in contextvars.copy_context())",
    "contextvars.ContextVar('left').set(1)",
    "import contextvars",
)
channel(
    "asyncio's policy",
    "asyncio.get_event_loop_policy().__class__.__name__ == 'Left'",
    "asyncio.set_event_loop_policy(Left())",
    "import asyncio\nclass Left(asyncio.DefaultEventLoopPolicy): pass",
)
channel(
    "the socket module's time-out",
    "socket.getdefaulttimeout() == 9",
    "socket.setdefaulttimeout(9)",
    "import socket",
)
channel(
    "unittest's own class",
    "hasattr(unittest.TestCase, 'left')",
    "unittest.TestCase.left = 1",
    "import unittest",
)
channel(
    "numpy's random",
    "numpy.random.get_state()[1][0] == numpy.random.RandomState(5).get_state()[1][0]",
    "numpy.random.seed(5)",
    "import numpy",
)
channel(
    "numpy's options",
    "numpy.get_printoptions()['precision'] == 3",
    "numpy.set_printoptions(precision=3)",
    "import numpy",
)
channel(
    "numpy's error state",
    "numpy.geterr()['divide'] == 'raise'",
    "numpy.seterr(divide='raise')",
    "import numpy",
)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", CHANNELS)
def test_nothing_of_one_grading_is_seen_by_the_next(env, name):
    tests = CHANNELS[name]
    if "numpy" in name:
        pytest.importorskip("numpy")
    for _ in range(2):
        env.reset(tests=tests, entry_point="f")
        # The last assert always fails, so that the episode goes on; each grading sees the channel
        # as it was, and has changed it in the end.
        assert rewards(env, HONEST, HONEST, HONEST) == pytest.approx([2 / 3] * 3)


def test_nothing_is_left_in_a_module_that_the_helpers_import(env):
    tests = """
modules = json.codecs.sys.modules
assert 'left' not in modules
modules['left'] = 1
assert f(1) == 0
"""
    env.reset(tests=tests, helpers="import json", entry_point="f")
    assert rewards(env, HONEST, HONEST) == [0.5, 0.5]


LEADS_ANYWHERE = {
    "a metaclass's mro": "assert f(1).mro(f(1))",
    "a pointer of numpy's": "assert f(1).ctypes",
    "bytes of an array of objects": "import numpy\nassert numpy.array([f], 'O').data.cast('B')",
}


@pytest.mark.parametrize("name", LEADS_ANYWHERE)
def test_tests_that_may_lead_anywhere_are_not_graded_in_the_judge_itself(name):
    task = python_env.Task.from_row({"tests": LEADS_ANYWHERE[name], "entry_point": "f"})
    assert not python_env.read_tests(task.sources()).pure


def test_the_judge_s_random_is_seeded_alike_for_each_grading(env):
    expected = random.Random(7).random()
    tests = f"""
import random
assert random.random() == {expected!r}
random.seed(1)
random.random()
assert f(1) == 0
"""
    env.reset(tests=tests, seed=7)
    assert rewards(env, HONEST, HONEST) == [0.5, 0.5]


def test_names_of_one_task_are_not_those_of_the_next(env):
    tests = "def spare(x): return x\nkept = [spare(1)]\nassert f(1) == 0\nassert kept"
    assert graded(env, HONEST, {"tests": tests}).reward == 0.5
    tests = """
for name in ('spare', 'kept'):
    assert name not in globals()
assert f(2) == 4
"""
    assert graded(env, HONEST, {"tests": tests}).reward == 1.0


def test_one_candidate_s_objects_are_not_those_of_the_next(env):
    tests = "a = make()\nassert a.value == 5\nassert make() is not a\nassert a.value == 0"
    env.reset(tests=tests)
    code = "class Thing: value = {}\ndef make(): return Thing()"
    assert rewards(env, code.format(5), code.format(6), code.format(5)) == pytest.approx(
        [2 / 3, 1 / 3, 2 / 3]
    )


# ── max_steps holds, whatever raises ──────────────────────────────────────────────────────────────

FATAL = {"tests": "assert f(1)\nimport os\nos._exit(0)", "entry_point": "f"}


def test_steps_whose_grading_fails_count(env):
    env.reset(**FATAL, max_steps=2)
    for _ in range(2):
        with pytest.raises(ServerError, match="no reward") as failed:
            env.step(PythonAction(HONEST))
        assert failed.value.code == "EXECUTION_ERROR"
    with pytest.raises(ServerError, match="over"):
        env.step(PythonAction(HONEST))
    state = env.state()
    assert state.done
    assert state.step_count == 2


def test_a_task_s_own_fault_counts_as_a_step_too(env):
    env.reset(tests="assert f(1)", setup="1 / 0", max_steps=1)
    with pytest.raises(ServerError, match="ZeroDivisionError") as failed:
        env.step(PythonAction(HONEST))
    assert failed.value.code == "EXECUTION_ERROR"
    with pytest.raises(ServerError, match="over"):
        env.step(PythonAction(HONEST))


def test_a_module_that_a_set_up_misses_is_named(env):
    env.reset(tests="assert f(1)", setup="import nowhere.at_all")
    with pytest.raises(ServerError, match=r"ModuleNotFoundError \(nowhere\) in line 1"):
        env.step(PythonAction(HONEST))


def test_a_module_that_tests_miss_is_named(env):
    env.reset(tests="import nowhere.at_all\nassert f(1)")
    with pytest.raises(ServerError, match=r"ModuleNotFoundError \(nowhere\) in line 1"):
        env.step(PythonAction(HONEST))


FORGE_AND_SHUT = """
import json, os, socket
for number in range(9):
    reply = {"seq": number, "exit_code": 0, "result": "1", "error": "", "fault": ""}
    data = json.dumps({**reply, "refused": False}).encode()
    os.write(3, len(data).to_bytes(4, "big") + data)
socket.socket(fileno=3).shutdown(socket.SHUT_RDWR)
"""


def test_code_that_forges_a_reply_and_shuts_its_line_down_gains_no_step(env):
    env.reset(**DOUBLE, max_steps=2)
    assert rewards(env, FORGE_AND_SHUT, FORGE_AND_SHUT) == [0.0, 0.0]
    with pytest.raises(ServerError, match="over"):
        env.step(PythonAction(HONEST))
    assert env.state().step_count == 2


def test_code_that_shuts_its_line_down_after_a_right_answer_gains_no_step(env):
    shut = "import socket\nsocket.socket(fileno=3).shutdown(socket.SHUT_RDWR)"
    env.reset(**DOUBLE, max_steps=2)
    for code in (f"{HONEST}\n{shut}", f"{HONEST}\n{FORGE_AND_SHUT}"):
        assert play(env, code)[0].reward < 1.0
    with pytest.raises(ServerError, match="over"):
        env.step(PythonAction(HONEST))


def test_code_over_the_limit_is_a_step_without_a_reward(env):
    env.reset(**DOUBLE, max_steps=2)
    too_long = play(env, "#" * 262_145)[0]
    assert too_long.reward == 0.0
    assert too_long.observation.exit_code == 1
    assert "262,145" in too_long.observation.feedback
    assert "262,144" in too_long.observation.feedback
    assert rewards(env, HONEST) == [1.0]


# ── ends that nobody of ours brought about ────────────────────────────────────────────────────────

# The mark is a file in the worker's folder, which can be seen from outside.
SLOW_STEP = "import time\nopen('mark', 'w').close()\ntime.sleep(0.5)\n" + HONEST
SLOW_GRADING = """
import time
def f(x):
    open('mark', 'w').close()
    time.sleep(0.5)
    return 2 * x
"""


def marks(server):
    """The marks that code of this server's has made, and that were not cleared yet."""
    return {*server.tmp.glob("*/*/mark")}


def play_and_strike(server, env, code, strike, times=1):
    """The future of a step with this code; strike() is called each time it has made its mark."""
    with ThreadPoolExecutor(1) as pool:
        playing = pool.submit(env.step, PythonAction(code))
        seen = set()
        for _ in range(times):
            seen |= eventually(lambda seen=seen: marks(server) - seen)
            strike()
        concurrent.futures.wait([playing], timeout=60)
    return playing


def kill_all(server, role):
    """SIGKILL to every process of this role; there is at least one."""
    for pid in eventually(lambda: named(server.process.pid, role)):
        kill(pid)


ROLES = ("zygote", "worker", "judge")


@pytest.mark.parametrize("tests", [PURE, IMPURE], ids=["in the judge", "in a fork of it"])
@pytest.mark.parametrize("role", ROLES)
def test_a_right_answer_is_paid_though_a_process_is_killed_while_grading(own, role, tests):
    row = {**DOUBLE, "tests": tests["tests"].replace("f(1) == 0", "f(1) == 2")}
    with own.session() as env:
        env.reset(**row)
        played = play_and_strike(own, env, SLOW_GRADING, lambda: kill_all(own, role))
        assert played.result().reward == 1.0
        assert env.state().step_count == 1
        assert graded(env, HONEST, DOUBLE).reward == 1.0


def test_a_right_answer_is_paid_though_the_judge_s_fork_is_killed(own):
    row = {**DOUBLE, "tests": IMPURE["tests"].replace("f(1) == 0", "f(1) == 2")}
    with own.session() as env:
        env.reset(**row)

        def strike():
            for pid in eventually(lambda: judges(own)[1]):
                kill(pid)

        played = play_and_strike(own, env, SLOW_GRADING, strike)
        assert played.result().reward == 1.0


@pytest.mark.parametrize("role", ["zygote", "worker"])
def test_a_right_answer_is_paid_though_a_process_is_killed_while_the_code_runs(own, role):
    with own.session() as env:
        env.reset(**DOUBLE)
        played = play_and_strike(own, env, SLOW_STEP, lambda: kill_all(own, role))
        assert played.result().reward == 1.0
        assert env.state().step_count == 1


@pytest.mark.parametrize("role", ROLES)
def test_a_right_answer_is_paid_though_a_process_is_killed_between_two_steps(own, role):
    with own.session() as env:
        env.reset(**THREE)
        play(env, F, G)
        kill_all(own, role)
        assert rewards(env, "h = abs") == [1.0]


@pytest.mark.parametrize("role", ["zygote", "judge"])
def test_a_grading_that_fails_three_times_by_no_doing_of_the_code_s_pays_nothing_at_all(own, role):
    with own.session() as env:
        env.reset(**DOUBLE)
        played = play_and_strike(own, env, SLOW_GRADING, lambda: kill_all(own, role), times=3)
        with pytest.raises(ServerError, match="no reward") as failed:
            played.result()
        assert failed.value.code == "EXECUTION_ERROR"
        assert env.state().step_count == 1
        assert graded(env, HONEST, DOUBLE).reward == 1.0


def test_a_worker_that_is_killed_three_times_is_the_code_s_own_death(own):
    with own.session() as env:
        env.reset(**DOUBLE)
        played = play_and_strike(own, env, SLOW_STEP, lambda: kill_all(own, "worker"), times=3)
        assert played.result().reward == 0.0
        assert rewards(env, HONEST) == [1.0]


@pytest.mark.parametrize("row", [DOUBLE, {"inputs": ["1"], "outputs": ["1"]}], ids=["f", "pair"])
def test_the_time_that_a_fork_has_to_wait_is_not_the_code_s(own, row):
    with own.session() as env, ThreadPoolExecutor(1) as pool:
        env.reset(**DOUBLE)
        zygote = min(named(own.process.pid, "zygote"))  # not one that it is just forking
        os.kill(zygote, signal.SIGSTOP)
        env.reset(**row)
        code = f"{HONEST}\nprint(1)"
        playing = pool.submit(env.step, PythonAction(code, timeout_s=0.3))
        with pytest.raises(concurrent.futures.TimeoutError):
            playing.result(timeout=2.0)
        os.kill(zygote, signal.SIGCONT)
        assert playing.result().reward == 1.0


def test_a_worker_that_kills_itself_is_not_tried_again(own):
    code = "open('mark', 'a').close()\nimport os\nos.kill(os.getpid(), 9)"
    with own.session() as env:
        env.reset(**DOUBLE)
        assert rewards(env, code) == [0.0]
        assert env.state().step_count == 1


def test_the_repl_goes_on_anew_when_its_zygote_dies(own):
    with own.session() as env:
        env.reset(**IN_REPL)
        run_code(env, "x = 5")
        kill_all(own, "zygote")
        assert eventually(lambda: run_code(env, "6 * 7").result == "42")


@pytest.mark.slow
def test_many_deaths_under_load_cost_no_right_answer_its_reward(own):
    stop = threading.Event()
    paid = []

    def load():
        with own.session() as env:
            while not stop.is_set():
                try:
                    result = graded(env, HONEST, DOUBLE)
                    paid.append((result.reward, result.observation.feedback))
                except ServerError as error:
                    paid.append((None, error.code))

    choice = random.Random(1)
    with ThreadPoolExecutor(2) as pool:
        players = [pool.submit(load) for _ in range(2)]
        try:
            for _ in range(24):
                role = choice.choice(ROLES)
                kill(choice.choice(eventually(lambda role=role: named(own.process.pid, role))))
                # Each step meets one death at most: a worker that dies twice is paid 0, rightly.
                enough = len(paid) + 6
                eventually(lambda enough=enough: len(paid) >= enough)
        finally:
            stop.set()
        for player in players:
            player.result(60)
    # Where two deaths met there may be no verdict; that is neither a 0 nor the client's fault.
    assert {reward for reward, _ in paid} <= {1.0, None}, set(paid)
    assert {code for reward, code in paid if reward is None} <= {"EXECUTION_ERROR"}
    assert [reward for reward, _ in paid].count(1.0) > 0.9 * len(paid)


def folders_in_use(tmp):
    """The processes' folders below `tmp`; none while one of them belongs to no process."""
    folders = {str(folder) for folder in tmp.glob("*/*")}
    used = set()
    for pid in processes(tmp):
        with contextlib.suppress(OSError):
            used.add(os.readlink(f"/proc/{pid}/cwd"))
    return folders if folders <= used else set()


def test_the_temporary_folder_may_be_cleaned_below_the_server(own):
    with own.session() as env, own.session() as in_repl:
        env.reset(**THREE)
        play(env, F)
        in_repl.reset(**IN_REPL)
        run_code(in_repl, "x = 5")
        eventually(lambda: len(folders_in_use(own.tmp)) == 3)  # of the judge and the two workers
        for folder in own.tmp.iterdir():
            shutil.rmtree(folder, ignore_errors=True)
        assert rewards(env, G, "h = abs")[-1] == 1.0
        assert run_code(in_repl, "x").result == "5"
        with own.session() as another:
            assert graded(another, HONEST, DOUBLE).reward == 1.0
            another.reset(**IN_REPL)
            code = "with open('kept', 'w') as file: file.write('text')\nopen('kept').read()"
            assert run_code(another, code).result == "'text'"


# ── files ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def small():
    """A server whose workers may keep 4 MiB, which is looked at often."""
    with HostedPython(folder_bytes=4 << 20, sample_s=0.02) as hosted:
        yield hosted


FULL_FOLDERS = {
    "a file": "file = open('big', 'wb', buffering=0)\nfile.write(bytes(8 << 20))",
    "many files": "for n in range(99):\n    with open(str(n), 'wb') as f: f.write(bytes(1 << 17))",
    "an unlinked file": """
import os
file = open('big', 'wb', buffering=0)
os.unlink('big')
file.write(bytes(8 << 20))
""",
    "many unlinked files": """
import os
files = []
for n in range(16):
    files.append(open('big', 'wb', buffering=0))
    os.unlink('big')
    files[-1].write(bytes(1 << 19))
""",
    "an unlinked folder": """
import os
os.mkdir('folder')
file = open('folder/big', 'wb', buffering=0)
os.unlink('folder/big')
os.rmdir('folder')
file.write(bytes(8 << 20))
""",
}


@pytest.mark.parametrize("name", FULL_FOLDERS)
def test_files_over_the_quota_end_the_worker(small, name):
    code = f"{FULL_FOLDERS[name]}\nimport time\ntime.sleep(30)"
    with small.session() as env:
        env.reset(**IN_REPL)
        seen = run_code(env, code, timeout_s=30)
        assert seen.exit_code == 128 + signal.SIGKILL
        assert "files grew over the limit" in seen.feedback
        assert run_code(env, "6 * 7").result == "42"


def test_files_within_the_quota_are_nobody_s_business(small):
    code = """
import os, time
file = open('big', 'wb', buffering=0)
os.unlink('big')
file.write(bytes(2 << 20))
with open('other', 'wb') as file: file.write(bytes(1 << 20))
time.sleep(0.3)
"""
    with small.session() as env:
        env.reset(**IN_REPL)
        seen = run_code(env, code)
        assert seen.exit_code == 0
        assert seen.feedback == ""


def test_a_file_without_a_name_cannot_be_opened(env):
    seen = run_code(env, "import os\nos.open('.', os.O_TMPFILE | os.O_RDWR)")
    assert seen.exit_code == 1
    assert "PermissionError" in seen.stderr


@pytest.fixture
def victim(tmp_path):
    """A folder of the server's own user, whose mode nobody may change."""
    folder = tmp_path / "victim"
    folder.mkdir()
    (folder / "file").write_text("whole")
    folder.chmod(0o751)
    (folder / "file").chmod(0o642)
    yield folder
    assert folder.stat().st_mode & 0o777 == 0o751
    assert (folder / "file").stat().st_mode & 0o777 == 0o642
    assert (folder / "file").read_text() == "whole"


def test_a_folder_swapped_for_a_link_is_never_followed_while_it_is_measured(small, victim):
    code = f"""
import os, time
os.umask(0o777)
end = time.monotonic() + 1.5
while time.monotonic() < end:
    os.mkdir('a')
    os.rename('a', 'b')
    os.symlink({str(victim)!r}, 'a')
    os.unlink('a')
    os.rmdir('b')
"""
    with small.session() as env:
        env.reset(**IN_REPL)
        assert run_code(env, code).exit_code == 0


def test_a_link_that_a_dead_worker_leaves_is_never_followed(own, victim):
    code = f"""
import os
os.symlink({str(victim)!r}, 'link')
os.symlink({str(victim / "file")!r}, 'file')
os.umask(0o777)
os.mkdir('locked')
os.mkdir('more')
os.rename('link', 'a link')
"""
    with own.session() as env:
        env.reset(**IN_REPL)
        assert run_code(env, code).exit_code == 0
    eventually(lambda: not [*own.tmp.glob("*/*")])


@pytest.mark.slow
def test_twelve_sessions_that_leave_9900_files_each_disturb_nobody(own):
    code = "for n in range(9_900): open(str(n), 'w').close()"

    def litter():
        with own.session() as env:
            env.reset(**IN_REPL)
            return run_code(env, code, timeout_s=60).exit_code

    with own.session() as bystander:
        bystander.reset(**IN_REPL)
        run_code(bystander, "kept = 42")
        zygote = named(own.process.pid, "zygote")
        with ThreadPoolExecutor(12) as pool:
            endings = [pool.submit(litter) for _ in range(12)]
            assert [ending.result() for ending in endings] == [0] * 12
        assert run_code(bystander, "kept").result == "42"
        assert graded(bystander, HONEST, DOUBLE).reward == 1.0
        assert named(own.process.pid, "zygote") == zygote
    eventually(lambda: not [*own.tmp.glob("*/*")], 60)


# ── what the observation says ─────────────────────────────────────────────────────────────────────

REFUSALS = {
    "a fork": "import os\nos.fork()",
    "a subprocess": "import subprocess\nsubprocess.run(['true'])",
    "a socket": "import socket\nsocket.socket()",
    "a download": "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:1')",
    "a file outside": "open('/tmp/left', 'w')",
    "what it raises from": "try: open('/etc/passwd')\nexcept OSError as e: raise ValueError from e",
}


@pytest.mark.parametrize("row", [IN_REPL, DOUBLE], ids=["repl", "graded"])
@pytest.mark.parametrize("name", REFUSALS)
def test_the_feedback_says_that_the_sandbox_refused_it(env, name, row):
    seen = graded(env, REFUSALS[name], row).observation
    assert seen.exit_code == 1
    assert "sandbox" in seen.feedback


@pytest.mark.parametrize("code", ["1 / 0", "open('missing')", "raise OSError('mine')", "1"])
def test_the_feedback_does_not_say_so_of_anything_else(env, code):
    assert "sandbox" not in run_code(env, code).feedback


SCIENTIFIC = re.compile(r"\de[+-]?\d")


@pytest.mark.parametrize("seconds", [61, 4_454_020, 1e9, 1e22])
def test_errors_show_plain_numbers(env, seconds):
    with pytest.raises(ServerError, match="timeout_s") as refused:
        env.step(PythonAction("1", timeout_s=seconds))
    assert not SCIENTIFIC.search(str(refused.value))


def test_the_size_of_too_much_code_is_a_plain_number(env):
    env.reset(**DOUBLE)
    feedback = play(env, "#" * 1_234_567)[0].observation.feedback
    assert "1,234,567" in feedback
    assert not SCIENTIFIC.search(feedback)


def test_the_size_of_a_too_long_source_is_a_plain_number(env):
    with pytest.raises(ServerError) as refused:
        env.reset(tests="assert f()\n" + "#" * 1_234_567)
    assert re.search(r"tests has 1,?234,?578 bytes", str(refused.value))
    assert not SCIENTIFIC.search(str(refused.value))


# ── the event loop ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_four_inline_tasks_of_256_kib_do_not_stall_the_others(own):
    tests = "assert f()\n"
    tests += "a;" * ((1_048_576 - len(tests)) // 2)
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(ws(own)) for _ in range(4)]
        bystander = stack.enter_context(ws(own))
        call(bystander, "reset", task_id="repl")
        for peer in peers:
            tell(peer, "reset", tests=tests)

        slowest = 0.0
        with ThreadPoolExecutor(4) as pool:
            answers = [pool.submit(hear, peer) for peer in peers]
            while not all(answer.done() for answer in answers):
                begun = time.monotonic()
                assert call(bystander, "state")[0] == "state"
                slowest = max(slowest, time.monotonic() - begun)
        assert slowest < BUSY_S
        assert {answer.result()[0] for answer in answers} <= {"observation", "error"}


def test_did_you_mean_among_20_000_tasks_takes_no_long_time():
    task = builtin_tasks()["ledger"]
    tasks = {f"a-task-with-quite-a-long-name-{number}": task for number in range(20_000)}
    environment = PythonEnvironment(Sandbox(), tasks, itertools.count())

    async def ask_for(name):
        with pytest.raises(InvalidRequest, match="no task"):
            await environment.reset(task_id=name)

    begun = time.monotonic()
    asyncio.run(ask_for("a-task-with-quite-a-long-name-x"))
    assert time.monotonic() - begun < BUSY_S


def test_did_you_mean_among_a_few_names_the_nearest(env):
    with pytest.raises(ServerError, match="secret"):
        env.reset(task_id="sekret")


# ── where the server runs ─────────────────────────────────────────────────────────────────────────


def assert_it_plays(server):
    with server.session() as env:
        assert graded(env, HONEST, DOUBLE).reward == 1.0
        env.reset(**IN_REPL)
        assert run_code(env, "6 * 7").result == "42"


SERVE_FROM = "import sys\nsys.path.insert(0, {!r})\nimport python_env\n"
SERVE_FROM += "sys.exit(python_env.main(['serve', '--port', '0']))"


@pytest.mark.slow
def test_replacing_the_file_below_a_running_server_changes_nothing(tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    copy = folder / "python_env.py"
    shutil.copy(python_env.__file__, copy)
    tmp = tmp_path / "tmp"
    tmp.mkdir()
    with Launched(tmp, command=("-c", SERVE_FROM.format(str(folder)))) as server:
        copy.write_text("this is no Python")
        assert_it_plays(server)
        kill_all(server, "zygote")
        eventually(lambda: not zombies(server.process.pid))
        assert_it_plays(server)


def test_it_can_be_served_from_a_zip(tmp_path):
    archive = tmp_path / "archive.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.write(python_env.__file__, "python_env.py")
    tmp = tmp_path / "tmp"
    tmp.mkdir()
    with Launched(tmp, command=("-c", SERVE_FROM.format(str(archive)))) as server:
        assert_it_plays(server)


def test_it_can_be_served_under_a_profiler(tmp_path):
    tmp = tmp_path / "tmp"
    tmp.mkdir()
    file = str(HERE / "python_env.py")
    profiled = ("-m", "cProfile", "-o", str(tmp_path / "profile"), file, "serve", "--port", "0")
    with Launched(tmp, command=profiled) as server:
        assert_it_plays(server)


SYSTEM_PYTHON = "/usr/bin/python3"  # whose prefix, /usr, holds all libraries of the system
NEW_ENOUGH = "import sys; sys.exit(sys.version_info < (3, 10))"


def test_workers_of_the_system_s_python_load_the_system_s_libraries(tmp_path, monkeypatch):
    if not Path(SYSTEM_PYTHON).exists() or subprocess.call([SYSTEM_PYTHON, "-c", NEW_ENOUGH]):
        pytest.skip("the system has no Python of its own, or an old one")
    monkeypatch.setattr(sys, "executable", SYSTEM_PYTHON)
    packages = str(Path(websockets.__file__).parent.parent)
    with Launched(tmp_path, PYTHONPATH=packages) as server, server.session() as env:
        env.reset(**IN_REPL)
        # numpy needs this one, and Python itself does not.
        assert run_code(env, "import ctypes\nctypes.CDLL('libstdc++.so.6')").exit_code == 0


def test_it_starts_with_few_descriptors(tmp_path):
    code = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))\n"
        f"sys.path.insert(0, {str(HERE)!r})\n"
        "import python_env\n"
        "sys.exit(python_env.main(['serve', '--port', '0']))"
    )
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] > 128
    with Launched(tmp_path, command=("-c", code)) as server:
        assert_it_plays(server)


def test_what_the_interpreter_needs_to_start_reaches_the_workers(tmp_path):
    variables = {"LD_LIBRARY_PATH": "/nowhere", "SECRET": "s3cret"}
    with Launched(tmp_path, **variables) as server, server.session() as env:
        env.reset(**IN_REPL)
        found = run_code(env, "import os\ndict(os.environ)").result
        assert "'LD_LIBRARY_PATH': '/nowhere'" in found
        assert "s3cret" not in found
        assert run_code(env, "import sys\nsys.version").result == repr(sys.version)


def test_a_server_that_stops_takes_everything_with_it(tmp_path):
    with Launched(tmp_path) as server:
        with server.session() as env:
            env.reset(**DOUBLE)
            play(env, "import os\nos.makedirs('a/b')\nopen('a/b/c', 'w').close()")
        assert Path(tmp_path).exists()
    assert server.process.returncode == 0


# ── what an attacker found ────────────────────────────────────────────────────────────────────────


def test_the_flags_of_the_empty_input_are_a_worker_s_own(own):
    code = "import fcntl, os\nfcntl.fcntl(0, fcntl.F_SETFL, os.O_NONBLOCK | os.O_APPEND)"
    with own.session() as env, own.session() as other:
        env.reset(**IN_REPL)
        other.reset(**IN_REPL)
        before = run_code(other, "import fcntl\nfcntl.fcntl(0, fcntl.F_GETFL)").result
        assert run_code(env, code).exit_code == 0
        assert run_code(other, "fcntl.fcntl(0, fcntl.F_GETFL)").result == before


def test_a_folder_is_cleared_though_its_names_were_guessed(own):
    code = """
import os
for n in range(200):
    os.makedirs(f"{os.getpid() + n // 10}.{n % 10}/x")
for n in range(15):
    os.makedirs(f"P{n}/sub{n}/deep")
    open(f"P{n}/sub{n}/file", "w").close()
"""
    with own.session() as env:
        env.reset(**IN_REPL)
        assert run_code(env, code).exit_code == 0
    eventually(lambda: not [*own.tmp.glob("python_env-*/*")])


@pytest.mark.parametrize("name", ["file", "a\\rb", "a\\u2028b"])
def test_a_mapped_file_without_a_name_counts(small, name):
    code = f"""
import mmap, os
kept = []
for n in range(200):
    with open("{name}", "wb+") as file:
        file.write(b"x" * 1_000_000)
        file.flush()
        kept.append(mmap.mmap(file.fileno(), 4096, mmap.MAP_PRIVATE, mmap.PROT_READ))
    os.unlink("{name}")
    os.closerange(5, 100)  # mmap's own copies
while True:
    pass
"""
    with small.session() as env:
        env.reset(**IN_REPL)
        seen = run_code(env, code, timeout_s=8)
        assert "files grew over the limit" in seen.feedback


def test_no_name_of_a_file_ends_the_sampler(small):
    code = """
import mmap, os, time
deep = os.getcwd() + "/x\\r" + os.getcwd()
os.makedirs(deep)
with open(deep + "/y", "wb+") as file:
    file.write(bytes(4096))
    file.flush()
    kept = mmap.mmap(file.fileno(), 4096, mmap.MAP_PRIVATE, mmap.PROT_READ)
os.unlink(deep + "/y")
time.sleep(0.5)
"""
    with small.session() as env:
        env.reset(**IN_REPL)
        run_code(env, code)
        seen = run_code(env, f"{FULL_FOLDERS['a file']}\nimport time\ntime.sleep(30)", timeout_s=30)
        assert "files grew over the limit" in seen.feedback


def test_a_full_folder_is_not_read_to_its_end(tmp_path, monkeypatch):
    (tmp_path / "x").touch()
    (entry,) = os.scandir(tmp_path)
    many = iter([entry] * 50_000)
    monkeypatch.setattr(os, "scandir", lambda path: contextlib.nullcontext(many))
    assert python_env.folder_is_over(str(tmp_path), python_env.LIMITS)
    assert len([*many]) > 30_000


# What tests do in a fork of their judge, which is measured with it.
EXCESSIVE_TESTS = {
    "its files grew over the limit": """
import os, time
class Impure: pass
file = open("x", "wb", buffering=0)
os.unlink("x")
file.write(bytes(8 << 20))
time.sleep(30)
assert f() == 1
""",
    "it had more than 128 threads": """
import threading, time
class Impure: pass
threading.stack_size(32_768)
for n in range(150):
    threading.Thread(target=time.sleep, args=(30,), daemon=True).start()
time.sleep(30)
assert f() == 1
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("why", EXCESSIVE_TESTS)
def test_what_a_fork_of_the_judge_uses_is_measured(small, why):
    with small.session() as env:
        env.reset(tests=EXCESSIVE_TESTS[why])
        with pytest.raises(ServerError, match=why):
            env.step("def f(): return 1", timeout_s=20)


def test_a_program_that_waits_without_input_may_still_be_right_with_it(own):
    code = (
        "import sys, time\ntext = sys.stdin.read()\nwhile not text: time.sleep(0.01)\nprint(text)"
    )
    with own.session() as env:
        env.reset(inputs=["1"], outputs=["1"])
        result = env.step(code, timeout_s=0.5)
        assert (result.reward, result.observation.exit_code) == (1.0, 124)
        assert "undone" not in result.observation.feedback


NO_INPUT = "a run without input"


@pytest.mark.parametrize(
    ("code", "stdin", "is_said"),
    [
        ("print(input())", None, True),
        ("print(input())", "1", False),
        ("print(1)", None, False),
        ("print(int(input()) * 2)", None, True),
    ],
)
def test_a_program_that_failed_for_want_of_input_hears_why(own, code, stdin, is_said):
    with own.session() as env:
        env.reset(inputs=["1"], outputs=["1"])
        feedback = env.step(PythonAction(code, stdin=stdin)).observation.feedback
        assert (NO_INPUT in feedback) == is_said


def test_an_endless_program_is_judged_while_the_client_waits():
    with HostedPython(step_s=0.5, step_max_s=3.0) as hosted, hosted.session() as env:
        env.reset(inputs=["1"] * 20, outputs=["1"] * 20)
        begun = time.monotonic()
        assert env.step("while True: pass").reward == 0.0
        assert time.monotonic() - begun < 3.0


# Code that dies late, of a signal that nobody of ours sent: a step's, and a program's with input.
DYING = """
import os, sys, time
if READS and not sys.stdin.read():
    sys.exit()
time.sleep(0.8)
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("row", [DOUBLE, {"inputs": ["1"], "outputs": ["1"]}], ids=["f", "pair"])
def test_code_gains_no_time_by_killing_itself(row):
    code = DYING.replace("READS", str("inputs" in row))
    with HostedPython(step_s=1.0) as hosted, hosted.session() as env:
        env.reset(**row)
        begun = time.monotonic()
        assert env.step(code).reward == 0.0
        assert time.monotonic() - begun < 2.0


# Each prints its input and one more, as programs for contests do that know more than input().
PROGRAMS = {
    "open(0)": "print(int(open(0).read()) + 1)",
    "os.read and the size": "import os\nprint(int(os.read(0, os.fstat(0).st_size)) + 1)",
    "stdin's descriptor": "import os, sys\nprint(int(os.read(sys.stdin.fileno(), 99)) + 1)",
    "the first stdin": "import sys\nprint(int(sys.__stdin__.readline()) + 1)",
    "stdin's bytes": "import sys\nprint(int(sys.stdin.buffer.readline()) + 1)",
    "fileinput": "import fileinput\nprint(int(next(fileinput.input())) + 1)",
    "the first stdout": (
        "import io, sys\nsys.stdout = kept = io.StringIO()\nprint(int(input()) + 1)\n"
        "sys.__stdout__.write(kept.getvalue())"
    ),
    "atexit": (
        "import atexit\nlines = []\natexit.register(lambda: print(*lines))\n"
        "lines.append(int(input()) + 1)"
    ),
    "atexit, after an exit": (
        "import atexit, sys\natexit.register(lambda: print(int(input()) + 1))\nsys.exit()"
    ),
    "a thread that nobody waits for": """
import threading, time
threading.stack_size(1 << 27)
def main():
    time.sleep(0.1)
    print(int(input()) + 1)
threading.Thread(target=main).start()
""",
    "a thread that is waited for in the end": """
import atexit, threading, time
lines = []
def main():
    time.sleep(0.1)
    lines.append(int(input()) + 1)
atexit.register(lambda: print(*lines))
threading.Thread(target=main).start()
""",
    "an exit at once": "import os\nprint(int(input()) + 1, flush=True)\nos._exit(0)",
    "a buffer of its own": """
import os, sys
from io import BytesIO, IOBase
class Fast(IOBase):
    def __init__(self, file):
        self.fd = file.fileno()
        self.buffer = BytesIO()
        self.write = self.buffer.write
    def readline(self): return os.read(self.fd, max(os.fstat(self.fd).st_size, 8192))
    def flush(self):
        os.write(self.fd, self.buffer.getvalue())
        self.buffer.truncate(0)
        self.buffer.seek(0)
class Wrapper(IOBase):
    def __init__(self, file):
        self.buffer = Fast(file)
        self.flush = self.buffer.flush
        self.write = lambda text: self.buffer.write(text.encode())
        self.readline = lambda: self.buffer.readline().decode()
sys.stdin, sys.stdout = Wrapper(sys.stdin), Wrapper(sys.stdout)
input = lambda: sys.stdin.readline().rstrip()
print(int(input()) + 1)
""",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_reads_and_ends_as_in_plain_python(own, name):
    with own.session() as env:
        env.reset(inputs=["1\n", "41\n"], outputs=["2\n", "42\n"])
        result = env.step(PythonAction(PROGRAMS[name], stdin="7\n"))
        assert result.reward == 1.0
        assert result.observation.stdout == "8\n"


def test_an_output_may_be_long_in_every_script(own):
    with own.session() as env:
        env.reset(inputs=["1"], outputs=["字" * 70_000])
        assert rewards(env, "print('字' * 70_000)") == [1.0]


def test_a_program_whose_threads_never_end_is_wrong(own):
    code = "import threading\nprint(1)\nthreading.Thread(target=threading.Event().wait).start()"
    with own.session() as env:
        env.reset(inputs=["1"], outputs=["1"])
        result = env.step(code, timeout_s=0.5)
        assert result.reward == 0.0


def test_a_program_that_exits_at_once_with_an_error_is_wrong(own):
    with own.session() as env:
        env.reset(inputs=["1\n"], outputs=["2\n"])
        assert rewards(env, "import os\nprint(2, flush=True)\nos._exit(1)") == [0.0]


def test_a_step_s_input_is_gone_after_it(own):
    with own.session() as env:
        env.reset(**IN_REPL)
        seen = env.step(PythonAction("import sys\nsys.stdin.read(1)", stdin="abc")).observation
        assert seen.result == "'a'"
        assert run_code(env, "open(0, closefd=False).read()").result == "''"
        seen = env.step(PythonAction("open(0).read()", stdin="def")).observation
        assert seen.result == "'def'"
        assert run_code(env, "import os\nos.read(0, 9), os.listdir('.')").result == "(b'', [])"


@pytest.mark.parametrize("number", [1, 2, 3])
def test_no_worker_can_say_that_the_task_is_at_fault(own, number):
    code = (
        f"number = {number}"
        + """
import json, os
reply = {"seq": number, "exit_code": 0, "fault": "NameError in line 1", "result": None}
body = json.dumps(reply).encode()
os.write(3, len(body).to_bytes(4, "big") + body)
"""
    )
    with own.session() as env:
        env.reset(inputs=["1"], outputs=["1"])
        assert rewards(env, code)[0] == 0.0
        env.reset(**DOUBLE)
        assert rewards(env, code, HONEST)[-1] in (0.0, 1.0)


@pytest.mark.parametrize("text", ["undefined_name", "__import__('nope')"])
def test_code_that_the_tests_evaluate_is_no_fault_of_theirs(own, text):
    with own.session() as env:
        env.reset(tests="assert eval(f(1)) == 24")
        assert rewards(env, f"def f(x):\n    return {text!r}") == [0.0]


def test_a_huge_reply_of_a_worker_is_not_read(own):
    code = """
import os, time
body = b"[" + b"[]," * 660_000 + b"0]"
message = len(body).to_bytes(4, "big") + body
sent = 0
while sent < len(message):
    sent += os.write(3, message[sent:sent + 100_000])
time.sleep(1)
"""
    with own.session() as env, own.session() as other:
        other.reset(**IN_REPL)
        env.reset(**IN_REPL)
        seen = run_code(env, code)
        assert seen.exit_code != 0
        assert run_code(other, "6 * 7").result == "42"


def test_a_with_statement_s_exception_crosses(own):
    tests = """
try:
    with f():
        raise ValueError("x")
except ValueError as error:
    assert str(error) == "x"
"""
    code = """
import contextlib
@contextlib.contextmanager
def f():
    yield 1
"""
    with own.session() as env:
        env.reset(tests=tests)
        assert rewards(env, code) == [1.0]


# ── answers that come late ────────────────────────────────────────────────────────────────────────


def test_a_reset_right_after_another_is_judged_by_its_own_tests(server):
    # The judge is given a task while the agent thinks: it may still read the one before.
    rows = [{"tests": f"assert f() == {n}\n" * 50, "entry_point": "f"} for n in range(6)]
    with server.session() as env:
        for name in [*builtin_tasks()] * 2:
            env.reset(name)
        for n, row in enumerate(rows):
            env.reset("ledger")
            assert graded(env, f"def f(): return {n}", row).reward == 1.0


def test_a_step_never_gets_the_verdict_of_one_whose_client_left(server):
    def gradings():
        return ask(server, "GET", "/health")[2]["gradings"]

    row = {"tests": "import time\ntime.sleep(1)\nassert f() == 1"}
    mine = {"X-Session-Id": ask(server, "POST", "/reset", row)[1]["X-Session-Id"]}
    before = gradings()
    with open_tcp(server) as sock:
        body = json.dumps({"action": {"code": "f = lambda: 0"}}).encode()
        fields = [f"X-Session-Id: {mine['X-Session-Id']}", f"Content-Length: {len(body)}"]
        sock.sendall(request("POST /step", *fields, body=body))
        eventually(lambda: gradings() > before)
        abort(sock)
    answer = ask(server, "POST", "/step", {"action": {"code": "f = lambda: 1"}}, **mine)[2]
    assert answer["reward"] == 1.0


# ── more steps than the machine has time for ──────────────────────────────────────────────────────


def test_a_step_that_waits_for_its_turn_does_not_wait_on_its_own_time():
    # Four steps of 0.6 s with a limit of 1.5 s, one after the other: the last is done after 2.4 s.
    row = {"tests": "assert f(4) == 8"}
    code = f"import time\ntime.sleep(0.6)\n{HONEST}"
    with HostedPython(step_s=1.5) as hosted, contextlib.ExitStack() as stack:
        hosted.sandbox.turns = asyncio.Semaphore(1)
        sessions = [stack.enter_context(hosted.session()) for _ in range(4)]
        other = stack.enter_context(hosted.session())
        other.reset("repl")
        for session in sessions:
            session.reset(**row)
        with ThreadPoolExecutor(4) as pool:
            steps = [pool.submit(session.step, code) for session in sessions]
            # A plain interpreter has nothing to do with it.
            eventually(hosted.sandbox.turns.locked)
            assert other.step("1 + 1").observation.result == "2"
            assert not all(step.done() for step in steps)
            assert [step.result(30).reward for step in steps] == [1.0] * 4


def test_endless_code_gives_its_turn_to_the_others():
    row = {"tests": "assert f(4) == 8"}
    with HostedPython() as hosted, hosted.session() as endless, hosted.session() as other:
        hosted.sandbox.turns = asyncio.Semaphore(1)
        endless.reset(**row)
        other.reset(**row)
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(endless.step, "while True: pass")
            eventually(hosted.sandbox.turns.locked)
            assert other.step(HONEST).reward == 1.0
            assert not first.done()
            assert first.result(30).observation.exit_code == 124
        assert not hosted.sandbox.turns.locked()
