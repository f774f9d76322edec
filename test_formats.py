"""formats.jsonl: a row of each format, as data sets have it, played over a real server.

To add a format, add a line: what it is called, the row, and a right and a wrong program; or the
row and a part of the words by which it is refused.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import re
from typing import Any

import pytest

from conftest import HERE
from conftest import Launched
from conftest import graded
from python_env import TESTS
from python_env import EnvClient
from python_env import InvalidRequest
from python_env import Pair
from python_env import PythonEnv
from python_env import ServerError
from python_env import Task
from python_env import load_tasks
from python_env import read_row

CASES = [json.loads(line) for line in (HERE / "formats.jsonl").read_text("utf-8").splitlines()]
PLAYED = [case for case in CASES if "right" in case]
REFUSED = [case for case in CASES if "refused" in case]


def name_of(case: dict[str, Any]) -> str:
    return case["format"]


def test_every_line_is_played_or_refused():
    assert len(PLAYED) + len(REFUSED) == len(CASES) == 40


@pytest.mark.parametrize("case", PLAYED, ids=name_of)
def test_a_row_pays_its_right_program_in_full_and_the_wrong_one_less(server: Launched, case):
    with server.session() as env:
        right = graded(env, case["right"], case["row"])
        assert right.reward == 1.0, right.observation
        assert right.done
        wrong = graded(env, case["wrong"], case["row"])
        assert wrong.reward < 1.0, wrong.observation
        assert not wrong.done


@pytest.mark.parametrize("case", PLAYED, ids=name_of)
def test_a_row_hides_its_tests_from_the_prompt(server: Launched, case):
    with server.session() as env:
        seen = env.reset(**case["row"]).observation
        assert seen.prompt
        assert seen.tests_total
        assert "assert" not in seen.prompt


@pytest.mark.parametrize("case", REFUSED, ids=name_of)
def test_a_row_that_could_not_measure_anything_is_refused_by_name(server: Launched, case):
    with EnvClient(server.url) as client:  # which sends a row as it is
        with pytest.raises(ServerError, match=re.escape(case["refused"])) as refused:
            client.reset(**case["row"])
        assert refused.value.code == "VALIDATION_ERROR"
        # Which was an answer: the session goes on.
        assert client.reset(task_id="repl").done is False


WITHOUT_TESTS = [case for case in REFUSED if not any(case["row"].get(name) for name in TESTS)]


@pytest.mark.parametrize("case", WITHOUT_TESTS, ids=name_of)
def test_our_client_refuses_a_row_without_tests_before_it_is_sent(case):
    nobody = PythonEnv("http://127.0.0.1:1")
    with pytest.raises(InvalidRequest, match=re.escape(case["refused"])):
        nobody.reset(**case["row"])


@pytest.mark.parametrize("case", PLAYED, ids=name_of)
def test_our_client_sends_the_task_and_nothing_else(case):
    row = {**case["row"], "seed": "of sesame", "reward": 0.5, "born": datetime.date(2026, 1, 1)}
    sent = read_row({**row, "blob": b"x" * 5_000_000, "weight": float("nan")})
    assert sent.keys() <= {field.name for field in dataclasses.fields(Task)} | {"inputs", "outputs"}
    assert Task.from_row(json.loads(json.dumps(sent))) == Task.from_row(case["row"])


def test_a_file_of_these_rows_loads_and_one_of_the_others_is_refused_line_by_line(tmp_path):
    good = tmp_path / "good.jsonl"
    good.write_text("\n".join(json.dumps(case["row"]) for case in PLAYED))
    tasks = load_tasks(good)
    assert len(tasks) == len(PLAYED)
    assert all(task.tests_total for task in tasks.values())

    bad = tmp_path / "bad.jsonl"
    bad.write_text("\n".join(json.dumps(case["row"]) for case in REFUSED))
    with pytest.raises(InvalidRequest) as refused:
        load_tasks(bad)
    for number, case in enumerate(REFUSED, 1):
        assert re.search(f"line {number}: .*{re.escape(case['refused'])}", str(refused.value))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"test_lst": ["assert f()"], "text": "q"}, "`test_lst` .*mean `test_list`"),
        ({"unit_tests": "assert f()"}, "mean `tests`"),
        ({"output": "a", "inputs_": "b"}, "mean `outputs`.*mean `inputs`"),
        ({"test": "def check(c): assert c(1)", "entrypoint": "f"}, "has an `entry_point` beside"),
    ],
)
def test_a_misspelt_column_is_told_what_it_may_mean(row, words):
    with pytest.raises(InvalidRequest, match=words) as refused:
        Task.from_row(row)
    assert "`text`" not in str(refused.value)


def test_the_hints_of_a_signature_that_was_given_need_no_import(server: Launched):
    row = {
        "question_content": "Add them.",
        "starter_code": "class Solution:\n    def add(self, nums: List[int]) -> int:\n        ",
        "metadata": '{"func_name": "add"}',
        "public_test_cases": '[{"input": "[2, 4]", "output": "6", "testtype": "functional"}]',
    }
    code = (
        "class Solution:\n    def add(self, nums: List[int]) -> int:\n"
        "        return reduce(operator.add, Counter(nums).elements())"
    )
    with server.session() as env:
        assert graded(env, code, row).reward == 1.0
        assert graded(env, "class Solution:\n    def add(self, nums): return 0", row).reward == 0.0


@pytest.mark.parametrize(
    ("code", "reward"),
    [
        ("def add(a, b): return a + b", 1.0),
        ("class Solution:\n    def add(self, a, b): return a + b", 1.0),
        ("class Solution:\n    def add(self, a, b): return 3", 0.5),
        ("", 0.0),
    ],
)
def test_where_no_signature_is_given_an_answer_is_a_function_or_a_method(
    server: Launched, code, reward
):
    row = {"fn_name": "add", "inputs": [[1, 2], [5, 6]], "outputs": [3, 11]}
    with server.session() as env:
        assert graded(env, code, row).reward == reward


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        ("0.5", "0.50"),
        ("a 3 -1.5000 b", "a 3.0 -1.5 b"),
        ("x \n\ny\n", "x\n\ny"),
    ],
)
def test_an_output_that_means_the_same_is_right(printed, expected):
    assert Pair("", expected).holds(printed)


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        ("0.51", "0.50"),
        ("90071992547409.93", "90071992547409.92"),
        ("2.0", "2"),  # where a whole number is asked for
        ("011", "11"),
        ("1.0001", "1.0"),
        ("nan", "1.0"),
        ("1.2.3", "1.2.30"),
        ("a.  b", "a. b"),
        ("1.0 2.0", "1.0"),
        ("x\ny", "x\n\ny"),
    ],
)
def test_an_output_that_means_something_else_is_wrong(printed, expected):
    assert not Pair("", expected).holds(printed)


def test_an_infinite_argument_or_output_is_one(server: Launched):
    row = {"fn_name": "cap", "inputs": [[5, math.inf], [-math.inf, 3]], "outputs": [5, -math.inf]}
    with server.session() as env:
        assert graded(env, "def cap(x, most): return min(x, most)", row).reward == 1.0
        assert graded(env, "def cap(x, most): return most", row).reward == 0.0


def test_what_is_imported_for_a_signature_is_no_answer(server: Launched):
    row = {"fn_name": "gcd", "inputs": [[4, 6]], "outputs": [2]}
    with server.session() as env:
        assert graded(env, "pass", row).reward == 0.0


@pytest.mark.parametrize("column", ["input_output", "test", "public_test_cases"])
def test_json_in_a_column_holds_no_more_lists_than_a_message(column):
    with pytest.raises(InvalidRequest, match="over 100,000 lists"):
        Task.from_row({column: "[" + "[]," * 100_001 + "[]]"})


def test_brackets_in_the_strings_of_a_column_s_json_are_no_lists():
    text = json.dumps({"inputs": ["[" * 60_000, "[" * 60_000], "outputs": ["", ""]})
    assert len(Task.from_row({"input_output": text}).pairs) == 2


def test_the_name_of_an_entry_point_is_no_pattern():
    kept = len(vars(re)["_cache"])
    for n in range(20):
        Task.from_row({"test": "assert x", "entry_point": f"{n}-" + "a" * 99_999})
    assert len(vars(re)["_cache"]) < kept + 10
