"""Chapter 5, score(): rows as data sets have them, completions as models write them."""

from __future__ import annotations

import concurrent.futures
import datetime
import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from conftest import DOUBLE
from conftest import HERE
from conftest import HONEST
from conftest import Launched
from conftest import descendants
from conftest import eventually
from conftest import named
from conftest import sessions
from fakes import Fake
from python_env import EnvClient
from python_env import InvalidRequest
from python_env import PythonEnv
from python_env import PythonEnvError
from python_env import ServerError
from python_env import extract_code

WRONG = "def f(x): return x"
HALF = "def f(x): return 8"

# ── extract_code() ────────────────────────────────────────────────────────────────────────────────

COMPLETIONS = {
    "code alone": ("x = 1\n", "x = 1\n"),
    "a body alone": ("    return x\n", "    return x\n"),
    "nothing": ("", ""),
    "one block": ("Here:\n```python\nx = 1\n```\nDone.", "x = 1\n"),
    "the last of two": ("```py\nx = 1\n```\nor better\n```python\nx = 2\n```", "x = 2\n"),
    "no language": ("```\nx = 1\n```", "x = 1\n"),
    "output after it": ("```python\nx = 1\n```\nprints\n```text\n1\n```\n", "x = 1\n"),
    "another language alone": ("```bash\nls\n```", "ls\n"),
    "cut off": ("```python\nx = 1\ny =", "x = 1\ny ="),
    "capitals": ("```Python\nx = 1\n```", "x = 1\n"),
    "words after the language": ("```python title=a.py\nx = 1\n```", "x = 1\n"),
    "tildes": ("~~~python\nx = 1\n~~~", "x = 1\n"),
    "four ticks around three": ("````python\nd = '''\n```\n'''\n````", "d = '''\n```\n'''\n"),
    "in a list": ("1. So:\n   ```python\n   if x:\n       y\n   ```", "if x:\n    y\n"),
    "an indented body": ("```python\n    return x\n```", "    return x\n"),
    "what it prints, after it": ("```python\nx = 1\n```\nprints\n```\n1\n```", "x = 1\n"),
    "a fence in a docstring": (
        '```python\ndef f():\n    """\n    ```\n    f()\n    ```\n    """\n```',
        'def f():\n    """\n    ```\n    f()\n    ```\n    """\n',
    ),
    "a fence in a docstring of code alone": (
        'def f():\n    """\n    ```\n    f()\n    ```\n    """\n',
        'def f():\n    """\n    ```\n    f()\n    ```\n    """\n',
    ),
    "thoughts first": ("<think>\n```python\nx = 0\n</think>\n```python\nx = 1\n```", "x = 1\n"),
    "thoughts and code alone": ("<think>Well.</think>x = 1\n", "x = 1\n"),
    "carriage returns": ("```python\r\nx = 1\r\n```\r\nDone", "x = 1\r\n"),
    "ticks in a line": ("use ```x``` so\n```python\nx = 1\n```", "x = 1\n"),
    "empty": ("```python\n```", ""),
}


@pytest.mark.parametrize("name", COMPLETIONS)
def test_the_code_of_a_completion_is_found(name):
    completion, code = COMPLETIONS[name]
    assert extract_code(completion) == code


CHATS = [
    [{"role": "assistant", "content": "```python\nx = 1\n```"}],
    [{"role": "assistant", "content": "no"}, {"role": "assistant", "content": "x = 1\n"}],
    [{"role": "assistant", "content": "x = 1\n"}, {"role": "user", "content": "thanks"}],
    [{"role": "assistant", "content": [{"type": "text", "text": "x = 1\n"}]}],
    [{"content": "x = 1\n"}],
    [
        {"role": "assistant", "tool_calls": []},
        {"role": "tool", "content": "y"},
        {"role": "assistant", "content": "x = 1\n"},
    ],
    [{"role": "assistant", "content": [{"type": "image", "text": None}, {"text": "x = 1\n"}]}],
    # As verifiers and OpenAI's client have them.
    [
        SimpleNamespace(role="user", content="?"),
        SimpleNamespace(role="assistant", content="x = 1\n"),
    ],
    [SimpleNamespace(role="assistant", content=[SimpleNamespace(text="x = 1\n")])],
]


@pytest.mark.parametrize("chat", CHATS, ids=str)
def test_the_code_of_a_chat_is_the_assistant_s_last(chat):
    assert extract_code(chat) == "x = 1\n"


