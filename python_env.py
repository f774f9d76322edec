# python_env 0.2.0 · SPDX-License-Identifier: MIT · home: the distribution openenv-python-env
"""python_env: an OpenEnv environment for writing Python, in one file with one dependency.

An agent sends Python code, a locked-down interpreter runs it, hidden tests judge it, and a reward
from 0 to 1 comes back that the code cannot forge, and that right code gets:

    with PythonEnv() as env:  # or PythonEnv(base_url=…), .from_docker_image(…), .from_hub(…)
        first = env.reset(task_id="parse-duration")
        print(first.observation.prompt)
        result = env.step(PythonAction("def parse_duration(text): ..."))
        print(result.reward, result.observation.feedback)

OpenEnv's clients, trainers and validators work with this server, and `EnvClient` with OpenEnv's
servers. Not its job: other languages, installing packages, uploads, a cluster.

    client ──ws/http──▶ server (asyncio, one process: no candidate code, ever)
                          │ commands, descriptors      │ a stream socket a process
                          ▼                            ▼
                        zygote ──fork──▶ worker   runs the agent's code; hostile
                          └──────fork──▶ judge    holds the hidden tests
                                         judge ◀── plain data and handles only ──▶ worker

Words
-----
episode      from one reset() to the next: one task, up to max_steps steps
step         one action: code goes in; output, feedback and a reward come out
session      one client's connection; it has one episode at a time
worker       the process that runs the agent's code: hostile, locked down, fresh each graded step
judge        the process that holds the hidden tests. It never runs the agent's code
zygote       the bare interpreter that workers and judges are forked from, because forking is fast
transcript   the code of the judged steps that neither timed out nor died; a fresh worker replays it
handle       what stands in the judge for an object that stays in the worker: also its mirror
line         the socket between a judge and a worker
outcome      how a step's code ended: by itself, by its time-out, or with its process
score        the share of the tests that passed
reward       the step's score; with reward="gain", what that adds to the episode's best so far
sampler      what looks at the workers now and then, and ends those with too many threads or files

The life of a graded step
-------------------------
 1. Ahead of time, while the agent still thinks, a worker is forked and replays the transcript.
 2. The step comes over a WebSocket. The server keeps reading that: a client that leaves ends it.
 3. The code runs in that worker; what it prints is captured. It is interrupted when its time is
    over, and killed a second later.
 4. The judge gets the worker's line, a socket, by way of the server.
 5. It runs the tests. When one calls the agent's function, the arguments go over the line, and the
    result comes back as plain data or as a handle, so the judge's own `==` decides.
 6. The judge reports counts. The server checks them, and makes the reward.
 7. The worker is killed. Whatever the code kept of the tests' inputs is gone with it.
 8. Code that neither timed out nor died joins the transcript, and the next worker replays it.
 9. If somebody else killed a process meanwhile, as a kernel short of memory, it is tried again.
10. The judge stays; but tests that may leave something behind are run in a fork of it.
A task of inputs and outputs has no judge: the server compares what the code prints for each input.

Where to look
-------------
Part I, the environment, reads like a story: 1 errors and limits, 2 models, 3 tasks, 4 environment,
5 client, 6 server, 7 command line. Part II is the engine room, each chapter a closed box: 8 models
and tasks at work (validation, JSON schema, task formats and files, check, flags), 9 HTTP/1.1, the
messages' meaning, WebSockets, the table of sessions, 10 the client's connection, its embedded
server, Docker and the Hub, 11 sandbox and grading, 12 worker program (isolation: SYSTEM_CALLS; the
line's values, tests, judge, zygote), 13 the page and the built-in tasks.
Beside it: test_judging.py (attacks, forgeries), test_isolation.py (REFUSED: the system calls).
"""

from __future__ import annotations  # noqa: I001

import _signal  # type: ignore[import-not-found]
import _thread
import argparse
import array
import ast
import asyncio
import binascii
import builtins
import collections
import concurrent.futures
import contextlib
import copy
import ctypes
import dataclasses
import datetime
import decimal
import difflib
import dis
import errno
import fractions
import functools
import gc
import gzip
import hmac
import html
import importlib
import inspect
import io
import ipaddress
import itertools
import json
import linecache
import logging
import numbers
import operator
import os
import pathlib
import pkgutil
import random
import re
import reprlib
import secrets
import select
import signal
import socket
import stat
import struct
import subprocess
import symtable
import sys
import tempfile
import textwrap
import threading
import time
import traceback
import types
import typing
import urllib.error
import urllib.request
import uuid
import warnings
import weakref
import zlib
import zoneinfo
from asyncio import StreamReader
from asyncio import StreamWriter
from collections.abc import AsyncIterator
from collections.abc import Awaitable
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import MISSING
from dataclasses import dataclass
from dataclasses import field
from dataclasses import is_dataclass
from enum import Enum
from enum import auto
from http import HTTPStatus
from pathlib import Path
from ssl import SSLContext
from typing import Any
from typing import Generic
from typing import Literal
from typing import NamedTuple
from typing import NoReturn
from typing import TextIO
from typing import TypeVar
from typing import cast
from urllib.parse import parse_qsl
from urllib.parse import unquote
from urllib.parse import urlsplit

import websockets.exceptions
import websockets.sync.client
from websockets.frames import CloseCode
from websockets.frames import Frame
from websockets.frames import Opcode
from websockets.protocol import OPEN
from websockets.server import ServerProtocol
from websockets.sync.client import ClientConnection

__version__ = "0.2.0"
__all__ = [
    "LIMITS",
    "Action",
    "CapacityError",
    "ConnectionFailed",
    "DockerError",
    "EnvClient",
    "Environment",
    "ExecutionError",
    "FactoryError",
    "InvalidRequest",
    "Limits",
    "Observation",
    "PythonAction",
    "PythonEnv",
    "PythonEnvError",
    "PythonEnvironment",
    "PythonObservation",
    "PythonState",
    "ReplyTimeout",
    "ServerError",
    "Service",
    "SessionError",
    "State",
    "StepResult",
    "Task",
    "complete_code",
    "described",
    "extract_code",
    "load_tasks",
    "main",
    "serve",
]

log = logging.getLogger("python_env")

# Part I: the environment. What chapters 2, 3, 4 and 7 use and do not define is in 8; 5: in 10 or 8;
# 6: in 9 or 8. But what is about grading is in 11, and Facts, BadTask and read_tests() in 12.

# ══════════════════════════════════════════════════════════════════════════════════════════════════
# 1. Errors and limits
# ══════════════════════════════════════════════════════════════════════════════════════════════════


class PythonEnvError(Exception):
    """The base of all that this module raises on purpose: it says expected, got and remedy.

    What a peer is told are `code` in OpenEnv's error message (which our client raises as a
    ServerError), `status` over HTTP, and `ends_session`, whether a WebSocket is closed with it.
    `retry_s`, where chapter 10 sets it: seconds after which our client tries to connect again.
    """

    code = "EXECUTION_ERROR"
    status = 500
    ends_session = False
    retry_s: float | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # By default unpickling calls the class with the message alone, which not each one takes.
        return type(self).__new__, (type(self), *self.args), self.__dict__


class InvalidRequest(PythonEnvError, ValueError):
    """The caller's data is wrong. `errors`: entries like pydantic's (type, loc, msg, input)."""

    code = "VALIDATION_ERROR"
    status = 422

    def __init__(self, message: str, errors: Sequence[dict[str, Any]] = ()) -> None:
        super().__init__(message)
        self.errors = [*errors]


class InvalidJSON(InvalidRequest):
    """The text is no JSON, or no object."""

    code = "INVALID_JSON"


class UnknownType(InvalidRequest):
    """A WebSocket message of a type that does not exist."""

    code = "UNKNOWN_TYPE"


class ExecutionError(PythonEnvError, RuntimeError):
    """The request was well-formed, but cannot be carried out: no episode, it is over, or the
    grading itself failed, which is never the agent's fault and therefore pays no reward."""

    status = 409


class CapacityError(PythonEnvError, RuntimeError):
    """All sessions are taken; trying again later may succeed."""

    code = "CAPACITY_REACHED"
    status = 503
    ends_session = True


class FactoryError(PythonEnvError, RuntimeError):
    """No environment, or no process for one, could be started."""

    code = "FACTORY_ERROR"
    status = 503
    ends_session = True


class SessionError(PythonEnvError, LookupError):
    """The session that was named does not exist, or not any more."""

    code = "SESSION_ERROR"
    status = 404
    ends_session = True


class HTTPError(PythonEnvError):
    """An HTTP request that is refused with this status; `headers` (Allow, …) go into the answer."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or {}


class ConnectionFailed(PythonEnvError, ConnectionError):
    """The server cannot be reached, went away, or speaks another protocol."""


class ReplyTimeout(PythonEnvError, TimeoutError):
    """No reply in time. The connection is closed, so that no stale one can follow."""


class ServerError(PythonEnvError, RuntimeError):
    """The server answered with an error. `code` is the protocol's, `errors` its details."""

    def __init__(self, message: str, code: str, errors: Sequence[dict[str, Any]] = ()) -> None:
        super().__init__(f"Server error: {message} (code: {code})")
        self.code = code
        self.errors = [*errors]


class DockerError(PythonEnvError, RuntimeError):
    """Docker or a container failed; the first line says how and what to do."""


@dataclass(frozen=True)
class Limits:
    """What bounds a peer, a worker or a wait; the unit is in the name. Here stands what an operator
    or a test may want to set; what nobody needs to is a constant beside its use. Workers know what
    zygote_config() (chapter 11) sends and the zygote (12) reads."""

    step_s: float = 10.0  # of a step that names no timeout_s; the server holds every deadline
    step_max_s: float = 60.0  # the most that an action may ask for: official clients wait 60 s
    grace_s: float = 1.0  # between the KeyboardInterrupt and the SIGKILL
    replay_s: float = 30.0  # to run an episode's earlier steps again, for its next one
    grading_min_s: float = 1.0  # the judge's share when the step has used its whole time
    task_steps: int = 20  # of an episode with tests: each verdict tells the agent a little of them

    code_bytes: int = 262_144  # one action's code, as UTF-8
    transcript_bytes: int = 4_194_304  # an episode's code, which every fresh worker replays
    source_bytes: int = 1_048_576  # one source of a task: some of HumanEval+ are half as large
    output_bytes: int = 65_536  # a stream of one step: head and tail are kept, the cut is said
    result_chars: int = 8_192  # repr of the last expression

    memory_mb: int = 1_024  # address space of a worker process, in MiB
    cpu_s: int = 1_800  # of a process's whole life: a thread left behind burns no more than this
    file_bytes: int = 67_108_864  # one file
    folder_bytes: int = 134_217_728  # all files of a worker; the sampler measures
    folder_entries: int = 10_000  # their number: clearing a folder takes time, too
    open_files: int = 128  # descriptors of a worker
    threads: int = 128  # of a worker; the sampler ends one that has more
    sample_s: float = 0.25  # how often the sampler looks

    max_sessions: int = 256  # of a server
    session_wait_s: float = 30.0  # that a session's first message waits for a place
    http_idle_s: float = 300.0  # an HTTP or MCP session that nobody uses
    ws_idle_s: float = 3_600.0  # a trainer is silent for minutes while its model generates
    request_s: float = 30.0  # an HTTP request must be whole this soon after its first byte
    keep_alive_s: float = 75.0  # an idle HTTP connection
    head_bytes: int = 16_384  # request line and headers
    message_bytes: int = 2_097_152  # a WebSocket message or a body: more may stall the loop 50 ms
    queued_messages: int = 64  # unanswered messages of a session; then its socket is not read
    connections: int = 2_048  # of a server, idle ones included
    drain_s: float = 7.0  # at SIGTERM, steps that end this soon are answered; docker stop waits 10


LIMITS = Limits()


# ══════════════════════════════════════════════════════════════════════════════════════════════════
# 2. Models: what travels, as dataclasses; validation and JSON schema come from them alone
# ══════════════════════════════════════════════════════════════════════════════════════════════════


def described(text: str, default: Any = MISSING, **bounds: float) -> Any:
    """A dataclass field with a description for the JSON schema.

    `default`: a value, or `dict` or `list` for a new empty one each. `bounds`: ge, gt, le, and
    max_length (characters); validate() holds peers to them.
    """
    metadata = {"description": text, **bounds}
    if default in (dict, list):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


class Model:
    """What all models can do."""

    def model_dump(self) -> dict[str, Any]:
        """The fields as a dict of plain values, named as pydantic's models name it."""
        return dataclasses.asdict(self)  # type: ignore[call-overload]

    def __repr__(self) -> str:
        """Of observations and results: the fields that say something, each shortened, so that a
        terminal shows it whole. An action's is a dataclass's own."""
        return shorten(self)


@dataclass(kw_only=True)
class Action(Model):
    """What an agent sends to step(). Subclass it as a dataclass; unknown fields are refused."""

    metadata: dict[str, Any] = described("Anything; the environment ignores it", dict)  # noqa: RUF009


@dataclass(kw_only=True, repr=False)
class Observation(Model):
    """What an agent sees. `reward` is None where there is none yet, as at reset."""

    done: bool = described("Whether the episode is over", False)
    reward: float | None = described("Reward of the last step; null: none was given", None)
    metadata: dict[str, Any] = described("Additional facts about the observation", dict)  # noqa: RUF009


@dataclass(kw_only=True)
class State(Model):
    """What state() tells of an episode. `episode_id` is None before the first reset."""

    episode_id: str | None = described("Identifier of the episode", None)
    step_count: int = described("Steps taken in this episode", 0, ge=0)


@dataclass
class PythonAction(Action):
    """Run `code`; the names of earlier steps of the episode are there."""

    code: str = described("Python source; the value of a last expression becomes `result`")
    stdin: str | None = described("Standard input of the step; null: empty", None)
    timeout_s: float | None = described("Seconds it may run; null: as the server says", None, gt=0)


@dataclass(repr=False)
class PythonObservation(Observation):
    """What came of a step: see observe(). The page shows each field that is not in SHOWN (13)."""

    stdout: str = described("Standard output of the step; a long one is cut in the middle", "")
    stderr: str = described("Standard error of the step, tracebacks included", "")
    exit_code: int = described("0 fine, 1 exception, n exit(n), 124 timed out, 128+s signal s", 0)
    result: str | None = described("repr of the code's last expression; null: none", None)
    task_id: str = described("The episode's task", "")
    prompt: str = described("What to do; given at reset", "")
    tests_passed: int = described("Hidden tests that passed", 0)
    tests_total: int = described("Hidden tests of the task; 0: it has none", 0)
    feedback: str = described("The verdict in a sentence", "")


@dataclass
class PythonState(State):
    """The episode as the server sees it. `max_steps` None: unlimited."""

    task_id: str = described("The episode's task", "")
    max_steps: int | None = described("Steps allowed in this episode; null: unlimited", None)
    done: bool = described("Whether the episode is over", False)
    best_reward: float = described("The best score of the episode so far, 0..1", 0.0)


ActionT = TypeVar("ActionT", bound=Action)
ObservationT = TypeVar("ObservationT", bound=Observation)
StateT = TypeVar("StateT", bound=State)


@dataclass(repr=False)
class StepResult(Model, Generic[ObservationT]):
    """What reset() and step() of a client return: observation, reward (or None), done."""

    observation: ObservationT
    reward: float | None = None
    done: bool = False
    metadata: dict[str, Any] | None = None


# ══════════════════════════════════════════════════════════════════════════════════════════════════
# 3. Tasks
# ══════════════════════════════════════════════════════════════════════════════════════════════════


class Pair(NamedTuple):
    """A test of a program: what it reads, and what it has to print (white space at the end of a
    line or of all does not count, nor do zeros at the end of a number with a fraction)."""

    stdin: str
    expected: str

    def holds(self, stdout: str) -> bool:
        return is_same_output(stdout, self.expected)


@dataclass(frozen=True, kw_only=True)
class Task:
    """One exercise: a prompt to read, and tests to pass.

    A task has `tests`, or `pairs`, or neither ("repl": nothing to judge, and never solved). `facts`
    (what the tests take from the candidate, and how many there are) is None until they were read:
    by read(), as a file is loaded, or by a session's judge.
    """

    task_id: str
    prompt: str = ""  # what the agent reads
    tests: str = ""  # hidden; each assert statement is one test
    pairs: tuple[Pair, ...] = ()  # hidden; each is one test, and a run of its own
    setup: str = ""  # run in the agent's interpreter before the first step
    helpers: str = ""  # run by the judge before the tests, out of the candidate's reach
    entry_point: str = ""  # the function asked for, if it is just one; or "Solution().method"
    solution: str = ""  # a reference, never shown: it tells which names are asked for
    difficulty: str = ""
    # "inside": the tests run in the worker, on the objects themselves and not on handles; but
    # hostile code can forge their verdict.
    judge: str = "apart"
    facts: Facts | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        most = LIMITS.source_bytes  # whatever a server's limit is: a task knows no server
        for name, text in self.sources().items():
            if not isinstance(text, str):
                raise InvalidRequest(f"{name} must be a string, not {type(text).__name__}")
            if re.search(r"[\ud800-\udfff]", text):
                raise InvalidRequest(f"{name} must be text for UTF-8: it has lone surrogates")
            size = len(text.encode())
            if size > most:
                raise InvalidRequest(f"{name} has {size:,} bytes; the limit is {most:,}")
        if self.judge not in ("apart", "inside"):
            raise InvalidRequest(f"judge: expected 'apart' or 'inside', got {echo(self.judge)!r}")

    def sources(self) -> dict[str, str]:
        """Its texts, by name."""
        names = ("tests", "helpers", "setup", "solution", "entry_point", "prompt")
        return {name: getattr(self, name) for name in names}

    def to_row(self) -> dict[str, Any]:
        """The task as a row of our own format, as from_row() reads it."""
        row: dict[str, Any] = self.sources()
        for name in ("task_id", "difficulty", "judge"):
            row[name] = getattr(self, name)
        row["inputs"] = [pair.stdin for pair in self.pairs]
        row["outputs"] = [pair.expected for pair in self.pairs]
        return {name: value for name, value in row.items() if value}

    @property
    def is_judged(self) -> bool:
        return bool(self.tests or self.pairs)

    @property
    def tests_total(self) -> int:
        return len(self.pairs) or (self.facts.total if self.facts else 0)

    def read(self) -> Task:
        """The task with its facts. Parsing may take long: for the server's own tasks only. Raises
        InvalidRequest when the tests could not measure anything."""
        if not self.tests:
            return self
        try:
            return dataclasses.replace(self, facts=read_tests(self.sources()))
        except BadTask as error:
            raise InvalidRequest(str(error)) from None

    @classmethod
    def from_row(cls, row: Mapping[str, Any], default_id: str = "inline") -> Task:
        """The task in a data set's row; see find_format(). Columns that mean nothing here are
        passed over. Raises InvalidRequest, with the columns by their names."""
        columns = {name: value for name, value in row.items() if value not in (None, "", [], {})}
        reader = find_format(columns)
        if reader is None:
            raise InvalidRequest(describe_no_tests(row))
        fields = read_columns(reader, columns)
        for name in columns.keys() & {"difficulty", "judge"}:
            fields[name] = str(columns[name])
        return cls(task_id=task_id_of(columns, default_id), **fields)


def find_format(columns: Columns) -> Callable[[Columns], Columns] | None:
    """The formats: which columns tell one, and the function of chapter 8 that reads it as the
    fields of a Task. Its columns go there into TESTS, PAIRS, PROMPTS, SOLUTIONS or COLUMNS."""
    if "tests" in columns:
        return read_own
    if "entry_point" in columns and has_code(columns):
        return read_humaneval
    if "test_list" in columns:
        return read_mbpp
    if columns.keys() & {*PAIRS, "test"}:
        return read_pairs
    return None


def load_tasks(path: str | os.PathLike[str], skip_bad: bool = False) -> dict[str, Task]:
    """The tasks of a JSONL file (gzipped if its name ends in .gz) by task_id. Raises InvalidRequest
    with its bad lines, 20 at most, and why; `skip_bad` logs those and leaves all of them out."""
    tasks, bad = read_tasks(Path(path))
    if bad:
        report_bad_lines(path, bad, skip_bad)
    if not tasks:
        raise InvalidRequest(f"tasks file {path}: no tasks: none of its lines is one")
    return tasks


REPL = Task(task_id="repl", prompt="A Python interpreter that keeps its state. There are no tests.")


# ══════════════════════════════════════════════════════════════════════════════════════════════════
# 4. Environment: reset, step, reward
# ══════════════════════════════════════════════════════════════════════════════════════════════════


class Environment(Generic[ActionT, ObservationT]):
    """Subclass it to write an environment; the server makes one for each session.

    The methods may be coroutines (hence Any), which run inline in the server's event loop, or plain
    functions, which run in a thread. reset() may take other keywords as well: a client's
    reset(**options) brings them. Raise InvalidRequest for a wrong argument, ExecutionError for a
    bad moment; neither ends the session. The server sees to the order of calls: no step before a
    reset or after done.
    """

    def reset(self, **options: Any) -> Any:
        """Begin an episode and return its first observation. `options`: `seed` (an int, for a
        repeatable episode), `episode_id` (a str), and what the environment takes besides."""
        raise ExecutionError(f"{type(self).__name__} does not define reset()")

    def step(self, action: ActionT) -> Any:
        """Carry out one action; the observation tells the reward, and whether the end is there."""
        raise ExecutionError(f"{type(self).__name__} does not define step()")

    def state(self) -> Any:
        """The episode's State; asked for at any time, before the first reset too. None: what the
        server has counted."""

    def close(self) -> Any:
        """Give back what the session holds; called once, at its end."""


@dataclass
class ResetRequest:
    """What reset() takes of every environment; other keys are the environment's own."""

    seed: int | None = described("For a repeatable episode", None, ge=0)
    episode_id: str | None = described("Identifier of the episode", None, max_length=255)


@dataclass
class PythonResetRequest(ResetRequest):
    """What PythonEnvironment takes besides a task's columns; also named in OPTIONS (chapter 8)."""

    task_id: str | int | float | None = described("One of the server's tasks, or 'repl'", None)
    max_steps: int | None = described("Fewer steps than the server's limit", None, ge=1)
    reward: Literal["score", "gain"] | None = described("null: score; see observe()", None)


class PythonEnvironment(Environment[PythonAction, PythonObservation]):
    """A session of Python code in an interpreter of its own, judged by hidden tests.

    These are the rules of the game; the processes that play it are the Grader's (chapter 11).
    tasks: by task_id. turn: counts the episodes of all sessions, so that tasks rotate where nobody
    chooses one. judge: "inside" runs the tests of all tasks where the code ran.
    """

    def __init__(
        self, sandbox: Sandbox, tasks: Mapping[str, Task], turn: Iterator[int], judge: str = "apart"
    ) -> None:
        self.limits = sandbox.limits
        self.tasks = tasks
        self.turn = turn
        self.grader = Grader(sandbox, judge)
        self.task = REPL
        self.episode = PythonState(task_id=REPL.task_id)
        self.pays_gain = False

    async def reset(self, /, **row: Any) -> PythonObservation:
        """Begin an episode. `row` has the fields of PythonResetRequest, and perhaps a task of the
        client's own: the columns of a data set's row. Then step() may come.

        Raises InvalidRequest (no such task, or no tests in the columns), FactoryError.
        """
        options = known_fields(PythonResetRequest, row)
        task = await read_aside(self.choose_task, options, row)
        task = await self.grader.read(task)  # a client's own: its judge finds out the facts
        bounds = [options.max_steps, self.limits.task_steps if task.is_judged else None]
        self.task = task
        self.pays_gain = options.reward == "gain"
        self.episode = PythonState(
            episode_id=options.episode_id or secrets.token_hex(8),
            task_id=task.task_id,
            max_steps=min((most for most in bounds if most), default=None),
        )
        await self.grader.begin(task, options.seed)
        return PythonObservation(
            task_id=task.task_id, prompt=task.prompt, tests_total=task.tests_total
        )

    def choose_task(self, options: PythonResetRequest, row: dict[str, Any]) -> Task:
        """The task in the row, the one that is named, or the next (by seed: a fixed one)."""
        if any(row.get(name) for name in TESTS):
            return Task.from_row(row)
        if options.task_id is not None:
            return find_task(self.tasks, task_id_of({"task_id": options.task_id}, ""))
        columns = {name: row[name] for name in row if name not in OPTIONS}
        if any(value is not None for value in columns.values()):
            raise InvalidRequest(describe_no_tests(columns))
        seed = options.seed
        turn = next(self.turn) if seed is None else random.Random(seed).randrange(2**32)
        names = [*self.tasks]
        return self.tasks[names[turn % len(names)]]

    async def step(self, action: PythonAction, timeout_s: float | None = None) -> PythonObservation:
        """Run the action's code and, where the task has tests, judge the episode so far.

        `timeout_s` (seconds) counts where the action names none. Then step() may come again, unless
        `done`, and reset() always.
        Raises InvalidRequest (the action asks for too much time; the step does not count),
        FactoryError, and ExecutionError when the grading itself failed, or the task is at fault:
        that must not teach a model anything, so there is no reward then.
        """
        episode = self.episode
        if episode.done:  # if the last step raised, the session never saw that it was the last
            raise ExecutionError("the episode is over: call reset() to begin another")
        seconds = action.timeout_s or timeout_s or self.limits.step_s
        most = self.limits.step_max_s
        if seconds > most:
            raise InvalidRequest(f"timeout_s: {seconds:,.1f} s asked; the limit is {most:,.1f} s")
        # The step counts, whatever is raised below: code that breaks the grading gets no free try.
        episode.step_count += 1
        episode.done = episode.step_count == episode.max_steps
        try:
            attempt = await self.grader.run(action, seconds)
            return self.observe(attempt, self.describe(attempt, seconds))
        finally:
            self.grader.end_step(episode.done)

    def observe(self, attempt: Attempt, feedback: str) -> PythonObservation:
        """The observation of a step, with its reward."""
        episode = self.episode
        total = self.task.tests_total
        passed = attempt.verdict.count(total) if attempt.verdict else 0
        score = passed / total if total else 0.0
        reward = max(0.0, score - episode.best_reward) if self.pays_gain else score
        episode.best_reward = max(episode.best_reward, score)
        is_solved = total > 0 and passed == total
        episode.done = episode.done or is_solved or attempt.is_last
        return PythonObservation(
            done=episode.done,
            reward=reward,
            stdout=attempt.stdout,
            stderr=attempt.stderr,
            result=attempt.outcome.result,
            exit_code=attempt.outcome.exit_code,
            task_id=self.task.task_id,
            tests_passed=passed,
            tests_total=total,
            feedback=feedback,
        )

    def describe(self, attempt: Attempt, seconds: float) -> str:
        """The feedback: what there is to say of a step, in sentences."""
        outcome = attempt.outcome
        notes = [attempt.note]
        if outcome.timed_out:
            undone = "; the step is undone" if self.task.tests else ""
            notes.append(f"The code timed out after {seconds:g} s{undone}.")
        if outcome.died:
            notes.append(f"The interpreter was restarted: {outcome.why}.")
        if outcome.refused:
            notes.append(SANDBOX_REFUSED)
        if attempt.verdict:
            notes.append(attempt.verdict.describe(self.task.tests_total))
            if self.grader.judges_inside:
                notes.append("Judged inside.")
        return " ".join(filter(None, notes))

    async def state(self) -> PythonState:
        return dataclasses.replace(self.episode)

    async def close(self) -> None:
        self.grader.close()


# ══════════════════════════════════════════════════════════════════════════════════════════════════
# 5. Client
# ══════════════════════════════════════════════════════════════════════════════════════════════════

ClientT = TypeVar("ClientT", bound="EnvClient")


class EnvClient(Generic[ActionT, ObservationT, StateT]):
    """A synchronous client of any OpenEnv server; one connection is one session there.

    base_url: http(s):// or ws(s)://, with or without a path prefix.
    connect_timeout_s: seconds to connect; a server that is full or starting is tried again.
    message_timeout_s: seconds for a reply; a step's own timeout_s is added to it.
    headers, token: sent when connecting; the token as `Authorization: Bearer`.
    ssl: an ssl.SSLContext for https, as one that knows a CA of your own; None: Python's default.

    It connects at the first call. Threads may share it: one call at a time, the others wait. After
    a fork the child connects anew at its first reset(), and its close() leaves alone what is the
    parent's.

    Observations and states are dicts, or the dataclasses that a subclass sets as models; or it
    overrides `_step_payload`, `_parse_result` and `_parse_state`, as OpenEnv's own clients do.
    """

    observation_model: type[ObservationT] | None = None
    state_model: type[StateT] | None = None
    message_bytes: int | None = None  # that a message may have; None: the server will say so

    def __init__(
        self,
        base_url: str,
        *,
        connect_timeout_s: float = 10.0,
        message_timeout_s: float = 60.0,
        headers: dict[str, str] | None = None,
        token: str | None = None,
        ssl: SSLContext | None = None,
    ) -> None:
        self.connect_timeout_s = connect_timeout_s
        self.message_timeout_s = message_timeout_s
        self.headers = dict(headers or {})
        if token:
            self.headers["Authorization"] = f"Bearer {token.strip()}"
        self._wire = Link(base_url, self.headers, ssl)
        # At close(), garbage collection or the interpreter's exit, whichever comes first.
        weakref.finalize(self, self._wire.release)

    @property
    def base_url(self) -> str:
        return self._wire.base_url

    @property
    def ws_url(self) -> str:
        return self._wire.ws_url

    def connect(self: ClientT) -> ClientT:  # noqa: PYI019
        """Connect now, rather than at the first call. Raises ConnectionFailed."""
        self._wire.ask("", 0.0, self.connect_timeout_s, is_new=True)
        return self

    def reset(
        self, *, seed: int | None = None, episode_id: str | None = None, **options: Any
    ) -> StepResult[ObservationT]:
        """Begin an episode, on a new connection where the old one is gone. options: what the
        environment takes besides; None is not sent. Raises ServerError (refused), ReplyTimeout or
        ConnectionFailed."""
        options |= {"seed": seed, "episode_id": episode_id}
        given = {name: value for name, value in options.items() if value is not None}
        return self._parse_result(self._ask("reset", given))

    def step(
        self, action: ActionT | dict[str, Any], *, timeout_s: float | None = None
    ) -> StepResult[ObservationT]:
        """Take one step. `timeout_s` (seconds) counts where the action has none of its own. Raises
        ServerError (refused; the session goes on), ReplyTimeout or ConnectionFailed (the session is
        lost: reset() begins another)."""
        payload = self._step_payload(action)
        if timeout_s is not None and payload.get("timeout_s") is None:
            payload["timeout_s"] = timeout_s
        return self._parse_result(self._ask("step", payload, more_seconds(payload)))

    def state(self) -> StateT:
        """The episode's state, at any time."""
        return self._parse_state(self._ask("state", {}))

    def close(self) -> None:
        """End the session and whatever was started for it; may be called again."""
        self._wire.release()

    disconnect = close

    def sync(self: ClientT) -> ClientT:  # noqa: PYI019
        """Itself: for code written for OpenEnv's client, which is asynchronous."""
        return self

    def __enter__(self: ClientT) -> ClientT:  # noqa: PYI019
        return self.connect()

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise PythonEnvError(
            f"a {type(self).__name__} is one session of one process, and cannot be copied or sent "
            "to another; make a second one there, with the same base_url"
        )

    @classmethod
    def from_docker_image(  # noqa: PYI019
        cls: type[ClientT],
        image: str = "python-env:latest",
        *,
        port: int | None = None,
        env_vars: dict[str, str] | None = None,
        timeout_s: float = 60.0,
        docker_args: Sequence[str] = (),
        **options: Any,
    ) -> ClientT:
        """Start a local image that serves port 8000, and connect; close() removes the container.

        port: on 127.0.0.1; None: a free one. env_vars: the server's. timeout_s: seconds from now
        until its /health answers. docker_args: more options of `docker run`, as ["--memory=1g"].
        options: the constructor's. Raises DockerError, ConnectionFailed.
        """
        container = Container(image, port, env_vars or {}, timeout_s, docker_args)
        with contextlib.ExitStack() as cleanup:
            cleanup.callback(container.close)
            env = cls(container.url, **options).connect()
            env._wire.cleanup = cleanup.pop_all()
        return env

    @classmethod
    def from_hub(  # noqa: PYI019
        cls: type[ClientT],
        repo_id: str,
        *,
        tag: str = "latest",
        image: str | None = None,
        registry: str = "registry.hf.space",
        pull: bool = True,
        pull_timeout_s: float = 1_800.0,
        use_docker: bool = True,
        token: str | None = None,
        timeout_s: float = 120.0,
        **options: Any,
    ) -> ClientT:
        """Pull a Hugging Face Space's image, start it here and connect; or connect to the Space.

        repo_id: owner/name, or a Space's URL. image: the whole name, where the Hub shortens it;
        None follows from repo_id. pull: ask the registry each time, as tags move; False takes what
        is here. options: from_docker_image's. use_docker=False uses the Space itself, waking it for
        timeout_s seconds at most (the official from_env would run its code here); options are the
        constructor's then, and token goes to it alone: docker has its own, by `docker login`.
        Raises InvalidRequest, DockerError, ConnectionFailed.
        """
        slug = space_slug(repo_id)
        if not use_docker:
            options.setdefault("connect_timeout_s", timeout_s)
            return cls(f"https://{slug}.hf.space", token=token, **options).connect()
        image = image or f"{registry}/{slug}:{tag}"
        if pull:
            pull_image(image, pull_timeout_s)
        return cls.from_docker_image(image, timeout_s=timeout_s, **options)

    from_env = from_hub  # the official client's name for it

    def _step_payload(self, action: Any) -> dict:
        if isinstance(action, Action):
            return dataclasses.asdict(action)
        if isinstance(action, Mapping):
            return dict(action)
        raise InvalidRequest(f"action: expected an action or a dict, got {type(action).__name__}")

    def _parse_result(self, payload: dict) -> StepResult[ObservationT]:
        reward = payload.get("reward")
        done = payload.get("done", False)
        observation = payload.get("observation", {})
        if self.observation_model:
            observation = build_known(self.observation_model, observation, reward=reward, done=done)
        return StepResult(observation, reward, done, payload.get("metadata"))

    def _parse_state(self, payload: dict) -> Any:
        return build_known(self.state_model, payload) if self.state_model else payload

    def _ask(self, kind: str, data: dict, more_s: float = 0.0) -> dict:
        """Send one message, and return its reply's data."""
        text = message_text(kind, data, self.message_bytes)
        wait_s = self.message_timeout_s + more_s
        return self._wire.ask(text, wait_s, self.connect_timeout_s, is_new=kind == "reset")


# ── PythonEnv ─────────────────────────────────────────────────────────────────────────────────────


class PythonEnv(EnvClient[PythonAction, PythonObservation, PythonState]):
    """The client of a python_env server; PythonEnv() without a URL brings a server of its own.

    That one is a child process on a free loopback port (on Linux only), which has 30 seconds to
    start, or connect_timeout_s if that is more. It ends with close() and with this process, however
    that ends; should it die before, the next reset() starts it again. `tasks`: a task file for it,
    as `--tasks` takes; `server_args`: more flags; `options`: EnvClient's; score() gets them, too.
    """

    observation_model = PythonObservation
    state_model = PythonState
    message_bytes = LIMITS.message_bytes

    def __init__(
        self,
        base_url: str | None = None,
        *,
        tasks: str | os.PathLike[str] | None = None,
        server_args: Sequence[str] = (),
        **options: Any,
    ) -> None:
        if base_url is not None and (tasks or server_args):
            raise InvalidRequest("tasks and server_args are for PythonEnv() without a base_url")
        super().__init__("localhost" if base_url is None else base_url, **options)
        self._scorer = Scorer(self._wire, {**options, "headers": self.headers})
        if base_url is None:
            flags = [*server_args, *([f"--tasks={os.fspath(tasks)}"] if tasks else [])]
            self._wire.start_server(EmbeddedServer(flags, max(self.connect_timeout_s, 30.0)))

    def reset(
        self,
        task_id: str | int | None = None,
        *,
        seed: int | None = None,
        episode_id: str | None = None,
        max_steps: int | None = None,
        reward: str | None = None,
        **columns: Any,
    ) -> StepResult[PythonObservation]:
        """Begin an episode of the task `task_id`, or of a task that the columns bring.

        With neither: the server's next task (by seed: a fixed one). columns: a data set's row as it
        is, reset(**row), or by hand: prompt=, tests=. Only what makes the task is sent, so the rest
        may hold anything. max_steps: fewer than the server's limit. reward: "score", or "gain" for
        what a step improves. Otherwise as EnvClient.reset(); InvalidRequest names the columns of a
        row without a task.
        """
        options = {"task_id": task_id, "max_steps": max_steps, "reward": reward}
        options |= {"seed": seed, "episode_id": episode_id}
        given = {name: value for name, value in options.items() if value is not None}
        return super().reset(**read_row(columns | given))

    def step(
        self, action: PythonAction | dict[str, Any] | str, *, timeout_s: float | None = None
    ) -> StepResult[PythonObservation]:
        """As EnvClient.step(); a str is the code of an action."""
        if isinstance(action, str):
            action = PythonAction(action)
        return super().step(action, timeout_s=timeout_s)

    def _step_payload(self, action: Any) -> dict[str, Any]:
        payload = super()._step_payload(action)
        return payload | cut_code(payload.get("code"))

    def score(
        self,
        completions: Sequence[Any],
        *,
        prompts: Sequence[Any] | None = None,
        workers: int = 8,
        **columns: Any,
    ) -> list[float | None]:
        """The reward (0..1) of each completion; None: no verdict, because the row is no task, its
        tests are at fault, or the server is gone (tried three times). The log says why.

        A completion is text or chat messages; its code is what extract_code() finds in it, behind
        the row's prompt where it goes on from that, as in HumanEval. columns: lists as long as
        `completions`: `task_id`, or the columns of a task; all else is passed over. prompts: stands
        for a column `prompt`. workers: sessions at once, kept for the next call until close(). A
        trainer takes it as it is: `reward_funcs=[env.score]`. Raises InvalidRequest when no column
        brings tasks at all, or one of them has another length.
        """
        if prompts is not None:
            columns["prompt"] = prompts
        rows = rows_of(columns, completions)
        return self._scorer.score_all(completions, rows, workers)

    def tasks(self) -> list[dict[str, Any]]:
        """The server's tasks, as GET /tasks lists them. Raises ConnectionFailed."""
        return self._wire.list_tasks(self.message_timeout_s)

    def close(self) -> None:
        """End the session, those of score(), and the embedded server; may be called again."""
        self._scorer.close_idle()
        super().close()

    disconnect = close


# ══════════════════════════════════════════════════════════════════════════════════════════════════
# 6. Server: sessions, routes, serve()
# ══════════════════════════════════════════════════════════════════════════════════════════════════

Data = dict[str, Any]  # a JSON object, decoded

# ── A session ─────────────────────────────────────────────────────────────────────────────────────


class Stage(Enum):
    """Where a session stands: step() is allowed while RUNNING, reset() and state() until CLOSED."""

    NO_EPISODE = auto()
    RUNNING = auto()
    DONE = auto()
    CLOSED = auto()


STEP_REFUSED = {
    Stage.NO_EPISODE: "there is no episode yet: call reset() first",
    Stage.DONE: "the episode is over: call reset() to begin another",
}


class Session:
    """One environment and where it stands. Its calls run one at a time, in the order they came."""

    def __init__(self, environment: Environment[Any, Any], action: type[Action]) -> None:
        self.id = secrets.token_urlsafe(16)
        self.methods = Methods(environment)
        self.action = action
        self.stage = Stage.NO_EPISODE
        self.turn = asyncio.Lock()
        self.calls = 0  # running, or waiting for their turn
        self.steps = 0
        self.episode = State()  # for environments that keep none
        self.used = time.monotonic()  # when the last call ended
        self.socket: WebSocket | None = None  # the one that is attached

    async def call(self, kind: str, data: Data, timeout_s: float | None = None) -> Data:
        """Carry out a "reset", "step" or "state"; returns what the reply's `data` shall be. A
        `timeout_s` goes to a step() that takes it. Raises what the environment does, and
        ExecutionError for a step at the wrong moment, InvalidRequest for wrong data, and
        SessionError once it was closed."""
        self.calls += 1
        try:
            async with self.turn:
                if self.stage is Stage.CLOSED:
                    raise SessionError("the session is over; reset opens another")
                if kind == "state":
                    return to_dict(await self.methods.call("state") or self.episode)
                if kind == "reset":
                    observation = await self.reset(data)
                else:
                    observation = await self.step(data, timeout_s)
                self.stage = Stage.DONE if observation.done else Stage.RUNNING
                return observation_data(observation)
        except Exception as error:
            if self.stage is Stage.CLOSED:  # so its processes died under it, and nobody is at fault
                raise SessionError("the session was closed while this ran") from error
            raise
        finally:
            self.calls -= 1
            self.used = time.monotonic()

    async def reset(self, data: Data) -> Observation:
        options = known_fields(ResetRequest, data, ("body",))
        try:
            observation = await self.methods.observe("reset", **data)
        except FactoryError:
            self.stage = Stage.NO_EPISODE  # for the former one has lost its processes
            raise
        self.episode = State(episode_id=options.episode_id or secrets.token_hex(8))
        return observation

    async def step(self, data: Data, timeout_s: float | None) -> Observation:
        if self.stage in STEP_REFUSED:
            raise ExecutionError(STEP_REFUSED[self.stage])
        action = validate(self.action, data)
        begin = time.monotonic()
        observation = await self.methods.observe("step", action, timeout_s=timeout_s)
        self.steps += 1
        self.episode.step_count += 1
        log_step(self, observation, time.monotonic() - begin)
        return observation

    async def close(self) -> None:
        """The end; the environment hears of it, whatever it does then."""
        self.stage = Stage.CLOSED
        try:
            await self.methods.call("close")
        except Exception:
            log.exception("session %s: its environment's close() failed", self.id[:6])
        self.methods.close()
        log.info("session %s ended after %d steps", self.id[:6], self.steps)


# ── The server ────────────────────────────────────────────────────────────────────────────────────


@dataclass(kw_only=True)
class Service:
    """What a server serves, and to whom. `action`, `observation` and `state` are the models."""

    factory: Callable[[], Environment[Any, Any]]
    action: type[Action]
    observation: type[Observation] = Observation
    state: type[State] = State
    name: str = "python_env"
    description: str = "An OpenEnv environment"
    limits: Limits = LIMITS
    token: str | None = None  # None: nobody has to send one
    allow_origin: Collection[str] = ()  # other sites whose pages may call; "*" for all
    allow_host: Collection[str] = ()  # Host names besides loopback's own, when bound to loopback
    tasks: Mapping[str, Task] = field(default_factory=dict)
    isolation: Mapping[str, Any] = field(default_factory=dict)
    counters: Callable[[], Mapping[str, int]] = dict  # what GET /health counts besides sessions


class Server:
    """`await start()`, `port`, `await close()`: the routes, and what they answer. The table of the
    sessions, the gate (who may ask) and the listener (requests, replies) are in chapter 9."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.limits = service.limits
        self.sessions = SessionTable(service)
        self.gate = Gate(service)
        self.listener = Listener(self)

    @property
    def port(self) -> int:
        return self.listener.port

    async def start(self, host: str = "127.0.0.1", port: int = 8000) -> None:
        """Listen; port 0 takes any free one. Raises OSError when the address cannot be had."""
        await self.listener.start(host, port)

    async def close(self) -> None:
        """Let running steps end within drain_s, say 1001 to the WebSockets, end every session."""
        await self.listener.close()

    async def reply(self, request: Request) -> Reply:
        """The answer to a request, errors included; by one handler a route."""
        try:
            self.gate.check_site(request, self.listener.loopback)
            self.gate.check_token(request)
            reply = await find_handler(request)(self, request)
        except Exception as error:  # noqa: BLE001
            reply = error_reply(as_ours(error))
        return self.gate.admit_origin(request, reply)

    async def get_health(self, request: Request) -> Reply:
        health = {
            "status": "healthy",
            "version": __version__,
            "isolation": self.service.isolation,
            "sessions": len(self.sessions),
            "max_sessions": self.limits.max_sessions,
            "waiting": self.sessions.waiting,
            **self.service.counters(),
        }
        nonce = os.environ.get("PYTHON_ENV_NONCE")
        if nonce:
            health["nonce"] = nonce  # by which who started this container knows it again
        return Reply(health)

    async def get_document(self, request: Request) -> Reply:
        return self.documents[route(request)]

    @functools.cached_property
    def documents(self) -> dict[str, Reply]:
        return documents_of(self.service)  # not before: some models have no schema, yet are served

    async def redirect_to_docs(self, request: Request) -> Reply:
        """A relative redirect, because a proxy may serve us below a prefix that only it knows."""
        up = "../" * (request.path.count("/") - 1)
        return Reply({"detail": "see /docs"}, 307, {"Location": f"{up}docs"})

    async def get_ws(self, request: Request) -> Reply:
        """From 101 on, chapter 9 answers the WebSocket's messages, by Session.call()."""
        if not request.is_upgrade:
            raise HTTPError(426, "/ws speaks WebSocket", {"Upgrade": "websocket"})
        return Reply(b"", 101)

    def session_of(self, request: Request) -> Session | None:
        """The session that a header names, as HTTP's peers do or as MCP's do."""
        headers = request.headers
        return self.sessions.find(headers.get("x-session-id") or headers.get("mcp-session-id"))

    async def get_state(self, request: Request) -> Reply:
        session = self.session_of(request)
        return Reply(await session.call("state", {}) if session else to_dict(State()))

    async def post_reset(self, request: Request) -> Reply:
        """Begin an episode, in the session that is named or else a new one."""
        row = json_object(request.body or b"{}")
        # An id that is gone is no error here: reset begins anew.
        session = self.sessions.by_id.get(request.headers.get("x-session-id", ""))
        opened = None
        if session is None:
            session = opened = await self.sessions.open()
        try:
            data = await session.call("reset", row)
        except BaseException:
            if opened:
                self.sessions.drop(opened)
            raise
        data = {"metadata": None, **data}  # over HTTP the official server always has it
        # A session that this has opened is dropped again if the peer is gone: none knows its id.
        return Reply(data, headers={"X-Session-Id": session.id}, opened=opened)

    async def post_step(self, request: Request) -> Reply:
        body = known_fields(StepRequest, json_object(request.body), ("body",))
        session = self.session_of(request)
        if session is None:
            return Reply({"metadata": None, **await self.step_once(body.action, body.timeout_s)})
        data = await session.call("step", body.action, body.timeout_s)
        return Reply({"metadata": None, **data}, headers={"X-Session-Id": session.id})

    async def step_once(self, action: Data, timeout_s: float | None = None) -> Data:
        """A step without a session, in an episode of its own: for Python, in the repl."""
        validate(self.service.action, action)  # before a process is started for it
        session = await self.sessions.open()
        try:
            await session.call("reset", {"task_id": REPL.task_id})
            return await session.call("step", action, timeout_s)
        finally:
            self.sessions.drop(session)

    async def post_mcp(self, request: Request) -> Reply:
        call = MCPCall(self, self.session_of(request))
        answer = await call.answer(request.body)
        if not answer:
            return Reply(b"", 202)
        headers = {"Mcp-Session-Id": call.opened.id} if call.opened else {}
        return Reply(answer, headers=headers, opened=call.opened)

    async def delete_mcp(self, request: Request) -> Reply:
        session = self.session_of(request)
        if session:
            self.sessions.drop(session)
        return Reply(b"")


# path: method: handler; a GET answers HEAD as well. /openapi.json lists all by itself.
ROUTES: dict[str, dict[str, Any]] = {
    "/": {"GET": Server.redirect_to_docs},
    "/web": {"GET": Server.redirect_to_docs},
    "/docs": {"GET": Server.get_document},
    "/metadata": {"GET": Server.get_document},
    "/schema": {"GET": Server.get_document},
    "/tasks": {"GET": Server.get_document},
    "/openapi.json": {"GET": Server.get_document},
    "/health": {"GET": Server.get_health},
    "/ws": {"GET": Server.get_ws},
    "/reset": {"POST": Server.post_reset},
    "/step": {"POST": Server.post_step},
    "/state": {"GET": Server.get_state},
    "/mcp": {"POST": Server.post_mcp, "DELETE": Server.delete_mcp},
}
PUBLIC = ("/", "/web", "/docs", "/health")  # without a token: the page asks for it


# ── serve() ───────────────────────────────────────────────────────────────────────────────────────


def serve(
    environment: Callable[[], Environment[Any, Any]],
    action: type[Action],
    observation: type[Observation] | None = None,
    state: type[State] | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    **options: Any,
) -> None:
    """Serve an environment, one instance a session, until SIGTERM or Ctrl-C.

    `environment` is the class, or any callable that makes one. Without `observation` and `state`
    their models are read off the return annotations of its step() and state(). `options` are
    fields of Service: name, description, limits, token, allow_origin, allow_host. Raises OSError
    when the address cannot be had, TypeError when a model cannot travel as JSON.
    """
    options.setdefault("name", getattr(environment, "__name__", "environment"))
    models = find_models(environment, observation, state)
    service = Service(factory=environment, action=action, **models, **options)
    asyncio.run(run_until_signal(service, host, port))


# ══════════════════════════════════════════════════════════════════════════════════════════════════
# 7. Command line
# ══════════════════════════════════════════════════════════════════════════════════════════════════


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status. 2: something that was given is wrong."""
    given = build_parser().parse_args(argv)
    try:
        return given.run(given)
    except KeyboardInterrupt:
        return 130
    except (PythonEnvError, OSError) as error:
        print(f"python-env: {error}", file=error_stream(given))
        return 2 if isinstance(error, InvalidRequest) else 1


def build_parser() -> argparse.ArgumentParser:
    """A command is a function that adds its parser, and one that runs it: the exit status."""
    parser = argparse.ArgumentParser(
        prog="python-env",
        description="An OpenEnv environment for writing Python. Its rewards cannot be forged.",
    )
    parser.add_argument("--version", action="version", version=f"python-env {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    add_serve(commands)
    add_check(commands)
    add_demo(commands)
    return parser


def add_serve(commands: Any) -> None:
    parser = commands.add_parser(
        "serve",
        help="run the server",
        description="Serve until SIGTERM or Ctrl-C; the URL and the isolation reached are printed.",
        epilog=SERVE_EXAMPLES,
        formatter_class=Help,
    )
    parser.set_defaults(run=run_serve)
    parser.add_argument("--exit-with-stdin", action="store_true", help=argparse.SUPPRESS)
    flag = functools.partial(add_flag, parser)
    limit = functools.partial(add_limit, parser)
    switch = functools.partial(add_flag, parser, kind=one_of(SWITCH), nargs="?", const=True)
    seconds = number(float, 0.1)
    most = os.environ.get("MAX_CONCURRENT_ENVS") or LIMITS.max_sessions  # OpenEnv's name for it

    # flag(name, default, what it is, what reads it), and limit(name, the field of Limits that it
    # sets and has its default from, …). PYTHON_ENV_NAME sets each, too; README's table lists them.
    flag("host", "127.0.0.1", "address to listen on; 0.0.0.0 for all, :: for all with IPv6")
    flag("port", 8_000, "port to listen on; 0: any free one", number(int, 0, 65_535))
    flag("tasks", None, "file of tasks, JSONL or JSONL.gz, in any of README's formats")
    flag("max-sessions", most, "sessions at once", number(int, 1))
    wait = "seconds that a full server lets a new session wait for a place"
    limit("session-wait", "session_wait_s", wait, number(float, 0))
    limit("step-timeout", "step_s", "seconds of a step that names no timeout_s", seconds)
    limit("max-step-timeout", "step_max_s", "the most that a step may ask for", seconds)
    limit("memory-mb", "memory_mb", "MiB that an interpreter may have", number(int, 64))
    limit("idle-timeout", "ws_idle_s", "seconds; HTTP: at most 300", number(float, 1))
    flag("preload", "", "modules to import before each fork, as numpy,pandas", comma_list)
    flag("allow-origin", "", "sites whose pages may call, as https://a.org; * for all", origin_list)
    hosts = "Host names served on a loopback address, besides localhost"
    flag("allow-host", "", hosts, comma_list)
    inside = "inside: all tests run where the code ran, forgeable"
    flag("judge", "apart", inside, one_of({"apart": "apart", "inside": "inside"}))
    switch("skip-bad-tasks", "no", "leave out the bad lines of --tasks, and say so")
    switch("require-isolation", "no", "refuse to start without seccomp and Landlock")
    flag("log-level", "info", f"of the log: {', '.join(LEVELS)}", one_of(LEVELS))


def run_serve(given: argparse.Namespace) -> int:
    logging.basicConfig(level=given.log_level, format="%(asctime)s %(levelname)s %(message)s")
    warn_of_settings(given.host)
    asyncio.run(serve_python(given))
    return 0


async def serve_python(given: argparse.Namespace) -> None:
    tasks = load_tasks(given.tasks, given.skip_bad_tasks) if given.tasks else builtin_tasks()
    limits = given_limits(given)
    sandbox = Sandbox(limits, given.preload, (given.tasks,) if given.tasks else ())
    turn = itertools.count()
    try:
        await sandbox.start()
        if given.require_isolation and not sandbox.isolation["full"]:
            raise InvalidRequest(f"--require-isolation: here is only {sandbox.isolation}")
        service = Service(
            factory=lambda: PythonEnvironment(sandbox, tasks, turn, given.judge),
            action=PythonAction,
            observation=PythonObservation,
            state=PythonState,
            description="Write Python: an isolated interpreter runs it, hidden tests judge it",
            limits=limits,
            token=os.environ.get("PYTHON_ENV_TOKEN"),
            allow_origin=given.allow_origin,
            allow_host=given.allow_host,
            tasks=tasks,
            isolation=sandbox.isolation,
            counters=lambda: sandbox.counters,
        )
        await run_until_signal(service, given.host, given.port, given.exit_with_stdin)
    finally:
        await sandbox.close()


def add_check(commands: Any) -> None:
    parser = commands.add_parser(
        "check",
        help="grade the reference solutions of a task file",
        description="Each row's reference solution must get 1.0, and an empty program less.",
        epilog=CHECK_EXAMPLES,
        formatter_class=Help,
    )
    parser.set_defaults(run=run_check)
    parser.add_argument("file", help="JSONL or JSONL.gz, as serve --tasks takes it")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--preload", type=comma_list, default=[], help="as serve --preload")


def run_check(given: argparse.Namespace) -> int:
    tasks, bad = read_tasks(Path(given.file))
    rows = [BadRow("", words) for words in bad]
    rows += asyncio.run(check_tasks([*tasks.values()], given.preload))
    print_report(len(tasks) + len(bad), rows, given.json)
    return int(bool(rows))


def add_demo(commands: Any) -> None:
    parser = commands.add_parser(
        "demo",
        help="play a built-in task against a server of its own",
        description="Play fix-means: first a program with a bug, then a right one.",
        epilog="Exit code 0 when the task was solved.\n\n  python-env demo\n",
        formatter_class=Help,
    )
    parser.set_defaults(run=run_demo)


def run_demo(given: argparse.Namespace) -> int:
    """Play fix-means, almost right at first; returns 0 when it is solved."""
    with PythonEnv() as env:
        print(env.reset(task_id="fix-means").observation.prompt)
        for code in (ALMOST_RIGHT, RIGHT):
            result = env.step(PythonAction(code))
            seen = result.observation
            verdict = f"reward {result.reward:.2f}  done {result.done}  {seen.feedback}"
            print(f"\n{code}\n--> {seen.stdout}{paint(verdict, result.done)}")
    return 0 if result.reward == 1.0 else 1


# Part II: the engine room

# ══════════════════════════════════════════════════════════════════════════════════════════════════
# 8. Models and tasks at work: validation, JSON schema, the formats of tasks, task files, flags
# ══════════════════════════════════════════════════════════════════════════════════════════════════

UNIONS = (typing.Union, types.UnionType)


@functools.cache
def fields_of(model: type) -> dict[str, dataclasses.Field]:
    """Its fields by name, each with its type in place of the annotation's text, which Python would
    evaluate each time."""
    try:
        hints = typing.get_type_hints(model)
    except NameError:
        # A profiler runs this file as a __main__ of its own, which sys.modules does not have.
        hints = typing.get_type_hints(model, localns=globals())
    fields = {}
    for each in dataclasses.fields(model):
        each.type = hints[each.name]
        fields[each.name] = each
    return fields


def is_required(each: dataclasses.Field) -> bool:
    return each.default is MISSING and each.default_factory is MISSING


def to_dict(model: Any) -> dict:
    """A model's fields as a dict, one level deep: ours hold plain data only."""
    return {each.name: getattr(model, each.name) for each in dataclasses.fields(model)}


def only_known(model: Any, data: dict) -> dict:
    return {name: data[name] for name in fields_of(model) if name in data}


def build_known(model: Any, data: dict, **more: Any) -> Any:
    """A client's model of what its server sent: not validated, and a newer server may send more.

    Raises ConnectionFailed where the server leaves out what the model must have.
    """
    try:
        return model(**only_known(model, {**data, **more}))
    except TypeError as error:
        raise ConnectionFailed(
            f"the server's reply is no {model.__name__}: {error}; does it serve what this client "
            "is for?"
        ) from None


# ── Validation ────────────────────────────────────────────────────────────────────────────────────

MOST_FAULTS = 20  # that are told of one message

# To read this many takes up to a twentieth of a second, in which the server does nothing else. A
# plain `list` or `dict` is not looked into, and may be as long as a message.
MOST_ITEMS = 10_000


def known_fields(model: type, data: dict, loc: tuple = ()) -> Any:
    """validate(), but fields that the model does not have are passed over."""
    return validate(model, only_known(model, data), loc)


def validate(model: Any, data: object, loc: tuple = ()) -> Any:
    """Decoded JSON as a `model` (a dataclass, or a type that a field may have), not converted.

    `loc` is the path to `data`, as ("action", "code"). Raises InvalidRequest, whose `errors` are
    the first faults, as pydantic lists them.
    """
    reader = Reader()
    value = reader.read(model, data, loc)
    if not reader.faults:
        return value
    first = reader.faults[0]
    where = ".".join(map(str, first["loc"])) or "the message"
    raise InvalidRequest(f"{where}: {first['msg']}", reader.faults)


class Reader:
    """Reads decoded JSON as typed values, and notes each fault instead of stopping at the first.

    One method reads one kind of type. Each returns the value, or None after noting a fault: the
    caller looks at `faults` in the end and not at what came back.
    """

    def __init__(self) -> None:
        self.faults: list[dict] = []
        self.items = 0

    def read(self, hint: Any, value: Any, loc: tuple) -> Any:
        """`value` as a `hint`, which may be anything that a field of a model may have."""
        # Exactly this type, because a bool is an int to isinstance(), but not to a peer.
        if hint is Any or type(value) is hint and hint is not float:
            return value
        kind = typing.get_origin(hint) or hint
        parts = typing.get_args(hint)
        if kind in UNIONS:
            return self.read(choose(parts, value), value, loc)
        if is_dataclass(kind):
            return self.read_model(kind, value, loc)
        if kind is typing.Literal:
            if value in parts:
                return value
            return self.note("literal_error", loc, f"Input should be one of {parts}", value)
        if kind is float and type(value) in (int, float):
            # Python's json reads NaN and infinity, too, which are no numbers to others.
            if abs(value) < 1e300:
                return float(value)
            return self.note("finite_number", loc, "Input should be a finite number", value)
        if type(value) is not kind:
            fault = f"{kind.__name__}_type".replace("str_", "string_")  # so pydantic calls it
            return self.note(fault, loc, f"Input should be a valid {JSON_NAMES[kind]}", value)
        if parts and parts[-1] is not Any:
            return self.read_items(parts[-1], value, loc)
        return value

    def read_model(self, model: Any, value: Any, loc: tuple) -> Any:
        if type(value) is not dict:
            return self.note("model_attributes_type", loc, "Input should be an object", value)

        fields = fields_of(model)
        strange = [name for name in value if name not in fields]
        for name in strange[:MOST_FAULTS]:
            words = "Extra inputs are not permitted"
            self.note("extra_forbidden", (*loc, name), words, value[name])
        read = {}
        for name, each in fields.items():
            place = (*loc, name)
            if name in value:
                read[name] = self.read(each.type, value[name], place)
                self.check_bounds(each.metadata, read[name], place)
            elif is_required(each):
                self.note("missing", place, "Field required", value)
        return None if self.faults else model(**read)

    def read_items(self, hint: Any, value: Any, loc: tuple) -> Any:
        self.items += len(value)
        if self.items > MOST_ITEMS:
            return self.note("too_long", loc, f"Input has more than {MOST_ITEMS} items", value)
        if isinstance(value, list):
            return [self.read(hint, item, (*loc, place)) for place, item in enumerate(value)]
        return {key: self.read(hint, item, (*loc, key)) for key, item in value.items()}

    def check_bounds(self, metadata: Mapping, value: Any, loc: tuple) -> None:
        size = len(value) if isinstance(value, str) else value
        for name, limit in metadata.items():
            bound = BOUNDS.get(name)
            if bound and size is not None and not bound.holds(size, limit):
                self.note(bound.fault, loc, f"Input should be {bound.words} {limit}", value)

    def note(self, fault: str, loc: tuple, msg: str, value: object) -> Any:
        if len(self.faults) < MOST_FAULTS:
            self.faults.append(error_entry(fault, loc, msg, value))


def choose(kinds: Sequence, value: object) -> Any:
    """The kind of a union that `value` is meant for: that of its type, else the last."""
    for kind in kinds:
        if type(value) is (typing.get_origin(kind) or kind):
            return kind
    return [kind for kind in kinds if kind is not type(None)][-1]


class Bound(NamedTuple):
    """A bound that described() takes: of a number, or of a text's length."""

    keyword: str  # JSON schema's name for it
    fault: str  # pydantic's name for what breaks it
    words: str
    holds: Callable


BOUNDS = {
    "ge": Bound("minimum", "greater_than_equal", "greater than or equal to", operator.ge),
    "gt": Bound("exclusiveMinimum", "greater_than", "greater than", operator.gt),
    "le": Bound("maximum", "less_than_equal", "less than or equal to", operator.le),
    "max_length": Bound("maxLength", "string_too_long", "of a length up to", operator.le),
}


def error_entry(fault: str, loc: tuple, msg: str, value: object = None) -> dict:
    """One entry of a 422's `detail`."""
    return {"type": fault, "loc": [*map(echo, loc)], "msg": msg, "input": echo(value)}


def echo(value: object) -> Any:
    """What an error repeats of a peer's value: a text's beginning, a number that JSON has, and of
    all else the type's name. So it costs the same whatever was sent."""
    if isinstance(value, str):
        return value[:100]
    if value is None or isinstance(value, int | float) and abs(value) < 1e300:
        return value
    return f"({type(value).__name__})"


# ── JSON schema ───────────────────────────────────────────────────────────────────────────────────

JSON_NAMES = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    dict: "object",
    list: "array",
    type(None): "null",
}
JSON_TYPES = "str, int, float, bool, dict, list, Literal, a dataclass, a | b"


def json_schema(hint: Any) -> dict:
    """JSON schema (draft 2020-12) of a model, or of any type that validate() knows."""
    kind = typing.get_origin(hint) or hint
    parts = typing.get_args(hint)
    if is_dataclass(kind):
        return model_schema(kind)
    if kind in UNIONS:
        return {"anyOf": [json_schema(part) for part in parts]}
    if kind is typing.Literal:
        return {"enum": [*parts]}
    if kind is Any:
        return {}
    if kind not in JSON_NAMES:
        raise TypeError(f"{hint!r:.100} is no type that JSON has; expected {JSON_TYPES}")
    schema: dict = {"type": JSON_NAMES[kind]}
    if parts:
        schema["items" if kind is list else "additionalProperties"] = json_schema(parts[-1])
    return schema


def model_schema(model: Any) -> dict:
    properties = {}
    fields = fields_of(model).values()
    for each in fields:
        schema = json_schema(each.type)
        for name, value in each.metadata.items():
            keyword = BOUNDS[name].keyword if name in BOUNDS else name
            schema[keyword] = value
        if each.default is not MISSING:
            schema["default"] = each.default
        properties[each.name] = schema
    return {
        "type": "object",
        "title": model.__name__,
        "description": (inspect.getdoc(model) or "").partition("\n")[0],
        "properties": properties,
        "required": [each.name for each in fields if is_required(each)],
        "additionalProperties": False,
    }


# ── The formats of tasks ──────────────────────────────────────────────────────────────────────────
# Each has a function that makes a task's fields of its columns; find_format() (chapter 3) chooses.

Columns = dict[str, Any]

PROMPTS = (
    "problem",
    "problem_description",
    "question",
    "question_content",
    "query",
    "description",
    "complete_prompt",
    "instruct_prompt",
    "text",
    "content",
    "prompt",
)
SOLUTIONS = ("solution", "solutions", "canonical_solution", "code", "completion")
PAIRS = ("inputs", "outputs", "input_output", "public_test_cases", "public_tests")
TESTS = ("tests", "test", "test_list", *PAIRS)


def text_of(columns: Columns, *names: str) -> str:
    """The first of these columns that is there, as text; lists are lines."""
    for name in names:
        value = last_said(columns.get(name, ""), "user")
        if isinstance(value, (list, tuple)):
            value = "\n".join(map(str, value))
        if not isinstance(value, str):
            raise InvalidRequest(f"{name} must be a string, not {type(value).__name__}")
        if value:
            return value
    return ""


def prompt_of(columns: Columns) -> str:
    """What to do, and the code to begin with."""
    parts = [text_of(columns, *PROMPTS), text_of(columns, "starter_code")]
    return "\n\n".join(filter(None, parts))


def solution_of(columns: Columns) -> str:
    """The reference solution: the first of several, and the code alone where it is Markdown."""
    for name in SOLUTIONS:
        value = columns.get(name)
        if isinstance(value, str) and value.startswith('["'):
            value = decode_json(name, value)
        if isinstance(value, (list, tuple)):
            value = value[0]
        if isinstance(value, str):
            # Longer ones are not looked into: the server reads them, too, and it takes time.
            fenced = FENCED.search(value) if len(value) < 65_536 else None
            # Code whose docstring shows a fence is no Markdown; and a row may be read twice.
            return fenced["code"] if fenced and not is_code(value) else value
    return ""


def task_id_of(columns: Columns, default: str) -> str:
    value = columns.get("task_id", columns.get("question_id", default))
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise InvalidRequest(f"task_id: expected text or a number, got {echo(value)!r}")
    if len(str(value)) > 255:  # every observation repeats it
        raise InvalidRequest(f"task_id: expected 255 characters at most, got {echo(value)!r}")
    return str(value)


def load_json(text: str) -> Any:
    """A text in a row that is JSON. To read it keeps the interpreter's lock, in whatever thread, so
    it is bounded by what takes time: the containers."""
    if count_outside(text, "[{") > MOST_VALUES:
        raise InvalidRequest(f"a column's JSON has over {MOST_VALUES:,} lists and objects")
    return json.loads(text)


def decode_json(name: str, value: Any) -> Any:
    """A column that holds JSON, or text that is JSON."""
    if not isinstance(value, str):
        return value
    try:
        return load_json(value)
    except InvalidRequest:  # which is a ValueError as well
        raise
    except (ValueError, RecursionError):
        words = "is pickled: nothing is ever unpickled; convert the cases first"
        if not value.startswith("eJ"):
            code = (
                "; code is for `tests`, or has an `entry_point` beside it" if name == "test" else ""
            )
            words = f"is not JSON{code}"
        raise InvalidRequest(f"`{name}` {words}") from None


def read_own(columns: Columns) -> Columns:
    """Tests that are code; or DeepCoder's, which are cases, listed in JSON or as it reads."""
    tests = columns["tests"]
    if isinstance(tests, str) and re.match(r"\s*(\[\s*)?\{\s*\"", tests):
        tests = decode_json("tests", tests)
    if isinstance(tests, dict):
        return read_pairs(columns | {"input_output": tests})
    if isinstance(tests, list) and isinstance(tests[0], dict):
        return read_pairs(columns | tests[0] | {"test": tests})  # each of them names the function
    names = ("tests", "setup", "helpers", "entry_point")
    return {
        **{name: text_of(columns, name) for name in names},
        "prompt": text_of(columns, "prompt", *PROMPTS),
        "solution": solution_of(columns),
    }


def read_humaneval(columns: Columns) -> Columns:
    """HumanEval, LeetCode and BigCodeBench: `test` says how to test the `entry_point`. What stands
    in the prompt above the function's head, or instead of one, is code for both sides."""
    entry = text_of(columns, "entry_point")
    tests = text_of(columns, "test")
    if re.search(r"(?m)^check\b", tests) and not re.search(r"\bdef check\b", tests):
        raise InvalidRequest("`check` is nowhere defined, though `test` calls it")
    if re.search(r"(?m)^def check\b", tests) and not re.search(r"(?m)^check\(", tests):
        tests = f"{tests}\n\ncheck({entry})\n"
    code = text_of(columns, "complete_prompt", "prompt")
    # No pattern is made of the name: `re` would keep it, and who sends it chooses how long it is.
    heads = re.finditer(r"(?m)^(?:async )?(?:def|class) (\w+)", code)
    head = next((each for each in heads if each[1] == entry), None)
    above = code[: head.start()] if head else code
    above = above if is_code(above) else ""
    solution = solution_of(columns)
    return {
        "prompt": prompt_of(columns),
        "tests": tests,
        "setup": text_of(columns, "setup") or above,
        "helpers": "\n".join((above, text_of(columns, "helpers"))),
        "entry_point": entry,
        "solution": f"{code}{solution}" if head and solution else solution,
    }


PARSING = threading.Lock()


def is_code(text: str) -> bool:
    """Whether a prompt, or a part of one, is Python. A long text is not: parsing takes time."""
    try:
        # A docstring may hold what Python warns of; and filters belong to the whole process.
        with PARSING, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(text if len(text) < 8_192 else "?")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def read_mbpp(columns: Columns) -> Columns:
    """MBPP and MBPP+. The tests show what to define, and ours are hidden: so the prompt says it."""
    solution = solution_of(columns)
    listed = text_of(columns, "test_list")
    tests = "\n".join((text_of(columns, "test_imports"), text_of(columns, "test") or listed))
    # Bounded, and by a set below: who sends a row chooses how long it takes the server to read it.
    most = 262_144
    code = solution[:32_768]
    heads = re.findall(r"(?m)^(?:async )?def (\w+)(\(.{0,500}\)) *(?:->.{0,200})?:", code)
    heads += [(name, "") for name in re.findall(r"(?m)^class (\w+)", code)]
    given = text_of(columns, "test_setup_code")[:most]
    ours = {*re.findall(r"(?m)^(?:def|class) (\w+)", given)}
    heads = [(name, head) for name, head in heads if name not in ours]
    used = {*re.findall(r"\w+", (listed or tests)[:most])}
    asked = [name + head for name, head in heads if name in used]
    if not asked:
        asked = re.findall(r"assert (?:\w+\()*?(\w+)\(", listed[:most])[:1]
    setup = text_of(columns, "test_setup_code", "setup")
    # A set-up that needs what the candidate defines is the judge's: it runs after the code.
    needs = not {name for name, _ in heads}.isdisjoint(re.findall(r"\w+", setup[:most]))
    define = " and ".join(f"`{name}`" for name in dict.fromkeys(asked))
    return {
        "prompt": f"{text_of(columns, 'text', 'prompt')}\n\nDefine {define}.",
        "tests": tests,
        "setup": "" if needs else setup,
        "helpers": setup if needs else "",
        "solution": solution,
    }


# As KodCode's tests begin. There is no such file: the name is the candidate's to define.
FROM_SOLUTION = re.compile(
    r"(?m)^([ \t]*)from solution import (\*|\([\w,\s]+\)|[\w, ]+)(?=[ \t]*(?:#.*)?$)"
)


def drop_import(found: re.Match) -> str:
    """What stands in the place of such an import: other names that it gives."""
    renamed = re.findall(r"(\w+)\s+as\s+(\w+)", found[2])
    return found[1] + ("; ".join(f"{new} = {old}" for old, new in renamed) or "pass")


def read_pairs(columns: Columns) -> Columns:
    """Inputs and outputs: of a function where one is named, and else of a whole program. Or the
    tests of KodCode, which stand in a column `test` as SandboxFusion's inputs do."""
    if has_code(columns) and FROM_SOLUTION.search(columns["test"]):
        return read_own(columns | {"tests": FROM_SOLUTION.sub(drop_import, columns["test"])})
    if "input_output" in columns:
        columns = columns | decode_json("input_output", columns["input_output"])
    cases = cases_of(columns)
    if not cases:
        raise InvalidRequest("no tests: not one pair of an input and an output")
    if len(cases) > MOST_ITEMS:
        raise InvalidRequest(f"{len(cases):,} pairs; the limit is {MOST_ITEMS:,}")
    function = function_of(columns)
    fields: Columns = {
        "prompt": prompt_of(columns),
        "setup": text_of(columns, "setup"),
        "solution": solution_of(columns),
    }
    if not function:
        pairs = [Pair(lines_of(given), lines_of(wanted)) for given, wanted in cases]
        return fields | {"pairs": tuple(pairs)}
    helpers = SAME + EITHER.replace("FUNCTION", function)
    entry = function
    call = "find_answer()"
    if re.search(r"\bclass Solution\b", text_of(columns, "starter_code")):
        helpers = SAME
        entry = call = f"Solution().{function}"
        fields["setup"] = COMMON_IMPORTS + fields["setup"]
    tests = []
    for given, wanted in decode_texts(cases):
        arguments = given if isinstance(given, list) else [given]
        tests.append(f"assert same({call}({', '.join(map(repr, arguments))}), {wanted!r})")
    return fields | {"entry_point": entry, "tests": "\n".join(tests), "helpers": helpers}


def decode_texts(cases: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """LiveCodeBench's evaluation form: of a function, too, inputs and outputs may all be JSON."""
    if not all(isinstance(each, str) for case in cases for each in case):
        return cases
    try:
        return [
            case_of({"testtype": "functional", "input": given, "output": wanted})
            for given, wanted in cases
        ]
    except ValueError:
        return cases  # text that means itself


def function_of(columns: Columns) -> str:
    """The name of the function that a row's inputs are for; "": they are for a program."""
    metadata = columns.get("metadata", {})
    if isinstance(metadata, str):
        metadata = decode_json("metadata", metadata) if metadata[:1] == "{" else {}
    function = str(columns.get("fn_name") or metadata.get("func_name") or "")
    if len(function) > 255:  # each of the tests repeats it
        raise InvalidRequest("fn_name: expected a function's name; it has over 255 characters")
    return function


# What the data sets' own harnesses put before a class: `List[int]` in a signature that they give
# needs it, and answers count on it. The last star hides what the first ones took from the builtins.
COMMON_IMPORTS = """
from string import *
from re import *
from datetime import *
from collections import *
from heapq import *
from bisect import *
from copy import *
from math import *
from random import *
from itertools import *
from functools import *
from operator import *
from typing import *
from builtins import *
import bisect, collections, copy, datetime, functools, heapq, io, itertools, json, math, operator
import os, random, re, string, sys, time, typing
"""

# JSON has no tuples; and some data sets wrap each output in a list, others do not. The import is of
# what repr() writes for JSON's Infinity and NaN.
SAME = """from math import inf, nan
def same(result, expected):
    result = list(result) if isinstance(result, tuple) else result
    return result == expected or (
        isinstance(expected, list) and len(expected) == 1 and result == expected[0]
    )
"""

# Where no signature is given, an answer may be LeetCode's class: so say the data sets' harnesses.
EITHER = """
def find_answer():
    try:
        return Solution().FUNCTION
    except NameError:
        return FUNCTION
"""


def cases_of(columns: Columns) -> list[tuple[Any, Any]]:
    """The inputs, each with its output, in whatever way a row lists them."""
    tables = [{"input": columns.get("inputs", []), "output": columns.get("outputs", [])}]
    for name in ("public_tests", "private_tests", "generated_tests"):  # CodeContests
        tables.append(decode_json(name, columns.get(name, {})))
    cases: list[tuple[Any, Any]] = []
    for table in tables:
        inputs = table.get("input", [])
        outputs = table.get("output", [])
        if isinstance(inputs, str) or isinstance(outputs, str):
            raise InvalidRequest("`inputs`, `outputs`: expected lists, one item a test; got text")
        if len(inputs) != len(outputs):
            raise InvalidRequest(f"{len(inputs)} inputs, {len(outputs)} outputs: not as many")
        cases += zip(inputs, outputs, strict=True)
    for name in ("public_test_cases", "test"):  # LiveCodeBench, SandboxFusion
        cases += map(case_of, decode_json(name, columns.get(name, [])))
    return cases


async def read_aside(read: Callable[[Any, Columns], Task], options: Any, row: Columns) -> Task:
    """read(options, row); in a thread where the row has columns of a client's own, because reading
    them could hold up the server's loop."""
    if row.keys() - OPTIONS:
        return await asyncio.to_thread(read, options, row)
    return read(options, row)


def case_of(case: dict[str, Any]) -> tuple[Any, Any]:
    given = case["input"]
    wanted = case["output"]
    if case.get("testtype") == "functional":  # an argument a line
        listed = given.replace("\n", ",")  # read at once, as there may be many
        return load_json(f"[{listed}]"), load_json(wanted)
    if isinstance(given, dict):
        return given["stdin"], wanted["stdout"]
    return given, wanted


def lines_of(value: Any) -> str:
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def has_code(columns: Columns) -> bool:
    """Whether `test` is code, and not a list of cases, perhaps as JSON or pickled."""
    test = columns.get("test")
    return isinstance(test, str) and not test.startswith(("[", "eJ"))


def describe_no_tests(row: Mapping[str, Any]) -> str:
    """Why a row is no task, with the columns by their names."""
    if isinstance(row.get("private_test_cases"), str):
        decode_json("private_test_cases", row["private_test_cases"])
    names = [str(name)[:40] for name in [*row][:20]]
    hints = []
    needed = ("task_id", *TESTS)
    for name in names:
        # What is almost one of them, else what speaks of tests, else what is a little like one.
        near = difflib.get_close_matches(name.lower(), needed, 1, 0.8)
        near = near or (["tests"] if "test" in name.lower() else [])
        near = near or difflib.get_close_matches(name, needed, 1, 0.6)
        if near and name not in COLUMNS:
            words = f"`{name}` is not a column of any format (did you mean `{near[0]}`?)"
            hints.append(words)
    expected = (
        "expected `tests`, or the columns of a known format (HumanEval, MBPP, `inputs` and"
        " `outputs` …), or a `task_id`"
    )
    return "; ".join(["no tests", *hints[:3], f"{expected}; got the columns {names!r:.200}"])


# ── Rows and completions, as data sets and models have them ───────────────────────────────────────

COLUMNS = {  # what the formats read
    *("task_id", "question_id", "difficulty", "judge", "metadata"),
    *("setup", "helpers", "entry_point", "starter_code", "fn_name"),
    *("test_imports", "test_setup_code", "private_tests", "generated_tests"),
    *PROMPTS,
    *SOLUTIONS,
    *TESTS,
}


# What else a reset takes. In a data set's row a column of another type is not meant for us.
OPTIONS: dict[str, Any] = {
    "task_id": (str, int, float),
    "seed": int,
    "episode_id": str,
    "max_steps": int,
    "reward": str,
}


def read_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a client sends for a reset with these columns: the options that are ours, and the task
    in them in our own format. So dates, NaN and columns of 5 MB stay where they are.

    Raises InvalidRequest, with the columns by their names, when they bring no task.
    """
    given = {name: plain(row[name]) for name in row if name in COLUMNS or name in OPTIONS}
    kinds = (str, int, float, list, dict)  # neither NaN, pandas' NA, dates nor bytes make a task
    given = {name: it for name, it in given.items() if isinstance(it, kinds) and it == it}  # noqa: PLR0124
    options = {name: given[name] for name in OPTIONS if name in given}
    if not row.keys() - OPTIONS:
        return options  # whether they make sense is the server's to say
    options = {name: value for name, value in options.items() if is_option(name, value)}
    if any(given.get(name) for name in TESTS):
        try:
            return options | Task.from_row(given).to_row()
        except InvalidRequest:
            return given  # for the server's words about it
    if "task_id" not in options:
        raise InvalidRequest(describe_no_tests(row))
    return options


def is_option(name: str, value: object) -> bool:
    is_long = isinstance(value, str) and len(value) > 255
    return isinstance(value, OPTIONS[name]) and not is_long


def plain(cell: Any) -> Any:
    """A cell with lists and numbers in place of numpy's arrays and scalars."""
    if hasattr(cell, "tolist"):
        cell = cell.tolist()
    if isinstance(cell, (list, tuple)):
        return [plain(item) for item in cell]
    if isinstance(cell, Mapping):
        return {name: plain(item) for name, item in cell.items()}
    return cell


def rows_of(columns: Mapping[str, Any], completions: Sequence[Any]) -> list[dict[str, Any]]:
    """A batch's rows, of those of its columns that a task is made of. Raises InvalidRequest when
    there are none, or when one of them has not as many values as there are completions."""
    if isinstance(completions, str):
        raise InvalidRequest("score: expected a list of completions, got a text")
    total = len(completions)
    lists = {}
    for name, values in columns.items():
        is_list = hasattr(values, "__len__") and not isinstance(values, (str, bytes, Mapping))
        if name in COLUMNS and is_list:
            lists[name] = [*values]
            if len(values) != total:
                got = f"`{name}` has {len(values)}"
                raise InvalidRequest(f"score: expected columns of {total} values each, but {got}")
    needed = {"task_id", *TESTS}
    if not lists.keys() & needed:
        single = [name for name in columns if name in needed]
        words = f"`{single[0]}` is not a list" if single else describe_no_tests(columns)
        raise InvalidRequest(f"score: expected lists of {total} values, one a completion; {words}")
    return [dict(zip(lists, cells, strict=True)) for cells in zip(*lists.values(), strict=True)]


def last_said(value: Any, role: str) -> Any:
    """Of chat messages, what the last one of this role says; any other value as it is. A message is
    a mapping or an object with a `content`, which is text, or a list of parts with texts."""
    if not value or not isinstance(value, (list, tuple)):
        return value
    messages = [fields_in(each) for each in value]
    if not all({"role", "content"} & each.keys() for each in messages):
        return value
    said = [each.get("content") for each in messages if each.get("role", role) == role]
    content = said[-1] if said else ""
    if isinstance(content, list):
        content = "".join(str(fields_in(part).get("text") or "") for part in content)
    return str(content or "")


def fields_in(value: Any) -> Mapping[str, Any]:
    """Of a mapping, or of a model as clients of OpenAI's API and verifiers have them."""
    return value if isinstance(value, Mapping) else getattr(value, "__dict__", {})


# A fence four columns further in than the first is one in a docstring. A block that nobody closes
# goes on to the end.
FENCED = re.compile(
    r"""(?msx)
    ^ (?P<indent>[ \t]*) (?P<fence>`{3,}|~{3,}) (?! [`~] | [^\n]*` )
    [ \t]* (?P<language>[\w+.-]{0,20}) [^\n]*\n?
    (?P<code>.*?)
    (?: ^ (?!(?P=indent)[ \t]{4}) [ \t]* (?P=fence)[`~]* [ \t\r]* $ | \Z )
    """
)


def extract_code(completion: str | Sequence[Mapping[str, Any]]) -> str:
    """The code in a model's completion: its last fenced block, or all of it where there is none.

    completion: text, or chat messages, of which the assistant's last one counts. Blocks of other
    languages do not count as long as there is one of Python, or of none.
    """
    completion = last_said(completion, "assistant")
    if not isinstance(completion, str):
        got = type(completion).__name__
        raise InvalidRequest(f"completion: expected text or chat messages, got {got}")
    completion = completion.rpartition("</think>")[2]  # where a model only tried things
    blocks = [*FENCED.finditer(completion)]
    # A fence within a docstring is one of the code's own.
    if not blocks or completion.count(DOCSTRING, 0, blocks[0].start()) % 2:
        return completion
    # A block without a language after one of Python is what the code prints, more often than not.
    python = [block for block in blocks if block["language"].lower() in PYTHON]
    plain_ones = [block for block in blocks if not block["language"]]
    last = (python or plain_ones or blocks)[-1]
    return textwrap.dedent(last["code"]) if last["indent"] else last["code"]


PYTHON = ("py", "python", "python3")  # as Markdown calls it
DOCSTRING = '"""'


def complete_code(code: str, row: Mapping[str, Any]) -> str:
    """The whole program: the prompt and the code, where the prompt is the head of the function that
    is asked for, and the code goes on from there, as in HumanEval; else the code."""
    prompt = row.get("prompt", "")
    heads = re.findall(r"(?m)^(?:async )?(?:def|class) (\w+)", prompt)
    entry = re.escape(row.get("entry_point") or (heads or [""])[-1])
    head = rf"(?m)^(?:async )?(?:def|class) {entry}\b"
    # Code that begins with a body goes on, even where it defines the function once more below.
    is_body = re.match(r"(\s*\n)?[ \t]", code)
    is_whole = not is_body and re.search(rf"{head}|^{entry}\s*[:=]", code)
    if not entry or is_whole or not re.search(head, prompt):
        return code
    return prompt + code if is_code(prompt) or is_code(f"{prompt}\n    pass") else code


# ── Checking a task file ──────────────────────────────────────────────────────────────────────────


class BadRow(NamedTuple):
    task_id: str  # "": the row is no task
    reason: str


async def check_tasks(tasks: list[Task], preload: Sequence[str]) -> list[BadRow]:
    """The tasks that are of no use, with the reasons; as many at once as there are processors."""
    sandbox = Sandbox(preload=preload)
    places = asyncio.Semaphore(os.cpu_count() or 1)
    count = itertools.count(1)
    started = time.monotonic()
    bad = []

    async def check(task: Task) -> None:
        async with places:
            reason = await find_flaw(sandbox, task)
        show_progress(next(count), len(tasks), started)
        if reason:
            bad.append(BadRow(task.task_id, reason))

    try:
        await sandbox.start()
        await asyncio.gather(*map(check, tasks))
    finally:
        await sandbox.close()
        show_progress(len(tasks), len(tasks), started)
    return sorted(bad)


async def find_flaw(sandbox: Sandbox, task: Task) -> str:
    """Why a task is of no use, or ""."""
    if not task.solution:
        return "no reference solution"
    reward, words = await grade_once(sandbox, task, task.solution)
    if reward != 1.0:
        if task.tests and (await grade_once(sandbox, task, task.solution, "inside"))[0] == 1.0:
            return 'its reference solution passes only with "judge": "inside"'
        return f"its reference solution gets {reward}: {words}"
    reward, _ = await grade_once(sandbox, task, "")
    return "an empty program gets 1.0 as well" if reward == 1.0 else ""


async def grade_once(
    sandbox: Sandbox, task: Task, code: str, judge: str = "apart"
) -> tuple[float | None, str]:
    """The reward (None: the grading failed) and the feedback."""
    environment = PythonEnvironment(sandbox, {task.task_id: task}, itertools.count(), judge)
    try:
        await environment.reset(task_id=task.task_id, max_steps=1)
        seen = await environment.step(PythonAction(code, timeout_s=sandbox.limits.step_max_s))
        return seen.reward, " ".join([seen.feedback, *seen.stderr.splitlines()[-1:]])
    except PythonEnvError as error:
        return None, str(error)
    finally:
        await environment.close()


def show_progress(done: int, total: int, started: float) -> None:
    """A bar on a terminal's standard error, with the rate and the time that is left; nothing in its
    place when all is done."""
    line = ""
    if done < total:
        rate = done / max(1e-6, time.monotonic() - started)
        left = (total - done) / rate
        bar = "█" * (30 * done // total)
        line = f"{bar:30} {done} of {total}, {rate:.1f} a second, {left:.0f} s left"
    if sys.stderr.isatty():
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)


# ── Showing a model ───────────────────────────────────────────────────────────────────────────────

SHORT = reprlib.Repr()
SHORT.maxstring = 160
SHORT.maxother = 1_200  # an observation within a result


def shorten(model: Any) -> str:
    shown = []
    for each in dataclasses.fields(model):
        value = getattr(model, each.name)
        if is_required(each) or value != each.default and value != {}:
            shown.append(f"{each.name}={SHORT.repr(value)}")
    return f"{type(model).__name__}({', '.join(shown)})"


# ── Finding a task ────────────────────────────────────────────────────────────────────────────────


def find_task(tasks: Mapping[str, Task], name: str) -> Task:
    """The task of that name. Raises InvalidRequest, with a name that is like it."""
    task = REPL if name == REPL.task_id else tasks.get(name)
    if task:
        return task
    near: list[str] = []
    if len(tasks) <= 1_000 and len(name) <= 100:  # among more it would take seconds
        near = difflib.get_close_matches(name, [*tasks, REPL.task_id], 1)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    words = f"no task {name[:100]!r}{hint} GET /tasks lists them, tests= brings one"
    raise InvalidRequest(
        f"task_id: {words}", [error_entry("unknown_task", ("task_id",), words, name)]
    )


# ── Task files ────────────────────────────────────────────────────────────────────────────────────


def read_tasks(path: Path) -> tuple[dict[str, Task], list[str]]:
    """The tasks of a file, and what is wrong with its other lines. Raises InvalidRequest where
    there is no line at all."""
    tasks: dict[str, Task] = {}
    lines = {REPL.task_id: 0}
    bad = []
    for number, line in read_lines(path):
        try:
            row = json.loads(line.decode("utf-8-sig"))
            if not isinstance(row, dict):
                kind = type(row).__name__
                raise InvalidRequest(f"expected a JSON object in each line, got a {kind}")
            task = Task.from_row(row, default_id=f"{path.name}:{number}").read()
            first = lines.setdefault(task.task_id, number)
            if first != number:
                by = f", by line {first}" if first else ""
                raise InvalidRequest(f"the task_id {task.task_id!r:.80} is taken already{by}")
            tasks[task.task_id] = task
        except (ValueError, RecursionError) as error:
            bad.append(f"line {number}: {error}")
    if not tasks and not bad:
        raise InvalidRequest(f"tasks file {path}: no tasks: expected one JSON object a line")
    return tasks, bad


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers. Raises InvalidRequest."""
    number = 0
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line
    except (OSError, EOFError, zlib.error) as error:
        where = f", line {number}" if number else ""
        raise InvalidRequest(f"tasks file {path}{where}: {error}") from None


def is_same_output(printed: str, expected: str) -> bool:
    words = words_of(printed)
    wanted = words_of(expected)
    return len(words) == len(wanted) and all(map(is_same_word, words, wanted))


def words_of(output: str) -> list[str]:
    """Words and ends of lines. White space at the end of a line or of all does not count."""
    words = []
    for line in output.rstrip().split("\n"):
        words += [*line.rstrip().split(" "), "\n"]
    return words


def is_same_word(word: str, wanted: str) -> bool:
    """As text; or, of a number with a fraction, in value, because 0.5 and 0.50 are right alike."""
    if word == wanted or "." not in wanted:
        return word == wanted
    try:
        return decimal.Decimal(word) == decimal.Decimal(wanted)
    except ArithmeticError:  # not both are numbers
        return False


def report_bad_lines(path: str | os.PathLike[str], bad: list[str], skip_bad: bool) -> None:
    if not skip_bad:
        shown = "; ".join(bad[:20]) + ("; …" if len(bad) > 20 else "")
        words = "are bad (expected one JSON object a line)"
        raise InvalidRequest(f"tasks file {path}: {len(bad)} of its lines {words}: {shown}")
    for words in bad[:20]:
        log.warning("tasks file %s: left out: %s", path, words)
    log.warning("tasks file %s: %d of its lines were left out", path, len(bad))


def read_columns(read: Callable[[Columns], Columns], columns: Columns) -> Columns:
    """What a format's function makes of them. Raises InvalidRequest, whatever it raises."""
    try:
        return read(columns)
    except InvalidRequest:
        raise
    except Exception as error:  # whatever another shape leads to  # noqa: BLE001
        raise InvalidRequest(
            f"the columns {[*columns]!r:.200} have another shape than those of a known format: "
            f"reading them raised {type(error).__name__}: {error!s:.100}"
        ) from None


# ── Flags and their variables ─────────────────────────────────────────────────────────────────────

VARIABLES = {"PYTHON_ENV_TOKEN", "PYTHON_ENV_NONCE"}  # and those of the flags
SWITCH = {"yes": True, "on": True, "true": True, "1": True}
SWITCH |= {"no": False, "off": False, "false": False, "0": False}
LEVELS = {"debug": "DEBUG", "info": "INFO", "warning": "WARNING", "error": "ERROR"}


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows the defaults, and the examples as they stand."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = super()._get_help_string(action) or ""
        is_none = action.default in (None, "", [])
        return text.replace("%(default)s", "none") if is_none else text


def add_flag(
    parser: argparse.ArgumentParser,
    name: str,
    default: Any,
    words: str,
    kind: Callable[[str], Any] = str,
    **options: Any,
) -> None:
    """A flag whose default is its environment variable, where that is set."""
    shown = name.upper().replace("-", "_")
    variable = f"PYTHON_ENV_{shown}"
    VARIABLES.add(variable)
    default = os.environ.get(variable) or default
    parser.add_argument(
        f"--{name}", default=default, help=words, type=kind, metavar=shown, **options
    )


def add_limit(parser: argparse.ArgumentParser, name: str, limit: str, *more: Any) -> None:
    """A flag that sets the field `limit` of Limits, which has its default."""
    add_flag(parser, name, getattr(LIMITS, limit), *more, dest=limit)


def given_limits(given: argparse.Namespace) -> Limits:
    """The limits, with what the flags say of those whose names they have."""
    limits = dataclasses.replace(LIMITS, **only_known(Limits, vars(given)))
    return dataclasses.replace(
        limits,
        step_max_s=max(limits.step_max_s, limits.step_s),
        http_idle_s=min(limits.http_idle_s, limits.ws_idle_s),
    )


def number(kind: type, least: float, most: float = 10**9) -> Callable[[str], Any]:
    """Reads a flag's text, or its variable's, as a number within bounds."""

    def read(text: str) -> Any:
        with contextlib.suppress(ValueError):
            value = kind(text)
            if least <= value <= most:
                return value
        words = f"expected {kind.__name__}, at least {least} and at most {most}, got {text[:99]!r}"
        raise argparse.ArgumentTypeError(words)

    return read


def one_of(choices: Mapping[str, Any]) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        if text.lower() in choices:
            return choices[text.lower()]
        raise argparse.ArgumentTypeError(f"expected {', '.join(choices)}, got {text[:99]!r}")

    return read


def comma_list(text: str) -> list[str]:
    return text.replace(",", " ").split()


def origin_list(text: str) -> list[str]:
    origins = comma_list(text)
    for each in origins:
        if each != "*" and not re.fullmatch(r"https?://[^/\s]+/?", each):
            raise argparse.ArgumentTypeError(f"expected https://host or *, got {each[:99]!r}")
    return origins


def paint(text: str, is_good: bool) -> str:
    """The text in green, or in yellow: on a terminal only, and not where NO_COLOR is set."""
    if os.environ.get("NO_COLOR") or not sys.stdout.isatty():
        return text
    return f"\x1b[{32 if is_good else 33}m{text}\x1b[0m"


def error_stream(given: argparse.Namespace) -> TextIO:
    """Where a command says why it failed: an embedded server to its client, which reads the other
    output's first line."""
    return sys.stdout if vars(given).get("exit_with_stdin") else sys.stderr


def warn_of_settings(host: str) -> None:
    if host in ("0.0.0.0", "::") and not os.environ.get("PYTHON_ENV_TOKEN"):
        log.warning("whoever reaches %s may use it: PYTHON_ENV_TOKEN is not set", host)
    for name in os.environ:
        if name.startswith("PYTHON_ENV_") and name not in VARIABLES:
            near = difflib.get_close_matches(name, VARIABLES, 1, 0)[0]
            log.warning("the variable %s means nothing; did you mean %s?", name, near)


def print_report(total: int, bad: list[BadRow], as_json: bool) -> None:
    """What `check` found."""
    if as_json:
        print(json.dumps({"rows": total, "bad": [row._asdict() for row in bad]}))
        return
    for row in bad:
        print(f"{row.task_id}: {row.reason}".removeprefix(": "))
    print(paint(f"{total - len(bad)} of {total} rows are sound", not bad))


# ── What the commands say and play ────────────────────────────────────────────────────────────────

SERVE_EXAMPLES = """\
Each flag is an environment variable, too: --step-timeout is PYTHON_ENV_STEP_TIMEOUT (and
--max-sessions also MAX_CONCURRENT_ENVS). PYTHON_ENV_TOKEN has none, because others can see flags:
where it is set, clients have to send 'Authorization: Bearer TOKEN'.

  python-env serve --tasks tasks.jsonl --max-sessions 64
  curl http://127.0.0.1:8000/step -d '{"action": {"code": "1 + 1"}}'
"""

CHECK_EXAMPLES = """\
Exit code 1 if a row is of no use. Rows whose reference passes only where it is judged inside are
named, too: give those a column "judge": "inside", or serve all with --judge inside.

  python-env check tasks.jsonl --preload numpy
"""

ALMOST_RIGHT = """\
def means(values, size):
    runs = [values[i:i + size] for i in range(0, len(values), size)]
    return [sum(run) / len(run) for run in runs]
print(means([1, 2, 3, 4, 9], 2))"""
RIGHT = ALMOST_RIGHT.replace("):", "):\n    if size < 1: raise ValueError(size)", 1)


# ══════════════════════════════════════════════════════════════════════════════════════════════════
# 9. HTTP/1.1, the messages' meaning, the WebSocket pump, the table of sessions, the listener
# ══════════════════════════════════════════════════════════════════════════════════════════════════

# RFC 9112; bare section numbers are its own. Where it lets a server mend or refuse, we refuse,
# because a proxy in front may mend differently, and two readings of the same bytes are how requests
# are smuggled. So a bare LF ends no line (2.2), and a SINGLE header never comes twice.
TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
TEXT = r"[\t -~\x80-\xff]*"
REQUEST_LINE = re.compile(rf"({TOKEN}) ([!-~]+) HTTP/([0-9]\.[0-9])\r\n")
FIELD = re.compile(rf"({TOKEN}):({TEXT})\r\n")
CHUNK_SIZE = re.compile(rf"([0-9A-Fa-f]{{1,16}})((?:[ \t]*;{TEXT})?)\r\n")
ABSOLUTE = re.compile(r"(?i:https?)://([\w.:\[\]-]+)(?![^/?])/?(.*)")
SINGLE = {"host", "content-length", "transfer-encoding", "origin", "authorization", "content-type"}
TARGET_BYTES = 8_192  # section 3 asks for 8,000 at least
HEADERS = 64  # of a request; fewer than websockets takes, which reads the same head again


@dataclass
class Request:
    """What a peer asks for. `path` is decoded and without the query; header names are lower."""

    method: str
    path: str
    query: dict[str, str]
    version: str  # "1.0" or "1.1"
    headers: dict[str, str]
    keep_alive: bool  # whether another request may follow on the connection (9.3)
    is_upgrade: bool  # to a WebSocket (RFC 9110, 7.8)
    head: bytes  # as it came, for websockets' handshake
    body: bytes = b""


# ── Reading a request ─────────────────────────────────────────────────────────────────────────────


async def read_request(
    reader: StreamReader, writer: StreamWriter, limits: Limits
) -> Request | None:
    """The connection's next request; None when the peer has no more.

    Raises HTTPError for what is malformed, oversized, or not whole within request_s, and a
    ConnectionError when nothing comes for keep_alive_s. Then the connection has to end, because
    nobody knows where the next request would begin.
    """
    with deadline(reader, limits.keep_alive_s, ConnectionAbortedError("idle for too long")):
        first = await reader.read(1)
    if not first:
        return None

    late = HTTPError(408, f"the request was not whole after {limits.request_s:g} s")
    try:
        with deadline(reader, limits.request_s, late):
            return await read_whole(first, reader, writer, limits)
    except asyncio.IncompleteReadError:
        raise HTTPError(400, "the connection ended inside a request") from None


@contextlib.contextmanager
def deadline(reader: StreamReader, seconds: float, error: Exception) -> Iterator[None]:
    """After so many seconds in it, the reader raises the error."""
    timer = asyncio.get_running_loop().call_later(seconds, reader.set_exception, error)
    try:
        yield
    finally:
        timer.cancel()


async def read_whole(
    first: bytes, reader: StreamReader, writer: StreamWriter, limits: Limits
) -> Request:
    request = parse_head(await read_head(first, reader, limits))
    length = body_length(request, limits)
    expectation = request.headers.get("expect", "").lower()
    if expectation and request.version == "1.1":  # RFC 9110, 10.1.1
        if expectation != "100-continue":
            raise HTTPError(417, "an expectation other than 100-continue")
        if length != 0:
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    if length is None:
        request.body = await read_chunks(reader, limits)
    else:
        request.body = await reader.readexactly(length)
    return request


async def read_line(reader: StreamReader, room: int, status: int, start: bytes = b"") -> str:
    """The next line, which began with `start`; `status` is for one of over `room` bytes."""
    too_long = HTTPError(status, f"a line of over {max(room, 0):,} bytes")
    try:
        line = start if start == b"\n" else start + await reader.readuntil(b"\n")
    except asyncio.LimitOverrunError:
        raise too_long from None
    if len(line) > room:
        raise too_long
    if not line.endswith(b"\r\n"):
        raise HTTPError(400, "a line that a bare LF ends; expected CRLF")
    return line.decode("latin-1")


async def read_head(first: bytes, reader: StreamReader, limits: Limits) -> list[str]:
    """The request line, the headers' lines, and the empty line."""
    room = limits.head_bytes
    line = await read_line(reader, room, 414, first)
    if line == "\r\n":  # a server should pass over one empty line before a request (2.2)
        line = await read_line(reader, room, 414)
    lines = [line]
    while lines[-1] != "\r\n":
        room -= len(lines[-1])
        lines.append(await read_line(reader, room, 431))
    return lines


def parse_head(lines: list[str]) -> Request:
    start = REQUEST_LINE.fullmatch(lines[0])
    if not start:
        raise HTTPError(400, f"a malformed request line: {lines[0][:80]!a}")
    method, target, version = start.groups()
    if version not in ("1.0", "1.1"):
        raise HTTPError(505, f"HTTP/{version} is not spoken here, HTTP/1.1 is")

    headers = parse_fields(lines[1:-1])
    if "host" not in headers and version == "1.1":
        raise HTTPError(400, "HTTP/1.1 needs a Host header (3.2)")
    absolute = ABSOLUTE.fullmatch(target)
    if absolute:  # it overrules Host (3.2.2)
        headers["host"] = absolute[1]
        target = "/" + absolute[2]
    check_target(method, target)

    path, _, query = target.partition("?")
    options = re.split("[ \t]*,[ \t]*", headers.get("connection", "").lower())
    wanted = headers.get("upgrade", "").lower()
    return Request(
        method=method,
        path=unquote(path),
        query=dict(parse_qsl(query, keep_blank_values=True)),
        version=version,
        headers=headers,
        keep_alive="close" not in options and (version == "1.1" or "keep-alive" in options),
        is_upgrade=version == "1.1" and "upgrade" in options and wanted == "websocket",
        head="".join(lines).encode("latin-1"),
    )


def parse_fields(lines: list[str]) -> dict[str, str]:
    if len(lines) > HEADERS:
        raise HTTPError(431, f"over {HEADERS} headers")
    headers: dict[str, str] = {}
    for line in lines:
        field = FIELD.fullmatch(line)
        if not field:
            raise HTTPError(400, f"a malformed header: {line[:80]!a}")
        name = field[1].lower()
        value = field[2].strip(" \t")
        if name in headers:
            if name in SINGLE:
                raise HTTPError(400, f"more than one {name} header")
            value = f"{headers[name]}, {value}"  # RFC 9110, 5.3
        headers[name] = value
    return headers


def check_target(method: str, target: str) -> None:
    if len(target) > TARGET_BYTES:
        raise HTTPError(414, f"the target is over {TARGET_BYTES:,} bytes")
    if not target.startswith("/") and (method, target) != ("OPTIONS", "*"):
        raise HTTPError(400, "expected a /path as the target")
    if re.search("#|%(?![0-9A-Fa-f]{2})", target):
        raise HTTPError(400, "a stray # or % in the target")


def body_length(request: Request, limits: Limits) -> int | None:
    """The body's bytes; None: it comes in chunks."""
    length = request.headers.get("content-length")
    coding = request.headers.get("transfer-encoding")
    if coding is not None:
        # Beside a length, or in HTTP/1.0, it is what smugglers send (6.1).
        if length is not None or request.version == "1.0":
            raise HTTPError(400, "a Transfer-Encoding where the length is told otherwise")
        if coding.lower() != "chunked":
            raise HTTPError(501, "a Transfer-Encoding other than chunked")
        return None

    if length is None:
        return 0
    if not re.fullmatch("[0-9]{1,18}", length):
        raise HTTPError(400, "Content-Length is not 1 to 18 digits")
    if int(length) > limits.message_bytes:
        raise HTTPError(413, f"a body of over {limits.message_bytes:,} bytes")
    return int(length)


async def read_chunks(reader: StreamReader, limits: Limits) -> bytes:
    body = bytearray()
    room = limits.head_bytes  # for all extensions and trailers together
    while True:
        chunk = CHUNK_SIZE.fullmatch(await read_line(reader, room, 431))
        if not chunk:
            raise HTTPError(400, "a malformed chunk size")
        size = int(chunk[1], 16)
        room -= len(chunk[2])
        if len(body) + size > limits.message_bytes:
            raise HTTPError(413, f"chunks of over {limits.message_bytes:,} bytes")
        if size == 0:
            break
        body += await reader.readexactly(size)
        if await reader.readexactly(2) != b"\r\n":
            raise HTTPError(400, "a chunk is longer than its size")
        # Because what has arrived is read without waiting, 100,000 chunks would hold up the others.
        await asyncio.sleep(0)

    trailer = await read_line(reader, room, 431)
    while trailer != "\r\n":
        if not FIELD.fullmatch(trailer):
            raise HTTPError(400, "a malformed trailer")
        room -= len(trailer)
        trailer = await read_line(reader, room, 431)
    return bytes(body)


# ── Writing a reply ───────────────────────────────────────────────────────────────────────────────


@dataclass
class Reply:
    """A response to be. `body`: bytes, or anything that becomes JSON.

    `opened`: the session that the request began. Only this reply tells the peer its id.
    """

    body: Any
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"
    opened: Session | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.body, bytes):
            self.body = to_json(self.body)


def encode_response(reply: Reply, keep_alive: bool = True, head_only: bool = False) -> bytes:
    """The reply's bytes; without the body for a HEAD request."""
    fields = {
        "Content-Type": reply.content_type,
        "Content-Length": str(len(reply.body)),
        **reply.headers,
        "Connection": "keep-alive" if keep_alive else "close",
        "X-Content-Type-Options": "nosniff",
    }
    lines = [f"{name}: {value}\r\n" for name, value in fields.items()]
    if not all(map(FIELD.fullmatch, lines)):  # a CRLF in a value would begin another header
        raise ValueError(f"not fit for response headers: {lines}")
    start = f"HTTP/1.1 {reply.status} {HTTPStatus(reply.status).phrase}\r\n"
    head = "".join([start, *lines, "\r\n"]).encode("latin-1")
    return head if head_only else head + reply.body


# ── What the messages mean ────────────────────────────────────────────────────────────────────────

MOST_VALUES = 100_000  # of a message: to read more may take a twentieth of a second
MESSAGE_TYPES = ("reset", "step", "state", "close", "mcp")
CLOSE_MESSAGE = re.compile(r'\s*\{\s*"type"\s*:\s*"close"\s*(,\s*"data"\s*:\s*\{\s*\}\s*)?\}\s*')


def plain_value(value: Any) -> Any:
    """Of what an environment gives, a nested dataclass and numpy's numbers and arrays as JSON."""
    return value.tolist() if hasattr(value, "tolist") else dataclasses.asdict(value)


# Kept, because json.dumps() would make a new one each time. JSON has no NaN, so it is refused.
to_text = json.JSONEncoder(separators=(",", ":"), allow_nan=False, default=plain_value).encode


@dataclass
class StepRequest:
    """The body of POST /step; other keys are passed over."""

    action: Data = described("The action, as GET /schema describes it")  # noqa: RUF009
    timeout_s: float | None = described("Seconds, where the action names none", None, gt=0)


def to_json(message: Any) -> bytes:
    return to_text(message).encode()


def parse_json(text: str | bytes) -> Any:
    """What a peer wrote. Raises InvalidJSON, also for what would take too long to read."""
    try:
        text = text if isinstance(text, str) else text.decode()
        if len(text) > MOST_VALUES and count_outside(text, ",:[{") > MOST_VALUES:
            raise json.JSONDecodeError(f"over {MOST_VALUES:,} values", "", 0)
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        place = getattr(error, "pos", 0)
        why = getattr(error, "msg", "not readable")
    if text:
        entry = error_entry("json_invalid", ("body", place), f"JSON decode error: {why}", {})
    else:
        entry = error_entry("missing", ("body",), "Field required")
    raise InvalidJSON(f"not JSON, at character {place}: {why}", [entry])


def count_outside(text: str, marks: str) -> int:
    """How often these marks stand in a JSON text, outside its strings."""
    # Without escapes each quote begins or ends a string. Where there are very many, the rest counts
    # as outside, because to split it takes long.
    bare = text.replace("\\\\", "").replace('\\"', "")
    outside = "".join(bare.split('"', 4 * MOST_VALUES)[::2])
    return sum(map(outside.count, marks))


def json_object(body: bytes) -> Data:
    return validate(Data, parse_json(body), ("body",))


def parse_message(text: str) -> tuple[str, Data]:
    """A WebSocket message's type and data."""
    message = parse_json(text)
    if not isinstance(message, dict):
        raise InvalidJSON(f"expected a JSON object, got {type(message).__name__}")
    kind = message.get("type")
    data = message.get("data")
    if kind not in MESSAGE_TYPES:
        raise UnknownType(f"type {echo(kind)!r}: expected one of {', '.join(MESSAGE_TYPES)}")
    if data is None and kind != "step":
        data = {}
    if not isinstance(data, dict):
        raise InvalidRequest(f"data: expected an object, got {echo(data)!r}")
    return kind, data


def observation_data(observation: Observation) -> Data:
    """An observation as it travels: reward and done beside it, and metadata where there are any."""
    body = to_dict(observation)
    data = {"observation": body, "reward": body.pop("reward"), "done": body.pop("done")}
    if observation.metadata:
        data["metadata"] = observation.metadata
    return data


def as_ours(error: Exception) -> PythonEnvError:
    """What a peer is told: the words of an error that is not ours are for the log alone."""
    if isinstance(error, PythonEnvError):
        return error
    log.error("the environment failed", exc_info=error)
    name = type(error).__name__
    return PythonEnvError(f"the environment raised {name}; the server's log has more")


def error_data(error: PythonEnvError) -> Data:
    data: Data = {"message": str(error), "code": error.code}
    if isinstance(error, InvalidRequest) and error.errors:
        data["errors"] = error.errors
    return data


def error_reply(error: PythonEnvError) -> Reply:
    if isinstance(error, HTTPError):
        return Reply({"detail": str(error)}, error.status, error.headers)
    if isinstance(error, InvalidRequest):
        entries = error.errors or [error_entry("value_error", ("body",), str(error))]
        return Reply({"detail": entries}, error.status)
    headers = {"Retry-After": "1"} if error.status == 503 else {}
    return Reply({"detail": str(error), "code": error.code}, error.status, headers)


def openapi(service: Service) -> Data:
    """The OpenAPI document, as far as `openenv validate` reads it: the version and the routes."""
    answers = {"responses": {"200": {"description": "OK"}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": service.name, "description": service.description, "version": "1.0.0"},
        "paths": {
            path: {method.lower(): answers for method in methods}
            for path, methods in ROUTES.items()
        },
    }


# ── MCP: JSON-RPC 2.0 over POST /mcp, or in a WebSocket's `mcp` message ───────────────────────────

MCP_VERSIONS = ("2025-06-18", "2025-03-26", "2024-11-05")
RESET_TOOL = {
    "name": "reset",
    "description": "Begin an episode: of the server's task with that task_id, or of a data set's "
    "row that brings prompt and tests. Without arguments, of the next task.",
    "inputSchema": {
        "type": "object",
        "properties": {
            "task_id": {"type": "string", "description": "A task, or 'repl' for just Python"},
            "tests": {"type": "string", "description": "Python assert statements to pass"},
            "prompt": {"type": "string", "description": "What to do"},
        },
    },
}


class InvalidRPC(PythonEnvError):
    """What is no JSON-RPC request."""

    code = "INVALID_RPC"


# JSON-RPC's numbers for our errors; all others are -32000. HTTP's status stays 200.
RPC_NUMBERS = {
    "INVALID_JSON": -32700,
    "INVALID_RPC": -32600,
    "UNKNOWN_TYPE": -32601,
    "VALIDATION_ERROR": -32602,
    "SESSION_ERROR": -32602,
}


def parse_rpc(message: Any) -> Data:
    """A JSON-RPC request, from an HTTP body or a WebSocket message's data."""
    if isinstance(message, bytes):
        message = parse_json(message)
    is_rpc = isinstance(message, dict) and message.get("jsonrpc") == "2.0"
    if not is_rpc or not isinstance(message.get("method"), str):
        raise InvalidRPC("Invalid request: expected an object with jsonrpc '2.0' and a method")
    # A float is no id: JSON-RPC advises against fractions, and a NaN could not be sent back.
    if not isinstance(message.get("id"), str | int | None):
        raise InvalidRPC("Invalid request: expected a number or a text as the id")
    return message


class MCPCall:
    """One JSON-RPC message, for a session or (None) without one.

    `opened` is the session that it began, if it did.
    """

    def __init__(self, server: Server, session: Session | None) -> None:
        self.server = server
        self.session = session
        self.opened: Session | None = None
        self.step_tool = "run_python" if server.service.action is PythonAction else "step"

    async def answer(self, message: object) -> Data:
        """The response, also for an error; {} for a notification, which wants none."""
        response: Data = {"jsonrpc": "2.0", "id": None}
        try:
            rpc = parse_rpc(message)
            if "id" not in rpc:
                return {}
            response["id"] = rpc["id"]
            params = validate(Data, rpc.get("params") or {}, ("params",))
            if self.session is None:
                self.session = self.server.sessions.find(params.get("session_id"))
            response["result"] = await self.carry_out(rpc["method"], params)
        except Exception as raised:  # noqa: BLE001
            error = as_ours(raised)
            number = RPC_NUMBERS.get(error.code, -32000)
            response["error"] = {"code": number, "message": str(error)}
        return response

    async def carry_out(self, method: str, params: Data) -> Data:
        if method == "ping":
            return {}
        if method == "tools/list":
            return {"tools": self.list_tools()}
        if method == "tools/call":
            return await self.call_tool(params.get("name"), params.get("arguments") or {})
        if method == "openenv/session/close":
            session = self.need_session()
            self.server.sessions.drop(session)
            return {"session_id": session.id, "closed": True}
        if method not in ("initialize", "openenv/session/create"):
            raise UnknownType(f"Method not found: {method[:100]}")

        if self.session is None:
            self.session = self.opened = await self.server.sessions.open()
        if method == "openenv/session/create":
            return {"session_id": self.session.id}
        version = params.get("protocolVersion")
        return {
            "protocolVersion": version if version in MCP_VERSIONS else MCP_VERSIONS[0],
            "capabilities": {"tools": {}},
            "serverInfo": {"name": self.server.service.name, "version": __version__},
        }

    def need_session(self) -> Session:
        if self.session is None:
            raise InvalidRequest("this needs a session: initialize, or name it as session_id")
        return self.session

    def list_tools(self) -> list[Data]:
        step_tool = {
            "name": self.step_tool,
            "description": "Take a step. Names are kept from one to the next; where a task is on, "
            "its tests judge the step: reward and feedback.",
            "inputSchema": json_schema(self.server.service.action),
        }
        return [step_tool, RESET_TOOL]

    async def call_tool(self, name: object, arguments: Any) -> Data:
        """Carry out a "reset" or a step; without a session, the step alone in one of its own."""
        validate(Data, arguments, ("arguments",))
        if name not in ("reset", self.step_tool):
            raise InvalidRequest(f"Unknown tool: {echo(name)!r}")
        try:
            if name == "reset":
                data = await self.need_session().call("reset", arguments)
            elif self.session is None:
                data = await self.server.step_once(arguments)
            else:
                if self.session.stage is Stage.NO_EPISODE:
                    await self.session.call("reset", {"task_id": REPL.task_id})
                data = await self.session.call("step", arguments)
        except ExecutionError as error:  # the model's affair, which may call reset
            return tool_result({"error": str(error)}, failed=True)
        seen = {**data["observation"], "reward": data["reward"], "done": data["done"]}
        return tool_result(seen, failed=seen.get("exit_code", 0) != 0)


def tool_result(seen: Data, failed: bool) -> Data:
    """`data` is what OpenEnv's MCPToolClient returns, the rest is MCP's."""
    text = {"type": "text", "text": to_text(seen)}
    return {"content": [text], "structuredContent": seen, "data": seen, "isError": failed}


# ── A WebSocket ───────────────────────────────────────────────────────────────────────────────────

BATCH = 2_048  # bytes that are read at once: as many of tiny frames take 10 ms


class WebSocket:
    """One WebSocket: a task reads it, and another answers one message after the other.

    So it is read while a step runs. Pings are answered, and a close, or a peer that vanished, ends
    the step: the answering task is cancelled. A peer that does not read, or is too far ahead with
    its messages, is not read either.
    """

    def __init__(self, server: Server, reader: StreamReader, writer: StreamWriter) -> None:
        self.server = server
        self.limits = server.limits
        self.reader = reader
        self.writer = writer
        # Any, because its events are frames as soon as the handshake is done.
        self.protocol: Any = ServerProtocol(max_size=self.limits.message_bytes, logger=QUIET)
        self.session: Session | None = None
        self.messages: asyncio.Queue[str] = asyncio.Queue(self.limits.queued_messages)
        self.queued = 0  # characters, since the queue was empty
        self.fragments = bytearray()  # of the message that is coming
        self.is_binary = False

    async def serve(self, request: Request) -> None:
        """Shake hands, and talk until one of both is gone."""
        self.protocol.receive_data(request.head)
        for event in self.protocol.events_received():
            self.protocol.send_response(self.protocol.accept(event))
        self.write_out()
        if self.protocol.state is not OPEN:  # websockets refused the handshake
            return
        answering = asyncio.create_task(self.answer_all(request.query.get("session_id")))
        try:
            await self.read_all(answering)
        finally:
            if self.server.sessions.closing:
                self.end(CloseCode.GOING_AWAY)
            answering.cancel()
            try:
                await asyncio.wait([answering])
            finally:
                vars(self.protocol).clear()  # its parser is a generator, and they hold each other

    # ── Reading ──

    async def read_all(self, answering: asyncio.Task[None]) -> None:
        while data := await self.reader.read(BATCH):
            self.protocol.receive_data(data)
            self.write_out()
            await self.writer.drain()  # pongs, too, are for those who read
            for frame in self.protocol.events_received():
                if frame.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                    await self.receive(frame)
            if self.protocol.state is not OPEN:
                answering.cancel()
            if len(data) == BATCH:
                await asyncio.sleep(0)  # there is more, but others want to be read, too

    async def receive(self, frame: Frame) -> None:
        """Put a frame's data to its message, and the whole message into the queue."""
        self.is_binary |= frame.opcode is Opcode.BINARY
        self.fragments += frame.data
        if not frame.fin:
            return
        try:
            text = "(a binary message)" if self.is_binary else self.fragments.decode()
        except UnicodeDecodeError:
            self.protocol.fail(CloseCode.INVALID_DATA)  # RFC 6455, 8.1
            self.write_out()
            return
        self.fragments = bytearray()
        self.is_binary = False
        if len(text) < 100 and CLOSE_MESSAGE.fullmatch(text):
            self.end(CloseCode.NORMAL_CLOSURE)
            return

        if self.messages.empty():
            self.queued = 0
        self.queued += len(text)
        await self.messages.put(text)
        if self.queued > self.limits.message_bytes:
            await self.messages.join()  # until all are answered

    # ── Answering ──

    async def answer_all(self, key: str | None) -> None:
        """Answer each message; a session that began over HTTP or MCP is joined by its id."""
        try:
            session = self.server.sessions.find(key)
            if session:
                self.join(session)
            while self.protocol.state is OPEN:
                await self.answer(await self.messages.get())
                await self.writer.drain()
                self.messages.task_done()
        except PythonEnvError as error:
            self.report(error)
        except OSError:
            pass  # who reads will find out, too
        finally:
            if self.session:
                self.session.socket = None
                if not key:
                    self.server.sessions.drop(self.session)

    async def answer(self, text: str) -> None:
        """Answer one message. An error is an answer, too; only some end the session."""
        try:
            kind, data = parse_message(text)
            if kind == "close":  # one that CLOSE_MESSAGE did not know, as it has data
                self.end(CloseCode.NORMAL_CLOSURE)
                return
            # Not before: who only connects takes no place.
            session = self.session or self.join(await self.server.sessions.open())
            if kind == "mcp":
                self.send("mcp", await MCPCall(self.server, session).answer(data))
            else:
                reply = await session.call(kind, data)
                self.send("state" if kind == "state" else "observation", reply)
        except Exception as error:  # noqa: BLE001
            self.report(as_ours(error))

    def join(self, session: Session) -> Session:
        if session.socket:
            raise SessionError("the session has a WebSocket already; close it")
        session.socket = self
        self.session = session
        return session

    # ── Writing ──

    def report(self, error: PythonEnvError) -> None:
        self.send("error", error_data(error))
        if isinstance(error, CapacityError):
            self.end(CloseCode.TRY_AGAIN_LATER)
        elif error.ends_session:
            self.end(CloseCode.POLICY_VIOLATION)

    def send(self, kind: str, data: Data) -> None:
        if self.protocol.state is OPEN:
            self.protocol.send_text(to_json({"type": kind, "data": data}))
            self.write_out()

    def write_out(self) -> None:
        for data in self.protocol.data_to_send():
            if data:
                self.writer.write(data)
            else:  # both sides have said goodbye, or the peer broke the protocol
                self.writer.write_eof()
                abort_later(self.writer, GOODBYE_S)

    def end(self, code: int) -> None:
        """Begin the closing handshake; a peer that does not join in is cut off."""
        if self.protocol.state is OPEN:
            self.protocol.send_close(code)
            self.write_out()
            abort_later(self.writer, GOODBYE_S)


# ── Sockets ───────────────────────────────────────────────────────────────────────────────────────


def bind(host: str, port: int) -> list[socket.socket]:
    """A socket for each address of the host, all on one port; "::" takes IPv4 as well."""
    sockets: list[socket.socket] = []
    try:
        for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            address = info[4][0]
            both = address == "::" and socket.has_dualstack_ipv6()
            one = socket.create_server((address, port), family=info[0], dualstack_ipv6=both)
            sockets.append(one)
            port = one.getsockname()[1]
    except OSError as error:
        # create_server() adds the address in brackets, which stands there already.
        why = str(error.strerror).partition(" (")[0]
        hint = "; port 0 (--port 0) takes any free one" if error.errno == errno.EADDRINUSE else ""
        raise OSError(f"cannot listen on {host} port {port}: {why}{hint}") from None
    return sockets


def is_loopback(name: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(name).is_loopback
    return name == "localhost" or name.endswith(".localhost")


def host_name(host: str) -> str:
    """My.Box:8000 is my.box."""
    return re.sub(r":\d*$", "", host.lower()).strip("[]")


def canonical(origin: str) -> str:
    """HTTPS://A.example:443/ is https://a.example."""
    scheme, _, host = origin.lower().rstrip("/").partition("://")
    default = {"http": ":80", "https": ":443"}.get(scheme, "/")
    return f"{scheme}://{host.removesuffix(default)}"


async def cancel_when_lost(task: asyncio.Task[Any], writer: StreamWriter) -> None:
    """Nobody waits for the answer of a connection that is lost, so end what works on it."""
    with contextlib.suppress(OSError):  # ETIMEDOUT, when the peer has vanished, is its own kind
        await writer.wait_closed()
    task.cancel()


async def hang_up(reader: StreamReader, writer: StreamWriter) -> None:
    """Close after our last words; what the peer still sends is read, because a close with unread
    input is a reset, which would take those words along."""
    writer.write_eof()
    abort_later(writer, GOODBYE_S)
    if reader.exception():  # the peer was too slow, so its input fits into the reader's buffer
        await asyncio.sleep(GOODBYE_S)
        return
    while await reader.read(BATCH):
        await asyncio.sleep(0)


def abort_later(writer: StreamWriter, seconds: float) -> asyncio.TimerHandle:
    return asyncio.get_running_loop().call_later(seconds, writer.transport.abort)


def break_cycles(reader: StreamReader) -> None:
    """A reset is kept by the reader, its traceback keeps our frames, and they keep the reader."""
    error = reader.exception()
    if error:
        error.__traceback__ = None


# ── Calling an environment ────────────────────────────────────────────────────────────────────────


@dataclass
class Methods:
    """An environment's methods: coroutines run inline, plain functions in a thread of their own."""

    environment: Environment[Any, Any]
    thread: concurrent.futures.ThreadPoolExecutor | None = None

    async def call(self, name: str, /, *arguments: Any, **options: Any) -> Any:
        """Call one, with those of the options that it takes."""
        method = getattr(self.environment, name)
        if not callable(method):
            return method  # OpenEnv's own environments have `state` as a property
        known = keywords_of(getattr(method, "__func__", method))
        if known is not None:
            options = {key: options[key] for key in options if key in known}
        call = functools.partial(method, *arguments, **options)
        try:
            if inspect.iscoroutinefunction(method):
                return await cast(Any, call())
            if self.thread is None:
                self.thread = concurrent.futures.ThreadPoolExecutor(1, "environment")
            return await asyncio.get_running_loop().run_in_executor(self.thread, no_stop, call)
        except SystemExit as error:  # which would end the server
            raise ExecutionError(f"the environment called sys.exit({error.code!r})") from None

    async def observe(self, name: str, /, *arguments: Any, **options: Any) -> Observation:
        """Call reset() or step(). Raises ExecutionError where no observation comes of it."""
        observation = await self.call(name, *arguments, **options)
        if not hasattr(observation, "done"):
            got = type(observation).__name__
            raise ExecutionError(f"the environment's {name}() returned {got}, not an Observation")
        return cast(Observation, observation)

    def close(self) -> None:
        if self.thread is not None:
            self.thread.shutdown(wait=False)


def log_step(session: Session, observation: Observation, seconds: float) -> None:
    task = getattr(observation, "task_id", None) or "-"
    words = "session %s: step %d, task %s, %.1f ms, reward %s"
    log.debug(words, session.id[:6], session.steps, task, 1_000 * seconds, observation.reward)


@functools.lru_cache(1_024)
def keywords_of(function: Callable[..., Any]) -> Collection[str] | None:
    """The names of its parameters; None: it takes any keyword."""
    parameters = inspect.signature(function).parameters
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    return None if takes_any else parameters.keys() - {"self"}


def no_stop(function: Callable[[], Any]) -> Any:
    """function(), but a StopIteration becomes what asyncio can carry out of a thread."""
    try:
        return function()
    except StopIteration as error:
        raise RuntimeError("the environment raised StopIteration") from error


def find_models(environment: Any, observation: Any, state: Any) -> dict[str, Any]:
    """The models of an environment: those that are given, or what its methods say they return."""
    models = {}
    for name, model, method in (("observation", observation, "step"), ("state", state, "state")):
        function = getattr(environment, method, serve)
        hints = typing.get_type_hints(getattr(function, "fget", function))  # a property has one
        model = model or hints.get("return")
        if is_dataclass(model):
            models[name] = model
    return models


def check_service(service: Service) -> None:
    """Say at the start what could only fail later, at each request. Raises TypeError."""
    if isinstance(service.factory, Environment):
        raise TypeError("environment: expected its class, or what makes one, got an instance")
    for name in ("reset", "step"):
        if getattr(service.factory, name, None) is getattr(Environment, name):
            raise TypeError(f"{service.name}: expected it to define {name}()")
    if not isinstance(service.action, type):
        raise TypeError(f"action: expected a class, got {service.action!r:.100}")
    models: tuple[Any, ...] = (service.action, service.observation, service.state)
    for model in models:
        if not issubclass(model, Model):
            continue  # pydantic's, as OpenEnv's own environments have
        if "__dataclass_fields__" not in vars(model):
            raise TypeError(f"{model.__name__}: expected a dataclass; write @dataclass above it")
        for name, each in fields_of(model).items():
            try:
                json_schema(each.type)
            except TypeError as error:
                raise TypeError(f"{model.__name__}.{name}: {error}") from None


# ── The table of sessions ─────────────────────────────────────────────────────────────────────────

HOUSEKEEPING_S = 0.25  # how often idle sessions are looked for


class SessionTable:
    """All sessions, of WebSocket, HTTP and MCP alike, by their id; and the queue for a place."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.limits = service.limits
        self.by_id: dict[str, Session] = {}
        self.waiting = 0  # for a place
        self.door = asyncio.Lock()  # asyncio's lets in who came first
        self.farewells: set[asyncio.Task[None]] = set()
        self.closing = False
        self.is_hurried = False  # it was asked to stop once more

    def __len__(self) -> int:
        return len(self.by_id)

    async def open(self) -> Session:
        """A new session. On a full server it waits for a place; who waits longest gets the next.

        One connection waits for one session, so the queue is no longer than `connections`. Raises
        CapacityError when there was none for session_wait_s, and FactoryError.
        """
        deadline = time.monotonic() + self.limits.session_wait_s
        self.waiting += 1
        try:
            async with self.door:
                while not self.has_place():
                    if self.closing or time.monotonic() > deadline:
                        raise CapacityError(f"all {len(self)} sessions are taken; try again later")
                    await asyncio.sleep(0.02)
                return self.begin()
        finally:
            self.waiting -= 1

    def has_place(self) -> bool:
        """Where all are taken, the HTTP or MCP session gives way that nobody used for longest."""
        if self.closing:
            return False
        if len(self) < self.limits.max_sessions:
            return True
        idle = [one for one in self.by_id.values() if one.socket is None and not one.calls]
        if not idle:
            return False
        self.drop(min(idle, key=operator.attrgetter("used")))
        return True

    def begin(self) -> Session:
        try:
            session = Session(self.service.factory(), self.service.action)
        except Exception as error:
            if not isinstance(error, PythonEnvError):
                log.exception("the environment was not made")
            raise FactoryError(f"the environment was not made: {type(error).__name__}") from error
        self.by_id[session.id] = session
        return session

    def find(self, key: object) -> Session | None:
        """The session of that id; None without an id. Raises SessionError if there is none."""
        if not key:
            return None
        session = self.by_id.get(str(key))
        if session is None:
            raise SessionError(f"no session {str(key)[:40]!r}: closed, or idle for too long")
        return session

    def drop(self, session: Session) -> None:
        """End a session; its place is free at once, while its environment is still closing."""
        if self.by_id.pop(session.id, None):
            farewell = asyncio.create_task(session.close())
            self.farewells.add(farewell)
            farewell.add_done_callback(self.farewells.discard)

    async def keep_house(self) -> None:
        while True:
            await asyncio.sleep(HOUSEKEEPING_S)
            self.end_idle()

    def end_idle(self) -> None:
        now = time.monotonic()
        for session in [*self.by_id.values()]:
            # One that never began an episode is hardly a trainer whose model is thinking.
            is_patient = session.socket and session.stage is not Stage.NO_EPISODE
            most = self.limits.ws_idle_s if is_patient else self.limits.http_idle_s
            if session.calls == 0 and now - session.used > most:
                self.dismiss(session)

    def dismiss(self, session: Session) -> None:
        """End a session that has no call running, and tell its WebSocket."""
        if session.socket:
            session.socket.end(CloseCode.GOING_AWAY)
        self.drop(session)

    async def drain(self) -> None:
        """Begin no session any more, and give the calls that run drain_s to end.

        Each session ends with its call, because one of many busy ones would always have another.
        """
        self.closing = True
        most = self.limits.drain_s
        deadline = time.monotonic() + most
        busy = sum(session.calls > 0 for session in self.by_id.values())
        if busy:
            words = "stopping: %d calls have %g s to end; the signal once more ends them at once"
            log.warning(words, busy, most)
        while self.by_id and time.monotonic() < deadline and not self.is_hurried:
            for session in [*self.by_id.values()]:
                if session.calls == 0:
                    self.dismiss(session)
            await asyncio.sleep(0.01)

    async def close(self) -> None:
        for session in [*self.by_id.values()]:
            self.drop(session)
        await asyncio.gather(*self.farewells)


# ── Routing ───────────────────────────────────────────────────────────────────────────────────────


PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, POST, DELETE",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, X-Session-Id, Mcp-Session-Id, "
    "Mcp-Protocol-Version",
    "Access-Control-Max-Age": "600",
}


async def answer_preflight(server: Server, request: Request) -> Reply:
    """What a browser asks before it sends another site's request, and without a token."""
    return Reply(b"", headers=PREFLIGHT)


def route(request: Request) -> str:
    """The path, without a slash at its end."""
    return request.path.rstrip("/") or "/"


def find_handler(request: Request) -> Callable[[Server, Request], Awaitable[Reply]]:
    if request.method == "OPTIONS":
        return answer_preflight
    methods = ROUTES.get(route(request))
    if methods is None:
        raise HTTPError(404, f"no route {request.path[:100]!r}: GET /docs lists them")
    method = "GET" if request.method == "HEAD" else request.method
    if method not in methods:
        allowed = ", ".join(methods)
        raise HTTPError(405, f"{route(request)} takes {allowed}", {"Allow": allowed})
    return methods[method]


# ── Who may ask ───────────────────────────────────────────────────────────────────────────────────


@dataclass
class Gate:
    """Refuses what a service is not for: other names of our address, other sites, no token."""

    service: Service

    def check_site(self, request: Request, loopback: bool) -> None:
        """Refuse names that others bound to our loopback address, and other sites' pages."""
        host = request.headers.get("host")
        if loopback and host is not None:
            name = host_name(host)
            if not is_loopback(name) and name not in map(host_name, self.service.allow_host):
                words = f"Host {name[:100]!r} is not served here; --allow-host admits it"
                raise HTTPError(403, words)
        origin = request.headers.get("origin")
        if origin is None or self.allows_origin(origin):
            return
        if canonical(origin) not in (canonical(f"http://{host}"), canonical(f"https://{host}")):
            words = f"Origin {origin[:100]!r} is another site; --allow-origin admits it"
            raise HTTPError(403, words)

    def allows_origin(self, origin: str) -> bool:
        allowed = self.service.allow_origin
        return "*" in allowed or canonical(origin) in map(canonical, allowed)

    def check_token(self, request: Request) -> None:
        if self.service.token is None or route(request) in PUBLIC or request.method == "OPTIONS":
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        # A token that comes from a file has a newline at its end.
        wanted = self.service.token.strip().encode()
        is_known = hmac.compare_digest(given.strip().encode("latin-1"), wanted)
        if not is_known or scheme.lower() != "bearer":
            words = "send 'Authorization: Bearer TOKEN'"
            raise HTTPError(401, words, {"WWW-Authenticate": "Bearer"})

    def admit_origin(self, request: Request, reply: Reply) -> Reply:
        """The reply, with the headers by which a browser lets an admitted site read it."""
        origin = request.headers.get("origin")
        if origin is None or not self.allows_origin(origin):
            return reply
        cross_origin = {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Expose-Headers": "X-Session-Id, Mcp-Session-Id",
            "Vary": "Origin",
        }
        return dataclasses.replace(reply, headers={**reply.headers, **cross_origin})


# ── Connections ───────────────────────────────────────────────────────────────────────────────────

GOODBYE_S = 1.0  # that a peer has to read the last words and to close its side
QUIET = logging.getLogger("python_env.websocket")  # websockets would report each connection here
QUIET.setLevel(logging.WARNING)


class Listener:
    """The sockets of a server, and the connections that came by them."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.sessions = server.sessions
        self.limits = server.limits
        self.connections: set[asyncio.Task[Any]] = set()
        self.listeners: list[asyncio.Server] = []
        self.port = 0
        self.loopback = True

    async def start(self, host: str, port: int) -> None:
        sockets = bind(host, port)
        self.port = sockets[0].getsockname()[1]
        self.loopback = all(is_loopback(each.getsockname()[0]) for each in sockets)
        for each in sockets:
            listener = await asyncio.start_server(
                self.serve_connection, sock=each, backlog=512, limit=self.limits.head_bytes
            )
            self.listeners.append(listener)
        self.housekeeper = asyncio.create_task(self.sessions.keep_house())

    async def close(self) -> None:
        self.housekeeper.cancel()
        for listener in self.listeners:
            listener.close()
        await self.sessions.drain()
        for connection in self.connections:
            connection.cancel()
        await asyncio.gather(*self.connections, return_exceptions=True)
        await self.sessions.close()

    async def serve_connection(self, reader: StreamReader, writer: StreamWriter) -> None:
        """One connection: HTTP requests one after another, or a WebSocket for the rest of it."""
        if len(self.connections) >= self.limits.connections:
            writer.transport.abort()
            return

        this = cast("asyncio.Task[None]", asyncio.current_task())
        self.connections.add(this)
        keep_alive(writer.get_extra_info("socket"))
        watcher = asyncio.create_task(cancel_when_lost(this, writer))
        try:
            # The pause is for the others, because pipelined requests are read without waiting.
            while await self.serve_request(reader, writer):
                await asyncio.sleep(0)
        except (asyncio.CancelledError, OSError):
            pass  # the peer is gone: ECONNRESET, ETIMEDOUT, or ENOTCONN from write_eof()
        finally:
            self.connections.discard(this)
            watcher.cancel()
            writer.close()
            if writer.transport.get_write_buffer_size():
                abort_later(writer, GOODBYE_S)
            break_cycles(reader)

    async def serve_request(self, reader: StreamReader, writer: StreamWriter) -> bool:
        """Answer one request; returns whether another may follow."""
        try:
            request = await read_request(reader, writer, self.limits)
        except HTTPError as error:
            writer.write(encode_response(error_reply(error), keep_alive=False))
            await hang_up(reader, writer)
            return False
        if request is None:
            return False

        reply = await self.server.reply(request)
        if reply.status == 101:
            await WebSocket(self.server, reader, writer).serve(request)
            return False
        if reply.opened and (reader.at_eof() or writer.is_closing()):
            self.sessions.drop(reply.opened)  # the peer is gone, and nobody else knows its id
        keep_alive = request.keep_alive and not self.sessions.closing
        writer.write(encode_response(reply, keep_alive, head_only=request.method == "HEAD"))
        timer = abort_later(writer, self.limits.request_s)
        await writer.drain()
        timer.cancel()
        return keep_alive


def documents_of(service: Service) -> dict[str, Reply]:
    """The replies that never change."""
    page = PAGE.replace("$NAME", html.escape(service.name)).encode()
    policy = {"Content-Security-Policy": PAGE_POLICY}
    metadata = {
        "name": service.name,
        "description": service.description,
        "version": __version__,
        "readme_content": None,
        "author": None,
        "documentation_url": None,
        "isolation": service.isolation,
        "tasks": [*service.tasks],
    }
    models = ("action", "observation", "state")
    shown = ("task_id", "difficulty", "prompt", "tests_total", "judge")
    tasks = [{name: getattr(task, name) for name in shown} for task in service.tasks.values()]
    return {
        "/docs": Reply(page, 200, policy, "text/html; charset=utf-8"),
        "/metadata": Reply(metadata),
        "/schema": Reply({name: json_schema(getattr(service, name)) for name in models}),
        "/tasks": Reply({"tasks": tasks}),
        "/openapi.json": Reply(openapi(service)),
    }


# ── Serving until a signal ────────────────────────────────────────────────────────────────────────


async def run_until_signal(
    service: Service, host: str, port: int, exit_with_stdin: bool = False
) -> None:
    """Serve until SIGTERM or SIGINT, or until a line or the end of the standard input."""
    import resource  # which Windows does not have, where the client runs, too

    check_service(service)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a session takes up to ten
    server = Server(service)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def hear_signal() -> None:
        server.sessions.is_hurried = stop.is_set()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, hear_signal)
    await server.start(host, port)
    try:
        reached = ", ".join(f"{name} {value}" for name, value in service.isolation.items())
        isolation = f" (isolation: {reached})" if reached else ""
        where = f"[{host}]" if ":" in host else host
        url = f"http://{where}:{server.port}"
        print(f"{service.name} on {url}{isolation}", flush=True)
        if exit_with_stdin:
            loop.add_reader(sys.stdin, stop.set)
        await stop.wait()
    finally:
        await server.close()


# ══════════════════════════════════════════════════════════════════════════════════════════════════
# 10. The client's connection, Docker and the Hub, the embedded server, the sessions of score()
# ══════════════════════════════════════════════════════════════════════════════════════════════════

# ── The connection ────────────────────────────────────────────────────────────────────────────────

REPLY_BYTES = 104_857_600  # the largest reply that is read: the official client's limit, too


class Link:
    """A client's connection, which it makes where that is needed, and what was started for it, in
    the process that did so.

    `lost` says why the session is gone; "" while there is one, or was none yet.
    """

    def __init__(self, base_url: str, headers: dict[str, str], ssl: SSLContext | None) -> None:
        self.headers = headers
        self.ssl = ssl
        self.connection: ClientConnection | None = None
        self.lost = ""
        self.server: EmbeddedServer | None = None  # where it is one of ours
        self.is_closed = False  # by its user, since it was opened last
        self.cleanup = contextlib.ExitStack()
        self._owner = os.getpid()
        self._locks: dict[int, Any] = {}
        self.aim(base_url)

    def aim(self, base_url: str) -> None:
        host = r"(\[[\da-fA-F:.]+\]|[^\s/?#:\[\]]+)(:\d+)?"
        form = rf"((http|ws)(?P<s>s?)://)?(?P<rest>{host}(/[^\s?#]+?)??)(/ws|/docs)?/*"
        match = re.fullmatch(form, str(base_url or ""))
        if not match:
            raise InvalidRequest(f"base_url: expected http(s)://host:port, got {base_url!r:.200}")
        secure = match["s"] or ""
        self.base_url = f"http{secure}://{match['rest']}"
        self.ws_url = f"ws{secure}://{match['rest']}/ws"

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """One thread at a time, and after a fork without what is the parent's."""
        # A lock for each process, because a fork inherits the parent's as it happens to be: it may
        # be held, by a thread that the fork does not have.
        with self._locks.setdefault(os.getpid(), threading.RLock()):
            if self._owner != os.getpid():
                self._owner = os.getpid()
                self.cleanup = contextlib.ExitStack()
                if self.connection:
                    # The descriptor alone: a goodbye would be one in the parent's name.
                    self.connection.socket.close()
                    self.connection = None
                    self.lost = "the session is that of the process before the fork; call reset()"
            yield

    def ask(self, text: str, wait_s: float, connect_s: float, is_new: bool) -> dict:
        """Connect where that is needed, and exchange `text`, if any, for its reply's data. While
        the server is full or starting, it is tried again, for connect_s.

        `is_new`: whether it may be the first message of another session.
        """
        with self.turn():
            if self.lost and not is_new:
                raise ConnectionFailed(self.lost)
            may_be_stale = is_new and self.connection is not None
            end = time.monotonic() + connect_s
            while True:
                left_s = end - time.monotonic()
                try:
                    if not self.connection:
                        self.open(max(left_s, 1.0))
                    return self.exchange(text, wait_s) if text else {}
                except PythonEnvError as error:
                    if may_be_stale and isinstance(error, ConnectionFailed):
                        # It idled too long, or the server restarted. A reset loses nothing by it.
                        may_be_stale = False
                        end = time.monotonic() + connect_s
                    elif error.retry_s is None or left_s <= 0:
                        raise
                    else:
                        log.debug("%s; trying again for %.0f s", error, left_s)
                        time.sleep(min(error.retry_s, left_s))

    def open(self, timeout_s: float) -> None:
        """Connect; where a server of ours has ended, to another one."""
        self.is_closed = False
        try:
            self.dial(timeout_s)
        except ConnectionFailed:
            if not self.server or not self.server.has_ended(1.0):  # its sockets close before that
                raise
            self.start_server(self.server)
            self.dial(timeout_s)

    def dial(self, timeout_s: float) -> None:
        here = is_loopback(str(urlsplit(self.ws_url).hostname))
        try:
            connecting = websockets.sync.client.connect(
                self.ws_url,
                additional_headers=self.headers,
                ssl=self.ssl if self.ws_url.startswith("wss:") else None,
                proxy=None if here else True,
                compression=None,
                open_timeout=timeout_s,
                close_timeout=1,
                # Pings keep proxies awake, but no step is too long: see keep_alive().
                ping_timeout=None,
                max_size=REPLY_BYTES,
                max_queue=1,  # a question has one answer; sixteen would be 1.6 GB
            )
        except websockets.exceptions.InvalidStatus as refused:
            raise explain_status(self.ws_url, refused.response) from None
        except Exception as error:  # whatever a stranger's answer leads to  # noqa: BLE001
            raise ConnectionFailed(
                f"cannot connect to {self.ws_url}: {error or type(error).__name__}; "
                "is an OpenEnv server running there?"
            ) from None
        # Entered, because one day connect() will be a context manager and nothing else.
        self.connection = connecting.__enter__()
        self.lost = ""
        keep_alive(self.connection.socket)

    def exchange(self, message: str, timeout_s: float) -> dict:
        """Send `message`, and return its reply's data. Raises ServerError.

        What else can go wrong closes the connection, so that no stale reply can follow.
        """
        assert self.connection
        try:
            # Where sending fails, the server may have said why before: recv() tells.
            with contextlib.suppress(websockets.exceptions.ConnectionClosed):
                self.connection.send(message)
            reply = json.loads(self.connection.recv(timeout_s))
            data = dict(reply.get("data") or {})
            if reply["type"] != "error":
                return data
            code = str(data.get("code", "UNKNOWN"))
            raise ServerError(str(data.get("message")), code, data.get("errors") or ())
        except ServerError as refused:
            if refused.code == "CAPACITY_REACHED":
                self.close("the server was full")
                refused.retry_s = 0.2
            raise
        except TimeoutError:
            self.close(f"no reply within {timeout_s:g} s (message_timeout_s)")
            raise ReplyTimeout(self.lost) from None
        except websockets.exceptions.ConnectionClosed as error:
            self.close(f"the connection was lost: {error}")
        except Exception as error:  # whatever a strange reply leads to  # noqa: BLE001
            self.close(f"the server does not speak OpenEnv: {error!r:.200}")
        except BaseException:
            self.close("the last call was interrupted")
            raise
        raise ConnectionFailed(self.lost)

    def close(self, why: str) -> None:
        """Close the connection, and with it the session, because of `why`."""
        self.lost = f"{why}; call reset() to begin anew"
        if self.connection:
            self.connection.close()
        self.connection = None

    def release(self) -> None:
        """End the session, and what was started for it."""
        with self.turn():
            self.is_closed = True
            self.close("the client was closed")
            self.cleanup.close()

    def list_tasks(self, timeout_s: float) -> list[dict[str, Any]]:
        url = f"{self.base_url}/tasks"
        try:
            return get_json(url, self.headers, timeout_s, self.ssl)["tasks"]
        except Exception as error:  # whatever it is that answers there  # noqa: BLE001
            raise ConnectionFailed(f"{url} lists no tasks: {error!r:.200}") from None

    def start_server(self, server: EmbeddedServer) -> None:
        self.server = server
        self.aim(server.start(self.cleanup))

    def revive(self) -> None:
        """Start a server of ours that died, unless it was closed, or is the parent's."""
        with self.turn(), contextlib.suppress(PythonEnvError):
            mine = self.server
            if mine and mine.owner == os.getpid() and not self.is_closed and mine.has_ended(0.0):
                self.close("the embedded server died")
                self.start_server(mine)


def explain_status(url: str, response: Any) -> ConnectionFailed:
    """The error for an HTTP response where a WebSocket was asked for."""
    status = response.status_code
    remedies = {
        401: "its token= is missing or wrong",
        403: "its token= is missing or wrong, or it refuses the Host",
        404: "check the address; a private Space wants a token=",
        429: "it is full; connect_timeout_s= waits longer",
        502: "it is starting or down; connect_timeout_s= waits longer",
        503: "it is starting or full; connect_timeout_s= waits longer",
    }
    remedy = remedies.get(status, "is an OpenEnv server running there?")
    error = ConnectionFailed(f"cannot connect to {url}: HTTP {status}; {remedy}")
    if status in (429, 502, 503):
        # get() would raise where it comes twice.
        wish = [*response.headers.get_all("Retry-After"), ""][0]
        error.retry_s = max(0.1, min(float(wish), 10.0)) if wish.isdecimal() else 0.5
    return error


def keep_alive(sock: socket.socket) -> None:
    """Have the system find out within a minute when the peer's machine has vanished, or when a
    peer does not read: a thread that waits to write holds the locks of all the others."""
    options = {
        "TCP_KEEPIDLE": 30,  # seconds of silence before it asks
        "TCP_KEEPALIVE": 30,  # the same on macOS
        "TCP_KEEPINTVL": 10,  # seconds between the questions
        "TCP_KEEPCNT": 3,  # questions without an answer
        "TCP_USER_TIMEOUT": 60_000,  # milliseconds that sent data may wait for its receipt
    }
    with contextlib.suppress(OSError):  # the peer may have ended the connection already
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in options.items():
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        if sys.platform == "linux":  # other systems want another form
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 30, 0))


def get_json(url: str, headers: dict, timeout_s: float, ssl: SSLContext | None = None) -> dict:
    """The JSON object that GET `url` returns. Raises OSError (urllib's HTTPError), and what a
    stranger's answer leads to."""
    request = urllib.request.Request(url)
    for name, value in headers.items():
        request.add_unredirected_header(name, value)  # a redirect must not take a token along
    here = is_loopback(str(urlsplit(url).hostname))
    opener = urllib.request.build_opener(
        urllib.request.HTTPSHandler(context=ssl),
        urllib.request.ProxyHandler({} if here else None),
    )
    found: concurrent.futures.Future[dict] = concurrent.futures.Future()

    def fetch() -> None:
        try:
            with opener.open(request, timeout=timeout_s) as answer:
                found.set_result(dict(json.loads(answer.read(REPLY_BYTES))))
        except Exception as error:  # noqa: BLE001
            if isinstance(error, urllib.error.HTTPError):
                error.close()  # because it holds the answer
            found.set_exception(error)

    # In a thread, because urllib's time-out begins anew with each byte that comes.
    threading.Thread(target=fetch, daemon=True).start()
    try:
        return found.result(timeout_s)
    except concurrent.futures.TimeoutError:
        raise TimeoutError(f"timed out: no whole answer within {timeout_s:g} s") from None


# ── Docker ────────────────────────────────────────────────────────────────────────────────────────


CLIENT_LABEL = "python_env.client"  # a container's client: its pid, and what birth_of() says of it

# Docker has no error codes. This is what it writes, tried in this order, and what to do about it.
DOCKER_REMEDIES = {
    "trying to connect": "no permission on docker's socket; `sudo usermod -aG docker $USER`",
    "docker daemon|during connect": "no docker daemon answers; start it, or mend DOCKER_HOST",
    "no such image": "no image {image} on this machine; `docker build -t {image} .`, or pull",
    "already in use|already allocated|ports are not": "port {port} is taken; name another",
    "access denied|denied:|unauthori|authentic|basic auth|manifest|name unknown": (
        "the registry denies {image}; check its name, or `docker login {registry}`"
    ),
    "dial tcp|https?:|time(d )?out|x509|eof": (
        "{registry} cannot be reached; check the network and registry=, or use pull=False"
    ),
    "": "docker cannot run {image}; check image=, tag= and docker_args=",
}


class Container:
    """A container of an OpenEnv image; `url` is its server, on this machine's loopback only.

    Removed by close(), and by its keeper at any death of this process, SIGKILL included. A
    constructor that raises leaves nothing behind. Arguments and errors are those of
    EnvClient.from_docker_image.
    """

    def __init__(
        self,
        image: str,
        port: int | None,
        env_vars: dict,
        timeout_s: float,
        docker_args: Sequence[str],
    ) -> None:
        self.image = image
        self.url = ""
        self.name = f"python-env-{os.getpid()}-{secrets.token_hex(4)}"
        self._nonce = secrets.token_hex(16)
        self._end = time.monotonic() + timeout_s
        remove_leftovers(self._left())  # this finds out, too, whether docker answers

        variables = {**env_vars, "PYTHON_ENV_NONCE": self._nonce}
        run = [
            *["docker", "run", "--detach", "--pull=never"],
            f"--publish=127.0.0.1:{port or ''}:8000",
            *[f"--env={name}={value}" for name, value in variables.items()],
            *docker_args,
            f"--label={CLIENT_LABEL}={os.getpid()} {birth_of(os.getpid())}",
            *[f"--name={self.name}", "--", image],
        ]
        log.info("starting %s", image)
        # Program and order come by the pipe: `ps` would show everybody the secrets in env_vars.
        imports = "import json, os, signal, subprocess, sys, threading, time"
        program = f"{imports}; source, order = json.loads(input()); exec(source); keep(*order)"
        self._keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", program, "python-env: keeper"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # because Ctrl-C goes to a whole process group
        )
        order = [os.getpid(), self.name, run, self._left()]
        try:
            line = json.dumps([inspect.getsource(keep), order])
            print(line, file=self._keeper.stdin, flush=True)
            assert self._keeper.stdout
            said = self._keeper.stdout.read()
            if said != "started":
                raise docker_error(said, image, port)
            self._wait_until_healthy(timeout_s)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Remove it, and wait for that; may be called again."""
        # ValueError: it has been told before.
        with contextlib.suppress(ValueError, subprocess.TimeoutExpired):
            # A line, because closing is not enough while a fork holds the pipe, too.
            self._keeper.communicate("\n", timeout=60)
        if self._keeper.returncode != 0:
            log.warning("a container may be left behind; `docker rm -f -v %s`", self.name)

    def _left(self) -> float:
        return max(self._end - time.monotonic(), 1.0)

    def _wait_until_healthy(self, timeout_s: float) -> None:
        complaint = self._complaint()
        while complaint:
            if time.monotonic() > self._end:
                raise self._give_up(f"{complaint}, after {timeout_s:g} s; raise timeout_s=")
            time.sleep(0.1)
            complaint = self._complaint()

    def _complaint(self) -> str:
        """Why the container does not serve yet, or "". Raises DockerError where it never will."""
        shape = "--format=[{{json .State}}, {{json .NetworkSettings.Ports}}]"
        told = run_docker(self.image, "inspect", shape, self.name, timeout_s=self._left())
        state, ports = json.loads(told.splitlines()[0])
        if not state["Running"]:
            raise self._give_up(f"it exited with code {state['ExitCode']}")

        mapped = ports.get("8000/tcp")
        self.url = f"http://127.0.0.1:{mapped[0]['HostPort'] if mapped else 8000}"
        try:
            nonce = get_json(f"{self.url}/health", {}, min(self._left(), 5.0)).get("nonce")
        except Exception as error:  # whatever answers there, or does not yet  # noqa: BLE001
            return f"no OpenEnv server answers: {error!r}"

        # Who listens there? A python_env server repeats the nonce. Of another image's one we know
        # by the port mapping, which Docker made; the host's network has none.
        if nonce != self._nonce and (nonce or not mapped):
            raise self._give_up(
                f"whether the server on {self.url} is this container's cannot be told; stop the "
                "other one, if there is one, and do without --network=host for a foreign image"
            )
        return ""

    def _give_up(self, why: str) -> DockerError:
        tail = ""
        with contextlib.suppress(DockerError):
            tail = run_docker(self.image, "logs", "--tail=20", self.name, timeout_s=10)
        return DockerError(f"starting {self.image}: {why}; its log ends:\n{tail[-2000:]}")


# ── The docker command ────────────────────────────────────────────────────────────────────────────


def run_docker(image: str, *command: str, timeout_s: float, stdout: int = subprocess.PIPE) -> str:
    """What a docker command about `image` prints. Raises DockerError."""
    try:
        done = subprocess.run(
            ["docker", *command],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except FileNotFoundError:
        raise DockerError("no `docker` on PATH; install it, or use a server's base_url=") from None
    except subprocess.TimeoutExpired:
        raise DockerError(
            f"`docker {command[0]}` did not end within {timeout_s:.0f} s; is the daemon or the "
            "registry well? Else raise timeout_s= (pull_timeout_s= for a pull)"
        ) from None
    if done.returncode:
        raise docker_error(done.stderr, image)
    return f"{done.stdout}{done.stderr}"  # `docker logs` has the container's on both


def docker_error(said: str, image: str, port: int | None = None) -> DockerError:
    """What docker said, after what to do about it."""
    lines = re.findall(r"(?m)^(?!WARNING|[0-9a-f]{64}$)(.*\S)", said) or ["nothing"]
    known = [words for words in DOCKER_REMEDIES if re.search(words, lines[0], re.IGNORECASE)]
    remedy = DOCKER_REMEDIES[known[0]]
    remedy = remedy.format(image=image, port=port, registry=image.split("/")[0])
    return DockerError(f"{remedy} (docker says: {lines[0][:400]})")


# ── The keeper: whatever becomes of the client, its container goes ────────────────────────────────


def keep(client: int, container: str, run: list, timeout_s: float) -> None:
    """The program of a process beside the client, which owns a container from birth to death.

    It runs `run`, reports, and waits. A line on its standard input, the input's end, or a new
    parent (the client was killed, but a fork of it holds the pipe) all mean: remove the container.
    Nobody else runs `docker run`, so the client may vanish at any moment, even halfway through it.
    """
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):  # the input decides, whoever else is told to stop
            signal.signal(getattr(signal, name), signal.SIG_IGN)

    def docker(command: list[str], seconds: float) -> str:
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                errors="replace",
                timeout=seconds,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return f"nothing for {seconds:.0f} s"
        return done.stdout if done.returncode else ""

    complaint = docker(run, timeout_s)
    try:
        os.write(1, complaint.encode() or b"started")
        os.close(1)
    except OSError:
        pass  # the client is gone, as is noticed next

    order = threading.Thread(target=sys.stdin.readline, daemon=True)
    order.start()
    while order.is_alive() and os.getppid() == client:
        order.join(2.0)
    # A daemon that is restarting refuses for a while.
    for _ in range(30):
        if not docker(["docker", "rm", "--force", "--volumes", container], 20.0):
            os._exit(0)  # at once, because that thread may still wait for its line
        time.sleep(0.5)
    os._exit(1)


# ── Leftovers: of clients that were killed together with their keepers ────────────────────────────


def birth_of(pid: int) -> str:
    """What tells a living process from others of its pid: its start and its pid namespace."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""  # there is none, or this is no Linux
    started = stat.rpartition(")")[2].split()[19]
    return f"{started} {namespace}"


def remove_leftovers(timeout_s: float) -> None:
    own_namespace = birth_of(os.getpid()).rpartition(" ")[2]
    listing = run_docker(
        *["", "ps", "--all", f"--filter=label={CLIENT_LABEL}"],
        # As JSON, because a foreign image may have a label of this name, with line breaks in it.
        f'--format={{{{.Names}}}} {{{{json (.Label "{CLIENT_LABEL}")}}}}',
        timeout_s=timeout_s,
    )
    # Whether a process of another namespace lives cannot be seen from here.
    pattern = rf'(?m)^(\S+) "(\d{{1,10}}) (\d+ {re.escape(own_namespace)})"$'
    for name, pid, birth in re.findall(pattern, listing):
        if birth != birth_of(int(pid)):
            log.info("removing %s, whose client is dead", name)
            with contextlib.suppress(DockerError):  # which is no reason not to start
                run_docker("", "rm", "--force", "--volumes", name, timeout_s=timeout_s)


# ── The Hub ───────────────────────────────────────────────────────────────────────────────────────


def space_slug(repo_id: str) -> str:
    """Owner/My_Env, or a URL of it, as owner-my-env, after which its image and host are named."""
    given = repo_id.strip()
    host = re.fullmatch(r"https://([a-z0-9-]+)\.hf\.space(/.*)?", given.lower())
    if host:
        return host[1]
    name = re.sub(r"https://huggingface\.co/spaces/([^/]+/[^/?#]+).*", r"\1", given)
    if not re.fullmatch(r"[A-Za-z0-9._-]+/[A-Za-z0-9._-]+", name):
        raise InvalidRequest(f"repo_id: expected owner/name or a Space's URL, got {repo_id[:99]!r}")
    return re.sub("[^a-z0-9]", "-", name.lower())


# ── What is sent ──────────────────────────────────────────────────────────────────────────────────


def message_text(kind: str, data: dict, most: int | None) -> str:
    """A message to a server. Raises InvalidRequest for what is no JSON, or is too long: sent, that
    would cost the session."""
    try:
        # Without "data" where it is empty: the official server refuses {} with "state".
        text = json.dumps({"type": kind, **({"data": data} if data else {})}, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"{kind}: expected what JSON can express; {error}") from None
    if most and len(text) > most:
        raise InvalidRequest(f"{kind}: has {len(text):,} bytes as JSON; the limit is {most:,}")
    return text


def more_seconds(action: Mapping[str, Any]) -> float:
    """That its step may take. Whether they make sense is the server's to say; here they must not do
    harm."""
    seconds = action.get("timeout_s")
    return max(0.0, min(seconds, 86_400.0)) if isinstance(seconds, int | float) else 0.0


def cut_code(code: Any) -> dict[str, str]:
    """Code that is too long for a message, cut: one byte over the limit earns nothing as well. Code
    within the limit is never so long as JSON."""
    if not isinstance(code, str) or len(json.dumps(code)) <= 6 * LIMITS.code_bytes:
        return {}
    head = code.encode("utf-8", "replace")[: LIMITS.code_bytes + 3]
    return {"code": head.decode("utf-8", "replace")}


# ── The embedded server ───────────────────────────────────────────────────────────────────────────


@dataclass
class EmbeddedServer:
    """A server of the client's own: a child process on a free loopback port."""

    flags: list[str]
    timeout_s: float  # to start
    process: Any = None
    owner: int = 0  # the process that started it

    def start(self, cleanup: contextlib.ExitStack) -> str:
        """Its URL, once it serves; `cleanup` ends it. Raises ConnectionFailed."""
        if sys.platform != "linux":
            raise ConnectionFailed(
                f"an embedded server needs Linux, and this is {sys.platform}; base_url= connects to"
                " a running one, PythonEnv.from_docker_image() starts an image"
            )
        program = [sys.executable, os.path.realpath(__file__), "serve", "--exit-with-stdin"]
        variables = {**os.environ}
        variables.pop("PYTHON_ENV_TOKEN", None)
        self.process = subprocess.Popen(
            [*program, "--host=127.0.0.1", "--port=0", "--log-level=warning", *self.flags],
            stdin=subprocess.PIPE,  # with which it ends: with us, however we end
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # because Ctrl-C is for the user's program
            env=variables,
        )
        self.owner = os.getpid()
        cleanup.callback(stop_server, self.process)
        stdout = self.process.stdout
        spoke = select.select([stdout], [], [], self.timeout_s)[0]
        line = stdout.readline().strip() if spoke else ""
        url = re.search(r" on (http://\S+) \(isolation", line)
        if url:
            return url[1]
        cleanup.close()
        words = "the embedded server did not start"
        raise ConnectionFailed(f"{words}: {line or 'what it said is in the standard error'}")

    def has_ended(self, timeout_s: float) -> bool:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout_s)
        return self.process.returncode is not None


def stop_server(process: subprocess.Popen) -> None:
    with process:  # which closes its pipes, and waits
        with contextlib.suppress(subprocess.TimeoutExpired):
            # A line, because closing the pipe is not enough while a fork of ours holds it, too.
            process.communicate("\n", timeout=5)
        process.kill()


# ── The sessions of score() ───────────────────────────────────────────────────────────────────────

SCORE_ATTEMPTS = 3  # at a completion, while servers go away


class Scorer:
    """Scores completions in several threads, with sessions beside the client's own."""

    def __init__(self, link: Link, options: dict[str, Any]) -> None:
        self.link = link
        self.options = options
        self.idle: list[PythonEnv] = []
        self.busy: set[PythonEnv] = set()
        self.joining: set[PythonEnv] = set()  # of the busy ones, those that may wait for a place
        self.is_stopped = False

    def score_all(
        self, completions: Sequence[Any], rows: list[dict], workers: int
    ) -> list[float | None]:
        """The rewards, in this order; by so many workers, which are threads here."""
        self.is_stopped = False
        with concurrent.futures.ThreadPoolExecutor(max(workers, 1), "score") as threads:
            try:
                given = zip(completions, rows, strict=True)
                scores = [threads.submit(self.score, *each) for each in given]
                # Again and again, because Python may overhear a Ctrl-C just before it waits.
                while concurrent.futures.wait(scores, 1.0).not_done:
                    if self.joining:  # the server may be full of our idle sessions
                        self.close_idle()
                return [score.result() for score in scores]
            except BaseException:
                self.stop()
                threads.shutdown(wait=False, cancel_futures=True)
                raise

    def stop(self) -> None:
        """After a Ctrl-C: cut off what runs, because the pool waits for it."""
        self.is_stopped = True
        for session in [*self.busy]:
            if session._wire.connection:
                with contextlib.suppress(OSError):  # it is over already
                    session._wire.connection.socket.shutdown(socket.SHUT_RDWR)

    def score(self, completion: Any, row: dict[str, Any]) -> float | None:
        """One reward, by a session that nobody else uses meanwhile."""
        if self.link.server and self.link.is_closed:  # another's server may have its port now
            log.warning("score: no verdict: the client is closed, and its server with it")
            return None
        why: PythonEnvError | None = None
        for _ in range(SCORE_ATTEMPTS):
            try:
                session = self.idle.pop()
            except IndexError:
                session = PythonEnv(self.link.base_url, **self.options)
            self.busy.add(session)
            try:
                given: dict[str, Any] = read_row(row) | {"max_steps": 1}
                seen = self.begin(session, given).observation
                if self.is_stopped:  # before this one could be cut off
                    raise ConnectionFailed("score() was interrupted")
                # The prompt as the server tells it, because its own tasks' rows are not here.
                prompt = validate(str, seen.prompt, ("prompt",))
                code = complete_code(extract_code(completion), {**given, "prompt": prompt})
                # A NaN, or a text, would be found out much later, in a model's gradients.
                result = session.step(code)
                reward = validate(float | None, result.reward, ("reward",))
            except PythonEnvError as error:
                why = error
                if not is_passing(error):
                    self.idle.append(session)
                    break
                session.close()
                if self.is_stopped:
                    return None
                self.recover()
            else:
                self.idle.append(session)
                return reward if seen.tests_total else None
            finally:
                self.busy.discard(session)
        log.warning("score: no verdict for %s: %s", SHORT.repr(completion), why)
        return None

    def begin(self, session: PythonEnv, given: dict[str, Any]) -> StepResult[PythonObservation]:
        """Its reset(). The first one may have to wait for a place on the server."""
        if not session._wire.connection:
            self.joining.add(session)
        try:
            return session.reset(**given)
        finally:
            self.joining.discard(session)

    def close_idle(self) -> None:
        with contextlib.suppress(IndexError):  # when they are all closed, or taken meanwhile
            while True:
                self.idle.pop().close()

    def recover(self) -> None:
        """After a lost connection: forget the others, which a server's end took along, too."""
        self.idle.clear()
        time.sleep(0.5)
        self.link.revive()


def is_passing(error: PythonEnvError) -> bool:
    """Whether another server, or the same one later, may do what this one did not."""
    gone = (CapacityError.code, FactoryError.code, SessionError.code)
    return isinstance(error, ConnectionFailed | ReplyTimeout) or error.code in gone


# ── Pulling an image ──────────────────────────────────────────────────────────────────────────────


def pull_image(image: str, timeout_s: float) -> None:
    log.info("pulling %s", image)
    # On a terminal docker shows its own progress.
    shown = 2 if os.isatty(2) else subprocess.DEVNULL
    run_docker(image, "pull", "--", image, timeout_s=timeout_s, stdout=shown)


# ══════════════════════════════════════════════════════════════════════════════════════════════════
# 11. Sandbox: the server's side of the processes, and how they grade a step
# ══════════════════════════════════════════════════════════════════════════════════════════════════
# The server never runs a candidate's code, reaps nobody but the zygote, and signals nobody: it asks
# the zygote. Of a worker it believes nothing; of a judge, whose tests may be a client's, not much.

COMMON_MODULES = (
    "math cmath re collections itertools functools heapq bisect json random string datetime time"
    " decimal fractions statistics typing dataclasses copy enum abc operator textwrap contextlib"
    " calendar hashlib struct io array queue threading unicodedata"
)
WORKER_ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",  # so that scores agree between servers
    "MALLOC_ARENA_MAX": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
KEPT_VARIABLES = ("LD_LIBRARY_PATH", "PYTHONHOME")  # what the interpreter may need to start
# The zygote reads its program from its line to the server, so that `ps` does not show 40 KB of it.
# Before the first import, because the hooks that threading and random register cost a third of a
# fork, and neither is needed: one thread forks, and each child is seeded.
ZYGOTE_BOOT = """
import os
os.register_at_fork = lambda **hooks: None
import socket, sys
sys.path[:] = filter(None, sys.path)
line = socket.socket(fileno=0)
exec(compile(line.recv(int(sys.argv[1]), socket.MSG_WAITALL), "<worker program>", "exec"))
zygote_main()
"""
PATIENCE_S = 60.0  # with our own zygote: what is to be preloaded may import slowly
# That a process may send and nobody has read. More ends its connection, because parsing as much of
# its choice holds up the loop.
UNREAD_BYTES = 65_536
DYING_S = 0.2  # from the first sign that a process died until all signs must be here
PIPE_READS = 20  # of 64 KiB: what a thread goes on printing meanwhile is not waited for
IDLE_SAMPLES = 32  # idle processes that are looked at each time, in turn, beside all the busy ones
BROKEN = (EOFError, OSError, ValueError, RecursionError, asyncio.TimeoutError)  # of receive()


def worker_program() -> bytes:
    """Chapter 12 with its imports, as the zygote runs it. From wherever this module came: a file, a
    zip, or a file that a profiler runs as its own __main__."""
    loader: Any = globals().get("__loader__")
    text = (loader.get_data(__file__) if loader else Path(__file__).read_bytes()).decode()
    chapter = text[text.index("\n# 12. ") + 1 : text.index("\n# 13. ")]
    modules = ", ".join(PROGRAM_MODULES.split())
    head = f"from __future__ import annotations\nimport {modules}\n{PROGRAM_IMPORTS}\n"
    return (head + chapter).encode()


class Capture:
    """An output stream of a worker: its pipe is emptied at once, a head and a tail are kept."""

    def __init__(self, fd: int, most: int) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self.most = most  # bytes
        self.data = b""
        self.cut = 0
        self.is_closed = False  # by the code, or by its death
        self.loop = asyncio.get_running_loop()
        self.loop.add_reader(fd, self.read)  # who writes to a full pipe would have to wait

    def read(self) -> bool:
        """Take up what is in the pipe; False where nothing was."""
        try:
            data = os.read(self.fd, 65_536)
        except BlockingIOError:
            return False
        if not data:
            self.loop.remove_reader(self.fd)
            self.is_closed = True
        self.data += data
        over = len(self.data) - self.most
        if over > 0:
            half = self.most // 2
            self.data = self.data[:half] + self.data[-half:]
            self.cut += over
        return bool(data)

    def take(self) -> str:
        """All since the last call. Once a reply is here, so is what was printed before it."""
        for _ in range(PIPE_READS):
            if not self.read():
                break
        text = self.data
        if self.cut:
            half = self.most // 2
            text = text[:half] + f"\n... {self.cut} bytes cut ...\n".encode() + text[half:]
        self.data = b""
        self.cut = 0
        return text.decode(errors="replace")

    def close(self) -> None:
        self.loop.remove_reader(self.fd)
        os.close(self.fd)


class Outcome(NamedTuple):
    """What came of running code in a worker."""

    exit_code: int = 0
    result: str | None = None
    timed_out: bool = False
    died: bool = False  # the process is gone, and its names with it
    taken: bool = False  # by a SIGKILL that nobody of ours sent
    refused: bool = False  # the sandbox refused something, says the worker
    fault: str = ""  # what the task's setup raised
    why: str = ""  # it died because of this


@dataclass
class WorkerReply:
    """What a worker says of code that it ran; see Ending. It may be a lie."""

    seq: int
    exit_code: int
    result: str | None = None
    refused: bool = False
    fault: str = ""


TAKEN = Outcome(died=True, taken=True, why="it was killed")


class Process:
    """A process forked by the zygote, as the server holds it. All that it sends may be a lie."""

    def __init__(self, zygote: ZygoteLink, key: str, sock: socket.socket) -> None:
        self.zygote = zygote
        self.key = key  # its name at the zygote, and its folder's
        self.socket = sock
        self.line: socket.socket | None = None  # of a worker: what its judge gets
        self.streams: list[Capture] = []  # of a worker: stdout and stderr
        self.why = ""  # why the server ended it
        self.error = ""  # why it was not forked
        self.is_gone = False  # no more can come from it
        self.is_busy = False
        self.mailbox = Mailbox(sock)
        self.news = asyncio.Event()  # something came, or nothing more will
        self.sequence = 0  # of the last message
        self.loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[int] = self.loop.create_future()  # its wait status
        self.loop.add_reader(sock, self.read)

    def read(self) -> None:
        is_open = self.mailbox.fill()
        if len(self.mailbox.data) > UNREAD_BYTES:
            self.kill("it said too much")
        elif not is_open:
            self.zygote.command("end", self.key)  # so that it is reaped, whoever waits for it
            self.leave()
        self.news.set()

    def leave(self) -> None:
        """No more can come from it, which whoever waits for a frame must know."""
        if not self.is_gone:
            self.is_gone = True
            self.loop.remove_reader(self.socket)
            self.news.set()

    @property
    def is_lost(self) -> bool:
        """Whether it is of no use for another step: it died, or its output cannot be heard."""
        return self.is_gone or any(stream.is_closed for stream in self.streams)

    async def ask(self, message: dict, *fds: int) -> dict:
        """Send a frame, a short one if with descriptors, and return the next that comes. Raises one
        of BROKEN when the process is gone or talks nonsense."""
        try:
            with contextlib.suppress(OSError):  # then it is gone, which shows below
                if fds:
                    socket.send_fds(self.socket, [frame(message)], fds)
                else:
                    await self.loop.sock_sendall(self.socket, frame(message))
            reply = self.mailbox.take()
            while reply is None:
                if self.is_gone or self.mailbox.size > UNREAD_BYTES:
                    raise EOFError("the process is gone, or announces too long a frame")
                self.news.clear()
                await self.news.wait()
                reply = self.mailbox.take()
        except asyncio.CancelledError:
            # Whoever asks next would take the answer that is still to come for his own.
            self.kill("nobody waited for its answer")
            raise
        if not isinstance(reply, dict):
            raise ValueError("a frame that is no object")  # noqa: TRY004
        return reply

    def kill(self, why: str = "") -> None:
        """End it now; who waits for a frame of it gets an EOFError."""
        self.why = self.why or why
        self.zygote.command("end", self.key)
        self.leave()

    async def was_taken(self) -> bool:
        """End it, unless it has ended; whether it died of a SIGKILL that nobody of ours sent."""
        await asyncio.wait([self.ended], timeout=DYING_S)
        was_ended = bool(self.why) or not self.ended.done()
        self.zygote.command("end", self.key)
        await asyncio.wait([self.ended], timeout=PATIENCE_S)
        return self.status == -SIGKILL and not was_ended

    @property
    def status(self) -> int:
        """How it ended: an exit code, or a signal's number below zero."""
        return os.waitstatus_to_exitcode(self.ended.result() if self.ended.done() else SIGKILL)

    def close(self) -> None:
        """Kill it and give back what it holds."""
        self.kill()
        self.socket.close()
        for stream in self.streams:
            stream.close()
        self.streams.clear()
        if self.line:
            self.line.close()

    def take_output(self) -> list[str]:
        return [stream.take() for stream in self.streams]

    async def run(self, seconds: float, **message: Any) -> Outcome:
        """Have a worker carry out a message (see Worker) for at most `seconds` and a grace: first
        it is interrupted, then killed."""
        end = self.loop.time() + seconds
        grace_end = end + self.zygote.limits.grace_s
        timers = [
            self.loop.call_at(end, self.zygote.command, "interrupt", self.key),
            self.loop.call_at(grace_end, self.kill, "it did not stop in time"),
        ]
        self.sequence += 1
        self.is_busy = True
        outcome = None
        try:
            outcome = self.check(await self.ask({"seq": self.sequence, **message}), message)
        except BROKEN:
            pass  # it died, or lies
        finally:
            self.is_busy = False
            for timer in timers:
                timer.cancel()
        timed_out = self.loop.time() >= end
        outcome = outcome or await self.autopsy()
        return outcome._replace(timed_out=True, exit_code=124) if timed_out else outcome

    def check(self, reply: dict, message: dict) -> Outcome:
        """A worker's reply. Raises ValueError when our program would not have said that."""
        said = known_fields(WorkerReply, reply)
        if said.seq != self.sequence:
            raise ValueError("forged: a reply to nothing")
        result = said.result and said.result[: self.zygote.limits.result_chars + 100]
        # Believed only of a worker that has not run a line of the candidate's yet.
        fault = said.fault[:100] if message.keys() == {"setup"} else ""
        return Outcome(said.exit_code & 0xFF, result, refused=said.refused, fault=fault)

    async def autopsy(self) -> Outcome:
        taken = await self.was_taken()
        if self.error:
            raise FactoryError(f"no interpreter could be started: {self.error}")
        status = self.status
        exit_code = status if status >= 0 else 128 - status
        return Outcome(exit_code, died=True, taken=taken, why=self.why or "it died")


@dataclass
class Verdict:
    """What a judge found, after the server has checked its words: the tests may be a client's."""

    passed: int = 0
    solved: bool = False
    late: bool = False  # the time was up before the end
    error: str = ""  # the built-in type of the first exception
    fault: str = ""  # what is wrong with the task itself
    broken: str = ""  # why the line to the worker broke
    fit: bool = False  # whether the judge may grade again

    @classmethod
    def check(cls, report: dict) -> Verdict:
        """Raises InvalidRequest when our program would not have said that."""
        verdict: Verdict = known_fields(cls, report)
        if not isinstance(getattr(builtins, verdict.error, None), type):
            verdict.error = ""
        verdict.fault = verdict.fault[:300]
        return verdict

    def count(self, total: int) -> int:
        """How many of so many tests passed; all of them only if the judge says so."""
        return total if self.solved else max(0, min(self.passed, total - 1))

    def describe(self, total: int) -> str:
        reason = f"; the first that failed raised {self.error}" if self.error else ""
        if self.late:
            reason = "; the time was up before the rest"
        return f"{self.count(total)} of {total} tests passed{reason}."


async def outcome_of(task: asyncio.Task[Any]) -> Any:
    """Its result. A task that close() cancelled has broken: who waits for it was not cancelled."""
    try:
        if not task.done():  # else wait() would take two turns of the loop all the same
            await asyncio.wait([task])
    except asyncio.CancelledError:
        task.cancel()
        raise
    if task.cancelled():
        raise EOFError("its process was closed")
    return task.result()


@dataclass
class SessionJudge:
    """The judge of a session: one process, over its steps and episodes, which has the tests of the
    last task; another takes its place when it died or is not fit to grade again."""

    sandbox: Sandbox
    process: Process | None = None
    task: Task | None = None  # what it was given
    preparing: asyncio.Task[dict] | None = None
    is_over: bool = False
    was_taken: bool = False  # the last one died by a SIGKILL that nobody of ours sent

    def begin(self, task: Task) -> asyncio.Task[dict]:
        """Give it the task, unless it has that already."""
        if self.is_over:
            raise ExecutionError("the session was closed")  # nobody would end another process
        process = self.process
        is_alive = process and not process.is_gone
        if is_alive and self.preparing and self.task == task:
            return self.preparing
        # One that still reads another task would answer to that first.
        is_free = is_alive and self.preparing and self.preparing.done()
        if not process or not is_free:
            self.close()
            process = self.process = self.sandbox.spawn("judge", 0)
        self.task = task
        facts = task.facts._asdict() if task.facts else None
        question = process.ask({"task": task.sources(), "facts": facts})
        self.preparing = asyncio.create_task(question)
        # Who needs the answer asks for it later; until then no one need hear of a judge's death.
        self.preparing.add_done_callback(lambda task: task.cancelled() or task.exception())
        return self.preparing

    async def prepare(self, task: Task) -> Facts:
        """Have a task's tests read. Raises InvalidRequest when they can measure nothing, and
        FactoryError when there is no judge."""
        late = "reading the tests took too long"
        reply: dict[str, Any] = {}
        for _ in range(ATTEMPTS):
            await self.sandbox.start()
            preparing = self.begin(task)
            process = self.process
            assert process
            timer = process.loop.call_later(self.sandbox.limits.step_s, process.kill, late)
            try:
                reply = await outcome_of(preparing)
            except BROKEN:
                self.close()
                reply = {"bad": process.why or "the judge died"}
            finally:
                timer.cancel()
            if "facts" in reply:
                return Facts(**reply["facts"])
            if process.why or self.process:  # else it was killed from outside
                break
        raise InvalidRequest(str(reply["bad"])[:1_000])

    async def grade(self, worker: Process, task: Task, seconds: float, seed: int) -> Verdict:
        """Run the task's tests against a worker, for at most so many seconds. Raises one of BROKEN
        when the judge died by itself."""
        await self.sandbox.start()
        preparing = self.begin(task)
        process = self.process
        assert process and worker.line
        late = "the tests did not stop in time"
        # The judge keeps the time itself, and may give as much again to what the line took.
        timer = process.loop.call_later(2 * seconds + 1.0, process.kill, late)
        died = None  # how a fork of it did
        try:
            reply = await outcome_of(preparing)
            if "bad" in reply:
                return Verdict(fault=str(reply["bad"])[:1_000])
            seal = secrets.token_hex(8)
            message = {"seconds": seconds, "seed": seed, "seal": seal}
            report = await process.ask(message, worker.line.fileno())
            # Without it this is none of the judge's: the code may have told the tests to write to
            # a file, and named the descriptor of this line.
            if report.get("seal") != seal:
                self.close()
                return Verdict()
            died = report.get("died")
            if died is not None:
                raise EOFError(f"its fork ended with {died}")
            verdict = Verdict.check(report)
        except BROKEN:
            self.was_taken = await process.was_taken() if died is None else died == -SIGKILL
            self.close()
            if process.why == late:
                return Verdict(late=True)
            if process.why:
                raise EOFError(process.why) from None
            raise
        finally:
            timer.cancel()
        if not verdict.fit:
            self.close()
        return verdict

    def close(self) -> None:
        if self.preparing:
            self.preparing.cancel()
        if self.process:
            self.process.close()
        self.process = None
        self.preparing = None


async def judge_inside(worker: Process, task: Task, seconds: float) -> Verdict:
    """Have the worker run the tests itself, and believe it. Its death is the code's."""
    assert task.facts
    facts = task.facts._asdict()
    asking = worker.ask({"task": task.sources(), "facts": facts, "seconds": seconds})
    try:
        return Verdict.check(await asyncio.wait_for(asking, seconds + 1.0))
    except BROKEN:
        return Verdict(broken="the worker died, lies, or was late")


class ZygoteLink:
    """A running zygote, as the server holds it: commands go out, and the ends of processes come in.

    It runs no candidate code, so what it says is true. When it dies, so do its children."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.processes: dict[str, Process] = {}  # that are not reaped, by key
        self.isolation: dict = {}
        self.is_gone = False
        self.control, self.far_end = socket.socketpair()
        self.control.setblocking(False)
        self.mailbox = Mailbox(self.control)
        self.queue: collections.deque[tuple[bytes, list[int]]] = collections.deque()
        self.loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = self.loop.create_future()
        self.pids: asyncio.Future[dict[str, int]] | None = None

    async def start(self, config: dict, program: bytes) -> None:
        """Raises FactoryError when it does not start."""
        kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
        with self.far_end:
            self.child = subprocess.Popen(  # noqa: ASYNC220
                [sys.executable, "-s", "-c", ZYGOTE_BOOT, str(len(program))],
                stdin=self.far_end.fileno(),
                stdout=subprocess.DEVNULL,
                env=WORKER_ENVIRONMENT | kept,
                cwd="/",
                start_new_session=True,
            )
        self.loop.add_reader(self.control, self.read)
        with contextlib.suppress(OSError):
            await self.loop.sock_sendall(self.control, program + frame(config))
        try:
            await asyncio.wait_for(asyncio.shield(self.ready), PATIENCE_S)
        except (EOFError, asyncio.TimeoutError):  # noqa: UP041
            self.leave()
            code = self.child.wait()
            raise FactoryError(
                f"the zygote, which forks interpreters, did not start (exit code {code}); what it"
                " said is in the server's standard error"
            ) from None
        except BaseException:
            self.leave()
            raise

    def read(self) -> None:
        is_alive = self.mailbox.fill()
        for message in iter(self.mailbox.take, None):
            self.hear(message)
        if not is_alive:
            self.leave()

    def is_alive(self) -> bool:
        """Its death may be here and not yet be noticed: as the end of its line, or, where a child
        that dies with it holds that a little longer, as its exit."""
        if not self.is_gone and select.select([self.control], [], [], 0)[0]:
            self.read()
        if not self.is_gone and self.child.poll() is not None:
            self.leave()
        return not self.is_gone

    def hear(self, message: dict) -> None:
        if "isolation" in message:
            isolation = message["isolation"]
            self.isolation = {**isolation, "full": all(isolation.values())}
            if message["version"] != sys.version:
                log.warning("workers run another Python than the server: %s", message["version"])
            self.ready.set_result(None)
        elif "pids" in message:
            if self.pids and not self.pids.done():
                self.pids.set_result(message["pids"])
        else:
            process = self.processes.pop(message["id"], None)
            if process:
                process.error = message.get("error", "")
                process.ended.set_result(message.get("status", SIGKILL))
                process.leave()

    def leave(self) -> None:
        """It died, or shall: its children die with it, by their death signal."""
        if self.is_gone:
            return
        self.is_gone = True
        self.loop.remove_reader(self.control)
        self.loop.remove_writer(self.control)
        self.control.close()
        self.child.kill()
        if not self.ready.done():
            self.ready.set_exception(EOFError())
        if self.pids and not self.pids.done():
            self.pids.set_result({})
        while self.processes:
            _, process = self.processes.popitem()
            process.ended.set_result(SIGKILL)
            process.leave()

    def command(self, op: str, key: str, fds: Sequence[int] = (), **more: Any) -> None:
        """Tell the zygote what to do. It may be behind with that, but only while it forks."""
        if self.is_gone or (op != "pids_of" and key not in self.processes):
            return
        self.queue.append(
            (frame({"op": op, "id": key, "fds": len(fds), **more}), [*map(os.dup, fds)])
        )
        self.send_queue()

    def send_queue(self) -> None:
        while self.queue:
            message, fds = self.queue[0]
            try:
                socket.send_fds(self.control, [message], fds)  # so short that it goes whole or not
            except BlockingIOError:
                self.loop.add_writer(self.control, self.send_queue)
                return
            except OSError:
                pass  # it died; read() will notice
            self.queue.popleft()
            for fd in fds:
                os.close(fd)
        self.loop.remove_writer(self.control)

    def spawn(self, role: str, seed: int) -> Process:
        """Raises OSError where there are no descriptors; what else fails is told by the process."""
        key = secrets.token_hex(16)  # stat() works anywhere: names must not be guessed
        with contextlib.ExitStack() as far_ends:
            ours, theirs = socket.socketpair()
            far_ends.enter_context(theirs)
            ours.setblocking(False)
            process = Process(self, key, ours)
            given = [theirs.fileno()]
            try:
                if role == "worker":
                    process.line, line = socket.socketpair()
                    far_ends.enter_context(line)
                    given.append(line.fileno())
                    for _ in range(2):
                        read, write = os.pipe()
                        far_ends.callback(os.close, write)
                        given.append(write)
                        process.streams.append(Capture(read, self.limits.output_bytes))
                self.processes[key] = process
                self.command("spawn", key, given, role=role, seed=seed)
            except OSError:
                process.close()
                raise
        return process

    async def ask_pids(self, processes: list[Process]) -> dict[str, int]:
        """By key; 0 for one that has ended."""
        if self.is_gone:
            return {}
        self.pids = self.loop.create_future()
        self.command("pids_of", "", ids=[process.key for process in processes])
        return await self.pids

    async def close(self) -> None:
        """End it with all of its children, and wait until their folders are cleared."""
        if not self.is_gone:
            self.control.shutdown(socket.SHUT_WR)
        with contextlib.suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(self.child.wait, 2.0)
        self.leave()
        self.child.wait()


# Graded steps at once, for each processor: more of them would not be done sooner, but all be late.
TURNS = 16
TURN_S = 2.0  # most take a hundredth of that


class Sandbox:
    """Where workers and judges come from. One a server; it lives in one event loop.

    limits: what bounds them. preload: more modules to import before the forks. hidden: paths that
    no worker may read. isolation: what was truly reached on this machine, found out at start().
    """

    def __init__(
        self, limits: Limits = LIMITS, preload: Sequence[str] = (), hidden: Sequence[str] = ()
    ) -> None:
        self.limits = limits
        self.preload = preload
        self.hidden = hidden
        self.program = worker_program()  # read once: what becomes of the file does not matter
        self.base = ""
        self.zygote: ZygoteLink | None = None
        self.starting = asyncio.Lock()
        self.turns = asyncio.Semaphore(TURNS * (os.cpu_count() or 1))
        self.sampler: asyncio.Task[None] | None = None
        self.counters = {"steps": 0, "gradings": 0, "worker_deaths": 0}

    @property
    def isolation(self) -> dict:
        return self.zygote.isolation if self.zygote else {}

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait until there are not too many graded steps at work. It comes before a step begins, so
        that the wait is not on the code's own time. Who takes long gives the turn back before the
        end, because endless code must not hold up the others."""
        await self.turns.acquire()
        with contextlib.ExitStack() as turn:
            turn.callback(self.turns.release)
            turn.callback(asyncio.get_running_loop().call_later(TURN_S, turn.close).cancel)
            yield

    async def start(self) -> ZygoteLink:
        """The running zygote; starts one where there is none, or where it died. Raises FactoryError
        when that fails."""
        async with self.starting:
            if self.zygote and self.zygote.is_alive():
                return self.zygote
            if sys.platform != "linux":
                raise FactoryError("interpreters need Linux; use PythonEnv(base_url=...) elsewhere")
            if self.zygote:
                log.warning("the zygote died; starting another")
                self.zygote.child.wait()
            if not os.path.isdir(self.base):
                self.base = os.path.realpath(tempfile.mkdtemp(prefix="python_env-"))
            zygote = ZygoteLink(self.limits)
            await zygote.start(self.zygote_config(), self.program)
            self.zygote = zygote
            if not self.sampler:
                self.sampler = asyncio.create_task(self.sample_for_ever())
            return zygote

    def zygote_config(self) -> dict:
        own = Path(os.path.realpath(__file__))
        hidden = [own, *own.parent.glob(f"__pycache__/{own.stem}.*"), *self.hidden]
        installed = own.parent.name in ("site-packages", "dist-packages")
        limits = self.limits
        rlimits = {
            "AS": limits.memory_mb << 20,
            "FSIZE": limits.file_bytes,
            "NOFILE": limits.open_files,
            "NPROC": most_processes(),
            "CPU": limits.cpu_s,
        }
        return {
            "preload": [*COMMON_MODULES.split(), *self.preload],
            "base": self.base,
            # Where the module stands in a folder of its user's, that is nothing to read or import.
            "off_path": [] if installed else [str(own.parent)],
            "hidden": [os.path.realpath(str(path)) for path in hidden],
            "limits": {"result_chars": limits.result_chars, "rlimits": rlimits},
        }

    def reap_orphans(self) -> None:
        """As a container's first process we inherit the children of a zygote that died."""
        if os.getpid() != 1:
            return
        with contextlib.suppress(ChildProcessError):
            while True:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if ended is None or self.zygote and ended.si_pid == self.zygote.child.pid:
                    return
                os.waitpid(ended.si_pid, os.WNOHANG)

    def spawn(self, role: str, seed: int) -> Process:
        """Fork a "worker" or a "judge". Raises FactoryError when it cannot be had: no zygote (call
        start()), no descriptors. That the fork itself failed is told by the process's first run."""
        if not self.zygote or self.zygote.is_gone:
            raise FactoryError("no interpreter could be started: the zygote died")
        try:
            return self.zygote.spawn(role, seed)
        except OSError as error:
            raise FactoryError(f"no interpreter could be started: {error}") from None

    async def sample_for_ever(self) -> None:
        """End what grew too many threads (root has no RLIMIT_NPROC) or files: all the busy ones,
        and a few of the idle ones in turn, since they may have left threads running."""
        for turn in itertools.count(0, IDLE_SAMPLES):
            await asyncio.sleep(self.limits.sample_s)
            try:
                await self.sample(turn)
            except FactoryError as error:
                log.error("%s", error)
            except Exception:  # because without it no limit of these would hold any more
                log.exception("the sampler failed; it goes on")

    async def sample(self, turn: int) -> None:
        """Look at them once. `turn`: at which idle one to begin; it counts round and round."""
        zygote = await self.start()
        self.reap_orphans()
        processes = [*zygote.processes.values()]
        idle = [process for process in processes if not process.is_busy]
        looked_at = [process for process in processes if process.is_busy]
        turn %= max(1, len(idle))
        looked_at += (idle + idle)[turn : turn + min(IDLE_SAMPLES, len(idle))]
        pids = await zygote.ask_pids(looked_at)
        for process in looked_at:
            if pids.get(process.key):
                why = await asyncio.to_thread(
                    find_excess, pids[process.key], f"{self.base}/{process.key}", self.limits
                )
                if why:
                    process.kill(why)

    async def close(self) -> None:
        """End every process and clear every folder."""
        if self.sampler:
            self.sampler.cancel()
        if self.zygote:
            with contextlib.suppress(FactoryError):
                await self.start()  # which clears up after one that died
            await self.zygote.close()
        if self.base:
            with contextlib.suppress(OSError):
                os.rmdir(self.base)


def most_processes() -> int:
    """For RLIMIT_NPROC, which counts threads: an eighth of what the container may have."""
    for path in ("/sys/fs/cgroup/pids.max", "/sys/fs/cgroup/pids/pids.max"):
        with contextlib.suppress(OSError, ValueError):
            return max(16, int(Path(path).read_text()) // 8)
    return 4_096


def find_excess(pid: int, folder: str, limits: Limits) -> str:
    """Why this process must be ended, or "". It is looked at without following a link and without
    changing anything: its owner is at work there, and may swap one thing for another."""
    files_grew = "its files grew over the limit"
    try:
        if folder_is_over(folder, limits):
            return files_grew
        for each in [str(pid), *forks_of(pid)]:
            with contextlib.suppress(OSError):  # it has just ended, or is root's to look at
                if len(os.listdir(f"/proc/{each}/task")) > limits.threads:
                    return f"it had more than {limits.threads} threads"
                unnamed = unnamed_bytes(each) + mapped_files(each, folder) * limits.file_bytes
                if unnamed > limits.folder_bytes:
                    return files_grew
    except Exception:
        log.exception("process %d could not be measured", pid)
        return "it could not be measured"
    return ""


def forks_of(pid: int) -> list[str]:
    """Of a judge, whose only thread forks for some tests; none where the kernel does not tell."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return []


def folder_is_over(folder: str, limits: Limits) -> bool:
    count = 0
    size = 0
    pending = [folder]
    for path in pending:  # the list grows as we go
        try:
            with os.scandir(path) as found:
                # No more than it takes to know, because there may be many times as many.
                entries = [*itertools.islice(found, limits.folder_entries + 1)]
        except OSError as error:
            if error.errno in (errno.ENAMETOOLONG, errno.EACCES):
                return True  # nobody needs that deep a tree, or to lock one
            continue
        for entry in entries:
            with contextlib.suppress(OSError):
                count += 1
                size += entry.stat(follow_symlinks=False).st_blocks * 512
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
        if count > limits.folder_entries or size > limits.folder_bytes:
            return True
    return False


def mapped_files(pid: str, folder: str) -> int:
    """How many of its own files it has mapped that have no name: nobody tells their sizes."""
    # As bytes, whose lines end with a line feed alone: a file's name may hold other ends of lines.
    with open(f"/proc/{pid}/maps", "rb") as maps:
        lines = [line for line in maps if folder.encode() in line and line.endswith(b"(deleted)\n")]
    return len({line.split()[4] for line in lines})


def unnamed_bytes(pid: str) -> int:
    """Of the files that it holds open, and that have no name any more."""
    sizes = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            facts = os.stat(f"/proc/{pid}/fd/{name}")
            if stat.S_ISREG(facts.st_mode) and not facts.st_nlink:
                sizes[facts.st_ino] = facts.st_blocks * 512
    return sum(sizes.values())


# ── Grading: the processes of a session play its episodes ─────────────────────────────────────────

Step = tuple[str, str | None]  # code and standard input

ATTEMPTS = 3  # at a step, while processes die by no doing of the code's
REPLAY_FAILED = (
    "The episode's code took too long, or died, when it was replayed for this step: the episode is"
    " over."
)
NO_INPUT = "The output shown is of a run without input; the tests bring theirs."
SANDBOX_REFUSED = (
    "The sandbox refused something: code here has no network, starts no processes, and opens no"
    " files but those in its own folder, and Python's to read."
)


class Attempt(NamedTuple):
    """One run of a step's code, and its judgement."""

    outcome: Outcome
    stdout: str = ""
    stderr: str = ""
    verdict: Verdict | None = None  # None: not judged
    note: str = ""  # for the feedback: what became of the interpreter, or of the code
    is_last: bool = False  # the episode cannot go on


class JudgeDied(ExecutionError):
    """By itself, or was killed from outside; so the grading failed, and there is no reward."""


class Grader:
    """The processes of a session: they run the steps of its episodes, and judge them.

    Without tests one worker lives through the episode. With tests each step gets a fresh worker,
    which replays the transcript, runs the new code, meets the judge and is thrown away: so whatever
    the code keeps of the tests' inputs never comes back to the agent. With pairs each step stands
    alone: it runs once for what the agent sees, then once for each pair, and nothing is replayed.
    """

    def __init__(self, sandbox: Sandbox, judge_mode: str) -> None:
        self.sandbox = sandbox
        self.limits = sandbox.limits
        self.judge_mode = judge_mode
        self.judge = SessionJudge(sandbox)
        self.task = REPL
        self.seed = 0
        self.transcript: list[Step] = []  # what a fresh worker replays
        self.worker: Process | None = None  # for the next step, forked ahead of time
        self.replaying: asyncio.Task[Outcome] | None = None  # what it does until then
        self.news = ""  # what became of the interpreter between two steps
        self.is_closed = False

    @property
    def judges_inside(self) -> bool:
        """Whether the tests run where the code ran: so says the task, or the operator."""
        return "inside" in (self.task.judge, self.judge_mode)

    async def read(self, task: Task) -> Task:
        """The task with its facts. Raises InvalidRequest when its tests can measure nothing."""
        if not task.tests or task.facts:
            return task
        async with self.sandbox.turn():
            return dataclasses.replace(task, facts=await self.judge.prepare(task))

    async def begin(self, task: Task, seed: int | None) -> None:
        """Begin an episode: its processes get ready while the agent thinks."""
        self.release_worker()
        self.task = task
        self.seed = secrets.randbits(32) if seed is None else seed
        self.transcript = []
        await self.sandbox.start()
        self.begin_worker()
        if task.tests and not self.judges_inside:
            self.judge.begin(task)

    async def run(self, action: PythonAction, seconds: float) -> Attempt:
        """Run a step's code and judge it; again where that did not count, or where no process was
        to be had: a little later, when a dying zygote has died, or the sampler has ended a thread
        bomb. Raises FactoryError, and ExecutionError when our side failed, or the task is at fault.
        """
        self.sandbox.counters["steps"] += 1
        too_long = self.refuse_code(action.code)
        if too_long:
            return Attempt(Outcome(exit_code=1), stderr=too_long, note=too_long)
        attempt = Attempt(TAKEN)
        late = time.monotonic() + self.limits.step_s / 2
        for turn in range(ATTEMPTS):
            if turn:
                self.release_worker()
                await asyncio.sleep(self.limits.sample_s)
            try:
                attempt = await self.attempt(action, seconds)
            except FactoryError:
                if turn == ATTEMPTS - 1:
                    raise
            except JudgeDied:
                is_last = turn == ATTEMPTS - 1
                if is_last and (self.judge.was_taken or await self.ends_judges(seconds)):
                    raise
                attempt = Attempt(Outcome(), verdict=Verdict())  # 0, should this be the last
            else:
                # Killed from outside at every attempt, or late, a worker is taken to have died by
                # the code's doing (it may use up the machine's memory): so that earns 0. Late,
                # because a step that is longer than its client waits gets no reward.
                is_again = attempt.outcome.taken and time.monotonic() < late
                if not (is_again and self.task.is_judged):
                    break
        attempt = attempt._replace(note=self.news or self.explain(action, attempt.outcome))
        self.news = ""
        self.refuse_fault(attempt.verdict.fault if attempt.verdict else "")
        return attempt

    def explain(self, action: PythonAction, outcome: Outcome) -> str:
        """Why what the agent sees may look worse than its reward."""
        has_no_input = self.task.pairs and action.stdin is None
        return NO_INPUT if has_no_input and outcome.exit_code else ""

    def refuse_code(self, code: str) -> str:
        """Why the code is too long, which is the agent's own fault; or ""."""
        limits = self.limits
        sizes = [len(each.encode(errors="surrogatepass")) for each, _ in self.transcript]
        size = len(code.encode(errors="surrogatepass"))
        if size > limits.code_bytes:
            return f"The code has {size:,} bytes; the limit is {limits.code_bytes:,} a step."
        total = size + sum(sizes)
        if total > limits.transcript_bytes:
            return (
                f"The episode's code would have {total:,} bytes; the limit is"
                f" {limits.transcript_bytes:,}. reset() begins another."
            )
        return ""

    def refuse_fault(self, fault: str) -> None:
        """What is wrong with the task itself must not teach a model anything."""
        if fault:
            name = self.task.task_id
            raise ExecutionError(f"task {name!r} is at fault, hence no reward: {fault}")

    async def attempt(self, action: PythonAction, seconds: float) -> Attempt:
        """Run the code once in a worker that is where the episode is, and judge it."""
        worker = await self.ready_worker()
        replay = await self.replay_outcome()
        if replay.taken:
            return Attempt(replay)
        if replay.died or replay.timed_out:
            self.news = REPLAY_FAILED
            return Attempt(Outcome(exit_code=1), is_last=True)
        async with self.sandbox.turn() if self.task.is_judged else contextlib.nullcontext():
            return await self.run_and_judge(worker, action, seconds)

    async def run_and_judge(self, worker: Process, action: PythonAction, seconds: float) -> Attempt:
        task = self.task
        begun = time.monotonic()
        deadline = begun + seconds
        then = "exit" if task.pairs else ""
        if task.tests:
            then = "inside" if self.judges_inside else "serve"
        outcome = await worker.run(seconds, code=action.code, stdin=action.stdin, then=then)
        stdout, stderr = worker.take_output()
        attempt = Attempt(outcome, stdout, stderr)
        if outcome.died:
            self.sandbox.counters["worker_deaths"] += 1
        if task.pairs and not outcome.taken:
            verdict = await self.judge_pairs(action.code, seconds, begun)
            return attempt._replace(verdict=verdict)
        if not task.tests or outcome.timed_out or outcome.died:
            return attempt

        self.sandbox.counters["gradings"] += 1
        left = max(deadline - time.monotonic(), self.limits.grading_min_s)
        try:
            if self.judges_inside:
                verdict = await judge_inside(worker, task, left)
            else:
                verdict = await self.judge.grade(worker, task, left, self.seed)
        except BROKEN as error:
            raise JudgeDied(
                f"the grading failed, hence no reward: the judge died: {error}"
            ) from None
        if verdict.broken and await worker.was_taken():
            return attempt._replace(outcome=TAKEN)
        self.transcript.append((action.code, action.stdin))
        return attempt._replace(verdict=verdict)

    async def ends_judges(self, seconds: float) -> bool:
        """Whether the tests end their judge even where none of the episode's code has run: what
        only that brings about is its own doing."""
        self.release_worker()
        await asyncio.sleep(self.limits.sample_s)  # until the sampler has ended its threads
        await self.sandbox.start()
        worker = self.spawn_worker()
        try:
            await worker.run(self.limits.replay_s, setup=self.task.setup, then="serve")
            await self.judge.grade(worker, self.task, seconds, self.seed)
        except BROKEN:
            return True
        finally:
            worker.close()
        return False

    async def judge_pairs(self, code: str, seconds: float, begun: float) -> Verdict:
        """Run the step's code alone, as a program, once for each pair of input and output. `begun`:
        when the run began that the agent sees."""
        passed = 0
        # With that run shorter than the longest step, for which clients wait, whatever each takes.
        most = max(seconds, self.limits.step_max_s - seconds)
        least = min(seconds, self.limits.step_s)
        end = max(begun + most, time.monotonic() + least)
        for pair in self.task.pairs:
            left = min(seconds, end - time.monotonic())
            if left <= 0:
                return Verdict(passed, late=True)
            self.sandbox.counters["gradings"] += 1
            passed += await self.passes(code, pair, left)
        return Verdict(passed, solved=passed == len(self.task.pairs))

    async def passes(self, code: str, pair: Pair, seconds: float) -> bool:
        """Whether a program prints what it should, and ends well; run again where somebody else
        killed it."""
        for _ in range(ATTEMPTS):
            await self.sandbox.start()
            worker = self.spawn_worker()
            try:
                for stream in worker.streams:  # a character may take four bytes
                    stream.most = self.limits.output_bytes + 4 * len(pair.expected)
                outcome = await self.catch_up(worker)
                self.refuse_fault(outcome.fault and f"its setup raised {outcome.fault}")
                worker.take_output()
                begun = time.monotonic()
                outcome = await worker.run(seconds, code=code, stdin=pair.stdin, then="exit")
                seconds -= time.monotonic() - begun  # which is for all attempts
                stdout, _ = worker.take_output()
            finally:
                worker.close()
            if not outcome.taken:
                # In a thread, because a pair may be of megabytes.
                return outcome.exit_code == 0 and await asyncio.to_thread(pair.holds, stdout)
        return False

    # ── The episode's workers ──

    def spawn_worker(self) -> Process:
        if self.is_closed:  # because nobody would end it
            raise ExecutionError("the session was closed")
        # Another seed than the tests', or the code could draw what they will.
        seed = random.Random(f"the code's, of {self.seed}").getrandbits(32)
        return self.sandbox.spawn("worker", seed)

    def begin_worker(self) -> Process:
        """Fork a worker for the next step, and let it come to where the episode is."""
        self.worker = self.spawn_worker()
        self.replaying = asyncio.create_task(self.catch_up(self.worker))
        return self.worker

    async def catch_up(self, worker: Process) -> Outcome:
        """Bring a fresh worker to where the episode is. Even if that is its beginning: the fork may
        have to wait, which is not on the code's own time."""
        outcome = await worker.run(self.limits.replay_s, setup=self.task.setup)
        if self.transcript and not (outcome.died or outcome.fault):
            outcome = await worker.run(self.limits.replay_s, replay=self.transcript)
        return outcome

    async def ready_worker(self) -> Process:
        """The worker that was forked ahead of time, or another in its place."""
        if self.worker and not self.worker.is_lost:
            return self.worker
        if self.worker and not self.task.is_judged:
            self.news = f"The interpreter is new: {self.worker.why or 'the old one had died'}."
        self.release_worker()
        await self.sandbox.start()
        return self.begin_worker()

    async def replay_outcome(self) -> Outcome:
        """What came of the worker's way to where the episode is."""
        if not self.replaying:
            return Outcome()
        try:
            outcome = await outcome_of(self.replaying)
        except EOFError:
            return TAKEN
        self.replaying = None
        self.refuse_fault(outcome.fault and f"its setup raised {outcome.fault}")
        if self.worker:
            self.worker.take_output()  # which nobody is to see
        return outcome

    def end_step(self, is_last: bool) -> None:
        """After a step: a judged one has used up its worker."""
        if self.task.is_judged or is_last:
            # After the reply, because ending one process and forking another takes time.
            asyncio.get_running_loop().call_soon(self.change_worker, self.worker, is_last)
            self.worker = None

    def change_worker(self, used: Process | None, is_last: bool) -> None:
        if used:
            used.close()
        if not (self.is_closed or is_last or self.worker or self.task.pairs):
            with contextlib.suppress(FactoryError):  # then the next step will try again, and say so
                self.begin_worker()

    def release_worker(self) -> None:
        if self.replaying:
            self.replaying.cancel()
        if self.worker:
            self.worker.close()
        self.worker = None
        self.replaying = None

    def close(self) -> None:
        self.is_closed = True
        self.release_worker()
        self.judge.close()
        self.judge.is_over = True


# ══════════════════════════════════════════════════════════════════════════════════════════════════
# 12. Worker program: isolation · wire · tests · interpreter · judge · zygote
# ══════════════════════════════════════════════════════════════════════════════════════════════════
# The program of every other process, and all of ours that those ever hold: the text from this
# banner to the next one, below imports of PROGRAM_MODULES. So it uses no other chapter's names.

PROGRAM_MODULES = (
    "_signal _thread abc array ast base64 binascii builtins collections contextlib copy copyreg"
    " ctypes dataclasses datetime decimal dis errno fractions functools gc importlib inspect io"
    " itertools json linecache math numbers operator os pathlib pkgutil random re select signal"
    " socket stat struct symtable sys threading time traceback types typing uuid warnings zoneinfo"
)
PROGRAM_IMPORTS = """\
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple
"""

# ── Isolation: the system calls ───────────────────────────────────────────────────────────────────
# A process of ours meets two filters: the zygote installs one for itself and all its children,
# which has every call that any of them needs; a child adds a short one of its own, that takes back
# what only others need. Both are made of these tables, which give a call's name and its numbers on
# x86_64 and aarch64 ("-": not there). ALLOW runs, IGNORE answers 0 and does nothing, all others get
# EPERM, or ENOSYS where libc has an older way. Conditions compare an argument's low half, all the
# kernel takes of an int; pointers have a .high as well.

SYSTEM_CALLS = """
ALLOW what is open: our own socket, pipes, and files that Landlock let it open
  read 0 63, write 1 64, readv 19 65, writev 20 66, pread64 17 67, pwrite64 18 68, lseek 8 62,
  sendfile 40 71, copy_file_range 326 285, ftruncate 77 46, fsync 74 82, fdatasync 75 83,
  close 3 57, dup 32 23, dup2 33 -, dup3 292 24, pipe 22 -, pipe2 293 59, recvfrom 45 207,
  sendto 44 206, shutdown 48 210, getsockname 51 204, poll 7 -, ppoll 271 73, select 23 -,
  pselect6 270 72, epoll_create1 291 20, epoll_ctl 233 21, epoll_wait 232 -, epoll_pwait 281 22
ALLOW a pair of sockets, each the other's only peer, which asyncio wakes itself up by
  socketpair 53 199 | arg0: UNIX=1 | arg1 & 0xf: STREAM=1
ALLOW names and directories: Landlock guards what lists or changes them (a mere stat it does not)
  stat 4 -, fstat 5 80, lstat 6 -, newfstatat 262 79, statx 332 291, access 21 -, faccessat 269 48,
  faccessat2 439 439, readlink 89 -, readlinkat 267 78, getdents64 217 61, getcwd 79 17,
  chdir 80 49, fchdir 81 50, mkdir 83 -, mkdirat 258 34, rmdir 84 -, unlink 87 -, unlinkat 263 35,
  rename 82 -, renameat 264 38, link 86 -, linkat 265 37, symlink 88 -, symlinkat 266 36
ALLOW opening, but no O_TRUNC without writing, no mode 3 (before ABI 3 Landlock sees neither), and
no O_TMPFILE (0x400000), whose files have no name to be found and measured by
  open 2 - | arg1 & 0x400203: RDONLY=0 WRONLY=1 RDWR=2 WRONLY+TRUNC=0x201 RDWR+TRUNC=0x202,
  openat 257 56 | arg2 & 0x400203: RDONLY=0 WRONLY=1 RDWR=2 WRONLY+TRUNC=0x201 RDWR+TRUNC=0x202
IGNORE modes, times, locks (a channel): Landlock guards none of them; shutil, SQLite need a yes
  chmod 90 -, fchmod 91 52, fchmodat 268 53, fchmodat2 452 452, utimensat 280 88, listxattr 194 11,
  llistxattr 195 12, flock 73 32, fcntl 72 25 | arg1: SETLK=6 SETLKW=7 OFD_SETLK=37 OFD_SETLKW=38
ALLOW by command: F_SETOWN, F_SETSIG, FIOSETOWN send signals; TIOCSTI types; SO_PEERPIDFD opens us
  fcntl 72 25 | arg1: DUPFD=0 GETFD=1 SETFD=2 GETFL=3 SETFL=4 GETLK=5 DUPFD_CLOEXEC=1030,
  ioctl 16 29 | arg1: TCGETS=0x5401 FIONREAD=0x541b FIONBIO=0x5421 FIONCLEX=0x5450 FIOCLEX=0x5451,
  getsockopt 55 209 | arg1: SOL_SOCKET=1 | arg2: SO_TYPE=3 SO_ERROR=4 SO_PROTOCOL=38 SO_DOMAIN=39,
  prctl 157 167 | arg0: SET_NAME=15 GET_NAME=16 GET_NO_NEW_PRIVS=39 SET_VMA=0x53564d41
ALLOW memory and threads; not shared mappings (1: no limit holds them), processes, namespaces, nor
threads with a table of descriptors of their own (0x400), each with as many open files
  brk 12 214, munmap 11 215, mremap 25 216, mprotect 10 226, madvise 28 233, futex 202 98,
  mmap 9 222 | arg3 & 1: PRIVATE=0, clone 56 220 | arg0 & 0x7e030400: THREAD+FILES=0x10400,
  set_robust_list 273 99, rseq 334 293, set_tid_address 218 96, sched_yield 24 124,
  sched_getaffinity 204 123, exit 60 93, exit_group 231 94
ALLOW signals to itself, which abort() and faulthandler send; to others, never
  kill 62 129 | arg0: PID, tkill 200 130 | arg0: PID, tgkill 234 131 | arg0: PID, pause 34 -,
  rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139, rt_sigpending 127 136,
  rt_sigtimedwait 128 137, rt_sigsuspend 130 133, sigaltstack 131 132, restart_syscall 219 128
ALLOW clocks, timers and questions about itself; limits are read (no pointer to new ones), never set
  clock_gettime 228 113, clock_getres 229 114, clock_nanosleep 230 115, nanosleep 35 101,
  time 201 -, gettimeofday 96 169, times 100 153, getitimer 36 102, setitimer 38 103, alarm 37 -,
  getpid 39 172, gettid 186 178, getppid 110 173, getuid 102 174, geteuid 107 175, getgid 104 176,
  getegid 108 177, uname 63 160, getrandom 318 278, getrusage 98 165, getrlimit 97 163,
  umask 95 166, wait4 61 260, prlimit64 302 261 | arg0: SELF=0 | arg2: NULL=0 | arg2.high: NULL=0
"""
JUDGE_CALLS = """
ALLOW what a judge may besides: take a worker's line, and fork, with the death signal set again. It
runs only tests that leave nothing behind; its forks, which run the others, take this back
  recvmsg 47 212, kill 62 129, tkill 200 130, tgkill 234 131,
  clone 56 220 | arg0 & 0x7e030000: FORK=0,
  prctl 157 167 | arg0: PDEATHSIG=1 SECCOMP=22
"""
SWEEPER_CALLS = """
ALLOW what a sweeper may besides: enter what a dead worker has locked
  chmod 90 -, fchmodat 268 53
"""
# The zygote forks, signals and waits, and locks its children down. Every call that a filter of a
# child conditions on its own pid stands here, too, for the zygote cannot know that pid.
ZYGOTE_CALLS = """
ALLOW
  recvmsg 47 212, clone 56 220, kill 62 129, tkill 200 130, tgkill 234 131, chmod 90 -,
  fchmodat 268 53, prctl 157 167, setpriority 141 140, prlimit64 302 261, close_range 436 436,
  landlock_create_ruleset 444 444, landlock_add_rule 445 445, landlock_restrict_self 446 446
"""
MACHINES = {"x86_64": (1, 0xC000003E), "aarch64": (2, 0xC00000B7)}  # the table's column, AUDIT_ARCH
NEWEST_CALL = 470  # of Linux 6.19; a later one answers ENOSYS, so that libc falls back to an older
PID_BYTES = b"<pid"  # stand for a process's own pid, until that is known
PID = int.from_bytes(PID_BYTES, "little")

# Of the kernel's BPF machine (linux/bpf_common.h): what it can do, and what a filter may answer.
LOAD = 0x20
AND = 0x54
JUMP = 0x05
IF_EQUAL = 0x15
IF_NOT_BELOW = 0x35
IF_BITS = 0x45
RETURN = 0x06
KILL = 0x80000000  # SECCOMP_RET_KILL_PROCESS
REFUSE = 0x50000  # SECCOMP_RET_ERRNO, to add the errno to
ANSWERS = {"ALLOW": 0x7FFF0000, "IGNORE": REFUSE}


class Instruction(NamedTuple):
    """One instruction of a filter. The jumps are distances: how many instructions to pass over."""

    code: int
    operand: int
    if_true: int = 0
    if_false: int = 0


class Condition(NamedTuple):
    """Half of a call's argument must, masked, be one of the values."""

    offset: int  # of it in the kernel's struct seccomp_data
    mask: int
    values: list[int]


class Rule(NamedTuple):
    """A call that gets this answer where all conditions hold."""

    number: int
    answer: int
    conditions: list[Condition]


def parse_condition(text: str) -> Condition:
    pattern = r"arg(\d)(\.high)?(?: & (\w+))?: (.+)"
    match = re.fullmatch(pattern, text)
    assert match, text
    argument, high, mask, values = match.groups()
    wanted = [PID if value == "PID" else int(value.split("=")[1], 0) for value in values.split()]
    offset = 16 + 8 * int(argument) + 4 * bool(high)
    return Condition(offset, int(mask or "0xffffffff", 0), wanted)


def parse_rules(machine: str, table: str) -> list[Rule]:
    """The rules of one of the tables above, without the calls that this machine does not have."""
    column, _ = MACHINES[machine]
    rules = []
    for answer, lines in re.findall(
        r"^([A-Z]+)[^\n]*\n(?:\w[^\n]*\n)*((?:  .*\n)+)", table, re.MULTILINE
    ):
        for entry in " ".join(lines.split()).split(", "):
            call, *conditions = entry.split(" | ")
            number = call.split()[column]
            if number != "-":
                parsed = [parse_condition(condition) for condition in conditions]
                rules.append(Rule(int(number), ANSWERS[answer], parsed))
    return rules


def assemble_condition(condition: Condition, distance: int) -> list[Instruction]:
    """Go on where it holds, and pass over `distance` instructions where it does not."""
    count = len(condition.values)
    comparisons = [
        Instruction(IF_EQUAL, value, count - place) for place, value in enumerate(condition.values)
    ]
    return [
        Instruction(LOAD, condition.offset),
        Instruction(AND, condition.mask),
        *comparisons,
        Instruction(JUMP, distance),
    ]


def assemble(rules: list[Rule]) -> list[Instruction]:
    """Ask for one call after another. The kernel remembers which calls are always allowed, and does
    not run the filter for those."""
    program = []
    for rule in rules:
        code = [Instruction(RETURN, rule.answer)]
        for condition in reversed(rule.conditions):
            code = assemble_condition(condition, len(code)) + code
        program += [Instruction(LOAD, 0), Instruction(IF_EQUAL, rule.number, 0, len(code))]
        program += code
    return program


def build_base_filter(machine: str) -> list[Instruction]:
    """The filter of the zygote and of all its children."""
    _, architecture = MACHINES[machine]
    return [
        Instruction(LOAD, 4),
        Instruction(IF_EQUAL, architecture, 1),
        Instruction(RETURN, KILL),  # int 0x80: the numbers mean other calls there
        Instruction(LOAD, 0),
        Instruction(IF_BITS, 0x40000000, 0, 1),
        Instruction(RETURN, KILL),  # x32, likewise
        Instruction(IF_EQUAL, 435, 1),  # clone3 hides its flags in memory
        Instruction(IF_NOT_BELOW, NEWEST_CALL + 1, 0, 1),
        Instruction(RETURN, REFUSE + errno.ENOSYS),
        *assemble(parse_rules(machine, ZYGOTE_CALLS + SYSTEM_CALLS)),
        Instruction(RETURN, REFUSE + errno.EPERM),
    ]


def build_child_filter(machine: str, own_calls: str = "") -> list[Instruction]:
    """What a child adds: of the zygote's calls it keeps what SYSTEM_CALLS and `own_calls` allow."""
    kept = parse_rules(machine, own_calls + SYSTEM_CALLS)
    taken_back = {rule.number for rule in parse_rules(machine, ZYGOTE_CALLS)}
    refusals = [Rule(number, REFUSE + errno.EPERM, []) for number in sorted(taken_back)]
    rules = [rule for rule in kept if rule.number in taken_back]
    return [*assemble([*rules, *refusals]), Instruction(RETURN, ANSWERS["ALLOW"])]


class Filter:
    """A program as the kernel takes it, but for the pid of the process that installs it."""

    def __init__(self, program: list[Instruction]) -> None:
        self.packed = b"".join(
            struct.pack("HBBI", each.code, each.if_true, each.if_false, each.operand)
            for each in program
        )
        self.buffer = ctypes.create_string_buffer(self.packed)
        self.argument = struct.pack("H6xQ", len(program), ctypes.addressof(self.buffer))

    def fill_in(self) -> bytes:
        """What prctl() takes, for this process."""
        self.buffer.raw = self.packed.replace(PID_BYTES, os.getpid().to_bytes(4, "little"))
        return self.argument


# ── Isolation: files, limits and privileges ───────────────────────────────────────────────────────

WRITE_FILE = 2  # of Landlock's rights, of which an ABI knows the first so many
READ_FILE = 4
READ_DIR = 8
RIGHTS_BY_ABI = (0, 13, 14, 15, 15, 16)
# WRITE_FILE to MAKE_DIR, MAKE_REG, MAKE_SYM, REFER, TRUNCATE; no EXECUTE, no devices
OWN_FOLDER = sum(1 << bit for bit in (1, 2, 3, 4, 5, 7, 8, 12, 13, 14))
SYSTEM_FILES = (
    "/etc/ld.so.cache /usr/lib/locale /usr/share/zoneinfo /etc/localtime /dev/null /dev/zero"
    " /dev/random /dev/urandom /sys/devices/system/cpu/online"
)
STACK_BYTES = 128 << 20  # for deep recursion of C: comparing two values that are 50,000 levels deep
SIGKILL = 9  # plain numbers: an enum's methods cost a fresh process dear


def readable_paths() -> list[str]:
    """What Python itself needs to read after a fork: its modules, and the libraries beside those
    that are loaded. Not the whole prefix: what is readable can be a channel from one step to a
    later one, by its time of access."""
    modules = os.path.dirname(os.__file__)
    with open("/proc/self/maps") as maps:
        libraries = {line.split(None, 5)[5].strip() for line in maps if ".so" in line}
    beside: list[str] = []
    for folder in {*map(os.path.dirname, libraries)}:
        if is_within(modules, folder):  # and all else that is installed with them, as in conda's
            beside += [entry.path for entry in os.scandir(folder) if ".so" in entry.name]
        else:
            beside.append(folder)
    paths = [*sys.path, modules, *beside, *libraries, *SYSTEM_FILES.split()]
    return [path for path in paths if os.path.isabs(path)]


class Grants:
    """What a worker may read, as Landlock takes it: a path, its rights. Rules only add: so a folder
    with something hidden below it may only be listed, and its entries are granted one by one."""

    def __init__(self, hidden: list[str]) -> None:
        self.hidden = [os.path.realpath(path) for path in hidden]
        self.rights: dict[str, int] = {}

    def add(self, path: str) -> None:
        if os.path.islink(path) or not os.path.exists(path):
            return  # a link's target must be granted for its own sake
        granted = [other for other, rights in self.rights.items() if rights & READ_FILE]
        if any(is_within(path, place) for place in self.hidden + granted):
            return
        if not os.path.isdir(path):
            self.rights[path] = READ_FILE | (WRITE_FILE if path == os.devnull else 0)
        elif any(is_within(place, path) for place in self.hidden):
            self.rights[path] = READ_DIR
            for name in os.listdir(path):
                self.add(os.path.join(path, name))
        else:
            self.rights[path] = READ_DIR | READ_FILE


def is_within(path: str, folder: str) -> bool:
    return f"{path}/".startswith(f"{folder}/")


class Isolation:
    """What this machine has to lock a process down with. Made once, in the zygote, which does to
    itself what is the same for all its children; each of them does the rest in lock_down()."""

    def __init__(self, hidden: list[str]) -> None:
        import resource

        self.resource = resource
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.libc.syscall.argtypes = [ctypes.c_long] + [ctypes.c_void_p] * 4
        self.libc.prctl.argtypes = self.libc.syscall.argtypes
        self.abi = max(0, self.libc.syscall(444, 0, 0, 1, 0))
        known = RIGHTS_BY_ABI[min(self.abi, len(RIGHTS_BY_ABI) - 1)]
        self.known_rights = (1 << known) - 1
        self.handled = struct.pack(
            "QQQ", self.known_rights, 3 * (self.abi >= 4), 3 * (self.abi >= 6)
        )
        self.filters = self.build_filters()
        self.rules = self.build_rules(hidden)
        self.niceness = min(19, os.nice(0) + 5)

    def build_filters(self) -> dict[str, Filter]:
        """By role. Empty where there is no seccomp, or an interpreter with other call numbers."""
        machine = os.uname().machine
        if self.libc.prctl(21, 0, None, 0, 0) < 0 or sys.maxsize < 2**32 or machine not in MACHINES:
            return {}
        return {
            "zygote": Filter(build_base_filter(machine)),
            "worker": Filter(build_child_filter(machine)),
            "judge": Filter(build_child_filter(machine, JUDGE_CALLS)),
            "sweeper": Filter(build_child_filter(machine, SWEEPER_CALLS)),
        }

    def build_rules(self, hidden: list[str]) -> list[bytes]:
        """Landlock's rules for reading, as the system call takes them."""
        grants = Grants(hidden)
        for path in sorted({os.path.realpath(path) for path in readable_paths()}, key=len):
            grants.add(path)
        self.readable = list(grants.rights)
        return [
            self.pack_rule(rights, os.open(path, os.O_PATH | os.O_NOFOLLOW))
            for path, rights in grants.rights.items()
        ]

    def pack_rule(self, rights: int, fd: int) -> bytes:
        return struct.pack("=Qi", rights & self.known_rights, fd)

    def check(self, result: int) -> int:
        """The result of a system call. What the machine has must not fail: raises OSError."""
        if result < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return result

    def prctl(self, option: int, value: int | bytes) -> None:
        self.check(self.libc.prctl(option, value, None, 0, 0))

    def set_limits(self, limits: dict[str, int]) -> None:
        """Limits by the names of resource.RLIMIT_*, but none higher than it is already."""
        for name, value in limits.items():
            kind = getattr(self.resource, f"RLIMIT_{name}")
            _, most = self.resource.getrlimit(kind)
            value = value if most == self.resource.RLIM_INFINITY else min(value, most)
            self.resource.setrlimit(kind, (value, value))

    def install_filter(self, role: str) -> None:
        if self.filters:
            self.check(self.libc.prctl(22, 2, self.filters[role].fill_in(), 0, 0))

    def restrict_zygote(self) -> None:
        """Give up, for good, what none of the children needs."""
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")  # the first to go when memory runs out
        self.prctl(38, 1)  # NO_NEW_PRIVS: Landlock and seccomp ask for it
        # Of root's capabilities only DAC_READ_SEARCH stays: the interpreter may be another user's.
        version = struct.pack("Ii", 0x20080522, 0)
        if self.libc.capset(version, struct.pack("II16x", 4, 4)) < 0:
            self.check(self.libc.capset(version, bytes(24)))
        common = {"CORE": 0, "MEMLOCK": 0, "MSGQUEUE": 0, "SIGPENDING": 64, "STACK": STACK_BYTES}
        self.set_limits(common)
        self.install_filter("zygote")

    def lock_down(self, role: str, folder: str | None, limits: dict[str, int]) -> None:
        """Give up all but reading by the rules, writing in `folder`, and `limits`. In a fresh child
        with one thread, whose own descriptors are 0 to 4: all others are closed."""
        os.setpriority(os.PRIO_PROCESS, 0, self.niceness)
        if self.abi:
            self.restrict_files(folder)
        os.closerange(5, 4096)
        self.set_limits(limits)
        if not self.abi:
            # Its memory and files in /proc are root's alone then. With Landlock no worker reaches
            # /proc anyway, and the server can look for open files that have no name any more.
            self.prctl(4, 0)
        self.install_filter(role)

    def restrict_files(self, folder: str | None) -> None:
        """By the system calls 444 to 446: landlock_create_ruleset, _add_rule, _restrict_self."""
        ruleset = self.check(self.libc.syscall(444, self.handled, 24, 0, 0))
        rules = self.rules
        if folder:
            rules = [*rules, self.pack_rule(OWN_FOLDER, os.open(folder, os.O_PATH))]
        for rule in rules:
            self.check(self.libc.syscall(445, ruleset, 1, rule, 0))
        quiet = int(self.abi >= 7)  # log nothing
        self.check(self.libc.syscall(446, ruleset, quiet, 0, 0))

    def probe(self) -> dict[str, int]:
        """The isolation truly reached, found out by trying in a throw-away child."""
        child = os.fork()
        if child == 0:
            found = []
            try:
                self.lock_down("worker", None, {"NOFILE": 16})
                limit = self.resource.getrlimit(self.resource.RLIMIT_NOFILE)
                found = [
                    self.libc.getpgid(0) < 0,  # harmless, but refused
                    self.libc.open(b"/", os.O_RDONLY) < 0,
                    self.libc.prctl(39, 0, None, 0, 0) == 1,
                    limit == (16, 16),
                ]
            finally:
                os._exit(sum(1 << bit for bit, reached in enumerate(found) if reached))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return {
            "seccomp": bool(status & 1),
            "landlock": self.abi if status & 2 else 0,
            "no_new_privs": bool(status & 4),
            "rlimits": bool(status & 8),
        }


class Title:
    """The name that `ps` shows for this process: the kernel reads it where argv stood."""

    def __init__(self) -> None:
        with open("/proc/self/stat") as stat:
            facts = stat.read().rpartition(")")[2].split()
        start = int(facts[45])
        self.size = int(facts[46]) - start
        self.buffer = (ctypes.c_char * self.size).from_address(start)

    def set(self, role: str) -> None:
        text = f"python-env: {role}".encode()[: self.size - 2]
        # A last byte that is not NUL tells the kernel that this is no list of arguments any more.
        self.buffer.raw = text.ljust(self.size - 1, b"\0") + b"\1"


# ── Values on the line ────────────────────────────────────────────────────────────────────────────
#
# A frame is four bytes of length and that much JSON. Between judge and worker it holds a message:
#
#     [method, number, serial, table, told]
#                                        a question: call a method of the receiver's object `number`
#     ["return", serial, table, told]    the answer: the result, and containers that were changed
#     ["raise", serial, table, told]     the answer: an exception
#
# `told` is null, or a table of what was changed meanwhile (see Loan). A table is [items, rows]. A
# question's items are a dict of keyword arguments or null, and the arguments; those of an answer
# are the result, and pairs of a container that was changed and of what it holds (of the dict of
# names that tests use: those that were bound anew). An item is a value that stands for itself
# (None, bool, float, str, an int of 64 bits), or [n], the value of row n, or [-1 - n], the mutable
# container that was row n of the question. So sharing and identity survive, and neither end needs
# recursion. A row is [tag, parts, contents]:
#
#     tag              parts                              value
#     a type's name    what the type takes                one of TAKE; contents: what it holds
#     "is"             item                               the same as that item
#     "ndarray"        dtype, shape or null, bytes        an array of numpy's, or one number
#     "known"          name                               one of KNOWN
#     "error class"    module, name, built-in base        an exception class of Python's
#     "error"          a list of these three, links,      an exception of such a class
#                      attributes, args …                 (links: see links_of)
#     "class"          number, bool                       another class of the sender's; whether
#                                                         it is that of functions
#     "object"         number, class, links, content …    another object of the sender's
#     "awaits"         number                             a coroutine of the sender's
#     "own"            number                             an object of the receiver's
#     "loan"           number, item                       a container: a result, or an argument
#
# Parts refer to earlier rows only; contents, which are filled in later, to any. Parts and contents
# that are all int or all float travel as one string: an array's typecode and its bytes in base64.
# A call f([x, "a"]), where f is object 3 of the worker's and x object 5 of the judge's, of class 4:
#
#     ["__call__", 3, 17, [[null, [2]],
#         [["class", [4, false], null], ["object", [5, [0], null], null],
#          ["list", [], [[1], "a"]]]], null]

FRAME_BYTES = 16 * 2**20  # of one frame; checked before it is read
NESTING = 5_000  # of a frame's brackets, whatever recursion limit the tests have set
DEPTH = 1_000  # rows that hold one another
LOOPS = 30  # containers of one message that hold what comes after them: cyclic ones
REFERENCES = 100_000  # objects that one end knows of the other's
INT64 = 2**63
OUR_FRAMES = 20  # of the interpreter's stack, at most, for one question


clock = time.perf_counter  # because tests may put something else in its place


class TimeUp(BaseException):
    """The grading's time is over. Not an Exception, so that tests rarely swallow it."""


def read_int(digits: str) -> int:
    # Because a test may have lifted Python's own limit, and this takes quadratic time.
    if len(digits) > 20:
        raise ValueError("an int of over 64 bits outside of a row")
    return int(digits)


ENCODER = json.JSONEncoder(check_circular=False, separators=(",", ":"))
DECODER = json.JSONDecoder(parse_int=read_int)


def frame(message: object) -> bytes:
    """The bytes of a message. Raises ValueError if they are too many."""
    body = ENCODER.encode(message).encode()
    if len(body) > FRAME_BYTES:
        raise ValueError(f"too large to compare: {len(body)} bytes of at most {FRAME_BYTES}")
    return len(body).to_bytes(4, "big") + body


class Line:
    """A stream socket to another process that carries frames."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.send = sock.sendall
        self.unread = bytearray()
        self.poll = select.poll()
        self.poll.register(sock, select.POLLIN)

    def is_ready(self, patience: int | None) -> bool:
        """Whether there is something to receive, within so many milliseconds; None: for ever."""
        return bool(self.unread or self.poll.poll(patience))

    def read(self, size: int) -> bytes:
        """So many bytes, or fewer at the end."""
        while len(self.unread) < size:
            data = self.sock.recv(65_536)
            if not data:
                break
            self.unread += data
        found = bytes(self.unread[:size])
        del self.unread[:size]
        return found

    def receive(self) -> Any:
        """The next message; EOFError when the other end is gone, ValueError for what is none."""
        head = self.read(4)
        size = int.from_bytes(head, "big")
        if size > FRAME_BYTES:
            raise ValueError(f"a frame of {size} bytes announced; at most {FRAME_BYTES} are read")
        body = self.read(size)
        if len(head) < 4 or len(body) < size:
            raise EOFError("the other end is gone")

        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(min(limit, NESTING))
        try:
            return DECODER.decode(body.decode())
        finally:
            sys.setrecursionlimit(limit)


def reduce_arguments(value: Any) -> Sequence[Any]:
    """The arguments that make `value` again, as pickle and copy know them."""
    make, arguments, *_ = value.__reduce_ex__(4)
    return arguments[1:] if make.__name__ == "__newobj__" else arguments


def make_ndarray(dtype: str, shape: tuple | None, data: bytes) -> Any:
    numpy: Any = importlib.import_module("numpy")  # the sender has it; most tasks do without

    # Numbers, times and text only, because objects would be pointers of the sender's choice.
    if not re.fullmatch(r"[<>|][biufcmMSU]\d+(\[\w+\])?", dtype):
        raise ValueError("not such an array")
    array = numpy.ndarray(shape or (), dtype, bytearray(memoryview(data)))
    return array[()] if shape is None else array


def make_field(*slots: Any) -> Any:
    made: Any = dataclasses.field()
    for name, value in zip(dataclasses.Field.__slots__, slots, strict=True):
        setattr(made, name, value)
    # Because a dataclass that inherits it makes a program of its name.
    if type(made.name) is not str or not made.name.isidentifier():
        raise ValueError("no name of a field")
    return made


def make_empty(kind: type) -> Callable[[], Any]:
    return lambda: kind()


# What crosses by content, and arrives as exactly this type. TAKE tells what a value is made of, and
# MAKE what makes it of that, where the type does not. None of it runs code of the sender's choice.
TAKE: dict[type, Callable[[Any], Sequence[Any]]] = {
    int: lambda value: [format(value, "x")],
    bytes: lambda value: [value.hex()],
    tuple: list,
    frozenset: list,
    memoryview: lambda value: [bytes(value)],
    type({}.keys()): lambda value: [dict.fromkeys(value)],
    type({}.items()): lambda value: [dict(value)],
    type({}.values()): lambda value: [dict(enumerate(value))],
    types.MappingProxyType: lambda value: [dict(value)],
    fractions.Fraction: lambda value: [value.numerator, value.denominator],
    uuid.UUID: lambda value: [value.hex],
    zoneinfo.ZoneInfo: lambda value: [value.key],
    array.array: lambda value: [value.typecode, value.tobytes()],
    datetime.date: lambda value: [value.isoformat()],
    datetime.time: lambda value: [value.replace(tzinfo=None).isoformat(), value.tzinfo, value.fold],
    datetime.datetime: lambda value: [value.date(), value.timetz()],
    inspect.Parameter: lambda value: [value.name, value.kind, value.default, value.annotation],
    inspect.Signature: lambda value: [[*value.parameters.values()], value.return_annotation],
    types.TracebackType: lambda value: [],  # a with statement's, which nobody can make anew
    re.Pattern: lambda value: [value.pattern, value.flags],
    type(int | str): lambda value: value.__args__,
    dataclasses.Field: lambda value: [getattr(value, name) for name in value.__slots__],
}
MAKE: dict[type, Callable[..., Any]] = {
    int: lambda digits: int(digits, 16),
    bytes: bytes.fromhex,
    tuple: lambda *items: items,
    frozenset: lambda *items: frozenset(items),
    type({}.keys()): dict.keys,
    type({}.items()): dict.items,
    type({}.values()): dict.values,
    # Of ints only: 10**n of a text or a Decimal "1e9999999999" would be made for hours.
    fractions.Fraction: lambda *parts: fractions.Fraction(*map(operator.index, parts)),
    array.array: lambda typecode, data: array.array(typecode, memoryview(data).tobytes()),
    # Not of the bytes that pickle knows, which nobody checks.
    datetime.date: datetime.date.fromisoformat,
    datetime.time: lambda text, tzinfo, fold: datetime.time.fromisoformat(text).replace(
        tzinfo=tzinfo, fold=fold
    ),
    datetime.datetime: datetime.datetime.combine,
    re.Pattern: re.compile,
    type(int | str): lambda *kinds: functools.reduce(operator.or_, kinds),
    inspect.Parameter: lambda name, kind, default, hint: inspect.Parameter(
        name, kind, default=default, annotation=hint
    ),
    inspect.Signature: lambda parameters, hint: inspect.Signature(
        parameters, return_annotation=hint
    ),
    types.TracebackType: lambda: None,
    # Of a copy, and of dicts only: another object could hold one thing first and another later.
    types.MappingProxyType: lambda mapping: types.MappingProxyType(dict.copy(mapping)),
    dataclasses.Field: make_field,
    # Empty, because what would fill it may have no end.
    collections.deque: lambda items=(), maxlen=None: collections.deque((), maxlen),
}
REDUCED: set[type] = {complex, range, slice, types.GenericAlias, decimal.Decimal}
REDUCED |= {datetime.timedelta, datetime.timezone, pathlib.PosixPath, pathlib.PurePosixPath}
REDUCED |= {collections.defaultdict, collections.deque}
TAKE |= dict.fromkeys(REDUCED, reduce_arguments)

# These are made empty and filled afterwards; what was changed in one of them travels back.
MUTABLE: set[type] = {list, set, dict, bytearray, types.SimpleNamespace}
MUTABLE |= {collections.OrderedDict, collections.Counter}
TAKE |= dict.fromkeys(MUTABLE, lambda value: ())
# And of nothing: a list of a range would be made until the memory is full.
MAKE |= {kind: make_empty(kind) for kind in MUTABLE}
MUTABLE |= {collections.defaultdict, collections.deque}
ATOMS = {type(None), bool, float, str}
PLAIN = ATOMS | {int, bytes}
TYPECODES = {int: "iq", float: "d"}  # of arrays: the first that all of the numbers fit

# Both ends know these by name. No function is among them, nor `type`, nor a class that opens files
# or runs programs, because a test's callback may call what the graded code hands it.
KNOWN: dict[str, Any] = {
    **{
        kind.__name__: kind
        for kind in (*TAKE, *ATOMS, object, pathlib.Path, inspect.Parameter.empty)
    },
    **{name: vars(dataclasses)[name] for name in ("MISSING", "_FIELD", "_FIELD_CLASSVAR")},
    **{repr(constant): constant for constant in (..., NotImplemented)},
    **{kind.name: kind for kind in vars(inspect)["_ParameterKind"]},
}
NAMES = {id(value): name for name, value in KNOWN.items()}
TYPES = {kind.__name__: kind for kind in vars(types).values() if isinstance(kind, type)}
# Those whose exceptions skip a test are not among them.
STANDARD = (sys.stdlib_module_names | {"numpy"}) - {"unittest", "doctest"}


def words(text: str) -> set[str]:
    return set(text.split())


# The modules whose assertions say what the tests expect.
FAILING = ("unittest.", "numpy.testing", "pandas.", "polars.", "torch.")
# What tells a mock what to say.
MOCKING = words("attach_mock configure_mock mock_add_spec reset_mock return_value side_effect")


def is_error(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseException)


def find_class(module: str, name: str) -> Any:
    """The class of that name in a module of Python's (or numpy) that is imported here, or None."""
    if module not in sys.modules:
        return None
    found = vars(sys.modules[module]).get(name, TYPES.get(name))
    is_own = isinstance(found, type) and found.__module__.partition(".")[0] in STANDARD
    return found if is_own else None


def is_standard(kind: type) -> bool:
    return find_class(kind.__module__, kind.__name__) is kind


def builtin_base(kind: type) -> str:
    """The name of the first of its bases that is built in."""
    bases = (base.__name__ for base in kind.__mro__ if vars(builtins).get(base.__name__) is base)
    return next(bases)


def name_error(kind: type) -> list[str]:
    """What find_error() takes, the last being the built-in base; nothing for what is no standard
    class of exceptions."""
    if not (is_error(kind) and is_standard(kind)):
        return []
    return [kind.__module__, kind.__name__, builtin_base(kind)]


def find_error(module: str, name: str, base: str) -> Any:
    if not type(module) is type(name) is type(base) is str:
        raise ValueError("the name of an exception is no plain text")
    # Of one that is not imported here it is known what it inherits from.
    found = find_class(module, name) or type(name, (vars(builtins)[base],), {"__module__": module})
    if not is_error(found):
        raise ValueError("no class of exceptions")
    return found


def origin(error: BaseException) -> types.TracebackType | None:
    """Where it was raised."""
    last = error.__traceback__
    while last and last.tb_next:
        last = last.tb_next
    return last


def is_failure(error: Any) -> bool:
    """Whether an assertion of a library failed; not an AssertionError that the tests or the graded
    code raise, nor one that a mock was told to raise."""
    last = origin(error) if isinstance(error, AssertionError) else None
    if last is None:
        return False
    module = str(last.tb_frame.f_globals.get("__name__"))
    is_told = last.tb_frame.f_code.co_name == "_execute_mock_call"
    return module.startswith(FAILING) and not is_told


def links_of(error: Any, with_context: bool) -> tuple:
    """The cause of an exception, its context, if that is nobody's secret, and whether only the
    cause is shown."""
    return error.__cause__, error.__context__ if with_context else None, error.__suppress_context__


def link(error: Any, links: tuple) -> None:
    error.__cause__, error.__context__, error.__suppress_context__ = links


def make_error(names: list[str], links: Any, attributes: dict, *args: Any) -> BaseException:
    error = find_error(*names)(*args)
    check_place(error)
    link(error, links)
    vars(error).update({name: attributes[name] for name in attributes if is_public(name)})
    return error


START = vars(UnicodeDecodeError)["start"]  # not what a class of the code's has by this name


def check_place(error: BaseException) -> None:
    """str() of a UnicodeDecodeError reads the memory where this says, even outside of its bytes."""
    if isinstance(error, UnicodeDecodeError) and START.__get__(error) < 0:
        raise ValueError("a place outside of the bytes")


def is_public(name: Any) -> bool:
    """Whether an object that crosses by content may have this attribute: Python and numpy trust
    many of the special ones, as __array_interface__, which is a place in the memory."""
    return type(name) is str and (name[:2] != "__" or name == "__notes__")


MAKERS: dict[str, Callable[..., Any]] = {
    **{kind.__name__: MAKE.get(kind, kind) for kind in TAKE},
    "is": lambda value: value,
    "known": KNOWN.__getitem__,
    "ndarray": make_ndarray,
    "error": make_error,
    "error class": find_error,
}


def is_array(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and type(value) is numpy.ndarray


def is_mutable(value: Any) -> bool:
    """Whether a call may change it, so that it travels back."""
    return type(value) in MUTABLE or is_array(value)


def read_contents(value: Any) -> list:
    """All that a mutable value holds, in one list that can be compared."""
    if type(value) is list:  # as most are
        return value.copy()
    if is_array(value):
        return [value.tobytes()]
    if isinstance(value, types.SimpleNamespace):
        value = vars(value)
    if isinstance(value, dict):
        return [*itertools.chain.from_iterable(dict.items(value))]
    return [*container_of(type(value)).__iter__(value)]


def container_of(kind: type) -> Any:
    """The container that a class inherits from, or is; None if there is none."""
    return next((base for base in kind.__mro__ if base in MUTABLE), None)


def copy_contents(value: Any) -> Any:
    """What an object of such a class holds, in that container."""
    container = MAKERS[container_of(type(value)).__name__]()
    refill(container, read_contents(value))
    return container


def has_changed(value: Any, contents: list) -> bool:
    now = read_contents(value)
    if is_array(value):
        return now != contents
    # Not by the `==` of what it holds, which may be anybody's code.
    return len(now) != len(contents) or not all(map(operator.is_, now, contents))


def refill(value: Any, items: list) -> None:
    """Give a mutable value other contents."""
    if is_array(value):
        value.flat = make_ndarray(value.dtype.str, value.shape, *items).flat
        return
    if type(value) is types.SimpleNamespace:
        value = vars(value)
        if not all(map(is_public, items[::2])):
            raise ValueError("a namespace with special attributes")
    value.clear()
    if isinstance(value, dict):
        value.update(dict(pair_up(items)))
    elif isinstance(value, set):
        value.update(items)
    else:
        value.extend(items)


def pair_up(items: Any) -> Iterator[tuple[Any, Any]]:
    """The pairs in a list that holds one after another."""
    return zip(items[::2], items[1::2], strict=True)


def pack(items: Sequence[Any]) -> str | Sequence[Any]:
    """Items for a row: in one string if they are numbers of one type, and in a tuple if all stand
    for themselves."""
    kinds = [*map(type, items)]
    if len({*kinds}) == 1:
        for typecode in TYPECODES.get(kinds[0], ""):
            with contextlib.suppress(struct.error):
                data = struct.pack(f"{len(items)}{typecode}", *items)
                return typecode + binascii.b2a_base64(data, newline=False).decode()
    return tuple(items) if ATOMS.issuperset(kinds) else [*items]


class Loan(NamedTuple):
    """A container that the candidate's code returned, or an argument of the tests'. The judge tells
    the worker what the tests change in theirs, so that obj.items.append(1) is what it seems. The
    worker tells it only of arguments that an object keeps, as in Log(sink).add(1). Of a result, or
    of what was to be changed in its place, the code could wait with its answer until it knows
    more."""

    number: int  # the id of the container; below zero that of an argument, or of a global
    value: Any


class Watched(NamedTuple):
    """Such a container, at either end."""

    value: Any
    before: list[tuple[Any, list]]  # all in it that may change, as the other end knows it
    is_attribute: bool
    is_kept: bool  # by what came of a call to which it was given


LOANS = 16  # containers that are watched; by the judge a quarter of those that nobody keeps
MOST_WATCHED = 2_000  # items of one


def is_alike(one: Any, other: Any) -> bool:
    """Whether two containers of one type hold the same, without the `==` of objects."""
    its, others = read_contents(one), read_contents(other)
    pairs = zip(its, others, strict=False)
    is_same = all(a is b or type(a) is type(b) in PLAIN and a == b for a, b in pairs)
    return is_same and len(its) == len(others)


def renew(had: Watched | None, value: Any) -> Any:
    """The container that was there before, with what `value` holds, as others may hold it."""
    if not had or type(had.value) is not type(value) or is_array(value):
        return value
    if not is_alike(had.value, value):  # else there may be a loop over it
        refill(had.value, read_contents(value))
    return had.value


def look_into(value: Any) -> list[tuple[Any, list]]:
    """A container and those in it, each with its contents."""
    contents = read_contents(value)
    within = [each for each in contents if type(each) in MUTABLE]
    return [(value, contents), *((each, read_contents(each)) for each in within[:64])]


class Row(NamedTuple):
    """One value of a table, taken apart."""

    tag: str
    parts: str | Sequence[Any]
    contents: str | Sequence[Any] | None = None


def needs_row(value: Any) -> bool:
    kind = type(value)
    return kind not in ATOMS and not (kind is int and -INT64 <= value < INT64)


def write_table(
    items: list, take_apart: Callable[[Any], Row], known: Sequence[Any] = ()
) -> tuple[list, list]:
    """The table of a message, and the values of its rows.

    `take_apart` makes the row of a value. `known`: the values of the rows of the question.
    """
    places = {id(value): -1 - place for place, value in enumerate(known) if is_mutable(value)}
    rows: dict[int, Row] = {}  # by id of the value, which the rows keep alive
    values: list = []

    def find_new(items: Any) -> list:
        wanting = filter(needs_row, items) if type(items) is list else ()
        return [item for item in wanting if id(item) not in rows and id(item) not in places]

    def refer(items: Any) -> Any:
        if type(items) is not list:
            return items
        return [[places[id(item)]] if needs_row(item) else item for item in items]

    pending = find_new(items)
    while pending:
        value = pending[-1]
        if id(value) not in rows:
            row = rows[id(value)] = take_apart(value)
            pending += find_new(row.contents) + find_new(row.parts)
            continue
        # Now that all it is made of has a place.
        pending.pop()
        if id(value) not in places:
            places[id(value)] = len(values)
            values.append(value)
    ordered = (rows[id(value)] for value in values)
    table = [[row.tag, refer(row.parts), refer(row.contents)] for row in ordered]
    return [refer(items), table], values


# Which part of such a row is a class that only tells the type of something.
KIND_PLACES = {"object": 1, "Field": 1, "Parameter": 3, "Signature": 1}


def read_table(
    table: Any, build: Callable[[str, list], Any], known: Sequence[Any] = ()
) -> tuple[list, list, dict[int, int]]:
    """The items of a message's table, the values of its rows, and how often each of these stands
    somewhere, by its id; a class in one of the KIND_PLACES does not count.

    `build` makes a value of a tag and its parts. What comes may be anything, and be refused with
    any exception. Depth is limited, because C code overflows its stack when it hashes or frees what
    is too deep.
    """
    uses: dict[int, int] = collections.defaultdict(int)
    values: list = []
    depths: list[int] = []
    depth = 0  # of the row that is being read

    def get(place: int) -> Any:
        nonlocal depth
        if place < 0:
            value = known[-1 - place]
            # Containers only, because a mirror must not come back unnoticed by the guard.
            if not is_mutable(value):
                raise ValueError("no container of the question")
        else:
            value = values[place]
            depth = max(depth, depths[place] + 1)
        uses[id(value)] += 1
        return value

    def unpack(items: Any) -> list:
        if isinstance(items, str):
            return array.array(items[0], binascii.a2b_base64(items[1:])).tolist()
        return [get(*item) if type(item) is list else item for item in items]

    items, rows = table
    cyclic = []
    for tag, parts, contents in rows:
        depth = 1
        made_of = unpack(parts)
        if tag in KIND_PLACES:
            uses[id(made_of[KIND_PLACES[tag]])] -= 1
        value = build(tag, made_of)
        values.append(value)
        if contents is not None and type(value) in MUTABLE:
            try:
                refill(value, unpack(contents))
            except IndexError:  # it holds what is not there yet
                cyclic.append((value, contents))
        if depth > DEPTH or len(cyclic) > LOOPS:
            raise ValueError("too deep or too cyclic")
        depths.append(depth)
    for value, contents in cyclic:
        refill(value, unpack(contents))
    return unpack(items), values, uses


# ── Mirrors ───────────────────────────────────────────────────────────────────────────────────────
#
# Whatever cannot cross by content stays where it is, and the other end gets a mirror of it: an
# object of a class made for the purpose, whose methods and attributes ask this end. Each class is
# mirrored once, with its name, its bases and just the special methods that it has, so that
# Python itself decides what isinstance(), len(), `except` or `+=` mean.


def dunders(names: str, *prefixes: str) -> set[str]:
    return {f"__{prefix}{name}__" for name in names.split() for prefix in prefixes or ("",)}


BINARY = "add sub mul matmul truediv floordiv mod divmod pow lshift rshift and xor or"
ARITHMETIC = dunders(BINARY, "", "r", "i")
UNARY = dunders("neg pos abs invert round enter iter")  # which take no operand
REFLECTED = dunders(BINARY, "r")
IN_PLACE = dunders(BINARY, "i")
GUARDED = ARITHMETIC | dunders("eq ne lt le gt ge contains")
# The methods of containers that tell, or give, what an operator would.
COMPARING = words(
    "count index isdisjoint issubset issuperset difference intersection symmetric_difference union"
)
# And what they hold, item by item.
READING = dunders("getitem len iter reversed") | words("get items keys values")
# What isinstance() and issubclass() ask a metaclass, as that of a Protocol or an ABC.
CHECKS = dunders("instancecheck subclasscheck")
SHOWING = GUARDED | CHECKS
NUMBERS = (int, float, complex)
# What numbers tell of themselves. One of a class that nobody asked for tells what it holds.
CONVERSIONS = dunders("abs float int complex index trunc floor ceil round bool")
# The special methods that mirrors have. Others would be shown the tests' operands past the guard,
# as numpy does with __array_ufunc__, or be believed, as it does with __array_interface__.
SPECIAL = GUARDED.union(
    UNARY,
    CHECKS,
    dunders("init call getitem setitem delitem len iter next reversed hash bool repr str format"),
    dunders("bytes int float complex index trunc floor ceil exit get fspath await aiter anext"),
    dunders("aenter aexit"),
)
# The special attributes of the tests' objects that the graded code may read, and the reverse.
SHOWN = dunders(
    "name qualname doc module signature wrapped annotations dataclass_fields dataclass_params code"
)
READABLE = SHOWN | dunders(
    "dict defaults kwdefaults func self match_args members slots notes class_getitem origin args"
    " parameters abstractmethods isabstractmethod required_keys optional_keys total mro_entries new"
)
# Attributes of these would tell the tests' secrets: functions, frames, generators, modules …
INNER = {*TYPES.values(), functools.partial, property}
RESUMING = {"__next__", "send", "throw", "close"}
# How an object's attributes are changed, and the method of a descriptor that looks after one.
SETTING = {"__setattr__": "__set__", "__delattr__": "__delete__"}
INHERITED = {"__new__", "__init_subclass__", "__post_init__"}
OWN = ("__dict__", "__annotations__")
# What graded code may ask for besides attributes ("@get") and methods; see Peer.permits().
PERMITTED = {"@describe", "@copy", "@deepcopy", "@await", "@new"}
# The modules whose classes a mirror may claim for isinstance(), but for those that do harm when the
# tests call what `__class__` gives.
CLAIMED = {"_io", "abc", "builtins", "collections.abc", "numbers", "re", "types"} | words(
    "argparse collections contextlib enum functools io itertools logging queue string threading"
)
RISKY = {io.FileIO, types.CodeType}
HEAP_TYPE = 1 << 9  # of a class's flags: it was made at run time, and can be changed,
IMMUTABLE_TYPE = 1 << 8  # unless it has this flag as well
CHANGEABLE = HEAP_TYPE | IMMUTABLE_TYPE
ABCMeta: Any = type(Awaitable)
# Mirrors of objects of subclasses of these hold the content.
CONTENT: tuple[Any, ...] = (int, float, complex, str, bytes, tuple)
HOLDERS = (type, BaseException, *CONTENT)


@functools.lru_cache(maxsize=200)
def methods_of(kind: Any) -> set[str]:
    """The names of the methods that a mirror of this class has."""
    found: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        # What the others define, mirrors have themselves.
        if base not in (object, type, *CONTENT) and not name_error(base):
            found |= vars(base)
    public = types.FunctionType, types.MethodDescriptorType, Method
    special = {
        name
        for name in SPECIAL & found.keys()
        if callable(found[name]) or type(found[name]).__module__ == "unittest.mock"
    }
    if issubclass(kind, (list, bytearray)):
        special |= {"__radd__", "__bytes__"}  # lest Python take what is in the mirror itself
    return special | {
        name for name, value in found.items() if name[0] != "_" and isinstance(value, public)
    }


get_names = vars(type)["__dict__"].__get__  # not vars(), which would ask the other end


def names_of(kind: Any) -> set[str]:
    """What a class that is not Python's own has besides these methods, for those who inherit it."""
    names = set() if is_standard(kind) else {*get_names(kind)} - methods_of(kind)
    return {*filter(is_heritable, names)}


def is_heritable(name: str) -> bool:
    """Special methods are not: an object of the tests' would show them its operands unguarded."""
    return name in INHERITED or not re.fullmatch("__.*__", name)


def describe(kind: Any) -> tuple:
    """What the other end needs to mirror a class: see Peer.build_class."""
    # None stands for `type`, which does not cross.
    meta, *bases = (None if item is type else item for item in (type(kind), *kind.__bases__))
    if is_standard(kind) and not issubclass(kind, HOLDERS):
        bases = []
    doc = kind.__doc__ if type(kind.__doc__) is str else None
    return kind.__name__, kind.__module__, doc, meta, bases, methods_of(kind), names_of(kind)


def find_inherited(kind: type, name: str) -> Any:
    """What a class has by this name, as it stands there."""
    found = (get_names(each)[name] for each in kind.__mro__ if name in get_names(each))
    return next(found, None)


def is_inherited(target: Any, name: str) -> bool:
    """Whether this is neither the object's own nor its class's, but the other end's."""
    kind = class_of(target)
    is_theirs = isinstance(find_inherited(kind, name), Inherited)
    return is_theirs and (target is kind or name not in get_dict(target, None))


def set_inherited(kind: type, method: str, item: Any, name: str, *value: Any) -> bool:
    """Set or delete what a property of the class, or another descriptor, looks after; whether one
    does. A slot does not, since what it holds stands in the item itself."""
    found = find_inherited(kind, name)
    change = getattr(type(found), SETTING[method], None)
    if change is None or inspect.ismemberdescriptor(found):
        return False
    change(found, item, *value)
    return True


def names_held(bases: list) -> set[str]:
    """Of what objects with these bases hold: its methods a mirror keeps, lest it lie about that."""
    kinds = (each for base in bases if issubclass(base, HOLDERS) for each in base.__mro__)
    return {name for kind in kinds if not kind.__flags__ & HEAP_TYPE for name in dir(kind)}


class Method:
    """A method in a mirrored class; seen through the class it is the function, as `find` gives it,
    with its signature and its text."""

    def __init__(self, call: Callable[..., Any], find: Callable[[Any], Any]) -> None:
        self.call = call
        self.find = find

    def __get__(self, item: Any, kind: Any) -> Any:
        return self.find(kind) if item is None else types.MethodType(self.call, item)


class Inherited:
    """What a mirrored class has besides methods, in the mirror: super() finds it nowhere else."""

    def __init__(self, find: Callable[[Any, Any], Any]) -> None:
        self.find = find

    def __get__(self, item: Any, kind: Any) -> Any:
        return self.find(item, kind)


def check_class(texts: Sequence[Any], bases: Sequence[type], methods: Any, names: Any) -> None:
    """Raises ValueError where what the other end says of a class is a trap."""
    # Exactly, because a text of the other end's own class could be one name first, another later.
    is_set = type(methods) is type(names) is set
    if not is_set or {*map(type, [*texts, *methods, *names])} != {str}:
        raise ValueError("the names of a class are no plain texts")
    if not all(map(is_heritable, names)):
        raise ValueError("a special method that is shown operands past the guard")
    inherited = [get_names(each) for base in bases for each in base.__mro__]
    is_called = any("__call__" in names for names in (methods, *inherited))
    if is_called and any(issubclass(base, str) for base in bases):
        raise ValueError("a text that can be called: what expects a function would run it")


@functools.cache
def event_loop() -> Any:
    import asyncio  # which few tasks need

    return asyncio.new_event_loop()


def is_coroutine(value: Any) -> bool:
    """Or another awaitable of Python's own, as an asynchronous generator's."""
    return isinstance(value, Awaitable) and type(value).__module__ == "builtins"


Place = tuple[Any, str]  # a module, or class, and the name of what stands there


def find_place(place: str) -> Place:
    """Of "module.name" or "module.Class.name"; the module is imported."""
    owner, _, name = place.rpartition(".")
    return pkgutil.resolve_name(owner), name


# What tests replace in their own process, so that the code prints to them or reads from them (the
# last two, as catch_warnings() does). What they mention in a patch() comes to that.
REPLACEABLE = {
    place: find_place(place)
    for place in words(
        "sys.stdin sys.stdout sys.stderr builtins.print builtins.input time.sleep time.time"
        " time.time_ns time.monotonic time.perf_counter time.process_time random.random"
        " random.randint random.choice warnings.filters warnings._showwarnmsg_impl"
    )
}
REPLACED: dict[str, Any] = {}  # what stood there, in the worker


def replace(_: Any, replaced: dict[str, Any]) -> None:
    """Do here what the tests did there."""
    for place in {*REPLACED, *replaced}:
        owner, name = find_place(place)
        REPLACED.setdefault(place, getattr(owner, name, dataclasses.MISSING))
        value = replaced[place] if place in replaced else REPLACED.pop(place)
        if value is dataclasses.MISSING:
            delattr(owner, name)
        else:
            setattr(owner, name, value)
    getattr(warnings, "_filters_mutated", int)()  # who was warned before may be warned again


OPERATIONS: dict[str, Callable[..., Any]] = {
    "@get": lambda target, name: (
        inspect.signature(target) if name == "__signature__" else getattr(target, name)
    ),
    "@names": lambda space, names: {name: space[name] for name in names if name in space},
    "@content": copy_contents,
    "@copy": copy.copy,
    "@deepcopy": copy.deepcopy,
    "@describe": describe,
    "@replace": replace,
    "@inherited": find_inherited,
    "@set": set_inherited,
    "@new": object.__new__,
    "@pickle": lambda target, protocol: importlib.import_module("pickle").dumps(target, protocol),
    "@unpickle": lambda _, data: importlib.import_module("pickle").loads(data),
}


# What puts something that equals nothing into a mirror itself. C code that looks there, as json's,
# set() and the `==` of an OrderedDict, would take it for empty.
FILLERS: dict[type, Callable[..., Any]] = {
    list: list.append,
    set: set.add,
    dict: dict.setdefault,
    collections.deque: collections.deque.append,
}
# What Python does with a container whose class does not say otherwise.
PLAIN_WAYS: dict[str, Callable[..., Any]] = {
    "__iter__": lambda container, target: [*container.__iter__(target)],  # see Peer.request()
    "__radd__": lambda container, target, other: other + target,
    "__bytes__": lambda container, target: bytes(target),
}


def call_method(method: str, target: Any, args: list, kwargs: dict) -> Any:
    if method in OPERATIONS:
        return OPERATIONS[method](target, *args)
    container = container_of(type(target)) if method in PLAIN_WAYS else None
    if container and getattr(type(target), method, None) is getattr(container, method, None):
        return PLAIN_WAYS[method](container, target, *args)
    if method == "__iter__":
        return iter(target)  # which raises where the class's own gives no iterator
    if method == "__call__":
        return target(*args, **kwargs)  # because not each class has it that can be called
    if method.startswith("__") and not is_mock(target):  # whose special methods are its own
        return getattr(type(target), method)(target, *args, **kwargs)
    return getattr(target, method)(*args, **kwargs)


def is_mock(target: Any) -> bool:
    """Whether it is one of unittest's mocks, or a class of them."""
    return class_of(target).__module__ == "unittest.mock"


def class_of(target: Any) -> Any:
    """The class itself, or that of an object."""
    return target if isinstance(target, type) else type(target)


def is_of_tests(target: Any) -> bool:
    """Whether it is a class that the tests define, or an object of one."""
    return class_of(target).__module__ == "__main__"


# The kinds that these special attributes have in Python. Of any other kind is a trap: mock, typing
# and dataclasses run, or believe, what it says when they ask a second time.
EXACTLY: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(dunders("name qualname module doc"), (str, type(None))),
    **dict.fromkeys(dunders("annotations dataclass_fields"), (dict,)),
    "__dict__": (dict, types.MappingProxyType),
    "__args__": (tuple,),
    "__signature__": (inspect.Signature,),
}
# An annotation as text: without calls, and with an index of what stands for Python's own alone, or
# the metaclass of the code's would be shown what the tests have by that name.
INDEXED = (
    "list|dict|set|tuple|frozenset|type|List|Dict|Set|Tuple|Type|Optional|Union|Callable|Iterable"
    "|Iterator|Sequence|Mapping|Literal|ClassVar"
)
HINT = re.compile(
    rf"""(?:
        (?<![\w.]) (?:typing\.)? (?:{INDEXED}) \[  # an index
        | (?<=\[)\[ | (?<=,[ ])\[                  # a list, as in Callable[[int], str]
        | [\w.,\ \]|] | ['"](?![ ]*['"])            # no two texts that come to one
    )*""",
    re.VERBOSE,
)
NO_TEXT = re.compile("(?!)")


def check_special(name: str, value: Any) -> Any:
    """A special attribute of the code's, in the judge. No text that Python's own modules would run
    as a program there, as mock does with a name, and typing with an annotation."""
    if type(value) not in EXACTLY.get(name, (type(value),)):
        raise AttributeError(f"{name} is of another kind than Python's own")
    if name == "__dataclass_fields__" and {*map(type, value.values())} - {dataclasses.Field}:
        raise AttributeError(f"{name} holds what is no field")
    if name == "__dict__" and type(value.get("__annotations__", {})) is not dict:
        # As of `type`, whose own is a descriptor.
        value = type(value)({key: value[key] for key in value if key != "__annotations__"})
    hints = value.get("__annotations__", {}) if name == "__dict__" else value
    if name in OWN:
        check_hints(hints.values(), HINT)
    if name == "__args__":  # typing hands the code what it makes of a text within one of these
        check_hints([each for each in value if type(each) is not str], NO_TEXT)
    return value


def check_hints(hints: Collection[Any], text: re.Pattern) -> None:
    for hint in hints:
        if isinstance(hint, str) and not (type(hint) is str and text.fullmatch(hint)):
            raise AttributeError("an annotation that calls something")
        if type(hint) in (types.GenericAlias, types.UnionType, list, tuple):
            check_hints(getattr(hint, "__args__", hint), text)


def is_local(name: str, mirror: Any, args: list) -> bool:
    """Whether the mirror carries out this method itself: of an exception what Python sets, and what
    makes a class whose methods call super()."""
    if name in SETTING and is_error(type(mirror)):
        own = vars(builtins)[builtin_base(type(mirror))]
        return args[0].startswith("_") or hasattr(own, args[0])
    return name == "__call__" and any(
        type(each) is dict and "__classcell__" in each for each in args
    )


# The attributes of an object, whatever its class says of __dict__.
get_dict = ctypes.pythonapi.PyObject_GenericGetDict
get_dict.restype = ctypes.py_object
get_dict.argtypes = (ctypes.py_object, ctypes.c_void_p)


def hide_defaults(signature: inspect.Signature) -> inspect.Signature:
    """That there is one is no secret, and bind() needs it."""
    hidden = [
        each if each.default is each.empty else each.replace(default=...)
        for each in signature.parameters.values()
    ]
    return signature.replace(parameters=hidden)


def show_arguments(code: types.CodeType) -> types.SimpleNamespace:
    """What a decorator or a curry asks for, and iscoroutinefunction(); not the constants."""
    count = code.co_argcount
    names = code.co_varnames[:count]
    return types.SimpleNamespace(co_argcount=count, co_varnames=names, co_flags=code.co_flags)


# Of a class those that an ABC looks for, as Iterable does.
IN_DICT = {"__annotations__"} | SPECIAL - dunders("init")
# What the graded code sees of the tests' special attributes, where it does not see all.
CENSORS: dict[str, Callable[[Any], Any]] = {
    "__dict__": lambda value: {
        name: value[name] for name in value if name[0] != "_" or name in IN_DICT
    },
    "__signature__": hide_defaults,
    "__code__": show_arguments,
}


def is_forbidden(target: Any, name: str) -> bool:
    """Whether this is how one tells a mock, a class of them, or a test case to agree; or a text's
    own format(), which reads the attributes of what it is given."""
    is_telling = name in MOCKING or name.startswith("assert")
    is_reading = "format" in name and isinstance(target, str)
    return is_telling and is_mock(target) or is_reading or name == "addTypeEqualityFunc"


def permits_special(method: str, target: Any, name: str) -> bool:
    """Whether graded code may read, set or call this special attribute of an object."""
    if method == "@get":
        # Of an object's own attributes the public ones alone; perform() sees to that.
        return name in SHOWN or (name == "__dict__" and is_of_tests(target))
    # No map() or filter(), which call what they are given.
    is_iterator = any(target is each for each in (enumerate, reversed, zip))
    # Of another class, as FileIO or MagicMock, an object could write anywhere, or agree to all.
    makes = name == "__init__" or name == "__call__" and isinstance(target, type)
    # Of a metaclass, as type(type(self)), one would be a class whose methods nothing guards.
    if makes and (not is_of_tests(target) or issubclass(class_of(target), type)):
        return is_iterator and name == "__call__"
    kind: Any = type(target)
    return name in methods_of(kind) | {"__call__"}


OUR_FILE = dunders.__code__.co_filename
GETTING = ("LOAD_ATTR", "LOAD_METHOD")


@functools.lru_cache(maxsize=200)
def methods_called(code: types.CodeType) -> set[str]:
    """The names of the methods that it calls, but for those that it hands on, as to map()."""
    loads = [each for each in dis.get_instructions(code) if each.opname in GETTING]
    handed_on = {
        each.argval
        for each in loads
        # The latter as of Python 3.12.
        if each.opname == "LOAD_ATTR" and "NULL|self" not in each.argrepr
    }
    return {each.argval for each in loads} - handed_on


def is_passed_over(method: str) -> bool:
    """Whether the tests neither keep nor compare what they have called for at this moment: they
    drop it, as in `bag.add(1)`, take an attribute of it, or ask with `is` which object it is. Not
    what they have C code call, as list() or extend(), which keeps it."""
    frame: Any = sys._getframe(1)
    while frame.f_code.co_filename == OUR_FILE:
        frame = frame.f_back
    code = frame.f_code
    if code.co_filename not in ("<tests>", "<helpers>"):
        return False
    # One byte of two is an operation. Zeros are caches; of a call of Python's code, 3.12 has passed
    # over them at this moment.
    done = code.co_code[: frame.f_lasti + 2 : 2].rstrip(b"\0")
    ahead = code.co_code[frame.f_lasti + 2 :: 2].replace(b"\0", b"")
    names = [dis.opname[each] for each in done[-1:] + ahead[:2]]
    now, step, then = [*names, ""][:3]  # a `return` may be the last
    is_identity = step == "IS_OP" or step.count("LOAD_") == 1 and then == "IS_OP"
    is_dropped = is_identity or step in ("POP_TOP", *GETTING)
    return is_dropped and (now in GETTING or method in methods_called(code))


class Peer:
    """One end of the line between judge and worker, who may use each other's objects.

    trusted  this end is the judge
    broken   why there is no use in asking any more, or ""
    line_s   seconds spent on writing and reading messages, which are not the candidate's
    """

    def __init__(self, line: Line, trusted: bool) -> None:
        self.line = line
        self.trusted = trusted
        self.broken = ""
        self.line_s = 0.0
        self.asking = threading.RLock()  # held until the reply is there: tests may use threads
        self.sending = threading.Lock()
        self.is_idle = False  # serve() waits for a question
        self.handed_on: list = []  # one that another thread has read
        self.serials = itertools.count()
        self.replies: dict[int, Any] = {}  # to our questions; None: not there yet
        self.ours: dict[int, Any] = {}  # objects that the other end knows, by number: 0, or the id
        self.theirs: dict[int, Any] = {}  # number -> the mirror of it: one each, so that `is` works
        self.held: dict[int, int] = {}  # id of such a mirror -> number
        self.open: set[int] = set()  # numbers of mirrors that the guard shows the tests' operands
        self.fresh: set[int] = set()  # numbers of mirrors that arrived only once
        self.closing: set[int] = set()  # of those that were open until the latest answer was read
        self.set_by_code: set[tuple[int, str]] = set()  # attributes of ours: (id, name)
        self.returned: set[int] = set()  # ids of objects of ours that the other end gave back
        self.has_called_back = False  # one of these can be called, or is a property
        self.foreign: set[Any] = set()  # code of its texts, and where pickles of its are read
        self.classes: set[str] = set()  # the names that the task asks for as classes
        self.has_failed = False  # an assertion of a library's, where the graded code could hide it
        self.space: dict[str, Any] = {}  # the tests' names, in the judge
        self.shown: dict[str, Any] = {}  # those of the code's among them, as they were given
        self.common: list = []  # the dict of the code's names that tests use, and its values
        self.watched: dict[int, Watched] = {}
        self.contents: dict[int, Any] = {}  # of mirrored containers, until the code may change them
        self.loan_numbers = itertools.count(REFERENCES)  # of arguments, above those of globals
        self.lent: list[Loan] = []  # the arguments of a question, in the worker
        self.borrowed: list[tuple] = []  # containers of the tests' objects, in the worker
        self.places: dict[str, Place] = {}  # which the tests may replace, in the judge
        self.unreplaced: list = []  # what stood there
        self.replaced: list = []  # what the other end was told of
        self.tasks: dict[int, Any] = {}  # id of a coroutine of ours -> the task that runs it
        self.get = self.forward("@get")
        self.root: Any = type("type", (type,), self.namespace({"__call__"}))
        self.is_building = False  # a mirror of a class

    @functools.cached_property
    def abstract(self) -> Any:
        """The metaclass of mirrors that inherit from an ABC."""
        return type("type", (self.root, ABCMeta), {name: vars(type)[name] for name in CHECKS})

    @functools.cached_property
    def ends(self) -> tuple[type, type]:
        """The bases that a mirror has before and behind the classes of the code's from which it
        inherits: the first keeps their __init_subclass__ from hearing of it once more, and the last
        has the __new__ that theirs call."""
        first = type("object", (), {"__init_subclass__": lambda _: None})
        bare = {"__new__": lambda kind, *_, **__: self.request("@new", self.held[id(kind)])}
        return first, type("object", (), bare)

    # Asking and answering

    def request(self, method: str, number: int, /, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the other end's object; meanwhile it may call ours.

        Raises what the method raises; ValueError if a value is too large to cross, ReferenceError
        if none came that can be read, and ConnectionError once the line is broken.
        """
        if self.broken:
            raise ConnectionError(self.broken)
        self.tell_replaced()
        self.give_back()
        with self.asking:  # to the end, because what is shared is read and told here
            started = clock()
            serial = next(self.serials)
            if self.trusted:
                args = tuple(map(self.lend, args))
                kwargs = {name: self.lend(value) for name, value in kwargs.items()}
            table, known = write_table([kwargs or None, *args], self.take_apart)
            known = [it.value if type(it) is Loan else it for it in known] + self.common
            question = frame([method, number, serial, table, self.tell_changes()])
            asked = clock()
            outcome, table, told = self.exchange(serial, question)
            answered = clock()
            try:
                result = self.take_reply(table, known, method, (*args, *kwargs.values()))
                if told:
                    self.hear_changes(told)
            except Exception as error:  # noqa: BLE001
                # Of a kind that hardly any test expects: it must not pass for the code's own.
                raise ReferenceError(f"no value came back, but {type(error).__name__}") from None
            self.line_s += asked - started + clock() - answered

        if outcome == "return":
            is_content = method == "__iter__" and type(result) is list  # watched as any other
            return iter(result) if is_content else result
        if not isinstance(result, BaseException):
            raise ReferenceError("no exception was raised, but something else")  # noqa: TRY004
        # all(map(f, …)) would take it for the end of its own iteration.
        if isinstance(result, StopIteration) and method not in RESUMING:
            raise RuntimeError("StopIteration")
        raise result

    def take_reply(self, table: Any, known: list, method: str, args: tuple) -> Any:
        """The result that an answer holds; the changes that it tells are made here, too."""
        attribute = args[0] if method == "@get" else None
        self.closing.clear()
        if method != "@content":
            self.contents.clear()
        (result, *changes), values, uses = read_table(table, self.build, known)
        if uses[id(result)] > 1:  # it stands in a container or a global, too
            self.fresh.discard(self.held.get(id(result), -1))
            self.closing.clear()
        if method == "@names":
            self.open_classes(result.value, uses)
        if method != "@describe" and attribute not in OWN:
            self.close_classes(values, uses)
        self.close_echoed(known, uses, changes[::2])
        for target, items in pair_up(changes):
            if self.common and target is self.common[0]:
                # No others, because the other end may name anything.
                shown = {name: value for name, value in pair_up(items) if name in self.shown}
                target.update(shown)
            elif is_mutable(target):
                refill(target, items)
        self.watch_loans(args, id(result) in self.held or is_coroutine(result))
        if type(result) is Loan:
            result = self.receive(*result, attribute is not None)
        if self.common:
            self.share(self.common[0])
        return result

    def tell_replaced(self) -> None:
        """Tell of the streams and functions that the tests have put in the place of Python's."""
        now = self.read_places()
        if not all(map(operator.is_, now, self.replaced)):
            self.replaced = now
            told = zip(self.places, now, self.unreplaced, strict=True)
            self.request("@replace", 0, {place: it for place, it, old in told if it is not old})

    def read_places(self) -> list[Any]:
        return [getattr(owner, name, None) for owner, name in self.places.values()]

    def watch_places(self, places: list[str]) -> None:
        """From now on, tell of what the tests put there, and in the REPLACEABLE places."""
        self.places = dict(REPLACEABLE)
        for place in places:
            with contextlib.suppress(Exception):  # there is no such module
                self.places[place] = find_place(place)
        self.unreplaced = self.read_places()
        self.replaced = self.unreplaced

    def exchange(self, serial: int, question: bytes) -> tuple[str, Any, Any]:
        """Send a question, and answer the other end's until the reply is there."""
        try:
            self.replies[serial] = None
            self.post(question)
            while not self.replies[serial]:
                message = self.line.receive()
                is_question = message[0] not in ("return", "raise")
                if is_question and self.is_idle and not self.trusted:
                    # Not in this thread of the graded code's: the answer may wait for its end.
                    self.is_idle = False
                    self.handed_on.append(message)
                else:
                    self.take_message(message)
            return self.replies.pop(serial)
        except BaseException as error:
            self.broken = f"the line to the graded code is broken: {error!s:.160}"
            if not isinstance(error, Exception):
                raise
            raise ConnectionError(self.broken) from None

    def share(self, names: dict[str, Any]) -> None:
        """From now on, answers tell of changes in these names and their values, and questions of
        what the tests change in the values."""
        for name, old in self.shown.items():
            if name in names and self.space.get(name) is old:  # the tests have not bound it anew
                self.space[name] = names[name]
                self.shown[name] = names[name]
        self.common = [names, *names.values()]
        for place, value in enumerate(names.values(), 1):
            if is_mutable(value):
                self.watch(-place, value)

    def post(self, message: bytes) -> None:
        with self.sending:
            self.line.send(message)

    def take_message(self, message: Any) -> None:
        match message:
            case ["return" | "raise" as outcome, serial, table, told] if serial in self.replies:
                self.replies[serial] = outcome, table, told
            case [method, number, serial, table, told]:
                self.contents.clear()
                if told:
                    self.hear_changes(told)
                self.answer(method, number, serial, table)
            case _:
                raise ValueError("neither a question nor an answer")

    def serve(self) -> None:
        """Answer until the other end is gone, which raises EOFError. The judge does so in a thread
        beside its tests, where these may wait for the code's threads."""
        while True:
            self.is_idle = True
            message = self.await_question()
            self.is_idle = False
            self.take_message(message)

    def await_question(self) -> Any:
        """It comes by the line, or from a thread of the graded code's that has read it: see
        exchange(). While others may ask something the line is not held, for they need it."""
        while not self.handed_on:
            is_alone = not self.trusted and threading.active_count() == 1
            if is_alone or self.line.is_ready(None if self.trusted else 5):
                with self.asking:
                    if is_alone or self.line.is_ready(0):
                        return self.line.receive()
        return self.handed_on.pop()

    def answer(self, method: str, number: int, serial: int, table: Any) -> None:
        """Carry out what the other end asks, and send the outcome."""
        values: list[Any]
        known: list = []
        before: dict[int, tuple] = {}
        # Because the recursion limit is for the code on both ends, and not for what is between.
        sys.setrecursionlimit(sys.getrecursionlimit() + OUR_FRAMES)
        try:
            (kwargs, *args), known, uses = read_table(table, self.build)
            self.close_classes(known, uses)
            known += self.common
            before = {id(it): (it, read_contents(it)) for it in known if is_mutable(it)}
            values = [self.perform(method, self.ours[number], args, kwargs or {})]
            outcome = "return"
        except TimeUp:
            raise
        except BaseException as error:  # noqa: BLE001
            outcome = "raise"
            values = [error]
        try:
            self.give_back()
            for value, contents in before.values():
                if has_changed(value, contents):
                    values += value, tuple(read_contents(value))
            if self.common and not self.trusted:
                values += self.find_bound(self.common[0])
            reply = self.write_reply(outcome, serial, values, known)
        except Exception as error:  # it is too large, or lets nobody look at it  # noqa: BLE001
            reply = self.write_reply("raise", serial, [ReferenceError(f"{error}"[:200])])
        sys.setrecursionlimit(sys.getrecursionlimit() - OUR_FRAMES)
        self.post(reply)

    def find_bound(self, names: dict[str, Any]) -> tuple:
        """Of the names that tests use those that the code has bound anew, as a change of them. No
        others, because to stand among them again would close a class."""
        now = {name: self.ours[0].get(name) for name in names}
        bound = {name: now[name] for name in now if now[name] is not names[name]}
        names.update(now)
        self.share(names)
        return (names, tuple(read_contents(bound))) if bound else ()

    def write_reply(self, outcome: str, serial: int, values: list, known: Any = ()) -> bytes:
        table, _ = write_table(values, self.take_apart, known)
        told = None
        if not self.trusted:  # What the tests have changed a question tells.
            # What came of the call may keep its arguments.
            self.watch_loans(self.lent, id(values[0]) in self.ours)
            self.lent.clear()
            told = self.tell_changes()
        return frame([outcome, serial, table, told])

    def perform(self, method: str, target: Any, args: list, kwargs: dict) -> Any:
        if self.trusted and not self.permits(method, target, *args[:1]):
            raise AttributeError(f"{method} of an object of the tests' is not to be had")
        if method == "@await":
            return self.advance(target, *args)
        if self.trusted and method == "__setattr__":
            return self.set_attribute(target, *args)
        result = call_method(method, target, args, kwargs)
        if method == "@names":
            self.share(result)
        if self.trusted and method == "@get" and not self.mirror_base(class_of(target)):
            result = CENSORS.get(args[0], lambda value: value)(result)
        if type(result) is target:
            self.number(result)  # what a class makes keeps its identity
        if is_mutable(result) and not self.trusted:
            self.watch(id(result), result)
            return Loan(id(result), result)
        return result

    # Containers of which both ends have a copy

    def lend(self, value: Any) -> Any:
        """An argument of the tests'. A container has a number as long as it is watched."""
        if not is_mutable(value):
            return value
        for number, each in self.watched.items():
            if each.value is value and number <= -REFERENCES:
                return Loan(number, value)
        return Loan(-next(self.loan_numbers), value)

    def watch_loans(self, loans: Sequence[Any], is_kept: bool) -> None:
        for each in loans:
            if type(each) is Loan:
                self.watch(*each, is_kept=is_kept)

    def hear_changes(self, told: Any) -> None:
        """What the other end has changed in its copies; unless ours is not any more as it was,
        because then nobody can tell what both changes come to."""
        changes, values, uses = read_table(told, self.build)
        self.close_classes(values, uses)
        for number, place, items in zip(changes[::3], changes[1::3], changes[2::3], strict=True):
            had = self.watched.get(number)
            if had and had.before and (had.is_kept or not self.trusted):
                value, contents = had.before[0]
                target = value if place is None else contents[place]
                if is_mutable(target) and not has_changed(value, contents):
                    refill(target, [*items])
                    had.before[:] = look_into(value)

    def give_back(self) -> None:
        """By the worker: what the code changed in an attribute's container of a test's object is
        bound there anew, where the code may set it at all."""
        del self.borrowed[:-LOANS]
        for mirror, name, value, before in [*self.borrowed]:
            if has_changed(value, before):
                before[:] = read_contents(value)
                with contextlib.suppress(Exception):
                    setattr(mirror, name, value)

    def receive(self, number: int, value: Any, is_attribute: bool) -> Any:
        """A result, in the judge. A container that came before is the same object as then, with
        what it holds now; but what an attribute holds only if nothing in it has changed."""
        had = self.watched.get(number)
        if (
            had
            and number > 0  # as that of a result is
            and had.is_attribute == is_attribute
            and (not is_attribute or is_alike(had.value, value))
        ):
            value = renew(had, value)
        self.watch(number, value, is_attribute)
        return value

    def watch(
        self, number: int, value: Any, is_attribute: bool = False, is_kept: bool = False
    ) -> None:
        """Tell of changes in it, if it is not so large that to look takes time, and hear of them.
        What was kept once is kept."""
        had = self.watched.pop(number, None)
        is_kept |= had is not None and had.value is value and had.is_kept
        before = look_into(value)
        size = sum(len(items) for _, items in before) + (
            value.nbytes // 32 if is_array(value) else 0
        )
        # Kept even so, because the worker may give its number to another one when it forgets it.
        before = before if size <= MOST_WATCHED else []
        self.watched[number] = Watched(value, before, is_attribute, is_kept)
        # The oldest of those that are kept, or of those that are not, are forgotten.
        most = LOANS // 4 if self.trusted and not is_kept else LOANS
        alike = [key for key, each in self.watched.items() if each.is_kept == is_kept]
        for key in alike[: -most - len(self.common)]:
            del self.watched[key]

    def tell_changes(self) -> list | None:
        """What was changed here in what is watched, as a table: the number of a container; None, or
        the place in it of one that changed, as others may hold that, too; contents; number …"""
        told: list = []
        for number, each in [*self.watched.items()]:
            if not (self.trusted or each.is_kept):
                continue
            changed = [value for value, contents in each.before if has_changed(value, contents)]
            if not changed:
                continue
            if changed[0] is each.value:
                told += number, None, tuple(read_contents(each.value))
            else:
                places = [*map(id, each.before[0][1])]
                for value in changed:
                    told += number, places.index(id(value)), tuple(read_contents(value))
            each.before[:] = look_into(each.value)
        return write_table(told, self.take_apart)[0] if told else None

    def permits(self, method: str, target: Any, name: Any = "") -> bool:
        """May the graded code do this to an object of the tests'?"""
        if method != "@get" and method not in SETTING:
            name = method
        # Exactly, because a mirror of a subclass could be one name first and another later.
        if type(name) is not str or name[:1] == "@" and name not in PERMITTED:
            return False
        if method in SETTING:
            return self.may_set(target, name)
        if name == "@await":
            return is_coroutine(target)
        if name == "@new":
            return bool(self.mirror_base(target))  # which raises where it is no class
        if method == "@get" and is_inherited(target, name):
            return False
        if name.startswith("__"):
            return permits_special(method, target, name)
        if is_forbidden(target, name):
            return False
        return self.may_read(target, name)

    def may_read(self, target: Any, name: str) -> bool:
        """May it get or call this: of what is the candidate's in part; a public name; what resumes
        a generator; what the code has set itself, or the tests on a function of theirs?"""
        is_public = name[0] != "_"
        if is_public and type(target) is types.FunctionType:
            is_public = name in vars(target)
        elif type(target) in INNER:
            is_public = name in RESUMING
        is_own = bool(self.mirror_base(class_of(target))) or (id(target), name) in self.set_by_code
        return is_public or is_own

    def set_attribute(self, target: Any, name: str, value: Any) -> None:
        """For the code. It sets a __dict__ after it has changed that: here what it may change."""
        if name != "__dict__" or self.mirror_base(class_of(target)):
            self.set_by_code.add((id(target), name))
            call_method("__setattr__", target, [name, value], {})
            return
        had = vars(target)
        for each in value:
            if had.get(each) is not value[each] and self.permits("__setattr__", target, each):
                self.set_attribute(target, each, value[each])

    def may_set(self, target: Any, name: str) -> bool:
        """May it set or delete that attribute: of an object of the tests' own, in the place of no
        method; a new one of theirs that is private, or of a function; or of what is the candidate's
        in part? With one of a class of the tests' it could make all objects equal, or see in an
        __init__ what those hold that the tests expect."""
        if self.mirror_base(class_of(target)):
            return not name.startswith("__") or name == "__dict__"
        if isinstance(target, type):
            return False
        if name.startswith("__"):
            return name == "__dict__" and is_of_tests(target)  # see set_attribute()
        find = inspect.getattr_static  # which runs nothing
        is_new = (id(target), name) in self.set_by_code or find(target, name, None) is None
        if isinstance(target, types.FunctionType):
            return is_new and target.__module__ == "__main__"
        # Of the class not statically, since a classmethod() itself is nothing that can be called.
        is_free = is_new if name[0] == "_" else not callable(getattr(type(target), name, None))
        return is_of_tests(target) and is_free

    # Taking apart

    def take_apart(self, value: Any) -> Row:
        if id(value) in self.held:
            return Row("own", [self.held[id(value)]])
        kind = type(value)
        if kind is Loan:
            return Row("loan", [*value])
        if kind in TAKE:
            contents = pack(read_contents(value)) if kind in MUTABLE else None
            return Row(kind.__name__, pack(TAKE[kind](value)), contents)
        if id(value) in NAMES:
            return Row("known", [NAMES[id(value)]])
        if isinstance(value, type):
            names = name_error(value)
            if names:
                return Row("error class", names)
            return Row("class", [self.number(value), value is types.FunctionType])
        if kind.__module__ == "numpy" and hasattr(value, "dtype") and not value.dtype.hasobject:
            shape = value.shape if kind.__name__ == "ndarray" else None  # None: a number of its own
            return Row("ndarray", [value.dtype.str, shape, value.tobytes()])
        if is_coroutine(value):
            return Row("awaits", [self.number(value)])
        return self.take_object(value)

    def take_object(self, value: Any) -> Row:
        kind = type(value)
        plain = next((it for it in (list, set, frozenset, dict) if issubclass(kind, it)), None)
        if plain and self.crosses_plainly(value, kind, plain):
            return Row("is", [plain(value)])
        if self.trusted and is_failure(value):
            # Its text tells what the tests expect; and the code may keep it from whoever counts.
            self.has_failed = True
            value = AssertionError()
            kind = AssertionError
        links = links_of(value, not self.trusted) if is_error(kind) else None
        names = name_error(kind)
        if names:
            return Row("error", [names, links, dict(vars(value)), *reduce_arguments(value)])
        content = value.args if is_error(kind) else ()
        for base in CONTENT:
            if issubclass(kind, base):
                content = base.__getnewargs__(value)
        return Row("object", [self.number(value), kind, links, *content])

    def crosses_plainly(self, value: Any, kind: type, plain: type) -> bool:
        """Whether all that comes of an object of a container's subclass is what it holds: of one of
        Python's own, and of sets, unless the tests know the class: C code would look into the
        mirror of one itself."""
        if self.trusted or id(value) in self.ours:
            return False
        is_unknown = plain is frozenset or plain is set and id(kind) not in self.ours
        return is_unknown or is_standard(kind)

    def number(self, value: Any) -> int:
        if id(value) not in self.ours and len(self.ours) >= REFERENCES:
            raise ValueError(f"more than {REFERENCES} objects")
        self.ours[id(value)] = value
        return id(value)

    # Building

    def build(self, tag: str, parts: list) -> Any:
        make = MAKERS.get(tag)
        if not make and type(parts[0]) is not int:  # but what could be one first and another later
            raise ValueError("not the number of an object")
        return (make or getattr(self, f"build_{tag}"))(*parts)

    def build_loan(self, number: int, value: Any) -> Any:
        if not is_mutable(value):  # so that a mirror counts as arrived more than once
            return value
        if self.trusted:
            return Loan(operator.index(number), value)  # so that a number can be no object
        value = renew(self.watched.get(number), value)  # as the code may keep it
        self.lent.append(Loan(number, value))
        return value

    def build_own(self, number: int) -> Any:
        self.returned.add(number)
        value = self.ours[number]
        self.has_called_back |= callable(value) or hasattr(type(value), "__get__")
        return value

    async def build_awaits(self, number: int) -> Any:
        """Have the other end run its coroutine, and let this end's own go on meanwhile."""
        import asyncio  # which few tasks need

        # In a loop it only starts at first: others may have to start before any of them goes on.
        order = "start" if asyncio._get_running_loop() else "go on"
        while not (outcome := self.request("@await", number, order)):
            try:
                await asyncio.sleep(0)
                order = "go on"
            except asyncio.CancelledError:
                order = "cancel"
        return outcome[0]

    def advance(self, awaitable: Any, order: str) -> list:
        """Let a coroutine of ours run for a moment, with all else on its event loop. Returns what
        it returned in a list, which is empty until then."""
        import asyncio

        running = asyncio._get_running_loop()  # in which we were called, and which goes on later
        task = self.tasks.get(id(awaitable))
        if not task:
            task = asyncio.ensure_future(awaitable, loop=running or event_loop())
            self.tasks[id(awaitable)] = task
        if order == "cancel":
            task.cancel()
        if order != "start" and not running:
            event_loop().run_until_complete(asyncio.wait({task}, timeout=0.001))
        return [task.result()] if task.done() else []

    def build_object(self, number: int, kind: Any, links: Any, *content: Any) -> Any:
        """The mirror of the other end's object."""
        if number in self.theirs:
            self.fresh.discard(number)
            # In an answer it has one row, and another where changes are told with it.
            self.closing = self.closing - {number} | self.open & {number}
            self.open.discard(number)
            return self.refresh(self.theirs[number])
        # An object of a metaclass would be a class that the sender has written; mirrors are made by
        # build_class() alone.
        if id(kind) not in self.held and kind is not object or issubclass(kind, type):
            raise ValueError("not a mirrored class of objects")
        # Not what a class of the code's, from which it inherits in the worker, has by this name.
        made = next(each for each in kind.__mro__ if each.__flags__ & CHANGEABLE != HEAP_TYPE)
        mirror: Any = made.__new__(kind, *content)
        for base, put in FILLERS.items():
            if issubclass(kind, base):
                put(mirror, object())
        if is_error(kind):
            link(mirror, links)
            with contextlib.suppress(TypeError):  # as of UnicodeError, which takes five
                made.__init__(mirror, *content)  # which sets what str() tells of a SyntaxError
            check_place(mirror)
        self.adopt(number, mirror)
        self.fresh.add(number)
        return self.refresh(mirror)

    def build_class(self, number: int, is_function: bool) -> Any:
        """The mirror of the other end's class. That of functions is most frequent, and known."""
        if number in self.theirs:
            return self.theirs[number]
        facts = describe(types.FunctionType) if is_function else self.request("@describe", number)
        name, module, doc, meta, given, methods, names = facts
        bases = [self.root if base is None else base for base in filter(self.may_be_base, given)]
        check_class((name, module, doc or ""), bases, methods, names)
        own = names_held(bases)
        methods = methods - (own - SPECIAL)
        real = self.find_real(module, name, given)
        # In the worker an object's own attribute comes before what the code's class has.
        above = [each for base in bases if self.is_own(base) for each in base.__mro__]
        names = names.union(dunders("dataclass_fields") if above else (), *map(names_of, above))
        space = {each: self.inherited(each, number) for each in names - own - methods}
        space |= self.namespace(methods, real, number)
        # An object may have another text than its class, as after update_wrapper(self, function).
        text = Inherited(lambda item, _: doc if item is None else self.ask(item, "__doc__"))
        space |= {"__module__": module, "__doc__": text}
        meta = self.find_meta(meta, bases)
        if above:
            first, last = self.ends
            bases = [first, *bases, last]
        self.is_building = True
        try:
            kind = type.__new__(meta, name, tuple(bases), space)
        finally:
            self.is_building = False
        if real and "_abc_impl" in vars(real):
            real.register(kind)  # for its subclasses, too
        return self.adopt(number, kind)

    def find_meta(self, meta: Any, bases: list) -> Any:
        """The metaclass of a mirror: of a class that inherits from an ABC Python wants one's."""
        if any(issubclass(type(base), ABCMeta) for base in bases):
            return self.abstract
        return meta if meta is not None and issubclass(meta, self.root) else self.root

    def find_real(self, module: str, name: str, given: list) -> Any:
        """What it cannot inherit from, isinstance() can still be told; but not that it were a value
        which crosses by content: the library's own `==` would show it the tests' operands. Nor that
        it were a class: the guard takes what calling one gave for made. Nor a fraction: Decimal's
        own `==` multiplies by its denominator, which may be 0."""
        is_hint = module == "typing" and name.endswith("GenericAlias")
        named = find_class(module, name) if is_hint or module in CLAIMED else None
        if not named or named in (*TAKE, *ATOMS, *RISKY):
            named = next((base for base in given if not self.may_be_base(base)), None)
        return None if named and issubclass(named, (type, numbers.Rational)) else named

    def may_be_base(self, base: Any) -> bool:
        is_known = base in (None, object, *CONTENT, *MUTABLE) or is_error(base)
        return is_known or id(base) in self.held or self.is_own(base)

    def is_own(self, base: Any) -> bool:
        """Whether it is a class of the code's, in the worker, that a mirror inherits from, so that
        `type(self)` and super() are what they seem; its objects hold nothing but attributes."""
        if self.trusted or id(base) in self.held or type(base) not in (type, ABCMeta):
            return False
        above = base.__mro__[:-1]  # all but object
        return base is not object and all(each.__flags__ & HEAP_TYPE for each in above)

    def adopt(self, number: int, mirror: Any) -> Any:
        if number in self.theirs:  # by an answer to what making the mirror has asked
            raise ValueError("one number for two objects")
        if len(self.theirs) >= REFERENCES:
            raise ValueError(f"more than {REFERENCES} objects")
        self.theirs[number] = mirror
        self.held[id(mirror)] = number
        return mirror

    # What mirrors do

    def namespace(self, methods: set[str], real: Any = None, owner: int = 0) -> dict[str, Any]:
        """What a mirrored class defines. `real`: what isinstance() shall take its instances for.
        `owner`: its number."""
        names = {name for name in methods if name in SPECIAL or name[0] != "_"}
        deepcopy = self.forward("@deepcopy")
        ask = self.ask
        space: dict[str, Any] = {
            **{name: self.forward(name, owner) for name in names | SETTING.keys() | {"__dir__"}},
            **{name: self.method(name, owner) for name in names - SPECIAL},
            "__getattr__": lambda mirror, name: ask(mirror, name),
            # Python would find these in the mirror itself, where there is nothing.
            "__dict__": property(lambda mirror: ask(mirror, "__dict__")),
            "__annotations__": property(lambda mirror: ask(mirror, "__annotations__")),
            "__class__": property(lambda mirror: real or type(mirror)),
            "__reduce_ex__": lambda mirror, protocol: self.reduce(mirror, protocol),
        }
        if "__next__" not in methods:  # itertools.tee() would have an iterator copy itself
            space["__copy__"] = self.forward("@copy")
            # Without the memo, which holds what else of the tests' is being copied.
            space["__deepcopy__"] = lambda mirror, memo: deepcopy(mirror)
        return space

    def reduce(self, mirror: Any, protocol: int) -> Any:
        """What pickle asks. The object is pickled, and made again, where it is."""
        number = self.held.get(id(mirror))
        if number is None or not self.trusted:
            return object.__reduce_ex__(mirror, protocol)
        unpickler = vars(copy)["__unpickle__"]  # where the judge has put it
        return unpickler, (self.request("@pickle", number, protocol),)

    def method(self, name: str, owner: int) -> Method:
        call = self.forward(name, owner)
        return Method(call, lambda kind: self.ask(kind, name) if id(kind) in self.held else call)

    def ask(self, mirror: Any, name: str) -> Any:
        """An attribute of the other end's object."""
        if name.startswith("__") and name not in READABLE:
            raise AttributeError(name)
        value = self.get(mirror, name)
        if self.trusted and name in COMPARING and container_of(type(mirror)) and callable(value):
            return types.MethodType(self.forward(name), mirror)  # as of a property, past the guard
        if self.trusted:
            return check_special(name, value)
        if is_mutable(value):
            self.borrowed.append((mirror, name, value, read_contents(value)))
        return value

    def inherited(self, name: str, owner: int) -> Inherited:
        """What the class of this number has by this name."""

        def find(item: Any, kind: Any) -> Any:
            if self.is_building and name == "__init_subclass__":
                return int  # the code was told of this class when it was made
            asked = kind if item is None else item
            if id(asked) not in self.held:
                value = self.request("@inherited" if self.trusted else "@get", owner, name)
                bind = getattr(type(value), "__get__", None)
                return bind(value, item, kind) if bind else value
            try:
                return self.ask(asked, name)
            except AttributeError:
                return getattr(super(self.theirs[owner], asked), name)

        return Inherited(find)

    def forward(self, name: str, owner: int = 0) -> Callable[..., Any]:
        """The method of mirrors that calls the other end's. `owner`: the number of its class."""
        is_guarded = self.trusted and name in SHOWING | COMPARING | READING
        is_conversion = self.trusted and name in CONVERSIONS

        def method(*given: Any, **kwargs: Any) -> Any:
            if not given:  # a function in a class, without `self`
                return self.request("@get", owner, name)(**kwargs)
            mirror, *args = given
            number = self.held.get(id(mirror))
            if is_guarded and not self.shows(mirror, name, args):
                return self.refuse(mirror, name, args)
            if number is None or is_local(name, mirror, args):
                result = self.call_inherited(owner, mirror, name, args, kwargs)
                if is_guarded and id(mirror) in self.returned:
                    self.check_made(mirror, name, args, result)
                return result
            convert = self.number_method(mirror, name) if is_conversion else None
            if convert:
                return convert(mirror, *args)
            is_open = number in self.open  # before it arrives again
            found = find_inherited(type(mirror), name)
            if owner and getattr(found, "call", found) not in (method, None):
                # As in Base.method(mirror) or super(): not what the object's own class has.
                result = self.request("@get", owner, name)(mirror, *args, **kwargs)
            else:
                result = self.request(name, number, *args, **kwargs)
                self.refresh(mirror)
            if is_open or self.closing:
                self.open_result(mirror, name, result, is_open)
            elif is_guarded:
                return self.check_made(mirror, name, args, result)
            return result

        method.__name__ = name
        return method

    # The guard: an operator shows the tests' operands only to an open object, one that was made by
    # calling a class the task asks for, or by an operator on such, and arrived but once. Any other
    # could answer `f(x) == 3.14` with a lie, or learn from `f(x) - 3.14` what to say.

    def shows(self, mirror: Any, name: str, operands: list) -> bool:
        """Whether an operator of this object is shown these operands."""
        is_held = all(id(value) in self.held for value in operands)
        if self.is_closed(mirror, name):
            if name in READING:
                return self.reads_there(mirror, operands)
            # It may be changed, and others be made of it; all else is told by what it holds.
            return name in IN_PLACE or name in ARITHMETIC and is_held
        if name not in SHOWING or is_held:
            return True
        if name in CHECKS:
            return is_of_tests(operands[0])  # which would cross as a mirror
        if isinstance(mirror, type) or not self.is_asked(mirror):
            return False  # what a metaclass says is believed as little as any other object
        number = self.held.get(id(mirror))
        # An object of the tests', whose class inherits from the mirrored one; not of that itself,
        # as only a pickle makes it. Nor where the code may have put a class or a function of the
        # tests' that makes such an object in the place of its own.
        if number is None:
            is_back = id(mirror) in self.returned or self.has_called_back
            return not is_back and id(type(mirror)) not in self.held
        return number in self.open

    def is_closed(self, mirror: Any, name: str) -> bool:
        """Whether it is a container's mirror that is not open, and such containers have this."""
        container = container_of(type(mirror))
        number = self.held.get(id(mirror))
        has_it = container and (name in SHOWING or hasattr(container, name))
        return bool(has_it) and number is not None and number not in self.open

    def reads_there(self, mirror: Any, operands: list) -> bool:
        """Whether a closed container itself is asked for its items, and not what it holds: if the
        tests know its class; or for a key that is not there, of which __missing__() may know."""
        if {*map(id, type(mirror).__mro__)} & {*map(id, self.shown.values())}:
            return True
        content = self.fetch_content(mirror)
        return isinstance(content, dict) and bool(operands) and operands[0] not in content

    def is_asked(self, value: Any) -> bool:
        """Whether it is an object of a class that the task asks for."""
        return any(self.held.get(id(kind)) in self.open for kind in type(value).__mro__)

    def number_method(self, mirror: Any, name: str) -> Callable[..., Any] | None:
        """The method by which a number tells what it holds, unless the task asks for its class."""
        base = next((base for base in NUMBERS if issubclass(type(mirror), base)), object)
        return None if self.is_asked(mirror) else getattr(base, name, None)

    def check_made(self, mirror: Any, name: str, operands: list, result: Any) -> Any:
        """Objects that are not open make others, but no value: it would be what the code likes it
        to be, whatever both of them are. Of containers it is made here, of what they hold."""
        is_value = id(result) not in self.held and result is not NotImplemented
        is_open = any(self.held.get(id(each)) in self.open for each in operands)
        if not is_value or name not in ARITHMETIC or is_open:
            return result
        if id(mirror) in self.held and container_of(type(mirror)):
            return self.refuse(mirror, name, operands)
        raise TypeError(f"{name} of objects that the graded code made gave a value")

    def open_classes(self, names: dict[str, Any], uses: dict[int, int]) -> None:
        """Those that the task asks for, among the code's names; to stand there is no other use."""
        for name in self.classes & names.keys():
            kind = names[name]
            if isinstance(kind, type) and id(kind) in self.held:
                self.open.add(self.held[id(kind)])
                uses[id(kind)] -= 1

    def open_result(self, mirror: Any, name: str, result: Any, is_open: bool) -> None:
        """What came of calling an open class, or of an operator of an open object, is open where
        its class is. So is what was open before, where nothing is done with it as a result."""
        number = self.held.get(id(result), -1)
        if number in self.closing and is_passed_over(name):
            self.open.add(number)
        if not is_open:
            return
        caller = sys._getframe(2)
        if {caller.f_code, (caller.f_code, caller.f_lasti)} & self.foreign:
            return  # not the tests have made it, but what the other end gave them to run
        is_made = name == "__call__" and isinstance(mirror, type) or name in ARITHMETIC | UNARY
        is_new = number in self.fresh or result is mirror and number in self.closing
        if is_made and is_new and self.is_asked(result):
            self.open.add(number)

    def close_classes(self, values: list, uses: dict[int, int]) -> None:
        """A class that stands elsewhere than KIND_PLACES say is not only what the task asks for: it
        may stand where a function should."""
        for value in values:
            if uses[id(value)]:
                self.open.discard(self.held.get(id(value), -1))

    def close_echoed(self, known: list, uses: dict[int, int], targets: list) -> None:
        """Where a container of the question comes back, but for changes, the objects come back that
        were sent in it."""
        for target in targets:
            uses[id(target)] -= 1
        if self.open and any(uses.get(id(each), 0) > 0 and is_mutable(each) for each in known):
            # But for classes, since all that the tests use of the code's names is known, too.
            sent = (self.held.get(id(each), -1) for each in known if not isinstance(each, type))
            self.open.difference_update(sent)
            self.returned.update(self.ours.keys() & {*map(id, known)})

    def refuse(self, mirror: Any, name: str, operands: list) -> Any:
        """What the operator gives without the code's help: of a container by what it holds."""
        if name in CHECKS:
            return getattr(type, name)(mirror, *operands)
        if container_of(type(mirror)):
            held, *others = map(self.fetch_content, (mirror, *operands))
            if name in COMPARING | READING:
                return getattr(held, name)(*others)
            if name in REFLECTED:
                return getattr(operator, name.replace("r", "", 1))(*others, held)
            return getattr(operator, name)(held, *others)
        if name == "__contains__":
            return operands[0] in iter(mirror)
        return NotImplemented

    def fetch_content(self, value: Any) -> Any:
        """Of a mirror of a container what it holds; all else as it is."""
        number = self.held.get(id(value))
        container = container_of(type(value))
        if number is None or not container:
            return value
        content = self.contents.get(number)
        # Where a thread serves, too, the code has threads that may change it at any time.
        if content is None or self.is_idle:
            content = self.request("@content", number)
            if type(content) is not container:  # as a namespace that has a `count` of the code's
                raise ReferenceError("a container holds something else")
            self.contents[number] = content
        return content

    def refresh(self, mirror: Any) -> Any:
        """Put what a set holds into its mirror itself, in the judge: set(mirror) looks there."""
        if self.trusted and isinstance(mirror, set):
            closing = self.closing
            self.closing = set()  # which the answer clears
            content = self.fetch_content(mirror)
            set.clear(mirror)
            set.update(mirror, content)
            self.closing = closing
        return mirror

    # Objects of this end whose class inherits from a mirrored one

    def mirror_base(self, kind: type) -> Any:
        """The mirrored class that `kind` inherits from, or None."""
        return next((base for base in kind.__mro__ if id(base) in self.held), None)

    def call_inherited(self, number: int, item: Any, name: str, args: list, kwargs: dict) -> Any:
        """What a mirrored class, of this number, does for an object of a subclass."""
        kind = class_of(item)
        if name in SETTING:
            return self.set_own(number, item, name, *args)
        if item is kind and name != "@get":
            return getattr(type, name)(item, *args, **kwargs)
        if name != "@get":
            return self.request("@get", number, name)(item, *args, **kwargs)
        if item is kind and args[0] in OWN:
            return vars(type)[args[0]].__get__(item)
        if args[0] == "__dict__":
            return get_dict(item, None)
        return getattr(self.mirror_base(kind), *args)

    def set_own(self, number: int, item: Any, method: str, name: str, *value: Any) -> None:
        """Set or delete an attribute of such an object; where the mirrored class looks after it, as
        by a property, the other end does."""
        kind = class_of(item)
        if item is kind:
            getattr(type, method)(item, name, *value)
        elif name == "__dict__":  # as after vars(self).update(…)
            given = {key: it for key, it in value[0].items() if is_public(key)}
            get_dict(item, None).update(given)
        elif not (
            self.trusted
            and isinstance(find_inherited(kind, name), Inherited)
            and self.request("@set", number, method, item, name, *value) is True
        ):
            getattr(object, method)(item, name, *value)


# ── Reading tests ─────────────────────────────────────────────────────────────────────────────────
# Before any candidate is seen: which names do the tests take from it, how many tests are there, and
# can grading them leave anything behind in the judge? The server asks this of the tasks of its own
# file; of a task that came with a reset it asks the session's judge, since parsing may take long.


BUILTINS = {*dir(builtins), "__builtins__"}


class BadTask(ValueError):
    """The sources of a task cannot measure anything; the words say why."""


class Source:
    """What stands in one source, found by parsing alone: nothing is compiled, let alone run, since
    nested `finally` blocks compile to exponential size. Raises BadTask."""

    def __init__(self, what: str, text: str) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a "\d" in somebody's tests is no news of ours
                self.tree = ast.parse(text)
                table = symtable.symtable(text, what, "exec")
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            line = getattr(error, "lineno", "?")
            why = str(error) or "nested too deeply"
            do = "do" if what.endswith("s") else "does"
            raise BadTask(f"the {what} {do} not compile: line {line}: {why[:160]!r}") from None
        self.nodes: list[Any] = [*ast.walk(self.tree)]
        self.imports: dict[str, str] = {}  # the name that an import binds, and the statement
        self.star: set[str] = set()  # what `import *` binds; "*": what only the module knows
        for node in self.nodes:
            self.note_import(node)
        scopes = [table]
        for scope in scopes:  # the list grows as we go
            scopes += scope.get_children()
        # The module's own, and those of nested scopes that mean the module's.
        symbols = [each for scope in scopes for each in scope.get_symbols() if each.is_global()]
        self.reads = {symbol.get_name() for symbol in symbols if symbol.is_referenced()}
        # Python's own: from whom __builtins__ came, he would say what all other names mean.
        self.reads -= {"__builtins__", "__conditional_annotations__"}
        self.defines = {s.get_name() for s in symbols if s.is_assigned() or s.is_imported()}

    def note_import(self, node: Any) -> None:
        match node:
            case ast.ImportFrom(module, [ast.alias("*")]):
                is_known = module in PURE_MODULES
                self.star.update(dir(importlib.import_module(str(module))) if is_known else "*")
            case ast.Import(names) | ast.ImportFrom(names=names):
                statement = ast.unparse(node)  # once, because it may bind thousands of names
                for name in names:
                    self.imports[name.asname or name.name.partition(".")[0]] = statement


class Facts(NamedTuple):
    """What is known of a task's tests before they run."""

    names: list[str]  # what they take from the candidate
    classes: list[str]  # those of the names that are classes
    imports: str  # statements that the judge runs first: a candidate's `math` could lie
    total: int  # tests that count
    uncalled: list[str]  # the test functions and methods that we have to call
    undefined: list[str]  # what the tests use, and neither they nor the candidate define
    alone: bool  # the helpers take nothing from the candidate, so that it cannot make them raise
    pure: bool  # they provably leave nothing behind in the process that runs them
    patched: list[str]  # what they put something else in the place of, as "subprocess.run"


def read_tests(task: dict[str, str]) -> Facts:
    """The facts of a task, which is its sources by name. Raises BadTask."""
    tests = Source("tests", task["tests"])
    helpers = Source("helpers", task["helpers"])
    setup = Source("setup", task["setup"])
    try:
        solution = Source("solution", task["solution"])
    except BadTask:  # one in Markdown, or of Python 2, is no reason to refuse a task
        solution = Source("solution", "")
    uncalled = uncalled_tests(tests)
    refuse_fixtures(tests, uncalled)
    total = count_tests(tests, uncalled)
    names, imports = share_names(tests, helpers, setup, solution, task["entry_point"])
    patched = find_patched(tests) + find_patched(helpers)
    own = tests.defines | helpers.defines
    in_main = [place.split(".") for place in patched if place.startswith("__main__.")]
    names |= {path[1] for path in in_main} - own - BUILTINS
    # The judge patches its own names itself, and attributes of the code's objects through mirrors.
    kept = {".".join(path) for path in in_main if len(path) > 2 or path[1] in own}
    told = "\n".join((task["prompt"], task["setup"], task["solution"]))
    classes = [name for name in names if is_class(name, told, tests)]
    return Facts(
        names=sorted(names),
        classes=sorted(classes),
        imports=imports,
        total=total,
        uncalled=[*uncalled],
        undefined=sorted(tests.reads - tests.defines - names - BUILTINS),
        alone=not helpers.reads & names,
        pure=is_pure([*tests.nodes, *helpers.nodes, *Source("imports", imports).nodes]),
        patched=[place for place in patched if place not in kept],
    )


def find_patched(source: Source) -> list[str]:
    """As in patch("subprocess.run"), patch(f"{__name__}.run"), patch.object(subprocess, "run"),
    subprocess.run = fake."""
    found = []
    for node in source.nodes:
        match node:
            case ast.Call(
                ast.Name("patch") | ast.Attribute(attr="patch"),
                [(ast.Constant() | ast.JoinedStr()) as name, *_],
            ):
                text = ast.unparse(name).removeprefix("f").strip("'\"")
                found.append(text.replace("{__name__}", "__main__"))
            case ast.Call(ast.Attribute(attr="object"), [owner, ast.Constant(name), *_]):
                found.append(f"{ast.unparse(owner)}.{name!s}")
            case ast.Attribute(ast.Name(owner), name, ast.Store()) if owner in source.imports:
                found.append(f"{owner}.{name}")
    return [name for name in found if re.fullmatch(r"\w+(\.\w+)+", name)]


def share_names(
    tests: Source, helpers: Source, setup: Source, solution: Source, entry_point: str
) -> tuple[set[str], str]:
    """Who provides what the tests use: the names that are the candidate's, and import statements
    for what the judge gets itself."""
    entry = entry_point.partition(".")[0].removesuffix("()")
    own = tests.defines | helpers.defines
    used = (tests.reads | helpers.reads) - own
    lent = {**solution.imports, **setup.imports}
    lent = {name: lent[name] for name in lent if name in used and name != entry}
    # A solution may define what looks like a builtin (one of MBPP's is called `sum`).
    asked = {entry} if entry else solution.defines
    names = used & (setup.defines | asked)
    star = tests.star | helpers.star | setup.star | solution.star
    unknown = used - names - lent.keys() - star - BUILTINS
    calls = [node.func for node in tests.nodes if isinstance(node, ast.Call)]
    calls += [each for node in tests.nodes for each in getattr(node, "decorator_list", ())]
    called = {function.id for function in calls if isinstance(function, ast.Name)}
    modules = unknown & sys.stdlib_module_names - solution.defines - called
    if "*" not in star:
        names |= unknown - modules  # who else should provide them?
    # As in globals()["LRUCache"](2), where only a string names it.
    constants = {node.value for node in tests.nodes if isinstance(node, ast.Constant)}
    names |= asked & constants - own
    names -= lent.keys()
    if not (entry in names if entry else names):
        raise BadTask(f"the tests ask the candidate for no name (entry_point: {entry!r:.40})")
    imports = [*dict.fromkeys(lent.values()), *(f"import {name}" for name in sorted(modules))]
    return names, "\n".join(imports)


def count_tests(tests: Source, uncalled: Collection[str]) -> int:
    """How many tests there are: asserts or, where there are none, test functions and methods."""
    asserts = [node for node in tests.nodes if isinstance(node, ast.Assert)]
    guarded = {
        inner
        for node in tests.tree.body
        if isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    if not uncalled and guarded.issuperset(asserts):
        raise BadTask(
            "no assert of the tests would run: they have no assert statement and no test function,"
            " or only below a `main` guard"
        )
    return len(asserts or uncalled)


FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def find_test_classes(source: Source, used: set[str]) -> dict[str, dict[str, Any]]:
    """The classes that unittest or pytest would run, by name, with their methods, inherited ones as
    well. `used`: the names that something in the source uses."""
    classes = [("", node) for node in source.tree.body if isinstance(node, ast.ClassDef)]
    methods: dict[str, dict[str, Any]] = {}
    tests: dict[str, dict[str, Any]] = {}
    for outer, node in classes:  # the list grows as we go: classes of tests may hold others
        parents = [*map(ast.unparse, node.bases)]
        found = {each.name: each for each in node.body if isinstance(each, FUNCTIONS)}
        for parent in parents:
            found = {**methods.get(parent, {}), **found}
        methods[node.name] = found
        is_case = any("TestCase" in parent or parent in tests for parent in parents)
        is_plain = node.name.startswith("Test") and node.name not in used
        if (is_case or is_plain) and counts(node):
            name = f"{outer}{node.name}"
            tests[name] = found
            classes += [(f"{name}.", each) for each in node.body if isinstance(each, ast.ClassDef)]
    return tests


def uncalled_tests(source: Source) -> dict[str, Any]:
    """The test functions, and the methods of unittest's and pytest's classes, that nothing in the
    source calls, by name: "test_one", "TestAll.test_two"."""
    bases = {base for node in source.nodes for base in getattr(node, "bases", ())}
    # Not what symtable says: since Python 3.12 it knows nothing of what a comprehension reads.
    used = {node.id for node in {*source.nodes} - bases if isinstance(node, ast.Name)}
    found: dict[str, Any] = {}
    for node in source.tree.body:
        if isinstance(node, FUNCTIONS) and node.name not in used:
            found[node.name] = node
    for owner, methods in find_test_classes(source, used).items():
        found |= {f"{owner}.{name}": each for name, each in methods.items()}
    return {
        name: each for name, each in found.items() if each.name.startswith("test") and counts(each)
    }


def counts(node: Any) -> bool:
    """Not what is skipped, or should fail."""
    return not re.search("skip|xfail|expectedFailure", decorators(node))


def decorators(node: Any) -> str:
    return " ".join(map(ast.unparse, getattr(node, "decorator_list", ())))


def refuse_fixtures(tests: Source, uncalled: dict[str, Any]) -> None:
    """Raises BadTask where a test waits for what only pytest could give it."""
    # A decorator above a test or its class, as mock's @patch, may give it arguments.
    patched = {node.name for node in tests.nodes if decorators(node)}
    waiting = [node.name for node in tests.nodes if re.search(r"\bfixture\b", decorators(node))]
    for name, node in uncalled.items():
        wanted = len(node.args.args) - len(node.args.defaults) - ("." in name)
        if wanted > 0 and not node.decorator_list and name.partition(".")[0] not in patched:
            waiting.append(name)
    if waiting:
        raise BadTask(f"{waiting[0]}() is or needs a fixture of pytest's: there are none here")


def is_class(name: str, told: str, tests: Source) -> bool:
    """Whether the tests ask for a class of that name, whose objects may see the tests' operands: if
    the prompt, the set-up or the solution says so in code; or if it begins with a capital letter
    and the tests use it as one. The letter alone proves nothing, since a lying object would then
    pass for a function's result."""
    if name in re.findall(r"(?m)(?:^[ \t]*(?:async )?def\s+|\bfunction\s+[`'\"*]*)(\w+)", told):
        return False
    said = r"(?m)(?:^[ \t]*class\s+(?=\w+\s*[:(])|\bclass\s+[`'\"]+)(\w+)"
    is_capital = name[0].isupper()
    if is_capital:
        said = r"\bclass\s+[`'\"*]*(\w+)"
    return name in re.findall(said, told) or is_capital and is_used_as_class(name, tests.nodes)


def is_used_as_class(name: str, nodes: list[ast.AST]) -> bool:
    """Whether a source uses a name as only a class is used: in isinstance(), as a base, in an
    `except`, with attributes, or with attributes of what calling it gives; or what it gives with
    an operator between two such, or as the target of an assignment to an item, or of a `+=`."""
    held: set[str] = set()  # variables that hold what calling it gave

    def is_made(node: Any) -> bool:
        """Whether this is what calling it gives, perhaps after operators."""
        match node:
            case ast.Call(func=ast.Name(id=called)):
                passes_on = called in ("max", "min", "sum")
                return called == name or passes_on and any(map(is_made, node.args))
            case ast.Name() | ast.Attribute():
                return ast.unparse(node) in held
            case ast.BinOp() | ast.UnaryOp() | ast.List() | ast.Tuple():
                return any(map(is_made, ast.iter_child_nodes(node)))
        return False

    used: list[Any] = []  # as only a class is
    owners: list[ast.AST] = []  # of attributes
    for node in nodes:
        match node:
            case ast.Assign([ast.Tuple(targets)], ast.Tuple(values)):
                pairs = zip(targets, values, strict=False)
                held.update(ast.unparse(target) for target, value in pairs if is_made(value))
            case ast.Assign(targets, value) if is_made(value):
                held.update(map(ast.unparse, targets))
            case ast.ClassDef(bases=bases):
                used += bases
            case ast.ExceptHandler(type=kind):
                used.append(kind)
            case ast.Call(func=ast.Name(id="isinstance" | "issubclass"), args=asked):
                used += asked
            case (
                ast.Attribute(value=owner)
                | ast.AugAssign(target=owner)
                | ast.Subscript(value=owner, ctx=ast.Store() | ast.Del())
            ):
                owners.append(owner)
            case ast.BinOp() | ast.Compare():
                made = [*filter(is_made, ast.iter_child_nodes(node))]
                owners += made[1:]  # where there are two
    names = {node.id for node in used + owners if isinstance(node, ast.Name)}
    return name in names or any(map(is_made, owners))


# ── Tests that leave nothing behind ───────────────────────────────────────────────────────────────
# A judge grades more than once, and a list of all that one grading could change for the next would
# never be complete. So it goes the other way round: tests that use only what is listed here are
# graded in the judge itself, all others in a fork of it, which costs 3 ms more.


# Not `type`, which makes classes, whose objects agree to all or name a place in the memory.
PURE_BUILTINS = words(
    "abs all any ascii bin bool bytearray bytes callable chr complex dict divmod enumerate filter"
    " float format frozenset hash hex int isinstance issubclass iter len list map max min next oct"
    " ord pow print range repr reversed round set slice sorted str sum tuple zip True False"
    " None NotImplemented Ellipsis"
    " ArithmeticError AssertionError AttributeError Exception IndexError KeyError LookupError"
    " NameError NotImplementedError OverflowError RecursionError RuntimeError StopIteration"
    " TypeError UnicodeDecodeError UnicodeError ValueError ZeroDivisionError"
)
# Written out, and no shorter: a module's own names may be another module (collections._sys), or a
# class that keeps what is registered with it. `random` is seeded anew for each grading.
PURE_MODULES = {
    module: words(names)
    for module, names in {
        "bisect": "bisect bisect_left bisect_right insort insort_left insort_right",
        "cmath": "exp inf isclose nan phase pi polar rect sqrt",
        "collections": "ChainMap Counter OrderedDict defaultdict deque namedtuple",
        "copy": "copy deepcopy",
        "datetime": "date datetime time timedelta timezone",
        "functools": "cmp_to_key partial reduce",
        "heapq": "heapify heappop heappush heappushpop heapreplace merge nlargest nsmallest",
        "itertools": "accumulate chain combinations combinations_with_replacement compress count"
        " cycle dropwhile filterfalse groupby islice pairwise permutations product repeat starmap"
        " takewhile tee zip_longest",
        "json": "dumps loads",
        "math": "acos asin atan atan2 ceil comb copysign cos degrees dist e erf exp fabs factorial"
        " floor fmod frexp fsum gcd hypot inf isclose isfinite isinf isnan isqrt lcm ldexp log"
        " log10 log1p log2 modf nan perm pi pow prod radians remainder sin sinh sqrt tan tanh"
        " tau trunc",
        "numpy": "abs all allclose any arange array array_equal asarray bool_ concatenate diag dot"
        " eye float32 float64 full inf int32 int64 isclose isnan linspace max mean min nan ndarray"
        " ones pi round sqrt std sum transpose zeros",
        "operator": "add and_ contains eq floordiv ge getitem gt itemgetter le lt mod mul ne neg"
        " or_ pow sub truediv xor",
        "random": "choice choices gauss randint random randrange sample seed shuffle uniform",
        "re": "DOTALL I IGNORECASE M MULTILINE S compile escape findall finditer fullmatch match"
        " search split sub",
        "statistics": "fmean mean median mode pstdev pvariance stdev variance",
        "string": "ascii_letters ascii_lowercase ascii_uppercase digits hexdigits punctuation"
        " whitespace",
        "time": "monotonic perf_counter time",
        "typing": "Any Callable Dict FrozenSet Iterable Iterator List Mapping Optional Sequence Set"
        " Tuple Union",
    }.items()
}


def is_pure(nodes: list[Any]) -> bool:
    """Whether the sources with these nodes, which share their names, can leave nothing behind:
    every node is looked at, and one that is not known to be harmless settles it."""
    # The modules, by the names that they have here. An import may stand below a use of it.
    imported = {
        (name.asname or name.name, name.name)
        for node in nodes
        if isinstance(node, ast.Import)
        for name in node.names
    }
    modules = dict(imported)
    # No name may mean two modules: of both would be allowed what is listed for the last.
    if len(modules) < len(imported) or not PURE_MODULES.keys() >= {*modules.values()}:
        return False
    owners = {node.value for node in nodes if isinstance(node, ast.Attribute)}

    def is_harmless(node: Any) -> bool:
        match node:
            case ast.ClassDef() | ast.Global() | ast.AsyncFunctionDef() | ast.Await():
                return False
            case ast.MatchClass():
                return False  # its keywords read attributes
            case ast.ImportFrom(names=names):
                return {name.name for name in names} <= PURE_MODULES.get(str(node.module), set())
            case ast.FunctionDef(name=name):
                return not node.decorator_list and name[0] != "_"
            case ast.Attribute(ctx=ast.Store() | ast.Del()):
                return False
            case ast.Attribute(value=ast.Name(id=name)) if name in modules:
                return node.attr in PURE_MODULES[modules[name]]
            case ast.Attribute(attr=name):
                # Frames lead anywhere, as do a metaclass's mro() and pointers in numpy's arrays;
                # a class may keep what is registered with it.
                return not re.match("_|(register|mro|ctypes|cast)$|(gi|cr|ag|tb|f|co)_", name)
            case ast.Name(id=name) if name in modules:
                return node in owners  # as in `module.name`
            case ast.Name(id=name):
                # A name of Python's own means what it does there until the tests bind it.
                is_own = name in BUILTINS or name.startswith("__")
                return name in PURE_BUILTINS or not is_own
        return True

    return all(map(is_harmless, nodes))


# ── Running tests ─────────────────────────────────────────────────────────────────────────────────

FAILURES = (Exception, SystemExit, KeyboardInterrupt, GeneratorExit)  # all but TimeUp


class Tests(ast.NodeTransformer):
    """The tests of a task, compiled so that a run goes on after a failed assert: each stands in a
    `with test(n):`, which takes what it raises. A loop stands in `with loop():`, since an assert in
    a loop that did not end has not passed, though it held so far."""

    def __init__(self, task: dict[str, str], facts: Facts) -> None:
        self.facts = facts
        self.source = f"{task['helpers']}\n{task['tests']}"
        helpers = f"{facts.imports}\n{task['helpers']}"
        self.texts = {"<tests>": task["tests"], "<helpers>": helpers}
        self.helpers = compile(helpers, "<helpers>", "exec", dont_inherit=True)
        self.asserts = 0
        self.guards = 0  # of the asserts: those like `assert False`, which pass by never running
        tree = self.visit(ast.parse(task["tests"]))
        self.code = compile(tree, "<tests>", "exec", dont_inherit=True, optimize=0)

    @functools.cached_property
    def branches(self) -> set[tuple[str, int]]:
        """The lines of imports that run only in some case, perhaps of the code's choice."""
        kinds = (ast.If, ast.While, ast.ExceptHandler, ast.match_case)
        return {
            (name, each.lineno)
            for name, text in self.texts.items()
            for case in ast.walk(ast.parse(text))
            if isinstance(case, kinds) and "__name__ ==" not in ast.unparse(case)
            for each in ast.walk(case)
            if isinstance(each, (ast.Import, ast.ImportFrom))
        }

    @functools.cached_property
    def own_codes(self) -> set[types.CodeType]:
        """The texts that stand in the tests, compiled: these may be programs, when the tests run
        one, while what the graded code returned may not."""
        codes = set()
        for text, mode in itertools.product(self.own_texts, ("eval", "exec")):
            with contextlib.suppress(SyntaxError, ValueError):
                codes.add(compile(text, "<string>", mode, dont_inherit=True))
        return codes

    @functools.cached_property
    def own_texts(self) -> set[str]:
        """Those, and as timeit indents them; and what it writes itself."""
        nodes = ast.walk(ast.parse(self.source))
        constants = [each.value for each in nodes if isinstance(each, ast.Constant)]
        texts = [each for each in constants if isinstance(each, str)]
        indented = (text.replace("\n", "\n" + " " * n) for text in texts for n in (0, 4, 8))
        return {"pass", "_stmt()", "_setup()", *indented}

    def generic_visit(self, node: ast.AST) -> ast.AST:
        # Only statements hold asserts, and expressions may be deep.
        return node if isinstance(node, ast.expr) else super().generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> ast.stmt:
        mains = [each for each in ast.walk(node) if getattr(each, "attr", "") == "main"]
        # What unittest.main() would run is run below, and its end would be a SystemExit.
        is_runner = {"unittest.main", "pytest.main"} & {*map(ast.unparse, mains)}
        return ast.copy_location(ast.Pass(), node) if is_runner else node

    def visit_Assert(self, node: ast.Assert) -> ast.stmt:
        self.asserts += 1
        self.guards += isinstance(node.test, ast.Constant) and not node.test.value
        node.msg = None
        return stand_in(node, "__test__", self.asserts - 1)

    def visit_loop(self, node: ast.stmt) -> ast.stmt:
        self.generic_visit(node)
        return stand_in(node, "__loop__")

    visit_For = visit_While = visit_AsyncFor = visit_loop


def stand_in(node: ast.stmt, manager: str, *numbers: int) -> ast.stmt:
    """The statement within `with MANAGER(NUMBERS):`."""
    # Made by hand, because to parse that text takes longer than to compile it.
    place: Any = {"lineno": node.lineno, "col_offset": node.col_offset}
    name = ast.Name(manager, ast.Load(), **place)
    call = ast.Call(name, [ast.Constant(number, **place) for number in numbers], [], **place)
    return ast.With([ast.withitem(call)], [node], **place)


class Score:
    """One run of some tests."""

    def __init__(self, tests: Tests) -> None:
        self.tests = tests
        self.fault = ""  # what is wrong with the tests themselves
        # Of each test: None until it ran, then whether it was always true.
        self.marks: list[bool | None] = [None] * tests.facts.total
        self.error = ""  # the built-in type of the first failure that was an exception
        self.held: list[int] = []  # the asserts that were true, in the order of running
        self.cut_short: set[int] = set()  # those of loops that an exception ended

    @contextlib.contextmanager
    def test(self, number: int) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self.marks[number] = False
            if not isinstance(error, FAILURES):
                raise
            self.failed(error)
            return
        self.marks[number] = self.marks[number] is not False
        self.held.append(number)

    def failed(self, error: BaseException) -> None:
        self.fault = self.fault or self.find_fault(error)
        self.error = self.error or builtin_base(type(error)).replace("AssertionError", "")

    def find_fault(self, error: BaseException) -> str:
        """Whether the tests themselves raised it: they import what is not there, or use a name that
        nobody defines."""
        last: Any = origin(error)
        code = last.tb_frame.f_code
        # An exception of the candidate's is raised by our own code, or by a `raise` of the tests,
        # or where it is thrown into their generator; and nothing of it is asked, for it may lie.
        step = dis.opname[code.co_code[last.tb_lasti]]
        is_own = code.co_filename in ("<tests>", "<helpers>") and step.startswith(
            ("IMPORT", "LOAD")
        )
        if not (is_own and isinstance(error, (ImportError, NameError))):
            return ""
        # What stands in their own module may be the candidate's.
        is_missing = isinstance(error, ImportError) and error.name != "__main__"
        is_unknown = is_missing or error.name in self.tests.facts.undefined
        is_sure = (code.co_filename, last.tb_lineno) not in self.tests.branches
        return describe_fault("the tests", error) if is_unknown and is_sure else ""

    @contextlib.contextmanager
    def loop(self) -> Iterator[None]:
        begin = len(self.held)
        try:
            yield
        except BaseException:
            self.cut_short.update(self.held[begin:])
            raise

    def run(self, space: dict[str, Any]) -> dict[str, Any]:
        """Run helpers and tests with the names in `space`, and return the report: how many passed,
        whether all ran to the end without a failure, whether it was late, the first exception's
        type, and what is the task's own fault."""
        ended = False
        late = False
        try:
            exec(self.tests.helpers, space)  # noqa: S102
            space.update(__test__=self.test, __loop__=self.loop)
            exec(self.tests.code, space)  # noqa: S102
            ended = self.run_uncalled(space)
        except TimeUp:
            late = True
        except BaseException as error:  # noqa: BLE001
            self.failed(error)
            if self.tests.facts.alone and "__test__" not in space:
                self.fault = describe_fault("the helpers", error)
        if not ended:
            for number in self.cut_short:
                self.marks[number] = False
        passed = self.marks.count(True)
        # Where all are guards, reaching the end is all that the tests ask for.
        is_enough = passed > 0 or 0 < self.tests.guards == len(self.marks)
        return {
            "passed": passed,
            "solved": ended and is_enough and False not in self.marks,
            "late": late,
            "error": self.error,
            "fault": self.fault,
        }

    def run_uncalled(self, space: dict[str, Any]) -> bool:
        """Call the test functions that nobody calls, each by itself; whether none failed."""
        none_failed = True
        for number, name in enumerate(self.tests.facts.uncalled):
            passed = False
            try:
                passed = run_test(name, space)
            except FAILURES as error:
                self.failed(error)
            none_failed = none_failed and passed
            if not self.tests.asserts:
                self.marks[number] = passed
        return none_failed


def run_test(name: str, space: dict[str, Any]) -> bool:
    """Run "test_one" or "TestAll.test_two"; whether it passed."""
    unittest: Any = sys.modules.get("unittest")  # or None, where no test can be of its classes
    *owners, method = name.split(".")
    module = types.SimpleNamespace(**space)
    owner: Any = functools.reduce(getattr, owners, module)
    if owners and unittest and issubclass(owner, unittest.TestCase):
        result = unittest.TestResult()
        unittest.TestSuite([owner(method)]).run(result)
        return result.wasSuccessful() and not result.skipped
    calls = read_rows([*marks_of(owner), *marks_of(getattr(owner, method))])
    if not calls:
        raise AssertionError("no rows")
    for call in calls:
        holders = [module, owner()] if owners else [module]
        run_call(holders, getattr(holders[-1], method), call)
    return True


def marks_of(marked: Any) -> list[Any]:
    marks = getattr(marked, "pytestmark", [])
    return marks if isinstance(marks, list) else [marks]


def read_rows(marks: list[Any]) -> list[dict[str, Any]]:
    """The arguments of each call: one, or as many as pytest's `parametrize` has rows."""
    calls: list[dict] = [{}]
    for mark in marks:
        if mark.name == "parametrize":
            names, rows = [*mark.args, *mark.kwargs.values()][:2]
            is_text = isinstance(names, str)
            names = re.findall(r"\w+", names) if is_text else names
            is_bare = is_text and len(names) == 1
            given = [dict(zip(names, values_of(row, is_bare), strict=True)) for row in rows]
            calls = [{**call, **each} for call in calls for each in given]
    return calls


def values_of(row: Any, is_bare: bool) -> Any:
    """The arguments in a row of pytest's `parametrize`."""
    if type(row).__name__ == "ParameterSet":
        return row.values
    return [row] if is_bare else row


def run_call(holders: list[Any], test: Any, call: dict[str, Any]) -> None:
    """Call a test once, between what its module and its class have it set up and torn down by."""

    def prepare(holder: Any, name: str) -> None:
        function = getattr(holder, name, None)
        if function is not None:
            function(*[test][: len(inspect.signature(function).parameters)])

    with contextlib.ExitStack() as stack:
        for holder, scope in itertools.product(holders, ("module", "class", "function", "method")):
            stack.callback(prepare, holder, f"teardown_{scope}")
            prepare(holder, f"setup_{scope}")
        result = test(**call)
        if inspect.iscoroutine(result):
            event_loop().run_until_complete(result)


def describe_fault(what: str, error: BaseException) -> str:
    last: Any = origin(error)
    return f"{what} raised {name_of(error)} in line {last.tb_lineno}"


def name_of(error: BaseException) -> str:
    """Its type's, and that of the module that is missing: who installs it has to know."""
    missing = f" ({error.name!s:.80})" if type(error) is ModuleNotFoundError else ""
    return f"{type(error).__name__}{missing}"


@contextlib.contextmanager
def time_limit(seconds: float, peer: Peer) -> Iterator[None]:
    """Raises TimeUp in the tests when their time is over, again and again, in case that a bare
    `except:` swallows the first. What the line itself took is not the candidate's time."""
    end = clock() + seconds

    def ring(_: int, frame: types.FrameType | None) -> None:
        spent = 2 * peer.line_s  # the worker's share is about the same
        if clock() < end + min(spent, seconds):
            return
        # Only where a test is running: what handles the first one must not be interrupted.
        while frame:
            if frame.f_code.co_filename in ("<tests>", "<helpers>"):
                raise TimeUp
            frame = frame.f_back

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, 0.05)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)


# ── Interpreter ───────────────────────────────────────────────────────────────────────────────────


class Ending(NamedTuple):
    """How a step's code ended, as its worker tells it. The worker may lie."""

    exit_code: int = 0
    result: str | None = None
    error: str = ""  # the exception's type and its line, as "KeyError in line 3"
    refused: bool = False  # by the sandbox: a PermissionError was among the reasons


class Interpreter:
    """The namespace that an agent's code lives in, and what runs it there step by step."""

    def __init__(self, result_chars: int) -> None:
        self.result_chars = result_chars
        self.steps = 0
        self.running = False
        self.folder = ""  # the worker's own
        self.has_input = False  # whether descriptor 0 is not empty, or was not
        self.module = types.ModuleType("__main__")
        self.streams: list[TextIO] = []
        self.open_streams()

    def open_streams(self) -> None:
        def stream(fd: int, mode: str) -> Any:
            return open(fd, mode, 1, encoding="utf-8", errors="backslashreplace", closefd=False)

        self.streams = [stream(0, "r"), stream(1, "w"), stream(2, "w")]

    def interrupt(self, *_: object) -> None:
        """What SIGINT does, which is how the server says that the time is up."""
        if self.running:
            raise KeyboardInterrupt

    def feed(self, stdin: bytes) -> None:
        """Make a text the standard input: at descriptor 0, where open(0) and os.read() find it, and
        as a file, whose size they may ask for."""
        self.has_input = True
        path = f"{self.folder}/{os.urandom(8).hex()}"
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        except OSError:  # the code keeps all descriptors, or has locked the folder
            self.streams[0] = io.TextIOWrapper(io.BytesIO(stdin), "utf-8")
            return
        os.unlink(path)
        with open(fd, "wb", closefd=False) as file:
            file.write(stdin)
        os.lseek(fd, 0, os.SEEK_SET)
        if fd:  # which it is where the code has closed its input
            os.dup2(fd, 0, inheritable=False)
            os.close(fd)
        self.open_streams()

    def run(self, code: str, stdin: str | None = None, is_program: bool = False) -> Ending:
        """Run one step; what it printed has reached the descriptors on return. A program ends with
        it: its threads are waited for, and what it registered for its end is run as well."""
        ending = Ending(exit_code=1)
        try:
            _signal.signal(_signal.SIGINT, self.interrupt)
            if any(stream.closed for stream in self.streams):
                self.open_streams()
            if stdin is not None or self.has_input:
                self.feed((stdin or "").encode(errors="replace"))
            for name, stream in zip(("stdin", "stdout", "stderr"), self.streams, strict=True):
                setattr(sys, name, stream)
                setattr(sys, f"__{name}__", stream)
            ending = self.execute(code)
            if is_program:
                vars(threading)["_shutdown"]()
                importlib.import_module("atexit")._run_exitfuncs()
        except BaseException:  # noqa: S110, BLE001
            pass  # the time-out's interrupt came while an error was being reported
        self.running = False
        for stream in (sys.stdout, sys.stderr, *self.streams[1:]):
            with contextlib.suppress(BaseException):
                stream.flush()
        return ending

    def execute(self, code: str) -> Ending:
        self.steps += 1
        name = f"<step {self.steps}>"
        linecache.cache[name] = (len(code), None, code.splitlines(True), name)  # for tracebacks
        self.running = True
        try:
            return Ending(result=self.evaluate(code, name))
        except SystemExit as error:
            if error.code is None or isinstance(error.code, int):
                return Ending(exit_code=(error.code or 0) & 0xFF)
            print(error.code, file=sys.stderr)
            return Ending(exit_code=1)
        except BaseException as error:  # noqa: BLE001
            return report_exception(error)

    def evaluate(self, code: str, name: str) -> str | None:
        """Run a step; returns the repr of a last expression, cut in the middle."""
        names = vars(self.module)
        block = compile_block(code, name)
        if block:
            exec(block, names)  # noqa: S102
            return None
        tree = ast.parse(code, name)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, name, "exec", dont_inherit=True), names)  # noqa: S102
        if not isinstance(last, ast.Expr):
            return None
        value = eval(compile(ast.Expression(last.value), name, "eval", dont_inherit=True), names)
        if value is None:
            return None
        text = repr(value)
        half = self.result_chars // 2
        over = len(text) - 2 * half
        return text if over <= 0 else f"{text[:half]}... {over} characters cut ...{text[-half:]}"


def compile_block(code: str, name: str) -> types.CodeType | None:
    """A step that ends inside a block, as most do; None for any other. It has no last expression to
    look for, and a fresh process pays dear for making a syntax tree of objects.

    Such a step's last line is indented, and another could follow it there."""
    line = code.rstrip().rpartition("\n")[2]
    text = line.lstrip(" \t")
    indent = line[: len(line) - len(text)]
    # A comment is no body of a block, nor is a backslash: but they would be, with a line to follow.
    # To Python a lone \r ends a line, and a form feed ends its indentation.
    if not indent or text.startswith(("#", "\f")) or text.endswith("\\") or "\r" in text:
        return None
    try:
        return compile(f"{code}\n{indent}pass", name, "exec", dont_inherit=True)
    except SyntaxError:
        return None


def report_exception(error: BaseException) -> Ending:
    """Print a traceback with the code's own lines only."""
    links = [traceback.TracebackException.from_exception(error)]
    for link in links:  # the list grows as we go: the whole chain
        link.stack[:] = [line for line in link.stack if line.filename.startswith("<step ")]
        links += [other for other in (link.__cause__, link.__context__) if other]
        links += getattr(link, "exceptions", None) or []
    print("".join(links[0].format()), end="", file=sys.stderr)
    line = links[0].stack[-1].lineno if links[0].stack else getattr(error, "lineno", "?")
    ends = [next(link.format_exception_only()) for link in links]
    refused = any(end.startswith("PermissionError") for end in ends)
    return Ending(1, error=f"{name_of(error)} in line {line}", refused=refused)


# ── Worker ────────────────────────────────────────────────────────────────────────────────────────


class Worker:
    """All that a worker is, made once in the zygote, where 0 to 4 are what they will be in a fork:
    nothing, standard output, standard error, the line to the server, the line to the judge.

    The server sends {"seq"} and perhaps "setup", "replay" ([[code, stdin], …]), "code" with "stdin"
    and "then", and gets {"seq", "fault"} (of the setup) and an Ending. Then the worker waits for
    more, or serves its judge ("then": "serve"), or takes {"task", "facts", "seconds"} and runs the
    tests itself ("inside"), or was a program that ended ("exit")."""

    def __init__(self, result_chars: int) -> None:
        self.interpreter = Interpreter(result_chars)
        self.control = Line(socket.socket(fileno=3))
        self.peer = Peer(Line(socket.socket(fileno=4)), False)

    def work(self) -> None:
        then = ""
        while not then:
            message = self.control.receive()
            fault = ""
            if message.get("setup"):
                fault = self.interpreter.run(message["setup"]).error
            for code, stdin in message.get("replay", []):
                self.interpreter.run(code, stdin)
            ending = Ending()
            then = message.get("then", "")
            if "code" in message:
                ending = self.interpreter.run(message["code"], message["stdin"], then == "exit")
            reply = {"seq": message["seq"], "fault": fault, **ending._asdict()}
            self.control.send(frame(reply))
        if then == "inside":
            self.judge_inside(self.control.receive())
        self.peer.ours[0] = vars(self.interpreter.module)
        self.peer.serve()

    def judge_inside(self, message: dict) -> None:
        """Run the tests where the code ran, after it: exact, and forgeable."""
        score = Score(Tests(message["task"], Facts(**message["facts"])))
        with time_limit(message["seconds"], self.peer):
            report = score.run(vars(self.interpreter.module))
        self.control.send(frame(report))


# ── Judge ─────────────────────────────────────────────────────────────────────────────────────────


class Mailbox:
    """What has come over a stream socket: frames, whole or not yet, and descriptors with them."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.data = bytearray()
        self.fds: list[int] = []

    @property
    def size(self) -> int:
        """Of the next frame with its head, in bytes, as far as it is known."""
        return 4 + int.from_bytes(self.data[:4], "big")

    def fill(self) -> bool:
        """Read what comes next, and wait for it where the socket blocks; False at the end."""
        try:
            data, fds, _, _ = socket.recv_fds(self.sock, 65_536, 64)
        except BlockingIOError:
            return True  # nothing yet
        except OSError:
            return False  # it died with something of ours unread
        self.fds += fds
        self.data += data
        return bool(data)

    def take(self) -> Any:
        """The next message, or None if it is not whole yet."""
        size = self.size
        if len(self.data) < max(size, 5):
            return None
        message = json.loads(self.data[4:size].decode())
        del self.data[:size]
        return message

    def wait(self) -> Any:
        """The next message; raises EOFError when the other end is gone."""
        message = self.take()
        while message is None:
            if not self.fill():
                raise EOFError("the other end is gone")
            message = self.take()
        return message


# Tests that have none of these words make no program of a text, so that no hook need listen.
RUNS_TEXTS = re.compile("eval|exec|compile|pickl|load|shelve|doctest|timeit")
# Those with one of these may sleep or wait while threads of the graded code's ask something. But a
# coroutine must be answered for in the thread of its event loop.
WAITING = re.compile("(?s)(?!.*async).*(sleep|threading|queue|concurrent)")
# What a judge imports for tests that have such a name in them: its forks would take longer for that
# than for most tests. Nothing else, because tests may look at what is imported.
SLOW_MODULES = words("asyncio numpy unittest unittest.mock")
INSIDE = 'only "judge": "inside"'  # what can do that, say the refusals
REPORTED = 77  # the exit code of a fork of the judge that has sent its report


def hide(fd: int) -> socket.socket:
    """A socket, at a number that nobody can guess: tests may open, and so close, what the graded
    code returned in the place of a path."""
    import fcntl

    hidden = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 16 + os.urandom(1)[0] % 96)
    os.close(fd)
    return socket.socket(fileno=hidden)


class Judge:
    """Holds the tests of a session's task, and grades one worker after another.

    The server sends {"task": {its sources by name}, "facts"} and gets {"facts"} or {"bad": words};
    then, as often as it likes, {"seconds", "seed", "seal"} with the line to a worker, and gets the
    report of Score.run() with "fit" (may this process grade again?), "broken" (why the line broke)
    and the seal. {"died": status} is the report of a fork that ended without one."""

    def __init__(self, sock: socket.socket, isolation: Isolation) -> None:
        self.mailbox = Mailbox(hide(sock.detach()))
        self.isolation = isolation
        self.folder = os.getcwd()
        # The line to the last worker. It stays open until the next, so that the worker sleeps until
        # it is killed, and spends no time on coming to an end by itself.
        self.worker: socket.socket | None = None
        self.is_guarded = False
        # What pickles of the graded code's objects call. A class, because pickle finds one by its
        # name; one that no pickle can change; and where tests that look for classes see none.
        fixed: Any = type("type", (type,), {"__setattr__": None})
        unpickle = {"__new__": lambda _, data: self.peer.request("@unpickle", 0, data)}
        self.unpickler = fixed("__unpickle__", (), unpickle | {"__module__": "copy"})
        setattr(copy, "__unpickle__", self.unpickler)  # noqa: B010

    def serve(self) -> None:
        gc.disable()
        cap_recursion()
        for turn in itertools.count(1):
            message = self.mailbox.wait()
            if "task" in message:
                self.tell(self.prepare(message["task"], message["facts"]))
            elif self.tests.facts.pure:
                self.grade(message)
            else:
                self.grade_in_fork(message)
            if turn % 32 == 0:
                gc.collect()

    def tell(self, message: dict) -> None:
        self.mailbox.sock.sendall(frame(message))

    def guard(self, event: str, given: tuple) -> None:
        """An audit hook. Tests may evaluate or unpickle what the graded code returned, as in
        eval(repr(point)); and that must not be a program. What stands in the tests may be one."""
        if event == "pickle.find_class":
            found: Any = getattr(sys.modules.get(given[0]), given[1], None)
            # Only what it cannot change: it may set the attributes of a class that is written in
            # Python, and so its __eq__. Nor what the tests know by a name of theirs.
            is_fixed = makes_values(found) and found.__flags__ & CHANGEABLE != HEAP_TYPE
            is_mirrored = found is self.unpickler or id(found) in self.peer.held
            if not (is_fixed or is_mirrored):
                raise PermissionError(f"{given[1]} is not unpickled here: {INSIDE} can")
            caller = sys._getframe(1)
            self.peer.foreign.add((caller.f_code, caller.f_lasti))
        elif event == "exec":
            caller = sys._getframe(1)
            module = caller.f_globals.get("__name__")
            names: dict[str, Any] = {}
            if module == "timeit":
                if not {caller.f_locals["stmt"], caller.f_locals["setup"]} <= self.tests.own_texts:
                    raise PermissionError(f"a text that is timed: {INSIDE} can run it")
            elif caller.f_code.co_filename in ("<tests>", "<helpers>"):
                names = caller.f_globals | caller.f_locals
            elif module == "doctest":
                names = caller.f_locals["test"].globs
            if names and given[0] not in self.tests.own_codes:
                check_expression(given[0], names, self.peer)

    def prepare(self, task: dict[str, str], facts: dict | None) -> dict:
        try:
            self.tests = Tests(task, Facts(**facts) if facts else read_tests(task))
        except BadTask as error:
            return {"bad": str(error)}
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            return {"bad": f"the tests do not compile: {error!s:.160}"}
        for name in SLOW_MODULES:
            if name.rpartition(".")[2] in self.tests.source:
                with contextlib.suppress(ImportError):  # which the tests will meet, too
                    importlib.import_module(name)
        # No sooner, because a hook hears of every id(), and that takes time.
        if RUNS_TEXTS.search(self.tests.source) and not self.is_guarded:
            self.is_guarded = True
            sys.addaudithook(self.guard)
        if "assertSetEqual" in self.tests.source:
            import unittest

            setattr(unittest.TestCase, "assertSetEqual", assert_same_set)  # noqa: B010
        return {"facts": self.tests.facts._asdict()}

    def grade_in_fork(self, message: dict) -> None:
        """Grade in a copy of this process, so that whatever the tests change goes with it."""
        judge = os.getpid()
        child = os.fork()
        if child:
            os.close(self.mailbox.fds.pop(0))
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if status != REPORTED:
                self.tell({"died": status, "seal": message["seal"]})
            return
        try:
            self.isolation.prctl(1, SIGKILL)  # PR_SET_PDEATHSIG: a fork does not inherit it
            if os.getppid() == judge:
                self.isolation.install_filter("worker")  # which takes fork and prctl away again
                self.grade(message)
                os._exit(REPORTED)
        finally:
            os._exit(70)

    def grade(self, message: dict) -> None:
        if self.worker:
            self.worker.close()
        self.worker = hide(self.mailbox.fds.pop(0))
        self.peer = peer = Peer(Line(self.worker), True)
        report = self.run(peer, message)
        if peer.broken:
            self.worker.close()
        resource = self.isolation.resource
        peak = 1_024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        is_large = peak > resource.getrlimit(resource.RLIMIT_AS)[0] // 4
        if is_large:  # the code may have left too little for what the tests import
            report["fault"] = ""
        fit = not (is_large or report.get("late") or peer.broken or os.listdir(self.folder))
        report |= {"fit": fit, "broken": peer.broken, "seal": message["seal"]}
        self.tell(report)

    def run(self, peer: Peer, message: dict) -> dict:
        seed_random(message["seed"])
        facts = self.tests.facts
        module = types.ModuleType("__main__")
        sys.modules["__main__"] = module  # where mock.patch() and dataclasses look
        space = vars(module)
        try:
            peer.classes = {*facts.classes}
            found = peer.request("@names", 0, (*facts.names,))  # no list, which it could change
            # Not the names of `found`: the other end may name anything.
            peer.shown = {name: found[name] for name in facts.names if name in found}
            peer.space = space
            space.update(peer.shown)
            peer.share(dict(peer.shown))
            peer.watch_places(facts.patched)
        except BaseException:  # noqa: BLE001
            return {"passed": 0}  # the line broke, or the answer was a SystemExit
        if WAITING.match(self.tests.source) and not facts.pure:
            _thread.start_new_thread(peer.serve, ())  # of which threading tells the tests nothing
        with time_limit(message["seconds"], peer):
            report = Score(self.tests).run(space)
        # An `except Exception` of the tests takes a worker that died for one that raised.
        is_solved = report["solved"] and not peer.broken and not peer.has_failed
        return {**report, "solved": is_solved}


def assert_same_set(case: Any, first: Any, second: Any, msg: Any = None) -> None:
    """In the place of unittest's own, which shows what the tests expect to the difference() of what
    the graded code returned, and believes it."""
    are_sets = hasattr(first, "difference") and hasattr(second, "difference")
    if not are_sets or set(first) != set(second):
        case.fail(msg)


def check_expression(code: types.CodeType, names: dict[str, Any], peer: Peer) -> None:
    """Raises PermissionError unless it only makes values, by classes, by what PURE_BUILTINS and
    PURE_MODULES list, and by the graded code's own functions: it must neither see nor change what
    the tests hold."""
    used = [names[name] for name in code.co_names if name in names]
    modules = [each.__name__ for each in used if isinstance(each, types.ModuleType)]
    listed = {name for module in modules for name in PURE_MODULES.get(module, ())}
    listed -= {"ndarray"}  # which makes any number a pointer to an object
    peer.foreign.add(code)
    for step in dis.get_instructions(code):
        kind, _, target = step.opname.partition("_")
        if isinstance(step.argval, types.CodeType):
            check_expression(step.argval, names, peer)
        # Variables of its own it may set, as a comprehension does.
        is_local_one = target.startswith(("FAST", "DEREF"))
        is_harmless = is_local_one or kind not in ("STORE", "DELETE", "IMPORT", "MATCH")
        if step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            is_harmless = step.argval in listed
        if step.opname in ("LOAD_NAME", "LOAD_GLOBAL"):
            is_harmless = may_use(str(step.argval), names, peer.held)
        if not is_harmless:
            raise PermissionError(f"a text that uses {step.argval!r:.40}: {INSIDE} can run it")


def may_use(name: str, names: dict[str, Any], mirrors: dict) -> bool:
    """Whether a text may read this name: see check_expression()."""
    if name not in names:
        return name[0] != "_" and (name in PURE_BUILTINS or not hasattr(builtins, name))
    value = names[name]
    is_module = isinstance(value, types.ModuleType) and value.__name__ in PURE_MODULES
    is_class = makes_values(value) or isinstance(value, type) and is_of_tests(value)
    return id(value) in mirrors or is_class or is_module


def makes_values(kind: Any) -> bool:
    """Whether it is a class of Python's of values or exceptions: not one of mocks, nor a metaclass,
    whose objects agree to all where the code says so."""
    return isinstance(kind, type) and id(kind) in NAMES or is_error(kind)


def cap_recursion() -> None:
    """Tests may raise the recursion limit, but not so far that a deep value overflows the stack of
    C, for which STACK_BYTES are room."""
    set_limit = sys.setrecursionlimit
    sys.setrecursionlimit = lambda limit: set_limit(min(limit, 50_000))
    set_limit(5_000)  # that of the tests, and of the calls back and forth


def pass_over_times(path: Any, *times: Any, ns: Any = None, **options: Any) -> None:
    """In the place of os.utime(), to which the filter says yes even where there is no file, so that
    Path.touch() made none."""
    os.stat(path, **options)


ENTROPY = random.Random()  # what numpy seeds its generators from


def seed_random(seed: int) -> None:
    """Make chance alike in each worker of an episode, or a replay would not come to the same."""
    random.seed(seed)
    ENTROPY.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)


# ── Zygote ────────────────────────────────────────────────────────────────────────────────────────

MOST_SWEEPERS = 4  # at once; while that many are at work, forks wait


class Zygote:
    """Forks workers and judges on the server's command, ends and reaps them, and clears their
    folders; ends with all of them when the server's end of the line closes.

    Commands are {"op", "id", "fds"} and more: "spawn" ("role", "seed", with the new process's
    descriptors), "interrupt", "end", and "pids_of" ("ids"). The server hears {"id", "error"} of a
    spawn that failed, {"id", "status"} of a process that was reaped, {"pids"}. Nobody else reaps,
    so nobody else needs to signal, and a pid here is never another process's. There is no SIGCHLD:
    the server sees the line of a dead process end, and has it ended here."""

    def __init__(self, config: dict, mailbox: Mailbox, worker: Worker) -> None:
        self.mailbox = mailbox
        self.worker = worker
        self.base = config["base"]
        self.pids: dict[str, int] = {}  # of the living, by id, which names their folder as well
        self.ids: dict[int, str] = {}  # of all that were not reaped yet
        self.sweepers: dict[int, str] = {}  # the folder that each of them clears, by pid
        self.stubborn: set[str] = set()  # folders that were not empty after a first sweep
        self.title = Title()
        self.title.set("zygote")
        self.isolation = Isolation(config["hidden"])
        # Until a worker runs code this ignores a Ctrl-C, which is the server's to handle.
        signal.signal(signal.SIGINT, self.worker.interpreter.interrupt)
        self.isolation.restrict_zygote()
        self.limits = config["limits"]["rlimits"]

    def serve(self) -> None:
        self.tell(isolation=self.isolation.probe(), version=sys.version)
        self.start_freshener()
        for name in os.listdir(self.base):  # what a zygote that died has left
            self.sweep(f"{self.base}/{name}")
        gc.collect()
        gc.freeze()  # so that a child's collections do not touch, and copy, the shared pages
        # What compiling this program took is given back, because a fork costs by the page. With
        # musl, which has no such function, int() does nothing.
        getattr(self.isolation.libc, "malloc_trim", int)(0)
        while self.fill():
            for command in iter(self.mailbox.take, None):
                getattr(self, command["op"])(command)
            self.reap()
        self.close()

    def fill(self) -> bool:
        """Wait for commands, and meanwhile reap those that are dying; False at the end."""
        while len(self.ids) > len(self.pids) or self.sweepers:
            if select.select([self.mailbox.sock], [], [], 0.05)[0]:
                break
            self.reap()
        return self.mailbox.fill()

    def tell(self, **message: object) -> None:
        with contextlib.suppress(OSError):  # the server's end is noticed by reading
            self.mailbox.sock.sendall(frame(message))

    def spawn(self, command: dict) -> None:
        fds = [self.mailbox.fds.pop(0) for _ in range(command["fds"])]
        while len(self.sweepers) >= MOST_SWEEPERS:
            self.reap(wait=True)
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(self.base, 0o700)  # for somebody may clean the temporary folder below us
            folder = f"{self.base}/{command['id']}"
            os.mkdir(folder, 0o700)
            # Here and not after the fork, because a fresh process pays dear for what it does first.
            os.environ["HOME"] = folder
            os.environ["TMPDIR"] = folder
            seed_random(command["seed"])
            role = command["role"]
            pid = self.fork(role, lambda: self.become(role, fds, folder))
            self.pids[command["id"]] = pid
            self.ids[pid] = command["id"]
        except OSError as error:
            self.tell(id=command["id"], error=str(error))
        for fd in fds:
            os.close(fd)

    def interrupt(self, command: dict) -> None:
        if command["id"] in self.pids:
            os.kill(self.pids[command["id"]], signal.SIGINT)

    def end(self, command: dict) -> None:
        pid = self.pids.pop(command["id"], 0)
        if pid:
            os.kill(pid, SIGKILL)
            self.reap()

    def pids_of(self, command: dict) -> None:
        self.tell(pids={name: self.pids.get(name, 0) for name in command["ids"]})

    def reap(self, wait: bool = False) -> None:
        """Take note of children that have ended; `wait` for one where none has."""
        options = 0 if wait else os.WNOHANG  # here and not above, because Windows has none
        while self.ids or self.sweepers:
            pid, status = os.waitpid(-1, options)
            if not pid:
                return
            options = os.WNOHANG
            if pid in self.sweepers:
                folder = self.sweepers.pop(pid)
                if not remove_folder(folder) and folder not in self.stubborn:
                    self.stubborn.add(folder)
                    self.sweep(folder)
                continue
            name = self.ids.pop(pid)
            self.pids.pop(name, None)
            self.tell(id=name, status=status)
            folder = f"{self.base}/{name}"
            if not remove_folder(folder):
                self.sweep(folder)

    def sweep(self, folder: str) -> None:
        """Clear what a dead worker has left, in a process that can touch nothing else."""

        def clear() -> None:
            self.isolation.lock_down("sweeper", folder, {"NOFILE": 64, "CPU": 60})
            clear_folder(folder)

        self.sweepers[self.fork("sweeper", clear)] = folder

    def start_freshener(self) -> None:
        def work() -> None:
            os.closerange(5, 4096)
            os.setpriority(os.PRIO_PROCESS, 0, 19)
            freshen(self.isolation.readable)

        self.sweepers[self.fork("freshener", work)] = ""

    def close(self) -> None:
        for name in [*self.pids]:
            self.end({"id": name})
        for pid, folder in self.sweepers.items():
            if not folder:  # the freshener
                os.kill(pid, SIGKILL)
        while self.ids or self.sweepers:
            self.reap(wait=True)
        remove_folder(self.base)

    def fork(self, role: str, work: Callable[[], None]) -> int:
        """The pid of a new child. It ends with its work, or when that raises, as at the end of the
        server's line."""
        zygote = os.getpid()
        pid = os.fork()
        if pid:
            return pid
        try:
            self.isolation.prctl(1, SIGKILL)  # PR_SET_PDEATHSIG
            if os.getppid() == zygote:  # else it died before that
                self.title.set(role)
                self.isolation.prctl(15, role.encode())  # PR_SET_NAME
                work()
        finally:
            os._exit(70)

    def become(self, role: str, fds: list[int], folder: str) -> None:
        """Be a worker or a judge. Its descriptors come as control and, of a worker, line, standard
        output, standard error. The zygote has kept 0 to 4 free for them."""
        # All that is left to do of threading's own hook.
        threading.main_thread()._native_id = os.getpid()  # type: ignore[attr-defined]
        # Opened anew, because the flags of a shared one could be seen by all other workers.
        null = os.open(os.devnull, os.O_RDWR)
        control, line, out, err = (*fds, *[null] * 3)[:4]
        for place, fd in enumerate((null, out, err, control, line)):
            os.dup2(fd, place, inheritable=False)
        os.chdir(folder)
        self.isolation.lock_down(role, folder, self.limits)
        if role == "judge":
            Judge(self.worker.control.sock, self.isolation).serve()
        else:
            self.worker.interpreter.folder = folder
            self.worker.work()


def remove_folder(folder: str) -> bool:
    """Whether it is gone."""
    with contextlib.suppress(OSError):
        os.rmdir(folder)
    return not os.path.lexists(folder)


def clear_folder(folder: str) -> None:
    """Empty a dead worker's folder. Folders in it are moved up before they are emptied: so there is
    no recursion, and no path gets too long. Their new names cannot be guessed, and so not be taken.
    """
    pending = [folder]
    for path in pending:  # the list grows as we go
        with contextlib.suppress(OSError):
            os.chmod(path, 0o700)  # it may have been locked
            for entry in os.scandir(path):
                with contextlib.suppress(OSError):
                    if not entry.is_dir(follow_symlinks=False):
                        os.unlink(entry.path)
                        continue
                    os.chmod(entry.path, 0o700)
                    pending.append(f"{folder}/{os.urandom(16).hex()}")
                    os.rename(entry.path, pending[-1])
    for path in reversed(pending[1:]):
        remove_folder(path)


def freshen(paths: list[str]) -> None:
    """Read a byte of whatever workers may read, so that its time of access is newer than its time
    of change. Then the kernel leaves it alone for a day, and a step that reads a file leaves no
    trace there for a later step."""
    pending = [os.path.realpath(path) for path in paths]
    for path in pending:
        with contextlib.suppress(OSError):
            status = os.lstat(path)
            if stat.S_ISDIR(status.st_mode):
                pending += [entry.path for entry in os.scandir(path)]
            elif stat.S_ISREG(status.st_mode) and status.st_atime <= status.st_mtime:
                with open(path, "rb") as file:
                    file.read(1)


REHEARSED = """
def f(a: int, b=1):
    if a:
        return [a, *range(b)]
"""


def rehearse(result_chars: int, null: int) -> Worker:
    """Make a worker before the forks, and let it and a judge work a little, so that whatever the
    interpreter makes at first use is there. 0 to 4 are what they will be in a fork: a stream that
    is not made over a pipe lies about being seekable."""
    _, pipe = os.pipe()
    control, server = socket.socketpair()
    line, far_line = socket.socketpair()
    for place, fd in enumerate((null, pipe, pipe, control.fileno(), line.fileno())):
        os.dup2(fd, place)
    worker = Worker(result_chars)
    judge_line = Line(far_line)
    for _ in range(12):
        server.sendall(frame({"seq": 0, "code": REHEARSED, "stdin": None, "then": "serve"}))
        judge = threading.Thread(target=rehearse_judge, args=(judge_line,))
        judge.start()
        with contextlib.suppress(ValueError):
            worker.work()
        judge.join()
        worker.peer = Peer(worker.peer.line, False)
    worker.interpreter = Interpreter(result_chars)
    linecache.cache.clear()
    sys.modules["__main__"] = worker.interpreter.module
    return worker


def rehearse_judge(line: Line) -> None:
    tests = "def check(f):\n    for x in f(1):\n        assert x\ncheck(f)"
    Tests(
        {"tests": tests, "helpers": ""}, Facts(["f"], [], "import math", 1, [], [], True, True, [])
    )
    Peer(line, True).request("@names", 0, ["f"])["f"](1, 2)
    line.send(frame(None))  # which is no message, and so ends the worker's work


def zygote_main() -> None:
    """The program of the zygote, called when its text has been read from descriptor 0."""
    import fcntl
    import resource
    import secrets

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, most), most))
    # 0 to 4 are kept for what a fork gets there.
    control, errors = (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (0, 2))
    mailbox = Mailbox(socket.socket(fileno=control))
    config = mailbox.wait()
    sys.path[:] = [path for path in sys.path if os.path.realpath(path) not in config["off_path"]]
    setattr(secrets, "randbits", ENTROPY.getrandbits)  # noqa: B010
    setattr(os, "utime", pass_over_times)  # noqa: B010
    for name in config["preload"]:
        try:
            importlib.import_module(name)
        except ImportError as error:
            sys.exit(f"python_env: cannot preload {name!r}: {error}")
    null = fcntl.fcntl(os.open(os.devnull, os.O_RDWR), fcntl.F_DUPFD_CLOEXEC, 10)
    sys.argv = [""]  # which fileinput and argparse read
    try:
        worker = rehearse(config["limits"]["result_chars"], null)
    finally:
        os.dup2(errors, 2)
    Zygote(config, mailbox, worker).serve()


# ══════════════════════════════════════════════════════════════════════════════════════════════════
# 13. The page, the built-in tasks
# ══════════════════════════════════════════════════════════════════════════════════════════════════

# The Content-Security-Policy: nothing from outside, and calls to this server alone.
PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'"
)
PAGE = r"""<!doctype html><html lang="en"><meta charset="utf-8"><title>$NAME</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg'
 viewBox='0 0 16 16'%3E%3Crect width='16' height='16' rx='4' fill='%231f5fbf'/%3E%3Cpath
 d='M4 4l4 4-4 4M9 12h4' stroke='white' stroke-width='2' fill='none'/%3E%3C/svg%3E">
<style>
  :root { color-scheme: light dark; --back: #f4f5f7; --card: #fff; --text: #1c2024; --dim: #59616b;
    --line: #d5d9df; --soft: #f0f2f5; --key: #1f5fbf; --on-key: #fff; --good: #17702f;
    --bad: #b3261e; --alert: #fdeceb; font: 100%/1.5 system-ui, sans-serif }
  @media (prefers-color-scheme: dark) { :root { --back: #0f1216; --card: #171b21; --text: #e4e8ed;
    --dim: #9ba5b1; --line: #323943; --soft: #1f252d; --key: #8ab8ff; --on-key: #0b1a30;
    --good: #5fd27a; --bad: #ff9389; --alert: #3a1e1d } }
  * { box-sizing: border-box }
  [hidden] { display: none !important }
  body { margin: 0; background: var(--back); color: var(--text) }
  header, main, footer { max-width: 84rem; margin: 0 auto; padding: 0 1.25rem }
  header { display: flex; flex-wrap: wrap; gap: 0 1rem; align-items: baseline; padding-top: .9rem }
  h1 { margin: 0; font-size: 1.2rem } h2 { margin: 0 0 .5rem; font-size: .95rem }
  p { margin: 0 0 .6rem } p:last-child, p:empty { margin: 0 }
  #prompt .item { padding-left: 1.4rem; text-indent: -.7rem; margin-bottom: .3rem }
  .dim, small, th, dt, caption { color: var(--dim); font-size: .875rem }
  .column > *, details { background: var(--card); border: 1px solid var(--line);
    border-radius: .6rem; padding: .9rem 1rem; margin: 0 0 1rem }
  .row { display: flex; flex-wrap: wrap; gap: .5rem .6rem; align-items: center }
  .row > :last-child:not(:first-child) { margin-left: auto } label { font-weight: 600 }
  main { padding-top: .9rem }
  @media (min-width: 60rem) {
    main { display: grid; gap: 1rem; grid-template-columns: minmax(0, 11fr) minmax(0, 9fr) }
    #seen { position: sticky; top: 0; align-self: start; max-height: 100vh; overflow-y: auto }
    #dock { position: sticky; top: 0; z-index: 1 } #verdict { font-size: 1.5rem } }
  @media (max-width: 59.99rem) {
    header, main, footer { padding-left: .75rem; padding-right: .75rem }
    .column { display: contents } html { scroll-padding-bottom: 10rem }
    #dock { position: sticky; bottom: 0; top: 0; z-index: 1; margin: 0 -.75rem 1rem;
      border-radius: 0; border-width: 1px 0; padding: .6rem .75rem; box-shadow: 0 0 .8rem #0003 }
    #dock button { padding: .2rem .6rem } #dock #run { min-width: 5.5rem } }
  button, select, input, textarea { font: inherit; color: inherit; background: var(--card);
    border: 1px solid var(--line); border-radius: .4rem }
  button, select, input { min-height: 2.4rem; padding: .2rem .8rem; max-width: 100% }
  button { cursor: pointer } button:hover { background: var(--soft) }
  #run { background: var(--key); color: var(--on-key); border-color: var(--key);
    font-weight: 600; min-width: 6.5rem }
  #stop { color: var(--bad); border-color: var(--bad) } #task, #token { flex: 1 1 11rem;
    min-width: 0 }
  :focus-visible { outline: 2px solid var(--key); outline-offset: 2px }
  pre, textarea, code { font: .875rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace }
  pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate }
  pre, code { background: var(--soft); border-radius: .4rem } pre { padding: .5rem .7rem }
  code { padding: .1em .3em } #prompt { margin-top: .8rem; overflow-wrap: anywhere }
  #prompt p { white-space: pre-wrap } #prompt pre { margin: 0 0 .6rem }
  #prompt pre:last-child, #prompt:empty { margin: 0 }
  #editor { display: grid; grid-template-columns: auto minmax(0, 1fr); margin: .6rem 0 0;
    border: 1px solid var(--line); border-radius: .4rem; overflow: hidden }
  #editor:focus-within { outline: 2px solid var(--key); outline-offset: 1px }
  #lines { color: var(--dim); text-align: right; white-space: pre; overflow: hidden; height: 0;
    min-height: 100%; border-radius: 0; user-select: none; padding-bottom: 3rem }
  #lines, #code { font-size: 1rem; tab-size: 4 }
  #code { border: 0; border-radius: 0; outline: 0; width: 100%; padding: .5rem .6rem;
    resize: vertical; white-space: pre; overflow: auto; min-height: 15rem; max-height: 70vh;
    field-sizing: content }
  #code::placeholder { color: var(--dim); opacity: 1 }
  #stdin { width: 100%; margin-top: .5rem; font-size: 1rem } #input { margin: .8rem 0 0 }
  #verdict { font-size: 1.25rem; font-weight: 650; line-height: 1.3 }
  #line { display: flex; flex-wrap: wrap; gap: 0 .8rem; align-items: baseline; margin-top: .6rem }
  .good { color: var(--good) } .bad { color: var(--bad) }
  #bar { height: .4rem; border-radius: .2rem; margin-top: .5rem; background: var(--soft);
    overflow: hidden } #bar div { height: 100%; background: var(--good) }
  #alarm:not([hidden]) { display: flex; flex-wrap: wrap; gap: .5rem; align-items: center }
  #message { flex: 1 1 14rem; overflow-wrap: anywhere } #alarm { margin-top: .6rem; padding: .5rem
    .7rem; background: var(--alert); border-left: 3px solid var(--bad); border-radius: .3rem }
  #message, #feedback { white-space: pre-line } #feedback { overflow-wrap: anywhere }
  dl, dd { margin: 0 } dt { margin-top: .5rem } pre { overflow: hidden }
  dl details { padding: .4rem .7rem; margin: .4rem 0 0 } summary { cursor: pointer }
  dl details pre { margin-top: .4rem; max-height: 26rem; overflow: auto }
  svg { display: block; width: 100%; height: auto; margin-bottom: .5rem; color: var(--key) }
  svg text { fill: var(--dim); font-size: 12px } svg .grid { stroke: var(--line) }
  table { width: 100%; border-collapse: collapse; table-layout: fixed; font-size: .875rem }
  caption { text-align: left } th { text-align: left; font-weight: 400 }
  th, td { padding: .2rem .5rem .2rem 0; overflow: hidden; text-overflow: ellipsis;
    white-space: nowrap } tr { border-bottom: 1px solid var(--line) }
  td:first-child, th:first-child { width: 6.2rem; overflow: visible } td button { min-height: 2rem;
    padding: .1rem .6rem } td:nth-child(3), th:nth-child(3) { width: 4.2rem }
  td:nth-child(2), th:nth-child(2) { width: 7rem } footer pre { margin: .3rem 0 .6rem }
  footer a { color: var(--key) } footer h2 { margin: .9rem 0 .3rem }
  @media (max-width: 34rem) { th:nth-child(4), td:nth-child(4) { display: none }
    svg text { font-size: 16px } }
  @media (hover: none) { #keys { display: none } }
</style>
<header><h1>$NAME</h1><span class="dim" id="about"></span><small id="facts"></small></header>
<main>
<div class="column">
  <form id="access" hidden>
    <label for="token">Token of this server</label>
    <div class="row"><input id="token" type="password" autocomplete="off">
      <button>Use this token</button></div>
  </form>
  <section aria-label="Task">
    <div class="row" id="choice"><label for="task">Task</label><select id="task"></select></div>
    <div id="prompt"></div>
  </section>
  <section aria-label="Editor">
    <div class="row"><label for="code" id="kind">Code</label>
      <small id="keys">Ctrl+Enter runs. Esc, then Tab leaves the editor.</small></div>
    <div id="editor"><pre id="lines" aria-hidden="true">1</pre><textarea id="code" rows="10"
      aria-describedby="keys" spellcheck="false" autocapitalize="off" autocomplete="off"
      autocorrect="off" wrap="off" placeholder="# Write Python here"></textarea></div>
    <details id="input" hidden><summary>Standard input</summary>
      <textarea id="stdin" rows="3" spellcheck="false" aria-label="Standard input"></textarea>
    </details>
  </section>
</div>
<div class="column" id="seen">
  <section id="dock" aria-label="Run and verdict">
    <div class="row"><button id="run">Run</button><button id="stop" hidden>Stop</button>
      <button id="restart">New episode</button><span class="dim" id="left"></span></div>
    <div id="line"><output id="verdict">Loading…</output><span class="dim" id="reward"></span></div>
    <div id="bar" hidden><div></div></div>
    <div id="alarm" hidden><div id="message" role="alert"></div>
      <button id="retry" hidden>Try again</button></div>
  </section>
  <section aria-label="Output"><h2>Output</h2><p id="feedback" role="status"></p>
    <dl id="output"></dl></section>
  <section aria-label="Steps"><h2>Steps</h2>
    <svg id="plot" role="img" aria-labelledby="plot-title plot-desc" viewBox="0 0 480 132" hidden>
      <title id="plot-title">Reward over the steps of this episode</title>
      <desc id="plot-desc"></desc><g id="drawing"></g></svg>
    <p class="dim" id="none">The code of each step comes back into the editor by a click here.</p>
    <table id="history" hidden><thead><tr><th>Step<th>Verdict<th>Reward<th>Code</thead></table>
    <p class="dim" id="note" role="status"></p></section>
</div>
</main>
<footer><details><summary>The same from Python or curl, and all routes</summary>
  <h2>Python</h2><pre id="python"></pre><button data-copies="python">Copy</button>
  <h2>curl</h2><pre id="curl"></pre><button data-copies="curl">Copy</button>
  <h2>Routes</h2><p>POST reset, step, mcp; WebSocket ws; GET state and <span id="routes"></span></p>
</details></footer>
<script type="module">
const ui = {};
for (const element of document.querySelectorAll("[id]")) ui[element.id] = element;
const base = location.pathname.replace(/docs\/*$/, "");  // so that it works below a prefix
const SVG = "http://www.w3.org/2000/svg";
const SHOWN = "done reward metadata prompt feedback task_id tests_passed tests_total exit_code";

let token = "";
let session = "";  // the server's name for ours
let running = null;  // the AbortController of what runs
let schema = null;  // null: not loaded yet
let isPython = false;  // else the editor holds an action's JSON
let again = null;  // what "Try again" does
let leaves = false;  // whether the next Tab leaves the editor
let episode = { number: 0, steps: [], most: null, taken: 0, isOver: true };

// Everything that comes from outside becomes text here, and never markup.
function make(tag, text = "", className = "") {
  const element = document.createElement(tag);
  element.textContent = text;
  element.className = className;
  return element;
}
function draw(tag, attributes, text = "") {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  return element;
}
const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;

// ── The server ──

class Trouble extends Error {
  constructor(status, words) { super(words); this.status = status; }
}
function headers() {
  const all = { "Content-Type": "application/json" };
  // A header holds bytes, and a token may have other letters than ASCII's.
  const bytes = String.fromCharCode(...new TextEncoder().encode(token));
  if (token) all.Authorization = `Bearer ${bytes}`;
  if (session) all["X-Session-Id"] = session;
  return all;
}
async function call(signal, path, body) {  // the JSON of the reply, or a Trouble in plain words
  const options = { method: "GET", headers: headers(), signal };
  if (body) Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  let reply = null;
  let data = null;
  try {
    reply = await fetch(base + path, options);
    data = await reply.json();
  } catch (error) {
    if (signal.aborted) throw error;
  }
  if (!reply) {
    throw new Trouble(0, "The server does not answer: it was stopped, or the network is down. "
      + "Your code is still here. Try again when the server is back.");
  }
  if (reply.ok && data) {
    if (path === "reset") session = reply.headers.get("X-Session-Id") ?? "";
    return data;
  }
  const faults = [data?.detail ?? "no reason given"].flat();
  const words = faults.map((one) => one.msg ? `${one.loc.join(".")}: ${one.msg}` : one).join("\n");
  if (reply.status === 401) {
    throw new Trouble(401, token ? "The server did not accept this token."
      : "The server asks for its token: enter it above the task.");
  }
  if (reply.status === 503) throw new Trouble(503, `The server is busy: ${words}`);
  if (!data) {
    throw new Trouble(reply.status, `The answer was not the environment's (HTTP ${reply.status}): `
      + "something between here and the server is at fault, or the server is just starting.");
  }
  throw new Trouble(reply.status, `The server refused this: ${words}`);
}

// ── What runs: one thing at a time ──

async function act(work) {
  running?.abort();
  const mine = new AbortController();
  running = mine;
  say("");
  const began = Date.now();
  const clock = setInterval(() => {  // most is over before anyone could read this
    ui.stop.hidden = false;
    ui.run.textContent = `Running… ${Math.round((Date.now() - began) / 1000)} s`;
  }, 250);
  ui.run.setAttribute("aria-disabled", "true");
  try {
    if (!schema && work !== load) await load(mine.signal);
    await work(mine.signal);
  } catch (error) {
    if (!mine.signal.aborted) explain(error, work);
  }
  clearInterval(clock);
  if (running !== mine) return;
  running = null;
  if (document.activeElement === ui.stop) ui.run.focus();
  ui.stop.hidden = true;
  ui.run.textContent = "Run";
  ui.run.removeAttribute("aria-disabled");
}
function say(words) {
  ui.alarm.hidden = !words;
  ui.message.textContent = words;
  ui.retry.hidden = true;
}
function explain(error, work) {
  if (!(error instanceof Trouble)) console.error(error);
  say(error.message);
  clearResult("No verdict");
  ui.access.hidden = ui.access.hidden && error.status !== 401;
  if (error.status === 401) ui.token.focus();
  again = work;
  ui.retry.hidden = ![0, 502, 503, 504].includes(error.status);
}
function stop() {
  if (!running) return;
  running.abort();
  const ended = { method: "DELETE", headers: headers() };
  if (session) fetch(`${base}mcp`, ended).catch(() => {});  // which ends any session
  session = "";
  clearResult("Stopped");
  say("Stopped, and the session is closed: names that earlier steps defined are gone. "
    + "Run begins a new episode.");
  ui.left.textContent = "";
}

// ── An episode ──

async function load(signal) {
  const found = await call(signal, "schema");
  const { tasks } = await call(signal, "tasks");
  const about = await call(signal, "metadata");
  ui.access.hidden = true;
  ui.about.textContent = about.description;
  const isFull = about.isolation?.full;
  const reached = isFull === undefined ? "" : ` · isolation ${isFull ? "full" : "partial"}`;
  ui.facts.textContent = `version ${about.version}${reached}`;
  const { properties, required = [] } = found.action;
  isPython = "code" in properties && required.every((name) => name === "code");
  const options = tasks.map((task) => {
    const facts = [task.difficulty, plural(task.tests_total ?? 0, "test")].filter(Boolean);
    return new Option(`${task.task_id} (${facts.join(", ")})`, task.task_id);
  });
  if (isPython && "tests_total" in found.observation.properties) {
    options.push(new Option("repl (no tests)", "repl"));
  }
  ui.task.replaceChildren(...options);
  ui.choice.hidden = !options.length;
  for (const { value } of options) {
    if (`#${encodeURIComponent(value)}` === location.hash) ui.task.value = value;
  }
  ui.input.hidden = !(isPython && "stdin" in properties);
  if (!isPython) describeAction(properties, required);
  schema = found;
  await reset(signal);
}
function describeAction(properties, required) {
  const example = {};
  for (const name of required) {
    const { type, minimum = 0 } = properties[name];
    const simple = { integer: minimum, number: minimum, boolean: false, array: [], object: {} };
    example[name] = simple[type] ?? "";
  }
  ui.kind.textContent = "Action, as JSON";
  ui.code.placeholder = "";
  ui.code.value ||= JSON.stringify(example, null, 2);
  number();
  const lines = Object.entries(properties).map(([name, { type = "any", description = "" }]) =>
    make("p", `${name} (${type}${required.includes(name) ? ", required" : ""}): ${description}`));
  ui.prompt.replaceChildren(...lines);
}
async function reset(signal) {
  const data = await call(signal, "reset", ui.task.value ? { task_id: ui.task.value } : {});
  const seen = data.observation;
  const { number } = episode;
  episode = { number: number + 1, steps: [], most: null, taken: 0, isOver: false };
  if (seen.prompt) ui.prompt.replaceChildren(...rendered(seen.prompt));
  clearResult("Not run yet");
  if (seen.tests_total) {
    ui.feedback.textContent = `${plural(seen.tests_total, "hidden test")} (assert statements, or `
      + "inputs of a program): each counts the same.";
  }
  showOutput(seen);
  plot();
  await count(signal);
  showCommands();
}
async function step(signal) {
  const action = readAction();
  if (!session || episode.isOver) await reset(signal);
  const waiting = setTimeout(() => { clearResult("Running…"); }, 250);
  try {
    let data;
    let lost = false;
    try {
      data = await call(signal, "step", { action });
    } catch (error) {
      if (error.status !== 404) throw error;
      lost = episode.steps.length > 0;
      session = "";
      await reset(signal);
      data = await call(signal, "step", { action });
    }
    clearTimeout(waiting);
    show(data);
    record(ui.code.value, data);
    if (lost) {
      say("The session was lost: nobody used it for too long, or the server was restarted. "
        + "So this ran as the first step of a new episode: names of earlier steps are gone.");
    }
  } catch (error) {
    clearTimeout(waiting);
    if (error.status === 409) await count(signal);
    throw error;
  }
  await count(signal).catch(() => {});  // the verdict stands; what is wrong the next call will say
}
function readAction() {
  const stdin = ui.stdin.value ? { stdin: ui.stdin.value } : {};
  if (isPython) return { code: ui.code.value, ...stdin };
  try {
    return JSON.parse(ui.code.value);
  } catch (error) {
    throw new Trouble(422, `The action is no JSON: ${error.message}`);
  }
}
async function count(signal) {  // the steps that are left, as the server knows them
  const state = await call(signal, "state");
  episode.taken = state.step_count ?? 0;
  episode.most = state.max_steps ?? null;
  const left = episode.most === null ? "" : `${episode.most - episode.taken} of `
    + `${plural(episode.most, "step")} left`;
  ui.left.textContent = episode.isOver ? "Episode over: Run begins another" : left;
  plot();
}

// ── What came of it ──

function rendered(prompt) {  // paragraphs, items of lists, code
  const isCode = new RegExp("^(    |\\t|>>>|```|@\\w|(async )?def \\w+ *\\(|class \\w+.*:$|"
    + "import \\w+$|from \\S+ import )", "m");
  const parts = [];
  for (const block of prompt.split(/\n[^\S\n]*\n/)) {
    const last = parts.at(-1);
    const isOpen = last?.isCode && (last.text.match(/^```/gm) ?? []).length % 2 === 1;
    const looksSo = isOpen || isCode.test(block);
    if (last && last.isCode && looksSo) last.text += `\n\n${block}`;
    else parts.push({ isCode: looksSo, text: block });
  }
  return parts.filter((part) => part.text.trim()).flatMap(({ isCode: asCode, text }) => {
    if (asCode) return [make("pre", text.replace(/^```.*\n?/gm, "").replace(/^\n+|\s+$/g, ""))];
    return text.trim().split(/\n(?=\s*(?:[-*•]|\d+[.)])\s)/).map((item) => {
      const line = make("p", "", /^\s*([-*•]|\d+[.)])\s/.test(item) ? "item" : "");
      for (const piece of item.replace(/\s*\n\s*/g, " ").split(/(`[^`]+`)/)) {
        line.append(/^`.+`$/.test(piece) ? make("code", piece.slice(1, -1)) : piece);
      }
      return line;
    });
  });
}
function verdictOf({ observation: seen, reward }) {
  if (seen.tests_total) {
    const late = seen.exit_code === 124 ? ", timed out" : "";
    return `${seen.tests_passed} of ${plural(seen.tests_total, "test")} passed${late}`;
  }
  if (seen.exit_code === 0) return "Ran without an error";
  if (seen.exit_code === 124) return "Timed out";
  if (seen.exit_code) return `Ended with exit code ${seen.exit_code}`;
  return typeof reward === "number" ? `Reward ${reward}` : "Done";
}
const isGraded = ({ observation: seen, reward }) =>
  typeof reward === "number" && (seen.tests_total > 0 || !("exit_code" in seen));
function clearResult(verdict) {
  ui.verdict.textContent = verdict;
  ui.verdict.className = "dim";
  ui.reward.textContent = ui.feedback.textContent = "";
  ui.bar.hidden = true;
  ui.output.replaceChildren();
}
function show(data) {
  const { observation: seen, reward, done } = data;
  const isBad = seen.exit_code || (seen.tests_total && !seen.tests_passed);
  episode.isOver = done;
  ui.verdict.textContent = verdictOf(data);
  ui.verdict.className = seen.tests_total && reward === 1 ? "good" : isBad ? "bad" : "";
  const isSolved = seen.tests_total && seen.tests_passed === seen.tests_total;
  const worth = isGraded(data) ? `reward ${reward.toFixed(2)}` : "";
  ui.reward.textContent = [isSolved ? "solved" : "", worth].filter(Boolean).join(" · ");
  ui.bar.hidden = !seen.tests_total;
  ui.bar.firstChild.style.width = `${100 * seen.tests_passed / (seen.tests_total || 1)}%`;
  const isSaid = seen.feedback === `${ui.verdict.textContent}.`;
  ui.feedback.textContent = isSaid ? "" : seen.feedback ?? "";
  const { top, bottom } = ui.verdict.getBoundingClientRect();
  if (top < 0 || bottom > innerHeight) ui.dock.scrollIntoView({ block: "nearest" });
  showOutput(seen);
  if (ui.output.childElementCount) return;
  ui.output.append(make("dt", "output"), make("dd", "Nothing was printed.", "dim"));
}
function showOutput(seen) {
  const fields = Object.entries(seen).filter(([name, value]) =>
    !SHOWN.split(" ").includes(name) && value !== null && value !== "");
  if (Object.keys(seen.metadata ?? {}).length) fields.push(["metadata", seen.metadata]);
  ui.output.replaceChildren(...fields.flatMap(([name, value]) => {
    const text = typeof value === "string" ? value : JSON.stringify(value);
    return [make("dt", name), folded(name, text)];
  }));
}
function folded(name, text) {  // a long text: its beginning, or a traceback's end, and the rest
  const item = make("dd");
  const lines = text.replace(/\n$/, "").split("\n");
  if (lines.length <= 20 && text.length <= 2_000) {
    item.append(make("pre", text));
    return item;
  }
  const isTail = name === "stderr";
  const part = (isTail ? lines.slice(-8) : lines.slice(0, 8)).join("\n");
  const cut = isTail ? part.slice(-800) : part.slice(0, 800);
  const all = make("details");
  const whole = make("pre", text);
  whole.tabIndex = 0;
  whole.setAttribute("role", "region");
  whole.ariaLabel = `All of ${name}`;
  const size = `${plural(lines.length, "line")}, ${plural(text.length, "character")}`;
  all.append(make("summary", `All of ${name}: ${size}`), whole);
  item.append(make("pre", isTail ? `…\n${cut}` : `${cut}\n…`), all);
  return item;
}
function record(code, data) {
  episode.steps.push(isGraded(data) ? data.reward : null);
  const number = episode.steps.length;
  if (number === 1) {
    const row = ui.history.tHead.insertAdjacentElement("afterend", make("tbody")).insertRow();
    const title = make("th", `Episode ${episode.number} ${ui.task.value}`);
    title.colSpan = 4;
    title.scope = "rowgroup";
    row.append(title);
  }
  const back = make("button", `Step ${number}`);
  back.ariaLabel = `Step ${number} of episode ${episode.number}: its code back into the editor`;
  back.title = "Its code back into the editor";
  back.onclick = () => {
    put(code);
    ui.note.textContent = `The code of step ${number} is in the editor; undo (Ctrl+Z) brings back `
      + "what was there.";
  };
  const row = ui.history.tBodies[0].insertRow(1);
  row.insertCell().append(back);
  const { tests_total: total, tests_passed: passed } = data.observation;
  const words = [`${passed} of ${total}`, `exit code ${data.observation.exit_code}`, "–"];
  row.insertCell().textContent = words[total ? 0 : "exit_code" in data.observation ? 1 : 2];
  row.insertCell().textContent = isGraded(data) ? data.reward.toFixed(2) : "–";
  row.insertCell().append(make("code", code.trim().split("\n", 1)[0].slice(0, 80)));
  ui.history.hidden = false;
  ui.none.hidden = true;
}
function plot() {
  const rewards = episode.steps;
  ui.plot.toggleAttribute("hidden", !rewards.some((reward) => reward !== null));
  const low = Math.min(0, ...rewards);
  const high = Math.max(1, ...rewards);
  const most = episode.most > 1 && episode.most <= 50 ? episode.most : Math.max(2, rewards.length);
  const x = (index) => 40 + 425 * index / (most - 1);
  const y = (reward) => 105 - 92 * (reward - low) / (high - low);
  const parts = [low, (low + high) / 2, high].flatMap((reward) => [
    draw("line", { class: "grid", x1: 40, x2: 468, y1: y(reward), y2: y(reward) }),
    draw("text", { x: 34, y: y(reward) + 4, "text-anchor": "end" }, String(reward)),
  ]);
  for (const index of [0, most - 1]) {
    const place = { x: x(index), y: 126, "text-anchor": index ? "end" : "start" };
    parts.push(draw("text", place, index ? `step ${most}` : "step 1"));
  }
  const points = rewards.map((reward, index) => `${x(index)},${y(reward ?? low)}`).join(" ");
  const stroke = { fill: "none", stroke: "currentColor", "stroke-width": 2 };
  parts.push(draw("polyline", { points, ...stroke }));
  rewards.forEach((reward, index) => {
    parts.push(draw("circle", { cx: x(index), cy: y(reward ?? low), r: 4, fill: "currentColor" }));
  });
  ui.drawing.replaceChildren(...parts);
  const sentences = rewards.map((reward, index) =>
    `Step ${index + 1}: ${reward?.toFixed(2) ?? "none"}.`);
  ui["plot-desc"].textContent = sentences.slice(-50).join(" ");
}

// ── The editor: a textarea, because it has undo, input methods and screen readers by itself ──

function insert(text) {  // as if typed, so that undo knows of it
  const command = text ? "insertText" : "delete";
  if (!document.execCommand(command, false, text)) {
    ui.code.setRangeText(text, ui.code.selectionStart, ui.code.selectionEnd, "end");
    number();
  }
}
function put(code) {
  ui.code.focus();
  ui.code.select();
  insert(code);
}
function number() {
  const lines = ui.code.value.split("\n").length;
  ui.lines.textContent = Array.from({ length: lines }, (_, index) => index + 1).join("\n");
  ui.lines.scrollTop = ui.code.scrollTop;
}
function indent(isBack) {  // the lines of the selection, or spaces up to the next stop
  const { selectionStart: from, selectionEnd: to, value } = ui.code;
  const start = value.lastIndexOf("\n", from - 1) + 1;
  if (!isBack && !value.slice(from, to).includes("\n")) {
    insert(" ".repeat(4 - (from - start) % 4));
    return;
  }
  const end = to > from && value[to - 1] === "\n" ? to - 1 : to;
  const old = value.slice(start, end);
  const now = isBack ? old.replace(/^( {1,4}|\t)/gm, "") : old.replace(/^(?=.)/gm, "    ");
  if (now === old) return;
  ui.code.setSelectionRange(start, end);
  insert(now);
  const first = now.length - old.length;
  const caret = Math.max(start, from + first);
  if (from === to) ui.code.setSelectionRange(caret, caret);
  else ui.code.setSelectionRange(start, start + now.length);
}
ui.code.onkeydown = (event) => {
  if (event.isComposing) return;
  if (event.key === "Escape") {
    leaves = true;
  } else if (event.key === "Tab" && !leaves && !event.ctrlKey && !event.altKey && !event.metaKey) {
    event.preventDefault();
    indent(event.shiftKey);
  } else if (!["Shift", "Tab"].includes(event.key)) {
    leaves = false;
  }
};
ui.code.oninput = () => {
  number();
  ui.note.textContent = "";
  try { sessionStorage.setItem(`code ${base}`, ui.code.value); } catch { /* no storage here */ }
};
ui.code.onblur = () => { leaves = false; };
ui.code.onscroll = () => { ui.lines.scrollTop = ui.code.scrollTop; };
document.onkeydown = (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    ui.run.click();
  }
};

// ── Buttons, and the commands that do the same ──

ui.run.onclick = () => { if (!running) act(step); };
ui.stop.onclick = stop;
ui.restart.onclick = () => act(reset);
ui.retry.onclick = () => act(again);
ui.task.onchange = () => {
  history.replaceState(null, "", `#${encodeURIComponent(ui.task.value)}`);
  act(reset);
};
ui.access.onsubmit = (event) => {
  event.preventDefault();
  token = ui.token.value.trim();
  act(schema && again ? again : load);
};
function showCommands() {
  const url = location.origin + base.replace(/\/$/, "");
  const task = ui.task.value;
  const action = isPython ? { code: "print(6 * 7)" } : readAction();
  const quoted = (data) => `'${JSON.stringify(data).replaceAll("'", "'\\''")}'`;
  ui.python.textContent = isPython
    ? `from python_env import PythonAction, PythonEnv

with PythonEnv(base_url="${url}") as env:
    print(env.reset(${task && `task_id=${JSON.stringify(task)}`}).observation)
    print(env.step(PythonAction("print(6 * 7)")))`
    : `from python_env import EnvClient

with EnvClient(base_url="${url}") as env:
    print(env.reset())
    print(env.step(${JSON.stringify(action)}))`;
  ui.curl.textContent = `# its answer has a header X-Session-Id, which the next commands repeat
curl -i ${url}/reset -d ${quoted(task ? { task_id: task } : {})}
curl ${url}/step -H 'X-Session-Id: …' -d ${quoted({ action })}`;
}
for (const copy of document.querySelectorAll("[data-copies]")) {
  copy.onclick = () => {
    getSelection().selectAllChildren(ui[copy.dataset.copies]);
    document.execCommand("copy");
    copy.textContent = "Copied";
  };
}
for (const name of ["tasks", "schema", "health", "metadata", "openapi.json"]) {
  const link = make("a", name);
  link.href = base + name;
  ui.routes.append(link, name === "openapi.json" ? "." : ", ");
}
try { ui.code.value = sessionStorage.getItem(`code ${base}`) ?? ""; } catch { /* no storage */ }
number();
await act(load);
</script></html>"""

# The built-in tasks: rows as a tasks.jsonl has them, one of each kind that people do at work.
BUILTIN_ROWS: tuple[dict[str, Any], ...] = (
    {
        "task_id": "parse-duration",
        "difficulty": "easy",
        "prompt": """\
Define `parse_duration(text)`: the seconds, an int, in a text like "1h30m" (5400) or " 2h 5s "
(7205). Its parts are hours, minutes and seconds in this order, each at most once, at least one of
them: digits 0-9, then h, m or s. A number may be of any size: "90m" is 5400, "0s" is 0. Spaces may
stand before, between and after the parts, but not inside of one. Raise ValueError for any other
text: parts out of order or twice, a number alone, a split part ("1 h"), a sign, a fraction, other
or capital letters, white space that is no space, other digits than 0-9, or nothing at all.""",
        "helpers": """\
def refused(function, *texts):
    for text in texts:
        try:
            function(text)
            return False
        except ValueError:
            pass
    return True
""",
        "tests": r"""
assert parse_duration("45s") == 45
assert parse_duration("2h15m") == 8100
assert parse_duration("1h2m3s") == 3723
assert parse_duration("4h6s") == 14406
assert parse_duration("75m") == 4500 and parse_duration("100h600s") == 360600
assert parse_duration("0h0m0s") == 0
assert type(parse_duration("9m")) is int
assert parse_duration("  3h  7s ") == 10807
assert parse_duration("8s") == 8 and refused(parse_duration, "", "   ")
assert parse_duration("8s") == 8 and refused(parse_duration, "12", "1h30", "h")
assert parse_duration("5m1s") == 301 and refused(parse_duration, "1s5m", "5m1h")
assert parse_duration("3s") == 3 and refused(parse_duration, "3s3s", "1h1h")
assert parse_duration("12s") == 12 and refused(parse_duration, "12 s", "3 m", "1 2s")
assert parse_duration("3h") == 10800 and refused(parse_duration, "-3h", "+3h", "1.5h")
assert parse_duration("2h") == 7200 and refused(parse_duration, "2H", "2h 7d", "x2h", "2h.")
assert parse_duration("5s") == 5 and refused(parse_duration, "5s\n", "\t5s", "\u0663s")
""",
        "solution": """\
import re

PARTS = re.compile(" *(?:([0-9]+)h *)?(?:([0-9]+)m *)?(?:([0-9]+)s *)?")

def parse_duration(text):
    found = PARTS.fullmatch(text)
    if not found or not any(found.groups()):
        raise ValueError(text)
    hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return hours * 3600 + minutes * 60 + seconds
""",
    },
    {
        "task_id": "clean-people",
        "difficulty": "easy",
        "prompt": """\
Define `clean(rows)`. A row is a dict of strings: "name", "email", perhaps "age", perhaps others.
Return a list of new dicts with just the keys "name", "email" and "age":

- name: without white space around it; each run of white space in it becomes one space.
- email: without white space around it, in lower case.
- age: without white space around it, as an int; None if it is missing, is not digits 0-9 alone, or
  is over 150.
- Drop rows whose email has not exactly one "@" with text on both sides of it.
- Rows with the same cleaned email are one person: the name is the first row's, the age is the first
  that is not None. People stand in the order of their first rows.
- Leave `rows` and the dicts in it as they are.

clean([{"name": " Ada  King", "email": "ADA@x.org "}, {"name": "A", "email": "ada@x.org",
"age": "36"}]) is [{"name": "Ada King", "email": "ada@x.org", "age": 36}].""",
        "helpers": """\
def row(name="Z", email="z@z", **more):
    return {"name": name, "email": email, **more}

def column(key, people):
    return [person[key] for person in people]
""",
        "tests": r"""
assert clean([]) == [] and len(clean([row()])) == 1
assert clean([row()]) == [{"name": "Z", "email": "z@z", "age": None}]
assert column("name", clean([row("  Bo\t Li   Wu ")])) == ["Bo Li Wu"]
assert column("email", clean([row(email=" Bo@X.ORG\n")])) == ["bo@x.org"]
assert column("age", clean([row(age=" 42 ")])) == [42]
assert [column("age", clean([row(age=age)])) for age in ("0", "150", "151")] == [[0], [150], [None]]
assert all(column("age", clean([row(age=age)])) == [None] for age in ("-3", "4.5", "", "1e1", "x"))
assert all(column("age", clean([row(age=age)])) == [None] for age in ("\u0663", "\u00b2"))
assert clean([row(phone="1")]) == [{"name": "Z", "email": "z@z", "age": None}]
bad = [row(email=email) for email in ("", "b", "@b", "b@", "b@@c", "b@c@d", " @ ")]
assert column("email", clean([*bad, row(email="y@y")])) == ["y@y"]
mixed = [row(email, email) for email in ("c@c", "b@b", "C@c ", "a@a", "b@B")]
assert column("email", clean(mixed)) == ["c@c", "b@b", "a@a"]
assert column("name", clean([row("One"), row("Two"), row("Six", "x@x")])) == ["One", "Six"]
assert column("age", clean([row(age=age) for age in ("?", "7", "8")])) == [7]
assert column("age", clean([row(age=age) for age in ("0", "9")])) == [0]
before = [row(" A  B ", " Q@q ", age="1"), row("C", "q@q"), row("D", "")]
after = [dict(each) for each in before]
assert len(clean(after)) == 1 and after == before
""",
        "solution": """\
import re

def clean(rows):
    people = {}
    for row in rows:
        email = row["email"].strip().lower()
        if not re.fullmatch("[^@]+@[^@]+", email):
            continue
        name = " ".join(row["name"].split())
        person = people.setdefault(email, {"name": name, "email": email, "age": None})
        if person["age"] is None:
            person["age"] = clean_age(row.get("age", ""))
    return list(people.values())

def clean_age(text):
    text = text.strip()
    if re.fullmatch("[0-9]+", text) and int(text) <= 150:
        return int(text)
    return None
""",
    },
    {
        "task_id": "fix-means",
        "difficulty": "easy",
        "prompt": """\
`means(values, size)` should return a list with the mean of each run of `size` values (the last may
be shorter), leave `values` as it is, and raise ValueError for a size below 1. Define it without
bugs:

def means(values, size, out=[]):
    for i in range(0, len(values) - size, size): out.append(sum(values[i:i + size]) / size)
    return out""",
        "helpers": """\
def refused(function, *arguments):
    try:
        function(*arguments)
    except ValueError:
        return True
""",
        "tests": """\
assert means([], 3) == []
assert means([1, 2, 3, 4], 2) == [1.5, 3.5]
assert means([5, 7, 9], 1) == [5, 7, 9]
assert [means([6, 8], 1), means([], 2), means([2], 1)] == [[6, 8], [], [2]]
assert means([1, 2, 3, 4, 9], 2) == [1.5, 3.5, 9]
assert means([4, 8], 5) == [6]
assert means([-1.5, 0.5, 0, 0, 0, 3], 4) == [-0.25, 1.5]
values = [9, 3, 6, 8, 4]
assert means(values, 3) == [6, 6] and values == [9, 3, 6, 8, 4]
assert means([8], 1) == [8] and refused(means, [1, 2], 0) and refused(means, [], 0)
assert means([8], 1) == [8] and refused(means, [1, 2], -1) and refused(means, [], -2)
""",
        "solution": """\
def means(values, size):
    if size < 1:
        raise ValueError(size)
    runs = [values[i:i + size] for i in range(0, len(values), size)]
    return [sum(run) / len(run) for run in runs]
""",
    },
    {
        "task_id": "build-order",
        "difficulty": "medium",
        "prompt": """\
Define `build_order(needs)`, which tells in which order to build packages, one at a time. `needs` is
a dict from a package to a list of those it needs; these may be missing among the keys, and may be
listed twice. Return the list of all packages, keys or not, each once and after all that it needs.
Where several could come next, the alphabetically first of these comes next: for {"b": ["a"], "z":
[], "a": ["x"]} that is ["x", "a", "b", "z"]. Raise ValueError if packages need each other in a
circle, or one needs itself. Leave `needs` as it is. Chains may be thousands of packages long.""",
        "helpers": """\
def refused(function, *arguments):
    try:
        function(*arguments)
    except ValueError:
        return True
""",
        "tests": """\
assert build_order({}) == [] and build_order({"one": []}) == ["one"]
assert build_order({"b": [], "c": [], "a": []}) == ["a", "b", "c"]
assert build_order({"app": ["lib"], "lib": ["core"], "core": []}) == ["core", "lib", "app"]
assert build_order({"x": ["q"], "w": ["q", "r"]}) == ["q", "r", "w", "x"]
assert build_order({"d": ["b", "c"], "c": ["a"], "b": ["a"], "a": []}) == ["a", "b", "c", "d"]
assert build_order({"k": ["j", "j"], "j": []}) == ["j", "k"]
assert build_order({"a": ["z"], "m": [], "z": []}) == ["m", "z", "a"]
assert build_order({"d": ["c"], "c": [], "x": [], "e": ["d"]}) == ["c", "d", "e", "x"]
assert build_order({"b": []}) == ["b"] and refused(build_order, {"a": ["b"], "b": ["a"]})
assert build_order({"b": []}) == ["b"] and refused(build_order, {"a": ["a"], "b": []})
assert build_order({"d": []}) == ["d"] and refused(
    build_order, {"a": ["b"], "b": ["c"], "c": ["b"], "d": []})
needs = {"t": ["s", "r"], "s": ["r"]}
assert build_order(needs) == ["r", "s", "t"] and needs == {"t": ["s", "r"], "s": ["r"]}
chain = {f"{i:04}": [f"{i + 1:04}"] for i in range(2000)}
assert build_order(chain) == [f"{i:04}" for i in range(2000, -1, -1)]
""",
        "solution": """\
import heapq

def build_order(needs):
    waits = {name: set(needed) for name, needed in needs.items()}
    for name in [name for needed in needs.values() for name in needed]:
        waits.setdefault(name, set())
    users = {name: [] for name in waits}
    for name, needed in waits.items():
        for each in needed:
            users[each].append(name)
    left = {name: len(needed) for name, needed in waits.items()}
    ready = sorted(name for name in left if left[name] == 0)
    order = []
    while ready:
        name = heapq.heappop(ready)
        order.append(name)
        for user in users[name]:
            left[user] -= 1
            if left[user] == 0:
                heapq.heappush(ready, user)
    if len(order) < len(waits):
        raise ValueError("packages need each other in a circle")
    return order
""",
    },
    {
        "task_id": "sales-report",
        "difficulty": "medium",
        "prompt": """\
Write a program. It reads sales from standard input, one a line, as `shop;amount`, and prints a line
`shop total` for each shop, then `skipped N`.

- Blank lines do not count. White space around the shop and around the amount does not either.
- An amount is digits 0-9, perhaps with a "-" before them, perhaps with a "." and one or two more
  digits behind them: 5, 5.5, -0.75.
- Any other line is skipped and counted in N: one that has not exactly one ";", has no shop, or has
  something else for an amount, as 1e3, +5, .5, 5. or 1.234.
- Totals have two digits after the point, 0.00 if nothing is left, and are exact to the cent,
  however large.
- The largest total comes first; shops with the same total stand in the order of sorted().
- Shops are told apart by capital letters too, and a shop may have spaces in its name.

For the lines `Bonn;12.50`, `New York; 20`, `Bonn;?` and `Bonn;.5` it prints the lines `New York
20.00`, `Bonn 12.50` and `skipped 2`.""",
        "inputs": (
            "Rome;7.25\n",
            "Oslo;3\nOslo;4.5\nOslo;0.05\n",
            "Lyon;1.00\nKyiv;30\nRiga;200.1\n",
            "Wien;5\nBern;2.50\nWien;-1\nBern;1.5\nCork;4.00\n",
            "  San Marino ; 8.40  \nSan Marino;1\n",
            "\nGent;1\n\n   \nGent;2\n\n",
            "Nice\nNice;x\n;5\n  ;5\nNice;2;3\nNice;\nNice;6\n",
            "Pisa;2e3\nPisa;+7\nPisa;.8\nPisa;6.\nPisa;2.345\nPisa;--5\nPisa;nan\nPisa;9\n",
            "Graz;\u0663\nGraz;1_000\nGraz;2\n",
            "Linz;-0.75\nLinz;-0.50\nKiel;1\nKiel;-1.00\nJena;-0.05\n",
            "Huge;90071992547409.93\nHuge;0.06\nHuge;90071992547409.01\n",
            "ulm;1\nUlm;1\nULM;0.5\n",
            "",
        ),
        "outputs": (
            "Rome 7.25\nskipped 0\n",
            "Oslo 7.55\nskipped 0\n",
            "Riga 200.10\nKyiv 30.00\nLyon 1.00\nskipped 0\n",
            "Bern 4.00\nCork 4.00\nWien 4.00\nskipped 0\n",
            "San Marino 9.40\nskipped 0\n",
            "Gent 3.00\nskipped 0\n",
            "Nice 6.00\nskipped 6\n",
            "Pisa 9.00\nskipped 7\n",
            "Graz 2.00\nskipped 2\n",
            "Kiel 0.00\nJena -0.05\nLinz -1.25\nskipped 0\n",
            "Huge 180143985094819.00\nskipped 0\n",
            "Ulm 1.00\nulm 1.00\nULM 0.50\nskipped 0\n",
            "skipped 0\n",
        ),
        "solution": r"""
import re
import sys
from collections import Counter
from decimal import Decimal
from decimal import getcontext

getcontext().prec = 1000
totals = Counter()
skipped = 0
for line in sys.stdin:
    if not line.strip():
        continue
    shop, _, amount = (part.strip() for part in line.partition(";"))
    if shop and re.fullmatch("-?[0-9]+([.][0-9]{1,2})?", amount):
        totals[shop] += Decimal(amount)
    else:
        skipped += 1
for shop in sorted(totals, key=lambda shop: (-totals[shop], shop)):
    print(shop, f"{totals[shop]:.2f}")
print("skipped", skipped)
""",
    },
    {
        "task_id": "refactor-shipping",
        "difficulty": "medium",
        "prompt": """\
This works, but each new country is another branch. Refactor it; what it returns stays the same:

def shipping(country, grams, express=False):
    c = country.strip().upper()
    if grams <= 0: raise ValueError("no weight")
    if c == "DE":
        if grams <= 1000: p = 450
        elif grams <= 5000: p = 755
        elif grams <= 30000: p = 1255
        else: raise ValueError("too heavy")
    elif c == "AT" or c == "CH":
        if grams <= 2000: p = 905
        elif grams <= 10000: p = 1505
        else: raise ValueError("too heavy")
    else:
        if grams <= 1000: p = 1600
        elif grams <= 20000: p = 3900
        else: raise ValueError("too heavy")
    if express: p = p + max(500, p // 2)
    if c == "CH": p = p + 300
    return p

Define these:

- `RATES`: a dict from a country's code, "DE", "AT" or "CH", and "" for all others, to a dict
  {"steps": [(most grams, cents), ...], "customs": cents}, with its steps from light to heavy.
- `base_price(steps, grams)`: the cents of the first of such steps whose most grams are not less
  than `grams`; ValueError if there is none, or if `grams` is not above 0.
- `express_fee(cents)`: what express costs on top of such a price.
- `shipping(country, grams, express=False, rates=RATES)`: what the old code returns and raises, but
  by the table it is given. Customs are added last. No call changes a table.""",
        "helpers": """\
def refused(function, *arguments):
    try:
        function(*arguments)
    except ValueError:
        return True

OWN = {
    "JP": {"steps": [(10, 1), (20, 2000)], "customs": 7},
    "": {"steps": [(50, 60)], "customs": 0},
}
""",
        "tests": """\
assert [shipping("DE", grams) for grams in (1000, 1001, 5001, 30000)] == [450, 755, 1255, 1255]
assert [shipping("AT", grams) for grams in (2000, 2001, 10000)] == [905, 1505, 1505]
assert [shipping("CH", grams) for grams in (2000, 2001)] == [1205, 1805]
assert [shipping("US", grams) for grams in (1000, 1001, 20000)] == [1600, 3900, 3900]
assert [shipping("DE", grams, True) for grams in (10, 5000, 9000)] == [950, 1255, 1882]
assert [shipping("CH", grams, True) for grams in (10, 9000)] == [1705, 2557]
assert shipping(" de", 10) == 450 and shipping("ch ", 10) == 1205 and shipping("", 10) == 1600
assert shipping("DE", 10) == 450 and refused(shipping, "DE", 0) and refused(shipping, "US", -1)
assert shipping("CH", 1) == 1205 and refused(shipping, "CH", 10001)
assert shipping("US", 1) == 1600 and refused(shipping, "US", 20001)
assert sorted(RATES) == ["", "AT", "CH", "DE"]
assert [RATES[code]["customs"] for code in ("", "AT", "CH", "DE")] == [0, 0, 300, 0]
assert [base_price(RATES[code]["steps"], 1500) for code in ("", "AT", "DE")] == [3900, 905, 755]
assert [base_price([(5, 10), (9, 30)], grams) for grams in (1, 5, 6, 9)] == [10, 10, 30, 30]
assert base_price([(5, 1)], 5) == 1 and refused(base_price, [(5, 1)], 6)
assert base_price([(5, 1)], 5) == 1 and refused(base_price, [(5, 1)], 0)
assert [express_fee(cents) for cents in (1, 1000, 1003, 2000)] == [500, 500, 501, 1000]
assert shipping("jp", 15, True, OWN) == 3007 and shipping("DE", 15, rates=OWN) == 60
assert shipping("JP", 5, rates=OWN) == 8 and shipping("JP", 5) == 1600
mine = {"": {"steps": [(50, 60)], "customs": 0}}
assert shipping("FR", 9, True, mine) == 560 and mine == {"": {"steps": [(50, 60)], "customs": 0}}
""",
        "solution": """\
RATES = {
    "DE": {"steps": [(1000, 450), (5000, 755), (30000, 1255)], "customs": 0},
    "AT": {"steps": [(2000, 905), (10000, 1505)], "customs": 0},
    "CH": {"steps": [(2000, 905), (10000, 1505)], "customs": 300},
    "": {"steps": [(1000, 1600), (20000, 3900)], "customs": 0},
}

def base_price(steps, grams):
    if grams <= 0:
        raise ValueError("no weight")
    for most, cents in steps:
        if grams <= most:
            return cents
    raise ValueError("too heavy")

def express_fee(cents):
    return max(500, cents // 2)

def shipping(country, grams, express=False, rates=RATES):
    rate = rates.get(country.strip().upper()) or rates[""]
    cents = base_price(rate["steps"], grams)
    if express:
        cents += express_fee(cents)
    return cents + rate["customs"]
""",
    },
    {
        "task_id": "search-log",
        "difficulty": "hard",
        "prompt": """\
Define `first_at(read, moment)`. `read(i)` returns the time of line i of a log, an int, or None if
the log ends before line i; lines count from 0. Times never fall from one line to the next, but may
stay the same. Return the number of the first line whose time is `moment` or later; if there is
none, the number of lines. With the times 10, 20, 20, 40 it is 1 for the moment 20, 3 for 21, 4 for
41, and 0 for 10 or less.

The log may have no line, or billions, and each read() is slow. If the answer is `a`, read at most
8 + 2 * a.bit_length() times, however long the log is: 8 times for 0, 14 for 5, 48 for a million.
read() raises IndexError if i is not an int from 0 on, and RuntimeError at its 1,001st call in one
search.""",
        "helpers": """\
import bisect

class Even:
    '''The times of a long log: each `step` lines the time is one later.'''
    def __init__(self, lines, step):
        self.lines = lines
        self.step = step
    def __len__(self):
        return self.lines
    def __getitem__(self, i):
        return i // self.step

class Late(Even):
    '''All lines but the last few have the time 0.'''
    def __getitem__(self, i):
        return max(0, i + self.step - self.lines)

def search(find, times, moment):
    '''What is found, and after how many reads.'''
    reads = []
    def read(i):
        reads.append(i)
        if len(reads) > 1000:
            raise RuntimeError("too many reads")
        if type(i) is not int or i < 0:
            raise IndexError(i)
        return times[i] if i < len(times) else None
    return find(read, moment), len(reads)

def right(find, times, *moments):
    return all(search(find, times, each)[0] == bisect.bisect_left(times, each) for each in moments)

def quick(find, times, *moments):
    for moment in moments:
        found, reads = search(find, times, moment)
        if found != bisect.bisect_left(times, moment) or reads > 8 + 2 * found.bit_length():
            return False
    return True
""",
        "tests": """\
assert right(first_at, [10, 20, 30], 20, 30)
assert right(first_at, [11, 22, 33], 12, 23)
assert right(first_at, [7, 8, 9], 6, 7, 9, 10)
assert right(first_at, [5], 6, 5) and right(first_at, [], 3) and right(first_at, [1, 2], 2)
assert right(first_at, [5, 5, 5, 7, 7], 7, 6, 5)
assert right(first_at, [-(10**12), -3, 0, 10**12], -3, -2, 0, 1, 10**12 + 1)
assert all(right(first_at, range(lines), *range(-1, lines + 2)) for lines in range(9))
assert all(right(first_at, Even(lines, 3), 1, 2) for lines in (4, 6, 7))
assert quick(first_at, range(900), 300, 512, 899)
assert quick(first_at, range(1_000_000), 65_000, 777_777, 2_000_000)
assert quick(first_at, range(0, 10**10, 3), 6 * 10**8, 10**10)
assert quick(first_at, range(40), 3, 17, 33, 99)
assert quick(first_at, range(1_000_000), 20, 9, 3, 2, 1, 0)
assert quick(first_at, Even(10**7, 1000), 1, 9, 9_999)
assert quick(first_at, Late(200_000, 6), 1, 4, 6)
""",
        "solution": """\
def first_at(read, moment):
    def is_there(i):
        time = read(i)
        return time is None or time >= moment

    end = 1
    while not is_there(end - 1):
        end *= 2
    low, high = end // 2, end - 1  # the answer is from `low` to `high`
    while low < high:
        middle = (low + high) // 2
        if is_there(middle):
            high = middle
        else:
            low = middle + 1
    return low
""",
    },
    {
        "task_id": "ledger",
        "difficulty": "hard",
        "prompt": """\
Define a class `Ledger()` of accounts, which have names, and hold whole amounts.

- `deposit(name, amount)` and `transfer(source, target, amount)` open the account that they pay
  into, if it is not open yet. `balance(name)` tells what an account holds. `len(ledger)` is the
  number of open accounts, and `name in ledger` tells whether one is open. At 0 it stays open.
- They check in this order: an amount that is not an int (True and False are none) raises TypeError,
  one below 1 ValueError; to pay from an account that is not open, or to ask for its balance, raises
  KeyError; to pay more than the source holds, ValueError. A call that raises changes nothing.
- A transfer from an account to itself leaves its balance, and counts as a transfer.
- `pay_all(payments)` makes several transfers, a list of (source, target, amount), in their order:
  all of them or, if one raises, none. The error is the one of the first that raises. An empty list
  does nothing, and nothing that can be undone.
- `undo()` takes back the latest deposit, transfer or pay_all that is not undone yet, and closes
  what it had opened. `redo()` does again what the latest undo() took back, and so on backwards; but
  a new deposit, transfer or pay_all leaves nothing to redo. What raises or does nothing neither
  counts as new nor can be undone. Both raise IndexError when there is nothing to do.""",
        "helpers": """\
import ast

ERRORS = (TypeError, ValueError, KeyError, IndexError)

def value(word):
    if ">" in word:
        return tuple(value(part) for part in word.split(">"))
    try:
        return ast.literal_eval(word)
    except (ValueError, SyntaxError):
        return word

def play(new, script):
    # What the calls of a script tell: balances, and the names of errors.
    told = []
    ledger = new()
    for name, *words in map(str.split, script.split(";")):
        values = [value(word) for word in words]
        try:
            if name == "pay_all":
                ledger.pay_all(values)
            elif name == "len":
                told.append(len(ledger))
            elif name == "has":
                told.append(values[0] in ledger)
            elif name == "balance":
                told.append(ledger.balance(values[0]))
            else:
                getattr(ledger, name)(*values)
        except ERRORS as error:
            told += [kind.__name__ for kind in ERRORS if isinstance(error, kind)]
    return told
""",
        "tests": """\
assert play(Ledger, "deposit ann 20; deposit ann 30; balance ann; len") == [50, 1]
assert play(Ledger, "len; has ann; deposit ann 5; has ann; has bob") == [0, False, True, False]
one = Ledger()
one.deposit("ann", 4)
assert one.balance("ann") == 4 and len(one) == 1 and len(Ledger()) == 0
assert play(
    Ledger, "deposit ann 9; transfer ann bob 3; balance ann; balance bob; transfer bob ann 3;"
    "balance bob; has bob; len") == [6, 3, 0, True, 2]
assert play(Ledger, "deposit ann 9; balance bob; transfer bob ann 2; balance ann; has bob") == [
    "KeyError", "KeyError", 9, False]
assert play(Ledger, "deposit ann 0; deposit ann -4; has ann; deposit ann 1; transfer ann bob 0;"
    "balance ann; has bob") == ["ValueError", "ValueError", False, "ValueError", 1, False]
assert play(Ledger, "deposit ann 2.0; deposit ann True; has ann; deposit ann 3;"
    "transfer ann bob 1.5; balance ann") == ["TypeError", "TypeError", False, "TypeError", 3]
assert play(Ledger, "deposit ann 5; transfer ann bob 6; balance ann; has bob") == [
    "ValueError", 5, False]
assert play(Ledger, "deposit ann 1; transfer bob cy 0; transfer bob cy x; balance ann") == [
    "ValueError", "TypeError", 1]
assert play(Ledger, "deposit ann 8; transfer ann ann 3; balance ann; transfer ann ann 9") == [
    8, "ValueError"]
assert play(Ledger, "deposit ann 5; deposit ann 2; undo; balance ann; undo; has ann; undo") == [
    5, False, "IndexError"]
assert play(Ledger, "deposit ann 7; transfer ann bob 7; undo; balance ann; len; deposit ann 0;"
    "transfer ann bob 9; undo; len") == [7, 1, "ValueError", "ValueError", 0]
assert play(Ledger, "deposit ann 5; transfer ann ann 2; undo; balance ann; undo; len") == [5, 0]
assert play(Ledger, "deposit ann 5; deposit bob 2; undo; undo; redo; balance ann; len; redo;"
    "balance bob; redo") == [5, 1, 2, "IndexError"]
assert play(Ledger, "deposit ann 5; undo; deposit bob 1; redo; len; undo; redo; len; has bob") == [
    "IndexError", 1, 1, True]
assert play(Ledger, "deposit ann 5; deposit ann 4; undo; deposit ann 0; redo; balance ann") == [
    "ValueError", 9]
assert play(Ledger, "deposit ann 9; pay_all ann>bob>5 bob>cy>4; balance ann; balance bob;"
    "balance cy") == [4, 1, 4]
assert play(Ledger, "deposit ann 9; pay_all ann>bob>5 bob>cy>6; balance ann; len; undo; len") == [
    "ValueError", 9, 1, 0]
assert play(Ledger, "deposit ann 9; pay_all ann>bob>5 bob>cy>1; undo; balance ann; len; redo;"
    "balance bob; len") == [9, 1, 4, 3]
assert play(Ledger, "deposit ann 9; undo; pay_all; redo; pay_all; balance ann; undo; len") == [9, 0]
""",
        "solution": """\
class Ledger:
    def __init__(self):
        self.held = {}
        self.past = []
        self.undone = []

    def deposit(self, name, amount):
        self.check(amount)
        self.change({**self.held, name: self.held.get(name, 0) + amount})

    def transfer(self, source, target, amount):
        self.pay_all([(source, target, amount)])

    def pay_all(self, payments):
        held = dict(self.held)
        for source, target, amount in payments:
            self.check(amount)
            if held[source] < amount:
                raise ValueError(amount)
            held[source] -= amount
            held[target] = held.get(target, 0) + amount
        if payments:
            self.change(held)

    def check(self, amount):
        if type(amount) is not int:
            raise TypeError(amount)
        if amount < 1:
            raise ValueError(amount)

    def change(self, held):
        self.past.append(self.held)
        self.held = held
        self.undone.clear()

    def undo(self):
        held = self.past.pop()
        self.undone.append(self.held)
        self.held = held

    def redo(self):
        held = self.undone.pop()
        self.past.append(self.held)
        self.held = held

    def balance(self, name):
        return self.held[name]

    def __len__(self):
        return len(self.held)

    def __contains__(self, name):
        return name in self.held
""",
    },
)


@functools.cache
def builtin_tasks() -> dict[str, Task]:
    """Read when they are first asked for: a client, which has no use for them, starts faster."""
    tasks = [Task.from_row(row).read() for row in BUILTIN_ROWS]
    return {task.task_id: task for task in tasks}


if __name__ == "__main__":
    sys.exit(main())
