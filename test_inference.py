"""inference.py as a hackathon's checker runs it: as a process, whose lines are read strictly.

The model is a stand-in that speaks the real API's HTTP; what the openai client sends it is looked
at. Without that client most of this is skipped, or fails where PYTHON_ENV_REQUIRED has the word
"inference" in it. The tests of the image are marked docker, and need what test_docker.py needs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.server
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from collections.abc import Iterator
from email.message import Message
from pathlib import Path
from typing import Any
from typing import NamedTuple

import pytest

import inference
from conftest import HERE
from conftest import Launched
from conftest import ask
from conftest import eventually
from fakes import Fake
from python_env import BUILTIN_ROWS
from python_env import PythonEnv

REQUIRED = os.environ.get("PYTHON_ENV_REQUIRED", "").split()
PROGRAM = HERE / "inference.py"
KEY = "sk-stand-in-7d1f"

TASKS = [
    {
        "task_id": "double",
        "prompt": "Define `double(x)`.",
        "tests": "assert double(2) == 4\nassert double(3) == 6",
        "solution": "def double(x): return 2 * x",
        "difficulty": "easy",
    },
    {
        "task_id": "triple",
        "prompt": "Define `triple(x)`.",
        "tests": "assert triple(2) == 6\nassert triple(3) == 9",
        "solution": "def triple(x): return 3 * x",
        "difficulty": "hard",
    },
]
RIGHT = {task["task_id"]: f"```python\n{task['solution']}\n```" for task in TASKS}


def write_tasks(folder: Path) -> Path:
    path = folder / "tasks.jsonl"
    path.write_text("\n".join(map(json.dumps, TASKS)))
    return path


@pytest.fixture
def client() -> None:
    """The openai client, without which a test that asks a model has nothing to show."""
    if not importlib.util.find_spec("openai"):
        reason = "the openai client is not installed: pip install -e '.[inference]'"
        if "inference" in REQUIRED:
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(scope="module")
def env_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launched]:
    """A server with TASKS, for all tests of this file."""
    tasks = write_tasks(tmp_path_factory.mktemp("tasks"))
    with Launched(tmp_path_factory.mktemp("server"), "--tasks", str(tasks)) as launched:
        yield launched


# ── A stand-in for the model's API ────────────────────────────────────────────────────────────────


class Reply(NamedTuple):
    """What the stand-in answers. `waits`: not at all before the test is over; `drips`: a byte now
    and then, without end."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = {}
    waits: bool = False
    drips: bool = False


class Asked(NamedTuple):
    """A request that came: by which path, with which headers and JSON, and when."""

    path: str
    headers: Message  # in which a name's case does not matter
    body: dict[str, Any]
    at: float

    @property
    def task_id(self) -> str:
        return str(re.findall(r"Define `(\w+)", self.body["messages"][1]["content"])[0])


def completion(text: str | None) -> Reply:
    """A reply with this text, as OpenAI documents it."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
    body = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    return Reply(200, json.dumps(body).encode())


def fault(status: int, message: str, **headers: str) -> Reply:
    """An error, as OpenAI documents it."""
    body = {"error": {"message": message, "type": "error", "param": None, "code": None}}
    return Reply(status, json.dumps(body).encode(), headers)


class Api:
    """The stand-in's server. `answer(asked)` decides, given the request."""

    def __init__(self, answer: Callable[[Asked], Reply]) -> None:
        self.asked: list[Asked] = []
        self.is_over = threading.Event()
        api = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                asked = Asked(self.path, self.headers, body, time.monotonic())
                api.asked.append(asked)
                with contextlib.suppress(ConnectionError):
                    self.send(answer(asked))

            def send(self, reply: Reply) -> None:
                if reply.waits:
                    api.is_over.wait(60)
                    self.close_connection = True
                    return
                size = 10**6 if reply.drips else len(reply.body)
                headers = {"Content-Type": "application/json", "Content-Length": str(size)}
                self.send_response(reply.status)
                for name, value in {**headers, **reply.headers}.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                self.wfile.write(reply.body)
                while reply.drips and not api.is_over.wait(0.1):
                    self.wfile.write(b" ")
                    self.wfile.flush()

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))

    def __enter__(self) -> Api:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.is_over.set()
        self.server.shutdown()
        self.thread.join(10)
        self.server.server_close()


