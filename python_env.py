"""python_env: an OpenEnv environment for writing Python, in one file with one dependency.

An agent sends Python code; a locked-down interpreter of its own runs it; hidden tests judge it in
another process; a reward in 0..1 comes back that the code cannot forge:

    with PythonEnv() as env:  # or PythonEnv(base_url=...), .from_docker_image(...), .from_hub(...)
        result = env.reset(task_id="parse-duration")
        result = env.step(PythonAction("def parse_duration(text): ..."))

OpenEnv's clients, trainers and validators work with this server, and `EnvClient` with OpenEnv's
servers. Not its job: other languages, installing packages, uploading files, scheduling a cluster.

    client --ws/http--> server          asyncio, one process: it never runs candidate code
                        zygote --fork--> worker A       a session's interpreter: hostile
                          |------fork--> understudy B   a fresh replay for each grading: hostile
                          |------fork--> judge J        holds the hidden tests, runs no candidate
                          '------fork--> janitor        measures and clears the others' folders
The server commands the zygote and has a line to each of its children; between J and B travels
plain data only. Chapters, each built on those before: 1 Limits and errors, 2 Models, 3 Tasks,
4 Worker, 5 Sandbox, 6 Environment, 7 Protocol, 8 Server, 9 Page, 10 Client, 11 Command line."""

import argparse, ast, asyncio, builtins, collections, contextlib, dataclasses, difflib, functools
import gzip, hmac, html, http.client, inspect, ipaddress, itertools, json, logging, math, operator
import os, queue, random, re, resource, secrets, signal, socket, subprocess, symtable, sys
import tempfile, threading, time, types, typing, urllib.error, urllib.parse, urllib.request
import warnings, weakref, zlib
from dataclasses import MISSING, dataclass, field, is_dataclass
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
QUIET = logging.getLogger("python_env.websocket")  # websockets would report each connection here
QUIET.setLevel(logging.WARNING)

# ═══ 1. Limits and errors ═════════════════════════════════════════════════════════════════════════

@dataclass(frozen=True)
class Limits:
    """Every number that bounds a peer, a worker or a wait; the unit is in the name."""
    step_s: float = 10.0  # of a step that names no timeout_s; the server holds every deadline
    step_max_s: float = 60.0  # the most that an action may ask for: official clients wait 60 s
    grace_s: float = 1.0  # between the KeyboardInterrupt and the SIGKILL
    code_bytes: int = 262_144  # one action's code, as UTF-8
    transcript_bytes: int = 4_194_304  # an episode's code, which every grading replays
    output_bytes: int = 65_536  # a stream of one step: head and tail are kept, the cut is said
    result_chars: int = 8_192  # repr of the last expression
    task_steps: int = 20  # of an episode with tests: each leaks a few bits of a verdict
    memory_mb: int = 1_024  # address space of a worker process, in MiB
    cpu_s: int = 1_800  # of a worker's whole life: a thread left behind burns no more than this
    file_bytes: int = 67_108_864  # one file
    folder_bytes: int = 134_217_728  # all files of a session; the janitor measures
    folder_entries: int = 10_000  # their number; clearing a folder takes time too
    open_files: int = 128  # of a worker
    threads: int = 64  # of a worker; the server samples and kills
    sample_s: float = 0.25  # how often
    replay_s: float = 30.0  # to run an episode's earlier steps again, for its next grading
    grading_min_s: float = 1.0  # the judge's share when the step has used its whole time
    tests_bytes: int = 262_144  # the largest test, setup, prompt or helper source
    task_row_bytes: int = 2_097_152  # one line of a task file: a handful of such sources
    task_file_bytes: int = 67_108_864  # a task file, decompressed: it is held in memory
    max_sessions: int = 256  # of a server, with up to three processes each
    http_idle_s: float = 300.0  # an HTTP session nobody steps
    ws_idle_s: float = 3_600.0  # a trainer is silent for minutes while its model generates
    request_s: float = 30.0  # a request must be whole this soon after its first byte
    house_s: float = 1.0  # how often idle sessions and connections are looked for
    keep_alive_s: float = 75.0  # an idle HTTP connection
    head_bytes: int = 16_384  # request line and headers
    headers: int = 64  # of a request
    body_bytes: int = 4_194_304  # of a request: an action's code, escaped, fits many times
    message_bytes: int = 4_194_304  # one WebSocket message, likewise
    queued_messages: int = 64  # unanswered messages of a session; then the socket is not read
    connections: int = 1_024  # of a server, idle ones included
    drain_s: float = 1.5  # at SIGTERM, steps that end this soon are answered
    reply_bytes: int = 104_857_600  # one that a client reads: the official client's limit too

LIMITS = Limits()

class PythonEnvError(Exception):
    """The base of all that this module raises on purpose; it says expected, actual and remedy."""
class InvalidRequest(PythonEnvError, ValueError):
    """The caller's data is wrong. `errors`: pydantic-style entries (type, loc, msg, input)."""
    def __init__(self, message: str, errors: typing.Sequence[dict] = ()):
        super().__init__(message)
        self.errors = [*errors]
class ExecutionError(PythonEnvError, RuntimeError):
    """The request was well-formed but cannot be carried out now: no episode, or it is over."""
class CapacityError(PythonEnvError, RuntimeError):
    """All sessions are taken; trying again later may succeed."""
class FactoryError(PythonEnvError, RuntimeError):
    """No interpreter process could be started for a session."""
class SessionError(PythonEnvError, LookupError):
    """The session that was named does not exist, or not any more."""

# ═══ 2. Models: what travels, as dataclasses; validation and JSON schema come from them alone ═════

def described(text: str, default: Any = MISSING, **bounds: float) -> Any:
    """A dataclass field with a description and bounds: ge, gt, le, max_length (characters)."""
    key = "default_factory" if default in (dict, list) else "default"
    return field(**{key: default}, metadata={"description": text, **bounds})

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
    timeout_s: float | None = described("Seconds it may run; null: as the server says", None, gt=0)
@dataclass
class PythonObservation(Observation):
    """What came of a step; after reset(), the task's prompt with the other fields empty."""
    stdout: str = described("Standard output of the step; a long one is cut in the middle", "")
    stderr: str = described("Standard error of the step, tracebacks included", "")
    exit_code: int = described("0 fine, 1 exception, n exit(n), 124 timed out, 128+s signal s", 0)
    result: str | None = described("repr of the code's last expression; null: none", None)
    task_id: str = described("The episode's task", "")
    prompt: str = described("What to do; given at reset", "")
    tests_passed: int = described("Hidden assert statements that passed", 0)
    tests_total: int = described("Hidden assert statements of the task; 0: it has none", 0)
    feedback: str = described("The verdict in a sentence", "")
@dataclass
class PythonState(State):
    """The episode as the server sees it. `max_steps` None: unlimited."""
    task_id: str = described("The episode's task", "")
    max_steps: int | None = described("Steps allowed in this episode; null: unlimited", None)
    done: bool = described("Whether the episode is over", False)
    best_reward: float = described("The best score of the episode so far, 0..1", 0.0)

_UNIONS = typing.Union, types.UnionType
# What it is called in JSON schema, in the type of pydantic's error, and in that error's words
_NAMES = {str: ("string", "string", "string"), int: ("integer", "int", "integer"),
          float: ("number", "float", "number"), bool: ("boolean", "bool", "boolean"),
          dict: ("object", "dict", "dictionary"), list: ("array", "list", "list"),
          type(None): ("null", "none", "null")}
_BOUNDS = {  # likewise, but for the second: what to test
    "ge": ("minimum", operator.ge, "greater_than_equal", "greater than or equal to"),
    "gt": ("exclusiveMinimum", operator.gt, "greater_than", "greater than"),
    "le": ("maximum", operator.le, "less_than_equal", "less than or equal to"),
    "max_length": ("maxLength", lambda text, most: len(text) <= most, "string_too_long",
                   "a string whose length is at most")}

@functools.cache
def _fields(model: type) -> dict[str, tuple[Any, dataclasses.Field, bool, set[type]]]:
    """Each field's type, definition, whether it must be given, and what needs no look inside."""
    hints, fields = typing.get_type_hints(model), dataclasses.fields(model)
    return {f.name: (hints[f.name], f, f.default is f.default_factory is MISSING,
                     _plain(hints[f.name], f.metadata)) for f in fields}

def _plain(hint: Any, bounds: Any) -> set[type]:
    """The types whose values are a good `hint`, whatever they hold: to know one is to be done."""
    origin, args = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin in _UNIONS: return set().union(*(_plain(arg, bounds) for arg in args))
    bounded = origin is float or origin in (int, str) and _BOUNDS.keys() & bounds.keys()
    return {origin} if origin in _NAMES and not bounded and args[-1:] in ((), (Any,)) else set()

def to_dict(model: Any) -> dict[str, Any]:
    """A model's fields as a dict, one level deep: ours hold plain data only."""
    return {name: getattr(model, name) for name in _fields(type(model))}

def json_schema(hint: Any, bounds: typing.Mapping[str, Any] = {}) -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a model, or of any type that `validate` knows."""
    origin, args = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin in _UNIONS: return {"anyOf": [json_schema(arg, bounds) for arg in args]}
    if origin is typing.Literal: return {"enum": [*args]}
    if is_dataclass(origin):
        fields, properties = _fields(origin), {}
        for name, (kind, f, *_) in fields.items():
            about = {"description": MISSING, **f.metadata, "default": f.default}
            properties[name] = json_schema(kind, f.metadata) | {
                key: about[key] for key in ("description", "default") if about[key] is not MISSING}
        return {"type": "object", "title": origin.__name__, "properties": properties,
                "description": inspect.cleandoc(origin.__doc__ or "").partition("\n")[0],
                "required": [name for name, (*_, must, _) in fields.items() if must],
                "additionalProperties": False}
    schema = {"type": _NAMES[origin][0]} if origin in _NAMES else {}
    if origin in (dict, list) and args:
        schema["items" if origin is list else "additionalProperties"] = json_schema(args[-1])
    elif origin in (str, int, float):
        schema |= {_BOUNDS[key][0]: value for key, value in bounds.items() if key in _BOUNDS}
    return schema

def error_entry(kind: str, loc: typing.Iterable, message: str, value: Any = None) -> dict[str, Any]:
    at = [part if isinstance(part, int) else str(part)[:100] for part in loc]
    return {"type": kind, "loc": at, "msg": message, "input": _echo(value)}

def _echo(value: Any) -> Any:
    """What an error repeats of its input: little, whatever came, and no NaN: JSON has none."""
    try:
        text = repr(value)
    except RecursionError:
        return "(nested too deeply)"
    return value if len(text) <= 200 and not re.search(r"\b(nan|inf)\b", text) else text[:200]

def validate(cls: type, data: Any, loc: tuple = ()) -> Any:
    """Build the dataclass `cls` from decoded JSON, strictly; `loc` is the path to `data`.
    Raises InvalidRequest, whose `errors` are the first 20 faults as pydantic lists them."""
    if type(data) is dict and is_dataclass(cls):  # nearly always right, and then soon known to be
        fields = _fields(cls)
        if data.keys() <= fields.keys() and all(type(data[name]) in plain if name in data else not
                                                must for name, (*_, must, plain) in fields.items()):
            return cls(**data)
    value = _check(cls, data, loc, {}, faults := [])
    if not faults: return value
    errors = [error_entry(*fault) for fault in faults[:20]]
    where = ".".join(map(str, errors[0]["loc"])) or "the message"
    more = f" (and {len(faults) - 1} more)" if faults[1:] else ""
    raise InvalidRequest(f"{where}: {errors[0]['msg']}{more}", errors)

def _check(hint: Any, value: Any, loc: tuple, bounds: Any, faults: list[tuple]) -> Any:
    """`value` as a `hint`; what is wrong goes to `faults`, in error_entry's terms."""
    def fault(kind: str, words: str) -> None:
        faults.append((kind, loc, f"Input should be {words}", value))
    origin, args = typing.get_origin(hint) or hint, typing.get_args(hint)
    base = dict if is_dataclass(origin) else origin
    if origin in _UNIONS:
        for arg in sorted(args, key=lambda arg: arg is not type(None)):
            good = _check(arg, value, loc, bounds, trial := [])
            if not trial: return good
        faults += trial
    elif origin is typing.Literal:
        if (type(value), value) not in [(type(arg), arg) for arg in args]:
            fault("literal_error", " or ".join(map(repr, args)))
    elif base is float and type(value) is int and abs(value) < 2**1023:
        return _check(float, float(value), loc, bounds, faults)
    elif base is not Any and type(value) is not base:  # so a bool is no int
        _, kind, words = _NAMES.get(base, ("", "value", "value"))
        fault(f"{kind if base is origin else 'model_attributes'}_type", f"a valid {words}")
    elif base is not origin:
        known, words = _fields(origin), "Extra inputs are not permitted"
        faults += [("extra_forbidden", (*loc, name), words, part)
                   for name, part in value.items() if name not in known]
        faults += [("missing", (*loc, name), "Field required", value)
                   for name, (_, _, must, _) in known.items() if must and name not in value]
        value = {name: _check(kind, value[name], (*loc, name), f.metadata, faults)
                 for name, (kind, f, *_) in known.items() if name in value}
        return None if faults else origin(**value)
    elif base in (dict, list):
        inner, pairs = args[-1:], value.items() if base is dict else enumerate(value)
        good = {key: _check(*inner or [Any], part, (*loc, key), {}, faults) for key, part in pairs}
        return good if base is dict else [*good.values()]
    elif base is float and not math.isfinite(value):
        fault("finite_number", "a finite number")
    elif base in (str, int, float):
        for name in _BOUNDS.keys() & bounds.keys():
            _, holds, kind, words = _BOUNDS[name]
            if not holds(value, bounds[name]):
                fault(kind, f"{words} {bounds[name]}")
    return value

# ═══ 3. Tasks: a prompt to read and asserts to pass ═══════════════════════════════════════════════
# Most of the chapter settles one question before any candidate is seen: which names do the tests
# take from the candidate, and which are their own?

