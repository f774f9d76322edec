"""python_env: an OpenEnv environment for writing Python, in one file with one dependency.

An agent sends Python code; a locked-down interpreter of its own runs it; hidden tests judge it in
another process; a reward in 0..1 comes back that the code cannot forge:

    with PythonEnv() as env:                                # or base_url=, from_docker_image, ...
        result = env.reset(task_id="parse-duration")
        result = env.step(PythonAction("def parse_duration(text): ..."))
        print(result.observation.stdout, result.reward, result.done)

It speaks the OpenEnv wire protocol, so OpenEnv's clients, trainers and validators work with this
server, and `EnvClient` works with OpenEnv's servers. Not its job: other languages, installing
packages at run time, uploading files, scheduling a cluster.

Who talks to whom, and who is trusted:

    client --ws/http--> server     asyncio, one process: it never runs candidate code
                          | commands and descriptors    | one socketpair a process
                          v                             v
                        zygote --fork--> worker A       a session's interpreter: hostile
                          |------fork--> understudy B   a fresh replay for each grading: hostile
                          |------fork--> judge J        holds the hidden tests, runs no candidate
                          '------fork--> janitor        measures and clears the others' folders
                                           J <--> B     plain data only

Chapters, in dependency order: 1 Limits and errors, 2 Models, 3 Tasks, 4 Worker, 5 Sandbox,
6 Environment, 7 Protocol, 8 Server, 9 Page, 10 Client, 11 Command line.
"""

import argparse, ast, asyncio, builtins, collections, concurrent.futures, contextlib, dataclasses
import difflib, functools, gzip, hmac, html, inspect, ipaddress, itertools, json, logging, math, os
import random, re, reprlib, secrets, signal, socket, subprocess, symtable, sys, tempfile, time, types
import typing, urllib.parse, urllib.request, warnings, weakref, zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote

import websockets.exceptions, websockets.sync.client
from websockets.frames import Opcode
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

__version__ = "0.1.0"
log = logging.getLogger("python_env")


# ==================================================================================================
# 1. Limits and errors
# ==================================================================================================


@dataclass(frozen=True)
class Limits:
    """Every number that bounds a peer, a worker or a wait; the unit is in the name."""

    # One step. The server holds each deadline; a worker that ignores it is killed after the grace.
    step_s: float = 10.0  # when the action names no timeout_s
    step_max_s: float = 60.0  # the most that an action may ask for: official clients wait 60 s
    grace_s: float = 1.0  # between the KeyboardInterrupt and the SIGKILL
    code_bytes: int = 262_144  # one action's code, as UTF-8
    transcript_bytes: int = 4_194_304  # an episode's code, which every grading replays
    output_bytes: int = 65_536  # a stream of one step: head and tail are kept, the cut is said
    result_chars: int = 8_192  # repr of the last expression
    task_steps: int = 20  # steps of an episode with tests: each leaks a few bits of a verdict
    # One worker process.
    memory_mb: int = 1_024  # address space
    cpu_s: int = 1_800  # of a process's whole life: a thread left behind burns no more than this
    file_bytes: int = 67_108_864  # one file
    folder_bytes: int = 134_217_728  # all files of a session; the janitor measures
    folder_entries: int = 10_000
    open_files: int = 128
    threads: int = 64  # of one worker; the server samples and kills
    # Grading.
    replay_s: float = 30.0  # to run an episode's earlier steps again, for its next grading
    grading_min_s: float = 1.0  # the judge's share when the step has used its whole time
    tests_bytes: int = 262_144  # the largest test, setup, prompt or helper source
    task_row_bytes: int = 2_097_152  # one line of a task file: a handful of such sources
    task_file_bytes: int = 67_108_864  # a task file, decompressed: it is held in memory
    # The server.
    max_sessions: int = 256
    http_idle_s: float = 300.0  # an HTTP session nobody steps
    ws_idle_s: float = 3_600.0  # a trainer is silent for minutes while its model generates
    request_s: float = 30.0  # a request must be whole this soon after its first byte
    keep_alive_s: float = 75.0  # an idle HTTP connection
    head_bytes: int = 16_384  # request line and headers
    headers: int = 64
    body_bytes: int = 4_194_304
    message_bytes: int = 4_194_304  # one WebSocket message
    queued_messages: int = 64  # unanswered messages of a session; then the socket is not read
    connections: int = 1_024
    drain_s: float = 1.5  # at SIGTERM, steps that end this soon are answered
    # The client. A reply may be as long as an observation is escaped: under 1 MiB, for us.
    reply_bytes: int = 104_857_600  # the official client's limit too


LIMITS = Limits()


class PythonEnvError(Exception):
    """The base of all that this module raises on purpose; it says expected, actual and remedy."""


class InvalidRequest(PythonEnvError, ValueError):
    """The caller's data is wrong. `errors`: pydantic-style entries (type, loc, msg, input)."""

    def __init__(self, message: str, errors: list[dict] | None = None):
        super().__init__(message)
        self.errors = errors or []


class ExecutionError(PythonEnvError, RuntimeError):
    """The request was well-formed but cannot be carried out now: no episode, or it is over."""


class CapacityError(PythonEnvError, RuntimeError):
    """All sessions are taken; trying again later may succeed."""


class FactoryError(PythonEnvError, RuntimeError):
    """No interpreter process could be started for a session."""


class SessionError(PythonEnvError, LookupError):
    """The session that was named does not exist, or not any more."""


# ==================================================================================================
# 2. Models: what travels, as dataclasses; validation and JSON schema come from them alone
# ==================================================================================================


def described(text: str, default: Any = dataclasses.MISSING, **bounds) -> Any:
    """A dataclass field with a description and bounds: ge, gt, le, max_length (characters)."""
    metadata = {"description": text, **bounds}
    if default in (dict, list):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(kw_only=True)
class Action:
    """What an agent sends to step(). Subclass it as a dataclass; unknown fields are refused."""

    metadata: dict[str, Any] = described("Anything; the environment ignores it", dict)


@dataclass(kw_only=True)
class Observation:
    """What an agent sees. `reward` is None where there is none yet, as at reset."""

    done: bool = described("Whether the episode is over", False)
    reward: float | None = described("Reward of the last step; null: none was given", None)
    metadata: dict[str, Any] = described("Additional facts about the observation", dict)


@dataclass(kw_only=True)
class State:
    """What state() tells of an episode. `episode_id` is None before the first reset."""

    episode_id: str | None = described("Identifier of the episode", None)
    step_count: int = described("Steps taken in this episode", 0, ge=0)


@dataclass
class StepResult:
    """What reset() and step() of a client return: observation, reward (or None), done."""

    observation: Any
    reward: float | None = None
    done: bool = False
    metadata: dict[str, Any] | None = None


@dataclass
class PythonAction(Action):
    """Run `code` in the session's interpreter, whose names persist from step to step."""

    code: str = described("Python source; the value of a last expression becomes `result`")
    timeout_s: float | None = described(
        f"Seconds the code may run; null: the server's default ({LIMITS.step_s:g})", None, gt=0
    )


@dataclass
class PythonObservation(Observation):
    """What came of a step; after reset(), the task's prompt with the other fields empty.

    exit_code: 0 fine; 1 an exception; n for SystemExit(n) or os._exit(n); 124 timed out;
    128+s killed by signal s. tests_passed and tests_total are counts of assert statements.
    """

    stdout: str = described("Standard output of the step; a long one is cut in the middle", "")
    stderr: str = described("Standard error of the step, tracebacks included", "")
    exit_code: int = described("0 fine, 1 exception, 124 timed out, 128+s signal s", 0)
    result: str | None = described("repr of the code's last expression; null: none", None)
    task_id: str = described("The episode's task", "")
    prompt: str = described("What to do; given at reset", "")
    tests_passed: int = described("Hidden asserts that passed", 0)
    tests_total: int = described("Hidden asserts of the task; 0: it has none", 0)
    feedback: str = described("The verdict in a sentence", "")


@dataclass
class PythonState(State):
    """The episode as the server sees it. `max_steps` None: unlimited."""

    task_id: str = described("The episode's task", "")
    max_steps: int | None = described("Steps allowed in this episode; null: unlimited", None)
    done: bool = described("Whether the episode is over", False)
    best_reward: float = described("The best score of the episode so far, 0..1", 0.0)


@functools.cache
def _fields(cls: type) -> dict[str, tuple[Any, dataclasses.Field]]:
    hints = typing.get_type_hints(cls)
    return {f.name: (hints[f.name], f) for f in dataclasses.fields(cls)}


def to_dict(model: Any) -> dict[str, Any]:
    """A model's fields as a dict, one level deep: ours hold plain data only."""
    return {name: getattr(model, name) for name in _fields(type(model))}


_PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean"}


def _required(f: dataclasses.Field) -> bool:
    return f.default is f.default_factory is dataclasses.MISSING


def _echo(value: Any) -> Any:
    """What an error entry repeats of the input: JSON without NaN, and short."""
    text = repr(value)
    return value if len(text) <= 200 and not re.search(r"\b(nan|inf)\b", text) else text[:200]


def validate(cls: type, data: Any, loc: tuple = ()) -> Any:
    """Build the dataclass `cls` from decoded JSON, strictly; `loc` is the path to `data`.

    Raises InvalidRequest whose `errors` name every fault, with pydantic's words and types.
    """
    errors: list[dict] = []
    value = _check(cls, data, loc, {}, errors)
    if errors:
        where = ".".join(map(str, errors[0]["loc"])) or "the message"
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise InvalidRequest(f"{where}: {errors[0]['msg']}{more}", errors)
    return value


def _check(hint: Any, value: Any, loc: tuple, bounds: Any, errors: list[dict]) -> Any:
    def fault(kind: str, message: str, at: tuple = loc, given: Any = value) -> None:
        if len(errors) < 20:  # enough to mend a request; a hostile one gets no longer answer
            at = tuple(part if isinstance(part, int) else str(part)[:100] for part in at)
            errors.append({"type": kind, "loc": [*at], "msg": message, "input": _echo(given)})

    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        rest = [arg for arg in args if arg is not type(None)]
        for arg in rest:
            trial: list[dict] = []
            good = _check(arg, value, loc, bounds, trial)
            if not trial:
                return good
        errors.extend(trial)
    elif origin is typing.Literal:
        if value not in args or type(value) not in map(type, args):
            fault("literal_error", f"Input should be {' or '.join(map(repr, args))}")
    elif dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            return fault("model_attributes_type", "Input should be a valid dictionary")
        known = _fields(hint)
        for name in value.keys() - known.keys():
            fault("extra_forbidden", "Extra inputs are not permitted", (*loc, name), value[name])
        given = {}
        for name, (kind, f) in known.items():
            if name in value:
                given[name] = _check(kind, value[name], (*loc, name), f.metadata, errors)
            elif _required(f):
                fault("missing", "Field required", (*loc, name))
        return hint(**given) if not errors else None
    elif (origin or hint) is dict:
        if not isinstance(value, dict):
            return fault("dict_type", "Input should be a valid dictionary")
        kind = args[1] if args else Any
        return {k: _check(kind, v, (*loc, k), {}, errors) for k, v in value.items()}
    elif (origin or hint) is list:
        if not isinstance(value, list):
            return fault("list_type", "Input should be a valid list")
        kind = args[0] if args else Any
        return [_check(kind, v, (*loc, i), {}, errors) for i, v in enumerate(value)]
    else:
        if hint is float and type(value) is int and abs(value) < 2**1023:
            value = float(value)
        if type(value) is not hint:  # so a bool is no int
            word = _PLAIN.get(hint, getattr(hint, "__name__", str(hint)))
            kind = {str: "string"}.get(hint, getattr(hint, "__name__", word))  # as pydantic says it
            return fault(f"{kind}_type", f"Input should be a valid {word}")
        if hint is float and not math.isfinite(value):
            return fault("finite_number", "Input should be a finite number")
        for name, bad, kind, words in (
            ("ge", lambda b: value < b, "greater_than_equal", "greater than or equal to"),
            ("gt", lambda b: value <= b, "greater_than", "greater than"),
            ("le", lambda b: value > b, "less_than_equal", "less than or equal to"),
        ):
            if name in bounds and bad(bounds[name]):
                fault(kind, f"Input should be {words} {bounds[name]:g}")
        if "max_length" in bounds and len(value) > bounds["max_length"]:
            most = bounds["max_length"]
            fault("string_too_long", f"String should have at most {most} characters")
    return value


def json_schema(hint: Any, bounds: Any = types.MappingProxyType({})) -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a model, or of any type that `validate` knows."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [json_schema(arg, bounds) for arg in args]}
    if origin is typing.Literal:
        return {"enum": [*args]}
    if dataclasses.is_dataclass(hint):
        properties = {}
        for name, (kind, f) in _fields(hint).items():
            properties[name] = json_schema(kind, f.metadata)
            if text := f.metadata.get("description"):
                properties[name]["description"] = text
            if f.default is not dataclasses.MISSING:
                properties[name]["default"] = f.default
        return {
            "type": "object",
            "title": hint.__name__,
            "description": inspect.cleandoc(hint.__doc__ or "").partition("\n")[0],
            "properties": properties,
            "required": [name for name, (_, f) in _fields(hint).items() if _required(f)],
            "additionalProperties": False,
        }
    if (origin or hint) is dict:
        return {"type": "object", "additionalProperties": json_schema(args[1]) if args else True}
    if (origin or hint) is list:
        return {"type": "array", "items": json_schema(args[0]) if args else {}}
    names = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "max_length": "maxLength"}
    limits = {names[name]: bounds[name] for name in bounds if name in names}
    if hint in _PLAIN:
        return {"type": _PLAIN[hint], **limits}
    return {"type": "null"} if hint is type(None) else {}


# ==================================================================================================
# 3. Tasks
# ==================================================================================================

# A task is a prompt to read and asserts to pass. Most of the chapter answers one question, before
# any candidate is seen: which names do the tests take from the candidate, and which are their own?


class _Source:
    """The module-level names of one source. It is parsed, but never compiled, let alone run: this
    is the server's process, and nested `finally` blocks compile to exponential size."""

    def __init__(self, what: str, text: str) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a "\d" in somebody's tests is no news of ours
                tree, scopes = ast.parse(text), [symtable.symtable(text, what, "exec")]
            self.functions = {node.name: f"{node.name}({ast.unparse(node.args)})"
                              for node in tree.body if isinstance(node, ast.FunctionDef)}
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            line, why = getattr(error, "lineno", "?"), str(error) or "nested too deeply"
            raise InvalidRequest(f"{what} does not parse: line {line}: {why[:160]!r}") from None
        nodes = list(ast.walk(tree))
        self.asserts = sum(isinstance(node, ast.Assert) for node in nodes)
        self.classes = {node.name for node in nodes if isinstance(node, ast.ClassDef)}
        self.imports = {name.asname or name.name.partition(".")[0]: node for node in nodes
                        if isinstance(node, (ast.Import, ast.ImportFrom)) for name in node.names}
        for scope in scopes:  # the list grows as we go: every nested scope gets its turn
            scopes += scope.get_children()
        symbols = [symbol for scope in scopes for symbol in scope.get_symbols()
                   if scope is scopes[0] or symbol.is_global()]
        self.reads = {symbol.get_name() for symbol in symbols if symbol.is_referenced()}
        self.defines = {s.get_name() for s in symbols if s.is_assigned()} - self.imports.keys()


@dataclass(frozen=True, kw_only=True)
class Task:
    """One exercise. Raises InvalidRequest when its tests could not measure anything."""

    task_id: str
    prompt: str = ""  # what the agent reads
    tests: str = ""  # hidden; each assert statement is one test. "": nothing to judge, never done
    setup: str = ""  # run in the agent's interpreter before the first step
    helpers: str = ""  # run by the judge before the tests, out of the candidate's reach
    entry_point: str | None = None  # the function asked for, if it is just one
    solution: str = ""  # a reference, never run, never shown: it tells which names are asked for
    difficulty: str = ""
    names: frozenset[str] = field(init=False)  # what the tests take from the candidate
    classes: frozenset[str] = field(init=False)  # those of the names that are classes
    tests_total: int = field(init=False)

    def __post_init__(self) -> None:
        for key, value in vars(self).items():
            if not isinstance(value, str) and (key, value) != ("entry_point", None):
                raise InvalidRequest(f"{key} must be a string, not {type(value).__name__}")
            if (size := len((value or "").encode("utf-8", "replace"))) > LIMITS.tests_bytes:
                raise InvalidRequest(f"{key} has {size} bytes; the limit is {LIMITS.tests_bytes}")
        tests, helpers, setup, solution = (
            _Source(key, getattr(self, key)) for key in ("tests", "helpers", "setup", "solution"))
        own = {*tests.defines, *tests.imports, *helpers.defines, *helpers.imports}
        used, lent = (tests.reads | helpers.reads) - own, {**solution.imports, **setup.imports}
        # A solution may define what looks like a builtin (one of MBPP's is called `sum`). What no
        # one else provides must be the candidate's too, unless `import *` brings who knows what.
        asked = {self.entry_point} if self.entry_point else solution.defines
        loose = set() if "*" in own | lent.keys() else used - set(dir(builtins)) - lent.keys()
        names = used & (asked | setup.defines) | loose
        if self.tests and not tests.asserts:
            raise InvalidRequest("tests has no assert statement; each one counts as a test")
        if self.tests and not (self.entry_point in names if self.entry_point else names):
            entry = reprlib.repr(self.entry_point)
            raise InvalidRequest(f"tests take no name from the candidate (entry_point is {entry})")
        unseen = names - setup.defines - solution.defines
        classes = setup.classes | solution.classes | {name for name in unseen if name[0].isupper()}
        # The judge imports for itself: a candidate could teach its own `math.isclose` to lie.
        imports = dict.fromkeys(lent[name] for name in sorted(used & lent.keys() - names))
        vars(self).update(names=frozenset(names), classes=frozenset(names & classes),
                          helpers="\n".join([*map(ast.unparse, imports), self.helpers]),
                          tests_total=tests.asserts)  # it is frozen for everyone else

    @classmethod
    def from_row(cls, row: Mapping[str, object], default_id: str = "inline") -> "Task":
        """The task in a row of HumanEval, of MBPP or of our own format, told apart by the keys.
        Others, and None, are ignored: trainers pass every column. Raises InvalidRequest."""

        def text(key: str) -> str:
            parts = row.get(key) or ""
            parts = parts if isinstance(parts, (list, tuple)) else [parts]
            if not all(isinstance(part, str) for part in parts):
                raise InvalidRequest(f"{key} must be a string or a list of strings")
            return "\n".join(parts)

        number = row.get("task_id", default_id)  # MBPP's are numbers
        entry, task = text("entry_point"), {"prompt": text("text") or text("prompt")}
        if row.get("test_list"):  # MBPP; its challenge_test_list is not part of the benchmark
            entry, code, setup = "", _Source("code", text("code")), text("test_setup_code")
            task |= {"tests": text("test_imports") + "\n" + text("test_list"), "setup": setup}
            names = cls(task_id="?", solution=text("code"), **task).names
            names -= _Source("setup", setup).defines
            # MBPP shows its tests to say what to define. Ours stay hidden, so the prompt does.
            define = " and ".join(f"`{code.functions.get(name, name)}`" for name in sorted(names))
            task |= {"solution": text("code"), "prompt": f"{task['prompt']}\n\nDefine {define}."}
        elif row.get("test") and entry:  # HumanEval: imports and helpers, then what to complete
            prompt, tests = text("prompt"), f"{text('test')}\n\ncheck({entry})\n"
            above = re.split(rf"(?m)^(?:def|class) {re.escape(entry)}\b", prompt)[0]
            task |= {"prompt": prompt, "tests": tests}
            with contextlib.suppress(InvalidRequest):  # the prompts of its imitators may be prose
                _Source("prompt", code := prompt + (text("canonical_solution") or "    pass"))
                task |= {"setup": above, "helpers": above, "solution": code}
        elif text("tests"):
            task |= {key: text(key) for key in ("prompt", "tests", "setup", "helpers", "solution")}
        else:
            raise InvalidRequest("no tests: expected the key 'tests', or 'test_list' (MBPP), or "
                                 f"'test' and 'entry_point' (HumanEval), got {reprlib.repr([*row])}")
        return cls(task_id=str(number) if type(number) is int else number or default_id,
                   entry_point=entry or None, difficulty=text("difficulty"), **task)


