"""The page at /docs, used as a person uses it: keys and clicks in a real Chromium.

Needs the distributions playwright and axe-playwright-python, and a Chromium of the system's own
(Debian: chromium), for playwright's is not downloaded. What is missing skips these tests, and fails
them where PYTHON_ENV_REQUIRED has the word "browser" in it.
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from conftest import HERE
from conftest import Hosted
from conftest import Launched
from conftest import ask
from conftest import eventually
from conftest import named
from conftest import sessions
from python_env import ALMOST_RIGHT
from python_env import PAGE
from python_env import RIGHT
from python_env import PythonAction
from python_env import builtin_tasks

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), "")
MISSING = "" if CHROMIUM else f"none of these commands is here: {', '.join(NAMES)}"
try:
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import expect
    from playwright.sync_api import sync_playwright
except ImportError as error:
    MISSING = f"pip install playwright axe-playwright-python: {error}"

REQUIRED = "browser" in os.environ.get("PYTHON_ENV_REQUIRED", "").split()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING) and not REQUIRED, reason=MISSING),
]

WIDE = (1280, 800)
PHONE = (390, 844)
TASK = "fix-means"
TOTAL = builtin_tasks()[TASK].tests_total
SOLVED = f"{TOTAL} of {TOTAL} tests passed"
FOREVER = "while True: pass"

# ── a browser, and a tab in it ────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    assert not MISSING, MISSING
    expect.set_options(timeout=20_000)  # ms: the machine may be busy
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


class Tab:
    """The page of a server in a window of that size. At the end no error may be in the console, but
    those in which `expected` is found: the browser itself reports each request that failed."""

    def __init__(
        self,
        browser: Any,
        url: str,
        size: tuple[int, int] = WIDE,
        scheme: str = "light",
        expected: str = "",
    ) -> None:
        self.expected = expected
        self.errors: list[str] = []
        view = {"width": size[0], "height": size[1]}
        self.context = browser.new_context(viewport=view, color_scheme=scheme)
        self.page = self.context.new_page()
        self.page.on("console", self.note)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(url)
        expect(self["verdict"]).not_to_have_text("Loading…")

    def note(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(message.text)

    def __getitem__(self, key: str) -> Any:
        """The element with that id."""
        return self.page.locator(f"#{key}")

    def __enter__(self) -> Tab:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.context.close()
        if kind is None:
            unexpected = [words for words in self.errors if not self.expected]
            unexpected += [words for words in self.errors if self.expected not in words]
            assert not unexpected

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def choose(self, task: str) -> None:
        """Choose a task, and wait until its episode has begun."""
        with self.page.expect_response("**/state"):
            self["task"].select_option(task)
        expect(self["verdict"]).to_have_text("Not run yet")

    def type(self, code: str) -> None:
        """Type this in place of what is in the editor."""
        self["code"].click()
        self.press("Control+a", "Delete")
        self.page.keyboard.type(code)

    def step(self, code: str) -> str:
        """Type and run it; the verdict's words."""
        self.type(code)
        before = self.steps.count()
        self.press("Control+Enter")
        expect(self.steps).to_have_count(before + 1)
        assert self.code == code
        return self["verdict"].inner_text()

    @property
    def code(self) -> str:
        return self["code"].input_value()

    @property
    def focused(self) -> str:
        return self.page.evaluate("document.activeElement.id")

    @property
    def steps(self) -> Any:
        """The history's buttons, the latest step's first."""
        return self["history"].get_by_role("button")

    def faults(self) -> list[tuple[str, list[str]]]:
        """What axe-core finds, and where."""
        found = Axe().run(self.page).response["violations"]
        return [(each["help"], [node["html"] for node in each["nodes"]]) for each in found]

    def scrolls_sideways(self) -> bool:
        return self.page.evaluate("document.documentElement.scrollWidth > innerWidth")


@pytest.fixture
def tab(chromium: Any, server: Launched) -> Iterator[Tab]:
    """The page of the file's server, with TASK chosen."""
    with Tab(chromium, f"{server.url}/docs") as opened:
        opened.choose(TASK)
        yield opened


