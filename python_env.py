"""python_env: an OpenEnv environment for writing Python, in one file with one dependency.

An agent sends Python code; a locked-down interpreter of its own runs it; hidden tests judge it in
another process; a reward in 0..1 comes back that the code cannot forge:

    with PythonEnv() as env:  # or PythonEnv(base_url=...), .from_docker_image(...), .from_hub(...)
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
import random, re, reprlib, resource, secrets, signal, socket, subprocess, symtable, sys, tempfile
import time, types, typing, urllib.parse, urllib.request, warnings, weakref, zlib
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
QUIET = logging.getLogger("python_env.websocket")  # what websockets would say of each connection
QUIET.setLevel(logging.WARNING)

# ═══ 1. Limits and errors ═════════════════════════════════════════════════════════════════════════

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
    sample_s: float = 0.25  # how often
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
    house_s: float = 1.0  # how often idle sessions and connections are looked for
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

# ═══ 2. Models: what travels, as dataclasses; validation and JSON schema come from them alone ═════

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
            at = [part if isinstance(part, int) else str(part)[:100] for part in at]
            errors.append({"type": kind, "loc": at, "msg": message, "input": _echo(given)})

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
        given = {}
        for name, (kind, f) in known.items():
            if name in value:
                given[name] = _check(kind, value[name], (*loc, name), f.metadata, errors)
            elif _required(f):
                fault("missing", "Field required", (*loc, name))
        for name in value.keys() - known.keys():
            fault("extra_forbidden", "Extra inputs are not permitted", (*loc, name), value[name])
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

# ═══ 3. Tasks ═════════════════════════════════════════════════════════════════════════════════════
# A task is a prompt to read and asserts to pass. Most of the chapter settles one question before
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
            if (size := len(str(value).encode("utf-8", "replace"))) > LIMITS.tests_bytes:
                raise InvalidRequest(f"{key} has {size} bytes; the limit is {LIMITS.tests_bytes}")
        tests, helpers, setup, solution = (
            _Source(key, getattr(self, key)) for key in ("tests", "helpers", "setup", "solution"))
        entry, lent = self.entry_point, {**solution.imports, **setup.imports}
        own = {*tests.defines, *tests.imports, *helpers.defines, *helpers.imports}
        used = (tests.reads | helpers.reads) - own  # the rest must come from elsewhere
        # A solution may define what looks like a builtin (one of MBPP's is called `sum`). What no
        # one else provides must be the candidate's too, unless `import *` brings who knows what.
        names = used & (setup.defines | ({entry} if entry else solution.defines))
        if "*" not in own | lent.keys():
            names |= used - set(dir(builtins)) - lent.keys()
        if self.tests and not tests.asserts:
            raise InvalidRequest("tests has no assert statement; each one counts as a test")
        if self.tests and not (entry in names if entry else names):
            raise InvalidRequest(f"tests ask the candidate for no name; entry_point: {entry!r:.40}")
        capitals = {name for name in names - setup.defines - solution.defines if name[0].isupper()}
        # The judge imports for itself: a candidate could teach its own `math.isclose` to lie.
        imports = dict.fromkeys(lent[name] for name in sorted(used & lent.keys() - names))
        vars(self).update(  # frozen for everyone else
            names=frozenset(names), tests_total=tests.asserts,
            classes=frozenset(names & (setup.classes | solution.classes | capitals)),
            helpers="\n".join([*map(ast.unparse, imports), self.helpers]))

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

        task = {key: text(key) for key in ("prompt", "tests", "setup", "helpers", "solution")}
        number, entry = row.get("task_id", default_id), text("entry_point")  # MBPP has numbers
        if row.get("test_list"):  # MBPP; its challenge_test_list is not part of the benchmark
            task |= {"tests": text("test_imports") + "\n" + text("test_list"), "helpers": "",
                     "setup": text("test_setup_code"), "solution": text("code")}
            names = cls(task_id="?", **task).names - _Source("", task["setup"]).defines
            heads, entry = _Source("", task["solution"]).functions, ""
            # MBPP shows its tests to say what to define. Ours stay hidden, so the prompt does.
            define = " and ".join(f"`{heads.get(name, name)}`" for name in sorted(names))
            task["prompt"] = f"{text('text') or task['prompt']}\n\nDefine {define}."
        elif row.get("test") and entry:  # HumanEval: imports, helpers, and a head to complete
            prompt, task["tests"] = task["prompt"], f"{text('test')}\n\ncheck({entry})\n"
            above = re.split(rf"(?m)^(?:def|class) {re.escape(entry)}\b", prompt)[0]
            with contextlib.suppress(InvalidRequest):  # the prompts of its imitators may be prose
                _Source("prompt", code := prompt + (text("canonical_solution") or "    pass"))
                task |= {"setup": above, "helpers": above, "solution": code}
        elif not task["tests"]:
            raise InvalidRequest("expected the key 'tests', or 'test_list' (MBPP), or 'test' and "
                                 f"'entry_point' (HumanEval); got {[*row]!r:.80}")
        return cls(task_id=str(number) if type(number) is int else number or default_id,
                   entry_point=entry or None, difficulty=text("difficulty"), **task)

def load_tasks(path: str | Path) -> dict[str, Task]:
    """The tasks of a JSONL file (gzipped if its name ends in .gz) by task_id: all of them, or an
    InvalidRequest that names the file and the line. A bomb is read no further than the limit."""
    path, number, left = Path(path), 0, LIMITS.task_file_bytes
    tasks, lines = {}, {REPL.task_id: "0 (built in)"}
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            while line := file.readline((limit := min(left, LIMITS.task_row_bytes)) + 1):
                left, number = left - len(line), number + 1
                if len(line) > limit:
                    raise InvalidRequest(f"longer than the {limit} bytes that a line may have here")
                if line.strip():
                    row = {**json.loads(line.decode("utf-8-sig"))}
                    task = Task.from_row(row, default_id=f"{path.name}:{number}")
                    if (other := lines.setdefault(task.task_id, number)) != number:
                        raise InvalidRequest(f"task_id {task.task_id!r:.80} is on line {other} too")
                    tasks[task.task_id] = task
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidRequest(f"cannot read the tasks file {path}: {error}") from None
    except (ValueError, TypeError, RecursionError) as error:  # bad UTF-8, JSON, row or task
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
assert refuses(ValueError, parse_duration, "-s") and refuses(ValueError, parse_duration, "1 s")"""),
    Task(task_id="clean-people", difficulty="easy", prompt="""\
Define `clean(rows)`. A row is a dict of strings: "name", "email", perhaps "age". Return new dicts
in a list: name without outer spaces, inner runs of them made one; email stripped, in lower case;
age an int, or None if not all digits or over 150. Drop rows whose email has not exactly one "@",
with text on both sides. For rows with the same email return just the first, with the first age
that is not None among them. Keep the order and leave the input as it is.""", tests="""
rows = [{"name": " Ada  B ", "email": " A@x.org ", "age": "36"}, {"name": "Bo", "email": "b@b"},
        {"name": "X", "email": "B@b", "age": "7"}, {"name": "Y", "email": "b@b", "age": "8"}]
before = str(rows)
assert clean(rows[:1]) == [{"name": "Ada B", "email": "a@x.org", "age": 36}]
assert clean([{"name": "B", "email": e} for e in ("", "b", "@b", "b@", "b@@b", "a@b@c")]) == []
ages = [{"name": "C", "email": f"c@{a}!", "age": a} for a in ("0", "150", "151", "-3", "4.5", "")]
assert [person["age"] for person in clean(ages)] == [0, 150, None, None, None, None]
assert [person["name"] for person in clean(rows)] == ["Ada B", "Bo"]
assert {person["email"]: person["age"] for person in clean(rows)} == {"a@x.org": 36, "b@b": 7}
assert clean(rows) and str(rows) == before"""),
    Task(task_id="build-order", difficulty="medium", helpers=_REFUSES, prompt="""\
Define `build_order(needs)`: a dict from a package to a list of those it needs, which may not be
keys. Return the list of all packages, each after what it needs; where several could come next,
the alphabetically first does. Raise ValueError for a cycle. Chains may be long.""", tests="""
assert build_order({}) == [] and build_order({"b": [], "a": []}) == ["a", "b"]
assert build_order({"app": ["lib"], "lib": ["core"]}) == ["core", "lib", "app"]
assert build_order({"c": ["a"], "b": ["a"], "d": []}) == ["a", "b", "c", "d"]
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
amount)` open the account they pay into, `balance(name)` tells what it holds. To ask or pay from one
that is not open raises KeyError; an amount below 1, or above what the source holds, ValueError; a
failed call changes nothing. `undo()` takes back the latest deposit or transfer not yet undone, and
what it opened, or raises IndexError. `len()` and `in` see the open accounts.""", tests="""
one, two = Ledger(), Ledger()
for amount in (20, 30): one.deposit("ann", amount)
assert (one.balance("ann"), len(one), len(two)) == (50, 1, 0) and "ann" in one
assert refuses(KeyError, one.balance, "bob") and refuses(IndexError, two.undo)
assert refuses(ValueError, one.deposit, "bob", 0) and "bob" not in one
assert refuses(ValueError, one.transfer, "ann", "bob", 51) and len(one) == 1
assert refuses(KeyError, one.transfer, "bob", "ann", 1) and one.balance("ann") == 50
one.transfer("ann", "bob", 50)
assert (one.balance("ann"), one.balance("bob"), len(one)) == (0, 50, 2)
one.undo()
assert one.balance("ann") == 50 and "bob" not in one
for _ in range(2): one.undo()
assert len(one) == 0 and refuses(IndexError, one.undo)"""),
]}

# ═══ 4. Worker ════════════════════════════════════════════════════════════════════════════════════
# The program of every other process. It stands alone, imports included: its source, from this
# banner to the next, is all of ours that the zygote and its children ever hold.

import ast, builtins, collections, contextlib, ctypes, datetime, decimal, errno, fractions, gc
import itertools, json, linecache, operator, os, random, re, resource, select, signal, socket, stat
import struct, sys, traceback, types

FRAME_BYTES = 16 * 2**20  # of one frame between two processes; checked before buffering
NODES, DEPTH = 1_000_000, 100  # of one value between judge and understudy, sharing expanded
INT_DIGITS = 250_000  # hexadecimal, of an int between them
REFERENCES = 100_000  # objects that one of them may hold for the other

def send_frame(sock: socket.socket, message: object) -> None:
    body = json.dumps(message).encode()
    if len(body) > FRAME_BYTES:
        raise ValueError(f"a frame of {len(body)} bytes; at most {FRAME_BYTES} can be sent")
    sock.sendall(struct.pack(">I", len(body)) + body)

