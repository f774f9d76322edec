"""Chapters 2 and 8: what travels, as dataclasses; validation and JSON schema."""

from __future__ import annotations

import dataclasses
import json
import time
import typing
from dataclasses import dataclass
from dataclasses import field
from typing import Any

import pytest

import python_env
from python_env import InvalidRequest
from python_env import PythonAction
from python_env import PythonEnvError
from python_env import PythonObservation
from python_env import PythonState
from python_env import build_known
from python_env import described
from python_env import echo
from python_env import json_schema
from python_env import known_fields
from python_env import parse_message
from python_env import to_json
from python_env import validate


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


@dataclass
class Free:
    items: list = field(default_factory=list)
    numbers: list[float] = field(default_factory=list)
    rows: list[list[int]] = field(default_factory=list)
    anything: dict[str, Any] = field(default_factory=dict)


# ── validation ────────────────────────────────────────────────────────────────────────────────────


# The type and the place of each entry that is expected.
WRONG = [
    ({}, "missing name"),
    ([], "model_attributes_type"),
    (None, "model_attributes_type"),
    ({"name": 5}, "string_type name"),
    ({"name": None}, "string_type name"),
    ({"name": "abcdef"}, "string_too_long name"),
    ({"name": "a", "nam": 1}, "extra_forbidden nam"),
    ({"name": "a", "ratio": "1"}, "float_type ratio"),
    ({"name": "a", "ratio": True}, "float_type ratio"),
    ({"name": "a", "ratio": float("nan")}, "finite_number ratio"),
    ({"name": "a", "ratio": -float("inf")}, "finite_number ratio"),
    ({"name": "a", "ratio": 10**400}, "finite_number ratio"),
    ({"name": "a", "ratio": 0}, "greater_than ratio"),
    ({"name": "a", "flag": 1}, "bool_type flag"),
    ({"name": "a", "inner": None}, "model_attributes_type inner"),
    ({"name": "a", "inner": {"n": True}}, "int_type inner.n"),
    ({"name": "a", "inner": {"n": 1.0}}, "int_type inner.n"),
    ({"name": "a", "inner": {"n": -1}}, "greater_than_equal inner.n"),
    ({"name": "a", "inner": {"n": 10}}, "less_than_equal inner.n"),
    ({"name": "a", "inner": {"m": 1}}, "extra_forbidden inner.m, missing inner.n"),
    ({"name": "a", "tags": "b"}, "list_type tags"),
    ({"name": "a", "tags": ["b", 1, None]}, "string_type tags.1, string_type tags.2"),
    ({"name": "a", "table": []}, "dict_type table"),
    ({"name": "a", "table": {"k": False}}, "int_type table.k"),
    ({"name": "a", "mode": "b"}, "literal_error mode"),
    ({"name": "a", "mode": []}, "literal_error mode"),
    ({"name": "a", "either": []}, "string_type either"),
    ({"name": 1, "flag": 0}, "string_type name, bool_type flag"),
]


@pytest.mark.parametrize("data, expected", WRONG, ids=str)
def test_wrong_data_is_refused_with_pydantics_entries(data, expected):
    with pytest.raises(InvalidRequest) as caught:
        validate(Sample, data)
    entries = caught.value.errors
    found = [" ".join([e["type"], ".".join(map(str, e["loc"]))]).strip() for e in entries]
    assert sorted(found) == sorted(expected.split(", "))
    assert entries[0]["msg"] in str(caught.value)
    for entry in entries:
        assert entry.keys() == {"type", "loc", "msg", "input"}
        assert entry["msg"][0].isupper()
        assert to_json(entry)


def test_an_entry_repeats_what_was_sent():
    with pytest.raises(InvalidRequest) as caught:
        validate(Sample, {"name": "a", "flag": 1, "mode": "b", "tags": [2.5]})
    assert [entry["input"] for entry in caught.value.errors] == [1, 2.5, "b"]


def test_right_data_becomes_the_model_without_conversions():
    data = {
        "name": "abcde",
        "inner": {"n": 9},
        "ratio": 2,
        "flag": True,
        "tags": ["x"],
        "table": {"k": -1},
        "mode": 1,
        "either": "e",
    }
    model = validate(Sample, data)
    assert model == Sample(**{**data, "inner": Inner(9)})
    assert type(model.ratio) is float
    assert validate(Sample, {"name": "a", "ratio": None, "either": 3}).either == 3
    assert validate(PythonAction, {"code": "1", "timeout_s": None, "metadata": {"k": [None]}})


def test_known_fields_pass_over_the_others_but_are_held_to_their_types():
    assert known_fields(Sample, {"name": "a", "other": 1}) == Sample("a")
    with pytest.raises(InvalidRequest, match="row.name"):
        known_fields(Sample, {"name": 1, "other": 1}, ("row",))


def test_a_client_builds_what_it_knows_of_a_newer_server_s_model():
    built = build_known(PythonState, {"step_count": 2, "invented_later": 1})
    assert built == PythonState(step_count=2)


# ── hostile data ──────────────────────────────────────────────────────────────────────────────────


HOSTILE = [
    {f"k{i}": "x" * 10_000 for i in range(2_000)},
    {"x" * 1_000_000: "y" * 1_000_000},
    {"code": ["\ud800" * 100_000]},
    {"\r\n\0\ud800": "\x1b[2J"},
    {"code": [[[float("nan")]]]},
    {"code": float("inf")},
    {"code": {"a": 10**4000}},
    {"code": 10**4000},
]


