"""A language model plays the tasks of python_env: the baseline that a hackathon's checker runs.

    API_BASE_URL=http://localhost:8080/v1 MODEL_NAME=qwen python inference.py

The loop is short. A task's prompt goes to the model; the code of its reply is a step; the output
and the feedback of that step go back to the model; and so on, until the task is solved or the steps
or the time are over. Everything else here is about what may go wrong meanwhile.

Standard output holds three kinds of lines and nothing else, one block a task:

    [START] task=fix-means env=python_env model=qwen
    [STEP] step=1 action=def means(values, size): ... reward=0.80 done=false error=null
    [STEP] step=2 action=def means(values, size): ... reward=1.00 done=true error=null
    [END] success=true steps=2 score=0.999 rewards=0.80,1.00

A block that was begun is ended, whatever happens. Why something failed stands on standard error.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import signal
import sys
import time
import types
from collections.abc import Iterator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from python_env import BUILTIN_ROWS
from python_env import PythonEnv
from python_env import PythonEnvError
from python_env import PythonObservation
from python_env import Task
from python_env import extract_code
from python_env import load_tasks
from python_env import number

HERE = Path(__file__).resolve().parent
START_S = 120.0  # that the environment has to start
API = "https://router.huggingface.co/v1"
MODEL = "Qwen/Qwen2.5-Coder-32B-Instruct"

SYSTEM = """\
You write Python. Solve the user's task: reply with one fenced block of code that defines what is
asked for, and nothing else. The code is run, hidden tests judge it, and you are told how many
passed. Then you may send a better version: all of it, not only what changes."""

VARIABLES = f"""\
The model, behind any API that speaks OpenAI's chat completions (pip install openai):
  API_BASE_URL         its address, up to /v1 ({API})
  MODEL_NAME           its name there ({MODEL})
  HF_TOKEN             the key, or OPENAI_API_KEY; a server of your own may need none

The environment; the first that is set counts:
  ENV_BASE_URL         a running server, with its PYTHON_ENV_TOKEN where it asks for one
  LOCAL_IMAGE_NAME     a local image: started, and removed at the end
  (none of the two)    an embedded server, with the tasks of --play, or with the tasks.jsonl beside
                       this file, if there is one

Each option is a variable, too: --max-steps is INFERENCE_MAX_STEPS.

Without a model, for the baselines to compare one with, or to try the set-up:
  python inference.py --play builtin       what the built-in tasks' reference solutions get
  python inference.py --play tasks.jsonl   the same of yours, in any of the formats
  python inference.py --play /dev/null     what an empty answer gets

score is the last step's reward, kept between 0.001 and 0.999, because a hackathon's validation
wants it strictly between 0 and 1; success says whether all tests passed.

Exit status: 0, also when nothing was solved or the model's API failed; 1: no environment could be
had; 2: an option is wrong; 130 or 143: Ctrl-C or SIGTERM."""


# ── What is printed ───────────────────────────────────────────────────────────────────────────────


def emit(line: str) -> None:
    """A line of standard output, at once: whoever reads along is told before the next wait."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        # Nobody reads any more, as behind `| head -1`. Python would say so again at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None


def complain(text: str) -> None:
    """A line of standard error."""
    print(f"inference.py: {one_line(text, 400)}", file=sys.stderr, flush=True)


def one_line(text: str, most: int) -> str:
    """The text with every run of spaces made one, shortened; harmless in a line of the protocol."""
    flat = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    # Code and its errors may hold what looks like the next field: a reader must not fall for it.
    flat = re.sub(r"\b(reward|done|error)=", r"\1 =", flat)
    return flat if len(flat) <= most else flat[: most - 3] + "..."


def one_word(text: str) -> str:
    """A name without spaces, because a space ends a field."""
    return one_line(text, 200).replace(" ", "_") or "unknown"