def receive_frame(sock: socket.socket) -> object:
    """The next frame; EOFError when the other end is gone, ValueError when it talks nonsense."""
    def receive(size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            if not (chunk := sock.recv(min(size - len(data), 2**20))):
                raise EOFError("the other end is gone")
            data += chunk
        return bytes(data)

    size = struct.unpack(">I", receive(4))[0]
    if size > FRAME_BYTES:
        raise ValueError(f"a frame of {size} bytes announced; at most {FRAME_BYTES} are read")
    return json.loads(receive(size))

# ─── Giving up privileges ───

# A worker's system calls, with their numbers on x86_64 and aarch64 ("-": not there). ALLOW runs,
# IGNORE answers 0 and does nothing; all others get EPERM, or ENOSYS where libc has an older way.
# Conditions compare an argument's low half, all the kernel takes of an int; pointers have a .high.
SYSTEM_CALLS = """
ALLOW what is open: our own socket, pipes, and files that Landlock let it open
  read 0 63, write 1 64, readv 19 65, writev 20 66, pread64 17 67, pwrite64 18 68, lseek 8 62,
  sendfile 40 71, copy_file_range 326 285, ftruncate 77 46, fsync 74 82, fdatasync 75 83,
  close 3 57, dup 32 23, dup2 33 -, dup3 292 24, pipe 22 -, pipe2 293 59, recvfrom 45 207,
  sendto 44 206, shutdown 48 210, getsockname 51 204, poll 7 -, ppoll 271 73, select 23 -,
  pselect6 270 72, epoll_create1 291 20, epoll_ctl 233 21, epoll_wait 232 -, epoll_pwait 281 22
ALLOW names and directories: Landlock guards what lists or changes them (a mere stat it does not)
  stat 4 -, fstat 5 80, lstat 6 -, newfstatat 262 79, statx 332 291, access 21 -, faccessat 269 48,
  faccessat2 439 439, readlink 89 -, readlinkat 267 78, getdents64 217 61, getcwd 79 17,
  chdir 80 49, fchdir 81 50, mkdir 83 -, mkdirat 258 34, rmdir 84 -, unlink 87 -, unlinkat 263 35,
  rename 82 -, renameat 264 38, link 86 -, linkat 265 37, symlink 88 -, symlinkat 266 36
ALLOW opening, but not O_TRUNC without writing, nor mode 3: before ABI 3 Landlock sees neither
  open 2 - | arg1 & 0x203: RDONLY=0 WRONLY=1 RDWR=2 WRONLY+TRUNC=0x201 RDWR+TRUNC=0x202,
  openat 257 56 | arg2 & 0x203: RDONLY=0 WRONLY=1 RDWR=2 WRONLY+TRUNC=0x201 RDWR+TRUNC=0x202
IGNORE modes, times, locks (a channel): Landlock guards none of them; shutil, SQLite need a yes
  chmod 90 -, fchmod 91 52, fchmodat 268 53, fchmodat2 452 452, utimensat 280 88, listxattr 194 11,
  llistxattr 195 12, flock 73 32, fcntl 72 25 | arg1: SETLK=6 SETLKW=7 OFD_SETLK=37 OFD_SETLKW=38
ALLOW by command: F_SETOWN, F_SETSIG, FIOSETOWN send signals; TIOCSTI types; SO_PEERPIDFD opens us
  fcntl 72 25 | arg1: DUPFD=0 GETFD=1 SETFD=2 GETFL=3 SETFL=4 GETLK=5 DUPFD_CLOEXEC=1030,
  ioctl 16 29 | arg1: TCGETS=0x5401 FIONREAD=0x541b FIONBIO=0x5421 FIONCLEX=0x5450 FIOCLEX=0x5451,
  getsockopt 55 209 | arg1: SOL_SOCKET=1 | arg2: SO_TYPE=3 SO_ERROR=4 SO_PROTOCOL=38 SO_DOMAIN=39,
  prctl 157 167 | arg0: SET_NAME=15 GET_NAME=16 GET_NO_NEW_PRIVS=39 SET_VMA=0x53564d41
ALLOW memory and threads; not shared mappings (1: no limit holds them), processes and namespaces
  brk 12 214, munmap 11 215, mremap 25 216, mprotect 10 226, madvise 28 233, futex 202 98,
  mmap 9 222 | arg3 & 1: PRIVATE=0, clone 56 220 | arg0 & 0x7e030000: CLONE_THREAD=0x10000,
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
NEWEST_CALL = 470  # of Linux 6.19; a later one answers ENOSYS, so that libc falls back to an older
MACHINES = {"x86_64": (1, 0xC000003E), "aarch64": (2, 0xC00000B7)}  # the table's column, AUDIT_ARCH
LOAD, AND, JUMP, IF_EQUAL, IF_NOT_BELOW, IF_BITS, RETURN = 0x20, 0x54, 0x05, 0x15, 0x35, 0x45, 0x06
KILL, FAIL = 0x80000000, 0x50000  # SECCOMP_RET_KILL_PROCESS; SECCOMP_RET_ERRNO, to add the errno to
PID = int.from_bytes(b"<pid", "little")  # stands in for it, until a worker knows its own
ANSWERS = {"ALLOW": 0x7FFF0000, "IGNORE": FAIL}

def _condition(text: str, then: list) -> list:
    """Instructions that run into `then` where the condition holds, and jump behind it elsewhere."""
    index, high, mask, values = re.fullmatch(r"arg(\d)(\.high)?(?: & (\w+))?: (.+)", text).groups()
    numbers = [PID if value == "PID" else int(value.split("=")[1], 0) for value in values.split()]
    hits = [(IF_EQUAL, len(numbers) - i, 0, number) for i, number in enumerate(numbers)]
    return [(LOAD, 0, 0, 16 + 8 * int(index) + 4 * bool(high)),  # in seccomp_data, little-endian
            (AND, 0, 0, int(mask or "0xffffffff", 0)), *hits, (JUMP, 0, 0, len(then)), *then]

def build_filter(machine: str) -> list:
    """The seccomp program as (code, distance if true, distance if false, operand)."""
    column, architecture = MACHINES[machine]
    refuse, absent = [(RETURN, 0, 0, FAIL + errno.EPERM)], [(RETURN, 0, 0, FAIL + errno.ENOSYS)]
    calls = {435: absent, NEWEST_CALL + 1: absent}  # no filter can see clone3's flags, but clone's
    for answer, lines in re.findall(r"^([A-Z]+).*\n((?: .*\n)+)", SYSTEM_CALLS, re.M):
        for line in " ".join(lines.split()).split(", "):
            call, *conditions = line.split(" | ")
            if (number := call.split()[column]) != "-":
                code = [(RETURN, 0, 0, ANSWERS[answer])]
                for condition in reversed(conditions):
                    code = _condition(condition, code)
                calls[int(number)] = code + calls.get(int(number), refuse) if conditions else code
    answers = [calls.get(number, refuse) for number in range(NEWEST_CALL + 2)]
    tree = [(i, code) for i, code in enumerate(answers) if i == 0 or code != answers[i - 1]]
    while len(tree) > 1:  # neighbours into one, to a binary search; JUMP reaches any distance
        pairs = [(first, [(IF_NOT_BELOW, 0, 1, second), (JUMP, 0, 0, len(below)), *below, *above])
                 for (first, below), (second, above) in zip(tree[::2], tree[1::2])]
        tree = pairs + tree[2 * len(pairs):]
    return [(LOAD, 0, 0, 4), (IF_EQUAL, 1, 0, architecture), (RETURN, 0, 0, KILL),  # int 0x80
            (LOAD, 0, 0, 0), (IF_BITS, 0, 1, 0x40000000), (RETURN, 0, 0, KILL), *tree[0][1]]  # x32

LINUX, LIBC = sys.platform == "linux", ctypes.CDLL(None, use_errno=True)
if LINUX:
    LIBC.syscall.argtypes = [ctypes.c_long] * 5
    LIBC.capset.argtypes = [ctypes.c_char_p] * 2  # looked up here, not once a child
    LIBC.prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_char_p, *[ctypes.c_ulong] * 2]
LANDLOCK_ABI = max(0, LIBC.syscall(444, 0, 0, 1, 0)) if LINUX else 0
# PR_GET_SECCOMP fails where there is none; a 32-bit interpreter has other numbers.
MACHINE = os.uname().machine if LINUX and LIBC.prctl(21, 0, None, 0, 0) >= 0 else "no seccomp"
PROGRAM = build_filter(MACHINE) if MACHINE in MACHINES and sys.maxsize > 2**32 else []
FILTER = b"".join(struct.pack("HBBI", *instruction) for instruction in PROGRAM)
WRITE_FILE, READ_FILE, READ_DIR = 2, 4, 8  # of Landlock's rights, of which an ABI knows the first:
KNOWN_RIGHTS = (1 << (0, 13, 14, 15, 15, 16)[min(LANDLOCK_ABI, 5)]) - 1
# These, REMOVE_DIR and _FILE, MAKE_DIR, _REG and _SYM, REFER, TRUNCATE; no EXECUTE, no devices
OWN_DIRECTORY = sum(1 << bit for bit in (1, 2, 3, 4, 5, 7, 8, 12, 13, 14))

def open_readable(hidden: list[str]) -> list[tuple[int, int]]:
    """O_PATH descriptors of what a worker may read, with their Landlock rights: all but `hidden`.

    Rules only add, so directories that lead to a hidden path (a file or directory) may just be
    listed, and their other entries are granted one by one.
    """
    paths = [*filter(os.path.isabs, sys.path), sys.base_prefix + "/lib", "/lib", "/lib64",
             "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache", "/usr/share/zoneinfo",
             "/etc/localtime", "/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"]
    trees = {*map(os.path.realpath, paths)} if LANDLOCK_ABI else set()
    hidden, granted = {*map(os.path.realpath, hidden)}, []

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

    for path in trees:
        if not any(path.startswith(tree + "/") for tree in trees):  # else it comes with that one
            grant(path)
    return granted

def lock_down(readable: list, directory: "str | None", limits: dict, filtered: bool = True) -> None:
    """Give up all but reading `readable` (closed here), writing in `directory`, and `limits`.

    In a fresh child with one thread; `limits` go by the names of resource.RLIMIT_*. What the
    machine lacks is left out (probe() tells what); what it has and fails raises OSError.
    """
    def check(result: int) -> int:
        if result < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return result
    os.nice(5)
    if LINUX:
        with contextlib.suppress(OSError):  # the first to go when memory runs out
            os.write(fd := os.open("/proc/self/oom_score_adj", os.O_WRONLY), b"1000")
            os.close(fd)
        check(LIBC.prctl(38, 1, None, 0, 0))  # NO_NEW_PRIVS: Landlock and seccomp ask for it
        # Of root's capabilities only DAC_READ_SEARCH stays: the interpreter may be another user's.
        version = struct.pack("Ii", 0x20080522, 0)
        if LIBC.capset(version, struct.pack("II16x", 4, 4)) < 0:
            check(LIBC.capset(version, bytes(24)))
    if LANDLOCK_ABI:
        files, tcp, scopes = KNOWN_RIGHTS, 3 * (LANDLOCK_ABI >= 4), 3 * (LANDLOCK_ABI >= 6)
        buffer = ctypes.create_string_buffer(struct.pack("QQQ", files, tcp, scopes))
        rules = check(LIBC.syscall(444, ctypes.addressof(buffer), 24, 0, 0))  # _create_ruleset
        own = [(os.open(directory, os.O_PATH), OWN_DIRECTORY)] if directory else []
        for fd, rights in (readable := readable + own):
            struct.pack_into("=Qi", buffer, 0, rights & files, fd)
            check(LIBC.syscall(445, rules, 1, ctypes.addressof(buffer), 0))  # _add_rule
        check(LIBC.syscall(446, rules, LANDLOCK_ABI >= 7, 0, 0))  # _restrict_self; 1: log nothing
        os.close(rules)
    for fd, _ in readable:
        os.close(fd)
    # After Landlock, whose descriptors may have numbers above NOFILE
    for name, value in {"CORE": 0, "MEMLOCK": 0, "MSGQUEUE": 0, "SIGPENDING": 64, **limits}.items():
        if (kind := getattr(resource, "RLIMIT_" + name, None)) is not None:
            value = min(value, resource.getrlimit(kind)[1] % 2**64)  # RLIM_INFINITY may be -1
            resource.setrlimit(kind, (value, value))
    if LINUX:
        check(LIBC.prctl(4, 0, None, 0, 0))  # not DUMPABLE: our files in /proc are root's
    if FILTER and filtered:
        program = FILTER.replace(struct.pack("I", PID), struct.pack("I", os.getpid()))
        program = ctypes.create_string_buffer(program, len(program))
        header = struct.pack("H6xQ", len(FILTER) // 8, ctypes.addressof(program))
        check(LIBC.prctl(22, 2, header, 0, 0))  # SECCOMP_MODE_FILTER

def probe() -> dict:
    """The isolation truly reached, found out by trying in a throw-away child."""
    if (child := os.fork()) == 0:
        found = []
        try:
            lock_down([], None, {"NOFILE": 16})
            found = [LIBC.getpgid(0) < 0, LIBC.open(b"/", os.O_RDONLY) < 0,  # harmless, but refused
                     LINUX and LIBC.prctl(39, 0, None, 0, 0) == 1,
                     resource.getrlimit(resource.RLIMIT_NOFILE) == (16, 16)]
        finally:
            os._exit(sum(yes << bit for bit, yes in enumerate(found)))
    status = os.WEXITSTATUS(os.waitpid(child, 0)[1])
    return {"seccomp": bool(status & 1), "landlock": LANDLOCK_ABI if status & 2 else 0,
            "no_new_privs": bool(status & 4), "rlimits": bool(status & 8)}

# ─── Plain data between judge and understudy ───

class Remote:
    """The judge's handle on an object that lives in the understudy.

    Its operators show it the test's operands only where it is an instance of a class that the task
    itself names (`_open`): what a function returned could answer `== 3.14` with a lie, or learn
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
        if name.startswith("__") and name not in ("__name__", "__doc__", "__dict__"):
            raise AttributeError(name)  # copy and pickle ask for protocols that we do not have
        return self._peer.request("getattr", self, name)

    def __setattr__(self, name, value):
        if name in Remote.__slots__:
            return object.__setattr__(self, name, value)
        self._peer.request("setattr", self, name, value)

    def __contains__(self, item):
        if self._open:
            return self._peer.request("contains", self, item)
        return any(item is other or item == other for other in self)

    def __instancecheck__(self, value):
        return type(value) is Remote and self._peer.request("isinstance", value, self) is True

def _operator(name: str, guarded: bool, swapped: bool = False):
    def method(self, *operands):
        if guarded and not (self._open or type(operands[0]) is Remote):
            return NotImplemented
        return self._peer.request(name, *((*operands, self) if swapped else (self, *operands)))
    return method

# What one end may ask of the other's objects; of the judge's only the first three.
OPERATIONS = {"call": lambda f, *args, **kwargs: f(*args, **kwargs), "iter": iter, "next": next,
              "enter": lambda o: o.__enter__(), "exit": lambda o, *error: o.__exit__(*error)}
for _name in "len str repr bool hash int float reversed abs round dir".split():
    OPERATIONS[_name] = getattr(builtins, _name)
for _name in "getitem setitem delitem index neg".split():
    OPERATIONS[_name] = getattr(operator, _name)
for _name in OPERATIONS.keys() - {"call"}:
    setattr(Remote, f"__{_name}__", _operator(_name, guarded=False))
for _name in "eq lt le gt ge add sub mul truediv floordiv mod pow matmul and or xor".split():
    OPERATIONS[_name] = getattr(operator, f"__{_name}__")
    setattr(Remote, f"__{_name}__", _operator(_name, guarded=True))
    setattr(Remote, f"__r{_name}__", _operator(_name, guarded=True, swapped=True))
OPERATIONS |= {"getattr": getattr, "setattr": setattr, "isinstance": isinstance,
               "contains": operator.contains}

class Callback:
    """The understudy's handle on a callable or an iterator of the test's."""

    def __init__(self, peer: "Peer", number: int):
        self._peer, self._number = peer, number

    def __call__(self, *args, **kwargs):
        return self._peer.request("call", self, *args, **kwargs)

    def __iter__(self):
        return self._peer.request("iter", self)

    def __next__(self):
        return self._peer.request("next", self)

def _big_int(digits: str) -> int:
    if len(digits) > INT_DIGITS:
        raise ValueError(f"an int of over {INT_DIGITS} hexadecimal digits")
    return int(digits, 16)

# What is rebuilt from arguments: type -> (the arguments of a value, what makes it of them). So a
# test's `==` and isinstance() see the real thing; none of these runs code of the other end's.
REBUILT = {
    int: (lambda v: (format(v, "x"),), _big_int),
    bytes: (lambda v: (v.hex(),), bytes.fromhex),
    complex: (lambda v: (v.real, v.imag), complex),
    tuple: (tuple, lambda *items: items),
    frozenset: (tuple, lambda *items: frozenset(items)),
    bytearray: (lambda v: (bytes(v),), bytearray),
    range: (lambda v: (v.start, v.stop, v.step), range),
    collections.deque: (lambda v: (list(v), v.maxlen), collections.deque),
    collections.Counter: (lambda v: (dict(v),), collections.Counter),
    collections.OrderedDict: (lambda v: (list(v.items()),), collections.OrderedDict),
    datetime.date: (lambda v: v.timetuple()[:3], datetime.date),
    datetime.datetime: (lambda v: (*v.timetuple()[:6], v.microsecond), datetime.datetime),
    datetime.time: (lambda v: (v.hour, v.minute, v.second, v.microsecond), datetime.time),
    datetime.timedelta: (lambda v: (v.days, v.seconds, v.microseconds), datetime.timedelta),
    decimal.Decimal: (lambda v: (str(v),), decimal.Decimal),
    fractions.Fraction: (lambda v: (v.numerator, v.denominator), fractions.Fraction),
}
MAKERS = {kind.__name__: make for kind, (_, make) in REBUILT.items()}
CONTAINERS = {"list": list, "dict": dict, "set": set}
PLAIN = (int, float, complex, str, bytes, list, tuple, set, frozenset, dict)
EXCEPTIONS = {name: kind for name, kind in vars(builtins).items()
              if isinstance(kind, type) and issubclass(kind, BaseException)}

def refill(target, items: list) -> None:
    target.clear()
    if type(target) is list:
        target.extend(items)
    else:
        target.update(zip(items[::2], items[1::2]) if type(target) is dict else items)

class Peer:
    """One end of the line between judge and understudy: calls both ways, plain data only.

    A value crosses as JSON: None, bool, str, float and small int as themselves, the rest as a list
    that begins with a tag. Mutable containers are numbered in the order of their appearance in a
    call, and the answer brings each of them again under its number: so what the callee changed in
    place is written back into the caller's own objects, and identity survives.
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
        shared: list = []  # the mutable containers of this call
        message = [name, self.encode((args, kwargs), shared)]
        try:
            send_frame(self.sock, message)
            while (reply := receive_frame(self.sock))[0] not in ("return", "raise"):
                self.answer(reply)
            result, _ = self.decode(reply[1], shared)
        except Exception as error:
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
            args, kwargs = self.decode(wire, shared)
            if self.trusted and name not in ("call", "iter", "next"):
                raise TypeError(f"{name} of an object of the test's is not to be had")
            kind, value = "return", OPERATIONS[name](*args, **kwargs)
        except TimeUp:
            raise
        except BaseException as error:
            kind, value = "raise", error
        known = {id(container): number for number, container in enumerate(shared)}
        try:
            reply = [kind, self.encode((value, (*shared,)), shared, known)]
        except Exception as error:  # too much, a cycle, or an object that will not be looked at
            reply = ["raise", self.encode((ValueError(str(error)), ()), [])]
        send_frame(self.sock, reply)

    def encode(self, value: object, shared: list, known: dict[int, int] = {}):
        """`value` for the wire; `known` are the numbers, by id, of the call that this answers."""
        budget, done = NODES, {}  # done: the containers sent so far, each whole and once

        def walk(value, depth):
            nonlocal budget
            kind, down = type(value), depth + 1
            budget -= 1
            if budget < 0 or depth > DEPTH:
                raise ValueError("too large, too deep or cyclic a value for a test")
            if value is None or kind in (bool, float, str) or kind is int and abs(value) < 2**53:
                return value
            if kind.__name__ in CONTAINERS and kind is CONTAINERS[kind.__name__]:
                if id(value) in done:
                    return ["@", done[id(value)]]
                number = done[id(value)] = known.get(id(value), len(shared))
                if number == len(shared):
                    shared.append(value)  # which also keeps its id from being another's
                items = itertools.chain.from_iterable(value.items()) if kind is dict else value
                return [kind.__name__, number, *[walk(item, down) for item in items]]
            if kind in REBUILT:
                return [kind.__name__, *[walk(arg, down) for arg in REBUILT[kind][0](value)]]
            if kind in (Remote, Callback):
                return ["own", value._number]
            if isinstance(value, type) and issubclass(value, BaseException):
                if EXCEPTIONS.get(value.__name__) is value:
                    return ["class", value.__name__]
                base = next(base for base in value.__bases__ if issubclass(base, BaseException))
                return ["class", value.__name__, self.number(value), walk(base, down)]
            if isinstance(value, BaseException):
                args = [a if type(a) in (str, bool, float) else str(a) for a in value.args[:9]]
                return ["error", walk(kind, down), self.number(value), *args]
            if isinstance(value, tuple) and hasattr(kind, "_fields"):
                return ["named", kind.__name__, [*kind._fields], *[walk(v, down) for v in value]]
            for base in PLAIN:  # a subclass crosses as what it holds; its methods stay behind
                if isinstance(value, base):
                    return walk(dict(value.items()) if base is dict else base(value), down)
            return ["ref", self.number(value)]

        return walk(value, 0)

    def number(self, value: object) -> int:
        number = self.numbers.setdefault(id(value), len(self.objects))
        if number == len(self.objects):
            if number >= REFERENCES:
                raise ValueError(f"more than {REFERENCES} objects")
            self.objects.append(value)
        return number

    def decode(self, wire: object, shared: list):
        """The value of `wire`, of exact built-in types; writes back into `shared` at the end."""
        budget, changes = NODES, []
        sizes: dict[int, float] = {}  # nodes below a container: what one more mention of it costs

        def build(wire, depth):
            nonlocal budget
            budget -= 1
            if budget < 0 or depth > DEPTH:
                raise ValueError("too large or too deep a value")
            if not isinstance(wire, list):
                return wire
            tag, *rest = wire
            if tag in CONTAINERS:
                number, before, new = rest[0], budget, rest[0] == len(shared)
                if new:  # begun before its items, which are numbered after it
                    shared.append(CONTAINERS[tag]())
                if number in sizes or type(shared[number]) is not CONTAINERS[tag]:
                    raise ValueError("a container out of order")
                sizes[number] = float("inf")  # until it is whole: a cycle breaks the budget
                items = [build(item, depth + 1) for item in rest[1:]]
                sizes[number] = before - budget
                if new:
                    refill(shared[number], items)
                else:  # what is there stays as it is until all of the message proved sound
                    changes.append((shared[number], items))
                return shared[number]
            if tag == "@":
                budget -= sizes[rest[0]]
                return build(None, depth) or shared[rest[0]]  # None: looks at the budget, no more
            if tag in MAKERS:
                return MAKERS[tag](*[build(arg, depth + 1) for arg in rest])
            if tag == "own":
                return self.objects[rest[0]]
            if tag == "ref":
                make = Remote if self.trusted else Callback
                return self.remotes.setdefault(rest[0], make(self, rest[0]))
            if tag == "named":  # of identifiers only: namedtuple() sees to that
                kind = collections.namedtuple(rest[0], rest[1][:255], rename=True)
                return kind(*[build(item, depth + 1) for item in rest[2:]])
            if tag == "class":
                if len(rest) > 1 and rest[1] not in self.remotes:
                    self.remotes[rest[1]] = self.stand_in(rest[0], build(rest[2], depth + 1))
                return self.remotes[rest[1]] if len(rest) > 1 else EXCEPTIONS[rest[0]]
            if tag == "error":
                kind = build(rest[0], depth + 1)
                kind = Exception if kind.__name__.endswith("ExceptionGroup") else kind
                error = kind.__new__(kind)
                error.args, error.__dict__["_number"] = tuple(rest[2:]), rest[1]
                return error
            raise ValueError("an unknown tag")

        value = build(wire, 0)
        for target, items in changes:
            refill(target, items)
        return value

    def stand_in(self, name: str, base: type) -> type:
        """A class of ours for an exception class of theirs, so that a test can `except` it."""
        def attribute(error, name):
            if name.startswith("_"):
                raise AttributeError(name)
            return self.request("getattr", Remote(self, vars(error)["_number"]), name)
        return type(name, (base,), {"__getattr__": attribute})

# ─── Worker and understudy ───

class Interpreter:
    """The namespace that an agent's code lives in, and what runs it there step by step."""

    def __init__(self, result_chars: int):
        self.result_chars, self.steps, self.running = result_chars, 0, False
        self.module = sys.modules["__main__"] = types.ModuleType("__main__")
        self.names = self.module.__dict__
        options = {"encoding": "utf-8", "errors": "backslashreplace", "closefd": False}
        self.streams = [open(fd, "w", buffering=1, **options) for fd in (1, 2)]
        sys.stdin = open(0, closefd=False)

    def interrupt(self, *_) -> None:
        if self.running:
            raise KeyboardInterrupt

    def run(self, code: str) -> tuple[int, str | None]:
        """Run one step; what it printed has been flushed to the descriptors on return."""
        outcome = 1, None
        try:
            signal.signal(signal.SIGINT, self.interrupt)
            sys.stdout, sys.stderr = self.streams
            outcome = self.execute(code)
        except BaseException:
            pass  # the time-out's interrupt came while an error was being reported
        self.running = False
        for stream in (sys.stdout, sys.stderr, *self.streams):
            try:
                stream.flush()
            except BaseException:
                pass
        return outcome

    def execute(self, code: str) -> tuple[int, str | None]:
        self.steps += 1
        name = f"<step {self.steps}>"
        linecache.cache[name] = len(code), None, code.splitlines(True), name  # for tracebacks
        self.running = True
        try:
            tree, value = ast.parse(code, name), None
            last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
            exec(compile(tree, name, "exec", dont_inherit=True), self.names)
            if last:
                last = compile(ast.Expression(last.value), name, "eval", dont_inherit=True)
                value = eval(last, self.names)
            return 0, None if value is None else self.cut(repr(value))
        except SystemExit as error:
            if error.code is None or isinstance(error.code, int):
                return (error.code or 0) & 0xFF, None
            print(error.code, file=sys.stderr)
        except BaseException as error:
            report = traceback.TracebackException.from_exception(error)
            hide_our_frames(report)
            print("".join(report.format()), end="", file=sys.stderr)
        return 1, None

    def cut(self, text: str) -> str:
        half, over = self.result_chars // 2, len(text) - self.result_chars
        return text if over <= 0 else f"{text[:half]}... {over} characters cut ...{text[-half:]}"

def hide_our_frames(report: traceback.TracebackException) -> None:
    """Keep the candidate's own lines only, in the whole chain of exceptions."""
    todo = [report]
    while todo:
        report = todo.pop()
        own = [frame for frame in report.stack if frame.filename.startswith("<step ")]
        report.stack = traceback.StackSummary.from_list(own)
        chain = report.__cause__, report.__context__, *(getattr(report, "exceptions", 0) or ())
        todo += filter(None, chain)

def worker_main(control: socket.socket, line: socket.socket, limits: dict) -> None:
    """Run what the server sends; an understudy ends by answering the judge's calls."""
    interpreter = Interpreter(limits["result_chars"])
    while (message := receive_frame(control))["op"] == "run":
        exit_code, result = interpreter.run(message["code"])
        reply = {"seq": message["seq"], "exit_code": exit_code, "result": result}
        send_frame(control, reply)
    names = interpreter.names
    OPERATIONS["names"] = lambda asked: {name: names[name] for name in asked if name in names}
    peer = Peer(line, trusted=False)
    while True:
        peer.answer(receive_frame(line))

# ─── Judge ───

class TimeUp(BaseException):
    """The grading's time is over. Not an Exception, so that tests rarely swallow it."""

class Scorekeeper(ast.NodeTransformer):
    """Makes each `assert T` a `try: check(n, T)  except: failed(n)`: the run goes on after it."""

    def __init__(self, source: str):
        self.marks: list[bool | None] = []  # of each assert: None until it ran; was it always true?
        self.error = ""  # built-in exception type of the first failure that was one
        failures = (Exception, SystemExit, KeyboardInterrupt, GeneratorExit)  # all but TimeUp
        self.names = {"__check": self.check, "__failed": self.failed, "__failures": failures}
        tree = ast.fix_missing_locations(self.visit(ast.parse(source)))
        self.code = compile(tree, "<tests>", "exec")

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        self.marks.append(None)
        source = f"try: __check({len(self.marks) - 1}, 0)\nexcept __failures: __failed({len(self.marks) - 1})"
        attempt = ast.parse(source).body[0]
        attempt.body[0].value.args[1] = node.test
        return ast.copy_location(attempt, node)

    def check(self, number: int, verdict: object) -> None:
        if not verdict:
            raise AssertionError
        self.marks[number] = self.marks[number] is not False

    def failed(self, number: int) -> None:
        self.marks[number] = False
        self.note(sys.exc_info()[0])

    def note(self, kind: type) -> None:
        names = (k.__name__ for k in kind.__mro__ if EXCEPTIONS.get(k.__name__) is k)
        self.error = self.error or next(names, "").replace("AssertionError", "")

def judge_main(control: socket.socket, line: socket.socket, limits: dict) -> None:
    """Run the hidden tests against the understudy's functions, and report the counts."""
    task = receive_frame(control)
    peer, keeper, ended, timed_out = Peer(line, trusted=True), Scorekeeper(task["tests"]), False, False

    def time_up(*_):
        raise TimeUp

    space: dict = {"__name__": "tests", **keeper.names}
    try:
        signal.signal(signal.SIGALRM, time_up)
        # It repeats, in case that a test's bare `except:` swallows the first.
        signal.setitimer(signal.ITIMER_REAL, task["seconds"], 0.05)
        exec(compile(task["helpers"], "<helpers>", "exec"), space)
        found = peer.request("names", task["names"])
        for name in task["names"]:  # not those of `found`: the other end may name anything
            if name in found:
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
    send_frame(control, {"passed": passed, "solved": solved, "timed_out": timed_out,
                         "error": keeper.error})

# ─── Janitor ───

def janitor_main(control: socket.socket, base: str, limits: dict) -> None:
    """Measure and clear the others' folders, which may hold anything: only this process, itself
    shut in, ever walks them. At the end of its line, which is the server's end, it clears all."""
    serial = itertools.count()

    def entries(folder: str) -> list[os.DirEntry]:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.chmod(folder, 0o700)  # it may have been locked
            return [*os.scandir(folder)]
        return []

    def clear(folder: str) -> None:
        # Folders are moved up before they are emptied: no recursion, and no path gets too long.
        pending = [folder]
        while pending:
            for entry in entries(path := pending.pop()):
                if entry.is_dir(follow_symlinks=False):
                    pending.append(f"{base}/.{next(serial)}")
                    os.chmod(entry.path, 0o700)
                    os.rename(entry.path, pending[-1])
                else:
                    os.unlink(entry.path)
            os.rmdir(path)

    def is_over(folder: str) -> bool:
        pending, count, size = [folder], 0, 0
        while pending:
            for entry in entries(pending.pop()):
                count, size = count + 1, size + entry.stat(follow_symlinks=False).st_blocks * 512
                if count > limits["folder_entries"] or size > limits["folder_bytes"]:
                    return True
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
        return False

    def over(folder: str) -> bool:
        try:
            return is_over(folder)
        except FileNotFoundError:
            return False  # its owner is at work there; the next time will tell
        except OSError:
            return True  # paths over 4,096 bytes: nobody needs that deep a tree

    def safely_clear(name: str) -> None:
        with contextlib.suppress(OSError):
            clear(f"{base}/{name}")

    with contextlib.suppress(EOFError, OSError):
        while message := receive_frame(control):
            if message["op"] == "clear":
                safely_clear(message["folder"])
            else:
                found = [name for name in message["folders"] if over(f"{base}/{name}")]
                send_frame(control, {"over": found})
    for _ in range(3):  # what could not be cleared at once goes with the next round
        for name in os.listdir(base):
            safely_clear(name)

# ─── Zygote ───

def zygote_main(config: dict) -> None:
    """Fork the others on the server's command, and reap them; end with all of them at its EOF.

    Commands are lines of JSON on descriptor 0, each with the descriptors for the new process as
    SCM_RIGHTS. Answers: {"id", "pid"} with a pidfd, {"id", "error"}, and {"exit": pid, "status"}.
    """
    for name in config["preload"]:
        try:
            __import__(name)
        except ImportError as error:
            sys.exit(f"python_env: cannot preload {name!r}: {error}")
    control, own_pid, children = socket.socket(fileno=0), os.getpid(), {}
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    wake, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's to handle
    readable = open_readable(config["hidden"])
    gc.collect()
    gc.freeze()  # so that a child's collections do not touch, and copy, the shared pages

    def tell(message: dict, fds: list[int] = []) -> None:
        with contextlib.suppress(ConnectionError):  # the server's end is noticed by reading
            socket.send_fds(control, [json.dumps(message).encode() + b"\n"], fds)

    def spawn(spec: dict, fds: list[int]) -> None:
        pidfds = []
        try:
            if spec["role"] != "janitor":  # whose folder is the one that holds all the others
                os.mkdir(spec["folder"], 0o700)
            if (pid := os.fork()) == 0:
                child_main(spec, fds, readable, own_pid)
            children[pid] = spec["role"]
            if hasattr(os, "pidfd_open"):
                pidfds = [os.pidfd_open(pid)]  # before it can be reaped: it cannot be another's
            tell({"id": spec["id"], "pid": pid, "pidfd": len(pidfds)}, pidfds)
        except OSError as error:
            tell({"id": spec["id"], "error": str(error)})
        for fd in fds + pidfds:
            os.close(fd)

    def reap() -> None:
        while children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            children.pop(pid, None)
            tell({"exit": pid, "status": status})

    tell({"id": "ready", "isolation": probe()})
    pending, fds = b"", []
    while True:
        ready, _, _ = select.select([control, wake], [], [])
        if wake in ready:
            os.read(wake, 4096)
            reap()
        if control in ready:
            try:
                data, received, _, _ = socket.recv_fds(control, 65_536, 64)
            except ConnectionResetError:  # the server died with answers of ours unread
                data, received = b"", []
            if not data:
                break
            *lines, pending = (pending + data).split(b"\n")
            fds += received
            for spec in map(json.loads, lines):
                count = spec["fds"]
                spawn(spec, fds[:count])
                del fds[:count]
    for pid, role in children.items():
        if role != "janitor":  # which notices the end by itself, and clears up
            os.kill(pid, signal.SIGKILL)
    while children and select.select([wake], [], [], 10)[0]:
        os.read(wake, 4096)
        reap()
    with contextlib.suppress(OSError):
        os.rmdir(config["base"])

def child_main(spec: dict, fds: list[int], readable: list, zygote: int) -> None:
    """What a fork becomes; it never returns. The zygote's own descriptors fill 0 to 4, so the new
    ones are above; they come as control, line, and, of a worker that is heard, stdout, stderr."""
    try:
        if LINUX:
            LIBC.prctl(1, int(signal.SIGKILL), None, 0, 0)  # PR_SET_PDEATHSIG
        if os.getppid() != zygote:
            return  # it died before that
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        limits, role, folder = spec["limits"], spec["role"], spec["folder"]
        null = os.open(os.devnull, os.O_RDWR)
        for place, fd in enumerate([null, *(fds[2:] or (null, null)), *fds[:2]]):
            os.dup2(fd, place, inheritable=False)
        os.chdir(folder)
        os.environ.update(HOME=folder, TMPDIR=folder)
        rlimits = {"AS": limits["memory_mb"] << 20, "FSIZE": limits["file_bytes"],
                   "NOFILE": limits["open_files"], "NPROC": limits["processes"]}
        if role != "janitor":
            rlimits["CPU"] = limits["cpu_s"]
        os.closerange(max([4, *(fd for fd, _ in readable)]) + 1, 4096)
        lock_down(readable, folder, rlimits, filtered=role != "janitor")
        random.seed(spec["seed"])
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed(spec["seed"] % 2**32)
        control = socket.socket(fileno=3)
        if role == "janitor":
            janitor_main(control, folder, limits)
        else:
            main = judge_main if role == "judge" else worker_main
            main(control, socket.socket(fileno=4) if spec["line"] else None, limits)
    except (EOFError, OSError):
        pass  # the server hung up
    finally:
        os._exit(70)

# ═══ 5. Sandbox: the server's side of those processes ═════════════════════════════════════════════

COMMON_MODULES = (
    "math cmath re collections itertools functools heapq bisect json random string datetime decimal "
    "fractions statistics typing dataclasses copy enum abc operator textwrap contextlib time calendar "
    "hashlib struct io array queue threading unicodedata").split()
WORKER_ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",  # so that scores agree between servers
    "MALLOC_ARENA_MAX": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

class Capture:
    """One output stream of a worker: empties its pipe at once, keeps a head and a tail."""

    def __init__(self, fd: int, most: int):
        self.fd, self.half, self.loop = fd, most // 2, asyncio.get_running_loop()
        self.closed, self.total, self.head, self.tail = False, 0, b"", b""
        os.set_blocking(fd, False)
        self.loop.add_reader(fd, self.read)

    def read(self) -> bool:
        """Read once; False when there is nothing to read."""
        try:
            data = b"" if self.closed else os.read(self.fd, 65_536)
        except BlockingIOError:
            return False
        if not data and not self.closed:  # the code closed its own output: it wants a new interpreter
            self.closed = True
            self.loop.remove_reader(self.fd)
        room, self.total = self.half - len(self.head), self.total + len(data)
        self.head += data[:room]
        self.tail = (self.tail + data[room:])[-self.half:]
        return bool(data)

    def take(self) -> str:
        """All output since the last call: what a process wrote before it replied is in the pipe."""
        for _ in range(64):  # a thread may go on writing for ever
            if not self.read():
                break
        cut = self.total - len(self.head) - len(self.tail)
        said = f"\n... {cut} bytes cut ...\n".encode() if cut else b""
        text = (self.head + said + self.tail).decode(errors="replace")
        self.total, self.head, self.tail = 0, b"", b""
        return text

    def close(self) -> None:
        self.loop.remove_reader(self.fd)
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
        self.loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[int] = self.loop.create_future()  # its wait status
        self.pid, self.pidfd, self.seq, self.why = 0, -1, 0, ""  # why: the server ended it
        self.streams: list[Capture] = []
        self.line: socket.socket | None = None  # the judge's end of the line to this understudy
        self.busy = self.touched = False  # touched: the next sample looks at its threads and files
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
        if not chunk or len(self._data) > self.MOST:
            self._eof = True
            self.loop.remove_reader(self.sock)
        self._deliver()

    def _deliver(self) -> None:
        if self._waiter and not self._waiter.done():
            size = 4 + int.from_bytes(self._data[:4], "big")
            if 4 <= len(self._data) >= size:
                self._waiter.set_result(bytes(self._data[4:size]))
                del self._data[:size]
            elif self._eof:
                self._waiter.set_exception(EOFError(f"the {self.role} is gone"))

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
        if self.sock.fileno() >= 0:
            self.kill()
            self._eof = True
            self._deliver()
            self.loop.remove_reader(self.sock)
            self.loop.remove_writer(self.sock)
            for held in filter(None, (self.sock, self.line, *self.streams)):
                held.close()

    async def run(self, code: str, seconds: float) -> Outcome:
        """Run code for at most `seconds` and a grace: first interrupted, then killed."""
        timed_out, late = False, "it did not stop in time"

        def interrupt() -> None:
            nonlocal timed_out
            timed_out = True
            self.signal(signal.SIGINT)

        self.busy = self.touched = True
        self.signal(signal.SIGCONT)  # a grading may have stopped it
        self.seq += 1
        timers = [self.loop.call_later(seconds, interrupt),
                  self.loop.call_later(seconds + self.sandbox.limits.grace_s, self.kill, late)]
        try:
            await self.send({"op": "run", "code": code, "seq": self.seq})
            while (reply := await self.receive()).get("seq") != self.seq:
                pass  # an earlier step's code forged it
            exit_code, result = reply.get("exit_code"), reply.get("result")
            if type(exit_code) is not int or not isinstance(result, str | None):
                raise ValueError("a reply of another shape")
            result = result and result[:self.sandbox.limits.result_chars + 100]
            return Outcome(124 if timed_out else exit_code & 0xFF, result, timed_out)
        except (EOFError, OSError, ValueError, RecursionError):
            self.kill()
            status = os.waitstatus_to_exitcode(await self.exited)
            return Outcome(124 if timed_out else status if status >= 0 else 128 - status,
                           None, timed_out, died=True)
        except asyncio.CancelledError:
            self.kill("its client went away during a step")
            raise
        finally:
            self.busy = False
            for timer in timers:
                timer.cancel()

def worker_source() -> str:
    """Chapter 4 as a program. What `-c` put first on sys.path, the current folder, is taken off."""
    source = inspect.getsource(sys.modules[__name__])
    start, end = (source.index(f"# ═══ {chapter} ") for chapter in ("4.", "5."))
    safe_path = "import sys; sys.path[:] = filter(None, sys.path)"
    return f"{safe_path}\n{source[start:end]}\nzygote_main(json.loads(sys.argv[1]))"

def pids_max() -> int | None:
    """How many processes and threads the container may have; None: no limit is known."""
    for path in ("/sys/fs/cgroup/pids.max", "/sys/fs/cgroup/pids/pids.max"):
        with contextlib.suppress(OSError, ValueError):
            return int(Path(path).read_text())
    return None

class Sandbox:
    """The zygote and everything that it forked. One a server; it lives in one event loop.

    `preload`: more modules to import before the forks. `hidden`: paths that no worker may read.
    `isolation`: what was truly reached on this machine; it is tried out in a child at start.
    """

    def __init__(self, limits: Limits = LIMITS, preload: tuple = (), hidden: tuple = ()):
        self.limits, self.preload, self.hidden = limits, preload, hidden
        self.isolation: dict[str, Any] = {}
        self.processes: dict[int, Process] = {}
        self.spec_limits = dataclasses.asdict(limits) | {  # of processes, a reserve is the server's
            "processes": max(64, (pids_max() or 4_096) - 32)}
        self._zygote: subprocess.Popen | None = None
        self._lock, self._janitor_lock, self._serial, self._lost = asyncio.Lock(), asyncio.Lock(), 0, True

    async def start(self) -> None:
        """Start the zygote, unless it runs already. Raises FactoryError when it does not start."""
        async with self._lock:
            if not self._lost:
                return
            await self._stop()
            self.base = os.path.realpath(tempfile.mkdtemp(prefix="python_env-"))
            own = Path(os.path.realpath(__file__))
            hidden = [own, *own.parent.glob(f"__pycache__/{own.stem}.*"), *self.hidden]
            config = {"preload": [*COMMON_MODULES, *self.preload], "base": self.base,
                      "hidden": [os.path.realpath(path) for path in hidden]}
            self._control, theirs = socket.socketpair()
            self._control.setblocking(False)
            with theirs:
                self._zygote = subprocess.Popen(
                    [sys.executable, "-s", "-c", worker_source(), json.dumps(config)], cwd="/",
                    stdin=theirs, stdout=subprocess.DEVNULL, env=WORKER_ENVIRONMENT, start_new_session=True)
            loop = asyncio.get_running_loop()
            self._answers: dict[Any, tuple] = {"ready": (loop.create_future(), None)}
            self._pending, self._fds, self._lost = b"", collections.deque(), False
            loop.add_reader(self._control, self._read)
            ready = await self._answers["ready"][0]
            levels = ("seccomp", "landlock", "no_new_privs", "rlimits")
            self.isolation = ready["isolation"] | {"full": all(map(ready["isolation"].get, levels))}
            self._janitor = await self._spawn("janitor", 0, False, None)
            self._sampler = asyncio.create_task(self._sample())

    def _read(self) -> None:
        """Answers of the zygote, which is trusted: it runs no candidate code."""
        try:
            data, fds, _, _ = socket.recv_fds(self._control, 65_536, 64)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        self._fds.extend(fds)
        *lines, self._pending = (self._pending + data).split(b"\n")
        for message in map(json.loads, lines):
            if "exit" in message:
                self._ended(self.processes.pop(message["exit"]), message["status"])
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
        if not data:
            self._zygote_lost()

    def _ended(self, process: Process, status: int) -> None:
        process.exited.set_result(status)
        if process.pidfd >= 0:
            os.close(process.pidfd)
            process.pidfd = -1
        if process.role == "janitor":
            self._zygote_lost()  # nothing may be spawned without it: all begins anew
        elif not self._lost:
            asyncio.ensure_future(self._ask_janitor({"op": "clear", "folder": process.folder}))

    async def _ask_janitor(self, message: dict) -> None:
        async with self._janitor_lock:
            with contextlib.suppress(OSError):
                await self._janitor.send(message)

    def _zygote_lost(self) -> None:
        if not self._lost:
            self._lost = True
            asyncio.get_running_loop().remove_reader(self._control)
            self._control.close()  # if it lives, it ends all its children at this end of file
            for future, _ in self._answers.values():
                if not future.done():
                    future.set_exception(FactoryError("the zygote, which starts interpreters, died"))
            while self.processes:
                _, process = self.processes.popitem()
                process.kill("the sandbox had to be started again")
                self._ended(process, signal.SIGKILL)

    async def spawn(self, role: str, seed: int = 0, *, streams: bool = False,
                    line: socket.socket | None = None) -> Process:
        """Fork a "worker" or a "judge". `streams`: capture its output; `line`: its end of a line.

        Raises FactoryError when it cannot be had: no more processes, memory or descriptors.
        """
        await self.start()
        return await self._spawn(role, seed, streams, line)

    async def _spawn(self, role: str, seed: int, streams: bool, line: socket.socket | None) -> Process:
        self._serial += 1
        folder = f"{role}{self._serial}" if role != "janitor" else ""
        process, given, loop = None, [], asyncio.get_running_loop()
        try:
            ours, theirs = socket.socketpair()
            process = Process(self, role, folder, ours)
            given = [theirs.detach(), os.dup(line.fileno()) if line else os.open(os.devnull, os.O_RDWR)]
            for _ in range(2 * streams):
                read, write = os.pipe()
                given.append(write)
                process.streams.append(Capture(read, self.limits.output_bytes))
            spec = {"id": self._serial, "role": role, "seed": seed, "fds": len(given), "line": bool(line),
                    "folder": os.path.join(self.base, folder), "limits": self.spec_limits}
            answer = loop.create_future()
            self._answers[self._serial] = answer, process
            data = json.dumps(spec).encode() + b"\n"
            while True:
                try:
                    sent = socket.send_fds(self._control, [data], given)
                    break
                except BlockingIOError:
                    await asyncio.sleep(0.005)  # the zygote is behind with its forks
            await loop.sock_sendall(self._control, data[sent:])
            if error := (await answer).get("error"):
                raise OSError(error)
            return process
        except (OSError, FactoryError) as error:
            if process:
                process.close()
            raise FactoryError(f"no {role} process could be started: {error}") from None
        finally:
            for fd in given:
                os.close(fd)

    async def _sample(self) -> None:
        """End what grew too many threads (root has no RLIMIT_NPROC) or files."""
        while True:
            await asyncio.sleep(self.limits.sample_s)
            touched = [process for process in self.processes.values() if process.touched]
            for process in touched:
                process.touched = process.busy
                with contextlib.suppress(OSError):
                    if len(os.listdir(f"/proc/{process.pid}/task")) > self.limits.threads:
                        process.kill(f"it had more than {self.limits.threads} threads")
            if touched:
                folders = {process.folder: process for process in touched}
                await self._ask_janitor({"op": "measure", "folders": [*folders]})
                with contextlib.suppress(EOFError, ValueError):
                    for name in (await self._janitor.receive()).get("over", []):
                        folders[name].kill("its files grew over the limit")

    async def close(self) -> None:
        """End every process and clear every folder; spawn() would start it all again."""
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
        # It ends by itself once its janitor has cleared all; what takes longer may outlive us.
        with contextlib.suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(zygote.wait, 0.5)

# ═══ 6. Environment ═══════════════════════════════════════════════════════════════════════════════

A = typing.TypeVar("A", bound=Action)
O = typing.TypeVar("O", bound=Observation)

class Environment(typing.Generic[A, O]):
    """Subclass it to write an environment; the server makes one for each session.

    The methods may be coroutines, which run inline in the server's event loop, or plain functions,
    which run in a thread. reset() may take other keywords as well: a client's reset(**options)
    brings them. Raise InvalidRequest for a wrong argument, ExecutionError for a bad moment; neither
    ends the session. The server sees to the order of calls: no step before a reset or after done.
    """

    def reset(self, seed: int | None = None, episode_id: str | None = None) -> O:
        """Begin an episode and return its first observation."""
        raise ExecutionError(f"{type(self).__name__} does not define reset()")

    def step(self, action: A) -> O:
        """Carry out one action; the observation tells the reward and whether the episode is done."""
        raise ExecutionError(f"{type(self).__name__} does not define step()")

    def state(self) -> State:
        """The episode's state; asked for at any time, before the first reset too."""
        return State()

    def close(self) -> None:
        """Give back what the session holds; called once, at its end."""

@dataclass
class ResetRequest:
    """What reset() takes of every environment; other keys are the environment's own."""

    seed: int | None = described("For a repeatable episode", None, ge=0)
    episode_id: str | None = described("Identifier of the episode", None, max_length=255)

@dataclass
class PythonResetRequest(ResetRequest):
    """What PythonEnvironment takes besides the columns of an inline task."""

    task_id: str | int | None = described("One of the server's tasks, or 'repl'", None)
    max_steps: int | None = described("Fewer steps than the server's limit", None, ge=1)
    reward: typing.Literal["score", "gain"] | None = described("gain: improvement only", None)

@dataclass
class Verdict:
    """What a grading found: the counts and, in a sentence, all else that the agent is told."""

    passed: int = 0
    solved: bool = False
    sentence: str = ""

class PythonEnvironment(Environment[PythonAction, PythonObservation]):
    """A session of Python code in an interpreter of its own, judged by hidden tests.

    `turn` counts the episodes of all sessions, so that tasks rotate where nobody chooses one.
    """

    def __init__(self, sandbox: Sandbox, tasks: dict[str, Task], turn: typing.Iterator[int]):
        self.sandbox, self.limits, self.tasks, self.turn = sandbox, sandbox.limits, tasks, turn
        self.worker: Process | None = None
        self.understudy: asyncio.Task[Process] | None = None
        self._begin(REPL, PythonResetRequest())
        self.episode_id = None

    def _begin(self, task: Task, options: PythonResetRequest) -> None:
        self.task, self.gain = task, options.reward == "gain"
        most = self.limits.task_steps if task.tests else None
        self.max_steps = min(filter(None, (most, options.max_steps)), default=None)
        self.single = bool(task.tests) and self.max_steps == 1  # one process runs and is judged
        self.seed = secrets.randbits(32) if options.seed is None else options.seed
        self.episode_id = options.episode_id or secrets.token_hex(8)
        self.step_count, self.best, self.done, self.news = 0, 0.0, False, ""
        self.transcript: list[str] = []  # the code that every grading runs again

    def _choose(self, options: PythonResetRequest, row: dict[str, Any]) -> Task:
        """An inline task, the one that is named, or the next in turn (by seed, a repeatable one)."""
        if any(row.get(key) is not None for key in ("tests", "test", "test_list")):
            return Task.from_row(row)
        names = [*self.tasks]
        if options.task_id is None:
            seeded = options.seed is not None
            turn = random.Random(options.seed).randrange(2**32) if seeded else next(self.turn)
            return self.tasks[names[turn % len(names)]]
        task = {REPL.task_id: REPL, **self.tasks}.get(name := str(options.task_id)[:200])
        if not task:
            near = difflib.get_close_matches(name, [*names, REPL.task_id], 1, 0)[0]
            words = f"no task {name!r}; did you mean {near!r}? GET /tasks lists them, tests= brings one"
            entry = {"type": "unknown_task", "loc": ["task_id"], "msg": words, "input": name}
            raise InvalidRequest(f"task_id: {words}", [entry])
        return task

    async def reset(self, /, **row: Any) -> PythonObservation:
        """Begin an episode in a new interpreter. Keys that mean nothing here are ignored, as
        trainers pass every column of a row. Raises InvalidRequest, FactoryError."""
        known = _fields(PythonResetRequest)
        options = validate(PythonResetRequest, {key: row[key] for key in known if key in row})
        task = self._choose(options, row)
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

    async def _spawn(self, streams: bool, line: bool) -> Process:
        if not line:
            return await self.sandbox.spawn("worker", self.seed, streams=streams)
        ours, theirs = socket.socketpair()
        with theirs, contextlib.ExitStack() as held:
            held.enter_context(ours)
            process = await self.sandbox.spawn("worker", self.seed, streams=streams, line=theirs)
            held.pop_all()  # it came to be, and its close() sees to our end
        process.line = ours
        return process

    def _prepare(self) -> None:
        """Begin the next understudy: a fresh worker that replays the transcript ahead of time."""
        if self.task.tests and not self.single:
            self.understudy = asyncio.create_task(self._replay([self.task.setup, *self.transcript]))

    async def _replay(self, transcript: list[str]) -> Process:
        process = await self._spawn(streams=False, line=True)
        try:
            end = time.monotonic() + self.limits.replay_s
            for code in filter(None, transcript):
                outcome = await process.run(code, max(0.0, end - time.monotonic()))
                if outcome.died or outcome.timed_out:
                    process.kill("the earlier steps took too long, or died, when they were run again")
                    break
        except BaseException:
            process.close()
            raise
        return process

    def _drop_understudy(self) -> None:
        task, self.understudy = self.understudy, None
        if task:  # which may still be on its way
            task.cancel()
            task.add_done_callback(lambda t: t.cancelled() or t.exception() or t.result().close())

    def _release(self) -> None:
        self._drop_understudy()
        if self.worker:
            self.worker.close()
            self.worker = None

    def _check(self, action: PythonAction, timeout_s: float | None) -> float:
        """The seconds that the action gets. Raises InvalidRequest when it asks for too much."""
        seconds = action.timeout_s or timeout_s or self.limits.step_s
        sizes = [len(code.encode(errors="surrogatepass")) for code in (*self.transcript, action.code)]
        for what, value, most in (("timeout_s", seconds, self.limits.step_max_s),
                                  ("bytes of code", sizes[-1], self.limits.code_bytes),
                                  ("bytes of the episode's code", sum(sizes), self.limits.transcript_bytes)):
            if value > most:
                raise InvalidRequest(f"{value:g} {what} asked for; the limit is {most:g}")
        return seconds

    async def step(self, action: PythonAction, timeout_s: float | None = None) -> PythonObservation:
        """Run the action's code and, where the task has tests, judge all steps so far.

        `timeout_s` counts where the action has none. Raises ExecutionError when the grading itself
        failed: a fault of ours must not teach a model anything, so there is no reward then.
        """
        seconds, notes = self._check(action, timeout_s), [self.news]
        if self.worker is None or self.worker.exited.done():  # while the agent was thinking
            why = self.worker.why if self.worker else ""
            notes.append(f"The interpreter is new: {why or 'the old one had died'}.")
            await self._new_worker()
        elif not self.understudy:
            self._prepare()
        self.step_count, self.news = self.step_count + 1, ""
        deadline, worker, verdict, grading = time.monotonic() + seconds, self.worker, Verdict(), None
        held = asyncio.get_running_loop().create_future()
        try:
            if self.single:
                held.set_result(None)
                outcome, texts, verdict = await self._grade(worker, action.code, deadline, held)
            else:
                if self.task.tests:
                    grade = self._grade(self.understudy, action.code, deadline, held)
                    grading = asyncio.create_task(grade)
                outcome = await worker.run(action.code, seconds)
                texts = [stream.take() for stream in worker.streams]
                if not (outcome.died or outcome.timed_out):
                    self.transcript += [action.code] if self.task.tests else []
                    if grading:
                        # Held until its next step, it cannot watch the understudy meet the tests.
                        worker.signal(signal.SIGSTOP)
                        held.set_result(None)
                        verdict = (await grading)[2]
        finally:
            if grading:
                grading.cancel()
                self._drop_understudy()
        if outcome.timed_out:
            notes.append(f"The code timed out after {seconds:g} s; gradings leave it out.")
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
            done=self.done, reward=reward, stdout=texts[0], stderr=texts[1], result=outcome.result,
            exit_code=outcome.exit_code, task_id=self.task.task_id, tests_passed=verdict.passed,
            tests_total=self.task.tests_total, feedback=" ".join(filter(None, [*notes, verdict.sentence])))

    async def _grade(self, source: Any, code: str, deadline: float, held: asyncio.Future) -> tuple:
        """Run the step in `source` (a process, or the task that brings it) and have it judged,
        once `held` says that the agent's interpreter stands still.

        Returns the outcome, the texts of its streams, and the verdict. It is the end of `source`.
        """
        process = judge = running = None
        try:
            process = await source if isinstance(source, asyncio.Task) else source
            running = asyncio.create_task(process.run(code, max(0.0, deadline - time.monotonic())))
            judge = await self.sandbox.spawn("judge", self.seed, line=process.line)
            outcome = await running
            texts = [stream.take() for stream in process.streams]
            await held
            if outcome.died or outcome.timed_out:
                why = process.why or "the code died, or timed out, when it was run again"
                return outcome, texts, Verdict(sentence=f"Not judged: {why}.")
            return outcome, texts, await self._judge(process, judge, deadline)
        except (FactoryError, EOFError, OSError, ValueError) as error:
            raise ExecutionError(f"the grading failed, so this step has no reward: {error}") from None
        finally:
            if running:
                running.cancel()
            for used in filter(None, (process, judge)):
                used.close()

    async def _judge(self, process: Process, judge: Process, deadline: float) -> Verdict:
        task, total, late = self.task, self.task.tests_total, "judging took too long"
        seconds = max(deadline - time.monotonic(), self.limits.grading_min_s)
        process.busy = process.touched = True
        await process.send({"op": "serve"})
        await judge.send({"tests": task.tests, "helpers": task.helpers, "names": [*task.names],
                          "classes": [*task.classes], "seconds": seconds})
        timer = judge.loop.call_later(seconds + 0.5, judge.kill, late)
        try:
            report = await judge.receive()
        except EOFError:
            if judge.why != late:
                raise
            report = {"timed_out": True}
        finally:
            timer.cancel()
        # The tests may be a client's, so the judge's word is checked as well.
        solved, passed = report.get("solved") is True, report.get("passed")
        passed = total if solved else min(passed, total - 1) if type(passed) is int else 0
        sentence = f"{passed} of {total} tests passed"
        if report.get("timed_out"):
            sentence += "; the time was up before the rest"
        elif report.get("error") in EXCEPTIONS:
            sentence += f"; the first that failed raised {report['error']}"
        return Verdict(max(passed, 0), solved, sentence + ".")

    async def state(self) -> PythonState:
        return PythonState(
            episode_id=self.episode_id, step_count=self.step_count, task_id=self.task.task_id,
            max_steps=self.max_steps, done=self.done, best_reward=self.best)

    async def close(self) -> None:
        self._release()