# ── the editor ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("size", [WIDE, PHONE])
@pytest.mark.parametrize("code", [ALMOST_RIGHT, RIGHT, "def means(", "def means(a, b): return []"])
def test_typed_code_gets_the_verdict_of_the_api_in_plain_sight(chromium, server, size, code):
    with server.session() as env:
        env.reset(task_id=TASK)
        result = env.step(PythonAction(code))
    seen = result.observation
    with Tab(chromium, f"{server.url}/docs", size) as tab:
        tab.choose(TASK)
        verdict = tab.step(code)
        assert tab.code == code
        assert verdict == f"{seen.tests_passed} of {seen.tests_total} tests passed"
        expect(tab["verdict"]).to_be_in_viewport(ratio=1)
        expect(tab["run"]).to_be_in_viewport(ratio=1)
        expect(tab["reward"]).to_contain_text(f"reward {result.reward:.2f}")
        assert not tab.scrolls_sideways()


def test_tab_indents_and_undo_knows_of_it(tab):
    tab.type("if 1:\n")
    tab.press("Tab")
    tab.page.keyboard.type("x")
    assert tab.code == "if 1:\n    x"
    tab.press("Shift+Tab")
    assert tab.code == "if 1:\nx"
    tab.press("Control+z")
    assert tab.code == "if 1:\n    x"
    tab.press("Control+a", "Tab")
    assert tab.code == "    if 1:\n        x"
    tab.press("Control+z")
    assert tab.code == "if 1:\n    x"
    for _ in range(20):
        tab.press("Control+z")
    assert tab.code == ""
    for _ in range(20):
        tab.press("Control+Shift+z")
    assert tab.code == "    if 1:\n        x"


def test_lines_have_numbers(tab):
    expect(tab["lines"]).to_have_text("1")
    tab.type("a\nb\n\n")
    expect(tab["lines"]).to_have_text("1\n2\n3\n4")
    tab.press("Control+z")
    shown = len(tab.code.split("\n"))
    expect(tab["lines"]).to_have_text(re.compile(rf"{shown}$"))


def test_code_outlives_a_reload(tab):
    tab.type("x = 1")
    tab.page.reload()
    expect(tab["code"]).to_have_value("x = 1")


def test_escape_then_tab_leaves_the_editor_both_ways(tab):
    tab.type("x")
    tab.press("Escape", "Tab")
    assert tab.focused != "code"
    tab["code"].focus()
    tab.press("Escape", "Shift+Tab")
    assert tab.focused == "task"
    assert tab.code == "x"
    tab.press("Tab", "End", "Tab")  # and once back in it, Tab indents again
    assert (tab.focused, tab.code) == ("code", "x   ")


def tab_to(tab, key):
    """Press Tab until the focus is there."""
    for _ in range(12):
        if tab.focused == key:
            return
        tab.press("Tab")
    pytest.fail(f"Tab does not reach #{key}, but {tab.focused}")


def test_the_keyboard_alone_will_do(chromium, server):
    with Tab(chromium, f"{server.url}/docs") as tab:
        tab_to(tab, "task")
        tab.page.keyboard.type("fix-means")
        expect(tab["prompt"]).to_contain_text("means(values, size")
        tab_to(tab, "code")
        tab.page.keyboard.type(ALMOST_RIGHT)
        tab.press("Escape")
        tab_to(tab, "run")
        tab.press("Enter")
        expect(tab["verdict"]).to_have_text(re.compile(rf"^[1-9]\d* of {TOTAL} tests passed$"))
        assert tab.focused == "run"
        tab.press("Shift+Tab", "Shift+Tab")
        assert tab.focused == "code"
        tab.press("Control+a", "Delete", "Escape")
        tab_to(tab, "restart")
        tab.press("Tab", "Enter")  # the step of the history
        assert (tab.focused, tab.code) == ("code", ALMOST_RIGHT)


# ── a task, its steps, their output ───────────────────────────────────────────────────────────────


def test_every_task_can_be_picked_with_its_difficulty_and_prompt(tab, server):
    labels = tab["task"].locator("option").all_inner_texts()
    assert labels.pop() == "repl (no tests)"
    tasks = ask(server, "GET", "/tasks")[2]["tasks"]
    assert len(labels) == len(tasks)
    for label, task in zip(labels, tasks, strict=True):
        assert label.startswith(f"{task['task_id']} ({task['difficulty']}, ")
        tab.choose(task["task_id"])
        shown = tab["prompt"].inner_text()
        assert shown.split() == task["prompt"].replace("`", "").split()
    tab.page.reload()  # the address has the task's name
    expect(tab["task"]).to_have_value(tasks[-1]["task_id"])