class Block:
    """The lines of one task."""

    def __init__(self, task_id: str, model: str) -> None:
        self.rewards: list[float] = []
        emit(f"[START] task={one_word(task_id)} env=python_env model={one_word(model)}")

    def step(self, code: str, reward: float, done: bool, error: str) -> None:
        self.rewards.append(reward)
        emit(
            f"[STEP] step={len(self.rewards)} action={one_line(code, 160)} reward={reward:.2f} "
            f"done={str(done).lower()} error={one_line(error, 160) or 'null'}"
        )

    def end(self) -> None:
        last = self.rewards[-1] if self.rewards else 0.0
        score = min(max(last, 0.001), 0.999)
        rewards = ",".join(f"{reward:.2f}" for reward in self.rewards)
        emit(
            f"[END] success={str(last >= 1.0).lower()} steps={len(self.rewards)} "
            f"score={score:.3f} rewards={rewards}"
        )


# ── When to stop ──────────────────────────────────────────────────────────────────────────────────


class Stopped(BaseException):
    """The time is over, or the user or the system asks to end. Not an Exception, because the
    libraries below would take one for a failure of theirs."""


class Clock:
    """Turns the alarm, Ctrl-C and SIGTERM into Stopped, but only within `limit()`.

    So no signal can come between the start of a block and its end. No time-out of an HTTP client is
    as good: one byte every few seconds keeps all of them content.
    """

    def __init__(self, run_s: float) -> None:
        self.asked = 0  # the signal that asked to end everything; 0: none did
        self.may_raise = False
        self.reason = ""
        self.run_s = run_s
        self.end = time.monotonic() + run_s
        for each in (signal.SIGALRM, signal.SIGINT, signal.SIGTERM):
            signal.signal(each, self.hear)

    def hear(self, which: int, frame: types.FrameType | None) -> None:
        if which != signal.SIGALRM:
            self.asked = which
            self.reason = f"ended by {signal.Signals(which).name}"
            # Who asks twice does not want to wait for the end of the block.
            signal.signal(which, signal.SIG_DFL)
        if self.may_raise:
            raise Stopped(self.reason)

    @contextlib.contextmanager
    def limit(self, seconds: float, what: str) -> Iterator[None]:
        """Stopped is raised in here after `seconds`, or when the run's time is over."""
        left = self.end - time.monotonic()
        self.reason = f"{what} took longer than {seconds:g} s"
        if left < seconds:
            self.reason = f"the {self.run_s:g} s of the whole run are over"
        try:
            try:
                self.may_raise = True
                if self.asked or left <= 0:
                    self.hear(self.asked or signal.SIGALRM, None)
                # And again from then on, because a callback of Python's may swallow the first.
                signal.setitimer(signal.ITIMER_REAL, min(seconds, left), 5.0)
                yield
            finally:
                self.may_raise = False
        finally:  # once more, because a signal may have come before that line
            self.may_raise = False
            signal.setitimer(signal.ITIMER_REAL, 0)


# ── Who answers ───────────────────────────────────────────────────────────────────────────────────


class ModelError(Exception):
    """The model gave no answer. `is_final`: nor will it give one to any other task."""

    def __init__(self, text: str, is_final: bool = False) -> None:
        super().__init__(text)
        self.is_final = is_final