def load_tasks(path: str | Path) -> dict[str, Task]:
    """The tasks of a JSONL file (gzipped if its name ends in .gz) by task_id: all of them, or an
    InvalidRequest that names the file and the line. A bomb is read no further than the limit."""
    path, tasks, left, number = Path(path), {}, LIMITS.task_file_bytes, 0
    lines = {REPL.task_id: "0, the plain interpreter"}
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            while line := file.readline((limit := min(left, LIMITS.task_row_bytes)) + 1):
                left, number = left - len(line), number + 1
                if len(line) > limit:
                    raise InvalidRequest(f"longer than the {limit} bytes that a line may have here")
                if not line.strip():
                    continue
                if not isinstance(row := json.loads(line.decode("utf-8-sig")), dict):
                    raise InvalidRequest(f"expected a JSON object, got {type(row).__name__}")
                task = Task.from_row(row, default_id=f"{path.name}:{number}")
                if (taken := lines.setdefault(task.task_id, number)) != number:
                    raise InvalidRequest(f"task_id {task.task_id[:80]!r} is taken by line {taken}")
                tasks[task.task_id] = task
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidRequest(f"cannot read the tasks file {path}: {error}") from None
    except (ValueError, RecursionError) as error:  # InvalidRequest, bad UTF-8 and bad JSON, too
        raise InvalidRequest(f"{path}, line {number}: {error}") from None
    if not tasks:
        raise InvalidRequest(f"{path} holds no tasks: expected one JSON object a line")
    return tasks


REPL = Task(task_id="repl", prompt="A Python interpreter that keeps its state. There are no tests.")
_REFUSES = """def refuses(error, function, *arguments):
    try: function(*arguments)
    except error: return True"""
BUILTIN_TASKS = {task.task_id: task for task in [
    Task(task_id="parse-duration", difficulty="easy", helpers=_REFUSES, prompt="""\
Define `parse_duration(text)`: the seconds, an int, in a text like "1h30m" or " 2h 5s ". The parts
are hours, minutes, seconds in this order, each at most once, at least one: digits 0-9 and then h,
m or s. Spaces may surround a part, not split it. Raise ValueError for any other text.""", tests="""
assert parse_duration("90s") == 90 and parse_duration("0h0m0s") == 0
assert parse_duration("1h30m") == 5400 and parse_duration("100m") == 6000
assert parse_duration(" 2h 5s ") == 7205
assert refuses(ValueError, parse_duration, " ") and refuses(ValueError, parse_duration, "5")
assert refuses(ValueError, parse_duration, "1m1h") and refuses(ValueError, parse_duration, "1s2s")
assert refuses(ValueError, parse_duration, "-5s") and refuses(ValueError, parse_duration, "1 0s")"""),
    Task(task_id="clean-people", difficulty="easy", prompt="""\
Define `clean(rows)`. A row is a dict of strings: "name", "email", perhaps "age". Return new dicts
in a list: name without outer spaces, inner runs of them made one; email stripped, in lower case;
age an int, or None if not all digits or over 150. Drop rows whose email has not exactly one "@",
with text on both sides. For rows with the same email return just the first, with the first age
that is not None among them. Keep the order and leave the input as it is.""", tests="""
rows = [{"name": " Ada  B ", "email": " A@x.org ", "age": "36"}, {"name": "Bo", "email": "b@b"},
        {"name": "X", "email": "B@b", "age": "7"}, {"name": "Y", "email": "b@b", "age": "8"}]
assert clean(rows[:1]) == [{"name": "Ada B", "email": "a@x.org", "age": 36}]
assert clean([{"name": "B", "email": e} for e in ("", "b", "@b", "b@", "b@@b", "a@b@c")]) == []
ages = [{"name": "C", "email": f"{a}@c", "age": a} for a in ("0", "150", "151", "-3", "4.5", "")]
assert [person["age"] for person in clean(ages)] == [0, 150, None, None, None, None]
assert [person["name"] for person in clean(rows)] == ["Ada B", "Bo"]
assert [person["age"] for person in clean(rows)] == [36, 7]
assert rows[0]["name"] == " Ada  B " and rows[1] == {"name": "Bo", "email": "b@b"}"""),
    Task(task_id="build-order", difficulty="medium", helpers=_REFUSES, prompt="""\
Define `build_order(needs)`: a dict from a package to a list of those it needs, which may not be
keys. Return the list of all packages, each after what it needs; where several could come next,
the alphabetically first does. Raise ValueError for a cycle. Chains may be long.""", tests="""
assert build_order({}) == [] and build_order({"b": [], "a": []}) == ["a", "b"]
assert build_order({"app": ["lib"], "lib": ["core"]}) == ["core", "lib", "app"]
assert build_order({"a": ["c"], "b": []}) == ["b", "c", "a"]
assert build_order({"a": ["z", "z"], "m": [], "y": ["a"]}) == ["m", "z", "a", "y"]
assert refuses(ValueError, build_order, {"a": ["b"], "b": ["c"], "c": ["b"], "d": []})
assert build_order({f"{i:04}": [f"{i + 1:04}"] for i in range(3000)})[:2] == ["3000", "2999"]"""),
    Task(task_id="fix-means", difficulty="medium", helpers=_REFUSES, prompt="""\
`means(values, size)` should return the means of each run of `size` values (the last may be
shorter), and raise ValueError for a size below 1. Define it without these bugs:

def means(values, size, out=[]):
    for i in range(0, len(values) - size, size):
        out.append(sum(values[i:i + size]) / size)
    return out""", tests="""
assert means([], 3) == []
assert means([1, 2, 3, 4], 2) == [1.5, 3.5]
assert means([5, 7, 9], 1) == [5, 7, 9] and means([5, 7, 9], 1) == [5, 7, 9]
assert means([1, 2, 3, 4, 9], 2) == [1.5, 3.5, 9]
assert means([4, 8], 5) == [6]
assert refuses(ValueError, means, [1, 2], 0) and refuses(ValueError, means, [], -1)"""),
    Task(task_id="ledger", difficulty="hard", helpers=_REFUSES, prompt="""\
Define a class `Ledger()` of accounts by name: `deposit(name, amount)` and `transfer(source, target,
amount)` open the account they pay into, `balance(name)` tells what it holds. An account that is not
open raises KeyError; an amount not above 0, or above what the source holds, ValueError; a failed
call changes nothing. `undo()` takes back the latest deposit or transfer not yet undone, with the
account it opened, or raises IndexError. `len()` and `in` work on the open accounts.""", tests="""
one, two = Ledger(), Ledger()
one.deposit("ann", 50)
assert (one.balance("ann"), len(one), len(two)) == (50, 1, 0) and "ann" in one
assert refuses(KeyError, one.balance, "bob") and refuses(IndexError, two.undo)
assert refuses(ValueError, one.deposit, "bob", 0) and "bob" not in one
assert refuses(ValueError, one.transfer, "ann", "bob", 51) and len(one) == 1
assert refuses(KeyError, one.transfer, "bob", "ann", 1) and one.balance("ann") == 50
one.transfer("ann", "bob", 50)
assert (one.balance("ann"), one.balance("bob"), len(one)) == (0, 50, 2)
one.undo()
assert one.balance("ann") == 50 and "bob" not in one
one.undo()
assert len(one) == 0 and refuses(IndexError, one.undo)"""),
]}


# ==================================================================================================
# 4. Worker: the program of every other process. It must stand alone, imports included: its source,
#    from this banner to the next, is all of ours that the zygote and its children ever hold.
# ==================================================================================================

import ast, collections, contextlib, ctypes, datetime, decimal, errno, fractions, gc, itertools
import json, linecache, operator, os, random, re, resource, select, signal, socket, stat, struct
import sys, traceback, types

FRAME_BYTES = 16 * 2**20  # of one frame between two processes; checked before buffering
NODES, DEPTH, INT_BITS = 1_000_000, 100, 1_000_000  # of one value between judge and understudy
REFERENCES = 100_000  # objects that one end may hold for the other


def send_frame(sock: socket.socket, message: object) -> None:
    body = json.dumps(message).encode()
    if len(body) > FRAME_BYTES:
        raise ValueError(f"a frame of {len(body)} bytes; at most {FRAME_BYTES} can be sent")
    sock.sendall(struct.pack(">I", len(body)) + body)


def receive_frame(sock: socket.socket) -> object:
    """The next frame; EOFError when the other end is gone, ValueError when it talks nonsense."""
    size = struct.unpack(">I", _receive(sock, 4))[0]
    if size > FRAME_BYTES:
        raise ValueError(f"a frame of {size} bytes announced; at most {FRAME_BYTES} are read")
    return json.loads(_receive(sock, size))


def _receive(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = sock.recv(min(size - len(data), 2**20))
        if not chunk:
            raise EOFError("the other end is gone")
        data = chunk if len(chunk) == size else data + chunk
    return data


# --- Giving up privileges -------------------------------------------------------------------------

# A worker's system calls, with their numbers on x86_64 and aarch64 ("-": not there). ALLOW runs
# them, IGNORE answers 0 and does nothing, ABSENT answers ENOSYS; all others get EPERM. A line applies
# where its conditions hold: they compare an argument's low half, which is all the kernel takes of an
# int; a pointer has an upper half too (.high).
SYSTEM_CALLS = """
ALLOW what is open: our own socket, pipes, and files that Landlock let it open
  read 0 63, write 1 64, readv 19 65, writev 20 66, pread64 17 67, pwrite64 18 68, preadv 295 69,
  pwritev 296 70, lseek 8 62, sendfile 40 71, copy_file_range 326 285, ftruncate 77 46,
  fsync 74 82, fdatasync 75 83, close 3 57, close_range 436 436, dup 32 23, dup2 33 -,
  dup3 292 24, pipe 22 -, pipe2 293 59, recvfrom 45 207, sendto 44 206, shutdown 48 210,
  getsockname 51 204, getpeername 52 205, poll 7 -, ppoll 271 73, select 23 -, pselect6 270 72,
  epoll_create1 291 20, epoll_ctl 233 21, epoll_wait 232 -, epoll_pwait 281 22
ALLOW names and directories: Landlock guards what lists or changes them (a mere stat it does not)
  stat 4 -, fstat 5 80, lstat 6 -, newfstatat 262 79, statx 332 291, access 21 -,
  faccessat 269 48, faccessat2 439 439, readlink 89 -, readlinkat 267 78, getdents64 217 61,
  getcwd 79 17, chdir 80 49, fchdir 81 50, mkdir 83 -, mkdirat 258 34, rmdir 84 -, unlink 87 -,
  unlinkat 263 35, rename 82 -, renameat 264 38, link 86 -, linkat 265 37, symlink 88 -,
  symlinkat 266 36, creat 85 -, umask 95 166
ALLOW opening, but not O_TRUNC without writing, nor mode 3: before ABI 3 Landlock sees neither
  open 2 - | arg1 & 0x203: RDONLY=0 WRONLY=1 RDWR=2 WRONLY+TRUNC=0x201 RDWR+TRUNC=0x202,
  openat 257 56 | arg2 & 0x203: RDONLY=0 WRONLY=1 RDWR=2 WRONLY+TRUNC=0x201 RDWR+TRUNC=0x202
IGNORE modes, times, xattrs: Landlock leaves them open on all our user's files; shutil.copy needs a 0
  chmod 90 -, fchmod 91 52, fchmodat 268 53, fchmodat2 452 452, utime 132 -, utimes 235 -,
  futimesat 261 -, utimensat 280 88, listxattr 194 11, llistxattr 195 12, flistxattr 196 13
IGNORE locks: needless in a directory of one's own (SQLite); on a shared file a channel to others
  flock 73 32, fcntl 72 25 | arg1: SETLK=6 SETLKW=7 OFD_SETLK=37 OFD_SETLKW=38
ALLOW by command: F_SETOWN, F_SETSIG, FIOSETOWN send signals; TIOCSTI types; SO_PEERPIDFD is our pid
  fcntl 72 25 | arg1: DUPFD=0 GETFD=1 SETFD=2 GETFL=3 SETFL=4 GETLK=5 OFD_GETLK=36 GETPIPE_SZ=1032
  DUPFD_CLOEXEC=1030, ioctl 16 29 | arg1: TCGETS=0x5401 TCGETS2=0x802c542a TIOCGWINSZ=0x5413
  FIONREAD=0x541b FIONBIO=0x5421 FIONCLEX=0x5450 FIOCLEX=0x5451,
  getsockopt 55 209 | arg1: SOL_SOCKET=1 | arg2: SO_TYPE=3 SO_ERROR=4 SO_PROTOCOL=38 SO_DOMAIN=39,
  prctl 157 167 | arg0: SET_NAME=15 GET_NAME=16 GET_NO_NEW_PRIVS=39 SET_VMA=0x53564d41
ALLOW memory of its own; a shared mapping (bit 0 of the flags) would escape the memory limit
  brk 12 214, munmap 11 215, mremap 25 216, mprotect 10 226, madvise 28 233,
  mmap 9 222 | arg3 & 1: PRIVATE=0
ALLOW threads, but neither processes nor namespaces (the mask's other bits)
  clone 56 220 | arg0 & 0x7e030000: CLONE_THREAD=0x10000, futex 202 98, set_robust_list 273 99,
  rseq 334 293, set_tid_address 218 96, sched_yield 24 124, sched_getaffinity 204 123,
  getcpu 309 168, exit 60 93, exit_group 231 94
ABSENT its flags lie in memory, where no filter can look: glibc falls back to clone
  clone3 435 435
ALLOW signals to itself, which abort() and faulthandler send; to others, never
  kill 62 129 | arg0: PID, tkill 200 130 | arg0: PID, tgkill 234 131 | arg0: PID, pause 34 -,
  rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139, rt_sigpending 127 136,
  rt_sigtimedwait 128 137, rt_sigsuspend 130 133, sigaltstack 131 132, restart_syscall 219 128
ALLOW clocks, timers and questions about itself; limits are read (no pointer to new ones), never set
  clock_gettime 228 113, clock_getres 229 114, clock_nanosleep 230 115, nanosleep 35 101,
  time 201 -, gettimeofday 96 169, times 100 153, getitimer 36 102, setitimer 38 103, alarm 37 -,
  getpid 39 172, gettid 186 178, getppid 110 173, getpgrp 111 -, getuid 102 174, geteuid 107 175,
  getgid 104 176, getegid 108 177, getresuid 118 148, getresgid 120 150, getgroups 115 158,
  uname 63 160, getrandom 318 278, getrusage 98 165, getrlimit 97 163, wait4 61 260,
  prlimit64 302 261 | arg0: SELF=0 | arg2: NULL=0 | arg2.high: NULL=0
"""
NEWEST_CALL = 470  # of Linux 6.19; a later one answers ENOSYS, so that libc falls back to an older
MACHINES = {"x86_64": (1, 0xC000003E), "aarch64": (2, 0xC00000B7)}  # the table's column, AUDIT_ARCH
LOAD, AND, JUMP, IF_EQUAL, IF_NOT_BELOW, IF_BITS, RETURN = 0x20, 0x54, 0x05, 0x15, 0x35, 0x45, 0x06
KILL, FAIL = 0x80000000, 0x50000  # SECCOMP_RET_KILL_PROCESS; SECCOMP_RET_ERRNO, to add the errno to
ANSWERS = {"ALLOW": 0x7FFF0000, "IGNORE": FAIL, "ABSENT": FAIL + errno.ENOSYS}


def _condition(text: str, then: list) -> list:
    """Instructions that run into `then` where the condition holds, and jump behind it elsewhere."""
    index, high, mask, values = re.fullmatch(r"arg(\d)(\.high)?(?: & (\w+))?: (.+)", text).groups()
    numbers = [None if value == "PID" else int(value.split("=")[1], 0) for value in values.split()]
    hits = [(IF_EQUAL, len(numbers) - i, 0, number) for i, number in enumerate(numbers)]
    offset = 16 + 8 * int(index) + (4 if high else 0)  # in struct seccomp_data, little-endian
    return [(LOAD, 0, 0, offset), (AND, 0, 0, int(mask or "0xffffffff", 0)), *hits,
            (JUMP, 0, 0, len(then)), *then]


def _search(cases: list) -> list:
    """A binary search in (first number, instructions); only JUMP's distance has 32 bits."""
    if len(cases) == 1:
        return cases[0][1]
    half = len(cases) // 2
    below = _search(cases[:half])
    return [(IF_NOT_BELOW, 0, 1, cases[half][0]), (JUMP, 0, 0, len(below)), *below,
            *_search(cases[half:])]


def build_filter(machine: str) -> list:
    """The seccomp program as (code, distance if true, if false, operand or None for the pid)."""
    column, architecture = MACHINES[machine]
    refuse, calls = [(RETURN, 0, 0, FAIL + errno.EPERM)], {}
    for answer, lines in re.findall(r"^([A-Z]+).*\n((?: .*\n)+)", SYSTEM_CALLS, re.M):
        for line in " ".join(lines.split()).split(", "):
            call, *conditions = line.split(" | ")
            if (number := call.split()[column]) != "-":
                code = [(RETURN, 0, 0, ANSWERS[answer])]
                for condition in reversed(conditions):
                    code = _condition(condition, code)
                calls[int(number)] = code + calls.get(int(number), refuse) if conditions else code
    answers = [calls.get(number, refuse) for number in range(NEWEST_CALL + 1)]
    answers.append([(RETURN, 0, 0, FAIL + errno.ENOSYS)])
    cases = [(i, code) for i, code in enumerate(answers) if i == 0 or code != answers[i - 1]]
    return [(LOAD, 0, 0, 4), (IF_EQUAL, 1, 0, architecture), (RETURN, 0, 0, KILL),  # int 0x80
            (LOAD, 0, 0, 0), (IF_BITS, 0, 1, 0x40000000), (RETURN, 0, 0, KILL),  # x32
            *_search(cases)]


LINUX, LIBC = sys.platform == "linux", ctypes.CDLL(None, use_errno=True)
if LINUX:  # looked up here, once, and not in each child
    LIBC.syscall.argtypes, LIBC.syscall.restype = [ctypes.c_long] * 5, ctypes.c_long
    LIBC.prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_char_p, *[ctypes.c_ulong] * 2]
    LIBC.capset.argtypes = [ctypes.c_char_p] * 2