def right(asked: Asked) -> Reply:
    return completion(RIGHT[asked.task_id])


# ── Running it, and reading what it prints ────────────────────────────────────────────────────────

START = re.compile(r"\[START\] task=(?P<task>\S+) env=python_env model=(?P<model>\S+)")
STEP = re.compile(
    r"\[STEP\] step=(?P<step>\d+) action=(?P<action>.*) reward=(?P<reward>[01]\.\d\d) "
    r"done=(?P<done>true|false) error=(?P<error>.+)"
)
END = re.compile(
    r"\[END\] success=(?P<success>true|false) steps=(?P<steps>\d+) score=(?P<score>0\.\d{3}) "
    r"rewards=(?P<rewards>|[01]\.\d\d(,[01]\.\d\d)*)"
)


@dataclasses.dataclass
class Played:
    """A block, read."""

    task: str
    model: str
    steps: list[dict[str, str]] = dataclasses.field(default_factory=list)
    end: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def rewards(self) -> list[float]:
        return [float(step["reward"]) for step in self.steps]


def read(output: str) -> list[Played]:
    """The blocks, of which standard output must be made, with nothing besides."""
    blocks: list[Played] = []
    is_open = False
    for line in output.splitlines():
        patterns = (STEP, END) if is_open else (START,)
        (found,) = [match for pattern in patterns if (match := pattern.fullmatch(line))] or [None]
        assert found, line
        fields = found.groupdict()
        if found.re is START:
            blocks.append(Played(fields["task"], fields["model"]))
            is_open = True
        elif found.re is STEP:
            blocks[-1].steps.append(fields)
            assert int(fields["step"]) == len(blocks[-1].steps)
        else:
            blocks[-1].end = fields
            is_open = False
    assert not is_open
    assert output.endswith("\n")
    for block in blocks:
        last = block.rewards[-1] if block.rewards else 0.0
        assert block.end["rewards"] == ",".join(step["reward"] for step in block.steps)
        assert int(block.end["steps"]) == len(block.steps)
        assert block.end["success"] == str(last == 1.0).lower()
        assert 0 < float(block.end["score"]) < 1
        assert abs(float(block.end["score"]) - last) < 0.006
    return blocks


def variables(**more: str) -> dict[str, str]:
    """This process's environment without what would mislead the program, and with `more`."""
    misleading = "API_BASE_URL|MODEL_NAME|HF_TOKEN|LOCAL_IMAGE|ENV_BASE|OPENAI_|INFERENCE_"
    misleading += "|PYTHON_ENV_|MAX_CONCURRENT|PYTHONUNBUFFERED"
    kept = {name: text for name, text in os.environ.items() if not re.match(misleading, name)}
    return {**kept, "NO_PROXY": "127.0.0.1,localhost", **more}


class Ended(NamedTuple):
    blocks: list[Played]
    errors: list[str]  # the lines of standard error
    status: int


def start(*arguments: str, program: Path = PROGRAM, **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(program), *arguments],
        env=variables(**more),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], seen: str = "") -> Ended:
    """How it ended. `seen` is what was read of its output before."""
    with process:
        try:
            output, errors = process.communicate(timeout=100)
        finally:
            process.kill()
    assert "Traceback" not in errors
    assert KEY not in errors
    lines = errors.splitlines()
    assert [line for line in lines if not line.startswith("inference.py: ")] == []
    return Ended(read(seen + output), lines, process.returncode)