def _read(what: str, text: str) -> types.SimpleNamespace:
    """The names of a source. It is parsed, but never compiled, let alone run: this is the server's
    process, and nested `finally` blocks compile to exponential size."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a "\d" in somebody's tests is no news of ours
            tree, scopes = ast.parse(text), [symtable.symtable(text, what, "exec")]
        heads = {node.name: f"{node.name}({ast.unparse(node.args)})"
                 for node in tree.body if isinstance(node, ast.FunctionDef)}
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line, why = getattr(error, "lineno", "?"), str(error) or "nested too deeply"
        raise InvalidRequest(f"{what} does not parse: line {line}: {why[:160]!r}") from None
    for scope in scopes:  # the list grows as we go: every nested scope gets its turn
        scopes += scope.get_children()
    symbols = [symbol for scope in scopes for symbol in scope.get_symbols()
               if scope is scopes[0] or symbol.is_global()]
    return types.SimpleNamespace(
        heads=heads, asserts=sum(isinstance(node, ast.Assert) for node in ast.walk(tree)),
        imports={name.asname or name.name.partition(".")[0]: node for node in ast.walk(tree)
                 if isinstance(node, (ast.Import, ast.ImportFrom)) for name in node.names},
        reads={symbol.get_name() for symbol in symbols if symbol.is_referenced()},
        defines={s.get_name() for s in symbols if s.is_assigned() or s.is_imported()})

@dataclass(frozen=True, kw_only=True)
class Task:
    """One exercise. Raises InvalidRequest when its tests could not measure anything."""
    task_id: str
    prompt: str = ""  # what the agent reads
    tests: str = ""  # hidden; each assert statement is one test. "": nothing to judge, never done
    setup: str = ""  # run in the agent's interpreter before the first step
    helpers: str = ""  # run by the judge before the tests, out of the candidate's reach
    entry_point: str = ""  # the function asked for, if it is just one
    solution: str = ""  # a reference, never run, never shown: it tells which names are asked for
    difficulty: str = ""
    names: frozenset[str] = field(init=False)  # what the tests take from the candidate
    classes: frozenset[str] = field(init=False)  # those of the names that are classes
    tests_total: int = field(init=False)
    def __post_init__(self) -> None:
        for key, value in vars(self).items():
            if not isinstance(value, str):
                raise InvalidRequest(f"{key} must be a string, not {type(value).__name__}")
            if re.search(r"[\ud800-\udfff]", value):
                raise InvalidRequest(f"{key} must be text for UTF-8: lone surrogates not allowed")
            if (size := len(value.encode())) > LIMITS.tests_bytes:
                raise InvalidRequest(f"{key} has {size} bytes; the limit is {LIMITS.tests_bytes}")
        tests, helpers, setup, solution = sources = [
            _read(key, getattr(self, key)) for key in ("tests", "helpers", "setup", "solution")]
        if self.tests and not tests.asserts: raise InvalidRequest("tests has no assert statement")
        used = (tests.reads | helpers.reads) - tests.defines - helpers.defines
        # The judge imports for itself: a candidate could teach its own `math.isclose` to lie.
        entry, lent = self.entry_point, {**solution.imports, **setup.imports}
        lent = {name: lent[name] for name in lent if name in used and name != entry}
        # A solution may define what looks like a builtin (one of MBPP's is called `sum`). What no
        # one else provides must be the candidate's too, unless `import *` brings who knows what.
        names = used & (setup.defines | ({entry} if entry else solution.defines))
        if not any("*" in source.imports for source in sources):
            names |= used - set(dir(builtins))
        names -= lent.keys()
        if self.tests and not (entry in names if entry else names):
            raise InvalidRequest(f"tests ask the candidate for no name; entry_point: {entry!r:.40}")
        capitals = {name for name in names if name[0].isupper()} - solution.heads.keys()
        imports = map(ast.unparse, dict.fromkeys(lent.values()))
        vars(self).update(names=frozenset(names), classes=frozenset(capitals),  # frozen for others
                          tests_total=tests.asserts, helpers="\n".join([*imports, self.helpers]))
    @classmethod
    def from_row(cls, row: dict[str, Any], default_id: str = "inline") -> "Task":
        """The task in a row of HumanEval, of MBPP or of our own format, told apart by the keys.
        Others, and None, are ignored: trainers pass every column. Raises InvalidRequest."""
        row = collections.defaultdict(str, {
            key: "\n".join(map(str, value)) if isinstance(value, (list, tuple)) else value
            for key, value in row.items() if value is not None})
        keys, number = [*row], row["task_id"]
        task = {f.name: row[f.name] for f in dataclasses.fields(cls)[1:] if f.init}
        if row["test_list"]:  # MBPP shows its tests to say what to define; our prompts say it
            tests = (str(row[key]) for key in ("test_imports", "test_list", "challenge_test_list"))
            task |= {"tests": "\n".join(tests), "setup": row["test_setup_code"],
                     "solution": row["code"]}
            names = cls(task_id="?", **task).names - _read("setup", task["setup"]).defines
            heads = _read("code", task["solution"]).heads
            define = " and ".join(f"`{heads.get(name, name)}`" for name in sorted(names))
            task["prompt"] = f"{row['text'] or task['prompt']}\n\nDefine {define}."
        elif row["test"] and (entry := row["entry_point"]):  # HumanEval: a head to complete
            task["tests"] = f"{row['test']}\n\ncheck({entry})\n"
            prompt, body = str(row["prompt"]), row["canonical_solution"] or "    pass"
            above = re.split(rf"(?m)^(?:def|class) {re.escape(str(entry))}\b", prompt)[0]
            with contextlib.suppress(InvalidRequest):  # the prompts of its imitators may be prose
                _read("prompt", code := f"{prompt}{body}")
                task |= {"setup": above, "helpers": above, "solution": code}
        elif not task["tests"]:
            raise InvalidRequest("expected the key 'tests', or 'test_list' (MBPP), or 'test' and "
                                 f"'entry_point' (HumanEval); got {keys!r:.80}")
        return cls(task_id=str(number) if type(number) is int else number or default_id, **task)

def load_tasks(path: str | Path) -> dict[str, Task]:
    """The tasks of a JSONL file (gzipped if its name ends in .gz) by task_id: all of them, or an
    InvalidRequest that names the file and the line. A bomb is read no further than the limit."""
    path, number, left, tasks, lines = Path(path), 0, LIMITS.task_file_bytes, {}, {"repl": 0}
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            while line := file.readline((limit := min(left, LIMITS.task_row_bytes)) + 1):
                left, number = left - len(line), number + 1
                if len(line) > limit:
                    raise InvalidRequest(f"longer than the {limit} bytes that a line may have here")
                if not line.strip(): continue
                if not isinstance(row := json.loads(line.decode("utf-8-sig")), dict):
                    raise InvalidRequest(f"expected a JSON object, got {type(row).__name__}")
                task = Task.from_row(row, default_id=f"{path.name}:{number}")
                if (first := lines.setdefault(task.task_id, number)) != number:
                    by = f", by line {first}" if first else ""
                    raise InvalidRequest(f"the task_id {task.task_id!r:.80} is taken already{by}")
                tasks[task.task_id] = task
        if not tasks: raise InvalidRequest("it holds no tasks: expected one JSON object a line")
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
        raise InvalidRequest(f"tasks file {path}, line {number}: {error}") from None
    return tasks

REPL = Task(task_id="repl", prompt="A Python interpreter that keeps its state. There are no tests.")
_REFUSES = """def refuses(error, function, *arguments):
    try: function(*arguments)
    except error: return True"""
BUILTIN_TASKS = {name: Task(task_id=name, difficulty=level, prompt=prompt, tests=tests,
                            helpers=_REFUSES) for name, level, prompt, tests in [
("parse-duration", "easy", """Define `parse_duration(text)`: the seconds, an int, in a text like
"1h30m" or " 2h 5s ". Its parts are hours, minutes, seconds in this order, each at most once, at
least one: digits 0-9, then h, m or s. Spaces may surround a part, not split it. Raise ValueError
for any other text.""", """assert parse_duration("90s") == 90 and parse_duration("0h0m0s") == 0
assert parse_duration("1h30m") == 5400 and parse_duration("100m") == 6000
assert parse_duration(" 2h 5s ") == 7205
assert refuses(ValueError, parse_duration, " ") and refuses(ValueError, parse_duration, "5")
assert all(refuses(ValueError, parse_duration, text) for text in ("1m1h", "1s2s", "-s", "1 s"))"""),
("clean-people", "easy", """Define `clean(rows)`. A row is a dict of strings: "name", "email",
perhaps "age". Return new dicts in a list: name without outer spaces, inner runs of them made one;
email stripped, in lower case; age an int, or None if not all digits or over 150. Drop rows whose
email has not one "@" with text on both sides. Of rows with the same email keep the first, with
the first age that is not None among them. Leave the input as it is.""", """
rows = [{"name": f" Ada  {age}", "email": email, "age": age} for email, age in (
    (" A@x.org ", "36"), ("b@b", ""), ("B@b", "7"), ("b@b", "8"), ("c@c", "150"), ("a@", "151"))]
before, bad = str(rows), [{"name": "", "email": email} for email in ("", "b", "@b", "b@@b", "@")]
assert [person["name"] for person in clean(rows)] == ["Ada 36", "Ada", "Ada 150"]
assert [person["email"] for person in clean(rows)] == ["a@x.org", "b@b", "c@c"]
assert [person["age"] for person in clean(rows)] == [36, 7, 150] and str(rows) == before
assert [clean([{**rows[0], "age": age}])[0]["age"] for age in ("151", "-3", "4.5")] == [None] * 3
assert clean(bad) == [] and clean([{"name": "Z", "email": "z@z"}])[0]["age"] is None"""),
("build-order", "medium", """Define `build_order(needs)`: a dict from a package to a list of those
it needs, which may not be keys. Return the list of all packages, each after what it needs; where
several could come next, the alphabetically first does. Raise ValueError for a cycle. Chains may be
long.""", """assert build_order({}) == [] and build_order({"b": [], "a": []}) == ["a", "b"]
assert build_order({"app": ["lib"], "lib": ["core"]}) == ["core", "lib", "app"]
assert build_order({"c": ["a"], "b": ["a"], "d": []}) == ["a", "b", "c", "d"]
assert build_order({"a": ["z", "z"], "m": [], "y": ["a"]}) == ["m", "z", "a", "y"]
assert refuses(ValueError, build_order, {"a": ["b"], "b": ["c"], "c": ["b"], "d": []})
assert build_order({f"{i:04}": [f"{i + 1:04}"] for i in range(3000)})[:2] == ["3000", "2999"]"""),
("fix-means", "medium", """`means(values, size)` should return the mean of each run of `size`
values (the last may be shorter), and raise ValueError for a size below 1. Define it without bugs:

def means(values, size, out=[]):
    for i in range(0, len(values) - size, size): out.append(sum(values[i:i + size]) / size)
    return out""", """assert means([], 3) == []
assert means([1, 2, 3, 4], 2) == [1.5, 3.5]
assert means([5, 7, 9], 1) == [5, 7, 9] == means([5, 7, 9], 1)
assert means([1, 2, 3, 4, 9], 2) == [1.5, 3.5, 9] and means([4, 8], 5) == [6]
assert refuses(ValueError, means, [1, 2], 0) and refuses(ValueError, means, [], -1)"""),
("ledger", "hard", """Define a class `Ledger()` of accounts by name: `deposit(name, amount)` and
`transfer(source, target, amount)` open the account they pay into, `balance(name)` tells what it
holds. To ask or pay from one that is not open raises KeyError; an amount below 1, or above what the
source holds, ValueError; a failed call changes nothing. `undo()` takes back the latest deposit or
transfer not yet undone, and what it opened, or raises IndexError. `len()` and `in` see the open
accounts.""", """one, two = Ledger(), Ledger()
for amount in (20, 30): one.deposit("ann", amount)
assert (one.balance("ann"), len(one), len(two)) == (50, 1, 0) and "ann" in one
assert refuses(KeyError, one.balance, "bob") and refuses(KeyError, one.transfer, "bob", "ann", 1)
assert refuses(ValueError, one.deposit, "bob", 0) and "bob" not in one
assert refuses(ValueError, one.transfer, "ann", "bob", 51) and one.balance("ann") == 50
one.transfer("ann", "bob", 50)
assert (one.balance("ann"), one.balance("bob"), len(one)) == (0, 50, 2)
for _ in range(3): one.undo()
assert len(one) == 0 and refuses(IndexError, one.undo)""")]}

# ═══ 4. Worker ════════════════════════════════════════════════════════════════════════════════════
# The program of every other process. It stands alone, imports included: its source, from this
# banner to the next, is all of ours that the zygote and its children ever hold.

import ast, builtins, collections, contextlib, ctypes, datetime, decimal, errno, fractions
import functools, gc, itertools, json, linecache, math, operator, os, random, re, resource, select
import signal, socket, struct, sys, traceback, types

FRAME_BYTES = 16 * 2**20  # of one frame between two processes; checked before buffering
NODES, DEPTH = 1_000_000, 100  # of one value between judge and understudy, sharing expanded
INT_DIGITS, REFERENCES = 250_000, 100_000  # hexadecimal digits; objects held for the other end

def frame(message: object) -> bytes:
    body = json.dumps(message).encode()
    if len(body) > FRAME_BYTES: raise ValueError(f"{len(body)} bytes in a frame of {FRAME_BYTES}")
    return len(body).to_bytes(4, "big") + body

class Line:
    """A socket to another process that carries frames. Only its buffered end reads from it."""
    def __init__(self, sock: socket.socket):
        self.send, self.read = sock.sendall, open(sock.fileno(), "rb", closefd=False).read
    def receive(self):
        """The next frame; EOFError when the other end is gone, ValueError for what is none."""
        if (size := int.from_bytes(head := self.read(4), "big")) > FRAME_BYTES:
            raise ValueError(f"a frame of {size} bytes announced; at most {FRAME_BYTES} are read")
        if len(head) < 4 or len(body := self.read(size)) < size: raise EOFError("it is gone")
        return json.loads(body.decode())
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
MACHINES = {"x86_64": (1, 0xC000003E), "aarch64": (2, 0xC00000B7)}  # the table's column, AUDIT_ARCH
NEWEST_CALL = 470  # of Linux 6.19; a later one answers ENOSYS, so that libc falls back to an older
LOAD, AND, JUMP, IF_EQUAL, IF_NOT_BELOW, IF_BITS, RETURN = 0x20, 0x54, 0x05, 0x15, 0x35, 0x45, 0x06
KILL, FAIL = 0x80000000, 0x50000  # SECCOMP_RET_KILL_PROCESS; SECCOMP_RET_ERRNO, to add the errno to
ANSWERS = {"ALLOW": 0x7FFF0000, "IGNORE": FAIL}
PID = int.from_bytes(b"<pid", "little")  # stands in for it, until a worker knows its own

def build_filter(machine: str) -> list:
    """The seccomp program as (code, distance if true, distance if false, operand). It asks for one
    call after another: the kernel remembers which are always allowed, and runs it for no such."""
    column, architecture = MACHINES[machine]
    program = [(LOAD, 0, 0, 4), (IF_EQUAL, 1, 0, architecture), (RETURN, 0, 0, KILL),  # int 0x80
               (LOAD, 0, 0, 0), (IF_BITS, 0, 1, 0x40000000), (RETURN, 0, 0, KILL),  # x32
               (IF_EQUAL, 1, 0, 435), (IF_NOT_BELOW, 0, 1, NEWEST_CALL + 1),  # clone3 hides flags
               (RETURN, 0, 0, FAIL + errno.ENOSYS)]
    for answer, lines in re.findall(r"^([A-Z]+).*\n((?: .*\n)+)", SYSTEM_CALLS, re.M):
        for line in " ".join(lines.split()).split(", "):
            call, *conditions = line.split(" | ")
            code, number = [(RETURN, 0, 0, ANSWERS[answer])], call.split()[column]
            for condition in reversed(conditions):  # each jumps behind the code where it fails
                argument, high, mask, values = re.fullmatch(
                    r"arg(\d)(\.high)?(?: & (\w+))?: (.+)", condition).groups()
                wanted = [int(v.split("=")[1], 0) if v != "PID" else PID for v in values.split()]
                code = [(LOAD, 0, 0, 16 + 8 * int(argument) + 4 * bool(high)),  # in seccomp_data
                        (AND, 0, 0, int(mask or "0xffffffff", 0)),
                        *((IF_EQUAL, len(wanted) - i, 0, value) for i, value in enumerate(wanted)),
                        (JUMP, 0, 0, len(code)), *code]
            if number != "-":
                program += [(LOAD, 0, 0, 0), (IF_EQUAL, 0, len(code), int(number)), *code]
    return [*program, (RETURN, 0, 0, FAIL + errno.EPERM)]

LINUX, LIBC = sys.platform == "linux", ctypes.CDLL(None, use_errno=True)
if LINUX:
    LIBC.syscall.argtypes = LIBC.prctl.argtypes = [ctypes.c_long] + [ctypes.c_void_p] * 4
LANDLOCK_ABI = max(0, LIBC.syscall(444, 0, 0, 1, 0)) if LINUX else 0
# PR_GET_SECCOMP fails where there is none; a 32-bit interpreter has other numbers.
SECCOMP = LINUX and LIBC.prctl(21, 0, None, 0, 0) >= 0 and sys.maxsize > 2**32
PROGRAM = build_filter(os.uname().machine) if SECCOMP and os.uname().machine in MACHINES else []
FILTER = b"".join(itertools.starmap(struct.Struct("HBBI").pack, PROGRAM))
WRITE_FILE, READ_FILE, READ_DIR = 2, 4, 8  # of Landlock's rights, of which an ABI knows the first:
KNOWN_RIGHTS = (1 << (0, 13, 14, 15, 15, 16)[min(LANDLOCK_ABI, 5)]) - 1
# These, REMOVE_DIR and _FILE, MAKE_DIR, _REG and _SYM, REFER, TRUNCATE; no EXECUTE, no devices
OWN_DIRECTORY = sum(1 << bit for bit in (1, 2, 3, 4, 5, 7, 8, 12, 13, 14))

def open_readable(hidden: list[str]) -> list[tuple[int, int]]:
    """O_PATH descriptors of what a worker may read, with their Landlock rights: all but `hidden`.
    Rules only add, so a folder above something hidden is but listed, and its entries go singly."""
    paths = [*filter(os.path.isabs, sys.path), sys.base_prefix + "/lib", *"""/lib /lib64 /usr/lib
        /usr/lib64 /usr/local/lib /etc/ld.so.cache /usr/share/zoneinfo /etc/localtime /dev/null
        /dev/zero /dev/random /dev/urandom""".split()]
    paths = [*map(os.path.realpath, paths)] if LANDLOCK_ABI else []
    hidden, granted = [os.path.realpath(path) + "/" for path in hidden], {}
    for path in paths:  # the list grows as we go; a link's target must be granted for its own sake
        inside = any(f"{path}/".startswith(place) for place in hidden)
        if inside or path in granted or os.path.islink(path) or not os.path.exists(path): continue
        rights = READ_FILE | WRITE_FILE * (path == "/dev/null")
        if os.path.isdir(path):
            above = any(place.startswith(f"{path}/") for place in hidden)
            paths += [os.path.join(path, name) for name in os.listdir(path)] if above else []
            rights = READ_DIR if above else READ_DIR | READ_FILE
        granted[path] = os.open(path, os.O_PATH | os.O_NOFOLLOW), rights
    return [*granted.values()]

def lock_down(readable: list, directory: "str | None", limits: dict, filtered: bool = True) -> None:
    """Give up all but reading `readable` (closed here), writing in `directory`, and `limits`, which
    go by the names of resource.RLIMIT_*. In a fresh child with one thread. What the machine lacks
    is left out (probe() tells what); what it has and fails raises OSError."""
    def check(result: int) -> int:
        if result >= 0: return result
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    os.nice(5)
    if LINUX:
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")  # the first to go when memory runs out
        check(LIBC.prctl(38, 1, None, 0, 0))  # NO_NEW_PRIVS: Landlock and seccomp ask for it
        # Of root's capabilities only DAC_READ_SEARCH stays: the interpreter may be another user's.
        version = struct.pack("Ii", 0x20080522, 0)
        if LIBC.capset(version, struct.pack("II16x", 4, 4)) < 0:
            check(LIBC.capset(version, bytes(24)))
    if LANDLOCK_ABI:  # system calls 444 to 446: landlock_create_ruleset, _add_rule, _restrict_self
        known = KNOWN_RIGHTS, 3 * (LANDLOCK_ABI >= 4), 3 * (LANDLOCK_ABI >= 6)  # files, TCP, scopes
        rules = check(LIBC.syscall(444, struct.pack("QQQ", *known), 24, 0, 0))
        own = [(os.open(directory, os.O_PATH), OWN_DIRECTORY)] if directory else []
        for fd, rights in readable + own:
            check(LIBC.syscall(445, rules, 1, struct.pack("=Qi", rights & KNOWN_RIGHTS, fd), 0))
            os.close(fd)
        check(LIBC.syscall(446, rules, LANDLOCK_ABI >= 7, 0, 0))  # 1: log nothing
        os.close(rules)
    # After Landlock, whose descriptors may have numbers above NOFILE
    for name, value in {"CORE": 0, "MEMLOCK": 0, "MSGQUEUE": 0, "SIGPENDING": 64, **limits}.items():
        if (kind := getattr(resource, "RLIMIT_" + name, None)) is not None:
            value = min(value, resource.getrlimit(kind)[1] % 2**64)  # RLIM_INFINITY may be -1
            resource.setrlimit(kind, (value, value))
    if LINUX:
        check(LIBC.prctl(4, 0, None, 0, 0))  # not DUMPABLE: our files in /proc are root's
    if FILTER and filtered:
        program = FILTER.replace(struct.pack("I", PID), struct.pack("I", os.getpid()))
        address = ctypes.cast(program, ctypes.c_void_p).value
        check(LIBC.prctl(22, 2, struct.pack("H6xQ", len(program) // 8, address), 0, 0))  # seccomp

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
    status, names = os.waitpid(child, 0)[1] >> 8, ("seccomp", "landlock", "no_new_privs", "rlimits")
    reached = {name: bool(status >> bit & 1) for bit, name in enumerate(names)}
    return reached | {"landlock": LANDLOCK_ABI if reached["landlock"] else 0}

def pipe_pair(*_: object) -> tuple:
    """socket.socketpair() for asyncio alone, which needs no more than a pipe to wake up by."""
    if not sys._getframe(1).f_globals.get("__name__", "").startswith("asyncio."):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
    on = functools.partial
    return tuple(types.SimpleNamespace(
        fileno=on(int, fd), close=on(os.close, fd), recv=on(os.read, fd), send=on(os.write, fd),
        setblocking=on(os.set_blocking, fd)) for fd in os.pipe())

# ─── Plain data between judge and understudy ───

class Remote:
    """A handle on an object of the other end; the judge's, on what lives in the understudy.

    Its operators show that object the test's operands only where it is an instance of a class that
    the task itself names (`_open`): what a function returned could answer `== 3.14` with a lie, or
    learn from `- 3.14` what to answer. Attributes, items, calls and iteration always go through."""
    __slots__ = "_peer", "_number", "_open"
    def __init__(self, peer: "Peer", number: int, is_open: bool = False):
        for name, value in zip(Remote.__slots__, (peer, number, is_open)):
            object.__setattr__(self, name, value)
    def __call__(self, *args, **kwargs):
        value = self._peer.request("call", self, *args, **kwargs)
        opens = self._open and type(value) is Remote
        return Remote(self._peer, value._number, True) if opens else value
    def __getattr__(self, name):
        if not name.startswith("__") or name in ("__name__", "__doc__", "__dict__"):
            return self._peer.request("getattr", self, name)
        raise AttributeError(name)  # copy and pickle ask for protocols that we do not have
    def __contains__(self, item):
        if self._open: return self._peer.request("contains", self, item)
        return any(item is other or item == other for other in self)
    def __instancecheck__(self, value):
        return type(value) is Remote and self._peer.request("isinstance", value, self) is True

# What one end may ask of the other's objects; of the judge's, only what is PUBLIC. What takes an
# operand of the test's is GUARDED, as Remote tells.
PUBLIC = {"call", "iter", "next", "bool", "hash", "str", "repr"}
GUARDED = "eq lt le gt ge add sub mul truediv floordiv mod pow matmul and or xor".split()
OPERATIONS = {name: getattr(builtins, name, None) or getattr(operator, f"__{name}__") for name in [
    *"iter next len str repr bool hash int float reversed abs round dir setattr".split(),
    *"getitem setitem delitem index neg".split(), *GUARDED]}
OPERATIONS |= {"enter": lambda o: o.__enter__(), "exit": lambda o, *error: o.__exit__(*error)}

def _operator(name: str, swapped: bool = False):
    def method(self, *operands):
        if name in GUARDED and not (self._open or type(operands[0]) is Remote):
            return NotImplemented
        return self._peer.request(name, *((*operands, self) if swapped else (self, *operands)))
    return method

for _name in OPERATIONS:
    setattr(Remote, f"__{_name}__", _operator(_name))
    if _name in GUARDED:
        setattr(Remote, f"__r{_name}__", _operator(_name, swapped=True))
OPERATIONS |= {"getattr": getattr, "isinstance": isinstance, "contains": operator.contains,
               "call": lambda f, *args, **kwargs: f(*args, **kwargs)}

def _big_int(digits: str) -> int:
    if len(digits) <= INT_DIGITS: return int(digits, 16)
    raise ValueError(f"an int of over {INT_DIGITS} hexadecimal digits")

# What is rebuilt from arguments: type -> (the arguments of a value, what makes it of them). So a
# test's `==` and isinstance() see the real thing; none of these runs code of the other end's.
REBUILT = {
    int: (lambda v: (format(v, "x"),), _big_int), tuple: (tuple, lambda *items: items),
    frozenset: (tuple, lambda *items: frozenset(items)),
    collections.deque: (lambda v: (list(v), v.maxlen), collections.deque),
    collections.Counter: (lambda v: (dict(v),), collections.Counter),
    collections.OrderedDict: (lambda v: (list(v.items()),), collections.OrderedDict),
    decimal.Decimal: (lambda v: (str(v),), decimal.Decimal)}
REBUILT |= {kind: (lambda v: (v.hex(),), kind.fromhex) for kind in (bytes, bytearray)}
REBUILT |= {kind: (operator.attrgetter(*names.split()), kind) for kind, names in {
    complex: "real imag", range: "start stop step", fractions.Fraction: "numerator denominator",
    datetime.timedelta: "days seconds microseconds", datetime.date: "year month day",
    datetime.time: "hour minute second microsecond",
    datetime.datetime: "year month day hour minute second microsecond"}.items()}
REFILL = {list: list.extend, set: set.update,  # these may be changed in place
          dict: lambda target, items: target.update(zip(items[::2], items[1::2]))}
KINDS = {kind.__name__: kind for kind in (*REBUILT, *REFILL)}
PLAIN = int, float, complex, str, bytes, list, tuple, set, frozenset, dict

def is_error(kind: object): return isinstance(kind, type) and issubclass(kind, BaseException)

EXCEPTIONS = {name: kind for name, kind in vars(builtins).items() if is_error(kind)}

class Peer(Line):
    """One end of the line between judge and understudy: calls both ways, plain data only.

    A value crosses as JSON: None, bool, str, float and small int as themselves, the rest as a list
    that begins with a tag. Mutable containers are numbered in the order of their appearance in a
    call, and the answer brings each of them again under its number: so what the callee changed in
    place is written back into the caller's own objects, and identity survives."""
    def __init__(self, sock: socket.socket, trusted: bool):
        super().__init__(sock)
        self.trusted, self.broken = trusted, ""  # trusted: this end is the judge
        self.ours: list = []  # objects that the other end knows by their number, their place here
        self.numbers: dict[int, int] = {}  # id of such an object -> its number
        self.theirs: dict[int, object] = {}  # by number: one handle each, so that `is` works
    def request(self, name: str, *args, **kwargs):
        """Ask the other end for one operation; meanwhile it may call our callables back."""
        if self.broken: raise ConnectionError(self.broken)
        shared: list = []  # the mutable containers of this call
        message = frame([name, self.encode((args, kwargs), shared)])
        try:
            self.send(message)
            while (reply := self.receive())[0] not in ("return", "raise"):
                self.answer(reply)
            result, _ = self.decode(reply[1], shared)
        except Exception as error:
            self.broken = f"the line to the graded code is broken: {error}"
            raise ConnectionError(self.broken) from None
        if reply[0] == "return" or not isinstance(result, BaseException): return result
        if isinstance(result, StopIteration) and name != "next":
            raise RuntimeError("StopIteration")  # all(map(f, ...)) would take it for its own end
        raise result
    def answer(self, message: list) -> None:
        """Carry out one request of the other end and send the outcome."""
        shared: list = []
        try:
            name, wire = message
            args, kwargs = self.decode(wire, shared)
            if self.trusted and name not in PUBLIC:
                raise TypeError(f"{name} of an object of the test's is not to be had")
            kind, value = "return", OPERATIONS[name](*args, **kwargs)
        except BaseException as error:
            if isinstance(error, TimeUp): raise
            kind, value = "raise", error
        try:
            reply = frame([kind, self.encode((value, (*shared,)), shared)])
        except Exception as error:  # too much, a cycle, or an object that will not be looked at
            reply = frame(["raise", self.encode((ValueError(str(error)[:200]), ()), [])])
        self.send(reply)
    def encode(self, value: object, shared: list):
        """`value` for the wire. `shared`: the containers of the call that this answers, so far."""
        budget, done = NODES, set()  # done: numbers of the containers sent, each whole and once
        numbers = {id(container): number for number, container in enumerate(shared)}
        def pack(depth, items, *head): return [*head, *[walk(item, depth) for item in items]]
        def walk(value, depth):
            nonlocal budget
            kind, budget, depth = type(value), budget - 1, depth + 1
            if budget < 0 or depth > DEPTH:
                raise ValueError("too large, too deep or cyclic a value for a test")
            if value is None or kind in (bool, float, str) or kind is int and abs(value) < 2**53:
                return value
            if kind in REFILL:
                if (number := numbers.setdefault(id(value), len(shared))) == len(shared):
                    shared.append(value)  # which also keeps its id from being another's
                if number in done: return ["@", number]
                done.add(number)
                items = itertools.chain.from_iterable(value.items()) if kind is dict else value
                return pack(depth, items, kind.__name__, number)
            if kind in REBUILT: return pack(depth, REBUILT[kind][0](value), kind.__name__)
            if kind is Remote: return ["own", value._number]
            if is_error(value):
                if EXCEPTIONS.get(name := value.__name__) is value: return ["class", name]
                base = next(filter(is_error, value.__bases__))
                return pack(depth, [base], "class", name, self.number(value))
            if isinstance(value, BaseException):
                args = [a if a is None or type(a) in (bool, *PLAIN) else str(a) for a in value.args]
                return pack(depth, [kind, *args], "error", self.number(value))
            if isinstance(value, tuple) and hasattr(kind, "_fields"):
                return pack(depth, value, "named", kind.__name__, [*kind._fields])
            for base in PLAIN:  # a subclass crosses as what it holds; its methods stay behind
                if isinstance(value, base):
                    return walk(dict(value.items()) if base is dict else base(value), depth)
            return ["ref", self.number(value)]
        return walk(value, 0)
    def number(self, value: object) -> int:
        if (number := self.numbers.setdefault(id(value), len(self.ours))) == len(self.ours):
            if number >= REFERENCES: raise ValueError(f"more than {REFERENCES} objects")
            self.ours.append(value)
        return number
    def decode(self, wire: object, shared: list):
        """The value of `wire`, of exact built-in types; writes back into `shared` at the end."""
        budget, changes = NODES, []
        sizes: dict[int, float] = {}  # nodes below a container: what one more mention of it costs
        def rest(wire, start, depth): return [build(item, depth + 1) for item in wire[start:]]
        def build(wire, depth):
            nonlocal budget
            budget -= 1 + (sizes[wire[1]] if type(wire) is list and wire[0] == "@" else 0)
            if budget < 0 or depth > DEPTH: raise ValueError("too large, deep or cyclic a value")
            if type(wire) is not list: return wire
            tag, first = wire[0], wire[1] if wire[1:] else None
            kind = KINDS.get(tag)
            if kind in REBUILT: return REBUILT[kind][1](*rest(wire, 1, depth))
            if kind:
                before, new = budget, first == len(shared)
                if new:  # begun before its items, which are numbered after it
                    shared.append(kind())
                if first in sizes or first < 0 or type(shared[first]) is not kind:
                    raise ValueError("a container out of order")
                sizes[first] = math.inf  # until it is whole: a cycle breaks the budget
                items = rest(wire, 2, depth)
                sizes[first] = before - budget
                if new:
                    REFILL[kind](shared[first], items)
                else:  # it stays as it is until all of the message proved sound
                    changes.append((shared[first], items))
            if kind or tag == "@": return shared[first]
            if tag == "own": return self.ours[first]
            if tag == "ref": return self.theirs.setdefault(first, Remote(self, first))
            if tag == "named":  # of identifiers only: namedtuple() sees to that
                kind = collections.namedtuple(first, wire[2][:255], rename=True)
                return kind(*rest(wire, 3, depth))
            if tag == "class" and len(wire) == 2: return EXCEPTIONS[first]
            if tag == "class":  # a class of ours for theirs, so that a test can `except` it
                if wire[2] not in self.theirs:
                    def attribute(error, name):
                        if name[:1] == "_" or "_number" not in vars(error):
                            raise AttributeError(name)
                        return self.request("getattr", Remote(self, error._number), name)
                    base, = rest(wire, 3, depth)
                    self.theirs[wire[2]] = type(first, (base,), {"__getattr__": attribute})
                return self.theirs[wire[2]]
            if tag != "error": raise ValueError("an unknown tag")
            kind, *args = rest(wire, 2, depth)
            error = kind.__new__(kind, *args)
            error.__dict__["_number"] = first
            return error
        value = build(wire, 0)
        for target, items in changes:
            target.clear()
            REFILL[type(target)](target, items)
        return value
