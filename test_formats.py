"""formats.jsonl: a row of each format, as data sets have it, played over a real server.

To add a format, add a line: what it is called, the row, and a right and a wrong program; or the
row and a part of the words by which it is refused.
"""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from conftest import HERE
from conftest import Launched
from conftest import graded
from python_env import InvalidRequest
from python_env import ServerError
from python_env import load_tasks

CASES = [json.loads(line) for line in (HERE / "formats.jsonl").read_text("utf-8").splitlines()]
PLAYED = [case for case in CASES if "right" in case]
REFUSED = [case for case in CASES if "refused" in case]


def name_of(case: dict[str, Any]) -> str:
    return case["format"]


def test_every_line_is_played_or_refused():
    assert len(PLAYED) + len(REFUSED) == len(CASES) == 34


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
    with server.session() as env:
        with pytest.raises(ServerError, match=re.escape(case["refused"])) as refused:
            env.reset(**case["row"])
        assert refused.value.code == "VALIDATION_ERROR"
        # Which was an answer: the session goes on.
        assert env.reset(task_id="repl").done is False


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