def run(api: Api | str, server: Launched, *arguments: str, **more: str) -> Ended:
    """The program on this server, with the model at this API."""
    model = {
        "API_BASE_URL": api if isinstance(api, str) else api.url,
        "MODEL_NAME": "stand-in",
        "HF_TOKEN": KEY,
    }
    return finish(start(*arguments, **{"ENV_BASE_URL": server.url, **model, **more}))


# ── A model that answers ──────────────────────────────────────────────────────────────────────────


def test_right_code_solves_each_task_and_the_api_gets_what_it_documents(client, env_server):
    with Api(right) as api:
        ended = run(api, env_server)
    assert [(block.task, block.model) for block in ended.blocks] == [
        ("double", "stand-in"),
        ("triple", "stand-in"),
    ]
    for block, task in zip(ended.blocks, TASKS, strict=True):
        (step,) = block.steps
        assert step == {
            "step": "1",
            "action": task["solution"],
            "reward": "1.00",
            "done": "true",
            "error": "null",
        }
        assert block.end["score"] == "0.999"
    assert (ended.errors, ended.status) == ([], 0)

    for asked, task in zip(api.asked, TASKS, strict=True):
        assert asked.path == "/v1/chat/completions"
        assert asked.headers["Authorization"] == f"Bearer {KEY}"
        assert asked.body.keys() == {"model", "messages"}
        assert asked.body["model"] == "stand-in"
        system, user = asked.body["messages"]
        assert system["role"] == "system"
        assert user == {"role": "user", "content": task["prompt"]}


def test_it_sends_what_was_asked_for_besides(client, env_server):
    with Api(right) as api:
        options = ("--temperature", "0.5", "--max-tokens", "99", "--max-tasks", "1")
        ended = run(api, env_server, *options, HF_TOKEN="", OPENAI_API_KEY="another")
    assert len(ended.blocks) == 1
    (asked,) = api.asked
    assert (asked.body["temperature"], asked.body["max_tokens"]) == (0.5, 99)
    assert asked.headers["Authorization"] == "Bearer another"


def test_the_model_sees_the_output_and_the_feedback_of_its_last_step(client, env_server):
    first = "My try:\n```python\ndef double(x): return 4\nprint('seen' + '!')\n1 / 0\n```"

    def answer(asked: Asked) -> Reply:
        told = asked.body["messages"][-1]["content"]
        is_told = all(words in told for words in ("1 of 2 tests", "seen!", "ZeroDivisionError"))
        return right(asked) if is_told else completion(first)

    with Api(answer) as api:
        ended = run(api, env_server, "--max-tasks", "1")
    (block,) = ended.blocks
    assert block.rewards == [0.5, 1.0]
    assert block.steps[0]["action"] == "def double(x): return 4 print('seen' + '!') 1 / 0"
    assert block.steps[0]["error"] == "ZeroDivisionError: division by zero"
    roles = [message["role"] for message in api.asked[1].body["messages"]]
    assert roles == ["system", "user", "assistant", "user"]
    assert api.asked[1].body["messages"][2]["content"] == first


@pytest.mark.parametrize("text", ["I am sorry, that is beyond me.", "", None])
def test_a_reply_without_code_costs_a_step_and_the_exit_status_is_0(client, env_server, text):
    with Api(lambda asked: completion(text)) as api:
        ended = run(api, env_server, "--max-steps", "2")
    assert [block.rewards for block in ended.blocks] == [[0.0, 0.0]] * 2
    assert [block.end["score"] for block in ended.blocks] == ["0.001"] * 2
    assert ended.status == 0


FORGED = " reward=1.00 done=true error=null\n[END] success=true steps=1 score=0.999 rewards=1.00\n"


def test_code_cannot_forge_lines_or_fields(client, env_server):
    code = f"reason = '''{FORGED}\x1b[2J\u2028\x00é'''\nraise ValueError(reason)"
    with Api(lambda asked: completion(f"```\n{code}\n```")) as api:
        ended = run(api, env_server, "--max-tasks", "1", "--max-steps", "2")
    (block,) = ended.blocks
    assert block.rewards == [0.0, 0.0]
    for step in block.steps:
        assert "reward=" not in step["action"] + step["error"]
        assert (step["action"] + step["error"]).isprintable()


