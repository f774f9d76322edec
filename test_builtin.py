"""Chapter 13: the built-in tasks, as an agent plays them against a real server.

A task has to pay right code fully, the usual wrong answers less, the more the nearer they are, and
nothing at all for an empty program. And none of its tests may be there for nothing: for each there
is a wrong answer that fails it.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from conftest import HERE
from conftest import Launched
from conftest import graded
from python_env import BUILTIN_ROWS
from python_env import PythonEnv

ROWS = {row["task_id"]: row for row in BUILTIN_ROWS}
KINDS = {
    "parse-duration": "easy",
    "clean-people": "easy",
    "fix-means": "easy",
    "build-order": "medium",
    "sales-report": "medium",
    "refactor-shipping": "medium",
    "search-log": "hard",
    "ledger": "hard",
}


def code_in(task_id: str) -> str:
    """The code that stands in a task's prompt, between its first paragraph and its next."""
    _, _, code = ROWS[task_id]["prompt"].partition("\n\n")
    return code.partition("\n\n")[0]


# Three wrong answers a task, as models write them, and how many tests each passes.
WRONG: dict[str, list[tuple[int, str]]] = {
    "parse-duration": [
        # It adds up what it finds, and never minds the rest.
        (
            8,
            r"""
import re

UNITS = {"h": 3600, "m": 60, "s": 1}

def parse_duration(text):
    return sum(int(number) * UNITS[unit] for number, unit in re.findall(r"(\d+)([hms])", text))
""",
        ),
        # It takes nothing for no part: "0s" is refused. `strip` and `lower` let too much pass.
        (
            13,
            r"""
import re

def parse_duration(text):
    text = text.strip().lower()
    match = re.match(r"^(?:(\d+)h)?\s*(?:(\d+)m)?\s*(?:(\d+)s)?$", text)
    if not match:
        raise ValueError(f"invalid duration: {text!r}")
    hours, minutes, seconds = (int(group) if group else 0 for group in match.groups())
    total = hours * 3600 + minutes * 60 + seconds
    if total == 0:
        raise ValueError("empty duration")
    return total
""",
        ),
        # All but white space that is no space, and digits that are not 0-9.
        (
            15,
            r"""
import re

def parse_duration(text):
    match = re.match(r"^\s*(?:(\d+)h)?\s*(?:(\d+)m)?\s*(?:(\d+)s)?\s*$", text)
    if not match or not any(match.groups()):
        raise ValueError(text)
    hours, minutes, seconds = (int(group or 0) for group in match.groups())
    return hours * 3600 + minutes * 60 + seconds
""",
        ),
    ],
    "clean-people": [
        # It cleans, but drops no bad address and finds nobody twice.
        (
            5,
            """
def clean(rows):
    for row in rows:
        row["name"] = " ".join(row["name"].split())
        row["email"] = row["email"].strip().lower()
        row["age"] = int(row["age"]) if row.get("age", "").isdigit() else None
    return rows
""",
        ),
        # Of a person's rows the first counts alone.
        (
            11,
            """
def clean(rows):
    seen = set()
    result = []
    for row in rows:
        email = row["email"].strip().lower()
        if email.count("@") != 1 or email in seen:
            continue
        seen.add(email)
        try:
            age = int(row.get("age", ""))
        except ValueError:
            age = None
        if age is not None and age > 150:
            age = None
        result.append({"name": " ".join(row["name"].split()), "email": email, "age": age})
    return result
""",
        ),
        # `or` takes the age 0 for none, and isdigit() knows more digits than int().
        (
            13,
            """
def clean(rows):
    people = {}
    for row in rows:
        email = row["email"].strip().lower()
        user, _, domain = email.partition("@")
        if not user or not domain or "@" in domain:
            continue
        text = row.get("age", "").strip()
        age = int(text) if text.isdigit() and int(text) <= 150 else None
        if email in people:
            people[email]["age"] = people[email]["age"] or age
        else:
            name = " ".join(row["name"].split())
            people[email] = {"name": name, "email": email, "age": age}
    return list(people.values())
""",
        ),
    ],
    "fix-means": [
        # As it stands in the prompt.
        (1, code_in("fix-means")),
        # The default is mended, and the end; the last run is still divided by the size.
        (
            5,
            """
def means(values, size):
    out = []
    for i in range(0, len(values), size):
        out.append(sum(values[i:i + size]) / size)
    return out
""",
        ),
        # What a size below 1 does was overlooked: range() refuses 0, and nothing else.
        (
            9,
            """
def means(values, size):
    out = []
    for i in range(0, len(values), size):
        run = values[i:i + size]
        out.append(sum(run) / len(run))
    return out
""",
        ),
    ],
    "build-order": [
        # Depth first, of the keys alone; a circle ends in a RecursionError.
        (
            6,
            """
def build_order(needs):
    order = []

    def visit(name):
        if name in order:
            return
        for each in needs[name]:
            visit(each)
        order.append(name)

    for name in sorted(needs):
        visit(name)
    return order
""",
        ),
        # Depth first with all packages and circles: an order, but not the one that is asked for.
        (
            11,
            """
def build_order(needs):
    order = []
    state = {}

    def visit(name):
        if state.get(name) == "done":
            return
        if state.get(name) == "open":
            raise ValueError("circular")
        state[name] = "open"
        for each in sorted(needs.get(name, [])):
            visit(each)
        state[name] = "done"
        order.append(name)

    for name in sorted(needs):
        visit(name)
    return order
""",
        ),
        # Round by round: all that are ready, and only then what became ready by them.
        (
            12,
            """
def build_order(needs):
    left = {name: set(each) for name, each in needs.items()}
    for each in needs.values():
        for name in each:
            left.setdefault(name, set())
    order = []
    while left:
        ready = sorted(name for name, each in left.items() if not each)
        if not ready:
            raise ValueError("circular dependency")
        for name in ready:
            del left[name]
        order += ready
        for each in left.values():
            each.difference_update(ready)
    return order
""",
        ),
    ],
    "sales-report": [
        # It trusts its input: a line without two fields, or with no number, ends it.
        (
            6,
            """
import sys

totals = {}
for line in sys.stdin:
    shop, amount = line.strip().split(";")
    totals[shop] = totals.get(shop, 0) + float(amount)
for shop, total in sorted(totals.items(), key=lambda item: -item[1]):
    print(f"{shop} {total:.2f}")
print("skipped 0")
""",
        ),
        # float() takes too much for an amount; reverse=True turns the names round as well.
        (
            8,
            """
import sys
from collections import defaultdict

totals = defaultdict(float)
skipped = 0
for line in sys.stdin:
    line = line.strip()
    if not line:
        continue
    try:
        shop, amount = line.split(";")
        totals[shop.strip()] += float(amount)
    except ValueError:
        skipped += 1
for shop, total in sorted(totals.items(), key=lambda item: (item[1], item[0]), reverse=True):
    print(f"{shop} {total:.2f}")
print(f"skipped {skipped}")
""",
        ),
        # All but sums of floats, and digits that are not 0-9.
        (
            12,
            r"""
import re
import sys

totals = {}
skipped = 0
for line in sys.stdin.read().splitlines():
    if not line.strip():
        continue
    parts = [part.strip() for part in line.split(";")]
    if len(parts) != 2 or not parts[0] or not re.fullmatch(r"-?\d+(\.\d{1,2})?", parts[1]):
        skipped += 1
        continue
    totals[parts[0]] = totals.get(parts[0], 0.0) + float(parts[1])
for shop, total in sorted(totals.items(), key=lambda item: (-item[1], item[0])):
    print(f"{shop} {total:.2f}")
print(f"skipped {skipped}")
""",
        ),
    ],
    "refactor-shipping": [
        # The table alone; customs are forgotten, and the country is taken as it comes.
        (
            4,
            """
RATES = {
    "DE": {"steps": [(1000, 450), (5000, 755), (30000, 1255)], "customs": 0},
    "AT": {"steps": [(2000, 905), (10000, 1505)], "customs": 0},
    "CH": {"steps": [(2000, 905), (10000, 1505)], "customs": 300},
    "": {"steps": [(1000, 1600), (20000, 3900)], "customs": 0},
}

def shipping(country, grams, express=False, rates=RATES):
    rate = rates.get(country, rates[""])
    for most, cents in rate["steps"]:
        if grams < most:
            return cents + (max(500, cents // 2) if express else 0)
    raise ValueError("too heavy")
""",
        ),
        # The code of the prompt, which is right as far as it goes.
        (10, code_in("refactor-shipping")),
        # All three functions, but `rates` is never looked at, and express comes after customs.
        (
            16,
            """
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
    code = country.strip().upper()
    rate = RATES[code if code in RATES else ""]
    price = base_price(rate["steps"], grams) + rate["customs"]
    return price + express_fee(price) if express else price
""",
        ),
    ],
    "search-log": [
        # Line by line.
        (
            8,
            """
def first_at(read, moment):
    i = 0
    while True:
        time = read(i)
        if time is None or time >= moment:
            return i
        i += 1
""",
        ),
        # It looks for the moment itself, in as many lines as there could be.
        (
            9,
            """
def first_at(read, moment):
    low, high = 0, 2 ** 40
    while low < high:
        middle = (low + high) // 2
        time = read(middle)
        if time == moment:
            return middle
        if time is None or time > moment:
            high = middle
        else:
            low = middle + 1
    return low
""",
        ),
        # It finds the end of the log first, though the answer may be near its beginning.
        (
            10,
            """
def first_at(read, moment):
    high = 1
    while read(high) is not None:
        high *= 2
    low = 0
    while low < high:
        middle = (low + high) // 2
        time = read(middle)
        if time is None or time >= moment:
            high = middle
        else:
            low = middle + 1
    return low
""",
        ),
    ],
    "ledger": [
        # Accounts alone; what cannot be paid is not looked at, and nothing is undone.
        (
            9,
            """
class Ledger:
    def __init__(self):
        self.accounts = {}

    def deposit(self, name, amount):
        if amount <= 0:
            raise ValueError("amount must be positive")
        self.accounts[name] = self.accounts.get(name, 0) + amount

    def transfer(self, source, target, amount):
        if amount <= 0:
            raise ValueError("amount must be positive")
        if self.accounts[source] < amount:
            raise ValueError("insufficient funds")
        self.accounts[source] -= amount
        self.deposit(target, amount)

    def balance(self, name):
        return self.accounts[name]

    def __len__(self):
        return len(self.accounts)

    def __contains__(self, name):
        return name in self.accounts
""",
        ),
        # undo() by the opposite amount: what was opened stays open. pay_all() is not all or none.
        (
            11,
            """
class Ledger:
    def __init__(self):
        self.accounts = {}
        self.done = []
        self.undone = []

    def _check(self, amount):
        if not isinstance(amount, int):
            raise TypeError("amount must be an int")
        if amount < 1:
            raise ValueError("amount must be positive")

    def deposit(self, name, amount):
        self._check(amount)
        self.accounts[name] = self.accounts.get(name, 0) + amount
        self.done.append((None, name, amount))
        self.undone = []

    def transfer(self, source, target, amount):
        self._check(amount)
        if source not in self.accounts:
            raise KeyError(source)
        if self.accounts[source] < amount:
            raise ValueError("insufficient funds")
        self.accounts[source] -= amount
        self.accounts[target] = self.accounts.get(target, 0) + amount
        self.done.append((source, target, amount))
        self.undone = []

    def pay_all(self, payments):
        for source, target, amount in payments:
            self.transfer(source, target, amount)

    def undo(self):
        if not self.done:
            raise IndexError("nothing to undo")
        source, target, amount = self.done.pop()
        self.undone.append((source, target, amount))
        self.accounts[target] -= amount
        if source is not None:
            self.accounts[source] += amount

    def redo(self):
        if not self.undone:
            raise IndexError("nothing to redo")
        source, target, amount = self.undone.pop()
        self.done.append((source, target, amount))
        if source is not None:
            self.accounts[source] -= amount
        self.accounts[target] = self.accounts.get(target, 0) + amount

    def balance(self, name):
        return self.accounts[name]

    def __len__(self):
        return len(self.accounts)

    def __contains__(self, name):
        return name in self.accounts
""",
        ),
        # By copies, and nearly right: True is an int, and what fails forgets what could be redone.
        (
            17,
            """
class Ledger:
    def __init__(self):
        self._accounts = {}
        self._undo = []
        self._redo = []

    def _save(self):
        self._undo.append(dict(self._accounts))
        self._redo.clear()

    def _validate(self, amount):
        if not isinstance(amount, int):
            raise TypeError("amount must be an int")
        if amount < 1:
            raise ValueError("amount must be at least 1")

    def _move(self, source, target, amount):
        self._validate(amount)
        if source not in self._accounts:
            raise KeyError(source)
        if self._accounts[source] < amount:
            raise ValueError("insufficient funds")
        self._accounts[source] -= amount
        self._accounts[target] = self._accounts.get(target, 0) + amount

    def deposit(self, name, amount):
        self._redo.clear()
        self._validate(amount)
        self._save()
        self._accounts[name] = self._accounts.get(name, 0) + amount

    def transfer(self, source, target, amount):
        self.pay_all([(source, target, amount)])

    def pay_all(self, payments):
        self._save()
        try:
            for payment in payments:
                self._move(*payment)
        except Exception:
            self._accounts = self._undo.pop()
            raise

    def undo(self):
        if not self._undo:
            raise IndexError("nothing to undo")
        self._redo.append(self._accounts)
        self._accounts = self._undo.pop()

    def redo(self):
        if not self._redo:
            raise IndexError("nothing to redo")
        self._undo.append(self._accounts)
        self._accounts = self._redo.pop()

    def balance(self, name):
        return self._accounts[name]

    def __len__(self):
        return len(self._accounts)

    def __contains__(self, name):
        return name in self._accounts
""",
        ),
    ],
}