# ═══ 7. Protocol: bytes in, events and bytes out; nothing here waits ══════════════════════════════

# HTTP/1.1 (RFC 9112: bare section numbers are its own). Where it lets us mend or refuse, we
# refuse: a proxy in front may mend differently, and two readings of the same bytes are how
# requests are smuggled. So a bare LF ends no line (2.2), and a SINGLE header never comes twice.

NEED_MORE, EXPECT_CONTINUE, CLOSED = Signal = Enum("Signal", "NEED_MORE EXPECT_CONTINUE CLOSED")
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"  # the answer to EXPECT_CONTINUE
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

    def next_event(self) -> "Request | Signal":
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

# ─── What the messages mean ───

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

def fault_of(error: Exception) -> Fault:
    return next(fault for kind, fault in FAULTS.items() if isinstance(error, kind))

# What a call does to an episode: the state after it, or the words of an ExecutionError. A step's
# observation decides between running and done; "state" is always allowed and changes nothing.
LIFECYCLE = {
    ("no episode", "reset"): ("running", ""),
    ("running", "reset"): ("running", ""),
    ("done", "reset"): ("running", ""),
    ("no episode", "step"): ("no episode", "there is no episode yet: call reset() first"),
    ("running", "step"): ("running", ""),
    ("done", "step"): ("done", "the episode is over: call reset() to begin another"),
}