@pytest.mark.parametrize("data", HOSTILE, ids=lambda data: ascii(data)[:40])
def test_hostile_data_is_echoed_short(data):
    with pytest.raises(InvalidRequest) as caught:
        validate(PythonAction, data)
    message = to_json(caught.value.errors)
    assert len(caught.value.errors) <= 20
    assert len(message) < 30_000
    assert len(str(caught.value)) < 500
    json.loads(message, parse_constant=pytest.fail)


def nested(depth):
    """Lists in lists, which the interpreter's own repr() would give up."""
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    ["x" * 2_000_000, nested(100_000), [nested(900)] * 100_000, 10**5_000, -(10**5_000), object()],
    ids=["text", "deep", "wide", "large", "negative", "foreign"],
)
def test_an_echo_costs_the_same_whatever_it_repeats(value):
    began = time.process_time()
    text = json.dumps(echo(value), allow_nan=False)
    assert time.process_time() - began < 0.01
    assert len(text) < 1_000


@pytest.mark.parametrize("value", [None, True, 0, -7, 2.5, 2**64, "", "é\n"])
def test_a_small_value_is_its_own_echo(value):
    assert echo(value) == value
    assert type(echo(value)) is type(value)


def test_nesting_of_any_depth_is_refused_as_such():
    for depth in (*range(60, 1_100, 7), 100_000):
        with pytest.raises(InvalidRequest) as caught:
            text = f'{{"type": "step", "data": {{"code": {"[" * depth + "]" * depth}}}}}'
            validate(PythonAction, parse_message(text)[1])
        assert len(to_json([*caught.value.errors, str(caught.value)])) < 2_000


LONG = {
    "strange": {f"k{i}": 0 for i in range(150_000)},
    "right numbers": {"numbers": [1] * 1_000_000},
    "wrong numbers": {"numbers": ["1"] * 500_000},
    "rows": {"rows": [[1] * 1_000] * 1_000},
}


@pytest.mark.parametrize("name", LONG)
def test_a_message_of_many_values_does_not_hold_the_server_up(name):
    began = time.process_time()
    with pytest.raises(InvalidRequest):
        validate(Free, LONG[name])
    # The bound is 50 ms; this machine may be a slow one.
    assert time.process_time() - began < 0.1


def test_what_is_not_looked_into_may_be_long():
    data = {"items": [1] * 1_000_000, "anything": {str(i): [i] for i in range(100_000)}}
    began = time.process_time()
    assert len(validate(Free, data).items) == 1_000_000
    assert time.process_time() - began < 0.05


# ── JSON schema ───────────────────────────────────────────────────────────────────────────────────


def test_the_schema_comes_from_the_dataclass():
    schema = json_schema(PythonAction)
    assert schema["type"] == "object"
    assert schema["title"] == "PythonAction"
    assert schema["description"] == PythonAction.__doc__
    assert schema["required"] == ["code"]
    assert schema["additionalProperties"] is False
    seconds = schema["properties"]["timeout_s"]
    assert seconds["anyOf"] == [{"type": "number"}, {"type": "null"}]
    assert seconds["exclusiveMinimum"] == 0
    assert seconds["default"] is None
    assert schema["properties"]["code"]["type"] == "string"


@pytest.mark.parametrize("model", [PythonAction, PythonObservation, PythonState])
def test_each_field_of_ours_is_described(model):
    properties = json_schema(model)["properties"]
    assert {*properties} == {each.name for each in dataclasses.fields(model)}
    assert all(each["description"] for each in properties.values())


def test_each_kind_of_type_has_its_schema():
    sample = json_schema(Sample)["properties"]
    assert sample["name"] == {"type": "string", "maxLength": 5, "description": "a name"}
    assert sample["tags"] == {"type": "array", "items": {"type": "string"}}
    assert sample["table"] == {"type": "object", "additionalProperties": {"type": "integer"}}
    assert sample["mode"]["enum"] == ["a", 1]
    digit = sample["inner"]["properties"]["n"]
    assert (digit["minimum"], digit["maximum"]) == (0, 9)
    assert json_schema(Any) == {}


def test_the_schema_is_one_that_others_understand():
    jsonschema = pytest.importorskip("jsonschema")
    check = jsonschema.Draft202012Validator(json_schema(Sample))
    assert not list(check.iter_errors({"name": "a", "ratio": 0.5, "inner": {"n": 1}}))
    assert list(check.iter_errors({"name": "a", "ratio": 0}))
    assert list(check.iter_errors({"name": "a", "inner": {"n": 10}}))


# ── errors ────────────────────────────────────────────────────────────────────────────────────────


# What this module promises to raise, and nothing besides.
ERRORS = [
    getattr(python_env, name)
    for name in python_env.__all__
    if name.endswith(("Error", "Failed", "Timeout", "InvalidRequest"))
]


def test_every_error_has_one_base():
    assert len(ERRORS) >= 10
    assert all(issubclass(kind, PythonEnvError) for kind in ERRORS)


def test_every_error_says_by_its_class_what_a_peer_is_told():
    ending = {kind.code for kind in ERRORS if kind.ends_session}
    assert ending == {"CAPACITY_REACHED", "FACTORY_ERROR", "SESSION_ERROR"}