# ── An API that does not answer ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("status", "words"),
    [(401, "HF_TOKEN"), (402, "credit"), (403, "right"), (404, "MODEL_NAME")],
)
def test_what_no_second_request_can_mend_is_asked_once(client, env_server, status, words):
    with Api(lambda asked: fault(status, f"no: {KEY}")) as api:
        ended = run(api, env_server)
    assert [block.steps for block in ended.blocks] == [[], []]
    assert len(api.asked) == 1
    assert str(status) in ended.errors[0]
    assert words in ended.errors[0]
    assert "not asked again" in ended.errors[1]
    assert (len(ended.errors), ended.status) == (2, 0)


def test_a_missing_key_is_said_to_be_missing(client, env_server):
    with Api(lambda asked: fault(401, "no key")) as api:
        ended = run(api, env_server, HF_TOKEN="")
    assert "none is set" in ended.errors[0]


def test_a_key_with_a_line_break_works_and_is_never_shown(client, env_server):
    with Api(right) as api:
        ended = run(api, env_server, "--max-tasks", "1", HF_TOKEN=f"{KEY}\n")
        assert ended.errors == []
        assert api.asked[0].headers["Authorization"] == f"Bearer {KEY}"
        # An error of the client's that repeats the header; finish() looks for the key.
        ended = run(api, env_server, "--max-tasks", "1", HF_TOKEN=f"{KEY}\nmore")
    assert len(ended.errors) == 1


def test_an_address_that_is_none(client, env_server):
    ended = run("nonsense", env_server, "--max-tasks", "1", "--retries", "0")
    assert ended.errors[0].startswith("inference.py: double: nonsense cannot be reached ")


def test_after_429_it_waits_as_long_as_it_is_told(client, env_server):
    def answer(asked: Asked) -> Reply:
        return fault(429, "slow down", Retry_After="2") if len(api.asked) == 1 else right(asked)

    with Api(answer) as api:
        ended = run(api, env_server, "--max-tasks", "1")
    assert (ended.blocks[0].rewards, ended.errors) == ([1.0], [])
    first, second = api.asked
    # By itself the client tries again within half a second.
    assert second.at - first.at > 1.9


NO_COMPLETIONS = {
    "500": fault(500, "out of order"),
    "no JSON": Reply(200, b'{"choices": [{"mess'),
    "no choices": Reply(200, b'{"id": "c", "object": "chat.completion", "choices": []}'),
    "null": Reply(200, b"null"),
    "nothing": Reply(200, b""),
    "a page": Reply(200, b"<html>hello", {"Content_Type": "text/html"}),
    "too long a prompt": fault(400, "the context is full"),
}


@pytest.mark.parametrize("reply", NO_COMPLETIONS.values(), ids=NO_COMPLETIONS)
def test_a_bad_answer_ends_one_task_and_the_next_goes_on(client, env_server, reply):
    with Api(lambda asked: reply if asked.task_id == "double" else right(asked)) as api:
        ended = run(api, env_server, "--retries", "1")
    assert [block.rewards for block in ended.blocks] == [[], [1.0]]
    (error,) = ended.errors
    assert error.startswith(f"inference.py: double: {api.url} ")
    assert ended.status == 0
    assert len(api.asked) == 2 + (reply.status == 500)


@pytest.mark.parametrize("reply", [Reply(waits=True), Reply(drips=True)], ids=["waits", "drips"])
def test_a_hanging_answer_ends_at_the_task_s_time_limit(client, env_server, reply):
    with Api(lambda asked: reply if asked.task_id == "double" else right(asked)) as api:
        ended = run(api, env_server, "--task-seconds", "3")
    assert [block.rewards for block in ended.blocks] == [[], [1.0]]
    assert ended.errors == ["inference.py: double: the task took longer than 3 s"]
    assert ended.status == 0


