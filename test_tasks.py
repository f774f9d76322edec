"""Chapter 3: tasks and their formats. Nothing here runs a sandbox."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import gzip
import json
import random
import time

import pytest

from conftest import human_eval
from python_env import REPL
from python_env import InvalidRequest
from python_env import Task
from python_env import builtin_tasks
from python_env import load_tasks

# What the README promises, in bytes.
SOURCE_BYTES = 1_048_576

# The only access to what is found out about a task's tests.


def names_of(task):
    """The names that the tests take from the candidate."""
    return set(task.facts.names) if task.facts else set()


def classes_of(task):
    """Those of them that are classes, so that their objects may decide what equals what."""
    return set(task.facts.classes)


def imports_of(task):
    """Statements that the judge runs first, so that a candidate's module does not measure."""
    return task.facts.imports


def make_task(tests, **more):
    """A task of these sources, its tests read; they must be able to measure something."""
    return Task(task_id="t", tests=tests, **more).read()


def read_row(row, **options):
    """The task in a data set's row, its tests read."""
    return Task.from_row(row, **options).read()


# ── which names the tests take ────────────────────────────────────────────────────────────────────

FREE_NAMES = {
    "assert f(1) == 2": "f",
    "assert f(g(1)) == len('a')": "f g",
    "assert [f(x) for x in range(3)] == [y for y in ()]": "f",
    "assert {k: f(v) for k, v in {}.items() if g(k)} == {z for z in ()}": "f g",
    "assert all(f(x) for x in [h(x) for x in 'ab'])": "f h",
    "assert sorted([], key=lambda a, *b, c=d, **e: f(a, b, c, e)) == []": "d f",
    """\
def check(g, *xs, k=w, **kw):
    y = 1
    assert f(g, xs, k, kw, y)
check(1)
""": "f w",
    """\
def outer():
    a = 1
    def inner():
        nonlocal a
        a = f(a)
    inner()
    assert a
""": "f",
    """\
def go():
    global seen
    seen = f()
go()
assert seen
""": "f",
    """\
try:
    f()
except (ValueError, Custom) as e:
    assert e.args
else:
    assert False
""": "f Custom",
    """\
import os.path, math as m
from re import sub as s
assert f(os, m, s)
""": "f",
    """\
if (n := f()) > 3:
    assert n
""": "f",
    """\
for i, (a, *b) in f():
    assert a, b
with g() as (c, d):
    c, d, i
""": "f g",
    """\
class C:
    x = f
    def m(self):
        return self.x(C)
assert C().m() == 1
""": "f",
    """\
match f():
    case {'a': b, **rest} | [b, rest]:
        assert b, rest
    case Point(x=z):
        assert z
""": "f Point",
    """\
async def go():
    assert [x async for x in f()]
go()
""": "f",
    "assert f'{f(1)!r:>{width}}'": "f width",
    """\
x: Kind = f()
assert x
""": "f Kind",
    """\
@deco
def g(a: int = b) -> list:
    pass
assert g
""": "b deco",
    """\
a.b.c = 1
d[e] = 2
assert a
""": "a d e",
    "assert __name__ and f(NotImplemented, print)": "f",
    "assert größe(1)": "größe",
}


@pytest.mark.parametrize("tests", FREE_NAMES)
def test_the_free_names_of_the_tests_are_asked_of_the_candidate(tests):
    assert names_of(make_task(tests)) == set(FREE_NAMES[tests].split())


def test_an_entry_point_is_asked_for_even_when_it_looks_like_a_builtin():
    assert names_of(make_task("assert sum([1]) == 1", entry_point="sum")) == {"sum"}


def test_an_entry_point_may_need_a_class_besides_but_never_the_solutions_own_helpers():
    solution = """\
def len(x): pass
def f(p): pass
class Point: pass
"""
    task = make_task("assert f(Point(1)) == len([1])", entry_point="f", solution=solution)
    assert names_of(task) == {"f", "Point"}
    assert classes_of(task) == {"Point"}


def test_the_reference_solution_says_which_builtin_look_alikes_are_asked_for():
    solution = """\
R = 3
def helper(): pass
def sum(a, b):
    total = 0
    return total
"""
    task = make_task("assert sum(10, 15) == 6 and max(1, 2) == 2", solution=solution)
    assert names_of(task) == {"sum"}
    assert not classes_of(task)


def test_only_names_which_the_tests_mention_count():
    solution = """\
def f(x): return g(x)
def g(x): pass
"""
    assert names_of(make_task("assert f(1)", solution=solution)) == {"f"}