# More of them: what to replace in the reference solution, and with what.
MISTAKES: dict[str, list[dict[str, str]]] = {
    "parse-duration": [
        {"return hours * 3600 + minutes * 60 + seconds": "return hours * 3600 + minutes * 60.0"},
        {"* 3600": "* 60"},
        {"minutes * 60": "minutes"},
        {"minutes * 60 + seconds": "minutes % 60 * 60 + seconds"},
        {"([0-9]+)s": "([0-5]?[0-9])s"},
        {'" *(?:': '"(?:'},
        {" or not any(found.groups())": ""},
        {"any(found.groups())": "any(map(int, filter(None, found.groups())))"},
        {"fullmatch": "match"},
        {"([0-9]+)m *": "([0-9]+) *m *"},
        {"([0-9]+)h *": "([-+]?[0-9]+)h *"},
        {"([0-9]+)h *": "([0-9]+)h? *"},
        {'s *)?"': 's *)*"'},
        {"fullmatch(text)": "fullmatch(text.strip())"},
        {"fullmatch(text)": "fullmatch(text.lower())"},
        {'compile("': 'compile(r"', "[0-9]": "\\d"},
    ],
    "clean-people": [
        {'" ".join(row["name"].split())': 'row["name"].strip()'},
        {'row["email"].strip()': 'row["email"]'},
        {".lower()": ""},
        {"[^@]+@[^@]+": ".+@.+"},
        {"            continue": "            return []"},
        {'"name": name, "email": email, "age": None': '**row, "name": name, "age": None'},
        {'"name": name, "email": email, "age": None': '"name": name, "email": email'},
        {"    text = text.strip()": "    pass"},
        {"<= 150": "< 150"},
        {" and int(text) <= 150": ""},
        {'re.fullmatch("[0-9]+", text)': "text.isdigit()"},
        {'re.fullmatch("[0-9]+", text)': 'text.lstrip("-").isdigit()'},
        {'if person["age"] is None:': "if True:"},
        {'if person["age"] is None:': 'if not person["age"]:'},
        {'person = people.setdefault(email, {"name"': 'person = people[email] = ({"name"'},
        {"return list(people.values())": "return sorted(people.values(), key=str)"},
        {'name = " "': 'name = row["name"] = " "'},
        {"people = {}": "people = {}; rows.sort(key=str)"},
        {"return list(people.values())": "return people"},
    ],
    "fix-means": [
        {"if size < 1": "if size == 0"},
        {"if size < 1": "if not 0 < size <= len(values)"},
        {"    if size < 1:\n        raise ValueError(size)": "    size = max(size, 1)"},
        {"/ len(run)": "/ size"},
        {"/ len(run)": "// len(run)"},
        {"len(values), size)": "len(values) - size + 1, size)"},
        {"len(values), size)": "len(values), 1)"},
        {
            "(values, size):": "(values, size, out=[]):",
            "return [sum(run)": "out += [sum(run)",
            "in runs]": "in runs]; return out",
        },
        {"    return": "    values.sort(); return"},
        {"    return": "    values.clear(); return"},
        {"    return [": "    return list(map(abs, [", "in runs]\n": "in runs]))\n"},
        {"    return [": "    return (", "in runs]\n": "in runs)\n"},
    ],
    "build-order": [
        {"sorted(name for": "list(name for"},
        {"heapq.heappush(ready, user)": "ready.append(user)"},
        {"heapq.heappop(ready)": "ready.pop()"},
        {"    if len(order) < len(waits):": "    if False:"},
        {
            "waits.setdefault(name, set())": "pass",
            "users[each]": "users.get(each, [])",
        },
        {"len(order) < len(waits)": "not order or len(order) < len(waits)"},
        {"waits = {name: set(needed) for name, needed in needs.items()}": "waits = needs"},
        {"    return order": "    return order[::-1]"},
        {
            "for each in needed:": "for each in needed - {name}:",
            "len(needed) for": "len(needed - {name}) for",
        },
    ],
    "sales-report": [
        {".2f": ".1f"},
        {"-totals[shop], shop": "totals[shop], shop"},
        {"-totals[shop], shop": "-totals[shop]"},
        {"key=lambda shop: (-totals[shop], shop)": "key=lambda shop: shop"},
        {"if not line.strip()": "if False"},
        {"part.strip() for part in": "part for part in"},
        {"line.partition": "line.lower().partition"},
        {"if shop and": "if"},
        {"fullmatch": "match"},
        {"-?[0-9]+([.]": "[-+]?[0-9]*([.]"},
        {"[0-9]+([.]": "\\\\d+([.]"},
        {"skipped += 1": "pass"},
        {'re.fullmatch("-?[0-9]+([.][0-9]{1,2})?", amount)': "'.' in amount"},
        {"Decimal(amount)": "Decimal(float(amount))"},
        {"-?[0-9]+(": "[0-9]+("},
        {"sorted(totals": "sorted(+totals"},
        {'print("skipped", skipped)': "if totals: print('skipped', skipped)"},
        {'print("skipped", skipped)': "if skipped: print('skipped', skipped)"},
    ],
    "refactor-shipping": [
        {"grams <= most": "grams < most"},
        {"(5000, 755), (30000, 1255)": "(5000, 755)"},
        {
            "    for most": "    cents = 0\n    for most",
            'raise ValueError("too h': 'return cents\n    ("',
        },
        {"    if grams <= 0:": "    if grams < 0:"},
        {"    if grams <= 0:": "    if False:"},
        {"max(500, cents // 2)": "cents // 2"},
        {"max(500, cents // 2)": "max(500, cents / 2)"},
        {"max(500, cents // 2)": "max(500, (cents + 1) // 2)"},
        {"max(500, cents // 2)": "min(500, cents // 2)"},
        {".strip().upper()": ""},
        {".upper()": ""},
        {' or rates[""]': ""},
        {
            "rates.get(country.strip().upper()) or": "rates.setdefault(country.strip().upper(),",
            'rates[""]': 'rates[""])',
        },
        {"rate = rates": "rate = RATES"},
        {"+ rate[": "+ RATES.get(country, RATES[''])["},
        {'(10000, 1505)], "customs": 300': '(10000, 1505)], "customs": 30'},
        {'(20000, 3900)], "customs": 0': '(20000, 3900)], "customs": 1'},
        {'    "": {"steps"': '    "*": {"steps"', 'rates[""]': 'rates["*"]'},
        {'rate["steps"]': 'rate["steps"][::-1]'},
        {"(2000, 905), (10000, 1505)": "(2000, 950), (10000, 1550)"},
        {"(1000, 1600), (20000, 3900)": "(1000, 1600), (30000, 3900)"},
        {"cents + rate": "cents + express * rate"},
    ],
    "search-log": [
        {"time >= moment": "time > moment"},
        {"time is None or ": ""},
        {"end // 2, end - 1": "end // 2, end - 2"},
        {"low = middle + 1": "low = middle"},
        {"end *= 2": "end += 1"},
        {"end *= 2": "end += 100"},
        {"end *= 2": "end *= 1000"},
        {"end = 1": "end = 1 << 40"},
        {"    return low": "    return min(low, 1 << 20)"},
        {"    return low": "    return low - 1"},
        {"    return low": "    return max(low, 1)"},
        {"    return low": "    return low if low == 0 or read(low) else -1"},
    ],
    "ledger": [
        {
            "self.held = {}": "pass",
            "class Ledger:": "class Ledger:\n    held = {}",
            "past.append(self.held)\n        self.held = held\n        self.undone": "past.append"
            "(dict(self.held))\n        self.held.update(held)\n        self.undone",
        },
        {"__contains__": "contains"},
        {"__len__": "size"},
        {"type(amount) is not int": "not isinstance(amount, int)"},
        {"type(amount) is not int": "not isinstance(amount, (int, float))"},
        {"amount < 1": "amount < 0"},
        {"if held[source] < amount": "if held[source] <= amount"},
        {"if held[source] < amount": "if False"},
        {"held[source] -= amount": "pass"},
        {"self.held.get(name, 0) + amount": "amount"},
        {"            self.check(amount)\n            if": "            if"},
        {
            "            self.check(amount)\n": "",
            "held[target] = ": "self.check(amount); held[target] = ",
        },
        {
            "held[source] -= amount": "now = held[source], held.get(target, 0)",
            "held[target] = held.get(target, 0) + amount": "held[source] = now[0] - amount;"
            " held[target] = now[1] + amount",
        },
        {"held = dict(self.held)": "held = self.held"},
        {"        if payments:\n": "        if True:\n"},
        {"self.undone.clear()": "pass"},
        {
            "        self.check(amount)\n        self.change(": "        self.undone.clear()\n"
            "        self.check(amount)\n        self.change("
        },
        {"def check(self, amount):": "def check(self, amount):\n        self.undone.clear()"},
        {
            "def change(self, held):\n        self.past": "def change(self, held):\n        []",
        },
        {"held = self.past.pop()": "held = self.past[-1]"},
        {"held = self.undone.pop()": "held = self.undone[-1]"},
        {"held = self.undone.pop()": "held = self.undone.pop(0)"},
        {"self.undone.append(self.held)": "self.undone = [self.held]"},
        {
            "self.undone.pop()\n        self.past": "self.undone.pop()\n        []",
        },
        {"return self.held[name]": "return self.held.get(name, 0)"},
        {"return len(self.held)": "return len(self.past)"},
        {"return len(self.held)": "return sum(map(bool, self.held.values()))"},
        {"return name in self.held": "return bool(self.held.get(name))"},
    ],
}