# ─── Worker and understudy ───

class Interpreter:
    """The namespace that an agent's code lives in, and what runs it there step by step."""
    def __init__(self, result_chars: int):
        self.result_chars, self.steps, self.running, self.streams = result_chars, 0, False, []
        self.module = sys.modules["__main__"] = types.ModuleType("__main__")
    def interrupt(self, *_) -> None:
        if self.running: raise KeyboardInterrupt
    def run(self, code: str) -> tuple[int, str | None]:
        """Run one step; what it printed has reached the descriptors on return."""
        outcome = 1, None
        try:
            if signal.getsignal(signal.SIGINT) != self.interrupt:
                signal.signal(signal.SIGINT, self.interrupt)
            if not self.streams or any(stream.closed for stream in self.streams):
                options = {"encoding": "utf-8", "errors": "backslashreplace", "closefd": False}
                self.streams = [open(fd, "w" if fd else "r", 1, **options) for fd in (0, 1, 2)]
            sys.stdin, sys.stdout, sys.stderr = self.streams
            outcome = self.execute(code)
        except BaseException:
            pass  # the time-out's interrupt came while an error was being reported
        self.running = False
        for stream in (sys.stdout, sys.stderr, *self.streams[1:]):
            with contextlib.suppress(BaseException):
                stream.flush()
        return outcome
    def execute(self, code: str) -> tuple[int, str | None]:
        self.steps += 1
        name, names, half = f"<step {self.steps}>", vars(self.module), self.result_chars // 2
        linecache.cache[name] = len(code), None, code.splitlines(True), name  # for tracebacks
        self.running = True
        try:
            tree = ast.parse(code, name)
            last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
            if tree.body:
                exec(compile(tree, name, "exec", dont_inherit=True), names)
            if not last: return 0, None
            last = compile(ast.Expression(last.value), name, "eval", dont_inherit=True)
            if (value := eval(last, names)) is None: return 0, None
            if (over := len(text := repr(value)) - 2 * half) <= 0: return 0, text
            return 0, f"{text[:half]}... {over} characters cut ...{text[-half:]}"
        except SystemExit as error:
            code = 0 if error.code is None else error.code
            if isinstance(code, int): return code & 0xFF, None
            print(code, file=sys.stderr)
        except BaseException as error:
            links = [report := traceback.TracebackException.from_exception(error)]
            for link in links:  # keep the candidate's own lines only, in the whole chain
                link.stack[:] = [line for line in link.stack if line.filename.startswith("<step ")]
                group = getattr(link, "exceptions", None) or ()
                links += filter(None, (link.__cause__, link.__context__, *group))
            print("".join(report.format()), end="", file=sys.stderr)
        return 1, None

def worker_main(control: Line, line: socket.socket, limits: dict) -> None:
    """Run what the server sends; an understudy ends by answering the judge's calls."""
    interpreter, peer = Interpreter(limits["result_chars"]), Peer(line, trusted=False)
    names, socket.socketpair = vars(interpreter.module), pipe_pair
    OPERATIONS["names"] = lambda asked: {name: names[name] for name in asked if name in names}
    while (message := control.receive())["op"] == "run":
        exit_code, result = interpreter.run(message["code"])
        control.send(frame({"seq": message["seq"], "exit_code": exit_code, "result": result}))
    while True:
        peer.answer(peer.receive())

# ─── Judge ───

class TimeUp(BaseException):
    """The grading's time is over. Not an Exception, so that tests rarely swallow it."""

class Scorekeeper(ast.NodeTransformer):
    """Makes each `assert T` a `try: check(n, T)  except: failed(n)`: the run goes on after it."""
    def __init__(self, source: str):
        self.marks: list[bool | None] = []  # of each assert: None until it ran; was it always true?
        self.error = ""  # built-in exception type of the first failure that was one
        failures = Exception, SystemExit, KeyboardInterrupt, GeneratorExit  # all but TimeUp
        self.names = {"__check__": self.check, "__failed__": self.failed, "__failures__": failures}
        tree = ast.fix_missing_locations(self.visit(ast.parse(source)))
        self.code = compile(tree, "<tests>", "exec")
    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        code = f"try: __check__({(n := len(self.marks))}, 0)\nexcept __failures__: __failed__({n})"
        self.marks.append(None)
        attempt = ast.parse(code).body[0]
        attempt.body[0].value.args[1] = node.test
        return ast.copy_location(attempt, node)
    def check(self, number: int, verdict: object) -> None:
        if not verdict: raise AssertionError
        self.marks[number] = self.marks[number] is not False
    def failed(self, *numbers: int) -> None:
        """Note the exception that is being handled; a failed assert's comes with its number."""
        for number in numbers:
            self.marks[number] = False
        kinds = (k for k in sys.exc_info()[0].__mro__ if EXCEPTIONS.get(k.__name__) is k)
        self.error = self.error or next(kinds).__name__.replace("AssertionError", "")

def judge_main(control: Line, line: socket.socket, limits: dict) -> None:
    """Run the hidden tests against the understudy's functions, and report the counts."""
    task, peer, ended, timed_out = control.receive(), Peer(line, trusted=True), False, False
    keeper, helpers = Scorekeeper(task["tests"]), compile(task["helpers"], "<helpers>", "exec")
    space: dict = {"__name__": "tests", **keeper.names}
    seconds = control.receive()["seconds"]  # all that can be done ahead is done
    def time_up(*_): raise TimeUp
    try:
        signal.signal(signal.SIGALRM, time_up)
        # It repeats, in case that a test's bare `except:` swallows the first.
        signal.setitimer(signal.ITIMER_REAL, seconds, 0.05)
        exec(helpers, space)
        found = peer.request("names", task["names"])
        # not the names of `found`: the other end may name anything
        space |= {name: found[name] for name in task["names"] if name in found}
        for name in task["classes"]:
            if type(value := space.get(name)) is Remote:
                space[name] = Remote(peer, value._number, True)
        exec(keeper.code, space)
        ended = True
    except TimeUp:
        timed_out = True
    except BaseException:
        keeper.failed()
    signal.setitimer(signal.ITIMER_REAL, 0)
    passed = keeper.marks.count(True)
    solved = ended and passed > 0 and False not in keeper.marks
    report = {"passed": passed, "solved": solved, "timed_out": timed_out, "error": keeper.error}
    control.send(frame(report))

# ─── Janitor ───