def test_when_the_time_of_the_run_is_over_each_task_has_a_block_all_the_same(client, env_server):
    with Api(lambda asked: Reply(waits=True)) as api:
        ended = run(api, env_server, INFERENCE_RUN_SECONDS="4")
    assert [block.steps for block in ended.blocks] == [[], []]
    over = "the 4 s of the whole run are over"
    assert ended.errors == [f"inference.py: {task['task_id']}: {over}" for task in TASKS]
    assert len(api.asked) == 1
    assert ended.status == 0


def test_a_dead_api(client, env_server):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/v1"
    ended = run(url, env_server, "--retries", "0")
    assert [block.steps for block in ended.blocks] == [[], []]
    words = f"{url} cannot be reached (is API_BASE_URL right?): "
    assert [words in error for error in ended.errors] == [True, True]
    assert "refused" in ended.errors[0]
    assert ended.status == 0


def test_without_the_openai_client_it_says_how_to_get_it(env_server, tmp_path):
    (tmp_path / "openai.py").write_text("raise ImportError('not installed')")
    ended = run("http://127.0.0.1:1/v1", env_server, PYTHONPATH=str(tmp_path))
    assert [block.steps for block in ended.blocks] == [[], []]
    assert "pip install openai" in ended.errors[0]


# ── Environments ──────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """The program where an entrant has it: beside python_env.py and tasks of their own."""
    for name in ("inference.py", "python_env.py"):
        shutil.copy(HERE / name, tmp_path)
    write_tasks(tmp_path)
    return tmp_path / "inference.py"


def test_embedded_it_plays_the_tasks_beside_it(client, own):
    with Api(right) as api:
        ended = finish(start(program=own, API_BASE_URL=api.url))
    assert [block.task for block in ended.blocks] == ["double", "triple"]
    assert [block.rewards for block in ended.blocks] == [[1.0], [1.0]]
    assert ended.blocks[0].model == inference.MODEL
    assert api.asked[0].body["model"] == inference.MODEL


def test_the_references_of_the_built_in_tasks_solve_them():
    ended = finish(start("--play", "builtin"))
    assert [block.task for block in ended.blocks] == [row["task_id"] for row in BUILTIN_ROWS]
    assert {block.end["score"] for block in ended.blocks} == {"0.999"}


def test_embedded_it_plays_the_built_in_tasks_where_there_are_no_others():
    with PythonEnv() as env:
        listed = [task["task_id"] for task in env.tasks()]
    ended = finish(start("--play", os.devnull))
    assert [block.task for block in ended.blocks] == listed
    assert {tuple(block.rewards) for block in ended.blocks} == {(0.0,)}


def test_the_baselines_of_the_references_and_of_an_empty_answer(own):
    ended = finish(start("--play", str(own.parent / "tasks.jsonl"), program=own))
    assert [block.end["score"] for block in ended.blocks] == ["0.999", "0.999"]
    ended = finish(start("--play", os.devnull, program=own))
    assert [block.end["score"] for block in ended.blocks] == ["0.001", "0.001"]
    assert (ended.blocks[0].model, ended.errors, ended.status) == ("script", [], 0)


