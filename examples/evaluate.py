"""pass@k of a file of samples, each graded once by python_env.

    python examples/evaluate.py --tasks HumanEval.jsonl.gz samples.jsonl --out results.jsonl

A sample is a line {"task_id": …, "completion": …}. The completion goes on from its task's prompt,
as in HumanEval, or it is a whole program, or one of these in a Markdown fence. A result is a line
{"task_id", "completion", "passed", "reward", "feedback"}; `passed` means that all tests did.

After Ctrl-C the same command goes on where it stopped. A sample that gets no verdict, because a
grading failed or the server was gone, is tried again, then named, and not counted: the exit status
is 1, and the same command tries it once more.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import gzip
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any
from typing import NamedTuple

from python_env import ConnectionFailed
from python_env import InvalidRequest
from python_env import PythonAction
from python_env import PythonEnv
from python_env import PythonEnvError
from python_env import Task
from python_env import complete_code
from python_env import extract_code
from python_env import load_tasks

ATTEMPTS = 3


class Sample(NamedTuple):
    task_id: str
    completion: str


class Result(NamedTuple):
    """A line of the result file."""

    task_id: str
    completion: str
    passed: bool
    reward: float
    feedback: str


# ── Files ─────────────────────────────────────────────────────────────────────────────────────────


def read_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSONL file, each with the place where it stands, for messages."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield f"{path.name}:{number}", dict(json.loads(line))
                except (ValueError, TypeError) as error:
                    raise InvalidRequest(
                        f"{path}, line {number}: no JSON object: {error}"
                    ) from None


def read_samples(path: Path, tasks: dict[str, Task]) -> list[Sample]:
    samples = []
    for place, row in read_lines(path):
        sample = Sample(str(row.get("task_id")), row.get("completion", ""))
        if sample.task_id not in tasks or not isinstance(sample.completion, str):
            raise InvalidRequest(
                f"{place}: expected a task_id of the task file, and a completion; got the task_id "
                f"{sample.task_id[:80]!r} and the columns {[*row]!r:.200}"
            )
        samples.append(sample)
    return samples


def read_results(path: Path) -> list[Result]:
    """What an earlier run has written; a last line that it was killed in is cut off."""
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        os.truncate(path, len(whole))
    return [Result(**row) for _, row in read_lines(path)]


def take_up(samples: list[Sample], written: list[Result]) -> tuple[list[Sample], list[Result]]:
    """The samples still to grade, and the results of the others; the same completion may be there
    several times. A result of a sample that is not in the file stays where it is, uncounted."""
    by_sample = collections.defaultdict(list)
    for result in written:
        by_sample[Sample(result.task_id, result.completion)].append(result)
    todo = []
    results = []
    for sample in samples:
        if by_sample[sample]:
            results.append(by_sample[sample].pop())
        else:
            todo.append(sample)
    return todo, results


# ── Grading ───────────────────────────────────────────────────────────────────────────────────────


class Grader:
    """Grades samples in several threads, each with a session of its own at one server."""

    def __init__(self, given: argparse.Namespace, tasks: dict[str, Task]) -> None:
        self.tasks = tasks
        self.timeout_s = given.timeout
        self.is_embedded = given.base_url is None
        self.token = None if self.is_embedded else os.environ.get("PYTHON_ENV_TOKEN")
        # The embedded server knows the tasks; to any other they are sent.
        file = given.tasks if self.is_embedded else None
        flags = ["--skip-bad-tasks"] if self.is_embedded and given.skip_bad_tasks else []
        self.server = PythonEnv(given.base_url, tasks=file, server_args=flags, token=self.token)
        self.idle: list[PythonEnv] = []

    def grade(self, sample: Sample) -> Result:
        """Raises PythonEnvError when there is no verdict after some attempts."""
        for attempt in range(1, ATTEMPTS):
            try:
                return self.attempt(sample)
            except PythonEnvError as error:
                # A fault of the machine may be gone the next time; so may a server's restart.
                time.sleep(attempt)
                if isinstance(error, ConnectionFailed):
                    self.begin_again()
        return self.attempt(sample)

    def attempt(self, sample: Sample) -> Result:
        row = self.tasks[sample.task_id].to_row()
        columns = {} if self.is_embedded else row
        code = complete_code(extract_code(sample.completion), row)
        with self.session() as env:
            env.reset(**{**columns, "task_id": sample.task_id, "max_steps": 1})
            result = env.step(PythonAction(code, timeout_s=self.timeout_s))
        if result.reward is None:
            raise PythonEnvError("the server gave no reward")
        return Result(*sample, result.reward == 1.0, result.reward, result.observation.feedback)

    @contextlib.contextmanager
    def session(self) -> Iterator[PythonEnv]:
        """A session that no other thread uses meanwhile; used again where nothing went wrong."""
        try:
            env = self.idle.pop()
        except IndexError:
            env = PythonEnv(self.server.base_url, token=self.token)
        try:
            yield env
        except PythonEnvError:
            env.close()
            raise
        self.idle.append(env)

    def begin_again(self) -> None:
        """After a lost connection: an embedded server that died starts again, at another port."""
        self.idle.clear()
        if self.is_embedded:
            self.server.reset("repl")

    def close(self) -> None:
        for env in self.idle:
            env.close()
        self.server.close()


def evaluate(given: argparse.Namespace) -> int:
    tasks = load_tasks(given.tasks, given.skip_bad_tasks)
    samples = read_samples(given.samples, tasks)
    todo, results = take_up(samples, read_results(given.out))
    faults = []
    bar = Bar(len(samples), len(samples) - len(todo))
    grader = Grader(given, tasks)
    pool = ThreadPoolExecutor(given.workers)
    try:
        running = {pool.submit(grader.grade, sample): sample for sample in todo}
        with open(given.out, "a", encoding="utf-8") as out:
            for future in as_completed(running):
                try:
                    results.append(future.result())
                    # One write a line: a run that is killed leaves at most a part of the last one.
                    out.write(json.dumps(results[-1]._asdict()) + "\n")
                    out.flush()
                except PythonEnvError as error:
                    faults.append(f"{running[future].task_id}: {error}")
                bar.step()
    finally:
        # After Ctrl-C the samples that are being graded end first: a step is a matter of seconds.
        pool.shutdown(cancel_futures=True)
        grader.close()
        bar.clear()
    print_report(given, tasks, results)
    for words in faults:
        print(f"no verdict, not counted: {words}", file=sys.stderr)
    return 1 if faults else 0


# ── Reporting ─────────────────────────────────────────────────────────────────────────────────────


def pass_at_k(total: int, passed: int, k: int) -> float:
    """The chance that of k samples, drawn from these without putting back, at least one passes:
    the unbiased estimator of HumanEval's paper."""
    return 1.0 - math.comb(total - passed, k) / math.comb(total, k)