def test_a_message_without_content_has_no_code():
    assert extract_code([{"role": "assistant", "content": None}]) == ""


@pytest.mark.parametrize("completion", [None, 5, b"x", ["x"], {"content": "x"}, []], ids=str)
def test_what_is_no_completion_is_named(completion):
    with pytest.raises(InvalidRequest, match="expected text or chat messages, got"):
        extract_code(completion)


def test_a_hostile_completion_takes_no_time():
    for text in ("```" * 300_000, "```\n" * 200_000, "`" * 900_000 + "\n", "~~~ \n```\n" * 100_000):
        assert isinstance(extract_code(text), str)


# ── score() ───────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def client(server: Launched):
    with PythonEnv(server.url) as env:
        yield env


def test_each_completion_has_its_reward(client):
    completions = [HONEST, WRONG, HALF, f"Sure:\n```python\n{HONEST}\n```", "I do not know."]
    assert client.score(completions, tests=[DOUBLE["tests"]] * 5) == [1.0, 0.0, 0.5, 1.0, 0.0]


def test_a_chat_is_a_completion(client):
    chats = [[{"role": "assistant", "content": HONEST}], [{"role": "assistant", "content": WRONG}]]
    assert client.score(chats, tests=[DOUBLE["tests"]] * 2) == [1.0, 0.0]


def test_no_completions_have_no_rewards(client):
    assert client.score([], tests=[]) == []


def test_the_server_s_own_tasks_are_scored_by_their_ids(client):
    assert client.score(["x = 1", "x = 2"], task_id=["ledger", "ledger"]) == [0.0, 0.0]


PROMPT = 'from math import floor\n\n\ndef f(x: float) -> int:\n    """Twice x, as an int."""\n'
HUMAN_EVAL = {"entry_point": "f", "test": "def check(g):\n    assert g(2.0) == 4"}
CONTINUED = {
    "    return floor(2 * x)\n": 1.0,
    "```python\n    return floor(2 * x)\n```": 1.0,
    "def f(x):\n    return floor(2 * x)\n": 1.0,
    "f = lambda x: floor(2 * x)": 1.0,
    "    return floor(3 * x)\n": 0.0,
}


def test_a_completion_goes_on_from_its_prompt(client):
    columns = {name: [value] * len(CONTINUED) for name, value in HUMAN_EVAL.items()}
    for where in ("prompt", "prompts"):
        columns[where] = [PROMPT] * len(CONTINUED)
        assert client.score([*CONTINUED], **columns) == [*CONTINUED.values()]
        del columns[where]


def test_a_completion_goes_on_from_the_prompt_of_a_task_of_the_server_s_own(tmp_path):
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text(json.dumps({"task_id": "h", "prompt": PROMPT, **HUMAN_EVAL}))
    with PythonEnv(tasks=tasks) as env:
        assert env.score([*CONTINUED], task_id=["h"] * len(CONTINUED)) == [*CONTINUED.values()]


def test_a_completion_goes_on_from_a_prompt_without_a_docstring(client):
    prompt = "def f(x):\n    # twice x\n"
    columns = {name: [value] for name, value in HUMAN_EVAL.items()}
    assert client.score(["    return 2 * x\n"], prompt=[prompt], **columns) == [1.0]


@pytest.mark.filterwarnings("error")
def test_a_prompt_may_hold_what_python_warns_of(client):
    prompt = "def f(x):\n    'Twice x, as in \\d.'\n"
    columns = {name: [value] for name, value in HUMAN_EVAL.items()}
    assert client.score(["    return 2 * x\n"], prompt=[prompt], **columns) == [1.0]


def test_a_prompt_of_words_is_not_put_before_the_code(client):
    prompts = ["Write\ndef f(x): …\nthat doubles.", [{"role": "user", "content": "Double x."}]]
    columns = {name: [value] * 2 for name, value in DOUBLE.items()}
    code = "from operator import mul\ng = f = lambda x: mul(2, x)"
    assert client.score([code, code], prompts=prompts, **columns) == [1.0, 1.0]


def test_it_is_called_as_trl_calls_it(client):
    assert client.score.__name__ == "score"
    rewards = client.score(
        prompts=[[{"role": "user", "content": "Double x."}]] * 2,
        completions=[[{"role": "assistant", "content": code}] for code in (HONEST, HALF)],
        completion_ids=[[1, 2, 3], [4]],
        tests=[DOUBLE["tests"]] * 2,
        reward=[0.5, "no"],
        seed=["a", "b"],
        trainer_state=object(),
        log_extra=print,
        log_metric=print,
        environments=None,
    )
    assert rewards == [1.0, 0.5]