def janitor_main(control: Line, _: socket.socket, limits: dict) -> None:
    """Measure and clear the others' folders, which may hold anything: only this process, itself
    shut in, ever walks them. At the end of its line, which is the server's end, it clears all."""
    # Names of its own: an earlier janitor may have left some.
    serial, base = itertools.count(os.getpid() << 32), os.getcwd()
    def entries(folder: str) -> list[os.DirEntry]:
        os.chmod(folder, 0o700)  # it may have been locked
        return [*os.scandir(folder)]
    def clear(folder: str) -> None:
        pending = [f"{base}/{folder}"]
        for path in pending:
            with contextlib.suppress(OSError):  # what is left goes with the server's end
                for entry in entries(path):
                    if entry.is_dir(follow_symlinks=False):
                        # Moved up before it is emptied: no recursion, and no path gets too long.
                        pending.append(f"{base}/.{os.getpid()}.{next(serial)}")
                        os.chmod(entry.path, 0o700)
                        os.rename(entry.path, pending[-1])
                    else:
                        os.unlink(entry.path)
                os.rmdir(path)
    def over(folder: str) -> bool:
        pending, count, size = [folder], 0, 0
        try:
            for path in pending:
                for entry in entries(path):
                    count, size = count + 1, size + entry.stat(follow_symlinks=False).st_blocks
                    if count > limits["folder_entries"] or size * 512 > limits["folder_bytes"]:
                        return True
                    pending += [entry.path] * entry.is_dir(follow_symlinks=False)
        except OSError as error:
            # Gone: its owner is at work there. Too long a name: nobody needs that deep a tree.
            return error.errno == errno.ENAMETOOLONG
        return False
    with contextlib.suppress(EOFError, OSError):
        while message := control.receive():
            if message["op"] == "clear":
                clear(message["folder"])
            else:
                found = [name for name in message["folders"] if over(f"{base}/{name}")]
                control.send(frame({"over": found}))
    for name in os.listdir(base) * 3:
        clear(name)

# ─── Zygote ───

def zygote_main(config: dict) -> None:
    """Fork the others on the server's command, and reap them; end with all of them at its EOF.
    Commands are lines of JSON on descriptor 0, each with the new process's descriptors. Answers:
    {"id", "pid", "pidfd"} with a pidfd, {"id", "error"}, and {"exit": pid, "status"}."""
    for name in config["preload"]:
        try:
            __import__(name)
        except ImportError as error:
            sys.exit(f"python_env: cannot preload {name!r}: {error}")
    control, own_pid, children = socket.socket(fileno=0), os.getpid(), {}
    files = resource.RLIMIT_NOFILE
    resource.setrlimit(files, (4096, resource.getrlimit(files)[1]))
    wake, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's to handle
    readable = open_readable(config["hidden"])
    gc.collect()
    gc.freeze()  # so that a child's collections do not touch, and copy, the shared pages
    def tell(fds: list[int] = [], **message) -> None:
        with contextlib.suppress(OSError):  # the server's end is noticed by reading
            socket.send_fds(control, [json.dumps(message).encode() + b"\n"], fds)
    def spawn(spec: dict, fds: list[int]) -> None:
        try:
            if spec["role"] != "janitor":  # whose folder is the one that holds all the others
                os.mkdir(spec["folder"], 0o700)
            if (pid := os.fork()) == 0:
                child_main(spec, fds, readable, own_pid)
            children[pid] = spec["role"]
            if hasattr(os, "pidfd_open"):
                fds.append(os.pidfd_open(pid))  # before it can be reaped: it cannot be another's
            pidfd = fds[spec["fds"]:]
            tell(pidfd, id=spec["id"], pid=pid, pidfd=len(pidfd))
        except OSError as error:
            tell(id=spec["id"], error=str(error))
        for fd in fds:
            os.close(fd)
    def reap() -> None:
        os.read(wake, 4096)
        while children and (ended := os.waitpid(-1, os.WNOHANG))[0]:
            children.pop(ended[0], None)
            tell(exit=ended[0], status=ended[1])
    tell(id="ready", isolation=probe())
    pending, fds, data = b"", [], b"\n"
    while data:
        ready, _, _ = select.select([control, wake], [], [])
        if wake in ready:
            reap()
        if control in ready:
            data, received = b"", []
            with contextlib.suppress(ConnectionResetError):  # it died with answers of ours unread
                data, received, _, _ = socket.recv_fds(control, 65_536, 64)
            *lines, pending = (pending + data).split(b"\n")
            fds += received
            for spec in map(json.loads, lines):
                given, fds = fds[:spec["fds"]], fds[spec["fds"]:]
                spawn(spec, given)
    for pid, role in children.items():
        if role != "janitor":  # which notices the end by itself, and clears up
            os.kill(pid, signal.SIGKILL)
    while children and select.select([wake], [], [], 10)[0]:
        reap()
    with contextlib.suppress(OSError):
        os.rmdir(config["base"])

def child_main(spec: dict, fds: list[int], readable: list, zygote: int) -> None:
    """What a fork becomes; it never returns. The zygote's own descriptors fill 0 to 4, so the new
    ones are above; they come as control, line, and, of a worker that is heard, stdout, stderr."""
    try:
        if LINUX:
            LIBC.prctl(1, int(signal.SIGKILL), None, 0, 0)  # PR_SET_PDEATHSIG
        if os.getppid() != zygote: return  # it died before that
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
                   "NOFILE": limits["open_files"], "NPROC": limits["processes"],
                   "CPU": sys.maxsize if role == "janitor" else limits["cpu_s"]}
        os.closerange(max([4, *(fd for fd, _ in readable)]) + 1, 4096)
        lock_down(readable, folder, rlimits, filtered=role != "janitor")
        random.seed(spec["seed"])
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed(spec["seed"] % 2**32)
        main = {"janitor": janitor_main, "judge": judge_main, "worker": worker_main}[role]
        main(Line(socket.socket(fileno=3)), socket.socket(fileno=4), limits)
    except (EOFError, OSError):
        pass  # the server hung up
    finally:
        os._exit(70)
# ═══ 5. Sandbox: the server's side of those processes ═════════════════════════════════════════════

COMMON_MODULES = (
    "math cmath re collections itertools functools heapq bisect json random string datetime time "
    "decimal fractions statistics typing dataclasses copy enum abc operator textwrap contextlib "
    "calendar hashlib struct io array queue threading unicodedata").split()