def print_report(given: argparse.Namespace, tasks: dict[str, Task], results: list[Result]) -> None:
    totals = collections.Counter(each.task_id for each in results)
    passed = collections.Counter(each.task_id for each in results if each.passed)
    print(f"{passed.total()} of {totals.total()} samples passed, of {len(totals)} tasks", end="")
    print(f"; {len(tasks) - len(totals)} tasks have none" if len(tasks) > len(totals) else "")
    for k in given.k:
        # As in HumanEval's own harness: only where every task has as many.
        if totals and min(totals.values()) >= k:
            each = [pass_at_k(totals[name], passed[name], k) for name in totals]
            print(f"pass@{k}: {sum(each) / len(each):.4f}")


class Bar:
    """How far it is, on a terminal only."""

    def __init__(self, total: int, done: int) -> None:
        self.total = total
        self.done = done
        self.first = done
        self.started = time.monotonic()

    def step(self) -> None:
        self.done += 1
        rate = (self.done - self.first) / max(1e-6, time.monotonic() - self.started)
        bar = "█" * (30 * self.done // self.total)
        left_s = (self.total - self.done) / rate
        self.show(f"{bar:30} {self.done} of {self.total}, {rate:.1f} a second, {left_s:.0f} s left")

    def clear(self) -> None:
        self.show("")

    def show(self, line: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    assert __doc__
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("samples", type=Path, help="JSONL or JSONL.gz with task_id and completion")
    add("--tasks", type=Path, required=True, help="JSONL or JSONL.gz, as python-env serve takes it")
    add("--out", type=Path, required=True, help="JSONL to write, or to go on with")
    add(
        "--skip-bad-tasks", action="store_true", help="leave out bad lines of the tasks, and say so"
    )
    add("--base-url", help="a running server; without it one is started, and ends with this")
    add("--workers", type=int, default=2 * (os.cpu_count() or 1), help="sessions at once")
    add("--timeout", type=float, help="seconds of a sample; without it as the server says")
    add("--k", type=int, nargs="+", default=[1, 10, 100], help="the k of pass@k")
    given = parser.parse_args(argv)
    try:
        return evaluate(given)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    except (PythonEnvError, OSError, ValueError) as error:
        print(f"evaluate.py: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