def test_a_row_without_a_task_is_no_verdict_and_costs_the_others_nothing(client, caplog):
    tests = [DOUBLE["tests"], None, "assert f(4) ==", DOUBLE["tests"]]
    with caplog.at_level(logging.WARNING, "python_env"):
        assert client.score([HONEST] * 4, tests=tests) == [1.0, None, None, 1.0]
    assert caplog.text.count("no verdict") == 2
    assert "expected `tests`" in caplog.text


def test_tests_at_fault_are_no_verdict(client):
    tests = ["assert f(4) == nobody_knows_this\nimport surely_not_installed"]
    assert client.score([HONEST], tests=tests) == [None]


ODD_CELLS = [
    {"test": [{"in": 1}]},
    {"private_tests": [1], "public_tests": [1]},
    {"input_output": "[1]"},
    {"inputs": 5, "outputs": 5},
    {"inputs": "21", "outputs": "12"},
]


@pytest.mark.parametrize("row", ODD_CELLS, ids=str)
def test_columns_of_another_shape_are_no_verdict_and_refused_by_name(client, row):
    columns = {name: [None, value] for name, value in row.items()}
    columns["tests"] = [DOUBLE["tests"], None]
    assert client.score([HONEST, HONEST], **columns) == [1.0, None]
    with pytest.raises(PythonEnvError, match=next(iter(row))):
        client.reset(**row)


def test_a_task_without_tests_is_no_verdict(client):
    assert client.score(["x = 1"], task_id=["repl"]) == [None]


def test_a_completion_that_is_far_too_long_earns_nothing(client):
    tests = [DOUBLE["tests"]] * 2
    assert client.score(["#" * 5_000_000 + "\n" + HONEST, HONEST], tests=tests) == [0.0, 1.0]


def test_a_column_of_another_length_is_refused(client):
    with pytest.raises(InvalidRequest, match="columns of 2 values each, but `helpers` has 1"):
        client.score([HONEST] * 2, tests=[DOUBLE["tests"]] * 2, helpers=["x = 1"])


INTERRUPTED = """
import python_env
with python_env.PythonEnv(server_args=["--step-timeout=60"]) as env:
    print("ready", flush=True)
    env.score(["while True: pass"] * 20, tests=["assert f()"] * 20)
"""


def test_ctrl_c_ends_what_runs():
    command = [sys.executable, "-c", INTERRUPTED]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=HERE, text=True, stdout=pipe, stderr=pipe) as child:
        assert child.stdout.readline() == "ready\n"
        eventually(lambda: len(descendants(child.pid)) > 8)
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=30)  # sooner than the steps' own time-out
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert "no verdict" not in errors


def test_a_text_is_no_batch(client):
    with pytest.raises(InvalidRequest, match="expected a list of completions, got a text"):
        client.score(HONEST, tests=[DOUBLE["tests"]] * len(HONEST))


def test_more_workers_than_a_server_has_places_is_no_hurdle():
    with PythonEnv(server_args=["--max-sessions=2"]) as env:
        tests = [DOUBLE["tests"]] * 12
        assert env.score([HONEST, WRONG] * 6, tests=tests, workers=5) == [1.0, 0.0] * 6


def test_a_client_that_was_closed_starts_no_server():
    env = PythonEnv()
    env.close()
    assert env.score([HONEST], tests=[DOUBLE["tests"]]) == [None]
    assert env._wire.server.process.poll() is not None


def test_completions_that_are_none_are_no_verdict(client):
    assert client.score([None, HONEST], tests=[DOUBLE["tests"]] * 2) == [None, 1.0]


NO_TASKS = [{}, {"answers": ["a"]}, {"tests": DOUBLE["tests"]}]


@pytest.mark.parametrize("columns", NO_TASKS, ids=str)
def test_columns_that_bring_no_tasks_are_refused(client, columns):
    with pytest.raises(InvalidRequest, match="score: expected lists of 1 values"):
        client.score([HONEST], **columns)


UNHEARD = {
    "a typo": ({"test_lst": [["assert f(1)"]]}, "did you mean `test_list`"),
    "a typo in an id": ({"taskid": ["repl"]}, "did you mean `task_id`"),
    "one text for all": ({"tests": DOUBLE["tests"]}, "`tests` is not a list"),
}