def test_what_tests_and_helpers_define_is_the_judges_own():
    tests = """\
def near(a, b): return abs(a - b) < 1
assert near(f(1), poly(2)) and zero(g)
"""
    helpers = """\
def poly(x): return x
zero = lambda x: hidden(x)
"""
    setup = """\
def near(): pass
def poly(): pass
"""
    task = make_task(tests, helpers=helpers, setup=setup, solution="def f(x): pass")
    # A helper may use the candidate's names, too.
    assert names_of(task) == {"f", "g", "hidden"}


def test_the_setups_classes_are_seen_as_classes():
    setup = """\
class Pair: pass
class Unused: pass
LIMIT = 3
"""
    task = make_task("assert f([Pair(1, 2)], LIMIT) == 1", setup=setup, entry_point="f")
    assert names_of(task) == {"f", "Pair", "LIMIT"}
    assert "Pair" in classes_of(task)
    assert "f" not in classes_of(task)


def test_a_function_with_a_capital_name_is_no_class():
    task = make_task("assert Make(1)", solution="def Make(x): pass")
    assert names_of(task) == {"Make"}
    assert not classes_of(task)


def test_the_judge_imports_for_itself_so_that_no_candidate_can_patch_what_measures_it():
    setup = """\
import math, sys
from math import pi
"""
    solution = """\
import os.path, shutil
def f(): pass
"""
    tests = "assert math.isclose(f(), pi) and f(os)"
    task = make_task(tests, setup=setup, solution=solution)
    assert names_of(task) == {"f"}
    space = {}
    exec(imports_of(task), space)
    assert {"math", "pi", "os"} <= space.keys()


def test_a_star_import_of_the_standard_library_s_brings_its_names():
    assert names_of(make_task("from math import *\nassert f(pi)")) == {"f"}


def test_another_star_import_hides_what_is_free_so_the_task_must_say_what_it_asks_for():
    tests = "from nowhere import *\nassert f(pi)"
    assert names_of(make_task(tests, entry_point="f")) == {"f"}
    with pytest.raises(InvalidRequest, match="ask the candidate for no name"):
        make_task(tests)


def test_asserts_are_counted_wherever_they_stand():
    tests = """\
assert f
def g():
    if 1: assert f, 'x'
    for _ in 'ab': assert g
"""
    assert make_task(tests).tests_total == 3


# ── refusals ──────────────────────────────────────────────────────────────────────────────────────