LANDLOCK_ABI = max(0, LIBC.syscall(444, 0, 0, 1, 0)) if LINUX else 0
# Built once; each worker writes its pid into it. A 32-bit interpreter has other numbers: no filter.
HAS_FILTER = LINUX and sys.maxsize > 2**32 and os.uname().machine in MACHINES
PROGRAM = build_filter(os.uname().machine) if HAS_FILTER else []
FILTER = b"".join(struct.pack("HBBI", *code[:3], code[3] or 0) for code in PROGRAM)
PID_OFFSETS = [8 * i + 4 for i, code in enumerate(PROGRAM) if code[3] is None]
WRITE_FILE, READ_FILE, READ_DIR = 1 << 1, 1 << 2, 1 << 3  # Landlock's rights; how many an ABI knows:
KNOWN_RIGHTS = (1 << (0, 13, 14, 15, 15, 16)[min(LANDLOCK_ABI, 5)]) - 1
# REMOVE_DIR, REMOVE_FILE, MAKE_DIR, MAKE_REG, MAKE_SYM, REFER, TRUNCATE; nothing to run, no devices
OWN_DIRECTORY = WRITE_FILE | READ_FILE | READ_DIR | sum(1 << bit for bit in (4, 5, 7, 8, 12, 13, 14))


def open_readable(hidden: list[str]) -> list[tuple[int, int]]:
    """O_PATH descriptors of all that a worker may read, each with its Landlock rights.

    `hidden` files and directories stay unreadable. Rules only add, so the directories on the way to
    them may be listed only, and their other entries are granted one by one.
    """
    trees = [*filter(os.path.isabs, sys.path), sys.base_prefix + "/lib", "/lib", "/lib64", "/usr/lib",
             "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache", "/usr/share/zoneinfo",
             "/etc/localtime", "/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"]
    hidden, granted, last = [os.path.realpath(path) for path in hidden], [], "\0"

    def grant(path: str) -> None:
        if path in hidden or os.path.islink(path) or not os.path.exists(path):
            return  # a link's target must be granted for its own sake
        fd, rights = os.open(path, os.O_PATH | os.O_NOFOLLOW), READ_FILE | READ_DIR
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            rights = READ_FILE | (WRITE_FILE if path == "/dev/null" else 0)
        elif any(file.startswith(path + "/") for file in hidden):
            rights = READ_DIR
            for name in os.listdir(path):
                grant(os.path.join(path, name))
        granted.append((fd, rights))

    for path in sorted(os.path.realpath(tree) + "/" for tree in trees):
        if not path.startswith(last):  # else it lies in the tree before it, and came with that
            last = path
            grant(path[:-1])
    return granted


def lock_down(readable: list[tuple[int, int]], directory: "str | None", limits: dict[str, int],
              filtered: bool = True) -> None:
    """Give up all but reading `readable` (closed here), writing in `directory`, and `limits`.

    For a freshly forked process with one thread. `limits` has values for names of resource.RLIMIT_*.
    What the machine lacks is left out, see probe(); what it has and fails raises OSError.
    """
    def check(result: int) -> int:
        if result < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return result

    os.nice(5)
    if LINUX:
        with contextlib.suppress(OSError):  # the first to go when memory runs out, while /proc is open
            os.write(fd := os.open("/proc/self/oom_score_adj", os.O_WRONLY), b"1000")
            os.close(fd)
        check(LIBC.prctl(38, 1, None, 0, 0))  # NO_NEW_PRIVS: Landlock and seccomp ask for it
        # Of root's capabilities only DAC_READ_SEARCH stays: the interpreter may be another user's.
        version, none = struct.pack("Ii", 0x20080522, 0), bytes(24)
        if LIBC.capset(version, struct.pack("II16x", 4, 4)) < 0:
            check(LIBC.capset(version, none))
    if LANDLOCK_ABI:
        handled = KNOWN_RIGHTS, 3 * (LANDLOCK_ABI >= 4), 3 * (LANDLOCK_ABI >= 6)  # files, TCP, scopes
        buffer = ctypes.create_string_buffer(struct.pack("QQQ", *handled))
        rules = check(LIBC.syscall(444, ctypes.addressof(buffer), 24, 0, 0))  # _create_ruleset
        own = [(os.open(directory, os.O_PATH), OWN_DIRECTORY)] if directory else []
        for fd, rights in [*readable, *own]:
            struct.pack_into("=Qi", buffer, 0, rights & KNOWN_RIGHTS, fd)
            check(LIBC.syscall(445, rules, 1, ctypes.addressof(buffer), 0))  # _add_rule
        check(LIBC.syscall(446, rules, LANDLOCK_ABI >= 7, 0, 0))  # _restrict_self; 1: log no denials
        os.close(rules)
        readable = readable + own
    for fd, _ in readable:
        os.close(fd)
    # After Landlock, whose descriptors may have numbers above NOFILE
    for name, value in {"CORE": 0, "MEMLOCK": 0, "MSGQUEUE": 0, "SIGPENDING": 64, **limits}.items():
        if (kind := getattr(resource, "RLIMIT_" + name, None)) is not None:
            hard = resource.getrlimit(kind)[1]
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (value, value))
    if LINUX:
        check(LIBC.prctl(4, 0, None, 0, 0))  # not DUMPABLE: our files in /proc are root's
    if FILTER and filtered:
        program = ctypes.create_string_buffer(FILTER, len(FILTER))
        for offset in PID_OFFSETS:
            struct.pack_into("I", program, offset, os.getpid())
        header = struct.pack("H6xQ", len(FILTER) // 8, ctypes.addressof(program))
        if LIBC.prctl(22, 2, header, 0, 0) < 0 and ctypes.get_errno() != errno.EINVAL:  # no seccomp
            check(-1)


def probe() -> dict:
    """The isolation truly reached, found out by trying in a throw-away child."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        try:
            lock_down([], None, {"NOFILE": 16})
            found = {"seccomp": LIBC.getpgid(0) < 0,  # harmless, but not in the table
                     "landlock": LANDLOCK_ABI if LIBC.open(b"/", os.O_RDONLY) < 0 else 0,
                     "no_new_privs": LINUX and LIBC.prctl(39, 0, None, 0, 0) == 1,
                     "rlimits": resource.getrlimit(resource.RLIMIT_NOFILE) == (16, 16)}
            os.write(writer, json.dumps(found).encode())
        finally:
            os._exit(0)
    os.close(writer)
    answer = os.read(reader, 4096)
    os.close(reader)
    os.waitpid(child, 0)
    return json.loads(answer or b"{}")



# --- Plain data between judge and understudy ------------------------------------------------------


EXCEPTIONS = {
    name: kind
    for name, kind in vars(__import__("builtins")).items()
    if isinstance(kind, type) and issubclass(kind, BaseException)
}
# Types of the standard library that are rebuilt from plain arguments, so that a test's `==` and
# `isinstance` see the real thing. None of their constructors runs code of the other end's.
BUILT = {
    range: lambda v: (v.start, v.stop, v.step),
    bytearray: lambda v: (bytes(v),),
    collections.deque: lambda v: (list(v), v.maxlen),
    collections.Counter: lambda v: (dict(v),),
    collections.OrderedDict: lambda v: (list(v.items()),),
    datetime.date: lambda v: (v.year, v.month, v.day),
    datetime.datetime: lambda v: (*v.timetuple()[:6], v.microsecond),
    datetime.time: lambda v: (v.hour, v.minute, v.second, v.microsecond),
    datetime.timedelta: lambda v: (v.days, v.seconds, v.microseconds),
    decimal.Decimal: lambda v: (str(v),),
    fractions.Fraction: lambda v: (v.numerator, v.denominator),
}
BUILT_BY_NAME = {kind.__name__: kind for kind in BUILT}
PLAIN = (bool, int, float, complex, str, bytes, list, tuple, set, frozenset, dict)


class Remote:
    """The judge's handle on an object that lives in the understudy.

    Its own operators see the test's operands only on instances of classes that the task itself
    names (`_open`): an object that a function returned could answer `== 3.14` with a lie, or learn
    from `- 3.14` what to answer. Attributes, items, calls and iteration always go through.
    """

    __slots__ = ("_peer", "_number", "_open", "_makes_open")

    def __init__(self, peer: "Peer", number: int):
        self._peer, self._number, self._open, self._makes_open = peer, number, False, False

    def __call__(self, *args, **kwargs):
        made = self._peer.request("call", self, *args, **kwargs)
        if self._makes_open and type(made) is Remote:
            made._open = True
        return made

    def __getattr__(self, name):
        if name.startswith("__") and name not in ("__name__", "__doc__", "__dict__", "__class__"):
            raise AttributeError(name)  # copy, pickle and the like ask for protocols we don't have
        return self._peer.request("getattr", self, name)

    def __setattr__(self, name, value):
        if name in Remote.__slots__:
            object.__setattr__(self, name, value)
        else:
            self._peer.request("setattr", self, name, value)

    def __contains__(self, item):
        if self._open:
            return self._peer.request("contains", self, item)
        return any(item is other or item == other for other in self)

    def __instancecheck__(self, value):
        return type(value) is Remote and self._peer.request("isinstance", value, self) is True


def _forward(name: str, binary: bool, swapped: bool = False):
    def method(self, *operands):
        if binary and not (self._open or type(operands[0]) is Remote):
            return NotImplemented
        both = (*operands, self) if swapped else (self, *operands)
        return self._peer.request(name, *both)

    return method


OPERATIONS = {  # what one end may ask of the other's objects; of the judge's only the first three
    "call": lambda f, *args, **kwargs: f(*args, **kwargs), "iter": iter, "next": next,
    "getattr": getattr, "setattr": setattr, "delattr": delattr, "len": len, "str": str,
    "repr": repr, "bool": bool, "hash": hash, "int": int, "float": float, "reversed": reversed,
    "isinstance": isinstance, "contains": operator.contains, "enter": lambda o: o.__enter__(),
    "exit": lambda o, *error: o.__exit__(*error), "dir": dir, "abs": abs, "round": round,
}  # fmt: skip
for _name in ("getitem", "setitem", "delitem", "index", "neg"):
    OPERATIONS[_name] = getattr(operator, _name)
for _name in OPERATIONS.keys() - {"call", "getattr", "setattr", "isinstance", "contains"}:
    setattr(Remote, f"__{_name}__", _forward(_name, binary=False))
for _name in "add sub mul truediv floordiv mod pow matmul and or xor".split():
    OPERATIONS[_name] = getattr(operator, _name, None) or getattr(operator, f"{_name}_")
    setattr(Remote, f"__{_name}__", _forward(_name, binary=True))
    setattr(Remote, f"__r{_name}__", _forward(_name, binary=True, swapped=True))
for _name in ("eq", "lt", "le", "gt", "ge"):
    OPERATIONS[_name] = getattr(operator, _name)
    setattr(Remote, f"__{_name}__", _forward(_name, binary=True))


class Peer:
    """One end of the line between judge and understudy: calls both ways, plain data only.

    A value crosses as JSON: None, bool, str, float and small int as themselves, the rest as a list
    that begins with a tag. Mutable containers are numbered in the order of their first appearance
    in a call, and the answer names them by number; so what the callee changed in place is written
    back into the caller's own objects, and identity survives. Nothing received is ever executed.
    """

    def __init__(self, sock: socket.socket, trusted: bool):
        self.sock, self.trusted = sock, trusted  # trusted: this end is the judge
        self.objects: list = []  # ours, which the other end knows by their place here
        self.numbers: dict[int, int] = {}  # id of such an object -> its place
        self.remotes: dict[int, object] = {}  # theirs, by number: one handle each, so `is` works
        self.broken = ""

    def request(self, name: str, *args, **kwargs):
        """Ask the other end for one operation; meanwhile it may call our callables back."""
        if self.broken:
            raise ConnectionError(self.broken)
        shared: list = []  # the mutable containers of this call, in the order of appearance
        message = [name, self.encode((args, kwargs), shared)]
        try:
            send_frame(self.sock, message)
            while (reply := receive_frame(self.sock))[0] not in ("return", "raise"):
                self.answer(reply)
            decoder = Decoder(self, shared)
            result, _ = decoder.decode(reply[1])
            decoder.write_back()
        except (OSError, EOFError, ValueError, TypeError, KeyError, RecursionError) as error:
            self.broken = f"the line to the graded code is broken: {error}"
            raise ConnectionError(self.broken) from None
        if reply[0] == "raise" and isinstance(result, BaseException):
            raise result
        return result

    def answer(self, message: list) -> None:
        """Carry out one request of the other end and send the outcome."""
        shared: list = []
        try:
            name, wire = message
            args, kwargs = Decoder(self, shared).decode(wire)
            if self.trusted and name not in ("call", "iter", "next"):
                raise TypeError(f"{name} of an object of the test's is not to be had")
            kind, value = "return", OPERATIONS[name](*args, **kwargs)
        except TimeUp:
            raise
        except BaseException as error:
            kind, value = "raise", error
        known = {id(container): index for index, container in enumerate(shared)}
        try:
            reply = [kind, self.encode((value, (*shared,)), shared, known)]
        except (ValueError, RecursionError) as error:  # too much, or a cycle
            reply = ["raise", self.encode((ValueError(str(error)), ()), [])]
        send_frame(self.sock, reply)

    def encode(self, value: object, shared: list, known: dict[int, int] | None = None):
        """`value` for the wire. `known`: containers of the call that this answers, by id."""
        budget, done = [NODES], {}  # done: the containers sent so far, each whole and once

        def walk(value, depth):
            kind = type(value)
            if value is None or kind in (bool, float):
                return value
            budget[0] -= 1 + (len(value) >> 6 if kind in (str, bytes) else 0)
            if budget[0] < 0 or depth > DEPTH:
                raise ValueError("too large, too deep or cyclic a value for a test")
            if kind is str:
                return value
            if kind is int:
                return value if -(2**53) < value < 2**53 else ["i", format(value, "x")]
            if kind in (list, dict, set):
                number = done.get(id(value))
                if number is not None:
                    return ["@", number]
                number = (known or {}).get(id(value))
                if number is None:
                    number = len(shared)
                    shared.append(value)
                done[id(value)] = number
                items = itertools.chain.from_iterable(value.items()) if kind is dict else value
                return [kind.__name__[0], number, [walk(item, depth + 1) for item in items]]
            if kind in (tuple, frozenset):
                return [kind.__name__[0], 0, [walk(item, depth + 1) for item in value]]
            if kind is bytes:
                return ["b", value.hex()]
            if kind is complex:
                return ["c", value.real, value.imag]
            if kind is Remote or kind is Callback:
                return ["o", value._number]
            if kind in BUILT:
                return ["k", kind.__name__, [walk(arg, depth + 1) for arg in BUILT[kind](value)]]
            if isinstance(value, type) and issubclass(value, BaseException):
                if EXCEPTIONS.get(value.__name__) is value:
                    return ["E", value.__name__]
                bases = [base for base in value.__bases__ if issubclass(base, BaseException)]
                return ["E", value.__name__, self.number(value), walk(bases[0], depth + 1)]
            if isinstance(value, BaseException):
                args = [arg if type(arg) in (str, int, bool) else str(arg) for arg in value.args[:9]]
                return ["e", walk(kind, depth + 1), walk(args, depth + 1), self.number(value)]
            if isinstance(value, tuple) and hasattr(kind, "_fields"):
                plain = [walk(item, depth + 1) for item in tuple.__iter__(value)]
                return ["n", kind.__name__, [str(name) for name in kind._fields], plain]
            for base in PLAIN[1:]:  # a subclass crosses as what it holds; its methods stay behind
                if isinstance(value, base) and not self.trusted:
                    return walk(base(value) if base is not dict else dict(value.items()), depth)
            return ["r", self.number(value)]

        return walk(value, 0)

    def number(self, value: object) -> int:
        number = self.numbers.get(id(value))
        if number is None:
            if len(self.objects) >= REFERENCES:
                raise ValueError(f"more than {REFERENCES} objects")
            number = self.numbers[id(value)] = len(self.objects)
            self.objects.append(value)
        return number


class Callback:
    """The understudy's handle on a callable or an iterator of the test's."""

    def __init__(self, peer: Peer, number: int):
        self._peer, self._number = peer, number

    def __call__(self, *args, **kwargs):
        return self._peer.request("call", self, *args, **kwargs)

    def __iter__(self):
        return self._peer.request("iter", self)

    def __next__(self):
        return self._peer.request("next", self)


class Decoder:
    """Rebuilds one message's values as exact built-in types, within the budgets."""

    def __init__(self, peer: Peer, shared: list):
        self.peer, self.shared, self.budget = peer, shared, NODES
        self.sizes: dict[int, int] = {}  # nodes below a container, sharing expanded
        self.changes: list = []  # what to write back once all of the message proved sound

    def decode(self, wire: object, depth: int = 0):
        self.budget -= 1
        if self.budget < 0 or depth > DEPTH:
            raise ValueError("too large or too deep a value")
        if not isinstance(wire, list):
            if isinstance(wire, dict):
                raise ValueError("an object on the wire")
            return wire
        tag, *rest = wire
        if tag in ("l", "d", "s", "t", "f"):
            number, items = rest
            before, place = self.budget, len(self.shared)
            if tag in "lds":
                if number == place:  # made first: the numbers must come in the order of appearance
                    self.shared.append({"l": list, "d": dict, "s": set}[tag]())
                elif not 0 <= number < place or number in self.sizes:
                    raise ValueError("a container out of order")
                self.sizes[number] = NODES + 1  # until it is whole: a cycle breaks the budget
            items = [self.decode(item, depth + 1) for item in items]
            if tag in "tf":
                return (tuple if tag == "t" else frozenset)(items)
            self.sizes[number] = before - self.budget
            target = self.shared[number]
            if type(target).__name__[0] != tag:
                raise ValueError("a container of another type")
            if number == place:
                refill(target, items)
            else:
                self.changes.append((target, items))
            return target
        if tag == "@":
            self.budget -= self.sizes[rest[0]] if rest[0] in self.sizes else 0
            return self.shared[rest[0]]
        if tag == "i":
            if len(rest[0]) > INT_BITS // 4:
                raise ValueError(f"an int of more than {INT_BITS} bits")
            return int(rest[0], 16)
        if tag == "b":
            return bytes.fromhex(rest[0])
        if tag == "c":
            return complex(*map(float, rest))
        if tag == "k":
            return BUILT_BY_NAME[rest[0]](*[self.decode(arg, depth + 1) for arg in rest[1]])
        if tag == "n":
            values = [self.decode(item, depth + 1) for item in rest[2]]
            return collections.namedtuple(rest[0], rest[1], rename=True)(*values)
        if tag == "o":
            return self.peer.objects[rest[0]]
        if tag == "r":
            make = Remote if self.peer.trusted else Callback
            return self.peer.remotes.setdefault(rest[0], make(self.peer, rest[0]))
        if tag == "E":
            return self.exception_class(rest, depth)
        if tag == "e":
            return self.exception(rest, depth)
        raise ValueError("an unknown tag")

    def exception_class(self, rest: list, depth: int) -> type:
        if len(rest) == 1:
            return EXCEPTIONS[rest[0]]
        name, number, base = rest
        if number not in self.peer.remotes:  # a stand-in, for `except TheirError` in a test
            base = self.decode(base, depth + 1)
            peer = self.peer

            def attribute(self, name):
                if name.startswith("_") or "_number" not in vars(self):
                    raise AttributeError(name)
                return peer.request("getattr", Remote(peer, vars(self)["_number"]), name)

            body = {"__getattr__": attribute, "__module__": "candidate"}
            self.peer.remotes[number] = type(str(name), (base,), body)
        return self.peer.remotes[number]

    def exception(self, rest: list, depth: int) -> BaseException:
        kind, args = self.decode(rest[0], depth + 1), self.decode(rest[1], depth + 1)
        error = kind.__new__(kind, *args) if issubclass(kind, OSError) else kind.__new__(kind)
        error.args = tuple(args)
        error.__dict__["_number"] = rest[2]
        return error

    def write_back(self) -> None:
        for target, items in self.changes:
            target.clear()
            refill(target, items)


def refill(target, items: list) -> None:
    if type(target) is list:
        target.extend(items)
    elif type(target) is dict:
        target.update(zip(items[::2], items[1::2]))
    else:
        target.update(items)


# --- Worker and understudy ------------------------------------------------------------------------


class Interpreter:
    """The namespace that an agent's code lives in, and the loop that runs it step by step."""

    def __init__(self, result_chars: int):
        self.result_chars, self.steps, self.running = result_chars, 0, False
        self.module = sys.modules["__main__"] = types.ModuleType("__main__")
        self.module.__dict__["__builtins__"] = __import__("builtins")
        options = {"encoding": "utf-8", "errors": "backslashreplace", "closefd": False}
        self.streams = [open(fd, "w", buffering=1, **options) for fd in (1, 2)]
        sys.stdin = open(0, closefd=False)

    def interrupt(self, *_) -> None:
        if self.running:
            raise KeyboardInterrupt

    def run(self, code: str) -> dict:
        """Run one step; what it printed has been flushed to the descriptors on return."""
        exit_code, result = 1, None
        try:
            signal.signal(signal.SIGINT, self.interrupt)
            sys.stdout, sys.stderr = self.streams
            exit_code, result = self.execute(code)
        except BaseException:  # the time-out's interrupt came while an error was being reported
            pass
        self.running = False
        for stream in (sys.stdout, sys.stderr, *self.streams):
            try:
                stream.flush()
            except BaseException:
                pass
        return {"exit_code": exit_code, "result": result}

    def execute(self, code: str) -> tuple[int, str | None]:
        self.steps += 1
        name = f"<step {self.steps}>"
        linecache.cache[name] = (len(code), None, code.splitlines(True), name)
        self.running = True
        try:
            tree, value = ast.parse(code, name), None
            last = tree.body and isinstance(tree.body[-1], ast.Expr) and tree.body.pop()
            exec(compile(tree, name, "exec", dont_inherit=True), self.module.__dict__)
            if last:
                expression = compile(ast.Expression(last.value), name, "eval", dont_inherit=True)
                value = eval(expression, self.module.__dict__)
            return 0, None if value is None else self.shown(repr(value))
        except SystemExit as error:
            if error.code is None or isinstance(error.code, int):
                return (error.code or 0) & 0xFF, None
            print(error.code, file=sys.stderr)
        except BaseException as error:
            report = traceback.TracebackException.from_exception(error)
            hide_our_frames(report)
            print("".join(report.format()), end="", file=sys.stderr)
        return 1, None

    def shown(self, text: str) -> str:
        text = text if type(text) is str else str.__str__(text)
        if len(text) > self.result_chars:
            cut = len(text) - self.result_chars
            text = f"{text[:self.result_chars // 2]}... {cut} characters cut ...{text[-self.result_chars // 2:]}"
        return text


def hide_our_frames(report: traceback.TracebackException) -> None:
    """Keep the candidate's own lines only, in the whole chain of exceptions."""
    todo = [report]
    while todo:
        report = todo.pop()
        own = [frame for frame in report.stack if frame.filename.startswith("<step ")]
        report.stack = traceback.StackSummary.from_list(own)
        chain = (report.__cause__, report.__context__, *(getattr(report, "exceptions", 0) or ()))
        todo += [link for link in chain if link is not None]


def worker_main(control: socket.socket, line: socket.socket, spec: dict) -> None:
    """Run what the server sends; as an understudy, end by answering the judge's calls."""
    interpreter = Interpreter(spec["result_chars"])
    while True:
        message = receive_frame(control)
        if message["op"] == "run":
            outcome = interpreter.run(message["code"])
            send_frame(control, {**outcome, "seq": message["seq"]})
            continue
        OPERATIONS["names"] = lambda names: {
            name: value for name, value in interpreter.module.__dict__.items() if name in names
        }
        peer = Peer(line, trusted=False)
        while True:
            peer.answer(receive_frame(line))


# --- Judge ----------------------------------------------------------------------------------------


class TimeUp(BaseException):
    """The grading's time is over. Not an Exception, so that tests rarely swallow it."""


class Scorekeeper(ast.NodeTransformer):
    """Rewrites each `assert T` to `try: check(n, T)  except: failed(n)`, so that the run goes on."""

    FAILURES = (Exception, SystemExit, KeyboardInterrupt, GeneratorExit)

    def __init__(self, source: str):
        self.marks: list[bool | None] = []  # per assert: None until it ran, then: always true?
        self.error = ""  # the first failure's built-in exception type
        self.names = {"__check": self.check, "__failed": self.failed, "__failures": self.FAILURES}
        self.code = compile(ast.fix_missing_locations(self.visit(ast.parse(source))), "<tests>", "exec")

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        number = ast.Constant(len(self.marks))
        self.marks.append(None)

        def call(name, *args):
            return ast.Expr(ast.Call(ast.Name(name, ast.Load()), [number, *args], []))

        handler = ast.ExceptHandler(ast.Name("__failures", ast.Load()), None, [call("__failed")])
        attempt = ast.Try([call("__check", node.test)], [handler], [], [])
        return ast.copy_location(attempt, node)

    def check(self, number: int, verdict: object) -> None:
        if not verdict:
            raise AssertionError
        if self.marks[number] is None:
            self.marks[number] = True

    def failed(self, number: int) -> None:
        self.marks[number] = False
        self.note(sys.exc_info()[0])

    def note(self, kind: type) -> None:
        named = next((k.__name__ for k in kind.__mro__ if EXCEPTIONS.get(k.__name__) is k), "")
        self.error = self.error or ("" if kind is AssertionError else named)


def judge_main(control: socket.socket, line: socket.socket, spec: dict) -> None:
    """Run the hidden tests against the understudy's functions, and report the counts."""
    task = receive_frame(control)
    peer, ended, timed_out = Peer(line, trusted=True), False, False

    def time_up(*_):
        raise TimeUp

    keeper = Scorekeeper(task["tests"])
    space: dict = {"__name__": "tests", **keeper.names}
    try:
        signal.signal(signal.SIGALRM, time_up)
        # It repeats, in case that a test's bare `except:` swallows the first.
        signal.setitimer(signal.ITIMER_REAL, task["seconds"], 0.05)
        exec(compile(task["helpers"], "<helpers>", "exec"), space)
        found = peer.request("names", task["names"])
        for name in task["names"]:  # in place of found.keys(): the other end may name anything
            if isinstance(found, dict) and name in found:
                space[name] = found[name]
                if name in task["classes"] and type(found[name]) is Remote:
                    found[name]._makes_open = True
        exec(keeper.code, space)
        ended = True
    except TimeUp:
        timed_out = True
    except BaseException as error:
        keeper.note(type(error))
    signal.setitimer(signal.ITIMER_REAL, 0)
    passed = keeper.marks.count(True)
    solved = ended and passed > 0 and False not in keeper.marks
    send_frame(control, {
        "passed": len(keeper.marks) if solved else min(passed, len(keeper.marks) - 1),
        "total": len(keeper.marks), "solved": solved, "timed_out": timed_out, "error": keeper.error,
    })  # fmt: skip


# --- Janitor --------------------------------------------------------------------------------------


def janitor_main(control: socket.socket, base: str, entries: int, size: int) -> None:
    """Measure and clear the others' folders, which may hold anything: only this process, itself
    shut in, ever walks them. At the end of its line, the server's end, it clears all."""
    serial = itertools.count()

    def clear(folder: str) -> None:
        # Sub-folders are moved up before they are emptied: no recursion, and no path too long.
        pending = [folder]
        while pending:
            path = pending.pop()
            try:
                os.chmod(path, 0o700)
                for entry in list(os.scandir(path)):
                    if entry.is_dir(follow_symlinks=False):
                        aside = f"{base}/.{next(serial)}"
                        os.chmod(entry.path, 0o700)
                        os.rename(entry.path, aside)
                        pending.append(aside)
                    else:
                        os.unlink(entry.path)
                os.rmdir(path)
            except OSError:
                pass  # it is gone, or the rest of it goes with the server's end

    def over(folder: str) -> bool:
        pending, count, total = [folder], 0, 0
        while pending:
            try:
                for entry in os.scandir(pending.pop()):
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                    count, total = count + 1, total + entry.stat(follow_symlinks=False).st_blocks * 512
                    if count > entries or total > size:
                        return True
            except FileNotFoundError:
                pass  # deleted meanwhile
            except PermissionError:
                pass  # its owner cannot fill it either
            except OSError:
                return True  # a path too long: nobody needs that deep a tree
        return False

    with contextlib.suppress(OSError, EOFError, ValueError):
        while True:
            message = receive_frame(control)
            if message["op"] == "clear":
                clear(f"{base}/{message['folder']}")
            else:
                send_frame(control, {"over": [f for f in message["folders"] if over(f"{base}/{f}")]})
    for name in os.listdir(base):
        clear(f"{base}/{name}")


# --- Zygote ---------------------------------------------------------------------------------------


def zygote_main(config: dict) -> None:
    """Fork the others on the server's command, and reap them; ends, with all of them, at its EOF.

    Commands are lines of JSON on descriptor 0, each with the descriptors for the new process as
    SCM_RIGHTS. Answers: {"id", "pid"} with a pidfd, {"id", "error"}, and {"exit": pid, "status"}.
    """
    for name in config["preload"]:
        try:
            __import__(name)
        except ImportError as error:
            sys.exit(f"python_env: cannot preload {name!r}: {error}")
    control, zygote = socket.socket(fileno=0), os.getpid()
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    wake_read, wake_write = os.pipe()
    for fd in (wake_read, wake_write):
        os.set_blocking(fd, False)
    signal.set_wakeup_fd(wake_write)
    readable = open_readable(config["hidden"])
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's to handle
    gc.collect()
    gc.freeze()  # so that a child's collections do not touch, and copy, the shared pages
    control.sendall(json.dumps({"id": "ready", "isolation": probe()}).encode() + b"\n")
    children: dict[int, str] = {}
    pending, fds, alive = b"", [], True
    while alive or children:
        ready, _, _ = select.select([control, wake_read] if alive else [wake_read], [], [], 10)
        if not alive and not ready:
            break  # the janitor had its time
        if wake_read in ready:
            os.read(wake_read, 4096)
        while children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            children.pop(pid, None)
            if alive:
                control.sendall(json.dumps({"exit": pid, "status": status}).encode() + b"\n")
        if control not in ready:
            continue
        try:
            data, received, _, _ = socket.recv_fds(control, 65536, 16)
        except ConnectionResetError:  # the server died with answers of ours unread
            data, received = b"", []
        fds += received
        pending += data
        if not data:
            alive = False
            for pid, role in children.items():
                if role != "janitor":  # which notices the end by itself, and clears up
                    os.kill(pid, signal.SIGKILL)
        *lines, pending = pending.split(b"\n")
        for line in lines:
            spec = json.loads(line)
            own, fds = fds[: spec["fds"]], fds[spec["fds"] :]
            answer, extra = {"id": spec["id"]}, []
            try:
                if spec["role"] != "janitor":  # whose folder is the one that holds all
                    os.mkdir(spec["folder"], 0o700)
                if (pid := os.fork()) == 0:
                    child_main(spec, own, readable, zygote)
                children[pid] = spec["role"]
                if hasattr(os, "pidfd_open"):
                    extra = [os.pidfd_open(pid)]  # before it can be reaped: it cannot be another's
                answer.update(pid=pid, pidfd=len(extra))
            except OSError as error:
                answer["error"] = str(error)
            socket.send_fds(control, [json.dumps(answer).encode() + b"\n"], extra)
            for fd in own + extra:
                os.close(fd)
    with contextlib.suppress(OSError):
        os.rmdir(config["base"])


def child_main(spec: dict, fds: list[int], readable: list, zygote: int) -> None:
    """What a fork becomes; it never returns. The zygote's own descriptors fill 0 to 4, so the new
    ones are above; they come as [control], [control, line] or [control, line, stdout, stderr]."""
    try:
        if LINUX:
            LIBC.prctl(1, int(signal.SIGKILL), None, 0, 0)  # PR_SET_PDEATHSIG
        if os.getppid() != zygote:
            return  # it died before that
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        null = os.open(os.devnull, os.O_RDWR)
        for place, fd in enumerate([null, *(fds[2:] or (null, null)), *fds[:2]]):
            os.dup2(fd, place, inheritable=False)
        limits, role = spec["limits"], spec["role"]
        os.chdir(spec["folder"])
        os.environ.update(HOME=spec["folder"], TMPDIR=spec["folder"])
        rlimits = {"AS": limits["memory_mb"] << 20, "FSIZE": limits["file_bytes"],
                   "NOFILE": limits["open_files"], "NPROC": limits["processes"]}  # fmt: skip
        if role != "janitor":
            rlimits["CPU"] = limits["cpu_s"]
        lock_down(readable, spec["folder"], rlimits, filtered=role != "janitor")
        os.closerange(5, 4096)
        control = socket.socket(fileno=3)
        random.seed(spec["seed"])
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed(spec["seed"] % 2**32)
        if role == "janitor":
            janitor_main(control, spec["folder"], limits["folder_entries"], limits["folder_bytes"])
        else:
            main = judge_main if role == "judge" else worker_main
            main(control, socket.socket(fileno=4) if spec["line"] else None, limits)
    except (EOFError, OSError):
        pass  # the server hung up
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(70)


# ==================================================================================================
# 5. Sandbox: the server's side of those processes
# ==================================================================================================

COMMON_MODULES = (
    "math cmath re collections itertools functools heapq bisect json random string datetime decimal "
    "fractions statistics typing dataclasses copy enum abc operator textwrap contextlib time "
    "calendar hashlib struct io array queue threading unicodedata"
).split()


class Capture:
    """One output stream of a worker: reads its pipe at once, keeps a head and a tail."""

    def __init__(self, fd: int, most: int):
        self.fd, self.half, self.closed = fd, most // 2, False
        self.head, self.tail, self.total = bytearray(), bytearray(), 0
        os.set_blocking(fd, False)
        asyncio.get_running_loop().add_reader(fd, self.read)

    def read(self) -> bool:
        """Read once; False when there is nothing now."""
        try:
            data = b"" if self.closed else os.read(self.fd, 65_536)
        except BlockingIOError:
            return False
        if not data:  # the code closed its own output; PythonEnvironment replaces the interpreter
            self.closed = True
            asyncio.get_running_loop().remove_reader(self.fd)
            return False
        self.total += len(data)
        room = self.half - len(self.head)
        self.head += data[:room]
        self.tail = (self.tail + data[max(room, 0) :])[-self.half :]
        return True

    def take(self) -> str:
        """All output since the last call: what a process wrote before it replied is in the pipe."""
        for _ in range(64):  # a thread may go on writing for ever
            if not self.read():
                break
        cut = self.total - len(self.head) - len(self.tail)
        said = f"\n... {cut} bytes cut ...\n".encode() if cut else b""
        text = bytes(self.head + said + self.tail).decode(errors="replace")
        self.head, self.tail, self.total = bytearray(), bytearray(), 0
        return text

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.fd)
        os.close(self.fd)