@pytest.mark.parametrize("name", UNHEARD)
def test_what_keeps_columns_from_being_tasks_is_named(client, name):
    columns, words = UNHEARD[name]
    with pytest.raises(InvalidRequest, match=words):
        client.score([HONEST], **columns)


def test_numpy_s_columns_are_columns(client):
    numpy = pytest.importorskip("numpy")
    tests = numpy.array([DOUBLE["tests"], DOUBLE["tests"]], dtype=object)
    assert client.score([HONEST, WRONG], tests=tests) == [1.0, 0.0]


def test_sessions_are_kept_from_one_batch_to_the_next(tmp_path):
    with Launched(tmp_path) as server:
        with PythonEnv(server.url) as env:
            for _ in range(2):
                assert env.score([HONEST] * 64, tests=[DOUBLE["tests"]] * 64) == [1.0] * 64
                assert 1 <= sessions(server) <= 8
            assert env.score([HONEST] * 9, tests=[DOUBLE["tests"]] * 9, workers=3) == [1.0] * 9
            assert sessions(server) <= 8
        eventually(lambda: sessions(server) == 0)


def test_threads_score_at_the_same_time(client):
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        calls = [
            pool.submit(client.score, [code] * 4, tests=[DOUBLE["tests"]] * 4)
            for code in (HONEST, WRONG) * 8
        ]
        rewards = [call.result(60) for call in calls]
    assert rewards == [[1.0] * 4, [0.0] * 4] * 8


def score_in_a_child(env, queue):
    queue.put(env.score([HONEST, WRONG], tests=[DOUBLE["tests"]] * 2))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_scores_with_sessions_of_its_own(client):
    assert client.score([HONEST, WRONG], tests=[DOUBLE["tests"]] * 2) == [1.0, 0.0]
    fork = multiprocessing.get_context("fork")
    queue = fork.Queue()
    children = [fork.Process(target=score_in_a_child, args=(client, queue)) for _ in range(3)]
    for child in children:
        child.start()
    assert client.score([WRONG, HONEST], tests=[DOUBLE["tests"]] * 2) == [0.0, 1.0]
    assert [queue.get(timeout=60) for _ in children] == [[1.0, 0.0]] * 3
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    assert client.score([WRONG, HONEST], tests=[DOUBLE["tests"]] * 2) == [0.0, 1.0]


def test_a_server_that_is_gone_is_no_verdict():
    env = PythonEnv("http://127.0.0.1:1", connect_timeout_s=0.1)
    assert env.score([HONEST], tests=[DOUBLE["tests"]]) == [None]


def test_a_connection_that_is_cut_is_tried_again():
    cuts = []

    def answer(message):
        if message["type"] == "step" and len(cuts) < 2:
            cuts.append(1)
            raise ConnectionError
        return {"type": "observation", "data": {"observation": {"tests_total": 1}, "reward": 1.0}}

    with Fake(answer) as fake:
        with PythonEnv(fake.url) as env:
            assert env.score([HONEST], tests=[DOUBLE["tests"]]) == [1.0]
        assert fake.connections == 4  # one is its own


NO_VERDICTS = [
    {"reward": "1.0"},
    {"reward": [1]},
    {"reward": True},
    {"reward": float("nan")},
    {"reward": float("inf")},
    {"observation": {"tests_total": 1, "prompt": None}},
    {"observation": {"tests_total": 1, "prompt": 5}},
    {"observation": None},
]


@pytest.mark.parametrize("reply", NO_VERDICTS, ids=str)
def test_a_reply_of_another_shape_is_no_verdict(reply):
    data = {"observation": {"tests_total": 1}, "reward": 1.0, **reply}
    reply = {"type": "observation", "data": data}
    with Fake(lambda message: reply) as fake, PythonEnv(fake.url) as env:
        assert env.score([HONEST], tests=[DOUBLE["tests"]]) == [None]


def test_an_embedded_server_that_is_killed_costs_no_sample():
    with PythonEnv() as env:
        assert env.score([HONEST] * 8, tests=[DOUBLE["tests"]] * 8) == [1.0] * 8
        os.kill(env._wire.server.process.pid, signal.SIGKILL)
        tests = [DOUBLE["tests"]] * 64
        assert env.score([HONEST, WRONG] * 32, tests=tests) == [1.0, 0.0] * 32