REFUSED = [
    # What cannot measure anything.
    ({"tests": "f(1)"}, "no assert"),
    ({"tests": "  \n"}, "no assert"),
    ({"tests": "assert 1 == len([1])"}, "ask the candidate for no name"),
    ({"tests": "assert f(1)", "entry_point": "g"}, "entry_point: 'g'"),
    ({"tests": "def f(): pass\nassert f()", "entry_point": "f"}, "entry_point: 'f'"),
    ({"tests": "assert f(1)", "entry_point": "f();g"}, "entry_point: 'f();g'"),
    # What is no Python.
    ({"tests": "x = 1\nassert ("}, "the tests do not compile: line 2: "),
    ({"tests": "assert f()", "setup": "1 = 2"}, "the setup does not compile: line 1: "),
    ({"tests": "assert f()", "helpers": "\n\n\nclass"}, "the helpers do not compile: line 4: "),
    ({"tests": "assert f('\ud800')"}, "surrogates"),
    ({"tests": "assert f()\0"}, "null bytes"),
    ({"tests": "nonlocal x\nassert f"}, "nonlocal declaration not allowed"),
    # What would exhaust the parser.
    ({"tests": "assert " + "-" * 100_000 + "1"}, "the tests do not compile: "),
    ({"tests": "assert f" + "()" * 100_000}, "the tests do not compile: "),
    ({"tests": "assert " + "(" * 100_000}, "too many nested parentheses"),
    # What is too long, or of another type.
    ({"tests": "assert f\n" + "#" * SOURCE_BYTES}, "tests has 1,048,585 bytes"),
    ({"tests": "assert f", "prompt": "é" * (SOURCE_BYTES // 2 + 1)}, "prompt has 1,048,578 bytes"),
    ({"tests": ["assert f"]}, "tests must be a string, not list"),
    ({"tests": "assert f", "setup": None}, "setup must be a string, not NoneType"),
    ({"tests": "assert f", "entry_point": 3}, "entry_point must be a string, not int"),
]


@pytest.mark.parametrize("wrong, says", REFUSED, ids=[says for _, says in REFUSED])
def test_a_task_that_could_not_measure_anything_is_refused_with_the_reason(wrong, says):
    with pytest.raises(InvalidRequest) as refusal:
        Task(**{"task_id": "t", **wrong}).read()
    assert says in str(refusal.value)
    assert len(str(refusal.value)) < 300


@pytest.mark.parametrize("solution", ["```python", "print 'of Python 2'"])
def test_a_solution_that_is_no_python_is_no_reason_to_refuse(solution):
    assert names_of(make_task("assert f(1)", solution=solution)) == {"f"}


@pytest.mark.parametrize(
    "row",
    [
        {"tests": "assert f", "entry_point": "\x1b[31m" + "x" * 9999},
        {"tests": "global " + "x" * 9999 + "; x = \x1b[31m"},
        {"\x1b[31m" * 99: 1},
    ],
    ids=["an entry point", "a source", "a key"],
)
def test_hostile_text_is_escaped_and_cut_in_messages(row):
    with pytest.raises(InvalidRequest) as refusal:
        read_row(row)
    assert "\x1b" not in str(refusal.value)
    assert len(str(refusal.value)) < 400


SLOW_SOURCES = {
    "30,000 imports": f"from a import {','.join(f'b{i}' for i in range(30_000))}\nassert f",
    "120,000 statements": "assert f\n" + "a;" * 120_000,
    "90 brackets": "assert " + "[" * 90 + "f()" + "]" * 90,
    "15,000 functions": "assert f\n" + "def g(): pass\n" * 15_000,
    "20,000 lambdas": "assert f\n" + "x=lambda:y\n" * 20_000,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW_SOURCES)
def test_reading_a_hostile_source_takes_no_long_time(name):
    started = time.perf_counter()
    # Whether it is read or refused does not matter.
    with contextlib.suppress(InvalidRequest):
        make_task(SLOW_SOURCES[name])
    assert time.perf_counter() - started < 10


def test_a_source_is_read_and_never_compiled_or_run(tmp_path):
    # Were it compiled, each level would double the code of the next.
    deep = "assert f()\n"
    for level in range(19):
        indent = " " * level
        deep += f"{indent}try: f()\n{indent}finally:\n"
    mark = tmp_path / "ran"
    started = time.perf_counter()
    make_task(deep + " " * 19 + f"open({str(mark)!r}, 'w')", entry_point="f")
    assert time.perf_counter() - started < 1
    assert not mark.exists()


def test_a_task_is_frozen_and_reads_no_warnings_into_the_log(recwarn):
    task = make_task("assert f('\\d') is 3")
    with pytest.raises(dataclasses.FrozenInstanceError):
        task.tests = ""
    assert not list(recwarn)


def test_a_task_can_be_replaced_without_growing():
    task = make_task("assert math.pi == f()", setup="import math")
    again = dataclasses.replace(task, prompt="x")
    assert names_of(again) == names_of(task)
    assert again.helpers == task.helpers


# ── rows ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_row_of_our_own_keeps_every_field():
    row = {
        "task_id": "own",
        "prompt": "p",
        "setup": "K = 1",
        "helpers": "def h(): pass",
        "entry_point": "f",
        "solution": "def f(x): pass",
        "difficulty": "hard",
    }
    tests = {"tests": ["assert f(1)", "assert f(h())"]}
    of_others = {"reward_model": {"style": "rule"}, "test_list": None, "test": None}
    task = read_row({**row, **tests, **of_others})
    assert {key: getattr(task, key) for key in row} == row
    assert task.tests == "assert f(1)\nassert f(h())"
    assert task.tests_total == 2
    assert names_of(task) == {"f"}


def test_a_row_needs_nothing_but_tests():
    task = read_row({"tests": "assert f(1)"})
    assert task.task_id == "inline"
    assert task.prompt == ""
    assert task.entry_point == ""


def test_a_row_without_an_id_gets_the_one_of_its_place():
    row = {"tests": "assert f(1)", "task_id": None}
    assert read_row(row, default_id="x:3").task_id == "x:3"


def test_a_number_is_an_id_too():
    assert read_row({"tests": "assert f(1)", "task_id": 0}).task_id == "0"


CLAMP_ROW = {
    "task_id": 9001,
    "text": "Write a function to add up two numbers and clamp the result to [low, high].",
    # Carriage returns and tabs, as some of the data set's rows have them.
    "code": "LOW = 0\r\n"
    "def clamp(n, low, high):\r\n"
    "\treturn max(low, min(n, high))\r\n"
    "def sum(a, b, low=LOW, high=9):\r\n"
    "\treturn clamp(a + b, low, high)",
    "test_setup_code": "",
    "test_list": ["assert sum(3, 4) == 7", "assert sum(30, 4) == 9"],
    "challenge_test_list": ["assert sum(1, 1, high=1) == 1"],
}
DISC_ROW = {
    "task_id": 9002,
    "prompt": "Write a python function to find the area of a disc.",
    "code": "import math\ndef disc_area(radius: float) -> float:\n    return math.pi * radius ** 2",
    "source_file": "x",
    "test_imports": ["import math"],
    "test_list": [
        "assert math.isclose(disc_area(1), math.pi)",
        "assert disc_area(0) == 0",
    ],
}
PAIR = """\
class Pair(object):
    def __init__(self, a, b):
        self.a, self.b = a, b
"""
SPAN_ROW = {
    "task_id": 9003,
    "text": "Write a function to sum the spans of the given pairs.",
    "code": PAIR + "def span(pairs):\n    return sum(p.b - p.a for p in pairs)",
    "test_setup_code": PAIR,
    "test_list": ["assert span([Pair(1, 3), Pair(2, 3)]) == 3"],
    "challenge_test_list": [],
}
MBPP_ROWS = [CLAMP_ROW, DISC_ROW, SPAN_ROW]


def test_a_row_of_mbpp_tells_the_signature_and_asks_for_that_name():
    task = read_row(CLAMP_ROW)
    assert task.task_id == "9001"
    assert task.prompt == CLAMP_ROW["text"] + "\n\nDefine `sum(a, b, low=LOW, high=9)`."
    assert names_of(task) == {"sum"}


def test_a_row_of_mbpp_may_bring_imports_for_its_tests():
    task = read_row(DISC_ROW)
    assert task.prompt.startswith("Write a python")
    assert task.prompt.endswith("Define `disc_area(radius: float)`.")
    assert task.tests.startswith("import math\n")
    assert names_of(task) == {"disc_area"}


def test_a_row_of_mbpp_may_bring_a_class_that_is_there_already():
    task = read_row(SPAN_ROW)
    assert task.prompt.endswith("\n\nDefine `span(pairs)`.")
    assert task.setup.strip() == PAIR.strip()
    assert names_of(task) == {"span", "Pair"}
    assert classes_of(task) == {"Pair"}


@pytest.mark.parametrize("row", MBPP_ROWS, ids=lambda row: str(row["task_id"]))
def test_a_row_of_mbpp_hides_its_tests(row):
    assert "assert" not in read_row(row).prompt


def without(row, key):
    return {name: value for name, value in row.items() if name != key}


def test_a_row_of_mbpp_without_reference_code_takes_the_name_from_the_tests():
    assert read_row(without(DISC_ROW, "code")).prompt.endswith("Define `disc_area`.")
    assert read_row(without(SPAN_ROW, "code")).prompt.endswith("Define `span`.")


def test_without_reference_code_a_builtins_name_is_the_builtin():
    with pytest.raises(InvalidRequest, match="ask the candidate for no name"):
        read_row(without(CLAMP_ROW, "code"))


CHECK = "def check(c): assert c"
NO_TASKS = [
    ({}, r"no tests.*got the columns \[\]"),
    ({"prompt": "p", "answer": 3}, r"got the columns \['prompt', 'answer'\]"),
    ({"tests": ""}, "no tests"),
    ({"tests": []}, "no tests"),
    ({"test_list": []}, "no tests"),
    ({"tests": 3}, "tests must be a string"),
    ({"tests": {"a": 1}}, "no tests: not one pair"),
    ({"tests": [{"a": 1}]}, "another shape"),
    ({"tests": '[{"a": 1'}, "`tests` is not JSON"),
    ({"test_list": "f()"}, "no assert"),
    ({"test": CHECK, "entry_point": ["f"], "prompt": 3}, "prompt must be"),
    ({"tests": "assert f", "task_id": 1.5}, "task_id: expected text or a number, got 1.5"),
    ({"tests": "assert f", "task_id": True}, "task_id: expected text or a number, got True"),
    ({"tests": "assert f", "task_id": "x" * 256}, "task_id: expected 255 characters at most"),
]


@pytest.mark.parametrize("row, says", NO_TASKS, ids=[str(row)[:60] for row, _ in NO_TASKS])
def test_a_row_that_is_no_task_is_refused_with_the_reason(row, says):
    with pytest.raises(InvalidRequest, match=says):
        read_row(row)


@pytest.mark.parametrize(
    "given",
    ['["def f(): pass", "g"]', ["def f(): pass", "g"], "Thus:\n```python\ndef f(): pass\n```\n"],
    ids=["a list as JSON", "a list", "Markdown"],
)
def test_a_reference_may_be_one_of_several_or_in_markdown(given):
    task = read_row({"tests": "assert f() is None", "solutions": given})
    assert task.solution.strip() == "def f(): pass"


def test_a_number_is_a_task_id_also_where_pandas_made_it_a_float():
    assert read_row({"tests": "assert f", "task_id": 3.0}).task_id == "3"


HUMAN_PROMPT = '''\
from typing import List
import math


def poly(x: float) -> float:
    """A helper."""
    return math.floor(x) - 2


def root(xs: List[float]) -> float:
    """ The root. """
'''
HUMAN_TEST = """


METADATA = {}


def check(candidate):
    assert math.fabs(poly(candidate([]))) == 0
"""
HUMAN_ROW = {
    "task_id": "Human/1",
    "entry_point": "root",
    "prompt": HUMAN_PROMPT,
    "canonical_solution": "    return 2.0\n",
    "test": HUMAN_TEST,
}


def test_a_row_of_humaneval_asks_for_its_entry_point_and_calls_its_check():
    task = read_row(HUMAN_ROW)
    assert task.prompt == HUMAN_PROMPT
    assert task.tests.endswith("\ncheck(root)\n")
    assert task.tests_total == 1
    assert names_of(task) == {"root"}


def test_a_row_of_humaneval_measures_with_its_own_helpers():
    task = read_row(HUMAN_ROW)
    assert "def poly" in task.helpers
    assert "def root" not in task.helpers
    # The candidate's code is a completion: it may use them, too.
    assert task.setup.strip() == task.helpers.strip()


def test_a_row_of_humaneval_pays_the_right_answer_only():
    task = read_row(HUMAN_ROW)
    assert grade(task, task.solution) == 1.0
    assert grade(task, "def root(xs): return 4") == 0.0


IMITATIONS = {
    "prose": "Write root, please!",
    "a comment for a body": "def root(xs):\n    # no body\n",
    "a fenced block": "Do this:\n```python\ndef root(xs):\n    '''x'''\n",
    "nothing": "",
}


@pytest.mark.parametrize("left_out", ["nothing", "canonical_solution"])
@pytest.mark.parametrize("name", IMITATIONS)
def test_an_imitation_of_humaneval_with_a_prompt_in_prose_still_works(name, left_out):
    prompt = IMITATIONS[name]
    test = "def check(candidate):\n    assert candidate(1) == 2"
    row = {**HUMAN_ROW, "prompt": prompt, "test": test}
    task = read_row(without(row, left_out))
    assert task.prompt == prompt
    assert task.helpers.strip() == ""
    assert names_of(task) == {"root"}


def test_every_task_of_humaneval_loads_and_asks_for_its_entry_point_only():
    tasks = {row["task_id"]: read_row(row) for row in human_eval()}
    assert len(tasks) == 164
    for task in tasks.values():
        assert names_of(task) == {task.entry_point}
        assert task.tests_total > 0
        assert not classes_of(task)
    helped = {key for key, task in tasks.items() if "def " in task.helpers}
    assert helped == {f"HumanEval/{number}" for number in (10, 32, 38, 50)}

    some = random.Random(1).sample([*tasks.values()], 40)
    odd = [tasks[f"HumanEval/{number}"] for number in (10, 32, 33, 38, 50, 53)]
    unpaid = [task.task_id for task in some + odd if grade(task, task.solution) != 1.0]
    assert unpaid == []


# ── files ─────────────────────────────────────────────────────────────────────────────────────────

GOOD_LINE = json.dumps({"task_id": "a", "tests": "assert f(1)"})
GOOD = GOOD_LINE.encode()


def test_a_file_mixes_formats_and_skips_blank_lines(tmp_path):
    nameless = json.dumps({"tests": "assert g()"})
    lines = [GOOD_LINE, "", "  \r", *map(json.dumps, MBPP_ROWS), nameless]
    path = tmp_path / "t.jsonl"
    path.write_bytes("\n".join(lines).encode("utf-8-sig"))
    assert list(load_tasks(path)) == ["a", "9001", "9002", "9003", "t.jsonl:7"]


def test_a_file_may_be_packed(tmp_path):
    lines = [GOOD_LINE, *map(json.dumps, MBPP_ROWS)]
    path = tmp_path / "t.jsonl.gz"
    path.write_bytes(gzip.compress("\r\n".join(lines).encode()))
    assert list(load_tasks(str(path))) == ["a", "9001", "9002", "9003"]


BAD_FILES = [
    (b"", "no tasks"),
    (b"\n\n", "no tasks"),
    (GOOD + b"\n[1]\n", "line 2: expected a JSON object"),
    (GOOD + b"\n\nnull\n", "line 3: expected a JSON object"),
    (GOOD + b"\n{", "line 2: Expecting property name"),
    (GOOD + b"\n\n" + GOOD, "line 3: the task_id 'a' is taken"),
    (GOOD.replace(b'"a"', b'"repl"'), "is taken already"),
    (GOOD + b'\n{"tests": "\xff"}', "line 2: 'utf-8' codec can't decode byte 0xff"),
    (GOOD_LINE.encode("utf-16"), "line 1: 'utf-8' codec"),
    (GOOD + b'\n{"tests": "f()"}', "line 2: no assert"),
    (b"[" * 200_000, "while decoding a JSON array"),
    (b'{"a": ' + b"9" * 5000 + b"}", "line 1: Exceeds the limit"),
]


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("content, says", BAD_FILES, ids=[says for _, says in BAD_FILES])
def test_a_bad_file_is_refused_as_a_whole_with_the_line(tmp_path, content, says, packed):
    path = tmp_path / ("bad.jsonl.gz" if packed else "bad.jsonl")
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(InvalidRequest) as refusal:
        load_tasks(path)
    assert says in str(refusal.value)
    assert str(path) in str(refusal.value)


PACKED = gzip.compress(GOOD * 99)
BROKEN_PACKS = {
    "no.gz": GOOD,
    "cut.gz": PACKED[:-12],
    "flipped.gz": PACKED[:20] + b"\0\1\2\3" + PACKED[24:],
}


@pytest.mark.parametrize("name", BROKEN_PACKS)
def test_a_file_that_cannot_be_unpacked_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(BROKEN_PACKS[name])
    with pytest.raises(InvalidRequest, match=f"tasks file .*{name}"):
        load_tasks(tmp_path / name)


@pytest.mark.parametrize("name", ["missing.jsonl", "."])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name):
    with pytest.raises(InvalidRequest, match="tasks file .*: .*directory"):
        load_tasks(tmp_path / name)


def test_all_bad_lines_are_told_at_once(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(GOOD + b'\n{"tests": "f()"}\n[1]\n{"prompt": "p"}\n')
    with pytest.raises(InvalidRequest, match=r"(?s)line 2: .*line 3: .*line 4: "):
        load_tasks(path)


def test_bad_lines_may_be_skipped(tmp_path, caplog):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(GOOD + b'\n{"tests": "f()"}\n[1]\n')
    assert list(load_tasks(path, skip_bad=True)) == ["a"]
    assert "line 2: no assert" in caplog.text
    assert "line 3: expected a JSON object" in caplog.text


# ── grading without a sandbox ─────────────────────────────────────────────────────────────────────


class Recorded(ast.NodeTransformer):
    """Each assert becomes: note whether it held, and go on."""

    def visit_Assert(self, node):
        call = f"_note({node.lineno}, lambda: True)"
        note = ast.parse(call).body[0]
        note.value.args[1].body = node.test
        return ast.fix_missing_locations(note)


def grade(task, code):
    """Passed asserts / all asserts: the reward's rule in its simplest form, without a sandbox."""
    failed = set()
    executed = set()

    def note(line, verdict):
        executed.add(line)
        try:
            held = bool(verdict())
        except BaseException:
            held = False
        if not held:
            failed.add(line)

    candidate = {}
    exec(task.setup, candidate)
    with contextlib.suppress(Exception):
        exec(code, candidate)

    judge = {"_note": note}
    exec(imports_of(task), judge)
    exec(task.helpers, judge)
    judge.update({name: candidate[name] for name in names_of(task) if name in candidate})
    with contextlib.suppress(Exception):
        exec(compile(Recorded().visit(ast.parse(task.tests)), "tests", "exec"), judge)
    return len(executed - failed) / task.tests_total


# ── the repl ──────────────────────────────────────────────────────────────────────────────────────


def test_the_repl_has_no_tests_and_is_none_of_them():
    assert not REPL.tests_total
    assert not names_of(REPL)
    assert REPL.task_id not in builtin_tasks()