def test_the_references_of_rows_of_other_formats_are_played_wherever_the_file_is(tmp_path):
    rows = [
        {"task_id": "m", "test_list": ["assert f() == 1"], "text": "", "code": "def f(): return 1"},
        {
            "task_id": "p",
            "inputs": ["2"],
            "outputs": ["4"],
            "solutions": ["print(2 * int(input()))"],
        },
        {"task_id": "n", "tests": "assert g() == 1"},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    ended = finish(start("--play", str(path)))
    assert [block.end["score"] for block in ended.blocks] == ["0.999", "0.999", "0.001"]
    assert [line for line in ended.errors if "n:" in line and "no solution" in line]


def test_the_built_in_tasks_are_played_beside_others(own):
    ended = finish(start("--play", "builtin", "--max-tasks", "1", program=own))
    assert [block.end["score"] for block in ended.blocks] == ["0.999"]


def test_a_program_that_solved_its_task_has_no_error(tmp_path):
    tasks = tmp_path / "tasks.jsonl"
    row = {
        "task_id": "add",
        "inputs": ["1"],
        "outputs": ["2"],
        "solution": "print(int(input()) + 1)",
    }
    tasks.write_text(json.dumps(row))
    ended = finish(start("--play", str(tasks)))
    assert [step["reward"] for step in ended.blocks[0].steps] == ["1.00"]
    assert [step["error"] for step in ended.blocks[0].steps] == ["null"]


def test_a_server_that_asks_for_a_token_gets_it(tmp_path):
    with Launched(tmp_path, PYTHON_ENV_TOKEN="let-me-in") as server:
        more = {"ENV_BASE_URL": server.url, "INFERENCE_MAX_TASKS": "1"}
        ended = finish(start("--play", os.devnull, PYTHON_ENV_TOKEN="let-me-in", **more))
        assert (len(ended.blocks[0].steps), ended.status) == (1, 0)
        ended = finish(start("--play", os.devnull, **more))
        assert "401" in ended.errors[0]
        assert (ended.blocks[0].task, ended.status) == ("unknown", 1)


@pytest.mark.parametrize("where", ["ENV_BASE_URL", "LOCAL_IMAGE_NAME"])
def test_no_environment_is_an_ended_block_and_exit_status_1(where):
    bad = {"ENV_BASE_URL": "http://127.0.0.1:1", "LOCAL_IMAGE_NAME": "no-such-image-here"}
    ended = finish(start("--play", os.devnull, **{where: bad[where]}))
    (block,) = ended.blocks
    assert (block.task, block.steps) == ("unknown", [])
    (error,) = ended.errors
    assert error.startswith("inference.py: no environment: ")
    assert ended.status == 1


def test_a_server_that_dies_ends_its_tasks(client, tmp_path):
    (tmp_path / "tmp").mkdir()
    tasks = write_tasks(tmp_path)

    def answer(asked: Asked) -> Reply:
        server.stop()
        return right(asked)

    with Launched(tmp_path / "tmp", "--tasks", str(tasks)) as server, Api(answer) as api:
        ended = run(api, server)
    assert [(block.task, block.steps) for block in ended.blocks] == [("double", []), ("triple", [])]
    assert len(ended.errors) == 2
    assert ended.status == 0


@pytest.mark.parametrize("reply", ["no JSON", {"type": "observation", "data": {"observation": 5}}])
def test_a_server_that_speaks_something_else_ends_its_task(reply):
    with Fake(lambda message: reply) as fake:
        ended = finish(start("--play", os.devnull, ENV_BASE_URL=fake.url))
    assert [(block.task, block.steps) for block in ended.blocks] == [("t", [])]
    assert (len(ended.errors), ended.status) == (1, 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_block_and_then_the_program(client, env_server, number):
    with Api(lambda asked: Reply(waits=True)) as api:
        process = start("--task-seconds", "30", ENV_BASE_URL=env_server.url, API_BASE_URL=api.url)
        assert process.stdout
        line = process.stdout.readline()  # which is there before the model answers
        eventually(lambda: api.asked)
        process.send_signal(number)
        ended = finish(process, line)
    assert [(block.task, block.steps) for block in ended.blocks] == [("double", [])]
    assert ended.errors == [f"inference.py: double: ended by {number.name}"]
    assert ended.status == 128 + number


def test_a_signal_while_the_environment_starts(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(60)
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        process = start("--play", os.devnull, ENV_BASE_URL=url)
        connection, _ = silent.accept()
        with connection:
            process.send_signal(signal.SIGTERM)
            ended = finish(process)
    assert (ended.blocks[0].task, ended.status) == ("unknown", 143)
    assert "ended by SIGTERM" in ended.errors[0]


def test_a_reader_that_goes_away_is_no_traceback(env_server):
    process = start("--play", os.devnull, ENV_BASE_URL=env_server.url)
    assert process.stdout
    process.stdout.close()
    assert process.stderr
    errors = process.stderr.read()
    process.stderr.close()
    assert (process.wait(60), errors) == (1, "")


# ── The command line, and its parts ───────────────────────────────────────────────────────────────


def test_the_help_names_every_variable():
    done = subprocess.run([sys.executable, PROGRAM, "--help"], capture_output=True, text=True)
    for name in re.findall(r'environ.get\("(\w+)"\)', PROGRAM.read_text()):
        assert name in done.stdout
    assert "--play /dev/null" in done.stdout


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("INFERENCE_MAX_STEPS", "many", "expected int, at least 1"),
        ("INFERENCE_TASK_SECONDS", "0", "expected float, at least 0.1"),
        ("INFERENCE_PLAY", "no-such-file", "expected a file of tasks"),
    ],
)
def test_a_wrong_option_or_variable_is_refused(variable, value, words):
    command = [sys.executable, str(PROGRAM)]
    more = variables(**{variable: value})
    done = subprocess.run(command, env=more, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr


# ── What belongs to an entry besides ──────────────────────────────────────────────────────────────


def test_openenv_yaml_lists_the_tasks_that_the_server_lists(server):
    listed = ask(server, "GET", "/tasks")[2]["tasks"]
    rows = [f"  - {{id: {task['task_id']}, difficulty: {task['difficulty']}}}" for task in listed]
    given = re.findall(r"(?m)^  - \{id: .*", (HERE / "openenv.yaml").read_text())
    assert given == rows, "give openenv.yaml these lines below `tasks:`\n" + "\n".join(rows)


# ── The image ─────────────────────────────────────────────────────────────────────────────────────


def docker(*words: str) -> str:
    return subprocess.run(["docker", *words], capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An entrant's image: ours, built with a tasks.jsonl beside the Dockerfile."""
    if not shutil.which("docker") or subprocess.run(["docker", "version"]).returncode:
        if "docker" in REQUIRED:
            pytest.fail("no Docker engine answers")
        pytest.skip("no Docker engine answers")
    folder = tmp_path_factory.mktemp("entry")
    for name in ("python_env.py", "server.py", "Dockerfile", ".dockerignore"):
        shutil.copy(HERE / name, folder)
    write_tasks(folder)
    tag = f"python-env-test-entry-{os.getpid()}"
    docker("build", "-q", "-t", tag, str(folder))
    yield tag
    docker("rmi", "-f", tag)


@pytest.mark.docker
def test_an_image_serves_the_tasks_beside_its_dockerfile_and_is_played(client, image):
    with Api(right) as api:
        ended = finish(start(LOCAL_IMAGE_NAME=image, API_BASE_URL=api.url))
    assert [(block.task, block.rewards) for block in ended.blocks] == [
        ("double", [1.0]),
        ("triple", [1.0]),
    ]
    assert (ended.errors, ended.status) == ([], 0)
    assert not docker("ps", "-aq", "--filter", f"ancestor={image}")


@pytest.mark.docker
def test_the_image_s_tasks_stay_hidden_and_a_variable_goes_before_them(image):
    with PythonEnv.from_docker_image(image) as env:
        env.reset(task_id="repl")
        assert env.step("open('/app/tasks.jsonl').read()").observation.exit_code == 1
    with PythonEnv.from_docker_image(image, env_vars={"PYTHON_ENV_TASKS": ""}) as env:
        assert "double" not in [task["task_id"] for task in env.tasks()]


def test_server_py_serves_the_tasks_beside_it(tmp_path):
    for name in ("server.py", "python_env.py"):
        shutil.copy(HERE / name, tmp_path)
    write_tasks(tmp_path)
    (tmp_path / "tmp").mkdir()
    command = (str(tmp_path / "server.py"), "--port", "0")
    with Launched(tmp_path / "tmp", command=command) as launched, launched.session() as env:
        assert [task["task_id"] for task in env.tasks()] == ["double", "triple"]