def parse_json(text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        place, why = getattr(error, "pos", 0), getattr(error, "msg", "not readable")
        entry = {"type": "json_invalid", "loc": ["body", place], "msg": "JSON decode error",
                 "input": {}, "ctx": {"error": why}}
        raise InvalidJSON(f"not JSON, at character {place}: {why}", [entry]) from None

def parse_message(text: str | bytes) -> tuple[str, dict]:
    """A WebSocket message's type and data."""
    message = parse_json(text)
    if not isinstance(message, dict):
        raise InvalidJSON(f"expected a JSON object, got {type(message).__name__}")
    kind, data = message.get("type"), message.get("data")
    if kind not in ("reset", "step", "state", "close"):
        raise UnknownType(f"type {_echo(kind)!r}: expected 'reset', 'step', 'state' or 'close'")
    if not isinstance(data, dict) and (data is not None or kind == "step"):
        raise InvalidRequest(f"data: expected an object, got {_echo(data)!r}")
    return kind, data or {}

def to_json(message: Any) -> bytes:
    return json.dumps(message, separators=(",", ":"), allow_nan=False).encode()

def observation_data(observation: Observation) -> dict[str, Any]:
    """An observation as it travels: reward and done beside it, not in it."""
    body = to_dict(observation)
    extra = {"metadata": observation.metadata} if observation.metadata else {}
    return {"observation": body, "reward": body.pop("reward"), "done": body.pop("done"), **extra}

def error_data(error: Exception) -> dict[str, Any]:
    """What a peer is told; the words of an error that we did not raise are for the log alone."""
    words = f"the environment raised {type(error).__name__}; the server's log has more"
    data = {"message": str(error) if isinstance(error, PythonEnvError) else words}
    data["code"] = fault_of(error).code
    return data | ({"errors": error.errors} if getattr(error, "errors", None) else {})

@dataclass
class StepRequest:
    """The body of POST /step; other keys are ignored."""

    action: dict[str, Any] = described("The action, as GET /schema describes it")
    timeout_s: float | None = described("Seconds, where the action names none", None, gt=0)
    request_id: str | None = described("Anything; ignored", None, max_length=255)

class Reply:
    """A response to be: `body` is bytes, or anything that becomes JSON."""

    def __init__(self, body: Any, status: int = 200, headers: Any = (), kind: str = "application/json"):
        self.body = body if isinstance(body, bytes) else to_json(body)
        self.status, self.headers, self.content_type = status, headers, kind

def error_reply(error: Exception) -> Reply:
    if isinstance(error, HTTPError):
        return Reply({"detail": str(error)}, error.status, [*error.headers.items()])
    data, status = error_data(error), fault_of(error).status
    if status == 422:
        entry = {"type": "value_error", "loc": ["body"], "msg": data["message"], "input": None}
        return Reply({"detail": data.get("errors", [entry])}, 422)
    headers = [("Retry-After", "1")] if status == 503 else []
    return Reply({"detail": data["message"], "code": data["code"]}, status, headers)

def json_object(body: bytes) -> dict[str, Any]:
    if not body:
        entry = {"type": "missing", "loc": ["body"], "msg": "Field required", "input": None}
        raise InvalidRequest("the body is missing: expected a JSON object", [entry])
    return validate(dict[str, Any], parse_json(body), ("body",))

def known_fields(model: type, data: dict[str, Any], loc: tuple = ()) -> Any:
    """`data` as the dataclass `model`, strictly, but for other keys, which are passed over."""
    return validate(model, {key: data[key] for key in _fields(model) if key in data}, loc)

def parse_rpc(body: bytes) -> tuple[Any, str | None, dict]:
    """The id, the method (None: an answer is not wanted) and the params of a JSON-RPC request."""
    try:
        message = parse_json(body)
    except InvalidJSON as error:
        raise RPCError(None, -32700, f"Parse error: {error}") from None
    if not isinstance(message, dict) or message.get("jsonrpc") != "2.0":
        raise RPCError(None, -32600, "Invalid request: expected an object with jsonrpc '2.0'")
    key, method, params = message.get("id"), message.get("method"), message.get("params")
    if not isinstance(method, str) or not isinstance(key, str | int | float | None):
        raise RPCError(None, -32600, "Invalid request: expected a method and an id")
    if not isinstance(params, dict | None):
        raise RPCError(key, -32602, "Invalid params: expected an object")
    return key, method if "id" in message else None, params or {}

class RPCError(PythonEnvError):
    """A JSON-RPC 2.0 error; it travels with HTTP status 200."""

    def __init__(self, key: Any, code: int, message: str):
        super().__init__(message)
        error = {"code": code, "message": message, "data": None}
        self.reply = Reply({"jsonrpc": "2.0", "id": key, "error": error})

def openapi(service: Any) -> dict[str, Any]:
    """The OpenAPI document; `openenv validate` reads the version and the routes off it."""
    def content(schema: dict) -> dict:
        return {"content": {"application/json": {"schema": schema}}}

    result = {"type": "object", "properties": {"observation": json_schema(service.observation),
              "reward": {"type": ["number", "null"]}, "done": {"type": "boolean"}}}
    step = json_schema(StepRequest)
    step["properties"]["action"] = json_schema(service.action)
    inputs = {"/reset": json_schema(ResetRequest), "/step": step, "/mcp": {"type": "object"}}
    outputs = {"/reset": result, "/step": result, "/state": json_schema(service.state)}
    paths: dict = {}
    for path, methods in ROUTES.items():
        for method in methods:
            operation = {"responses": {"200": {"description": "OK"} | content(outputs.get(path, {}))}}
            if path in inputs:
                operation["requestBody"] = content(inputs[path] | {"additionalProperties": True})
            paths.setdefault(path, {})[method.lower()] = operation
    info = {"title": service.name, "description": service.description, "version": "1.0.0"}
    return {"openapi": "3.1.0", "info": info, "paths": paths}

# ═══ 8. Server ════════════════════════════════════════════════════════════════════════════════════

class Session:
    """One environment and its place in the lifecycle. Its calls run one at a time, in order."""

    def __init__(self, environment: Environment, action: type[Action], pool: Any):
        self.environment, self.action, self.pool = environment, action, pool
        self.id, self.socket = secrets.token_urlsafe(16), None  # the Connection that it came over
        self.stage, self.used, self.calls = "no episode", time.monotonic(), 0
        self.lock = asyncio.Lock()

    async def call(self, kind: str, data: dict, **keywords: Any) -> dict[str, Any]:
        """Carry out a reset, step or state; returns what the reply's `data` shall be."""
        self.calls += 1
        try:
            async with self.lock:
                if kind == "state":
                    return to_dict(await self._invoke("state"))
                after, refusal = LIFECYCLE[self.stage, kind]
                if refusal:
                    raise ExecutionError(refusal)
                if kind == "step":
                    observation = await self._invoke("step", validate(self.action, data), **keywords)
                else:
                    known_fields(ResetRequest, data, ("body",))
                    observation = await self._invoke("reset", **data)
                self.stage = "done" if observation.done else after
                return observation_data(observation)
        finally:
            self.calls -= 1
            self.used = time.monotonic()

    async def _invoke(self, name: str, *args: Any, **keywords: Any) -> Any:
        method = getattr(self.environment, name)
        if not callable(method):  # OpenEnv's own environments have `state` as a property
            return method
        if keywords:
            takes = inspect.signature(method).parameters.values()
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes):
                names = {parameter.name for parameter in takes}
                keywords = {key: value for key, value in keywords.items() if key in names}
        if inspect.iscoroutinefunction(method):
            return await method(*args, **keywords)
        call = functools.partial(method, *args, **keywords)
        return await asyncio.get_running_loop().run_in_executor(self.pool, call)

    async def close(self) -> None:
        try:
            await self._invoke("close")
        except Exception:
            log.exception("session %s: its environment's close() failed", self.id[:6])