def with_mistake(task_id: str, mistake: dict[str, str]) -> str:
    code: str = ROWS[task_id]["solution"]
    for right, wrong in mistake.items():
        assert right in code, right
        code = code.replace(right, wrong)
    compile(code, "mistake", "exec")
    return code


def wrong_answers(task_id: str) -> list[str]:
    """The empty program, and all that are wrong above."""
    mistakes = [with_mistake(task_id, mistake) for mistake in MISTAKES[task_id]]
    return ["", *(code for _, code in WRONG[task_id]), *mistakes]


def each_test(row: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each test of a task with its name, as a task of its own."""
    if "inputs" in row:
        for given, wanted in zip(row["inputs"], row["outputs"], strict=True):
            yield repr(given), {**row, "inputs": [given], "outputs": [wanted]}
        return
    # All asserts stand at the top, where they may rely on the statements above them.
    above: list[str] = []
    for node in ast.parse(row["tests"]).body:
        text = ast.unparse(node)
        if isinstance(node, ast.Assert):
            yield text, {**row, "tests": "\n".join([*above, text])}
        else:
            above.append(text)


@pytest.fixture(scope="module")
def env(server: Launched) -> Iterator[PythonEnv]:
    with server.session() as session:
        yield session


# ── the table ─────────────────────────────────────────────────────────────────────────────────────


def test_the_tasks_are_eight_from_easy_to_hard(env):
    listed = {task["task_id"]: task for task in env.tasks()}
    assert {name: task["difficulty"] for name, task in listed.items()} == KINDS
    assert list(listed) == list(KINDS)
    assert all(8 <= task["tests_total"] <= 20 for task in listed.values())


def test_no_listing_and_no_observation_shows_a_test_or_a_solution(env):
    for task_id, row in ROWS.items():
        seen = json.dumps([env.tasks(), str(env.reset(task_id))])
        hidden = f"{row.get('tests', '')}\n{row['solution']}".splitlines()
        hidden = [line for line in hidden if len(line) > 20 and line not in row["prompt"]]
        assert [line for line in hidden if json.dumps(line)[1:-1] in seen] == []


def test_the_check_finds_all_of_them_sound(tmp_path):
    path = tmp_path / "tasks.jsonl"
    path.write_text("\n".join(map(json.dumps, BUILTIN_ROWS)))
    command = (sys.executable, "-m", "python_env", "check", str(path))
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "8 of 8 rows are sound\n")


def test_the_check_of_a_file_without_tasks_is_an_error(tmp_path):
    path = tmp_path / "tasks.jsonl"
    path.write_text("\n")
    command = (sys.executable, "-m", "python_env", "check", str(path))
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "no tasks" in done.stderr


# ── what is paid ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("task_id", ROWS)
def test_the_reference_is_paid_fully_and_an_empty_program_nothing(env, task_id):
    right = graded(env, ROWS[task_id]["solution"], {"task_id": task_id})
    assert (right.reward, right.done) == (1.0, True)
    empty = graded(env, "", {"task_id": task_id})
    assert (empty.reward, empty.done) == (0.0, False)


@pytest.mark.parametrize("task_id", ROWS)
def test_a_usual_wrong_answer_is_paid_for_the_tests_that_it_passes(env, task_id):
    for passed, code in WRONG[task_id]:
        result = graded(env, code, {"task_id": task_id})
        assert result.observation.tests_passed == passed
        assert result.reward == passed / result.observation.tests_total
        assert 0 < result.reward < 1


@pytest.mark.slow
@pytest.mark.parametrize("task_id", ROWS)
def test_the_reward_grows_with_the_attempts_of_an_episode(env, task_id):
    env.reset(task_id)
    codes = ["", *(code for _, code in WRONG[task_id]), ROWS[task_id]["solution"]]
    rewards = [env.step(code).reward for code in codes]
    assert rewards == sorted(set(rewards))
    assert rewards[-1] == 1.0


def test_a_reset_right_after_a_reset_is_judged_by_its_own_tests(env):
    # The judge is given a task while the agent reads: it may not have answered to the one before.
    for before, task_id in zip(ROWS, [*ROWS][1:], strict=False):
        env.reset(before)
        assert graded(env, ROWS[task_id]["solution"], {"task_id": task_id}).reward == 1.0


SLOWEST = pytest.param("search-log", marks=pytest.mark.slow)  # 5 s of its own


@pytest.mark.slow
@pytest.mark.parametrize("task_id", [SLOWEST if name == "search-log" else name for name in ROWS])
def test_each_mistake_costs_something(env, task_id):
    for code in wrong_answers(task_id):
        assert graded(env, code, {"task_id": task_id}).reward < 1, code


@pytest.mark.slow
@pytest.mark.parametrize("task_id", ROWS)
def test_each_test_is_failed_by_a_wrong_answer_other_than_nothing(env, task_id):
    for name, row in each_test(ROWS[task_id]):
        assert graded(env, row["solution"], row).reward == 1.0, name
        codes = wrong_answers(task_id)[1:]
        assert any(graded(env, code, row).reward == 0.0 for code in codes), name