def test_rewards_are_drawn_and_steps_come_back_into_the_editor(tab):
    codes = ("x = 1", "def means(a, b): return []", ALMOST_RIGHT)
    expect(tab["left"]).to_have_text("20 of 20 steps left")
    for code in codes:
        tab.step(code)
    expect(tab["left"]).to_have_text("17 of 20 steps left")
    expect(tab["plot"].locator("circle")).to_have_count(3)
    expect(tab["plot"]).to_have_accessible_name(re.compile(r"^Reward .* Step 3: 0\.[1-9]\d\.$"))
    assert not tab["plot"].evaluate("(plot) => plot.hasAttribute('style')")

    tab.steps.last.click()
    assert tab.code == codes[0]
    expect(tab["note"]).to_contain_text("step 1")
    tab.press("Control+z")
    assert tab.code == codes[2]

    assert tab.step(RIGHT) == SOLVED
    expect(tab["reward"]).to_have_text("solved · reward 1.00")
    expect(tab["left"]).to_have_text("Episode over: Run begins another")
    tab.step("x = 2")
    expect(tab["left"]).to_have_text("19 of 20 steps left")
    expect(tab["plot"].locator("circle")).to_have_count(1)
    expect(tab.steps).to_have_count(5)  # those of the first episode are still there


def test_the_feedback_says_why(tab):
    tab.step("def means(values, size): return values[size]")
    expect(tab["feedback"]).to_contain_text("raised IndexError")


def test_long_output_is_folded_and_short_output_is_not(tab):
    tab.choose("repl")
    assert tab.step("print('short')") == "Ran without an error"
    expect(tab["output"].locator("details")).to_have_count(0)
    expect(tab["output"]).to_contain_text("short")
    assert tab.step("print(*range(500), sep='\\n'); 1 / 0") == "Ended with exit code 1"
    expect(tab["output"]).to_contain_text("ZeroDivisionError")
    folded = tab["output"].locator("details")
    expect(folded.get_by_text("499")).not_to_be_visible()
    folded.get_by_text("All of stdout: 500 lines").click()
    expect(folded.get_by_text("499")).to_be_visible()
    assert tab.step("0") == "Ran without an error"
    expect(tab["output"].locator("dt")).to_have_text("result")


def test_a_step_may_read_standard_input(tab):
    tab.choose("repl")
    tab["input"].locator("summary").click()
    tab["stdin"].click()
    tab.page.keyboard.type("Ada\nBob")
    tab.step("print(input(), input())")
    expect(tab["output"]).to_contain_text("Ada Bob")


HOSTILE = "<img src=x onerror='owned = 1'><script>owned = 1</script><b>bold</b> `<i>x</i>`"


def test_what_comes_from_outside_stays_text(chromium, tmp_path):
    tasks = tmp_path / "tasks.jsonl"
    row = {"task_id": f"t{HOSTILE}", "difficulty": HOSTILE, "tests": "assert f() == 1"}
    row["prompt"] = f"{HOSTILE}\n\n- {HOSTILE}\n\n    {HOSTILE}"
    tasks.write_text(json.dumps(row))
    box = tmp_path / "box"
    box.mkdir()
    with Launched(box, "--tasks", str(tasks)) as server, Tab(chromium, f"{server.url}/docs") as tab:
        expect(tab["prompt"]).to_contain_text("<b>bold</b>")
        markup = tab.page.locator("img, b, i")
        expect(markup).to_have_count(0)
        word = HOSTILE.replace("\n", " ")
        tab.step(f"import sys\nprint({word!r}, file=sys.stderr)\nprint({word!r})\n{word!r}")
        expect(tab["output"].locator("pre")).to_have_count(3)
        expect(tab["output"].locator("pre").first).to_contain_text(HOSTILE)
        expect(markup).to_have_count(0)
        assert tab.page.evaluate("typeof owned") == "undefined"
        assert not tab.scrolls_sideways()


def test_the_page_makes_no_markup_of_text_and_takes_nothing_from_outside():
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert word not in PAGE
    links = re.findall(r"https?://[^'\"\s]+", PAGE)
    assert {*links} == {"http://www.w3.org/2000/svg"}  # a name, not an address


# ── what goes wrong ───────────────────────────────────────────────────────────────────────────────