@dataclass(kw_only=True)
class Service:
    """What a server serves, and to whom. `action`, `observation` and `state` are the models."""

    factory: typing.Callable[[], Environment]
    action: type[Action]
    observation: type[Observation] = Observation
    state: type[State] = State
    name: str = "python_env"
    description: str = "An OpenEnv environment"
    limits: Limits = LIMITS
    token: str | None = None  # None: nobody has to send one
    allow_origin: tuple[str, ...] = ()  # pages of other sites, "*" for all
    allow_host: tuple[str, ...] = ()  # Host names beside loopback's own, when bound to loopback
    tasks: dict[str, Task] = field(default_factory=dict)
    isolation: dict[str, Any] = field(default_factory=dict)

class Server:
    """The pump around environments and protocol: `await start()`, `port`, `await close()`."""

    def __init__(self, service: Service):
        self.service, self.limits = service, service.limits
        self.sessions: dict[str, Session] = {}
        self.connections: set[Connection] = set()
        self.pool = concurrent.futures.ThreadPoolExecutor(self.limits.max_sessions, "environment")
        self.port, self.loopback, self.closing = 0, True, False

    async def start(self, host: str = "127.0.0.1", port: int = 8000) -> None:
        """Listen; port 0 takes any free one. Raises OSError when the address cannot be had."""
        loop = asyncio.get_running_loop()
        self.listener = await loop.create_server(lambda: Connection(self), host, port, backlog=512)
        addresses = [sock.getsockname() for sock in self.listener.sockets]
        self.port, self.loopback = addresses[0][1], all(is_loopback(a[0]) for a in addresses)
        self.housekeeper = asyncio.create_task(self._keep_house())

    async def close(self) -> None:
        """Let short steps finish, say 1001 to the WebSockets, close every session."""
        self.closing = True
        self.listener.close()
        self.housekeeper.cancel()
        end = time.monotonic() + self.limits.drain_s
        while any(session.calls for session in self.sessions.values()) and time.monotonic() < end:
            await asyncio.sleep(0.01)
        for connection in [*self.connections]:
            connection.end(1001)
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
            victim = min(idle, key=lambda session: session.used)
            asyncio.ensure_future(self.sessions.pop(victim.id).close())
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
            raise SessionError(f"no session {key[:40]!r}: closed, or idle too long; reset opens one")
        return self.sessions[key]

    async def drop(self, session: Session) -> None:
        if self.sessions.pop(session.id, None):
            await session.close()
            log.info("session %s closed", session.id[:6])

    async def _keep_house(self) -> None:
        """End idle sessions and connections."""
        while True:
            await asyncio.sleep(self.limits.house_s)
            now = time.monotonic()
            for session in [*self.sessions.values()]:
                most = self.limits.ws_idle_s if session.socket else self.limits.http_idle_s
                if not session.calls and now - session.used > most:
                    if session.socket:
                        session.socket.end(1001)
                    await self.drop(session)
            for connection in [*self.connections]:
                connection.check_time(now)

    # One handler a route: async (request) -> Reply

    async def reply(self, request: Request) -> Reply:
        """The answer to a request, errors included."""
        try:
            self.admit(request)
            require(methods := ROUTES.get(request.path), 404, f"no route {request.path[:100]!r}: see /docs")
            handler = methods.get("GET" if request.method == "HEAD" else request.method)
            if not handler:
                raise HTTPError(405, f"{request.path} takes {', '.join(methods)}", {"Allow": ", ".join(methods)})
            return await handler(self, request)
        except RPCError as error:
            return error.reply
        except Exception as error:
            if not isinstance(error, PythonEnvError):
                log.exception("%s %s failed", request.method, request.path)
            return error_reply(error)

    def admit(self, request: Request) -> None:
        """Refuse other sites' pages, host names bound to our address by others, and strangers."""
        service, host = self.service, request.headers.get("host", "").lower()
        name = re.sub(r":\d*$", "", host).strip("[]")
        if self.loopback and not (is_loopback(name) or name in service.allow_host):
            raise HTTPError(403, f"Host {name[:100]!r} is not served here; --allow-host admits it")
        origin = request.headers.get("origin")
        own = origin is None or origin.lower().partition("://")[2] == host
        if not own and not {origin, "*"} & {*service.allow_origin}:
            raise HTTPError(403, f"Origin {origin[:100]!r} is another site; --allow-origin admits it")
        if service.token and request.path != "/health":
            given = request.headers.get("authorization", "").encode("latin-1")
            if not hmac.compare_digest(given, f"Bearer {service.token}".encode()):
                raise HTTPError(401, "send 'Authorization: Bearer TOKEN'", {"WWW-Authenticate": "Bearer"})

    async def get_health(self, request: Request) -> Reply:
        return Reply({"status": "healthy", "sessions": len(self.sessions),
                      "max_sessions": self.limits.max_sessions, "isolation": self.service.isolation})

    async def get_metadata(self, request: Request) -> Reply:
        service = self.service
        return Reply({"name": service.name, "description": service.description, "version": __version__,
                      "readme_content": None, "author": None, "documentation_url": None,
                      "isolation": service.isolation, "tasks": [*service.tasks]})

    async def get_schema(self, request: Request) -> Reply:
        names = "action", "observation", "state"
        return Reply({name: json_schema(getattr(self.service, name)) for name in names})

    async def get_tasks(self, request: Request) -> Reply:
        names = "task_id", "difficulty", "prompt", "tests_total"
        tasks = self.service.tasks.values()
        return Reply({"tasks": [{name: getattr(task, name) for name in names} for task in tasks]})

    async def get_openapi(self, request: Request) -> Reply:
        return Reply(openapi(self.service))

    async def get_docs(self, request: Request) -> Reply:
        page = PAGE.replace("$NAME", html.escape(self.service.name)).encode()
        return Reply(page, 200, [("Content-Security-Policy", PAGE_POLICY)], "text/html; charset=utf-8")

    async def get_elsewhere(self, request: Request) -> Reply:
        return Reply({"detail": "see /docs"}, 307, [("Location", "/docs")])

    async def get_ws(self, request: Request) -> Reply:
        if not request.is_upgrade:
            raise HTTPError(426, "/ws speaks WebSocket", {"Upgrade": "websocket"})
        return Reply(b"", 101)

    def session_of(self, request: Request) -> Session | None:
        """The session that a request names by header or cookie; None when it names none."""
        key = request.headers.get("x-session-id") or request.cookie("session_id")
        return self.find_session(key) if key else None

    async def get_state(self, request: Request) -> Reply:
        session = self.session_of(request)
        return Reply(await session.call("state", {}) if session else to_dict(State()))

    async def post_reset(self, request: Request) -> Reply:
        body, session = json_object(request.body or b"{}"), None
        with contextlib.suppress(SessionError):  # a cookie may outlive its session
            session = self.session_of(request)
        session = session or self.open_session()
        try:
            data = await session.call("reset", body)
        except BaseException:
            if session.stage == "no episode":
                await self.drop(session)  # nobody knows its id
            raise
        cookie = f"session_id={session.id}; Path=/; HttpOnly; SameSite=Strict"
        headers = [("X-Session-Id", session.id), ("Set-Cookie", cookie)]
        return Reply({"metadata": None, **data}, 200, headers)

    async def post_step(self, request: Request) -> Reply:
        step = known_fields(StepRequest, json_object(request.body), ("body",))
        if session := self.session_of(request):
            data = await session.call("step", step.action, timeout_s=step.timeout_s)
            return Reply({"metadata": None, **data}, 200, [("X-Session-Id", session.id)])
        return Reply({"metadata": None, **await self.step_once(step.action, step.timeout_s)})

    async def step_once(self, action: dict, timeout_s: float | None = None) -> dict[str, Any]:
        """A step without a session: in an episode of its own (a repl, for Python)."""
        validate(self.service.action, action)  # before a process is started for it
        session = self.open_session()
        try:
            await session.call("reset", {"task_id": REPL.task_id})
            return await session.call("step", action, timeout_s=timeout_s)
        finally:
            await self.drop(session)

    async def post_mcp(self, request: Request) -> Reply:
        """JSON-RPC 2.0, stateless: what MCP clients need to find and to call the one tool."""
        key, method, params = parse_rpc(request.body)
        if method is None:
            return Reply(b"", 202)  # a notification
        tools = [] if self.service.action is not PythonAction else [{
            "name": "run_python", "description": "Run Python code in a fresh, isolated interpreter",
            "inputSchema": json_schema(PythonAction)}]
        if method == "initialize":
            known = "2025-06-18", "2025-03-26", "2024-11-05"
            version = params.get("protocolVersion")
            result: dict = {"protocolVersion": version if version in known else known[0],
                            "capabilities": {"tools": {}},
                            "serverInfo": {"name": self.service.name, "version": __version__}}
        elif method in ("ping", "tools/list"):
            result = {"tools": tools} if method == "tools/list" else {}
        elif method == "tools/call" and params.get("name") in [tool["name"] for tool in tools]:
            try:
                data = (await self.step_once(params.get("arguments") or {}))["observation"]
            except InvalidRequest as error:
                raise RPCError(key, -32602, str(error)) from None
            text = {"type": "text", "text": to_json(data).decode()}
            result = {"content": [text], "structuredContent": data, "isError": data["exit_code"] != 0}
        elif method == "tools/call":
            raise RPCError(key, -32602, f"Unknown tool: {_echo(params.get('name'))!r}")
        else:
            raise RPCError(key, -32601, f"Method not found: {method[:100]}")
        return Reply({"jsonrpc": "2.0", "id": key, "result": result})