@dataclass
class Outcome:
    """What came of running code. `died`: the process is gone, and its names with it."""

    exit_code: int
    result: str | None = None
    timed_out: bool = False
    died: bool = False


class Process:
    """A process forked by the zygote, as the server holds it. All that it sends may be a lie."""

    MOST = 1_048_576  # bytes of one frame that it may send us

    def __init__(self, sandbox: "Sandbox", role: str, folder: str, sock: socket.socket):
        self.sandbox, self.role, self.folder, self.sock = sandbox, role, folder, sock
        self.pid, self.pidfd, self.seq = 0, -1, 0
        self.loop = asyncio.get_running_loop()
        self.exited: asyncio.Future = self.loop.create_future()  # its wait status
        self.streams: list[Capture] = []
        self.line: socket.socket | None = None  # the judge's end of the line to this understudy
        self.busy = self.touched = False  # touched: the next sample looks at its threads and files
        self.why = ""  # the server's reason for killing it, for the feedback
        self._data, self._waiter, self._eof = bytearray(), None, False
        sock.setblocking(False)
        self.loop.add_reader(sock, self._read)

    def _read(self) -> None:
        try:
            chunk = self.sock.recv(65_536)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        self._data += chunk
        if not chunk or len(self._data) > self.MOST + 4:
            self._eof = True
            self.loop.remove_reader(self.sock)
        self._deliver()

    def _deliver(self) -> None:
        if self._waiter and not self._waiter.done():
            size = 4 + int.from_bytes(self._data[:4], "big")
            if 4 <= size <= len(self._data) and len(self._data) >= 4:
                frame = bytes(self._data[4:size])
                del self._data[:size]
                self._waiter.set_result(frame)
            elif self._eof:
                self._waiter.set_exception(EOFError("the process is gone"))

    async def receive(self) -> dict:
        """Its next frame; EOFError when it is gone, ValueError when it talks nonsense."""
        self._waiter = self.loop.create_future()
        self._deliver()
        message = json.loads(await self._waiter)
        if not isinstance(message, dict):
            raise ValueError("a frame that is no object")
        return message

    async def send(self, message: dict) -> None:
        body = json.dumps(message).encode()
        await self.loop.sock_sendall(self.sock, len(body).to_bytes(4, "big") + body)

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self.pidfd >= 0:
                signal.pidfd_send_signal(self.pidfd, number)
            elif self.pid and not self.exited.done():
                os.kill(self.pid, number)  # a system without pidfds: it may just have been reaped

    def kill(self, why: str = "") -> None:
        """End it now; who waits for a frame of it gets an EOFError."""
        self.why = self.why or why
        self.signal(signal.SIGKILL)
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Kill it and give back its descriptors; its folder is cleared once it has ended."""
        if self.sock.fileno() < 0:
            return
        self.kill()
        self._eof = True
        self._deliver()
        self.loop.remove_reader(self.sock)
        self.loop.remove_writer(self.sock)
        self.sock.close()
        for stream in self.streams:
            stream.close()
        if self.line:
            self.line.close()

    async def run(self, code: str, seconds: float) -> Outcome:
        """Run code for at most `seconds` and a grace: first interrupted, then killed."""
        timed_out, grace = False, self.sandbox.limits.grace_s

        def interrupt() -> None:
            nonlocal timed_out
            timed_out = True
            self.signal(signal.SIGINT)

        self.busy = self.touched = True
        self.seq += 1
        timers = [self.loop.call_later(seconds, interrupt)]
        timers.append(self.loop.call_later(seconds + grace, self.kill, "it did not stop in time"))
        try:
            await self.send({"op": "run", "code": code, "seq": self.seq})
            while (reply := await self.receive()).get("seq") != self.seq:
                pass  # an earlier step's code forged it
            exit_code, result = reply.get("exit_code"), reply.get("result")
            if type(exit_code) is not int or not isinstance(result, str | None):
                raise ValueError("a reply of another shape")
            result = result and result[: self.sandbox.limits.result_chars + 100]
            return Outcome(124 if timed_out else exit_code & 0xFF, result, timed_out)
        except (EOFError, OSError, ValueError, RecursionError):
            self.kill()
            status = os.waitstatus_to_exitcode(await self.exited)
            exit_code = 124 if timed_out else status if status >= 0 else 128 - status
            return Outcome(exit_code, None, timed_out, died=True)
        except asyncio.CancelledError:
            self.kill("its client went away during a step")
            raise
        finally:
            self.busy = False
            for timer in timers:
                timer.cancel()


WORKER_ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",  # so that scores agree between servers
    "MALLOC_ARENA_MAX": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}  # fmt: skip


def worker_source() -> str:
    """Chapter 4 as a program. Where `-c` put the current folder on sys.path, it is taken off."""
    source = inspect.getsource(sys.modules[__name__])
    start, end = (source.index(f"# {n}. {title}:") for n, title in ((4, "Worker"), (5, "Sandbox")))
    safe_path = "import sys; sys.path[:] = filter(None, sys.path)"
    return f"{safe_path}\n#{source[start:end]}\nzygote_main(json.loads(sys.argv[1]))"


def pids_max() -> int | None:
    """How many processes and threads the container may have; None: no limit is known."""
    for path in ("/sys/fs/cgroup/pids.max", "/sys/fs/cgroup/pids/pids.max"):
        with contextlib.suppress(OSError, ValueError):
            with open(path) as file:
                return int(file.read())
    return None


class Sandbox:
    """The zygote and everything that it forked. One a server; it lives in one event loop.

    `isolation` tells what was truly reached on this machine: it is tried out in a child at start.
    """

    def __init__(self, limits: Limits = LIMITS, preload: tuple = (), hidden: tuple = ()):
        self.limits, self.preload, self.hidden = limits, preload, hidden
        self.isolation: dict[str, Any] = {}
        self.processes_most = max(64, (pids_max() or 4_096) - 32)  # the reserve is ours
        self.processes: dict[int, Process] = {}
        self._zygote: subprocess.Popen | None = None
        self._lock, self._janitor_lock, self._serial = asyncio.Lock(), asyncio.Lock(), 0

    async def start(self) -> None:
        """Start the zygote, unless it runs already. Raises FactoryError when it does not start."""
        async with self._lock:
            if self._zygote and self._zygote.poll() is None and not self._lost:
                return
            await self._stop()
            self.base = os.path.realpath(tempfile.mkdtemp(prefix="python_env-"))
            own = os.path.realpath(__file__)
            caches = os.path.join(os.path.dirname(own), "__pycache__")
            names = os.listdir(caches) if os.path.isdir(caches) else []
            stem = os.path.basename(own).removesuffix(".py") + "."
            config = {
                "preload": [*COMMON_MODULES, *self.preload],
                "base": self.base, "hidden": [own, *map(os.path.realpath, self.hidden)]
                + [os.path.join(caches, name) for name in names if name.startswith(stem)],
            }
            self._control, theirs = socket.socketpair()
            self._control.setblocking(False)
            with theirs:
                self._zygote = subprocess.Popen(
                    [sys.executable, "-s", "-c", worker_source(), json.dumps(config)],
                    stdin=theirs, stdout=subprocess.DEVNULL, env=WORKER_ENVIRONMENT, cwd="/",
                    start_new_session=True,
                )  # fmt: skip
            loop = asyncio.get_running_loop()
            self._answers: dict[Any, tuple] = {"ready": (loop.create_future(), None)}
            self._pending, self._fds, self._lost = b"", collections.deque(), False
            loop.add_reader(self._control, self._read)
            ready = await self._answers["ready"][0]
            self.isolation = found = ready["isolation"]
            found["full"] = all(found.get(k) for k in ("seccomp", "landlock", "no_new_privs", "rlimits"))
            self._janitor = await self._spawn("janitor", 0, False, None)
            self._sampler = asyncio.create_task(self._sample())

    def _read(self) -> None:
        """Answers of the zygote, which is trusted: it runs no candidate code."""
        try:
            data, fds, _, _ = socket.recv_fds(self._control, 65_536, 64)
        except BlockingIOError:
            return
        if not data:
            return self._zygote_lost()
        self._fds.extend(fds)
        *lines, self._pending = (self._pending + data).split(b"\n")
        for message in map(json.loads, lines):
            if "exit" in message:
                if process := self.processes.pop(message["exit"], None):
                    self._ended(process, message["status"])
                continue
            future, process = self._answers.pop(message["id"])
            if process and "pid" in message:
                # Registered here, not where the answer is awaited: the exit may be the next line.
                process.pid = message["pid"]
                process.pidfd = self._fds.popleft() if message["pidfd"] else -1
                self.processes[process.pid] = process
            if not future.done():
                future.set_result(message)
            elif process:
                process.close()  # who asked for it was cancelled meanwhile

    def _ended(self, process: "Process", status: int) -> None:
        process.exited.set_result(status)
        if process.pidfd >= 0:
            os.close(process.pidfd)
            process.pidfd = -1
        if process.role == "janitor":
            return self._zygote_lost()  # without it nothing may be spawned: begin anew
        asyncio.ensure_future(self._clear(process.folder))

    async def _clear(self, folder: str) -> None:
        async with self._janitor_lock:
            with contextlib.suppress(OSError):
                await self._janitor.send({"op": "clear", "folder": folder})

    def _zygote_lost(self) -> None:
        if self._lost:
            return
        self._lost = True
        asyncio.get_running_loop().remove_reader(self._control)
        self._control.close()  # if it lives, it ends all its children at this end of file
        for future, _ in self._answers.values():
            if not future.done():
                future.set_exception(FactoryError("the zygote, which starts interpreters, died"))
        for process in [*self.processes.values()]:
            if not process.exited.done():
                process.kill("the sandbox had to be started again")
                self._ended(process, signal.SIGKILL)
        self.processes.clear()

    async def spawn(self, role: str, seed: int = 0, *, streams: bool = False,
                    line: socket.socket | None = None) -> "Process":  # fmt: skip
        """Fork a worker or a judge. `streams`: capture its output; `line`: its end of a line.

        Raises FactoryError when it cannot be had: no more processes, memory or descriptors.
        """
        await self.start()
        return await self._spawn(role, seed, streams, line)

    async def _spawn(self, role: str, seed: int, streams: bool, line: socket.socket | None):
        self._serial += 1
        folder = f"{role}{self._serial}" if role != "janitor" else ""
        opened: list[int] = []
        try:
            ours, theirs = socket.socketpair()
            process = Process(self, role, folder, ours)
            opened = [theirs.detach(), os.dup(line.fileno()) if line else os.open(os.devnull, 2)]
            if streams:
                for _ in (1, 2):
                    read, write = os.pipe()
                    process.streams.append(Capture(read, self.limits.output_bytes))
                    opened.append(write)
            limits = {**dataclasses.asdict(self.limits), "processes": self.processes_most}
            spec = {"id": self._serial, "role": role, "seed": seed, "fds": len(opened), "line": bool(line),
                    "folder": os.path.join(self.base, folder), "limits": limits}  # fmt: skip
            answer = asyncio.get_running_loop().create_future()
            self._answers[self._serial] = answer, process
            await self._command(json.dumps(spec).encode() + b"\n", opened)
        except OSError as error:
            raise FactoryError(f"no {role} process could be started: {error}") from None
        finally:
            for fd in opened:
                os.close(fd)
        reply = await answer
        if "error" in reply:
            process.close()
            raise FactoryError(f"no {role} process could be started: {reply['error']}")
        return process

    async def _command(self, data: bytes, fds: list[int]) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sent = socket.send_fds(self._control, [data], fds)
                return await loop.sock_sendall(self._control, data[sent:])
            except BlockingIOError:
                await asyncio.sleep(0.005)  # the zygote is behind with its forks

    async def _sample(self) -> None:
        """Twice a second, end what grew too many threads (root has no RLIMIT_NPROC) or files."""
        while True:
            await asyncio.sleep(0.5)
            touched = [p for p in self.processes.values() if p.touched]
            for process in touched:
                process.touched = process.busy
                with contextlib.suppress(OSError):
                    if len(os.listdir(f"/proc/{process.pid}/task")) > self.limits.threads:
                        process.kill(f"it started more than {self.limits.threads} threads")
            if touched:
                with contextlib.suppress(OSError, EOFError, ValueError):
                    folders = [process.folder for process in touched]
                    async with self._janitor_lock:
                        await self._janitor.send({"op": "measure", "folders": folders})
                    over = (await self._janitor.receive()).get("over", [])
                    for process in touched:
                        if process.folder in over:
                            process.kill("its files grew over the limit")

    async def close(self) -> None:
        """End every process and clear every folder; the sandbox may be started again."""
        async with self._lock:
            await self._stop()

    async def _stop(self) -> None:
        if not self._zygote:
            return
        self._sampler.cancel()
        for process in [*self.processes.values()]:
            process.close()
        self._zygote_lost()
        zygote, self._zygote = self._zygote, None
        with contextlib.suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(zygote.wait, 12)
        zygote.kill()
        zygote.wait()


# ==================================================================================================
# 6. Environment
# ==================================================================================================

A = typing.TypeVar("A", bound=Action)
O = typing.TypeVar("O", bound=Observation)  # noqa: E741


class Environment(typing.Generic[A, O]):
    """Subclass it to write an environment; the server makes one for each session.

    The methods may be coroutines, which run inline in the server's event loop, or plain functions,
    which run in a thread. `reset` may take more keywords than these: a client's reset(**kwargs)
    brings them. Raise InvalidRequest for a wrong argument, ExecutionError for a bad moment; neither
    ends the session. The server sees to the order of calls: no step before a reset or after done.
    """

    def reset(self, seed: int | None = None, episode_id: str | None = None, **kwargs: Any) -> O:
        """Begin an episode and return its first observation."""
        raise NotImplementedError

    def step(self, action: A) -> O:
        """Carry out one action; the observation holds the reward and whether the episode is done."""
        raise NotImplementedError

    def state(self) -> State:
        """The episode's state; asked for at any time, before the first reset too."""
        return State()

    def close(self) -> None:
        """Give back what the session holds; called once, when it ends."""