WORKER_ENVIRONMENT = dict.fromkeys(  # the fixed hash seed makes scores agree between servers
    ("MALLOC_ARENA_MAX", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1") | {
    "PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}
PATIENCE_S = 60.0  # with our own zygote and janitor: what is to be preloaded may import slowly
REPLY_BYTES = 2**20  # that a process may send and nobody has read; more ends its connection
BROKEN = EOFError, OSError, ValueError, RecursionError, asyncio.TimeoutError  # of receive()
# What came of running code; `died`: the process is gone, and its names with it.
Outcome = collections.namedtuple("Outcome", "exit_code result timed_out died")
# Off sys.path goes the current folder, which `-c` puts first, and ours, where an editable install
# puts it: what is on the path is readable.
ZYGOTE_PROGRAM = """import sys
sys.path[:] = filter(None, sys.path)
import json, os
config = json.loads(sys.argv[1])
sys.path[:] = [path for path in sys.path if os.path.realpath(path) not in config["off_path"]]
%s
zygote_main(config)"""

class Capture(asyncio.Protocol):
    """An output stream of a worker: its pipe is emptied at once, a head and a tail are kept."""
    def __init__(self, most: int):
        self.half, self.closed, self.data, self.cut = most // 2, False, b"", 0
    def data_received(self, data: bytes) -> None:
        self.data, over = self.data + data, len(self.data) + len(data) - 2 * self.half
        if over > 0:
            self.data, self.cut = self.data[:self.half] + self.data[-self.half:], self.cut + over
    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True  # the process died, or its code did that: a new one is wanted
    def take(self) -> str:
        """All since the last call. Once a reply is here, so is what was printed before it: the
        loop reads whatever is ready, a whole pipe at a time, before it wakes who waits."""
        said = f"\n... {self.cut} bytes cut ...\n".encode() if self.cut else b""
        text = self.data[:self.half] + said + self.data[self.half:]
        self.data, self.cut = b"", 0
        return text.decode(errors="replace")

class Process(asyncio.Protocol):
    """A process forked by the zygote, as the server holds it. All that it sends may be a lie."""
    def __init__(self, sandbox: "Sandbox", folder: str):
        self.sandbox, self.folder, self.streams, self.judge = sandbox, folder, [], None
        self.held: list[Any] = []  # to be closed with it: its pipes, and the judge that calls it
        self.inbox, self.news = bytearray(), asyncio.Event()  # what came; news of more, or its end
        self.pid, self.pidfd, self.seq, self.why = 0, -1, 0, ""  # why: the server ended it
        self.busy = self.touched = False  # touched: the next sample looks at its threads and files
        self.started, self.exited = (asyncio.get_running_loop().create_future() for _ in range(2))
    def connection_made(self, transport: Any) -> None: self.transport = transport
    def connection_lost(self, error: Exception | None) -> None: self.news.set()
    def data_received(self, data: bytes) -> None:
        self.inbox += data
        self.news.set()
        if len(self.inbox) > REPLY_BYTES:
            self.transport.abort()
    def over(self, status: int = signal.SIGKILL, error: str = "the zygote died") -> None:
        """It ended with this wait status; or the error tells why it never began."""
        for future, value in ((self.started, error), (self.exited, status)):
            if not future.done():
                future.set_result(value)
        if self.pidfd >= 0:
            os.close(self.pidfd)
        self.pidfd = -1
    def send(self, message: dict) -> None:
        if not self.transport.is_closing():  # else receive() will tell
            self.transport.write(frame(message))
    async def receive(self) -> dict:
        """Its next frame. Raises one of BROKEN when it is gone or talks nonsense."""
        while len(self.inbox) < (size := 4 + int.from_bytes(self.inbox[:4], "big")):
            if self.transport.is_closing() or size > REPLY_BYTES:
                raise EOFError("the process is gone, or announces too long a frame")
            self.news.clear()
            await self.news.wait()
        message = json.loads(self.inbox[4:size])
        del self.inbox[:size]
        if not isinstance(message, dict): raise ValueError("a frame that is no object")
        return message
    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self.pidfd >= 0:
                signal.pidfd_send_signal(self.pidfd, number)
            elif self.pid and not self.exited.done():
                os.kill(self.pid, number)  # a system without pidfds: it may just have been reaped
    def wake(self) -> None:
        self.busy = self.touched = True
        self.signal(signal.SIGCONT)  # a grading, or the sampler, may have stopped it
    def kill(self, why: str = "") -> None:
        """End it now; who waits for a frame of it gets an EOFError."""
        self.why = self.why or why
        self.signal(signal.SIGKILL)
        self.transport.abort()
    def close(self) -> None:
        """Kill it and give back what it holds; its folder is cleared once it has ended."""
        self.kill()
        for held in self.held:
            held.close()
    async def run(self, code: str, seconds: float) -> Outcome:
        """Run code for at most `seconds` and a grace: first interrupted, then killed."""
        loop, limits, died = asyncio.get_running_loop(), self.sandbox.limits, False
        end, self.seq = loop.time() + seconds, self.seq + 1
        timers = [loop.call_at(end, self.signal, signal.SIGINT),
                  loop.call_at(end + limits.grace_s, self.kill, "it did not stop in time")]
        self.wake()
        try:
            self.send({"op": "run", "code": code, "seq": self.seq})
            seq, exit_code, result = map((await self.receive()).get, ("seq", "exit_code", "result"))
            if seq != self.seq or type(exit_code) is not int or not isinstance(result, str | None):
                raise ValueError("forged: our program says no such thing")
        except BROKEN:
            died = True
            self.kill()
        except asyncio.CancelledError:
            self.kill("its client went away during a step")
            raise
        finally:
            self.busy = False
            for timer in timers:
                timer.cancel()
        timed_out = loop.time() >= end
        if died:
            status = os.waitstatus_to_exitcode(await self.sandbox.owed(self.exited))
            exit_code, result = status if status >= 0 else 128 - status, None
        result = result and result[:limits.result_chars + 100]
        return Outcome(124 if timed_out else exit_code & 0xFF, result, timed_out, died)

class Sandbox:
    """The zygote and everything that it forked. One a server; it lives in one event loop.

    `preload`: more modules to import before the forks. `hidden`: paths that no worker may read.
    `isolation`: what was truly reached on this machine; it is tried out in a child at start."""
    def __init__(self, limits: Limits = LIMITS, preload: tuple = (), hidden: tuple = ()):
        self.limits, self.preload, self.hidden, self.isolation = limits, preload, hidden, {}
        self.processes: dict[int | str, Process] = {}  # by pid; by folder, until that is known
        self.base, self._lost = "", True
        self._up = self._janitor = self._sampler = self._burial = None
        self.spec_limits = dataclasses.asdict(limits) | {"processes": 4_096}
        for path in ("/sys/fs/cgroup/pids.max", "/sys/fs/cgroup/pids/pids.max"):
            with contextlib.suppress(OSError, ValueError):  # the server keeps a reserve of them
                self.spec_limits["processes"] = max(64, int(Path(path).read_text()) - 32)
    async def start(self) -> None:
        """Start the zygote, unless it runs already. Raises FactoryError when it does not start."""
        if not self._up or self._up.done() and self._lost:
            self._up = asyncio.create_task(self._launch())
        await asyncio.shield(self._up)  # others wait for it as well, whatever becomes of us
    async def _launch(self) -> None:
        own, source = Path(os.path.realpath(__file__)), inspect.getsource(sys.modules[__name__])
        source = source[source.index("# ═══ 4. "):source.index("# ═══ 5. ")]
        hidden = [own, *own.parent.glob(f"__pycache__/{own.stem}.*")]
        installed = own.parent.name in ("site-packages", "dist-packages")
        try:
            if self._burial:
                await self._burial  # then nothing writes to the base any more
            if not os.path.isdir(self.base):
                self.base = os.path.realpath(tempfile.mkdtemp(prefix="python_env-"))
            config = {"preload": [*COMMON_MODULES, *self.preload], "base": self.base,
                      "off_path": [] if installed else [str(own.parent)],
                      "hidden": [*map(os.path.realpath, map(str, (*hidden, *self.hidden)))]}
            self._control, theirs = socket.socketpair()
            with theirs:
                self._zygote = subprocess.Popen(
                    [sys.executable, "-s", "-c", ZYGOTE_PROGRAM % source, json.dumps(config)],
                    stdin=theirs, stdout=subprocess.DEVNULL, env=WORKER_ENVIRONMENT, cwd="/",
                    start_new_session=True)
            if LINUX:
                LIBC.prctl(36, 1, None, 0, 0)  # CHILD_SUBREAPER: its orphans shall be ours
            self._pending, self._fds, self._janitor, self._lost = b"", [], None, False
            self._control.setblocking(False)
            asyncio.get_running_loop().add_reader(self._control, self._read)
            self._janitor = await self._spawn("janitor", folder=self.base)
            # What a zygote that died has left; cleared before it could hit a new worker's folder
            self._janitor.send({"op": "clear", "folder": "."})
            await self._measure(self._janitor, [])
        except BROKEN as error:
            self._fail()
            raise FactoryError(f"the zygote, which forks interpreters, failed: {error}") from None
        self._sampler = self._sampler or asyncio.create_task(self._sample())
    async def _measure(self, janitor: Process, processes: list[Process]) -> None:
        """End those whose files grew over the limit; only the janitor looks into folders."""
        janitor.send({"op": "measure", "folders": [process.folder for process in processes]})
        over = (await asyncio.wait_for(janitor.receive(), PATIENCE_S)).get("over", [])
        for process in processes:
            if process.folder in over:
                process.kill("its files grew over the limit")
    async def owed(self, future: asyncio.Future) -> Any:
        """What the zygote will bring, or its end will; the future is not cancelled with us."""
        while not (await asyncio.wait([future], timeout=PATIENCE_S))[0]:
            self._fail()
        return future.result()
    def _read(self) -> bool:
        """Take up answers of the zygote; False: no more. It runs no candidate code."""
        data, fds = b"", []
        with contextlib.suppress(OSError):
            data, fds, _, _ = socket.recv_fds(self._control, 65_536, 64)
        self._fds += fds
        *lines, self._pending = (self._pending + data).split(b"\n")
        for message in map(json.loads, lines):
            if isolation := message.get("isolation"):
                self.isolation = isolation | {"full": all(isolation.values())}
            elif "pid" in message:  # registered here, as its exit may be the next line
                process = self.processes[message["pid"]] = self.processes.pop(message["id"])
                process.pid = message["pid"]
                process.pidfd = self._fds.pop(0) if message["pidfd"] and self._fds else -1
                process.started.set_result("")
                if process.transport.is_closing():
                    process.kill()  # who asked for it was cancelled meanwhile
            else:
                process = self.processes.pop(message.get("exit") or message["id"])
                process.over(message.get("status", 0), message.get("error", ""))
                if self._janitor:
                    self._janitor.send({"op": "clear", "folder": process.folder})
        if not data or self._janitor and self._janitor.exited.done():
            self._fail()
        return bool(data)
    def _fail(self) -> None:
        """Give up the zygote and all of its processes; start() begins anew."""
        if self._lost: return
        self._lost = True
        asyncio.get_running_loop().remove_reader(self._control)
        self._zygote.kill()
        self._burial = asyncio.create_task(self._bury())
    async def _bury(self) -> None:
        """Reap the zygote and, as its subreaper, what it left: by pidfd, as pids are used again."""
        while self._zygote.poll() is None:
            await asyncio.sleep(0.005)
        while self._read():
            pass  # it may have announced more processes
        self._control.close()
        lost, self.processes = [*self.processes.values()], {}
        for process in filter(None, [*lost, self._janitor]):
            process.kill("the sandbox had to be started again")
        orphans = [("P_PIDFD", process.pidfd) for process in lost]
        for kind, key in (*orphans, ("P_PGID", self._zygote.pid)):  # its group: one not announced
            with contextlib.suppress(OSError, AttributeError):  # reaped before, or not on Linux
                while not os.waitid(getattr(os, kind), key, os.WEXITED | os.WNOHANG):
                    await asyncio.sleep(0.005)
        for process in lost:
            process.over()
        with contextlib.suppress(OSError):  # not empty: the next janitor's to clear
            os.rmdir(self.base)
    async def spawn(self, seed: int, *, streams: bool = False, judged: bool = False) -> Process:
        """Fork a worker. `streams`: capture its output; `judged`: fork its judge as well. Raises
        FactoryError when it cannot be had: no more processes, memory or descriptors."""
        end = time.monotonic() + 1  # by then the sampler has ended somebody else's thread bomb
        while True:
            try:
                await self.start()
                near, far = socket.socketpair()
                with near, far:
                    return await self._spawn("worker", seed, near, far if judged else None, streams)
            except (OSError, FactoryError) as error:
                if time.monotonic() > end:
                    raise FactoryError(f"no interpreter could be started: {error}") from None
            await asyncio.sleep(0.05)
    async def _spawn(self, role: str, seed: int = 0, line: Any = None, judge_line: Any = None,
                     streams: bool = False, folder: str = "") -> Process:
        folder = folder or secrets.token_hex(16)  # stat() works anywhere: names must not be guessed
        loop, control = asyncio.get_running_loop(), self._control
        ours, theirs = socket.socketpair()
        with theirs, contextlib.ExitStack() as given_away:
            _, process = await loop.create_connection(lambda: Process(self, folder), sock=ours)
            try:
                given = [theirs, line or theirs]
                for _ in range(2 * streams):
                    read, write = map(os.fdopen, os.pipe(), ("rb", "wb"))
                    given.append(given_away.enter_context(write))
                    transport, stream = await loop.connect_read_pipe(
                        lambda: Capture(self.limits.output_bytes), read)
                    process.held.append(transport)
                    process.streams.append(stream)
                spec = {"id": folder, "role": role, "seed": seed, "fds": len(given),
                        "folder": os.path.join(self.base, folder),
                        "limits": self.spec_limits}
                data = json.dumps(spec).encode() + b"\n"  # so short that it is sent whole or not
                while True:
                    with contextlib.suppress(BlockingIOError):
                        socket.send_fds(control, [data], [end.fileno() for end in given])
                        self.processes[folder] = process
                        break
                    await asyncio.sleep(0.005)  # the zygote is behind with its forks
                if judge_line:  # forked side by side
                    process.judge = await self._spawn("judge", seed, judge_line)
                    process.held.append(process.judge)
                if error := await self.owed(process.started): raise OSError(error)
                return process
            except BaseException:
                process.close()
                raise
    async def _sample(self) -> None:
        """End what grew too many threads (root has no RLIMIT_NPROC) or files; revive the zygote."""
        while True:
            await asyncio.sleep(self.limits.sample_s)
            with contextlib.suppress(FactoryError):
                await self.start()
            if not (touched := [p for p in self.processes.values() if p.touched]): continue
            janitor = self._janitor
            for process in touched:
                process.touched = process.busy
                if not process.busy:  # what it left running stands still until the next step
                    process.signal(signal.SIGSTOP)
                with contextlib.suppress(OSError):
                    if len(os.listdir(f"/proc/{process.pid}/task")) > self.limits.threads:
                        process.kill(f"it had more than {self.limits.threads} threads")
            try:
                await self._measure(janitor, touched)
            except BROKEN:
                janitor.kill()  # _read() will notice
    async def close(self) -> None:
        """End every process and clear every folder; spawn() would start it all again."""
        with contextlib.suppress(FactoryError):
            if self._up:
                await self.start()  # which clears up after a zygote that died
        if self._sampler:
            self._sampler = self._sampler.cancel() and None
        if not self._lost:
            workers = [p for p in self.processes.values() if p is not self._janitor]
            for process in workers:
                process.close()
            await asyncio.wait([self._up, *(p.exited for p in workers)], timeout=0.2)
            self._janitor.transport.close()  # at this end of file it clears all; _read() goes on
            await asyncio.wait([self._janitor.exited], timeout=0.5)  # with more, it outlives us
        if self._burial:
            await asyncio.wait([self._burial], timeout=0.2)
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
        """Carry out one action; the observation tells the reward, and whether the end is there."""
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

class PythonEnvironment(Environment[PythonAction, PythonObservation]):
    """A session of Python code in an interpreter of its own, judged by hidden tests. `turn` counts
    the episodes of all sessions, so that tasks rotate where nobody chooses one."""
    def __init__(self, sandbox: Sandbox, tasks: dict[str, Task], turn: typing.Iterator[int]):
        self.sandbox, self.limits, self.tasks, self.turn = sandbox, sandbox.limits, tasks, turn
        self.task, self.episode = REPL, PythonState(task_id=REPL.task_id)
        self.worker: Process | None = None  # the agent's interpreter
        self.understudy: asyncio.Task[Process] | None = None  # brings another to where that one is
        self.processes: list[Process] = []  # all of the session's
    def _choose(self, options: PythonResetRequest, row: dict[str, Any]) -> Task:
        """An inline task, the one that is named, or the next in turn (by seed: a fixed one)."""
        if any(row.get(key) is not None for key in ("tests", "test", "test_list")):
            return Task.from_row(row)
        names, name, seed = [*self.tasks], str(options.task_id)[:200], options.seed
        if options.task_id is None:
            turn = next(self.turn) if seed is None else random.Random(seed).randrange(2**32)
            name = names[turn % len(names)]
        if task := {REPL.task_id: REPL, **self.tasks}.get(name): return task
        near = difflib.get_close_matches(name, [*names, REPL.task_id], 1, 0)[0]
        words = f"no task {name!r}; did you mean {near!r}? GET /tasks lists them, tests= brings one"
        entry = {"type": "unknown_task", "loc": ["task_id"], "msg": words, "input": name}
        raise InvalidRequest(f"task_id: {words}", [entry])
    async def reset(self, /, **row: Any) -> PythonObservation:
        """Begin an episode in a new interpreter. Keys that mean nothing here are ignored, as
        trainers pass every column of a row. Raises InvalidRequest, FactoryError."""
        options = known_fields(PythonResetRequest, row)
        task = self.task = self._choose(options, row)
        bounds = filter(None, (task.tests and self.limits.task_steps, options.max_steps))
        most = min(bounds, default=None)
        self.gain, self.single = options.reward == "gain", bool(task.tests) and most == 1
        self.seed = secrets.randbits(32) if options.seed is None else options.seed
        self.episode = PythonState(episode_id=options.episode_id or secrets.token_hex(8),
                                   task_id=task.task_id, max_steps=most)
        await self._new_worker()
        return PythonObservation(
            task_id=task.task_id, prompt=task.prompt, tests_total=task.tests_total)
    async def _new_worker(self) -> None:
        """Begin the session's interpreter anew, and with it the code that every grading repeats."""
        self._release()
        self.transcript = [self.task.setup] if self.task.setup else []
        worker = self.worker = await self._spawn(streams=True, judged=self.single)
        for code in self.transcript:
            await worker.run(code, self.limits.step_s)
        for stream in worker.streams:
            stream.take()
        self._prepare()
    async def _spawn(self, **options: bool) -> Process:
        process, task = await self.sandbox.spawn(self.seed, **options), self.task
        self.processes.append(process)
        if process.judge:  # which prepares all that it can
            process.judge.send({"tests": task.tests, "helpers": task.helpers,
                                "names": [*task.names], "classes": [*task.classes]})
        return process
    def _prepare(self) -> None:
        """Begin the next grading ahead of time: an understudy replays what came before."""
        if self.task.tests and self.worker and not (self.single or self.understudy):
            self._rehearse([*self.transcript], self.limits.replay_s)
    def _rehearse(self, codes: list[str], seconds: float) -> None:
        """Have the understudy, a new one if there is none, run these as well, and no longer."""
        before, end = self.understudy, time.monotonic() + seconds
        async def rehearse() -> Process:
            process = await (before or self._spawn(judged=True))
            for code in codes:
                outcome = await process.run(code, max(0.0, end - time.monotonic()))
                if outcome.died or outcome.timed_out:
                    process.kill("the code took too long, or died, when it was run again")
                    break
            return process
        self.understudy = asyncio.create_task(rehearse())
        self.understudy.add_done_callback(lambda task: task.cancelled() or task.exception())
    def _release(self, keep: Process | None = None) -> None:
        """End all of the session's processes but one."""
        if self.understudy:
            self.understudy.cancel()
        for process in self.processes:
            if process is not keep:
                process.close()
        self.worker, self.understudy, self.processes = keep, None, [keep] if keep else []
    def _check(self, action: PythonAction, timeout_s: float | None) -> float:
        """The seconds that the action gets. Raises InvalidRequest when it asks for too much."""
        seconds, limits = action.timeout_s or timeout_s or self.limits.step_s, self.limits
        sizes = [len(code.encode(errors="surrogatepass"))
                 for code in (*self.transcript, action.code)]
        for value, what, most in (
                (seconds, "timeout_s", limits.step_max_s),
                (sizes[-1], "bytes of code", limits.code_bytes),
                (sum(sizes), "bytes of the episode's code", limits.transcript_bytes)):
            if value > most:
                raise InvalidRequest(f"{value:g} {what} asked for; the limit is {most:g}")
        return seconds
    async def step(self, action: PythonAction, timeout_s: float | None = None) -> PythonObservation:
        """Run the action's code and, where the task has tests, judge all steps so far.

        `timeout_s` counts where the action has none. Raises InvalidRequest, FactoryError, and
        ExecutionError when the grading itself failed: a fault of ours must not teach a model
        anything, so there is no reward then."""
        seconds, notes, task, episode = self._check(action, timeout_s), [], self.task, self.episode
        if not self.worker or any(stream.closed for stream in self.worker.streams):  # as at death
            why = self.worker and self.worker.why or "the old one had died"
            notes.append(f"The interpreter is new: {why}.")
            await self._new_worker()
        self._prepare()
        worker, deadline, passed, solved = self.worker, time.monotonic() + seconds, 0, False
        if self.understudy:
            self._rehearse([action.code], seconds)
        episode.step_count += 1
        try:
            outcome = await worker.run(action.code, seconds)
            if self.worker is not worker:
                raise ExecutionError("the session was closed during the step")
            stdout, stderr = (stream.take() for stream in worker.streams)
            if outcome.timed_out:
                notes.append(f"The code timed out after {seconds:g} s; gradings leave it out.")
            if outcome.died:
                notes.append(f"The interpreter was restarted{': ' * bool(worker.why)}{worker.why}.")
            if task.tests and not (outcome.timed_out or outcome.died):
                self.transcript.append(action.code)
                if self.understudy:  # until the next step it cannot watch that one meet the tests
                    worker.signal(signal.SIGSTOP)
                passed, solved, verdict = await self._judge(deadline)
                notes.append(verdict)
        finally:
            self._release(keep=self.worker)
        score = passed / task.tests_total if task.tests else 0.0
        reward = max(0.0, score - episode.best_reward) if self.gain else score
        episode.best_reward = max(episode.best_reward, score)
        episode.done = solved or episode.step_count == episode.max_steps
        if episode.done or outcome.died:
            self._release()
        self._prepare()
        return PythonObservation(
            done=episode.done, reward=reward, stdout=stdout, stderr=stderr, result=outcome.result,
            exit_code=outcome.exit_code, task_id=task.task_id, tests_passed=passed,
            tests_total=task.tests_total, feedback=" ".join(notes))
    async def _judge(self, deadline: float) -> tuple[int, bool, str]:
        """Let the hidden tests call the code: how many passed, whether it is solved, a sentence."""
        total, late = self.task.tests_total, "judging took too long"
        try:
            process = await self.understudy if self.understudy else self.worker
            if process.why: return 0, False, f"Not judged: {process.why}."
            judge, seconds = process.judge, deadline - time.monotonic()
            seconds = max(seconds, self.limits.grading_min_s)
            timer = asyncio.get_running_loop().call_later(seconds + 0.5, judge.kill, late)
            try:
                for each, message in ((process, {"op": "serve"}), (judge, {"seconds": seconds})):
                    each.wake()
                    each.send(message)
                report = await judge.receive()
            except EOFError:
                if judge.why != late: raise
                report = {"timed_out": True}
            finally:
                timer.cancel()
        except (FactoryError, *BROKEN) as error:
            raise ExecutionError(f"the grading failed, hence no reward: {error}") from None
        # The tests may be a client's, so the judge's word is checked as well.
        solved, passed, error = map(report.get, ("solved", "passed", "error"))
        passed = max(0, min(passed, total - 1)) if type(passed) is int else 0
        words = f"; the first that failed raised {error}" if str(error) in EXCEPTIONS else ""
        words = "; the time was up before the rest" if report.get("timed_out") else words
        passed = total if solved is True else passed
        return passed, solved is True, f"{passed} of {total} tests passed{words}."
    async def state(self) -> PythonState:
        return dataclasses.replace(self.episode)
    async def close(self) -> None:
        self._release()

# ═══ 7. Protocol: bytes in, events and bytes out; nothing here waits ══════════════════════════════

# HTTP/1.1 (RFC 9112: bare section numbers are its own). Where it lets us mend or refuse, we refuse:
# a proxy in front may mend differently, and two readings of the same bytes are how requests are
# smuggled. So a bare LF ends no line (2.2), and a SINGLE header never comes twice.
NEED_MORE, EXPECT_CONTINUE, CLOSED = Signal = Enum("Signal", "NEED_MORE EXPECT_CONTINUE CLOSED")
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"  # the answer to EXPECT_CONTINUE
TOKEN, TEXT = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", r"[\t -~\x80-\xff]*"
FIELDS = rf"((?:{TOKEN}:{TEXT}\r\n)*)"
HEAD = rf"(?:\r\n)?({TOKEN}) ([!-~]+) HTTP/([0-9]\.[0-9])\r\n{FIELDS}\r\n"  # 2.2: one CRLF before
CHUNK_SIZE = rf"([0-9A-Fa-f]{{1,16}})((?:[ \t]*;{TEXT})?)\r\n"
SINGLE = {"host", "content-length", "transfer-encoding", "origin", "authorization", "content-type"}

class HTTPError(PythonEnvError):
    """The peer's fault; `headers` (Allow, ...) go into the answer."""
    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers or {}

def require(fact: object, status: int, message: str, headers: dict | None = None) -> None:
    if not fact: raise HTTPError(status, message, headers)

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
    for name, value in (line.split(":", 1) for line in fields.split("\r\n")[:-1]):
        name, value = name.lower(), value.strip(" \t")
        require(name not in headers or name not in SINGLE, 400, f"more than one {name} header")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value  # RFC 9110 5.3
    require("host" in headers or version == "1.0", 400, "HTTP/1.1 needs a Host header (3.2)")
    if absolute := re.fullmatch(r"(?i:https?)://([\w.:\[\]-]+)(?![^/?])/?(.*)", target):
        headers["host"], resource = absolute[1], "/" + absolute[2]  # it overrules Host (3.2.2)
    require(resource[0] == "/" or (method, target) == ("OPTIONS", "*"), 400, "expected a /path")
    require(not re.search("#|%(?![0-9A-Fa-f]{2})", target), 400, "a stray # or % in the target")
    path, _, query = resource.partition("?")
    connection = re.split(r"\s*,\s*", headers.get("connection", "").lower())
    upgrade = "upgrade" in connection and headers.get("upgrade", "").lower() == "websocket"
    return Request(
        method, target, unquote(path), dict(parse_qsl(query, keep_blank_values=True)), version,
        headers, "close" not in connection and (version == "1.1" or "keep-alive" in connection),
        upgrade and version == "1.1", head[0].lstrip().encode("latin-1"))  # 9.3; RFC 9110 7.8

class RequestReader:
    """The requests of one connection: next_event() until it says NEED_MORE, then feed().
    The parser is a generator that yields NEED_MORE where a blocking one would wait, so it reads
    like the grammar. An HTTPError ends it: nobody knows where the next request would begin."""
    def __init__(self):
        self.started = False  # is part of a request here? Then a silent peer is slow, not idle
        self._buffer, self._eof, self._events = bytearray(), False, self._requests()
    def feed(self, data: bytes) -> None:
        require(len(self._buffer) <= LIMITS.head_bytes + LIMITS.body_bytes, 413, "too far ahead")
        self._buffer += data
    def feed_eof(self) -> None: self._eof = True
    def next_event(self) -> "Request | Signal":
        event = next(self._events, CLOSED)
        if event is not NEED_MORE or not self._eof: return event
        require(not self.started, 400, "the connection ended inside a request")
        return CLOSED
    def trailing(self) -> bytes:  # what came behind an upgrade, for the WebSocket
        rest, self._buffer = bytes(self._buffer), bytearray()
        return rest
    def _requests(self):
        while True:
            request = parse_head((yield from self._until(rb"\n\r?\n", HEAD, LIMITS.head_bytes)))
            self.started = True
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
        if coding is None: return (yield from self._take(int(length)))
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
    fields = [f"{name}: {value}" for name, value in (
        ("Content-Type", content_type), ("Content-Length", len(body)), *headers,
        ("Connection", "keep-alive" if keep_alive else "close"),  # HTTP/1.0 must be told
        ("X-Content-Type-Options", "nosniff"))]
    if bad := [field for field in fields if not re.fullmatch(f"{TOKEN}:{TEXT}", field)]:
        raise ValueError(f"not fit for response headers: {bad}")  # a CRLF would begin another one
    head = "\r\n".join([f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *fields, "", ""])
    return head.encode("latin-1") + (b"" if head_only else body)

# ─── What the messages mean ───

class InvalidJSON(InvalidRequest):
    """The text is no JSON, or no object."""
class UnknownType(InvalidRequest):
    """A WebSocket message of a type that does not exist."""
class RPCError(PythonEnvError):
    """A JSON-RPC 2.0 error: the request's id, a code, a message. HTTP's status stays 200."""

# The one place where errors become codes and statuses. Those that `close` end a WebSocket session.
Fault = collections.namedtuple("Fault", "code status close", defaults=(False,))
FAULTS = {
    InvalidJSON: Fault("INVALID_JSON", 422), UnknownType: Fault("UNKNOWN_TYPE", 422),
    InvalidRequest: Fault("VALIDATION_ERROR", 422), ExecutionError: Fault("EXECUTION_ERROR", 409),
    CapacityError: Fault("CAPACITY_REACHED", 503, True),
    FactoryError: Fault("FACTORY_ERROR", 503, True),
    SessionError: Fault("SESSION_ERROR", 404, True),
    Exception: Fault("EXECUTION_ERROR", 500)}  # the environment's own
def fault_of(error: Exception) -> Fault:
    return next(fault for kind, fault in FAULTS.items() if isinstance(error, kind))

# What a call meets at each stage of an episode: the words of an ExecutionError or, where it may go
# ahead, none; its observation then decides between running and done. "state" is always allowed.
LIFECYCLE = {
    ("no episode", "reset"): "", ("running", "reset"): "", ("done", "reset"): "",
    ("no episode", "step"): "there is no episode yet: call reset() first",
    ("running", "step"): "", ("done", "step"): "the episode is over: call reset() to begin another"}

class Reply:
    """A response to be: `body` is bytes, or anything that becomes JSON."""
    def __init__(self, body: Any, status: int = 200, headers: Any = (), kind="application/json"):
        self.body = body if isinstance(body, bytes) else to_json(body)
        self.status, self.headers, self.content_type = status, headers, kind

@dataclass
class StepRequest:
    """The body of POST /step; other keys are ignored."""
    action: dict[str, Any] = described("The action, as GET /schema describes it")
    timeout_s: float | None = described("Seconds, where the action names none", None, gt=0)
    request_id: str | None = described("Anything; ignored", None, max_length=255)

_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
def to_json(message: Any) -> bytes: return _encode(message).encode()

def parse_json(text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        place, why = getattr(error, "pos", 0), getattr(error, "msg", "not readable")
        entry = (error_entry("json_invalid", ("body", place), f"JSON decode error: {why}", {})
                 if text else error_entry("missing", ("body",), "Field required"))
        raise InvalidJSON(f"not JSON, at character {place}: {why}", [entry]) from None
def json_object(body: bytes) -> dict: return validate(dict[str, Any], parse_json(body), ("body",))

def known_fields(model: type, data: dict[str, Any], loc: tuple = ()) -> Any:
    """`data` as the dataclass `model`, strictly, but for other keys, which are passed over."""
    return validate(model, {key: data[key] for key in _fields(model) if key in data}, loc)

def parse_message(text: str) -> tuple[str, dict]:
    """A WebSocket message's type and data."""
    if not isinstance(message := parse_json(text), dict):
        raise InvalidJSON(f"expected a JSON object, got {type(message).__name__}")
    kind, data = message.get("type"), message.get("data")
    if kind not in ("reset", "step", "state", "close"):
        raise UnknownType(f"type {_echo(kind)!r}: expected 'reset', 'step', 'state' or 'close'")
    if not isinstance(data, dict) and (data is not None or kind == "step"):
        raise InvalidRequest(f"data: expected an object, got {_echo(data)!r}")
    return kind, data or {}

def parse_rpc(body: bytes) -> tuple[Any, str | None, dict]:
    """The id, the method (None: an answer is not wanted) and the params of a JSON-RPC request."""
    try:
        rpc = parse_json(body)
    except InvalidJSON as error:
        raise RPCError(None, -32700, f"Parse error: {error}") from None
    version, key, method, params = map((rpc if isinstance(rpc, dict) else {}).get,
                                       ("jsonrpc", "id", "method", "params"))
    # An id is no float: JSON-RPC advises against fractions, and a NaN could not be sent back.
    if version != "2.0" or not isinstance(method, str) or not isinstance(key, str | int | None):
        raise RPCError(None, -32600, "Invalid request: expected jsonrpc '2.0', a method and an id")
    if not isinstance(params, dict | None):
        raise RPCError(key, -32602, "Invalid params: expected an object")
    return key, method if "id" in rpc else None, params or {}

def observation_data(observation: Observation) -> dict[str, Any]:
    """An observation as it travels: reward and done beside it, not in it."""
    body = to_dict(observation)
    extra = {"metadata": observation.metadata} if observation.metadata else {}
    return {"observation": body, "reward": body.pop("reward"), "done": body.pop("done"), **extra}

def error_data(error: Exception) -> dict[str, Any]:
    """What a peer is told; the words of an error that we did not raise are for the log alone."""
    extra = {"errors": error.errors} if getattr(error, "errors", None) else {}
    message = str(error)
    if not isinstance(error, PythonEnvError):
        log.error("the environment failed", exc_info=error)
        name, extra = type(error).__name__, {}
        message = f"the environment raised {name}; the server's log has more"
    return {"message": message, "code": fault_of(error).code, **extra}

def error_reply(error: Exception) -> Reply:
    if isinstance(error, HTTPError):
        return Reply({"detail": str(error)}, error.status, error.headers.items())
    if isinstance(error, RPCError):
        fault = dict(zip(("id", "code", "message"), error.args), data=None)
        return Reply({"jsonrpc": "2.0", "id": fault.pop("id"), "error": fault})
    data, status = error_data(error), fault_of(error).status
    if status == 422:
        entries = data.get("errors") or [error_entry("value_error", ("body",), data["message"])]
        return Reply({"detail": entries}, 422)
    headers = [("Retry-After", "1")] if status == 503 else []
    return Reply({"detail": data["message"], "code": data["code"]}, status, headers)

def openapi(service: Any) -> dict[str, Any]:
    """The OpenAPI document; `openenv validate` reads the version and the routes off it."""
    def body(schema: dict) -> dict: return {"content": {"application/json": {"schema": schema}}}
    reset, step = (json_schema(model) | {"additionalProperties": True}
                   for model in (ResetRequest, StepRequest))
    step["properties"]["action"] = json_schema(service.action)
    result = {"type": "object", "properties": {"observation": json_schema(service.observation),
              "reward": {"type": ["number", "null"]}, "done": {"type": "boolean"}}}
    inputs = {"/reset": reset, "/step": step, "/mcp": {"type": "object"}}
    outputs = {"/reset": result, "/step": result, "/state": json_schema(service.state)}
    paths = {path: {method.lower(): {
        "responses": {"200": {"description": "OK"} | body(outputs.get(path, {}))},
        **({"requestBody": body(inputs[path])} if path in inputs else {})}
        for method in methods} for path, methods in ROUTES.items()}
    info = {"title": service.name, "description": service.description, "version": "1.0.0"}
    return {"openapi": "3.1.0", "info": info, "paths": paths}

# ═══ 8. Server ════════════════════════════════════════════════════════════════════════════════════

@functools.lru_cache(1_024)
def _shape(function: typing.Callable) -> tuple[bool, set[str] | None]:
    """Whether it is a coroutine function, and the keywords that it takes (None: any)."""
    takes = inspect.signature(function).parameters
    free = any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values())
    return inspect.iscoroutinefunction(function), None if free else {*takes}

class Session:
    """One environment and its place in the lifecycle. Its calls run one at a time, in order."""
    def __init__(self, environment: Environment, action: type[Action]):
        self.environment, self.action, self.lock = environment, action, asyncio.Lock()
        self.id, self.socket = secrets.token_urlsafe(16), None  # the Connection attached to it
        self.stage, self.used, self.calls = "no episode", time.monotonic(), 0
        self.loop, self.jobs = asyncio.get_running_loop(), None  # jobs: for a thread of its own
    async def call(self, kind: str, data: dict, **options: Any) -> dict[str, Any]:
        """Carry out a reset, step or state; returns what the reply's `data` shall be."""
        self.calls += 1
        try:
            async with self.lock:
                if kind == "state": return to_dict(await self._invoke("state"))
                if refusal := LIFECYCLE[self.stage, kind]: raise ExecutionError(refusal)
                if kind == "step":
                    observation = await self._invoke("step", validate(self.action, data), **options)
                else:
                    known_fields(ResetRequest, data, ("body",))
                    observation = await self._invoke("reset", **data)
                self.stage = "done" if observation.done else "running"
                return observation_data(observation)
        finally:
            self.calls -= 1
            self.used = time.monotonic()
    async def _invoke(self, name: str, /, *args: Any, **options: Any) -> Any:
        method = getattr(self.environment, name)
        if not callable(method): return method  # OpenEnv's own have `state` as a property
        inline, takes = _shape(getattr(method, "__func__", method))
        if options and takes is not None:
            options = {key: value for key, value in options.items() if key in takes}
        if inline: return await method(*args, **options)
        if not self.jobs:  # asyncio's executor would cost twice as much, and hold up the exit
            self.jobs = queue.SimpleQueue()
            threading.Thread(target=self._work, name="environment", daemon=True).start()
        future = self.loop.create_future()
        self.jobs.put((functools.partial(method, *args, **options), future))
        result, error = await future
        if error: raise error
        return result
    def _work(self) -> None:
        def settle(future: asyncio.Future, outcome: tuple) -> None:
            if not future.done():
                future.set_result(outcome)
        while job := self.jobs.get():
            try:
                outcome = job[0](), None
            except BaseException as bad:  # sys.exit() too
                outcome = None, bad if isinstance(bad, Exception) else ExecutionError(repr(bad))
            with contextlib.suppress(RuntimeError):  # the loop has been closed
                self.loop.call_soon_threadsafe(settle, job[1], outcome)
    async def close(self) -> None:
        try:
            await self._invoke("close")
        except Exception:
            log.exception("session %s: its environment's close() failed", self.id[:6])
        if self.jobs:
            self.jobs.put(None)
        log.info("session %s closed", self.id[:6])

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
    allow_origin: tuple[str, ...] = ()  # other sites' pages, "*" for all
    allow_host: tuple[str, ...] = ()  # Host names beside loopback's own, when bound to loopback
    tasks: dict[str, Task] = field(default_factory=dict)
    isolation: dict[str, Any] = field(default_factory=dict)

class Server:
    """The pump around environments and protocol: `await start()`, `port`, `await close()`."""
    def __init__(self, service: Service):
        self.service, self.limits = service, service.limits
        self.port, self.loopback, self.closing = 0, True, False
        self.sessions, self.connections = {}, set()  # Session by id; Connection
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
        while any(one.calls for one in self.sessions.values()) and time.monotonic() < end:
            await asyncio.sleep(0.01)
        for connection in (going := [*self.connections]):
            connection.end(1001)
            connection.task.cancel()
        await asyncio.gather(*(connection.task for connection in going), return_exceptions=True)
        await asyncio.gather(*map(self.drop, [*self.sessions.values()]))
        for connection in [*self.connections]:
            connection.transport.close()
    def open_session(self) -> Session:
        """A new session; the longest-idle HTTP session gives way when all are taken."""
        if len(self.sessions) >= (most := self.limits.max_sessions):
            idle = (s for s in self.sessions.values() if not s.socket and not s.calls)
            victim = min(idle, key=lambda session: session.used, default=None)
            if not victim: raise CapacityError(f"all {most} sessions are taken; try again later")
            asyncio.ensure_future(self.sessions.pop(victim.id).close())
        try:
            session = Session(self.service.factory(), self.service.action)
        except Exception as error:
            raise FactoryError(f"the environment was not made: {type(error).__name__}") from error
        self.sessions[session.id] = session
        log.info("session %s opened, %d of %d", session.id[:6], len(self.sessions), most)
        return session
    def find_session(self, key: str | None) -> Session | None:
        """The session of that id, or None without one. Raises SessionError when there is none."""
        if not key or key in self.sessions: return self.sessions.get(key)
        raise SessionError(f"no session {key[:40]!r}: closed, or idle too long; reset opens one")
    async def drop(self, session: Session) -> None:
        if self.sessions.pop(session.id, None):
            await session.close()
    async def _keep_house(self) -> None:
        """End idle sessions and connections."""
        while True:
            await asyncio.sleep(self.limits.house_s)
            now = time.monotonic()
            for session in [*self.sessions.values()]:
                most = self.limits.ws_idle_s if session.socket else self.limits.http_idle_s
                if session.calls or now - session.used <= most: continue
                if session.socket:
                    session.socket.end(1001)
                await self.drop(session)
            for connection in [*self.connections]:
                connection.check_time(now)
    async def reply(self, request: Request) -> Reply:
        """The answer to a request, errors included; by one handler a route."""
        try:
            self.admit(request)
            methods = ROUTES.get(request.path)
            require(methods, 404, f"no route {request.path[:100]!r}: GET /docs lists them")
            handler = methods.get("GET" if request.method == "HEAD" else request.method)
            allowed = ", ".join(methods)
            require(handler, 405, f"{request.path} takes {allowed}", {"Allow": allowed})
            return await handler(self, request)
        except Exception as error:
            return error_reply(error)
    def admit(self, request: Request) -> None:
        """Refuse other sites' pages, host names bound to our address by others, and strangers."""
        service, headers = self.service, request.headers
        host, origin = headers.get("host", "").lower(), headers.get("origin")
        name = re.sub(r":\d*$", "", host).strip("[]")
        require(not self.loopback or is_loopback(name) or name in service.allow_host, 403,
                f"Host {name[:100]!r} is not served here; --allow-host admits it")
        own = origin is None or origin.lower().partition("://")[2] == host
        require(own or {origin, "*"} & {*service.allow_origin}, 403,
                f"Origin {(origin or '')[:100]!r} is another site; --allow-origin admits it")
        given, wanted = headers.get("authorization", ""), f"Bearer {service.token}"
        known = hmac.compare_digest(given.encode("latin-1"), wanted.encode())
        public = request.path in ("/health", "/docs", "/web", "/")  # the page asks for the token
        require(known or public or not service.token, 401,
                "send 'Authorization: Bearer TOKEN'", {"WWW-Authenticate": "Bearer"})
    async def get_health(self, request: Request) -> Reply:
        return Reply({"status": "healthy", "isolation": self.service.isolation,
                      "sessions": len(self.sessions), "max_sessions": self.limits.max_sessions})
    @functools.cached_property
    def documents(self) -> dict[str, Reply]:
        """What never changes."""
        service, policy = self.service, {"Content-Security-Policy": PAGE_POLICY}
        shown = "task_id", "difficulty", "prompt", "tests_total"
        models = "action", "observation", "state"
        page = PAGE.replace("$NAME", html.escape(service.name)).encode()
        tasks = [{name: getattr(task, name) for name in shown} for task in service.tasks.values()]
        facts = {name: getattr(service, name) for name in ("name", "description", "isolation")}
        facts |= dict.fromkeys(("readme_content", "author", "documentation_url"))
        elsewhere = Reply({"detail": "see /docs"}, 307, [("Location", "/docs")])
        return {"/": elsewhere, "/web": elsewhere, "/openapi.json": Reply(openapi(service)),
                "/docs": Reply(page, 200, policy.items(), "text/html; charset=utf-8"),
                "/metadata": Reply({**facts, "version": __version__, "tasks": [*service.tasks]}),
                "/schema": Reply({name: json_schema(getattr(service, name)) for name in models}),
                "/tasks": Reply({"tasks": tasks})}
    async def get_document(self, request: Request) -> Reply: return self.documents[request.path]
    async def get_ws(self, request: Request) -> Reply:
        require(request.is_upgrade, 426, "/ws speaks WebSocket", {"Upgrade": "websocket"})
        return Reply(b"", 101)
    async def get_state(self, request: Request) -> Reply:
        session = self.find_session(session_key(request))
        return Reply(await session.call("state", {}) if session else to_dict(State()))
    async def post_reset(self, request: Request) -> Reply:
        body = json_object(request.body or b"{}")  # below: a cookie may outlive its session
        session = self.sessions.get(session_key(request)) or self.open_session()
        try:
            data = await session.call("reset", body)
        except BaseException:
            if session.stage == "no episode":
                await self.drop(session)  # nobody knows its id
            raise
        cookie = f"session_id={session.id}; Path=/; HttpOnly; SameSite=Strict"
        return Reply({"metadata": None, **data}, 200,
                     [("X-Session-Id", session.id), ("Set-Cookie", cookie)])
    async def post_step(self, request: Request) -> Reply:
        step = known_fields(StepRequest, json_object(request.body), ("body",))
        session = self.find_session(session_key(request))
        call = functools.partial(session.call, "step") if session else self.step_once
        data = await call(step.action, timeout_s=step.timeout_s)
        headers = [("X-Session-Id", session.id)] if session else []
        return Reply({"metadata": None, **data}, 200, headers)
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
        if method is None: return Reply(b"", 202)  # a notification
        version, known = params.get("protocolVersion"), ("2025-06-18", "2025-03-26", "2024-11-05")
        tools = [MCP_TOOL] if self.service.action is PythonAction else []
        results = {"ping": {}, "tools/list": {"tools": tools}, "tools/call": {}, "initialize": {
            "protocolVersion": version if version in known else known[0],
            "capabilities": {"tools": {}},
            "serverInfo": {"name": self.service.name, "version": __version__}}}
        if method not in results: raise RPCError(key, -32601, f"Method not found: {method[:100]}")
        if method == "tools/call":
            if params.get("name") not in [tool["name"] for tool in tools]:
                raise RPCError(key, -32602, f"Unknown tool: {_echo(params.get('name'))!r}")
            try:
                data = (await self.step_once(params.get("arguments") or {}))["observation"]
            except InvalidRequest as error:
                raise RPCError(key, -32602, str(error)) from None
            results[method] = {"content": [{"type": "text", "text": to_json(data).decode()}],
                               "structuredContent": data, "isError": data["exit_code"] != 0}
        return Reply({"jsonrpc": "2.0", "id": key, "result": results[method]})

MCP_TOOL = {"name": "run_python", "description": "Run Python code in a fresh, isolated interpreter",
            "inputSchema": json_schema(PythonAction)}
ROUTES = {path: {method: handler} for method, paths, handler in (
    ("GET", "/ /web /docs /metadata /schema /tasks /openapi.json", Server.get_document),
    ("GET", "/health", Server.get_health), ("GET", "/state", Server.get_state),
    ("GET", "/ws", Server.get_ws), ("POST", "/reset", Server.post_reset),
    ("POST", "/step", Server.post_step), ("POST", "/mcp", Server.post_mcp))
    for path in paths.split()}

def session_key(request: Request) -> str | None:
    return request.headers.get("x-session-id") or request.cookie("session_id")

def is_loopback(name: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(name).is_loopback
    return name == "localhost" or name.endswith(".localhost")

class Connection(asyncio.Protocol):
    """One TCP connection: HTTP requests one after another, or a WebSocket for the rest of it."""
    def __init__(self, server: Server):
        self.server, self.limits, self.since = server, server.limits, time.monotonic()
        self.reader, self.busy, self.socket = RequestReader(), False, None  # or a ServerProtocol
        self.arrived, self.writable = asyncio.Event(), asyncio.Event()
        self.writable.set()
        self.messages, self.fragments, self.binary = collections.deque(), bytearray(), False
    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport, self.task = transport, asyncio.create_task(self.serve())
        if len(self.server.connections) >= self.limits.connections: return transport.abort()
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self.server.connections.add(self)
    def connection_lost(self, error: Exception | None) -> None:
        self.server.connections.discard(self)
        self.task.cancel()  # nobody waits for the step any more
    def pause_writing(self) -> None: self.writable.clear()
    def resume_writing(self) -> None: self.writable.set()
    def data_received(self, data: bytes) -> None:
        if self.socket: return self.receive_frames(data)
        if not self.busy and not self.reader.started:
            self.since = time.monotonic()  # the first byte of a request starts its clock
        try:
            self.reader.feed(data)
        except HTTPError as error:
            self.respond(error_reply(error))
        self.arrived.set()
    def eof_received(self) -> bool:
        self.reader.feed_eof()
        self.arrived.set()
        return not self.socket  # half-closed is a legal way to ask: the answer may be on its way
    def respond(self, reply: Reply, keep_alive: bool = False, head_only: bool = False) -> None:
        self.transport.write(encode_response(
            reply.status, reply.body, content_type=reply.content_type, headers=reply.headers,
            keep_alive=keep_alive, head_only=head_only))
        if not keep_alive:
            self.transport.close()
    def check_time(self, now: float) -> None:
        """408 for a slow sender, the end for an idle connection."""
        most = self.limits.request_s if self.reader.started else self.limits.keep_alive_s
        if self.busy or now - self.since <= most: return
        if self.reader.started:
            late = HTTPError(408, f"the request was not whole after {most:g} s")
            self.respond(error_reply(late))
        self.transport.close()
    async def serve(self) -> None:
        closing = self.transport.is_closing
        try:
            while not closing() and (event := self.reader.next_event()) is not CLOSED:
                if event is NEED_MORE:
                    self.arrived.clear()
                    await self.arrived.wait()
                elif event is EXPECT_CONTINUE:
                    self.transport.write(CONTINUE)
                else:
                    self.busy = True
                    await self.serve_request(event)
                    self.busy, self.since = False, time.monotonic()
            self.transport.close()
        except HTTPError as error:
            self.respond(error_reply(error))
    async def serve_request(self, request: Request) -> None:
        reply = await self.server.reply(request)
        if reply.status == 101: return await self.serve_socket(request)
        keep_alive = request.keep_alive and not self.server.closing
        self.respond(reply, keep_alive, request.method == "HEAD")
        await self.writable.wait()
    async def serve_socket(self, request: Request) -> None:
        """Answer one message after another, while receive_frames() goes on reading."""
        self.socket = ServerProtocol(max_size=self.limits.message_bytes, logger=QUIET)
        self.socket.receive_data(request.raw_head)  # the same bytes: the handshake is its business
        for event in self.socket.events_received():  # none, when it finds the head wrong
            self.socket.send_response(self.socket.accept(event))
        self.flush()
        self.receive_frames(self.reader.trailing())
        if self.socket.state is not OPEN: return self.transport.close()
        session, key = None, request.query.get("session_id")
        try:
            session = self.server.find_session(key) or self.server.open_session()
            if session.socket: raise SessionError("the session has a WebSocket already; close it")
            session.socket = self
            while self.socket.state is OPEN:
                while not self.messages:
                    self.arrived.clear()
                    await self.arrived.wait()
                try:
                    kind, data = parse_message(self.messages.popleft())
                    if kind == "close": return self.end(1000)
                    data = await session.call(kind, data)
                    self.send("state" if kind == "state" else "observation", data)
                except Exception as error:
                    self.report(error)
                if not self.writable.is_set():
                    await self.writable.wait()  # one slow reader costs only itself
                if len(self.messages) == self.limits.queued_messages - 1:
                    self.transport.resume_reading()
        except PythonEnvError as error:
            self.report(error)
        finally:
            if session and session.socket is self:
                session.socket = None  # it came over HTTP, and goes on there; or not
                if not key:
                    await self.server.drop(session)
    def receive_frames(self, data: bytes) -> None:
        self.socket.receive_data(data)
        for frame in self.socket.events_received():
            if frame.opcode not in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT): continue
            self.binary |= frame.opcode is Opcode.BINARY
            self.fragments += frame.data  # max_size bounds the whole message
            if not frame.fin: continue
            message, text = self.fragments, "(a binary message)"
            try:
                self.messages.append(text if self.binary else message.decode())
            except UnicodeDecodeError:
                self.socket.fail(1007)  # RFC 6455 8.1
            if len(message) < 50 and re.fullmatch(rb'\s*{\s*"type"\s*:\s*"close"\W*', message):
                self.end(1000)  # at once, even during a step, which is killed
            self.fragments, self.binary = bytearray(), False
        if len(self.messages) >= self.limits.queued_messages:
            self.transport.pause_reading()
        self.arrived.set()
        self.flush()
    def report(self, error: Exception) -> None:
        self.send("error", error_data(error))
        if fault_of(error).close:
            self.end(1013 if isinstance(error, CapacityError) else 1008)
    def send(self, kind: str, data: dict) -> None:
        if self.socket.state is OPEN:
            self.socket.send_text(to_json({"type": kind, "data": data}))
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
    when the address cannot be had."""
    options.setdefault("name", getattr(environment, "__name__", "environment"))
    for name, method, model in (("observation", "step", observation), ("state", "state", state)):
        function = getattr(environment, method, None) or serve
        hints = typing.get_type_hints(getattr(function, "fget", function))  # a property has one
        if is_dataclass(model := model or hints.get("return")):
            options[name] = model
    service = Service(factory=environment, action=action, **options)
    asyncio.run(run_until_signal(service, host, port))

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
        where = f"http://{f'[{host}]' if ':' in host else host}:{server.port}"
        print(f"{service.name} on {where} (isolation: {reached or 'none'})", flush=True)
        if stdin:
            loop.add_reader(stdin, stop.set)
        await stop.wait()
    finally:
        await server.close()

# ═══ 9. Page ══════════════════════════════════════════════════════════════════════════════════════

PAGE_POLICY = "default-src 'self' 'unsafe-inline'"  # Content-Security-Policy
PAGE = r"""<!doctype html><html lang="en"><meta charset="utf-8"><title>$NAME</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
  :root { color-scheme: light dark; font: 1rem/1.5 system-ui } dt { opacity: .7 }
  body { max-width: 46rem; margin: 2rem auto; padding: 1rem } label:not([hidden]) { display: grid }
  pre, dd, textarea { font: .9rem/1.5 monospace; white-space: pre-wrap; overflow-wrap: anywhere }
</style><h1>$NAME</h1> <label id="access" hidden>Token <input id="token" type="password"></label>
<label id="choice">Task <select id="task"><option>repl</option></select></label>
<pre id="prompt"></pre> <label>Action (Ctrl+Enter runs it)
<textarea id="input" rows="8" spellcheck="false">print(6 * 7)</textarea></label>
<button id="run">Run</button> <button id="restart">Reset</button> <output id="message"></output>
<dl id="outcome" aria-live="polite"></dl> <h2>Routes</h2> <main id="routes"></main>
<script type="module">
const ui = Object.fromEntries(Array.from(document.querySelectorAll("[id]"), (e) => [e.id, e]));
const headers = { "Content-Type": "application/json" }; let example = { code: ui.input.value };
const make = (tag, textContent) => Object.assign(document.createElement(tag), { textContent });
async function call(path, body) {  // the reply's JSON, or an Error that reads well
  const options = { headers, method: body ? "POST" : "GET", body: JSON.stringify(body) };
  const reply = await fetch(path, options), data = await reply.json();
  if (path === "/reset") headers["X-Session-Id"] = reply.headers.get("X-Session-Id") ?? "";
  ui.access.hidden = reply.status !== 401;
  if (reply.ok) return data;
  const faults = [data.detail].flat().map((e) => e.msg ? `${e.loc.join(".")}: ${e.msg}` : e);
  throw Error(`${reply.status} ${faults.join("; ")}`); }
async function send(path, body) {  // resets or steps, and shows what came of it
  const { observation: { prompt, metadata, ...fields }, reward, done } = await call(path, body);
  if (prompt || path === "/reset") ui.prompt.textContent = prompt;
  ui.outcome.replaceChildren(...Object.entries({ ...fields, reward, done }).flatMap(([name, it]) =>
    [make("dt", name), make("dd", typeof it === "object" ? JSON.stringify(it) : it)])); }
const reset = () => send("/reset", example.code ? { task_id: ui.task.value } : {});
async function step() {
  const text = ui.input.value, action = example.code ? { code: text } : JSON.parse(text);
  if (!headers["X-Session-Id"]) await reset();
  await send("/step", { action }); }
async function load() {  // the tasks; where actions are not code, a box for their JSON
  const { properties, required = [] } = (await call("/schema")).action;
  for (const { task_id, difficulty } of (await call("/tasks")).tasks)
    ui.task.add(new Option(`${task_id} (${difficulty})`, task_id));
  if (!(ui.choice.hidden = !properties.code)) return;
  example = Object.fromEntries(required.map((name) => [name, properties[name].type]));
  ui.input.value = JSON.stringify(example, null, 2); }
const attempt = (work) => async () => { ui.message.textContent = "Running…";
  ui.message.textContent = await work().then(() => "", String); };
ui.run.onclick = attempt(step); ui.restart.onclick = ui.task.onchange = attempt(reset);
ui.input.onkeydown = (e) => (e.ctrlKey || e.metaKey) && e.key === "Enter" && ui.run.click();
ui.token.onchange = () => { headers.Authorization = `Bearer ${ui.token.value}`; attempt(load)(); };
await attempt(load)();
const bodies = { reset: { task_id: "repl" }, step: { action: example },
  mcp: { jsonrpc: "2.0", id: 1, method: "tools/list" } };
for (const name of "reset step mcp ws state tasks health metadata schema openapi.json".split(" ")) {
  const body = bodies[name] && JSON.stringify(bodies[name]);
  const data = body ? ` -H 'Content-Type: application/json' -d '${body}'` : "";
  const python = `from python_env import PythonEnv
with PythonEnv(base_url="${origin}") as env:\n    print(env.reset())`;
  const text = make("pre", name === "ws" ? python : `curl -b jar -c jar ${origin}/${name}${data}`);
  const copy = make("button", "Copy"), method = name === "ws" ? "WS" : data ? "POST" : "GET";
  copy.onclick = () => { getSelection().selectAllChildren(text); document.execCommand("copy"); };
  ui.routes.append(make("h3", `${method} /${name}`), text, copy); }</script>"""

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

class DockerError(PythonEnvError, RuntimeError):
    """Docker or a container failed; one line says how and what to do, a container's log follows."""
    REMEDIES = {  # docker has no error codes: what it writes, tried in this order, and what to do
        "trying to connect": "no permission on docker's socket; `sudo usermod -aG docker $USER`",
        "docker daemon|during connect": "no docker daemon answers; start it, or mend DOCKER_HOST",
        "no such image": "no image {image} on this machine; `docker build -t {image} .`, or pull",
        "already in use|already allocated|ports are not": "port {port} is taken; name another",
        "access denied|denied:|unauthori|authentic|basic auth|manifest|name unknown":
            "the registry denies {image}; check its name, or `docker login {registry}`",
        "dial tcp|https?:|time(d )?out|x509|eof":
            "{registry} cannot be reached; check the network and registry=, or use pull=False",
        "": "docker cannot run {image}; check image=, tag= and docker_args="}
    def __init__(self, message: str):
        super().__init__(re.sub(r"[^\n -~\xa0-\U0010ffff]", "?", message))  # no terminal escapes
    @classmethod
    def for_words(cls, said: str, image: str, port: int | None = None) -> "DockerError":
        lines = re.findall(r"(?m)^(?!WARNING|[0-9a-f]{64}$)(.*\S)", said) or ["nothing"]
        remedy = next(r for words, r in cls.REMEDIES.items() if re.search(f"(?i){words}", lines[0]))
        remedy = remedy.format(image=image, port=port, registry=image.split("/")[0])
        return cls(f"{remedy} (docker says: {lines[0][:400]})")

def _docker(image: str, *command: str, stdout: Any = subprocess.PIPE, check: bool = True) -> str:
    try:
        done = subprocess.run(["docker", *command], stdin=subprocess.DEVNULL, stdout=stdout,
                              stderr=subprocess.PIPE, errors="replace")
    except FileNotFoundError:
        raise DockerError("no `docker` on PATH; install it, or use a server's base_url=") from None
    if done.returncode and check: raise DockerError.for_words(done.stderr, image)
    return f"{done.stdout}{done.stderr}"

def _health(url: str, headers: dict[str, str], timeout_s: float) -> tuple[str, str]:
    """Ask `url`/health once: "ready", "absent" (no answer), "waking" (5xx) or "wrong"; and why."""
    request = urllib.request.Request(f"{url}/health")
    for name, value in headers.items():
        request.add_unredirected_header(name, value)  # a redirect must not take a token along
    direct = is_loopback(urllib.parse.urlsplit(url).hostname or "")  # then never by a proxy
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({} if direct else None))
    try:
        with opener.open(request, timeout=timeout_s) as answer:
            if "status" in dict(json.loads(answer.read(65_536))): return "ready", ""
    except urllib.error.HTTPError as error:
        return ("waking" if error.code >= 500 else "wrong"), f"/health answers HTTP {error.code}"
    except OSError as error:
        return "absent", f"/health does not answer: {getattr(error, 'reason', error)}"
    except (http.client.HTTPException, ValueError, TypeError, RecursionError):
        pass
    return "wrong", "this is no OpenEnv server: /health is no JSON with a status"

def _wait(what: str, ask: typing.Callable, patience: tuple[str, ...], timeout_s: float) -> str:
    """Return "" once `ask` says ready, or why it will not be; a terminal sees the seconds pass."""
    log.info("%s", what)
    start, pause, live = time.monotonic(), 0.02, sys.stderr and sys.stderr.isatty()
    while True:
        left = start + timeout_s - time.monotonic()
        verdict, why = ask(timeout_s=max(0.1, min(left, 5.0)))
        over = verdict not in patience or left < 0
        if live:
            line = "" if over else f"{what} … {timeout_s - left:.0f} s"
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
        if over: return why and f"{what}: {why}, after {time.monotonic() - start:.1f} s"
        time.sleep(pause)
        pause = min(pause * 1.2, 0.5)  # a good start takes half a second

def _keeper() -> None:
    """The program of a process beside the client, which owns a container from birth to death.

    A pipe tells it what to run; it runs that, reports, and waits. A byte, the pipe's end, or a new
    parent (the client was killed, but a fork of it holds the pipe) all mean: remove the container.
    Nobody else runs `docker run`, so the client may vanish at any moment, even halfway through it.
    """
    import contextlib, json, os, select, signal, subprocess, time  # it runs alone
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the pipe decides, whoever else is told to stop
    pipe = open(0, "rb", buffering=0)
    client, name, run = json.loads(pipe.readline())  # if not even this came, dying here is right
    code = subprocess.call(run, stdin=subprocess.DEVNULL, stderr=1)
    with contextlib.suppress(OSError):  # nobody reads: the pipe has ended, too
        os.write(1, b"" if code else b"started")
    os.close(1)
    while not select.select([pipe], [], [], 2.0)[0] and os.getppid() == client:
        pass
    for _ in range(30):  # a daemon that is restarting refuses for a while
        if not subprocess.run(["docker", "rm", "-fv", name], capture_output=True).returncode: return
        time.sleep(0.5)
    raise SystemExit(1)

class Container:
    """A container of an OpenEnv image; `url` is its server, on this machine's loopback only.

    Removed by close(), which waits for it, garbage collection, exit, and any death of this process,
    SIGKILL included; not by its forks. A constructor that raises leaves nothing behind. Arguments
    and errors are those of EnvClient.from_docker_image."""
    def __init__(self, image, port=None, env_vars=None, timeout_s=60.0, docker_args=()):
        _docker(image, "image", "inspect", image)  # the commonest errors, before anything starts
        client, self.image = os.getpid(), image
        self.name = f"python-env-{client}-{secrets.token_hex(4)}"
        run = ["docker", "run", "-d", "--pull=never", f"--publish=127.0.0.1:{port or ''}:8000",
               *[f"--env={key}={value}" for key, value in (env_vars or {}).items()], *docker_args,
               f"--label=python_env.client={client}", f"--name={self.name}", "--", image]
        keeper = subprocess.Popen(  # in a session of its own: Ctrl-C goes to a whole process group
            [sys.executable, "-I", "-S", "-c", inspect.getsource(_keeper) + "_keeper()"], bufsize=0,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            start_new_session=True)
        # close(), garbage collection, exit: whoever comes first; calling it again does nothing.
        self.close = weakref.finalize(self, self._remove, keeper, self.name, client)
        try:  # the order is no argument: `ps` would show the secrets in env_vars all along
            keeper.stdin.write(json.dumps([client, self.name, run]).encode() + b"\n")
            said = keeper.stdout.read().decode(errors="replace")
            if not said.endswith("started"): raise DockerError.for_words(said, image, port)
            if why := _wait(f"starting {image}", self._ask, ("absent", "waking"), timeout_s):
                tail = _docker(image, "logs", "--tail=20", self.name, check=False)[-2000:]
                raise DockerError(f"{why}; raise timeout_s=, or see its log, which ends:\n{tail}")
        except BaseException:
            self.close()
            raise
    @staticmethod
    def _remove(keeper: subprocess.Popen, name: str, client: int) -> None:
        if os.getpid() != client: return  # a fork has a copy of the finalizer, but no say
        with contextlib.suppress(OSError, subprocess.TimeoutExpired), keeper.stdin, keeper.stdout:
            keeper.stdin.write(b"\n")  # closing is not enough while a fork holds the pipe
            keeper.wait(30)
        if keeper.poll() != 0:
            log.warning("a container may be left behind; `docker rm -f -v %s`", name)
    def _ask(self, timeout_s: float) -> tuple[str, str]:
        shape = "--format=[{{json .State}}, {{json .NetworkSettings.Ports}}]"
        state, ports = json.loads(_docker(self.image, "inspect", shape, self.name).splitlines()[0])
        if not state["Running"]: return "wrong", f"it exited with code {state['ExitCode']}"
        published = ports.get("8000/tcp") or [{"HostPort": 8000}]  # none with --network=host
        self.url = f"http://127.0.0.1:{published[0]['HostPort']}"
        return _health(self.url, {}, timeout_s)

def _space_slug(repo_id: str) -> str:
    """Owner/My_Env, or a URL of it, as owner-my-env, after which its image and host are named."""
    if host := re.fullmatch(r"https://([a-z0-9-]+)\.hf\.space(/.*)?", repo_id.strip().lower()):
        return host[1]
    name = re.sub(r"https://huggingface\.co/spaces/([^/]+/[^/?#]+).*", r"\1", repo_id.strip())
    part = r"(?![-.])[A-Za-z0-9._-]{1,96}(?<![-.])"  # the Hub's own rule
    if not re.fullmatch(f"{part}/{part}", name) or "--" in name or ".." in name:
        raise InvalidRequest(f"repo_id: expected owner/name or a Space's URL, got {repo_id[:99]!r}")
    return re.sub("[^a-z0-9]", "-", name.lower())

class EnvClient:
    """A synchronous client of any OpenEnv server; one WebSocket connection is one session.

    base_url: http(s):// or ws(s)://, with or without a path prefix.
    connect_timeout_s: seconds for the connection, during which a full server is tried again.
    message_timeout_s: seconds for a reply; a step's own timeout_s is added to it.
    headers, token: sent with the connection; the token as `Authorization: Bearer`.

    It connects at the first call. Actions may be dicts or dataclasses; observations and states are
    dicts, or what a subclass sets as `observation_model` and `state_model` (dataclasses); or it
    overrides `_step_payload`, `_parse_result` and `_parse_state`, as OpenEnv's own clients do."""
    observation_model: type | None = None
    state_model: type | None = None
    def __init__(self, base_url: str, *, connect_timeout_s: float = 10.0,
                 message_timeout_s: float = 60.0, headers: dict[str, str] | None = None,
                 token: str | None = None):
        self._cleanup, self._opened = contextlib.ExitStack(), contextlib.ExitStack()
        host = r"(?:\[[\da-fA-F:.]+\]|[^\s/?#:\[\]]+)(?::\d+)?"
        match = re.fullmatch(rf"(?:(?:http|ws)(s?)://)?({host}(?:/[^\s?#]+?)??)(?:/ws)?/*",
                             str(base_url or ""))
        if not match:
            raise InvalidRequest(f"base_url: expected http(s)://host:port, got {base_url!r:.200}")
        secure, rest = match[1] or "", match[2]
        self.base_url, self.ws_url = f"http{secure}://{rest}", f"ws{secure}://{rest}/ws"
        self.connect_timeout_s, self.message_timeout_s = connect_timeout_s, message_timeout_s
        self.headers = dict(headers or {}) | ({"Authorization": f"Bearer {token}"} if token else {})
        self._socket, self._fresh = None, True  # fresh: the server may yet say that it is full
        self._lost = ""  # why the session is gone; reset() begins another
    def connect(self) -> "EnvClient":
        """Connect now, rather than at the first call. Raises ConnectionFailed."""
        self._open(time.monotonic() + self.connect_timeout_s)
        return self
    def _open(self, end: float) -> None:
        host = urllib.parse.urlsplit(self.ws_url).hostname or ""
        options = {"proxy": None} if is_loopback(host) else {}
        remedies = {401: "it wants a token=", 403: "it wants a token=, or refuses the Host"}
        while not self._socket:
            left = end - time.monotonic()
            try:
                self._socket = self._opened.enter_context(websockets.sync.client.connect(
                    self.ws_url, open_timeout=max(0.1, left), max_size=LIMITS.reply_bytes,
                    compression=None, additional_headers=self.headers, close_timeout=1, **options))
                self._fresh, self._lost = True, ""
            except (OSError, EOFError, websockets.exceptions.WebSocketException) as error:
                status = getattr(getattr(error, "response", None), "status_code", None)
                if status != 503 or left < 0.2:
                    raise ConnectionFailed(
                        f"cannot connect to {self.ws_url}: {error or type(error).__name__}; "
                        + remedies.get(status, "is an OpenEnv server running there?")) from None
                time.sleep(0.2)  # a full server, or a Space that wakes up
    def _request(self, message: dict, more_s: float = 0.0) -> dict[str, Any]:
        """Send one message and return its reply's data."""
        end = time.monotonic() + self.connect_timeout_s
        if self._lost and message["type"] != "reset":
            raise ConnectionFailed(f"{self._lost}; call reset() to begin anew")
        while True:
            self._open(end)
            try:
                return self._exchange(json.dumps(message), self.message_timeout_s + more_s)
            except ServerError as error:
                full = self._fresh and error.code == "CAPACITY_REACHED"
                if not full or time.monotonic() > end: raise
                self._drop("the server was full")
                time.sleep(0.1)
    def _exchange(self, text: str, timeout_s: float) -> dict[str, Any]:
        try:
            with contextlib.suppress(websockets.exceptions.ConnectionClosed):
                self._socket.send(text)  # where it fails, the server may have said why before
            reply = json.loads(self._socket.recv(timeout=timeout_s))
            data = reply.get("data") or {}
            kind, message, code = reply["type"], data.get("message"), data.get("code", "UNKNOWN")
        except TimeoutError:
            self._drop(f"no reply from {self.ws_url} within {timeout_s:g} s (message_timeout_s)")
            raise ReplyTimeout(f"{self._lost}; the connection was closed") from None
        except websockets.exceptions.ConnectionClosed as error:
            self._drop(f"the connection to {self.ws_url} was lost: {error}")
            raise ConnectionFailed(f"{self._lost}; call reset() to begin anew") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            self._drop(f"{self.ws_url} does not speak OpenEnv: {error!r:.200}")
            raise ConnectionFailed(self._lost) from None
        except BaseException:  # Ctrl-C: the reply that is still to come must not be the next one's
            self._drop("the last call was interrupted")
            raise
        if kind == "error": raise ServerError(str(message), str(code), data.get("errors"))
        self._fresh = False
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
        """Take one step. Raises ServerError (refused; the session goes on), ReplyTimeout or
        ConnectionFailed (the session is lost: reset() begins another)."""
        seconds = (payload := self._step_payload(action)).get("timeout_s")
        more_s = seconds if isinstance(seconds, int | float) else 0.0
        return self._parse_result(self._request({"type": "step", "data": payload}, more_s))
    def state(self) -> Any:
        """The episode's state, at any time."""
        return self._parse_state(self._request({"type": "state"}))
    def close(self) -> None:
        """End the session and whatever was started for it; may be called again."""
        with contextlib.suppress(Exception):
            if self._socket:
                self._socket.send('{"type": "close"}')
        self._drop("the client was closed")
        self._cleanup.close()
    disconnect = close
    def sync(self) -> "EnvClient":
        """Itself: for code written for OpenEnv's client, which is asynchronous."""
        return self
    def __enter__(self) -> "EnvClient": return self.connect()
    def __exit__(self, *_: Any) -> None: self.close()
    @classmethod
    def from_docker_image(cls, image: str = "python-env:latest", *, port: int | None = None,
                          env_vars: dict[str, str] | None = None, timeout_s: float = 60.0,
                          docker_args: typing.Sequence[str] = (), **options: Any) -> "EnvClient":
        """Start a local image that serves port 8000, and connect; close() removes the container.

        port: on 127.0.0.1; None means a free one. env_vars: the server's. timeout_s: seconds from
        the container's start until its /health answers. docker_args: more options of `docker run`,
        as ["--memory=1g"]. options: the constructor's. Raises DockerError, ConnectionFailed."""
        container = Container(image, port, env_vars, timeout_s, docker_args)
        with contextlib.ExitStack() as undo:
            undo.callback(container.close)
            env = cls(container.url, **options).connect()
            env._cleanup.callback(undo.pop_all().close)
            env._container = container  # which is removed when nobody holds it any more
            return env
    @classmethod
    def from_hub(cls, repo_id: str, *, tag: str = "latest", image: str | None = None,
                 registry: str = "registry.hf.space", pull: bool = True, use_docker: bool = True,
                 token: str | None = None, timeout_s: float = 120.0, **options: Any) -> "EnvClient":
        """Pull a Hugging Face Space's image, start it here and connect; or connect to the Space.

        repo_id: owner/name, or a Space's URL. image: the whole name, where the Hub shortens it;
        None follows from repo_id. pull: ask the registry each time, as tags move; False takes what
        is here. options: from_docker_image's. use_docker=False uses the Space itself, waking it for
        timeout_s seconds at most (the official from_env would run its code here); options are the
        constructor's then, and token goes to it alone: docker has its own, by `docker login`.
        Raises InvalidRequest, DockerError, ConnectionFailed."""
        slug = _space_slug(repo_id)
        if not use_docker:
            env = cls(f"https://{slug}.hf.space", token=token, **options)
            ask = functools.partial(_health, env.base_url, env.headers)
            if why := _wait(f"waking {env.base_url}", ask, ("waking",), timeout_s):
                raise ConnectionFailed(f"{why}; check its name, timeout_s=, or token= if private")
            return env.connect()
        image = image or f"{registry}/{slug}:{tag}"
        if pull:
            log.info("pulling %s", image)
            live = sys.stderr and sys.stderr.isatty()  # then docker shows its own progress
            _docker(image, "pull", "--", image, stdout=sys.stderr if live else subprocess.DEVNULL)
        return cls.from_docker_image(image, timeout_s=timeout_s, **options)
    from_env = from_hub  # the official client's name for it
    def _step_payload(self, action: Any) -> dict[str, Any]:
        if dataclasses.is_dataclass(action): return to_dict(action)
        return action.model_dump() if hasattr(action, "model_dump") else dict(action)
    def _parse_result(self, payload: dict[str, Any]) -> StepResult:
        reward, done = payload.get("reward"), payload.get("done", False)
        observation = payload.get("observation", {})
        if self.observation_model and isinstance(observation, dict):
            seen = {**observation, "reward": reward, "done": done}
            observation = self._model(self.observation_model, seen)
        return StepResult(observation, reward, done, payload.get("metadata"))
    def _parse_state(self, payload: dict[str, Any]) -> Any:
        return self._model(self.state_model, payload)
    def _model(self, model: type | None, data: dict[str, Any]) -> Any:
        if not model: return data  # else a newer server's additional fields are passed over
        return model(**{key: data[key] for key in _fields(model) if key in data})

class PythonEnv(EnvClient):
    """The client of a python_env server; PythonEnv() without a URL brings a server of its own.

    That one is a child process on a free loopback port; it ends with close(), with this process,
    and when this process crashes. `tasks`: a task file for it, as `--tasks` takes; `server_args`:
    more of its flags."""
    observation_model, state_model = PythonObservation, PythonState
    def __init__(self, base_url: str | None = None, *, tasks: str | os.PathLike | None = None,
                 server_args: typing.Sequence[str] = (), **options: Any):
        if base_url is not None and (tasks or server_args):
            raise InvalidRequest("tasks and server_args are for PythonEnv() without a base_url")
        with contextlib.ExitStack() as held:
            if base_url is None:
                given = ["--tasks", os.fspath(tasks)] if tasks else []
                child, base_url = start_server([*given, *server_args])
                held.callback(stop_server, child)
            super().__init__(base_url, **options)
            self._cleanup.push(held.pop_all())
        weakref.finalize(self, self._cleanup.close)  # garbage collection, or the interpreter's exit

def start_server(arguments: list[str]) -> tuple[subprocess.Popen, str]:
    """A server in a child process, and its URL. It ends when its standard input does: with us,
    however we end."""
    child = subprocess.Popen(  # in a session of its own: Ctrl-C is the user's program's
        [sys.executable, os.path.realpath(__file__), "serve", "--port", "0", "--host", "127.0.0.1",
         "--exit-with-stdin", "--log-level", "warning", *arguments], start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={key: value for key, value in os.environ.items() if key != "PYTHON_ENV_TOKEN"})
    if match := re.search(r"http://\S+", child.stdout.readline()): return child, match[0]
    stop_server(child)
    raise ConnectionFailed(f"the embedded server did not start: exit code {child.returncode}")
def stop_server(child: subprocess.Popen) -> None:
    with child:  # which closes its pipes, and waits
        child.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(5)
        child.kill()

# ═══ 11. Command line ═════════════════════════════════════════════════════════════════════════════

YES, NO, MANY = ("yes", "true", "on", "1"), ("no", "false", "off", "0"), 10**9
FLAGS = {  # name: default, whose type a text must have; least and most, or the words; help
    "host": ("127.0.0.1", (), "address to listen on; 0.0.0.0 for all"),
    "port": (8000, (0, 65_535), "port to listen on; 0: any free one"),
    "tasks": (None, (), "file of tasks, JSONL or JSONL.gz: HumanEval, MBPP or own format"),
    "max-sessions": (LIMITS.max_sessions, (1, MANY), "sessions at once"),
    "step-timeout": (LIMITS.step_s, (0.1, MANY), "seconds for a step that names no timeout_s"),
    "max-step-timeout": (LIMITS.step_max_s, (0.1, MANY), "the most that a step may ask for"),
    "memory-mb": (LIMITS.memory_mb, (64, MANY), "address space of an interpreter, MiB"),
    "idle-timeout": (LIMITS.ws_idle_s, (1, MANY), "seconds a session may idle; HTTP: at most 300"),
    "preload": ((), (), "modules to import before each fork, as numpy,pandas"),
    "allow-origin": ((), (), "other sites whose pages may call, as https://a.org; * for all"),
    "allow-host": ((), (), "Host names served on a loopback address, besides localhost"),
    "require-isolation": (False, (*YES, *NO), "refuse to start without seccomp and Landlock"),
    "log-level": ("info", ("debug", "info", "warning", "error"), "of what goes to stderr")}

def read_flag(default: Any, allowed: tuple, variable: str, text: str) -> Any:
    """The value of a flag or of its environment variable (argparse converts defaults too)."""
    number = (kind := type(default)) in (int, float)
    if kind is tuple: return tuple(re.findall(r"[^,\s]+", text))
    if not allowed: return text
    with contextlib.suppress(ValueError):
        value = kind(text) if number else text.lower()
        if allowed[0] <= value <= allowed[1] if number else value in allowed:
            return value in YES if kind is bool else value
    words = "at least {}, at most {}".format(*allowed) if number else ", ".join(allowed)
    raise argparse.ArgumentTypeError(f"expected {words} (here or in {variable}), got {text!r:.99}")

def build_parser() -> argparse.ArgumentParser:
    about = "An OpenEnv environment for writing Python, with rewards that the code cannot forge."
    parser = argparse.ArgumentParser(prog="python-env", description=about)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    commands.add_parser("demo", help="play a built-in task against a server of its own")
    serving = commands.add_parser(
        "serve", help="run the server", formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description="Serve until SIGTERM or Ctrl-C; the URL and the isolation reached are printed.",
        epilog="Each flag is an environment variable too: --step-timeout is PYTHON_ENV_STEP_TIMEOUT"
        " (--max-sessions also MAX_CONCURRENT_ENVS). PYTHON_ENV_TOKEN, which has no flag, asks each"
        " client for 'Authorization: Bearer TOKEN'. Try it:"
        " curl http://127.0.0.1:8000/step -d '{\"action\": {\"code\": \"1+1\"}}'")
    for name, (default, allowed, words) in FLAGS.items():
        variable = f"PYTHON_ENV_{name.upper().replace('-', '_')}"
        if name == "max-sessions" and not os.environ.get(variable):
            variable = "MAX_CONCURRENT_ENVS"  # OpenEnv's name for it
        extra = {"nargs": "?", "const": True} if default is False else {}
        serving.add_argument(f"--{name}", default=os.environ.get(variable) or default, help=words,
                             type=functools.partial(read_flag, default, allowed, variable), **extra)
    serving.add_argument("--exit-with-stdin", action="store_true", help=argparse.SUPPRESS)
    return parser

def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status. 2: something that was given is wrong."""
    given = build_parser().parse_args(argv)
    try:
        if given.command == "demo": return play_demo()
        shape = "%(asctime)s %(levelname)s %(message)s"
        logging.basicConfig(level=given.log_level.upper(), format=shape)
        asyncio.run(serve_python(given))
        return 0
    except KeyboardInterrupt:
        return 130
    except (PythonEnvError, OSError) as error:
        print(f"python-env: {error}", file=sys.stderr)
        return 2 if isinstance(error, InvalidRequest) else 1

async def serve_python(given: argparse.Namespace) -> None:
    limits = dataclasses.replace(
        LIMITS, max_sessions=given.max_sessions, memory_mb=given.memory_mb,
        step_s=given.step_timeout, step_max_s=max(given.max_step_timeout, given.step_timeout),
        ws_idle_s=given.idle_timeout, http_idle_s=min(LIMITS.http_idle_s, given.idle_timeout))
    tasks = load_tasks(given.tasks) if given.tasks else BUILTIN_TASKS
    sandbox = Sandbox(limits, given.preload, (given.tasks,) if given.tasks else ())
    try:
        await sandbox.start()
        if given.require_isolation and not sandbox.isolation["full"]:
            raise InvalidRequest(f"--require-isolation: here is only {sandbox.isolation}")
        service = Service(
            factory=functools.partial(PythonEnvironment, sandbox, tasks, itertools.count()),
            action=PythonAction, observation=PythonObservation, state=PythonState, tasks=tasks,
            limits=limits, isolation=sandbox.isolation, token=os.environ.get("PYTHON_ENV_TOKEN"),
            allow_origin=given.allow_origin, allow_host=given.allow_host,
            description="Write Python: an isolated interpreter runs it, hidden tests judge it")
        await run_until_signal(service, given.host, given.port, given.exit_with_stdin and sys.stdin)
    finally:
        await sandbox.close()

def play_demo() -> int:
    """Play fix-means against an embedded server, almost right at first; returns 0 when solved."""
    code = """def means(values, size):
    runs = [values[i:i + size] for i in range(0, len(values), size)]
    return [sum(run) / len(run) for run in runs]
print(means([1, 2, 3, 4, 9], 2))"""
    with PythonEnv() as env:
        print(env.reset(task_id="fix-means").observation.prompt)
        for head in ("):", "):\n    if size < 1: raise ValueError(size)"):
            result = env.step(PythonAction(code := code.replace("):", head, 1)))
            seen, verdict = result.observation, f"reward {result.reward:.2f}  done {result.done}"
            print(f"\n{code}\n--> {seen.stdout}{verdict}  {seen.feedback}")
    return int(result.reward != 1.0)

if __name__ == "__main__":
    sys.exit(main())