ROUTES: dict[str, dict[str, Any]] = {
    "/": {"GET": Server.get_elsewhere}, "/web": {"GET": Server.get_elsewhere},
    "/docs": {"GET": Server.get_docs}, "/health": {"GET": Server.get_health},
    "/metadata": {"GET": Server.get_metadata}, "/schema": {"GET": Server.get_schema},
    "/tasks": {"GET": Server.get_tasks}, "/openapi.json": {"GET": Server.get_openapi},
    "/state": {"GET": Server.get_state}, "/ws": {"GET": Server.get_ws},
    "/reset": {"POST": Server.post_reset}, "/step": {"POST": Server.post_step},
    "/mcp": {"POST": Server.post_mcp},
}

def is_loopback(name: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(name).is_loopback
    return name == "localhost" or name.endswith(".localhost")

class Connection(asyncio.Protocol):
    """One TCP connection: HTTP requests one after another, or a WebSocket for the rest of it."""

    def __init__(self, server: Server):
        self.server, self.limits = server, server.limits
        self.reader, self.since = RequestReader(), time.monotonic()
        self.task: asyncio.Task | None = None  # what answers
        self.arrived, self.writable = asyncio.Event(), asyncio.Event()
        self.socket: ServerProtocol | None = None
        self.messages: collections.deque[bytes] = collections.deque()
        self.fragments, self.binary = bytearray(), False

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.writable.set()
        if len(self.server.connections) >= self.limits.connections:
            return transport.abort()
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self.server.connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self.server.connections.discard(self)
        if self.task:
            self.task.cancel()  # nobody waits for the step any more

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        if self.socket:
            return self.receive_frames(data)
        if not self.task and not self.reader.started:
            self.since = time.monotonic()  # the first byte of a request starts its clock
        try:
            self.reader.feed(data)
        except HTTPError as error:
            return self.refuse(error)
        self.next_request()

    def eof_received(self) -> bool:
        if self.socket:
            return False
        self.reader.feed_eof()
        self.next_request()
        return True  # the answer may still be on its way: half-closed is a legal way to ask

    def next_request(self) -> None:
        if self.task or self.transport.is_closing():
            return
        try:
            while (event := self.reader.next_event()) is EXPECT_CONTINUE:
                self.transport.write(CONTINUE)
        except HTTPError as error:
            return self.refuse(error)
        if event is CLOSED:
            self.transport.close()
        elif event is not NEED_MORE:
            self.task = asyncio.create_task(self.serve_request(event))

    def refuse(self, error: HTTPError) -> None:
        """Answer what cannot be parsed any further, and hang up."""
        reply = error_reply(error)
        self.transport.write(encode_response(reply.status, reply.body, keep_alive=False))
        self.transport.close()

    def check_time(self, now: float) -> None:
        """408 for a slow sender, the end for an idle connection."""
        if not self.task and self.reader.started and now - self.since > self.limits.request_s:
            self.refuse(HTTPError(408, f"the request was not whole after {self.limits.request_s:g} s"))
        elif not self.task and now - self.since > self.limits.keep_alive_s:
            self.transport.close()

    async def serve_request(self, request: Request) -> None:
        reply = await self.server.reply(request)
        if reply.status == 101:
            return await self.serve_socket(request)
        keep = request.keep_alive and not self.server.closing
        self.transport.write(encode_response(
            reply.status, reply.body, content_type=reply.content_type, headers=reply.headers,
            keep_alive=keep, head_only=request.method == "HEAD"))
        await self.writable.wait()
        self.task, self.since = None, time.monotonic()
        if not keep:
            self.transport.close()
        self.next_request()

    async def serve_socket(self, request: Request) -> None:
        """Answer one message after another, while receive_frames() goes on reading."""
        self.socket = ServerProtocol(max_size=self.limits.message_bytes, logger=QUIET)
        self.socket.receive_data(request.raw_head)  # the same bytes: the handshake is its business
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
            self.send({"type": "error", "data": error_data(error)})
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
                self.binary = frame.opcode is Opcode.BINARY or self.binary and frame.opcode is Opcode.CONT
                self.fragments += frame.data  # max_size bounds the whole message
                if frame.fin:
                    self.take_message(bytes(self.fragments))
                    self.fragments.clear()
        if len(self.messages) >= self.limits.queued_messages:
            self.transport.pause_reading()
        self.arrived.set()
        self.flush()

    def take_message(self, message: bytes) -> None:
        try:
            message.decode()
        except UnicodeDecodeError:
            if not self.binary:
                return self.socket.fail(1007)  # RFC 6455 8.1
        self.messages.append(b"(a binary message)" if self.binary else message)

    async def answer(self, session: Session, message: bytes) -> None:
        try:
            kind, data = parse_message(message)
            if kind == "close":
                return self.end(1000)
            data = await session.call(kind, data)
            self.send({"type": "state" if kind == "state" else "observation", "data": data})
        except Exception as error:
            if not isinstance(error, PythonEnvError):
                log.exception("session %s: its environment failed", session.id[:6])
            if fault_of(error).close:
                raise
            self.send({"type": "error", "data": error_data(error)})

    def send(self, message: dict) -> None:
        text = to_json(message)
        if self.socket.state is OPEN:
            self.socket.send_text(text)
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

def serve(environment: typing.Callable[[], Environment], action: type[Action],
          observation: type[Observation] | None = None, state: type[State] | None = None, *,
          host: str = "127.0.0.1", port: int = 8000, **options: Any) -> None:
    """Serve an environment, one instance a session, until SIGTERM or Ctrl-C.

    `environment` is the class, or any callable that makes one. Without `observation` and `state`
    their models are read off the return annotations of its step() and state(). `options` are
    fields of Service: name, description, limits, token, allow_origin, allow_host. Raises OSError
    when the address cannot be had.
    """
    models = {"observation": observation, "state": state}
    for name, method in (("observation", "step"), ("state", "state")):
        hints = typing.get_type_hints(getattr(environment, method, None) or serve)
        models[name] = models[name] or hints.get("return")
    models = {name: model for name, model in models.items() if dataclasses.is_dataclass(model)}
    options = {"name": getattr(environment, "__name__", "environment")} | options | models
    asyncio.run(run_until_signal(Service(factory=environment, action=action, **options), host, port))

async def run_until_signal(service: Service, host: str, port: int, stdin: Any = None) -> None:
    """Serve until SIGTERM or SIGINT, or the end of `stdin` where it is given."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a session takes up to ten
    server, stop, loop = Server(service), asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await server.start(host, port)
    try:
        reached = ", ".join(f"{name} {value}" for name, value in service.isolation.items())
        shown = f"[{host}]" if ":" in host else host
        print(f"{service.name} on http://{shown}:{server.port}", f"isolation: {reached}" * bool(reached),
              flush=True)
        if stdin:
            loop.add_reader(stdin, stop.set)
        await stop.wait()
    finally:
        await server.close()

# ═══ 9. Page ══════════════════════════════════════════════════════════════════════════════════════

PAGE_POLICY = ("default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
               "connect-src 'self'")
PAGE = r"""<!doctype html><html lang="en"><meta charset="utf-8"><title>$NAME</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
  :root { color-scheme: light dark; font: 1rem/1.5 system-ui } [hidden] { display: none }
  body { max-width: 46rem; margin: 2rem auto; padding: 0 1rem } pre, dd { margin: 0 }
  pre, dd, textarea { font: .9rem/1.5 monospace; white-space: pre-wrap; overflow-wrap: anywhere }
  label, dl, main { display: grid; gap: .3rem 1rem; margin: 1rem 0; align-items: baseline }
  dl { grid-template-columns: 7rem 1fr } main { grid-template-columns: 1fr auto } dt { opacity: .7 }
  input, select, textarea, button { font-size: 1rem; padding: .5rem .9rem; border-radius: .5rem;
    border: 1px solid #8886; background: Canvas; color: inherit }
  #run, h3 { color: light-dark(#1f5fa8, #8fbcf2); font-weight: 600 }
  h3 { grid-column: 1 / 3; margin: .8rem 0 0; font-size: 1rem }
</style><h1>$NAME</h1> <label id="access" hidden>Token <input id="token" type="password"></label>
<label id="choice">Task <select id="task"><option>repl</option></select></label>
<pre id="prompt"></pre> <label>Action (Ctrl+Enter runs it) <textarea id="input" rows="8"
  spellcheck="false" autocapitalize="off">print(6 * 7)</textarea></label>
<button id="run">Run</button> <button id="restart">Reset</button> <output id="message"></output>
<dl id="outcome" aria-live="polite"></dl> <h2>Routes</h2> <main id="routes"></main>
<script type="module">
const ui = Object.fromEntries(Array.from(document.querySelectorAll("[id]"), (e) => [e.id, e]));
const headers = { "Content-Type": "application/json" }; let example = { code: "print(6 * 7)" };
const make = (tag, textContent) => Object.assign(document.createElement(tag), { textContent });
async function call(path, body) {  // the reply's JSON, or an Error that reads well
  const options = { headers, method: body ? "POST" : "GET", body: JSON.stringify(body) };
  const reply = await fetch(path, options).catch(() => { throw Error("the server is silent"); });
  const data = await reply.json().catch(() => ({ detail: reply.statusText }));
  if (path === "/reset") headers["X-Session-Id"] = reply.headers.get("X-Session-Id") ?? "";
  ui.access.hidden = reply.status !== 401;
  if (reply.ok) return data;
  const faults = [data.detail].flat().map((e) => e?.msg ? `${e.loc.join(".")}: ${e.msg}` : e);
  throw Error(`${reply.status} ${faults.join("; ")}`);
}
async function send(path, body) {  // resets or steps, and shows what came of it
  if (path === "/step" && !headers["X-Session-Id"]) await reset();
  const { observation: { prompt, metadata, ...fields }, reward, done } = await call(path, body);
  if (prompt || path === "/reset") ui.prompt.textContent = prompt;
  const rows = Object.entries({ ...fields, reward, done }).map(([name, value]) => [make("dt", name),
    make("dd", typeof value === "object" ? JSON.stringify(value) : value)]);
  ui.outcome.replaceChildren(...rows.flat());
}
const reset = () => send("/reset", example.code ? { task_id: ui.task.value } : {});
const step = async () => send("/step", {
  action: example.code ? { code: ui.input.value } : JSON.parse(ui.input.value) });
const attempt = (work) => async () => {
  ui.message.textContent = "Running…";
  ui.message.textContent = await work().then(() => "", String);
};
async function load() {  // the tasks; where actions are not code, a box for their JSON
  const { properties, required = [] } = (await call("/schema")).action;
  for (const { task_id: id, difficulty } of properties.code ? (await call("/tasks")).tasks : [])
    if (id !== "repl") ui.task.add(new Option(`${id} (${difficulty})`, id));
  if (properties.code) return;
  example = Object.fromEntries(required.map((name) => [name, properties[name].type]));
  ui.input.value = JSON.stringify(example, null, 2); ui.choice.hidden = true;
}
ui.run.onclick = attempt(step); ui.restart.onclick = ui.task.onchange = attempt(reset);
ui.input.onkeydown = (e) => (e.ctrlKey || e.metaKey) && e.key === "Enter" && ui.run.click();
ui.token.onchange = () => { headers.Authorization = `Bearer ${ui.token.value}`; attempt(load)(); };
await attempt(load)();
for (const [route, about, body] of [
  ["POST /reset", "starts an episode; the cookie jar keeps its session", { task_id: "repl" }],
  ["POST /step", "takes an action, returns observation, reward, done", { action: example }],
  ["WS /ws", "is both over one connection, for agents and trainers"],
  ["POST /mcp", "is the same as MCP tools", { jsonrpc: "2.0", id: 1, method: "tools/list" }],
  ["GET /state", "shows the episode"], ["GET /tasks", "lists what reset can name"],
  ["GET /health", "says if all is well"], ["GET /metadata", "has name, version, isolation"],
  ["GET /schema", "has the JSON Schemas"], ["GET /openapi.json", "lists the HTTP routes"],
]) {
  const data = body ? ` -H 'Content-Type: application/json' -d '${JSON.stringify(body)}'` : "";
  const curl = `curl -b jar -c jar ${origin}${route.split(" ")[1]}${data}`;
  const python = `from python_env import PythonEnv\n\nwith PythonEnv(base_url="${origin}") as env:
    print(env.reset())`;
  const text = make("pre", route === "WS /ws" ? python : curl), copy = make("button", "Copy");
  copy.onclick = () => { getSelection().selectAllChildren(text); document.execCommand("copy"); };
  ui.routes.append(make("h3", `${route} ${about}`), text, copy);
}</script>"""

# ═══ 10. Client ═══════════════════════════════════════════════════════════════════════════════════

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

# ═══ 11. Command line ═════════════════════════════════════════════════════════════════════════════

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