@dataclass
class ResetOptions:
    """The keywords of PythonEnvironment.reset that are not a task's; all may be None."""

    seed: int | None = described("Of the task's choice and of `random`", None, ge=0)
    episode_id: str | None = described("Identifier of the episode", None, max_length=255)
    task_id: str | int | None = described("One of the server's tasks, or 'repl'", None)
    max_steps: int | None = described("Fewer steps than the server's limit", None, ge=1)
    reward: typing.Literal["score", "gain"] | None = described("gain: improvement only", None)


@dataclass
class Verdict:
    """What a grading found; `sentence` is all that the agent is told beside the counts."""

    passed: int
    solved: bool
    sentence: str


class PythonEnvironment(Environment[PythonAction, PythonObservation]):
    """Python code in an interpreter of its own, judged by hidden tests. A session's environment."""

    def __init__(self, sandbox: Sandbox, tasks: dict[str, Task], turn: typing.Iterator[int]):
        self.sandbox, self.limits, self.tasks, self.turn = sandbox, sandbox.limits, tasks, turn
        self.worker: Process | None = None
        self.understudy: asyncio.Task | None = None
        self._begin(REPL, ResetOptions())

    def _begin(self, task: Task, options: ResetOptions) -> None:
        self.task, self.gain = task, options.reward == "gain"
        most = self.limits.task_steps if task.tests else None
        self.max_steps = min(filter(None, (most, options.max_steps)), default=None)
        self.single = bool(task.tests) and self.max_steps == 1  # one process both runs and is judged
        self.seed = secrets.randbits(32) if options.seed is None else options.seed
        self.episode_id = options.episode_id or secrets.token_hex(8)
        self.step_count, self.best, self.done, self.news = 0, 0.0, False, ""
        self.transcript: list[str] = []

    def choose(self, options: ResetOptions, row: dict[str, Any]) -> Task:
        """The task of an episode: an inline one, the one that is named, or the next in turn."""
        if any(row.get(key) is not None for key in ("tests", "test", "test_list")):
            return Task.from_row(row)
        if options.task_id is None:
            names = [*self.tasks] or [REPL.task_id]
            turn = next(self.turn) if options.seed is None else random.Random(options.seed).randrange(len(names))
            options.task_id = names[turn % len(names)]
        name = str(options.task_id)
        if name == REPL.task_id:
            return REPL
        if name not in self.tasks:
            near = difflib.get_close_matches(name, [*self.tasks, REPL.task_id], 1, 0)
            raise InvalidRequest(
                f"task_id: no task {name[:100]!r}; did you mean {near[0]!r}? GET /tasks lists all, "
                "and tests=... brings a task of your own",
                [{"type": "unknown_task", "loc": ["task_id"], "msg": "no such task", "input": name[:100]}],
            )
        return self.tasks[name]

    async def reset(self, **row: Any) -> PythonObservation:
        known = _fields(ResetOptions)
        options = validate(ResetOptions, {key: row[key] for key in known.keys() & row.keys()})
        task = self.choose(options, row)
        self._begin(task, options)
        await self._new_worker()
        total = task.tests_total
        return PythonObservation(task_id=task.task_id, prompt=task.prompt, tests_total=total)

    async def _new_worker(self) -> None:
        """Begin the session's interpreter anew, and its transcript with it."""
        self._release()
        self.transcript = []
        self.worker = await self._spawn(streams=True, line=self.single)
        if self.task.setup:
            await self.worker.run(self.task.setup, self.limits.step_s)
            for stream in self.worker.streams:
                stream.take()
        self._prepare()

    def _prepare(self) -> None:
        """Begin the next understudy: a fresh worker that replays the transcript ahead of time."""
        if self.task.tests and not self.single and not self.done:
            self.understudy = asyncio.create_task(self._replay([self.task.setup, *self.transcript]))

    async def _spawn(self, streams: bool, line: bool) -> Process:
        if not line:
            return await self.sandbox.spawn("worker", self.seed, streams=streams)
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = await self.sandbox.spawn("worker", self.seed, streams=streams, line=theirs)
        except BaseException:
            ours.close()
            raise
        process.line = ours
        return process

    async def _replay(self, transcript: list[str]) -> Process:
        process = await self._spawn(streams=False, line=True)
        try:
            end = time.monotonic() + self.limits.replay_s
            for code in filter(None, transcript):
                outcome = await process.run(code, max(0.0, end - time.monotonic()))
                if outcome.died or outcome.timed_out:
                    process.kill("replaying the earlier steps died or took too long")
                    break
        except BaseException:
            process.close()
            raise
        return process

    def _check(self, action: PythonAction, timeout_s: float | None) -> float:
        """The seconds that the action gets. Raises InvalidRequest when it asks for too much."""
        seconds = action.timeout_s or timeout_s or self.limits.step_s
        if seconds > (most := self.limits.step_max_s):
            raise InvalidRequest(f"timeout_s: {seconds:g} s asked for; at most {most:g} s can be had")
        size = len(action.code.encode(errors="surrogatepass"))
        if size > (most := self.limits.code_bytes):
            raise InvalidRequest(f"code: {size} bytes; at most {most} bytes are run in a step")
        if self.task.tests and (size := size + sum(map(len, self.transcript))) > (
            most := self.limits.transcript_bytes
        ):
            raise InvalidRequest(f"code: {size} bytes in this episode; at most {most} are replayed")
        return seconds

    async def step(self, action: PythonAction, timeout_s: float | None = None) -> PythonObservation:
        """Run the action's code and, where the task has tests, judge all steps so far.

        `timeout_s` counts where the action has none. Raises ExecutionError when the grading itself
        failed: a fault of ours must not teach a model anything, so there is no reward then.
        """
        seconds = self._check(action, timeout_s)
        notes, self.news = [self.news] if self.news else [], ""
        if self.worker is None or self.worker.exited.done():  # while the agent was thinking
            why = self.worker.why if self.worker else ""
            notes.append(f"The interpreter is new: {why or 'the old one had died'}.")
            await self._new_worker()
        self.step_count += 1
        code, deadline, grading = action.code, time.monotonic() + seconds, None
        worker, verdict = self.worker, Verdict(0, False, "")
        try:
            if self.single:
                outcome, texts, verdict = await self._grade(worker, code, deadline)
            else:
                if self.task.tests:
                    if not self.understudy:
                        self._prepare()
                    grading = asyncio.create_task(self._grade(self.understudy, code, deadline))
                outcome = await worker.run(code, seconds)
                texts = [stream.take() for stream in worker.streams]
                if not (outcome.died or outcome.timed_out):
                    self.transcript.append(code)
                    if grading:
                        verdict = (await grading)[2]
        finally:
            if grading:
                grading.cancel()
                self._drop_understudy()
        if outcome.timed_out:
            notes.append(f"The code timed out after {seconds:g} s; later gradings leave it out.")
        if outcome.died or any(stream.closed for stream in worker.streams):
            notes.append(f"The interpreter was restarted{': ' * bool(worker.why)}{worker.why}.")
            self.news = "The interpreter is new since the last step."
        score = verdict.passed / self.task.tests_total if self.task.tests else 0.0
        reward = max(0.0, score - self.best) if self.gain else score
        self.best = max(self.best, score)
        self.done = verdict.solved or self.step_count == self.max_steps
        if self.done:
            self._release()
        elif self.news:
            await self._new_worker()
        else:
            self._prepare()
        return PythonObservation(
            done=self.done, reward=reward, stdout=texts[0], stderr=texts[1],
            exit_code=outcome.exit_code, result=outcome.result, task_id=self.task.task_id,
            tests_passed=verdict.passed, tests_total=self.task.tests_total,
            feedback=" ".join(filter(None, [*notes, verdict.sentence])),
        )  # fmt: skip

    def _drop_understudy(self) -> None:
        task, self.understudy = self.understudy, None
        if task:
            task.cancel()
            task.add_done_callback(lambda t: t.cancelled() or t.exception() or t.result().close())

    async def state(self) -> PythonState:
        return PythonState(
            episode_id=self.episode_id, step_count=self.step_count, task_id=self.task.task_id,
            max_steps=self.max_steps, done=self.done, best_reward=self.best,
        )  # fmt: skip

    async def close(self) -> None:
        self._release()

    def _release(self) -> None:
        self._drop_understudy()
        if self.worker:
            self.worker.close()
            self.worker = None

    async def _grade(self, source: Any, code: str, deadline: float) -> tuple:
        """Run the step in `source`, the understudy or a task that brings it, and have it judged.

        Returns the outcome, the texts of its streams, and the verdict. Raises ExecutionError when
        it was our own machinery that failed: a fault of ours must not teach a model anything.
        """
        process = judge = running = None
        try:
            process = await source if isinstance(source, asyncio.Task) else source
            running = asyncio.create_task(process.run(code, max(0.0, deadline - time.monotonic())))
            judge = await self.sandbox.spawn("judge", self.seed, line=process.line)
            outcome = await running
            texts = [stream.take() for stream in process.streams]
            if outcome.died or outcome.timed_out:
                why = process.why or "the code died or timed out when it was run again"
                return outcome, texts, Verdict(0, False, f"Not judged: {why}.")
            return outcome, texts, await self._judge(process, judge, deadline)
        except (FactoryError, EOFError, OSError, ValueError) as error:
            raise ExecutionError(f"the grading failed, so the step has no reward: {error}") from None
        finally:
            if running:
                running.cancel()
            for used in filter(None, (process, judge)):
                used.close()

    async def _judge(self, process: Process, judge: Process, deadline: float) -> Verdict:
        task, total = self.task, self.task.tests_total
        seconds = max(deadline - time.monotonic(), self.limits.grading_min_s)
        await process.send({"op": "serve"})
        await judge.send({"tests": task.tests, "helpers": task.helpers, "names": [*task.names],
                          "classes": [*task.classes], "seconds": seconds})  # fmt: skip
        late = "judging took too long"
        timer = asyncio.get_running_loop().call_later(seconds + 0.5, judge.kill, late)
        try:
            report = await judge.receive()
        except EOFError:
            if judge.why != late:
                raise EOFError("the judge died") from None
            report = {"timed_out": True}
        finally:
            timer.cancel()
        # The tests may be a client's, so the judge's word is checked as well.
        passed = report.get("passed") if type(report.get("passed")) is int else 0
        solved = report.get("solved") is True
        passed = total if solved else min(max(passed, 0), total - 1)
        sentence = f"{passed} of {total} tests passed"
        if report.get("timed_out"):
            sentence += "; the time was up before the rest"
        elif report.get("error") in EXCEPTIONS:
            sentence += f"; the first that failed raised {report['error']}"
        return Verdict(passed, solved, sentence + ".")