def test_stop_ends_the_step_and_its_session(chromium, tmp_path):
    with Launched(tmp_path) as server, Tab(chromium, f"{server.url}/docs") as tab:
        tab.choose(TASK)
        tab.type(FOREVER)
        tab["run"].click()
        expect(tab["stop"]).to_be_visible()
        expect(tab["verdict"]).to_have_text("Running…")
        expect(tab["run"]).to_contain_text("Running…")
        tab["stop"].click()
        expect(tab["message"]).to_contain_text("Stopped")
        expect(tab["verdict"]).to_have_text("Stopped")
        expect(tab["stop"]).not_to_be_visible()
        assert tab.code == FOREVER
        eventually(lambda: sessions(server) == 0 and not named(server.process.pid, "worker"))
        assert tab.step(RIGHT) == SOLVED
        expect(tab["message"]).to_have_text("")


@pytest.mark.parametrize("way_back", ["run", "retry"])
def test_a_dead_server_is_said_in_words_and_there_is_a_way_back(chromium, tmp_path, way_back):
    boxes = [tmp_path / "one", tmp_path / "two"]
    for box in boxes:
        box.mkdir()
    with contextlib.ExitStack() as stack:
        with Launched(boxes[0]) as server:
            opened = Tab(chromium, f"{server.url}/docs", PHONE, expected="Failed to load resource")
            tab = stack.enter_context(opened)
            tab.choose(TASK)
            tab.step("x = 1")
            tab.type(RIGHT)
        tab.press("Control+Enter")
        expect(tab["message"]).to_contain_text("The server does not answer")
        expect(tab["message"]).to_be_in_viewport(ratio=1)
        assert (tab["message"].get_attribute("role"), tab.code) == ("alert", RIGHT)
        assert not tab.scrolls_sideways()
        assert not tab.faults()

        stack.enter_context(Launched(boxes[1], "--port", str(server.port)))
        tab[way_back].click()
        expect(tab["verdict"]).to_have_text(SOLVED)
        expect(tab["message"]).to_contain_text("The session was lost")


def test_a_lost_session_is_said_where_something_was_lost_with_it(chromium, tmp_path):
    expected = "status of 404"  # which the browser reports, whatever becomes of it
    with (
        Launched(tmp_path, "--idle-timeout", "1") as server,
        Tab(chromium, f"{server.url}/docs", expected=expected) as tab,
    ):
        tab.choose(TASK)
        eventually(lambda: sessions(server) == 0)
        assert tab.step("x = 1") == f"0 of {TOTAL} tests passed"
        expect(tab["message"]).to_have_text("")
        eventually(lambda: sessions(server) == 0)
        assert tab.step(RIGHT) == SOLVED
        expect(tab["message"]).to_contain_text("The session was lost")


def test_the_token_is_asked_for(chromium, tmp_path):
    with (
        Launched(tmp_path, PYTHON_ENV_TOKEN="s3cret ü") as server,
        Tab(chromium, f"{server.url}/docs", PHONE, expected="status of 401") as tab,
    ):
        expect(tab["message"]).to_contain_text("asks for its token")
        assert tab.focused == "token"
        assert not tab.faults()
        tab.page.keyboard.type("wrong")
        tab.press("Enter")
        expect(tab["message"]).to_contain_text("did not accept")
        tab.press("Control+a")
        tab.page.keyboard.type("s3cret ü")
        tab.press("Enter")
        expect(tab["verdict"]).to_have_text("Not run yet")
        expect(tab["access"]).not_to_be_visible()
        tab.choose(TASK)
        assert tab.step(RIGHT) == SOLVED


def test_a_full_server_is_said_in_words(chromium, tmp_path):
    flags = ("--max-sessions", "1", "--session-wait", "0")
    with Launched(tmp_path, *flags) as server, server.session() as env:
        env.reset(task_id=TASK)
        with Tab(chromium, f"{server.url}/docs", expected="status of 503") as tab:
            expect(tab["message"]).to_contain_text("The server is busy")
            env.close()
            tab["retry"].click()
            expect(tab["verdict"]).to_have_text("Not run yet")
            expect(tab["message"]).to_have_text("")


# ── below a prefix, and for other environments ────────────────────────────────────────────────────