class Model:
    """A language model behind an API that speaks OpenAI's chat completions."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.name = os.environ.get("MODEL_NAME") or MODEL
        self.url = os.environ.get("API_BASE_URL") or API
        key = os.environ.get("HF_TOKEN") or os.environ.get("OPENAI_API_KEY") or ""
        self.key = key.strip()  # secrets that come from files end with a line break
        self.options: dict[str, Any] = {"model": self.name}
        # Sent only when asked for, because each is refused by some models.
        for name in ("temperature", "max_tokens"):
            if getattr(given, name) is not None:
                self.options[name] = getattr(given, name)
        self.settings = {"timeout": given.task_seconds, "max_retries": given.retries}

    def answer(self, task_id: str, messages: list[Any]) -> str:
        """The model's reply. The client tries again by itself after 429, 500 and lost connections,
        and waits as long as Retry-After says. Raises ModelError."""
        try:
            import openai
        except ImportError:
            raise ModelError("it needs the openai client: pip install openai", True) from None

        try:
            # One for each call: a call that was stopped midway leaves none that is half used.
            with openai.OpenAI(
                base_url=self.url, api_key=self.key or "none", **self.settings
            ) as client:
                reply = client.chat.completions.create(messages=messages, **self.options)
            choices = getattr(reply, "choices", None)
            if not choices:
                raise ValueError(f"there are no choices in {reply!r}")
            return choices[0].message.content or ""
        except openai.APIStatusError as error:
            raise self.refused(error.status_code, error.message) from None
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            words = f"cannot be reached (is API_BASE_URL right?): {type(cause).__name__}: {cause}"
            raise self.failed(words) from None
        except Exception as error:  # whatever an answer that is no chat completion leads to
            kind = type(error).__name__
            raise self.failed(f"sent no chat completion: {kind}: {error}") from None

    def refused(self, status: int, message: str) -> ModelError:
        is_set = "one is set" if self.key else "none is set"
        remedies = {
            401: f"is the key in HF_TOKEN or OPENAI_API_KEY right ({is_set})? ",
            402: "the account has no credit left; ",
            403: "the key has no right to use this model; ",
            404: f"is {self.name} a model there (MODEL_NAME), and the address right? ",
        }
        text = f"answered {status}: {remedies.get(status, '')}it says: {message}"
        return self.failed(text, status in remedies)

    def failed(self, text: str, is_final: bool = False) -> ModelError:
        """The error, without the key, which an API may repeat."""
        for part in self.key.split():  # a line break in it is shown as \n, so each line for itself
            text = text.replace(part, "***")
        return ModelError(f"{self.url} {text}", is_final)


class Script:
    """Answers without a model: the reference solutions of a file of tasks in any format, or of the
    built-in ones; else an empty answer."""

    def __init__(self, path: str) -> None:
        """Raises OSError and InvalidRequest."""
        self.name = "script"
        self.path = path
        self.tasks: dict[str, Task] = {}
        if path == "builtin":
            self.tasks = {row["task_id"]: Task.from_row(row) for row in BUILTIN_ROWS}
        elif Path(path).read_bytes():
            self.tasks = load_tasks(path)

    def answer(self, task_id: str, messages: list[Any]) -> str:
        solution = self.tasks[task_id].solution if task_id in self.tasks else ""
        if self.tasks and not solution:
            complain(f"{task_id}: {self.path} has no solution of it, so the answer is empty")
        return solution


# ── One task, and all of them ─────────────────────────────────────────────────────────────────────


def describe(seen: PythonObservation) -> str:
    """What the model is told of its step."""
    shown = {"stdout": seen.stdout, "stderr": seen.stderr, "value": seen.result or ""}
    # The end of a long output: there a traceback says what happened.
    parts = [f"{name}:\n{text.strip()[-2000:]}" for name, text in shown.items() if text.strip()]
    return "\n\n".join([*parts, f"{seen.feedback}\nSend a better version."])


def describe_error(error: BaseException) -> str:
    """Its text; with its type where the text was not made to be read alone."""
    is_ours = isinstance(error, PythonEnvError | Stopped)
    return str(error) if is_ours else f"{type(error).__name__}: {error}"


def error_of(seen: PythonObservation) -> str:
    """The last line of a traceback where the code failed; else nothing. A program that solved its
    task may have failed where it is shown, without input."""
    if not seen.exit_code or seen.reward == 1.0:
        return ""
    lines = seen.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit code {seen.exit_code}"


def play(env: PythonEnv, player: Model | Script, block: Block, task_id: str, steps: int) -> None:
    """One episode, whose steps go into the block. Raises ModelError, PythonEnvError and Stopped."""
    seen = env.reset(task_id=task_id, max_steps=steps).observation
    messages: list[Any] = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": seen.prompt},
    ]
    while not seen.done:
        reply = player.answer(task_id, messages)
        code = extract_code(reply)
        seen = env.step(code).observation
        block.step(code, seen.reward or 0.0, seen.done, error_of(seen))
        messages.append({"role": "assistant", "content": reply})
        messages.append({"role": "user", "content": describe(seen)})


def play_all(
    env: PythonEnv,
    player: Model | Script,
    clock: Clock,
    task_ids: list[str],
    given: argparse.Namespace,
) -> None:
    """A block for each task. What a task does not survive ends that one; the others go on."""
    hopeless = False
    for task_id in task_ids:
        block = Block(task_id, player.name)
        try:
            with clock.limit(given.task_seconds, "the task"):
                if hopeless:
                    raise ModelError("the model was not asked again, because no answer can come")
                play(env, player, block, task_id, given.max_steps)
        except ModelError as error:
            complain(f"{task_id}: {error}")
            hopeless = hopeless or error.is_final
        except (Exception, Stopped) as error:  # whatever it was, the block has to be ended
            complain(f"{task_id}: {describe_error(error)}")
        block.end()
        if clock.asked:
            return


def open_environment(player: Model | Script) -> PythonEnv:
    """The environment that the variables name. Raises PythonEnvError and OSError."""
    url = os.environ.get("ENV_BASE_URL")
    image = os.environ.get("LOCAL_IMAGE_NAME")
    if url:
        return PythonEnv(base_url=url, token=os.environ.get("PYTHON_ENV_TOKEN"))
    if image:
        return PythonEnv.from_docker_image(image)
    if isinstance(player, Script) and player.tasks:
        return PythonEnv(tasks=None if player.path == "builtin" else player.path)
    own = HERE / "tasks.jsonl"
    return PythonEnv(tasks=own if own.exists() else None)


# ── Command line ──────────────────────────────────────────────────────────────────────────────────


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="A language model plays the tasks of python_env, as these variables say.",
        epilog=VARIABLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def option(name: str, default: Any, kind: Any, metavar: str, words: str) -> None:
        variable = "INFERENCE_" + name.upper().replace("-", "_")
        default = os.environ.get(variable) or default
        parser.add_argument(f"--{name}", default=default, type=kind, metavar=metavar, help=words)

    count, seconds = number(int, 1), number(float, 0.1)
    option("max-tasks", 20, count, "N", "play so many of its tasks, in its order (%(default)s)")
    option("max-steps", 5, count, "N", "versions of the code that a task may take (%(default)s)")
    option("task-seconds", 120.0, seconds, "S", "time limit of a task (%(default)s)")
    option("run-seconds", 1080.0, seconds, "S", "time limit of all of it (%(default)s)")
    option(
        "retries", 4, number(int, 0), "N", "tries more after 429, 500 and the like (%(default)s)"
    )
    option("temperature", None, number(float, 0), "T", "the model's; not sent unless it is given")
    option("max-tokens", None, count, "N", "of a reply; not sent unless it is given")
    option("play", None, str, "FILE", "ask no model: each answer is that task's solution in FILE")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    given = parser.parse_args(argv)
    player: Model | Script = Model(given)
    try:
        if given.play:
            player = Script(given.play)
            given.max_steps = 1  # because it would answer the same again
    except (OSError, PythonEnvError) as error:
        parser.error(f"--play: expected a file of tasks, builtin or /dev/null: {error}")

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # whatever the terminal cannot show
    clock = Clock(given.run_seconds)
    with contextlib.ExitStack() as cleanup:
        try:
            with clock.limit(START_S, "the environment's start"):
                env = cleanup.enter_context(open_environment(player))
                task_ids = [task["task_id"] for task in env.tasks()]
        except (Exception, Stopped) as error:
            complain(f"no environment: {describe_error(error)}")
            Block("unknown", player.name).end()
            return 128 + clock.asked if clock.asked else 1
        play_all(env, player, clock, task_ids[: given.max_tasks], given)
    return 128 + clock.asked if clock.asked else 0


if __name__ == "__main__":
    sys.exit(main())