# ==================================================================================================
# 7. Protocol: bytes in, events and bytes out; nothing here waits
# ==================================================================================================

# HTTP/1.1 (RFC 9112: bare section numbers are its own). Where it lets us mend or refuse, we
# refuse: a proxy in front may mend differently, and two readings of the same bytes are how
# requests are smuggled. So a bare LF ends no line (2.2), and a SINGLE header never comes twice.

NEED_MORE, EXPECT_CONTINUE, CLOSED = Signal = Enum("Signal", "NEED_MORE EXPECT_CONTINUE CLOSED")
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"  # the answer to EXPECT_CONTINUE
QUIET = logging.getLogger("python_env.websocket")
TOKEN, TEXT = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", r"[\t -~\x80-\xff]*"
FIELDS = rf"((?:{TOKEN}:{TEXT}\r\n)*)"
HEAD = rf"(?:\r\n)?({TOKEN}) ([!-~]+) HTTP/([0-9]\.[0-9])\r\n{FIELDS}\r\n"  # 2.2: one CRLF before
CHUNK_SIZE = rf"([0-9A-Fa-f]{{1,16}})((?:[ \t]*;{TEXT})?)\r\n"
SINGLE = {"host", "content-length", "transfer-encoding", "origin", "authorization", "content-type"}


class HTTPError(PythonEnvError):  # the peer's fault; `headers` (Allow, ...) go into the answer
    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers or {}


def require(fact: object, status: int, message: str) -> None:
    if not fact:
        raise HTTPError(status, message)


@dataclass
class Request:
    method: str
    target: str
    path: str  # percent-decoded once, without the query
    query: dict[str, str]
    version: str  # "1.0" or "1.1"
    headers: dict[str, str]  # names in lower case
    keep_alive: bool
    is_upgrade: bool  # to a WebSocket
    raw_head: bytes  # as it came, for websockets' ServerProtocol.receive_data
    body: bytes = b""

    def cookie(self, name: str) -> str | None:
        pairs = (pair.strip().partition("=") for pair in self.headers.get("cookie", "").split(";"))
        return next((value for key, _, value in pairs if key == name), None)


def parse_head(head: re.Match) -> Request:  # a match of HEAD; the body comes later
    method, target, version, fields = head.groups()
    require(version in ("1.0", "1.1"), 505, f"HTTP/{version} is not spoken here, HTTP/1.1 is")
    require(len(target) <= 8192, 414, "the target is over 8,192 bytes")  # 3 asks for 8,000
    require(fields.count("\n") <= LIMITS.headers, 431, f"over {LIMITS.headers} headers")
    headers, resource = {}, target
    for line in fields.split("\r\n")[:-1]:
        name, _, value = line.partition(":")
        name, value = name.lower(), value.strip(" \t")
        require(name not in headers or name not in SINGLE, 400, f"more than one {name} header")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value  # RFC 9110 5.3
    require("host" in headers or version == "1.0", 400, "HTTP/1.1 needs a Host header (3.2)")
    if absolute := re.fullmatch(r"(?i:https?)://([\w.:\[\]-]+)(?![^/?])/?(.*)", target):
        headers["host"], resource = absolute[1], "/" + absolute[2]  # it overrules Host (3.2.2)
    require(resource[0] == "/" or (method, target) == ("OPTIONS", "*"), 400, "expected a /path")
    require(not re.search("#|%(?![0-9A-Fa-f]{2})", target), 400, "a stray # or % in the target")
    path, _, query = resource.partition("?")
    connection = [token.strip() for token in headers.get("connection", "").lower().split(",")]
    upgrade = "upgrade" in connection and headers.get("upgrade", "").lower() == "websocket"
    keep = "close" not in connection and (version == "1.1" or "keep-alive" in connection)  # 9.3
    upgrade, raw = upgrade and version == "1.1", head[0].lstrip().encode("latin-1")  # 9110 7.8
    return Request(method, target, unquote(path), dict(parse_qsl(query, keep_blank_values=True)),
                   version, headers, keep, upgrade, raw)


class RequestReader:
    """The requests of one connection: next_event() until it says NEED_MORE, then feed()."""
    # The parser is a generator that yields NEED_MORE where a blocking one would wait, so it reads
    # like the grammar. An HTTPError ends it: nobody knows where the next request would begin.
    def __init__(self):
        self.started = False  # is part of a request here? Then a silent peer is slow, not idle
        self._buffer, self._eof, self._events = bytearray(), False, self._requests()

    def feed(self, data: bytes) -> None:
        require(len(self._buffer) <= LIMITS.head_bytes + LIMITS.body_bytes, 413, "too far ahead")
        self._buffer += data

    def feed_eof(self) -> None:
        self._eof = True

    def next_event(self) -> Request | Signal:
        event = next(self._events, CLOSED)
        ended = event is NEED_MORE and self._eof
        require(not (ended and self.started), 400, "the connection ended inside a request")
        return CLOSED if ended else event

    def trailing(self) -> bytes:  # what came behind an upgrade, for the WebSocket
        rest, self._buffer = bytes(self._buffer), bytearray()
        return rest

    def _requests(self):
        while True:
            head = yield from self._until(rb"\n\r?\n", HEAD, LIMITS.head_bytes)
            self.started, request = True, parse_head(head)
            request.body = yield from self._body(request.headers, request.version)
            self.started = False
            yield request

    def _body(self, headers: dict[str, str], version: str):
        length, coding = headers.get("content-length", "0"), headers.get("transfer-encoding")
        if coding is not None:  # 6.1: beside a length, or in HTTP/1.0, it is what smugglers send
            require(version == "1.1" and "content-length" not in headers, 400, "ambiguous length")
            require(coding.lower() == "chunked", 501, "a Transfer-Encoding other than chunked")
        require(re.fullmatch("[0-9]{1,18}", length), 400, "Content-Length is not 1 to 18 digits")
        require(int(length) <= LIMITS.body_bytes, 413, f"a body over {LIMITS.body_bytes:,} bytes")
        expect = headers.get("expect", "").lower() if version == "1.1" else ""  # RFC 9110 10.1.1
        require(expect in ("", "100-continue"), 417, "an expectation other than 100-continue")
        if expect and (coding or int(length)) and not self._buffer:
            yield EXPECT_CONTINUE
        if coding is None:
            return (yield from self._take(int(length)))
        body, room, size = bytearray(), LIMITS.head_bytes, 1
        while size:  # 7.1; `room` is for all the extensions and trailers together
            chunk = yield from self._until(rb"\n", CHUNK_SIZE, room)
            size, room = int(chunk[1], 16), room - len(chunk[2])
            require(len(body) + size <= LIMITS.body_bytes, 413, "too many chunks for a body")
            body += yield from self._take(size)
            require(not size or (yield from self._take(2)) == b"\r\n", 400, "a chunk overruns")
        yield from self._until(rb"(?:^|\n)\r?\n", FIELDS + "\r\n", room)  # trailers: dropped
        return bytes(body)

    def _until(self, end: bytes, grammar: str, room: int):
        end, seen = re.compile(end), 0  # what was searched is not searched again at the next byte
        while not (hit := end.search(self._buffer, seen)) and len(self._buffer) < room:
            seen = max(0, len(self._buffer) - 2)
            self.started = self.started or self._buffer[:3] not in (b"", b"\r", b"\r\n")
            yield NEED_MORE
        status = 414 if grammar is HEAD and b"\n" not in self._buffer[:room] else 431
        require(hit and hit.end() <= room, status, f"a head over {room:,} bytes")
        text = (yield from self._take(hit.end())).decode("latin-1")
        require(match := re.fullmatch(grammar, text), 400, f"malformed, or no CRLF: {text[:80]!a}")
        return match

    def _take(self, size: int):
        while len(self._buffer) < size:
            yield NEED_MORE
        data, self._buffer[:size] = bytes(self._buffer[:size]), b""
        return data


def encode_response(status: int, body: bytes, *, content_type: str = "application/json",
                    headers=(), keep_alive: bool = True, head_only: bool = False) -> bytes:
    fields = [("Content-Type", content_type), ("Content-Length", str(len(body))),
              ("Connection", "keep-alive" if keep_alive else "close"),  # HTTP/1.0 must be told
              ("X-Content-Type-Options", "nosniff"), *headers]
    if bad := [field for field in fields if not re.fullmatch(f"{TOKEN}:{TEXT}", ":".join(field))]:
        raise ValueError(f"not fit for response headers: {bad}")  # a CRLF would begin another one
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *(f"{n}: {v}" for n, v in fields)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (b"" if head_only else body)


# --- What the messages mean -----------------------------------------------------------------------


class InvalidJSON(InvalidRequest):
    """The text is no JSON object."""


class UnknownType(InvalidRequest):
    """A WebSocket message of a type that does not exist."""


# The one place where errors become codes and statuses. Those that `close` end a WebSocket session.
Fault = collections.namedtuple("Fault", "code status close")
FAULTS = {
    InvalidJSON: Fault("INVALID_JSON", 422, False),
    UnknownType: Fault("UNKNOWN_TYPE", 422, False),
    InvalidRequest: Fault("VALIDATION_ERROR", 422, False),
    ExecutionError: Fault("EXECUTION_ERROR", 409, False),
    CapacityError: Fault("CAPACITY_REACHED", 503, True),
    FactoryError: Fault("FACTORY_ERROR", 503, True),
    SessionError: Fault("SESSION_ERROR", 404, True),
    Exception: Fault("EXECUTION_ERROR", 500, False),  # the environment's own
}

# What a call does to an episode: the state after it, or why it is refused. A step's observation
# decides between running and done; "state" is allowed everywhere and changes nothing.
LIFECYCLE = {
    ("no episode", "reset"): "running",
    ("running", "reset"): "running",
    ("done", "reset"): "running",
    ("no episode", "step"): ExecutionError("there is no episode yet: call reset() first"),
    ("running", "step"): "running",
    ("done", "step"): ExecutionError("the episode is over: call reset() to begin another"),
}


def fault_of(error: Exception) -> Fault:
    return next(fault for kind, fault in FAULTS.items() if isinstance(error, kind))