class Proxy(http.server.BaseHTTPRequestHandler):
    """A reverse proxy that serves `port` below /lab/env/ and knows nothing else."""

    protocol_version = "HTTP/1.1"
    port = 0

    def do_GET(self) -> None:
        path = self.path.removeprefix("/lab/env")
        length = int(self.headers.get("Content-Length") or 0)
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        with contextlib.closing(link):
            found = path != self.path
            link.request(
                self.command,
                path if found else "/lost",
                self.rfile.read(length),
                dict(self.headers),
            )
            answer = link.getresponse()
            body = answer.read()
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET
    do_DELETE = do_GET

    def log_message(self, *_: object) -> None:
        """Nothing, for the tests' output is read."""


@pytest.mark.parametrize("path", ["/lab/env/", "/lab/env/docs", "/lab/env/docs/"])
def test_it_works_below_a_prefix(chromium, server, path):
    handler = type("Here", (Proxy,), {"port": server.port})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as proxy:
        proxy.daemon_threads = True
        thread = threading.Thread(target=proxy.serve_forever, args=(0.05,))
        thread.start()
        try:
            url = f"http://127.0.0.1:{proxy.server_port}"
            with Tab(chromium, url + path) as tab:
                tab.choose(TASK)
                assert tab.step(RIGHT) == SOLVED
                assert f'"{url}/lab/env"' in tab["python"].text_content()
        finally:
            proxy.shutdown()
            thread.join(10)


def run_python(tab):
    """What the page's own example in Python prints."""
    code = tab["python"].text_content()
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=60)


def test_the_example_in_python_runs(tab):
    eventually(lambda: TASK in tab["python"].text_content())  # the page writes it a moment later
    done = run_python(tab)
    assert f"task_id='{TASK}'" in done.stdout
    assert "stdout='42\\n'" in done.stdout


def test_the_page_of_another_environment_takes_its_action_as_json(chromium):
    name = {"name": "<b>Guess</b>"}
    with (
        Hosted(options=name) as hosted,
        Tab(chromium, f"{hosted.url}/docs", expected="status of 422") as tab,
    ):
        expect(tab.page).to_have_title("<b>Guess</b>")
        expect(tab.page.locator("h1")).to_have_text("<b>Guess</b>")
        expect(tab["task"]).not_to_be_visible()
        expect(tab["prompt"]).to_contain_text("number (integer, required): The guess")
        expect(tab["output"]).to_contain_text("0..10")
        assert json.loads(tab.code) == {"number": -1}
        assert "'hint': 'no'" in run_python(tab).stdout
        assert tab.step('{"number": 7}') == "Reward 0"
        expect(tab["output"]).to_contain_text("no")
        tab.type('{"number": "7"}')
        tab.press("Control+Enter")
        expect(tab["message"]).to_contain_text("number")
        tab.type("{")
        tab.press("Control+Enter")
        expect(tab["message"]).to_contain_text("The action is no JSON")
        assert not tab.faults()


# ── for every eye ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, PHONE])
def test_axe_finds_no_fault_and_nothing_scrolls_sideways(chromium, server, size, scheme):
    with Tab(chromium, f"{server.url}/docs", size, scheme) as tab:
        assert not tab.faults()
        assert not tab.scrolls_sideways()
        tab.choose(TASK)
        tab.step(ALMOST_RIGHT)
        tab.step("print('wide ' * 999, 'x' * 999, *range(99), sep='\\n'); 1 / 0  # " + "long " * 99)
        for summary in tab.page.locator("summary").all():
            summary.click()
        expect(tab.page.locator("details[open]")).to_have_count(3)
        assert not tab.scrolls_sideways()
        assert not tab.faults()
        tab.press("Control+Enter")  # from the very end of the page
        expect(tab.steps).to_have_count(3)
        expect(tab["verdict"]).to_be_in_viewport(ratio=1)
        back = tab.page.evaluate("getComputedStyle(document.body).backgroundColor")
        red = int(re.findall(r"\d+", back)[0])
        assert (red < 128) == (scheme == "dark")


def test_a_screen_reader_hears_the_verdict(tab):
    expect(tab["verdict"]).to_have_role("status")
    expect(tab["feedback"]).to_have_role("status")
    expect(tab["message"]).to_have_attribute("role", "alert")
    expect(tab["code"]).to_have_accessible_name("Code")
    expect(tab["code"]).to_have_accessible_description(re.compile("Esc, then Tab leaves"))
    expect(tab["task"]).to_have_accessible_name("Task")