def test_an_embedded_server_that_is_killed_at_work_costs_no_sample():
    with PythonEnv() as env:
        first = env._wire.server.process
        slow = f"import time\ntime.sleep(0.2)\n{HONEST}"

        def kill():
            eventually(lambda: named(first.pid, "worker"))
            os.kill(first.pid, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        assert env.score([slow] * 24, tests=[DOUBLE["tests"]] * 24) == [1.0] * 24
        killer.join()
        assert env._wire.server.process is not first


# ── rows ──────────────────────────────────────────────────────────────────────────────────────────

CELLS = {
    "not a number": float("nan"),
    "a date": datetime.date(2026, 1, 1),
    "bytes": b"\xff\x00",
    "5 MB": "x" * 5_000_000,
    "an object": object(),
    "a set": {1, 2},
}


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("column", ["meta", "seed", "reward", "difficulty_score"])
def test_a_column_that_is_not_ours_may_hold_anything(client, name, column):
    row = {**DOUBLE, "prompt": "Double it.", column: CELLS[name]}
    assert client.reset(**row).observation.prompt == "Double it."
    assert client.step(HONEST).reward == 1.0


@pytest.mark.parametrize("given, task_id", [(3.0, "3"), (7, "7"), ("a/b", "a/b")])
def test_a_task_id_may_be_a_number(client, given, task_id):
    seen = client.reset(task_id=given, difficulty=3, **DOUBLE)
    assert seen.observation.task_id == task_id


@pytest.mark.parametrize("column", ["setup", "difficulty", "solution", "judge", "task_id"])
def test_a_cell_that_is_missing_is_no_column(client, column):
    client.reset(**DOUBLE, **{column: float("nan")})
    assert client.step(HONEST).reward == 1.0


def test_numpy_s_cells_are_lists_and_numbers(client):
    numpy = pytest.importorskip("numpy")
    row = {
        "task_id": numpy.int64(601),
        "text": "Double it.",
        "test_list": numpy.array(["assert f(4) == 8", "assert f(5) == 10"], dtype=object),
        "embedding": numpy.zeros(100_000),
        "seed": numpy.float32("nan"),
    }
    assert client.reset(**row).observation.task_id == "601"
    assert client.step(HONEST).reward == 1.0


def test_a_prompt_of_messages_is_its_last_user_s_text(client):
    prompt = [
        {"role": "system", "content": "You write Python."},
        {"role": "user", "content": "Double it."},
    ]
    assert client.reset(prompt=prompt, **DOUBLE).observation.prompt == "Double it."


BARE = [{"prompt": "p"}, {"unit_tests": "assert 1"}, {"tests": None}, {"answer": 1, "seed": 2}]


@pytest.mark.parametrize("row", BARE, ids=str)
def test_a_row_without_a_task_is_refused_by_the_names_of_its_columns(client, row):
    with pytest.raises(PythonEnvError, match=next(iter(row))):
        client.reset(**row)


def test_options_alone_are_the_server_s_to_judge(client):
    for options in ({"seed": -1}, {"max_steps": 0}, {"reward": "most"}):
        with pytest.raises(ServerError, match=next(iter(options))):
            client.reset(**options)


def test_a_row_s_own_options_count_where_they_are_ones(client):
    client.reset(**DOUBLE, seed=3, max_steps=1, episode_id="e", reward="gain")
    assert client.state().episode_id == "e"
    assert client.state().max_steps == 1


def test_an_observation_fits_a_terminal(client):
    client.reset("repl")
    result = client.step("print('x' * 60_000); 'y' * 8_000")
    assert len(repr(result)) < 1_000
    assert "stdout='xxx" in repr(result)
    assert "tests_total" not in repr(result)


def test_a_result_dumps_as_plain_values(client):
    client.reset("repl")
    dumped = client.step("6 * 7").model_dump()
    assert dumped["observation"]["result"] == "42"
    assert json.loads(json.dumps(dumped)) == dumped
    assert client.state().model_dump()["step_count"] == 1


FENCE_IN_DOCSTRING = {
    "prompt": 'def f(x):\n    """\n    ```python\n    f(1)\n    ```\n    """\n',
    "canonical_solution": "    import math\n    return math.floor(2 * x)\n",
    **HUMAN_EVAL,
}


def test_a_row_means_the_same_whoever_reads_it(server):
    for kind in (PythonEnv, EnvClient):
        with kind(server.url) as player:
            player.reset(**FENCE_IN_DOCSTRING)
            assert player.step({"code": HONEST}).reward == 1.0


def test_a_program_that_ends_badly_fails_its_pair(client):
    for code, reward in (("print(input())", 1.0), ("print(input())\n1 / 0", 0.0)):
        client.reset(inputs=["1"], outputs=["1"])
        assert client.step(code).reward == reward