def parse_json(text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        place = getattr(error, "pos", 0)
        entry = {"type": "json_invalid", "loc": ["body", place], "msg": "JSON decode error",
                 "input": {}, "ctx": {"error": getattr(error, "msg", "not readable")}}  # fmt: skip
        raise InvalidJSON(f"not JSON, at character {place}: {str(error)[:200]}", [entry]) from None


def parse_message(text: str) -> tuple[str, dict]:
    """A WebSocket message's type and data."""
    message = parse_json(text)
    if not isinstance(message, dict):
        raise InvalidJSON(f"expected a JSON object, got {type(message).__name__}")
    kind, data = message.get("type"), message.get("data")
    if kind not in ("reset", "step", "state", "close"):
        raise UnknownType(f"type {_echo(kind)!r}: expected 'reset', 'step', 'state' or 'close'")
    if kind == "step" and not isinstance(data, dict):
        given = type(data).__name__ if "data" in message else "nothing"
        raise InvalidRequest(f"data: expected the action as an object, got {given}")
    if not isinstance(data, dict | None):
        raise InvalidRequest(f"data: expected an object, got {type(data).__name__}")
    return kind, data or {}


def observation_body(observation: Observation) -> dict[str, Any]:
    """An observation as it travels: reward and done beside it, not in it."""
    body = to_dict(observation)
    reward, done = body.pop("reward"), body.pop("done")
    extra = {"metadata": observation.metadata} if observation.metadata else {}
    return {"observation": body, "reward": reward, "done": done, **extra}


def to_json(message: Any) -> str:
    return json.dumps(message, separators=(",", ":"), allow_nan=False)


def error_message(error: Exception) -> dict[str, Any]:
    """The error as a WebSocket message; what an unexpected error says is for the log alone."""
    data = {"message": error_text(error), "code": fault_of(error).code}
    if getattr(error, "errors", None):
        data["errors"] = error.errors
    return {"type": "error", "data": data}


def error_text(error: Exception) -> str:
    if isinstance(error, PythonEnvError):
        return str(error)
    return f"the environment raised {type(error).__name__}; the server's log has more"


# --- HTTP bodies ----------------------------------------------------------------------------------


@dataclass
class ResetRequest:
    """What reset() takes of every environment; other keys are the environment's own."""

    seed: int | None = described("For a repeatable episode", None, ge=0)
    episode_id: str | None = described("Identifier of the episode", None, max_length=255)


@dataclass
class StepRequest:
    """The body of POST /step; other keys are ignored."""

    action: dict[str, Any] = described("The action, as GET /schema describes it")
    timeout_s: float | None = described("Seconds, where the action names none", None, gt=0)
    request_id: str | None = described("Anything; ignored", None, max_length=255)


class Reply:
    """A response to be: `body` is bytes, or anything that becomes JSON."""

    def __init__(self, body: Any, status: int = 200, headers: Any = (),
                 content_type: str = "application/json"):  # fmt: skip
        self.body = body if isinstance(body, bytes) else to_json(body).encode()
        self.status, self.headers, self.content_type = status, headers, content_type


def json_object(body: bytes) -> dict[str, Any]:
    if not body:
        entry = {"type": "missing", "loc": ["body"], "msg": "Field required", "input": None}
        raise InvalidRequest("the body is missing: expected a JSON object", [entry])
    data = parse_json(body)
    return validate(dict[str, Any], data, ("body",))


def rpc_error(key: Any, code: int, message: str) -> Reply:
    error = {"code": code, "message": message, "data": None}
    return Reply({"jsonrpc": "2.0", "id": key, "error": error})


def openapi(service: Any) -> dict[str, Any]:
    """The OpenAPI document; `validate` reads the version and the routes off it."""

    def body(schema: dict) -> dict:
        return {"content": {"application/json": {"schema": schema}}}

    action, observation = json_schema(service.action), json_schema(service.observation)
    result = {"type": "object", "properties": {"observation": observation,
              "reward": {"type": ["number", "null"]}, "done": {"type": "boolean"}}}  # fmt: skip
    step = json_schema(StepRequest)
    step["properties"]["action"] = action
    inputs = {"/reset": json_schema(ResetRequest), "/step": step, "/mcp": {"type": "object"}}
    outputs = {"/reset": result, "/step": result, "/state": json_schema(service.state)}
    paths: dict = {}
    for path, methods in ROUTES.items():
        for method in methods:
            operation = {"responses": {"200": {"description": "OK", **body(outputs.get(path, {}))}}}
            if path in inputs:
                schema = {**inputs[path], "additionalProperties": True}
                operation["requestBody"] = {"required": path != "/reset", **body(schema)}
            paths.setdefault(path, {})[method.lower()] = operation
    info = {"title": service.name, "description": service.description, "version": "1.0.0"}
    return {"openapi": "3.1.0", "info": info, "paths": paths}


# ==================================================================================================
# 8. Server
# ==================================================================================================


class Session:
    """One environment and its place in the lifecycle. Its calls run one at a time, in order."""

    def __init__(self, environment: Environment, action: type[Action], pool: Any):
        self.environment, self.action, self.pool = environment, action, pool
        self.id, self.socket = secrets.token_urlsafe(16), None  # the Connection that it belongs to
        self.stage, self.used, self.calls = "no episode", time.monotonic(), 0
        self.lock = asyncio.Lock()

    async def call(self, kind: str, data: dict, **keywords: Any) -> dict[str, Any]:
        """Carry out a reset, step or state; returns what the reply's `data` shall be."""
        self.calls += 1
        try:
            async with self.lock:
                if kind == "state":
                    return to_dict(await self._invoke("state"))
                after = LIFECYCLE[self.stage, kind]
                if isinstance(after, str) and kind == "step":
                    observation = await self._invoke("step", validate(self.action, data), **keywords)
                elif isinstance(after, str):
                    known = {key: data[key] for key in _fields(ResetRequest).keys() & data.keys()}
                    validate(ResetRequest, known)
                    observation = await self._invoke("reset", **data)
                else:
                    raise after()
                self.stage = "done" if observation.done else after
                return observation_body(observation)
        finally:
            self.calls -= 1
            self.used = time.monotonic()

    async def _invoke(self, name: str, *args: Any, **keywords: Any) -> Any:
        method = getattr(self.environment, name)
        if not callable(method):  # OpenEnv's own environments have `state` as a property
            return method
        takes = inspect.signature(method).parameters
        if not any(p.kind is p.VAR_KEYWORD for p in takes.values()):
            keywords = {key: value for key, value in keywords.items() if key in takes}
        if inspect.iscoroutinefunction(method):
            return await method(*args, **keywords)
        call = functools.partial(method, *args, **keywords)
        return await asyncio.get_running_loop().run_in_executor(self.pool, call)

    async def close(self) -> None:
        try:
            await self._invoke("close")
        except Exception:
            log.exception("session %s: its environment's close() failed", self.id)


@dataclass(kw_only=True)
class Service:
    """What a server serves and to whom. `action`, `observation` and `state` are the models."""

    factory: typing.Callable[[], Environment]
    action: type[Action]
    observation: type[Observation] = Observation
    state: type[State] = State
    name: str = "python_env"
    description: str = "An OpenEnv environment"
    limits: Limits = LIMITS
    token: str | None = None  # None: no bearer token is asked for
    allow_origin: tuple[str, ...] = ()
    allow_host: tuple[str, ...] = ()
    tasks: dict[str, Task] = field(default_factory=dict)
    isolation: dict[str, Any] = field(default_factory=dict)


class Server:
    """The pump around environments and protocol: `await start()`, then `port`, then `close()`."""

    def __init__(self, service: Service):
        self.service, self.limits = service, service.limits
        self.sessions: dict[str, Session] = {}
        self.connections: set[Connection] = set()
        self.pool = concurrent.futures.ThreadPoolExecutor(self.limits.max_sessions, "environment")
        self.port, self.loopback, self.closing = 0, True, False

    async def start(self, host: str = "127.0.0.1", port: int = 8000) -> None:
        """Listen. Raises OSError when the address cannot be had; port 0: any free one."""
        loop = asyncio.get_running_loop()
        self.listener = await loop.create_server(lambda: Connection(self), host, port, backlog=512)
        self.port = self.listener.sockets[0].getsockname()[1]
        self.loopback = all(is_loopback(s.getsockname()[0]) for s in self.listener.sockets)
        self.housekeeper = asyncio.create_task(self._keep_house())

    async def close(self) -> None:
        """Let short steps finish, say 1001 to WebSockets, close every session."""
        self.closing = True
        self.listener.close()
        self.housekeeper.cancel()
        end = time.monotonic() + self.limits.drain_s
        while any(s.calls for s in self.sessions.values()) and time.monotonic() < end:
            await asyncio.sleep(0.01)
        for connection in [*self.connections]:
            connection.end(1001, "the server is shutting down")
        await asyncio.gather(*(self.drop(session) for session in [*self.sessions.values()]))
        for connection in [*self.connections]:
            connection.transport.close()
        self.pool.shutdown(wait=False, cancel_futures=True)

    def open_session(self) -> Session:
        """A new session; the longest-idle HTTP session gives way when all are taken."""
        most = self.limits.max_sessions
        if len(self.sessions) >= most:
            idle = [s for s in self.sessions.values() if not s.socket and not s.calls]
            if not idle:
                raise CapacityError(f"all {most} sessions are taken; try again later")
            asyncio.ensure_future(self.drop(min(idle, key=lambda s: s.used)))
        try:
            environment = self.service.factory()
        except Exception as error:
            raise FactoryError(f"the environment could not be made: {type(error).__name__}") from error
        session = Session(environment, self.service.action, self.pool)
        self.sessions[session.id] = session
        log.info("session %s opened, %d of %d", session.id[:6], len(self.sessions), most)
        return session

    def find_session(self, key: str) -> Session:
        if key not in self.sessions:
            raise SessionError(f"no session {key[:40]!r}: it was closed or idle too long; reset anew")
        return self.sessions[key]

    async def drop(self, session: Session) -> None:
        if self.sessions.pop(session.id, None):
            await session.close()
            log.info("session %s closed", session.id[:6])

    async def _keep_house(self) -> None:
        """Once a second: end idle sessions and connections."""
        while True:
            await asyncio.sleep(1)
            now = time.monotonic()
            for session in [*self.sessions.values()]:
                most = self.limits.ws_idle_s if session.socket else self.limits.http_idle_s
                if not session.calls and now - session.used > most:
                    if session.socket:
                        session.socket.end(1001, f"idle for {most:g} s")
                    await self.drop(session)
            for connection in [*self.connections]:
                connection.check_time(now)

    # One handler a route: (request) -> Reply

    async def reply(self, request: Request) -> "Reply":
        """The answer to a request, errors included."""
        try:
            self.admit(request)
            methods = ROUTES.get(request.path)
            if methods is None:
                raise HTTPError(404, f"no route {request.path[:100]!r}; GET /docs lists them")
            method = "GET" if request.method == "HEAD" else request.method
            if method not in methods:
                allowed = ", ".join(methods)
                message = f"{request.method} is not for {request.path}; allowed: {allowed}"
                raise HTTPError(405, message, {"Allow": allowed})
            return await methods[method](self, request)
        except HTTPError as error:
            return Reply({"detail": str(error)}, error.status, [*error.headers.items()])
        except Exception as error:
            fault = fault_of(error)
            if fault.status == 500:
                log.exception("%s %s failed", request.method, request.path)
            detail = error_message(error)["data"]
            if fault.status == 422:
                entry = {"type": "value_error", "loc": ["body"], "msg": str(error), "input": None}
                return Reply({"detail": error.errors or [entry]}, 422)
            headers = [("Retry-After", "1")] if fault.status == 503 else []
            return Reply({"detail": detail["message"], "code": detail["code"]}, fault.status, headers)

    def admit(self, request: Request) -> None:
        """Refuse other sites' pages, names that an attacker bound to our address, and strangers."""
        service, host = self.service, request.headers.get("host", "").lower()
        name = urllib.parse.urlsplit(f"//{host}").hostname or ""
        if self.loopback and not (is_loopback(name) or name in service.allow_host):
            raise HTTPError(403, f"Host {name[:100]!r} is not served on a loopback address; --allow-host")
        origin = request.headers.get("origin")
        own = origin is None or urllib.parse.urlsplit(origin).netloc.lower() == host
        if not own and not {origin, "*"} & set(service.allow_origin):
            raise HTTPError(403, f"Origin {origin[:100]!r} is another site; --allow-origin admits it")
        if service.token and request.path != "/health":
            given = request.headers.get("authorization", "").encode("latin-1")
            if not hmac.compare_digest(given, f"Bearer {service.token}".encode()):
                raise HTTPError(401, "send 'Authorization: Bearer TOKEN'", {"WWW-Authenticate": "Bearer"})

    async def get_health(self, request: Request) -> "Reply":
        return Reply({
            "status": "healthy", "sessions": len(self.sessions),
            "max_sessions": self.limits.max_sessions, "isolation": self.service.isolation,
        })  # fmt: skip

    async def get_metadata(self, request: Request) -> "Reply":
        service = self.service
        return Reply({
            "name": service.name, "description": service.description, "version": __version__,
            "readme_content": None, "author": None, "documentation_url": None,
            "isolation": service.isolation, "tasks": [*service.tasks],
        })  # fmt: skip

    async def get_schema(self, request: Request) -> "Reply":
        service = self.service
        models = {"action": service.action, "observation": service.observation, "state": service.state}
        return Reply({name: json_schema(model) for name, model in models.items()})

    async def get_tasks(self, request: Request) -> "Reply":
        names = ("task_id", "difficulty", "prompt", "tests_total")
        tasks = [{name: getattr(task, name) for name in names} for task in self.service.tasks.values()]
        return Reply({"tasks": tasks})

    async def get_openapi(self, request: Request) -> "Reply":
        return Reply(openapi(self.service))

    async def get_docs(self, request: Request) -> "Reply":
        page = PAGE.replace("$NAME", html.escape(self.service.name)).encode()
        policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
        return Reply(page, 200, [("Content-Security-Policy", policy)], "text/html; charset=utf-8")

    async def get_elsewhere(self, request: Request) -> "Reply":
        return Reply({"detail": "see /docs"}, 307, [("Location", "/docs")])

    async def get_ws(self, request: Request) -> "Reply":
        if not request.is_upgrade:
            raise HTTPError(426, "/ws speaks WebSocket", {"Upgrade": "websocket"})
        return Reply(b"", 101)

    async def get_state(self, request: Request) -> "Reply":
        session = self.session_of(request)
        return Reply(await session.call("state", {}) if session else to_dict(State()))

    def session_of(self, request: Request) -> Session | None:
        """The session that a request names by header or cookie; None when it names none."""
        key = request.headers.get("x-session-id") or request.cookie("session_id")
        return self.find_session(key) if key else None

    async def post_reset(self, request: Request) -> "Reply":
        body, session = json_object(request.body or b"{}"), None
        with contextlib.suppress(SessionError):  # a cookie may outlive its session
            session = self.session_of(request)
        session = session or self.open_session()
        try:
            data = await session.call("reset", body)
        except BaseException:
            if session.stage == "no episode":
                await self.drop(session)
            raise
        cookie = f"session_id={session.id}; Path=/; HttpOnly; SameSite=Strict"
        headers = [("X-Session-Id", session.id), ("Set-Cookie", cookie)]
        return Reply({"metadata": None, **data}, 200, headers)

    async def post_step(self, request: Request) -> "Reply":
        body = json_object(request.body)
        step = validate(StepRequest, {k: body[k] for k in _fields(StepRequest) if k in body}, ("body",))
        if session := self.session_of(request):
            data = await session.call("step", step.action, timeout_s=step.timeout_s)
            return Reply({"metadata": None, **data}, 200, [("X-Session-Id", session.id)])
        return Reply({"metadata": None, **await self.step_once(step.action, step.timeout_s)})

    async def step_once(self, action: dict, timeout_s: float | None = None) -> dict[str, Any]:
        """A step without a session: in a fresh episode (a repl, for Python), gone afterwards."""
        session = self.open_session()
        try:
            validate(self.service.action, action)  # before a process is started for it
            await session.call("reset", {"task_id": REPL.task_id})
            return await session.call("step", action, timeout_s=timeout_s)
        finally:
            await self.drop(session)

    async def post_mcp(self, request: Request) -> "Reply":
        """JSON-RPC 2.0, stateless: what MCP clients need to find and call the one tool."""
        try:
            message = parse_json(request.body)
        except InvalidJSON:
            return rpc_error(None, -32700, "Parse error")
        if not isinstance(message, dict) or message.get("jsonrpc") != "2.0":
            return rpc_error(None, -32600, "Invalid request: expected an object with jsonrpc '2.0'")
        key, method, params = (message.get(name) for name in ("id", "method", "params"))
        if not isinstance(method, str) or not isinstance(key, str | int | float | None):
            return rpc_error(None, -32600, "Invalid request: 'method' must be a string")
        if "id" not in message:
            return Reply(b"", 202)  # a notification is not answered
        params = {} if params is None else params
        if not isinstance(params, dict):
            return rpc_error(key, -32602, "Invalid params: expected an object")
        tool = {"name": "run_python", "description": "Run Python code in a fresh, isolated interpreter",
                "inputSchema": json_schema(self.service.action)}  # fmt: skip
        tools = [tool] if self.service.action is PythonAction else []
        if method == "initialize":
            known = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
            asked = params.get("protocolVersion")
            result: dict = {
                "protocolVersion": asked if asked in known else known[-1],
                "capabilities": {"tools": {}},
                "serverInfo": {"name": self.service.name, "version": __version__},
            }
        elif method == "ping":
            result = {}
        elif method == "tools/list":
            result = {"tools": tools}
        elif method == "tools/call":
            if params.get("name") not in [tool["name"] for tool in tools]:
                return rpc_error(key, -32602, f"Unknown tool: {_echo(params.get('name'))!r}")
            try:
                data = await self.step_once(params.get("arguments") or {})
            except InvalidRequest as error:
                return rpc_error(key, -32602, str(error))
            observation = data["observation"]
            result = {
                "content": [{"type": "text", "text": to_json(observation)}],
                "structuredContent": observation, "isError": observation["exit_code"] != 0,
            }  # fmt: skip
        else:
            return rpc_error(key, -32601, f"Method not found: {method[:100]}")
        return Reply({"jsonrpc": "2.0", "id": key, "result": result})


Handler = typing.Callable[[Server, Request], typing.Awaitable[Reply]]
ROUTES: dict[str, dict[str, Handler]] = {
    "/": {"GET": Server.get_elsewhere},
    "/web": {"GET": Server.get_elsewhere},
    "/docs": {"GET": Server.get_docs},
    "/health": {"GET": Server.get_health},
    "/metadata": {"GET": Server.get_metadata},
    "/schema": {"GET": Server.get_schema},
    "/tasks": {"GET": Server.get_tasks},
    "/openapi.json": {"GET": Server.get_openapi},
    "/state": {"GET": Server.get_state},
    "/ws": {"GET": Server.get_ws},
    "/reset": {"POST": Server.post_reset},
    "/step": {"POST": Server.post_step},
    "/mcp": {"POST": Server.post_mcp},
}


class Connection(asyncio.Protocol):
    """One TCP connection: HTTP requests one after another, or a WebSocket for the rest of it."""

    def __init__(self, server: Server):
        self.server, self.limits = server, server.limits
        self.reader, self.socket = RequestReader(), None
        self.task: asyncio.Task | None = None
        self.messages: collections.deque[str] = collections.deque()
        self.fragments: list[bytes] = []
        self.arrived, self.writable = asyncio.Event(), asyncio.Event()
        self.since = time.monotonic()

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.writable.set()
        if len(self.server.connections) >= self.limits.connections:
            return transport.abort()
        self.server.connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self.server.connections.discard(self)
        self.writable.set()
        if self.task:
            self.task.cancel()  # nobody waits for the step any more

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        if self.socket:
            return self.receive_frames(data)
        try:
            self.reader.feed(data)
        except HTTPError as error:
            return self.fail(error)
        if not self.task:
            self.next_request()

    def eof_received(self) -> bool:
        if self.socket:
            self.socket.receive_eof()
            return False
        self.reader.feed_eof()
        if not self.task:
            self.next_request()
        return True  # the answer may still be on its way: half-closed is a legal way to ask

    def next_request(self) -> None:
        self.since = time.monotonic()
        try:
            event = self.reader.next_event()
        except HTTPError as error:
            return self.fail(error)
        if event is EXPECT_CONTINUE:
            self.transport.write(CONTINUE)
            self.next_request()
        elif event is CLOSED:
            self.transport.close()
        elif event is not NEED_MORE:
            self.task = asyncio.create_task(self.serve_request(event))

    def fail(self, error: HTTPError) -> None:
        """Answer what cannot be parsed any further, and hang up."""
        body = to_json({"detail": error.message}).encode()
        self.transport.write(encode_response(error.status, body, keep_alive=False))
        self.transport.close()

    def check_time(self, now: float) -> None:
        """408 for a slow sender, the end for an idle connection."""
        if self.task:
            return
        if self.reader.started and now - self.since > self.limits.request_s:
            self.fail(HTTPError(408, f"the request was not whole after {self.limits.request_s:g} s"))
        elif now - self.since > self.limits.keep_alive_s:
            self.transport.close()

    async def serve_request(self, request: Request) -> None:
        try:
            reply = await self.server.reply(request)
            if request.is_upgrade and reply.status == 101:
                return await self.serve_socket(request)
            keep = request.keep_alive and not self.server.closing
            head_only = request.method == "HEAD"
            self.transport.write(encode_response(
                reply.status, reply.body, content_type=reply.content_type, headers=reply.headers,
                keep_alive=keep, head_only=head_only,
            ))  # fmt: skip
            await self.writable.wait()
            if not keep:
                self.transport.close()
        finally:
            self.task = None
        if not self.transport.is_closing():
            self.next_request()

    async def serve_socket(self, request: Request) -> None:
        """Answer one message after another, while receive_frames() goes on reading."""
        self.socket = ServerProtocol(max_size=self.limits.message_bytes, logger=QUIET)
        self.socket.receive_data(request.raw_head)  # the same bytes: the handshake is its own
        for event in self.socket.events_received():
            self.socket.send_response(self.socket.accept(event))
        self.flush()
        if self.socket.state is not OPEN:
            return self.transport.close()
        self.receive_frames(self.reader.trailing())
        session, key = None, request.query.get("session_id")
        try:
            session = self.server.find_session(key) if key else self.server.open_session()
            session.socket = self
            while True:
                while not self.messages:
                    self.arrived.clear()
                    await self.arrived.wait()
                await self.answer(session, self.messages.popleft())
                await self.writable.wait()  # one slow reader costs only itself
                self.transport.resume_reading()
        except PythonEnvError as error:
            self.send(error_message(error))
            self.end(1013 if isinstance(error, CapacityError) else 1008)
        finally:
            if session and key:
                session.socket = None  # it came over HTTP, and goes on there
            elif session:
                await self.server.drop(session)

    def receive_frames(self, data: bytes) -> None:
        self.socket.receive_data(data)
        for frame in self.socket.events_received():
            if frame.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                if frame.opcode is not Opcode.CONT:
                    self.binary = frame.opcode is Opcode.BINARY
                self.fragments += frame.data  # max_size bounds the whole message
                if frame.fin:
                    self.messages.append(b"" if self.binary else bytes(self.fragments))
                    self.fragments.clear()
        if len(self.messages) >= self.limits.queued_messages:
            self.transport.pause_reading()
        self.arrived.set()
        self.flush()

    async def answer(self, session: Session, message: bytes) -> None:
        try:
            kind, data = parse_message(message)
            if kind == "close":
                return self.end(1000)
            data = await session.call(kind, data)
            self.send({"type": "state" if kind == "state" else "observation", "data": data})
        except Exception as error:
            if fault_of(error).status == 500:
                log.exception("session %s: its environment failed", session.id[:6])
            if fault_of(error).close:
                raise
            self.send(error_message(error))

    def send(self, message: dict) -> None:
        if self.socket.state is OPEN:
            self.socket.send_text(to_json(message).encode())
            self.flush()

    def flush(self) -> None:
        for data in self.socket.data_to_send():
            if data:
                self.transport.write(data)
            else:  # both sides have said goodbye, or the peer broke the protocol
                self.transport.close()

    def end(self, code: int) -> None:
        """Begin the closing handshake; a peer that does not join in is cut off."""
        if self.socket and self.socket.state is OPEN:
            self.socket.send_close(code)
            self.flush()
            asyncio.get_running_loop().call_later(1, self.transport.close)


def is_loopback(name: str) -> bool:
    if name == "localhost" or name.endswith(".localhost"):
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(name).is_loopback
    return False


def serve(
    environment: typing.Callable[[], Environment],
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
    their models are read off the return annotations of step() and state(). `options` are fields of
    Service: name, description, limits, token, allow_origin, allow_host. Raises OSError when the
    address cannot be had.
    """
    hints = {
        name: typing.get_type_hints(getattr(environment, name, None) or serve).get("return")
        for name in ("step", "state")
    }
    models = {"observation": observation or hints["step"], "state": state or hints["state"]}
    models = {name: model for name, model in models.items() if dataclasses.is_dataclass(model)}
    options = {"name": getattr(environment, "__name__", "environment"), **options, **models}
    service = Service(factory=environment, action=action, **options)
    asyncio.run(run_until_signal(service, host, port))


async def run_until_signal(service: Service, host: str, port: int, stdin: Any = None) -> None:
    """Serve until SIGTERM or SIGINT, or the end of `stdin` where it is given."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    server, stop = Server(service), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await server.start(host, port)
    try:
        reached = ", ".join(f"{name} {value}" for name, value in service.isolation.items())
        print(f"{service.name} on http://{host}:{server.port} (isolation: {reached or 'none'})", flush=True)
        if stdin:
            asyncio.get_running_loop().add_reader(stdin, stop.set)
        await stop.wait()
    finally:
        await server.close()


# ==================================================================================================
# 9. Page
# ==================================================================================================

PAGE = r"""<!doctype html><html lang="en"><meta charset="utf-8"><title>$NAME</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
  :root { color-scheme: light dark; font: 1rem/1.5 system-ui; accent-color: auto }
  body { max-width: 46rem; margin: 2rem auto; padding: 0 1rem } pre, dd, p { margin: 0 }
  label { display: grid; gap: .25rem; margin: 1rem 0 } [hidden] { display: none }
  pre, dd, textarea { font: .9rem/1.5 monospace; white-space: pre-wrap; overflow-wrap: anywhere }
  input, select, textarea, button { padding: .5rem .9rem; border: 1px solid #8887; font-size: 1rem;
    border-radius: .5rem; background: #8881; color: inherit } option { color: initial }
  dl { display: grid; grid-template-columns: 7rem 1fr; gap: .25rem } dt { opacity: .7 }
  section { display: grid; grid-template-columns: 1fr auto; gap: .25rem 1rem; align-items: center;
    border-top: 1px solid #8887; padding: 1rem 0 } section p { grid-column: 1 / 3 }
</style>
<h1>$NAME</h1> <label id="access" hidden>Token <input id="token" type="password"></label>
<label id="choice">Task <select id="task"><option>repl</option></select></label>
<pre id="prompt"></pre>
<label><span id="kind">Code</span><textarea id="input" rows="8">print(6 * 7)</textarea></label>
<button id="run" title="Ctrl+Enter">Run</button> <button id="restart">Reset</button>
<output id="message"></output> <dl id="outcome" aria-live="polite"></dl> <main id="routes"></main>
<script type="module">
const ui = Object.fromEntries([...document.querySelectorAll("[id]")].map((node) => [node.id, node]));
const headers = { "Content-Type": "application/json" };  // later the session and the token, too
let example = { code: "print(6 * 7)" };  // an action of this environment
function add(parent, tag, textContent, more) {
  return parent.appendChild(Object.assign(document.createElement(tag), { textContent, ...more }));
}
async function call(path, body) {  // the reply's JSON, or an Error that reads well
  const options = { headers, method: body ? "POST" : "GET", body: JSON.stringify(body) };
  const reply = await fetch(path, options).catch(() => { throw Error("the server is silent"); });
  const data = await reply.json().catch(() => ({ detail: reply.statusText }));
  const session = reply.headers.get("X-Session-Id"), faults = [data.detail].flat();
  if (session) headers["X-Session-Id"] = session;
  ui.access.hidden = reply.status !== 401;
  if (reply.ok) return data;
  throw Error([reply.status, ...faults.map((e) => e?.msg ? `${e.loc.join(".")}: ${e.msg}` : e)].join(" "));
}
async function send(path, body) {  // resets or steps, then shows what came of it
  const { observation, reward, done } = await call(path, body);
  const { prompt, metadata, ...fields } = observation;
  if (prompt || path === "/reset") ui.prompt.textContent = prompt;
  ui.outcome.textContent = "";
  for (const [name, value] of Object.entries({ ...fields, reward, done })) {
    add(ui.outcome, "dt", name);
    add(ui.outcome, "dd", typeof value === "string" ? value : JSON.stringify(value));
  }
}
const reset = () => send("/reset", example.code ? { task_id: ui.task.value } : {});
async function step() {
  const action = example.code ? { code: ui.input.value } : JSON.parse(ui.input.value);
  if (!headers["X-Session-Id"]) await reset();
  await send("/step", { action });
}
async function load() {  // the tasks; where actions are not code, a box for their JSON
  const { properties } = (await call("/schema")).action;
  if (properties.code) {
    for (const { task_id: value, difficulty } of (await call("/tasks")).tasks)
      if (value !== "repl") add(ui.task, "option", `${value} (${difficulty})`, { value });
    return;
  }
  example = Object.fromEntries(Object.entries(properties).map(([name, { type }]) => [name, type]));
  ui.input.value = JSON.stringify(example, null, 2);
  ui.choice.hidden = true; ui.kind.textContent = "Action (JSON)";
}
async function attempt(work) {
  ui.message.textContent = "Running…";
  ui.message.textContent = await work().then(() => "", String);
}
ui.run.onclick = () => attempt(step);
ui.restart.onclick = ui.task.onchange = () => attempt(reset);
ui.input.onkeydown = (event) => event.ctrlKey && event.key === "Enter" && attempt(step);
ui.token.onchange = () => { headers.Authorization = `Bearer ${ui.token.value}`; attempt(load); };
await attempt(load);
for (const [method, path, about, body] of [
  ["POST", "/reset", "starts an episode (curl keeps its session in a cookie jar)", { task_id: "repl" }],
  ["POST", "/step", "takes an action and returns observation, reward, done", { action: example }],
  ["WS", "/ws", "is both over one connection: a session for an agent or a trainer"],
  ["POST", "/mcp", "is a tool of MCP", { jsonrpc: "2.0", id: 1, method: "tools/list" }],
  ["GET", "/state", "shows the session's episode"], ["GET", "/tasks", "lists what reset can name"],
  ["GET", "/health", "says if all is well"], ["GET", "/metadata", "has name, version, isolation"],
  ["GET", "/schema", "has the JSON Schemas"], ["GET", "/openapi.json", "lists the HTTP routes"],
]) {
  const data = body ? ` -H 'Content-Type: application/json' -d '${JSON.stringify(body)}'` : "";
  const python = `with PythonEnv(base_url="${location.origin}") as env:\n    print(env.reset())`;
  const section = add(ui.routes, "section");
  add(section, "p", `${method} ${path} ${about}`);
  const text = add(section, "pre", path === "/ws" ? python : `curl -b jar -c jar ${location.origin}${path}${data}`);
  add(section, "button", "Copy", { ariaLabel: `Copy the example of ${path}` }).onclick = () => {
    getSelection().selectAllChildren(text); document.execCommand("copy"); };
}
</script>"""


# ==================================================================================================
# 10. Client
# ==================================================================================================


class ConnectionFailed(PythonEnvError, ConnectionError):
    """The server cannot be reached, went away, or speaks another protocol."""


class ReplyTimeout(PythonEnvError, TimeoutError):
    """No reply within message_timeout_s; the connection is closed, so no stale one can follow."""


class ServerError(PythonEnvError, RuntimeError):
    """The server answered with an error. `code` is the protocol's, `errors` its details."""

    def __init__(self, message: str, code: str, errors: list | None = None):
        super().__init__(f"Server error: {message} (code: {code})")
        self.code, self.errors = code, errors or []


class EnvClient:
    """A synchronous client of any OpenEnv server; one WebSocket connection is one session.

    base_url: http(s):// or ws(s)://, with or without a path prefix.
    connect_timeout_s: seconds for the connection, during which a full server is tried again.
    message_timeout_s: seconds for a reply; a step's own timeout_s is added where it is longer.
    headers, token: sent with the connection; a token as `Authorization: Bearer`.

    Subclass it and override `_step_payload`, `_parse_result` and `_parse_state` for models of your
    own, or set `observation` and `state_model` to dataclasses; as it is, actions may be dicts or
    dataclasses, and observations are dicts. Connects at the first call; close() may be repeated.
    """

    observation_model: type | None = None
    state_model: type | None = None

    def __init__(
        self,
        base_url: str | None = None,
        *,
        connect_timeout_s: float = 10.0,
        message_timeout_s: float = 60.0,
        headers: dict[str, str] | None = None,
        token: str | None = None,
    ):
        self._opened, self._cleanup = contextlib.ExitStack(), contextlib.ExitStack()
        if base_url is None:
            raise InvalidRequest("base_url: expected a server's URL, as http://localhost:8000")
        url = base_url.strip().rstrip("/")
        scheme, _, rest = url.rpartition("://")
        if scheme not in ("", "http", "https", "ws", "wss") or not rest:
            raise InvalidRequest(f"base_url: expected http(s):// or ws(s)://, got {base_url[:200]!r}")
        self.base_url = url if scheme else f"http://{url}"
        secure = scheme in ("https", "wss")
        self.ws_url = f"{'wss' if secure else 'ws'}://{rest.removesuffix('/ws')}/ws"
        self.connect_timeout_s, self.message_timeout_s = connect_timeout_s, message_timeout_s
        self.headers = dict(headers or {})
        if token:
            self.headers["Authorization"] = f"Bearer {token}"
        self._socket: Any = None
        self._lost = ""  # why a call cannot go on: the session's state is gone

    def connect(self) -> "EnvClient":
        """Connect now, rather than at the first call. Raises ConnectionFailed."""
        if not self._socket:
            self._open(time.monotonic() + self.connect_timeout_s)
        return self

    def _open(self, end: float) -> None:
        host = urllib.parse.urlsplit(self.ws_url).hostname or ""
        options = {"proxy": None} if is_loopback(host) else {}
        while True:
            left = end - time.monotonic()
            try:
                connection = websockets.sync.client.connect(
                    self.ws_url, open_timeout=max(0.1, left), max_size=LIMITS.reply_bytes,
                    compression=None, additional_headers=self.headers, **options,
                )  # fmt: skip
                self._socket = self._opened.enter_context(connection)
                self._lost = ""
                return
            except (OSError, EOFError, websockets.exceptions.WebSocketException) as error:
                status = getattr(getattr(error, "response", None), "status_code", None)
                if status == 503 and left > 0.2:
                    time.sleep(0.2)
                    continue
                remedy = {401: "it wants token=...", 403: "it wants another token= or Host"}.get(
                    status, "is an OpenEnv server running there?"
                )
                raise ConnectionFailed(
                    f"cannot connect to {self.ws_url}: {error or type(error).__name__}; {remedy}"
                ) from None

    def _request(self, message: dict, timeout_s: float = 0.0) -> dict[str, Any]:
        """Send one message and return its reply's data."""
        end = time.monotonic() + self.connect_timeout_s
        if self._lost and message["type"] != "reset":
            raise ConnectionFailed(f"{self._lost}; call reset() to begin anew")
        while True:
            if first := not self._socket:
                self._open(end)
            try:
                return self._exchange(json.dumps(message), self.message_timeout_s + timeout_s)
            except ServerError as error:
                if not (first and error.code == "CAPACITY_REACHED" and time.monotonic() < end):
                    raise
                self._drop("the server was full")
                time.sleep(0.1)

    def _exchange(self, text: str, timeout_s: float) -> dict[str, Any]:
        try:
            with contextlib.suppress(websockets.exceptions.ConnectionClosed):
                self._socket.send(text)  # where it fails, the server may have said why before
            reply = json.loads(self._socket.recv(timeout=timeout_s))
            kind, data = reply["type"], reply.get("data", {})
            if not isinstance(data, dict):
                raise TypeError("its data is no object")
        except TimeoutError:
            self._drop(f"no reply from {self.ws_url} within {timeout_s:g} s (message_timeout_s)")
            raise ReplyTimeout(self._lost + "; the connection was closed") from None
        except websockets.exceptions.ConnectionClosed as error:
            self._drop(f"the connection to {self.ws_url} was lost: {error}")
            raise ConnectionFailed(self._lost + "; call reset() to begin anew") from None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            self._drop(f"{self.ws_url} does not speak OpenEnv: {error!r}")
            raise ConnectionFailed(self._lost) from None
        except BaseException:  # Ctrl-C: the reply that is still to come must not be the next one's
            self._drop("the last call was interrupted")
            raise
        if kind == "error":
            message, code = str(data.get("message")), str(data.get("code", "UNKNOWN"))
            raise ServerError(message, code, data.get("errors"))
        return data

    def _drop(self, why: str) -> None:
        """Close the connection, and with it the session, because of `why`."""
        self._socket, self._lost = None, why
        with contextlib.suppress(Exception):
            self._opened.close()

    def reset(self, **options: Any) -> StepResult:
        """Begin an episode. `options`: seed, episode_id, and what the environment takes besides."""
        return self._parse_result(self._request({"type": "reset", "data": options}))

    def step(self, action: Any, **_: Any) -> StepResult:
        """Take one step. Raises ServerError (the server's refusal, the session goes on),
        ReplyTimeout or ConnectionFailed (the session is lost: reset() begins another)."""
        payload = self._step_payload(action)
        seconds = payload.get("timeout_s") if isinstance(payload, dict) else None
        extra = seconds if isinstance(seconds, int | float) else 0.0
        return self._parse_result(self._request({"type": "step", "data": payload}, extra))

    def state(self) -> Any:
        """The episode's state, at any time."""
        return self._parse_state(self._request({"type": "state"}))

    def close(self) -> None:
        """End the session, and whatever was started for it; may be called again."""
        if self._socket:
            with contextlib.suppress(Exception):
                self._socket.send('{"type": "close"}')
        self._drop("the client was closed")
        self._cleanup.close()

    disconnect = close

    def sync(self) -> "EnvClient":
        """Itself: for code written for OpenEnv's client, which is asynchronous."""
        return self

    def __enter__(self) -> "EnvClient":
        return self.connect()

    def __exit__(self, *_: Any) -> None:
        self.close()

    # Overridden by subclasses for other models

    def _step_payload(self, action: Any) -> dict[str, Any]:
        if dataclasses.is_dataclass(action):
            return to_dict(action)
        return action.model_dump() if hasattr(action, "model_dump") else dict(action)

    def _parse_result(self, payload: dict[str, Any]) -> StepResult:
        reward, done = payload.get("reward"), payload.get("done", False)
        observation = payload.get("observation", {})
        if self.observation_model and isinstance(observation, dict):
            given = {**observation, "reward": reward, "done": done}
            observation = _lenient(self.observation_model, given)
        return StepResult(observation, reward, done, payload.get("metadata"))

    def _parse_state(self, payload: dict[str, Any]) -> Any:
        return _lenient(self.state_model, payload) if self.state_model else payload


def _lenient(model: type, data: dict[str, Any]) -> Any:
    """A reply as a model: a newer server's additional fields are passed over."""
    return model(**{name: data[name] for name in _fields(model) if name in data})


class PythonEnv(EnvClient):
    """The client of a python_env server; PythonEnv() without a URL brings a server of its own.

    That one is a child process on a free loopback port; it ends with close(), with this process,
    and when this process crashes. `tasks`: a task file for it, as `--tasks` takes; `server_args`:
    more of its flags.
    """

    observation_model, state_model = PythonObservation, PythonState

    def __init__(
        self,
        base_url: str | None = None,
        *,
        tasks: str | os.PathLike | None = None,
        server_args: typing.Sequence[str] = (),
        **options: Any,
    ):
        if base_url is not None:
            if tasks or server_args:
                raise InvalidRequest("tasks and server_args are for PythonEnv() without a base_url")
            return super().__init__(base_url, **options)
        given = ["--tasks", os.fspath(tasks)] if tasks else []
        child = EmbeddedServer([*given, *server_args])
        try:
            super().__init__(child.url, **options)
        except BaseException:
            child.close()
            raise
        self._cleanup.callback(child.close)
        weakref.finalize(self, self._cleanup.close)  # garbage collection, and the interpreter's exit


class EmbeddedServer:
    """A server in a child process. It ends when its standard input does: with us, however we end."""

    def __init__(self, arguments: list[str]):
        environment = {k: v for k, v in os.environ.items() if k != "PYTHON_ENV_TOKEN"}
        command = [sys.executable, os.path.realpath(__file__), "serve", "--port", "0"]
        self.process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--exit-with-stdin", *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
            start_new_session=True,  # Ctrl-C is the user's program's, not the server's
        )  # fmt: skip
        line = self.process.stdout.readline()
        match = re.search(r"http://\S+", line)
        if not match:
            self.close()
            raise ConnectionFailed(f"the embedded server did not start: exit code {self.process.returncode}")
        self.url = match[0]

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


# ==================================================================================================
# 11. Command line
# ==================================================================================================


def _number(kind: type, least: float) -> typing.Callable[[str], Any]:
    def parse(text: str) -> Any:
        value = kind(text)
        if not least <= value < math.inf:
            raise ValueError
        return value

    parse.__name__ = f"{kind.__name__} of at least {least:g}"  # argparse names it in its message
    return parse


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, re.split(r"[,\s]+", text)))


FLAGS: dict[str, dict[str, Any]] = {
    "host": dict(default="127.0.0.1", help="address to listen on; 0.0.0.0 for all"),
    "port": dict(type=_number(int, 0), default=8000, help="port to listen on; 0: any free one"),
    "tasks": dict(metavar="FILE", help="JSONL or JSONL.gz: HumanEval, MBPP or own format"),
    "max-sessions": dict(type=_number(int, 1), default=LIMITS.max_sessions, help="sessions at once"),
    "step-timeout": dict(type=_number(float, 0.1), default=LIMITS.step_s,
                         help="seconds a step may run when its action names no timeout_s"),
    "max-step-timeout": dict(type=_number(float, 0.1), default=LIMITS.step_max_s,
                             help="the most seconds that an action may ask for"),
    "memory-mb": dict(type=_number(int, 64), default=LIMITS.memory_mb, help="address space, MiB, of an interpreter"),
    "idle-timeout": dict(type=_number(float, 1), default=LIMITS.ws_idle_s,
                         help="seconds until an idle WebSocket session ends (HTTP: at most 300)"),
    "preload": dict(type=_names, default=(), metavar="MODULES", help="imported before each fork, as numpy"),
    "allow-origin": dict(type=_names, default=(), metavar="ORIGINS", help="other sites' pages that may call; * for all"),
    "allow-host": dict(type=_names, default=(), metavar="NAMES", help="Host names served on a loopback address"),
    "require-isolation": dict(action="store_true", help="refuse to start without seccomp and Landlock"),
    "log-level": dict(choices=("debug", "info", "warning", "error"), default="info", help="to standard error"),
}  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python-env", description="An OpenEnv environment for writing Python, with rewards that "
        "the code cannot forge.",
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    serving = commands.add_parser(
        "serve", help="run the server", formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description="Run the server until SIGTERM or Ctrl-C. It prints its URL and the isolation "
        "reached on this machine.",
        epilog="Each flag is also an environment variable: --step-timeout is PYTHON_ENV_STEP_TIMEOUT. "
        "PYTHON_ENV_TOKEN, which has no flag, asks every client for 'Authorization: Bearer TOKEN'. "
        "Try it: curl -X POST http://127.0.0.1:8000/step -d '{\"action\": {\"code\": \"1+1\"}}'",
    )  # fmt: skip
    for name, options in FLAGS.items():
        variable = "PYTHON_ENV_" + name.upper().replace("-", "_")
        given = os.environ.get(variable)
        if name == "max-sessions":
            given = given or os.environ.get("MAX_CONCURRENT_ENVS")  # OpenEnv's name for it
        if given and options.get("action") == "store_true":
            options = {**options, "default": given.lower() in ("1", "true", "yes", "on")}
        elif given:
            options = {**options, "default": given}  # argparse converts a default that is text
        serving.add_argument(f"--{name}", **options)
    serving.add_argument("--exit-with-stdin", action="store_true", help=argparse.SUPPRESS)
    commands.add_parser("demo", help="play a built-in task against a server of its own")
    return parser


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status. 2: something that was given is wrong."""
    arguments = build_parser().parse_args(argv)
    try:
        if arguments.command == "demo":
            return play_demo()
        logging.basicConfig(level=arguments.log_level.upper(), format="%(asctime)s %(levelname)s %(message)s")
        asyncio.run(serve_python(arguments))
        return 0
    except KeyboardInterrupt:
        return 130
    except InvalidRequest as error:
        print(f"python-env: {error}", file=sys.stderr)
        return 2
    except (PythonEnvError, OSError) as error:
        print(f"python-env: {error}", file=sys.stderr)
        return 1


async def serve_python(arguments: argparse.Namespace) -> None:
    path = arguments.tasks
    tasks = load_tasks(path) if path else BUILTIN_TASKS
    limits = dataclasses.replace(
        LIMITS, max_sessions=arguments.max_sessions, step_s=arguments.step_timeout,
        step_max_s=max(arguments.max_step_timeout, arguments.step_timeout),
        memory_mb=arguments.memory_mb, ws_idle_s=arguments.idle_timeout,
        http_idle_s=min(LIMITS.http_idle_s, arguments.idle_timeout),
    )  # fmt: skip
    sandbox = Sandbox(limits, arguments.preload, (path,) if path else ())
    try:
        await sandbox.start()
        isolation = sandbox.isolation
        if arguments.require_isolation and not isolation["full"]:
            raise InvalidRequest(f"--require-isolation: this machine reaches only {isolation}")
        turn = itertools.count()
        service = Service(
            factory=lambda: PythonEnvironment(sandbox, tasks, turn), action=PythonAction,
            observation=PythonObservation, state=PythonState, limits=limits, tasks=tasks,
            isolation=isolation, token=os.environ.get("PYTHON_ENV_TOKEN") or None,
            allow_origin=arguments.allow_origin, allow_host=arguments.allow_host,
            description="Write Python: an isolated interpreter runs it, hidden tests judge it",
        )  # fmt: skip
        stdin = sys.stdin if arguments.exit_with_stdin else None
        await run_until_signal(service, arguments.host, arguments.port, stdin)
    finally:
        await sandbox.close()


DEMO = {  # a first look, a first try, and a repair
    "what is asked": "import re\nre.findall(r'(\\d+)([hms])', '1h30m')",
    "a first try": "def parse_duration(text):\n"
    "    return sum(int(n) * {'h': 3600, 'm': 60, 's': 1}[u] for n, u in re.findall(r'(\\d+)([hms])', text))",
    "the errors too": "def parse_duration(text):\n"
    "    match = re.fullmatch(r'\\s*(?:([0-9]+)h\\s*)?(?:([0-9]+)m\\s*)?(?:([0-9]+)s\\s*)?', text)\n"
    "    if not match or not any(match.groups()):\n"
    "        raise ValueError(text)\n"
    "    h, m, s = (int(part or 0) for part in match.groups())\n"
    "    return 3600 * h + 60 * m + s",
}


def play_demo() -> int:
    """Play parse-duration against an embedded server; returns 0 when it was solved."""
    with PythonEnv() as env:
        result = env.reset(task_id="parse-duration")
        print(f"task: {result.observation.task_id}\n{result.observation.prompt}\n")
        for title, code in DEMO.items():
            result = env.step(PythonAction(code))
            seen = result.observation
            print(f"--- {title}\n{code}\n")
            print(f"result {seen.result}  reward {result.reward:.2f}  done {result.done}  {seen.feedback}\n")
    return 0 if result.done and result.reward == 1.0 else 1


if __name__ == "__main__":
    sys.exit(main())
