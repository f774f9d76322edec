"""Train a model that calls tools: python_env as an environment of TRL's GRPOTrainer.

    from trl import GRPOConfig, GRPOTrainer
    from trl_agent import PythonAgent, reward

    trainer = GRPOTrainer(
        model="Qwen/Qwen3-0.6B",
        args=GRPOConfig(max_tool_calling_iterations=5, max_completion_length=2_048),
        train_dataset=dataset,  # `prompt`: a list of messages; and a task's columns, as `tests`
        environment_factory=PythonAgent,
        reward_funcs=[reward],
    )

What TRL asks of such a class (1.16, transformers 5.2 or newer): made without arguments, one for
each rollout of a batch, and used again; reset(**row) before each rollout, whose text, if any, is
added to the last message; every other public method is a tool, with typed arguments and a docstring
in Google's style. So what is no tool begins with an underscore, or is an attribute.
"""

from __future__ import annotations

import functools
from typing import Any

from python_env import PythonEnv

MOST_CHARS = 2_000  # of an output that the model gets to read


@functools.cache
def server() -> PythonEnv:
    """One embedded server for all environments of this process. `PythonEnv(base_url=…)` instead,
    where one is running."""
    return PythonEnv()


class PythonAgent:
    """A task, and an interpreter to solve it in. `score` is that of the last call: the share of the
    hidden tests that passed; None where the grading failed, which must not teach anything."""

    def __init__(self) -> None:
        self._env = PythonEnv(server().base_url)
        self._is_done = False
        self.score: float | None = 0.0

    def reset(self, prompt: Any = "", **columns: Any) -> str | None:
        """Begin an episode of the task in this row; or of the server's own that `task_id` names."""
        asked = prompt if isinstance(prompt, str) else text_of(prompt[-1]["content"])
        seen = self._env.reset(prompt=asked, **columns).observation
        self._is_done = False
        self.score = 0.0
        return None if seen.prompt in asked else f"\n\n{seen.prompt}"

    def run_python(self, code: str) -> str:
        """
        Run Python code, and have hidden tests judge it. Names of earlier calls are still there.

        Args:
            code: The Python code to run, without Markdown.

        Returns:
            What the code printed, and how many of the hidden tests passed.
        """
        if self._is_done:
            return "The task is over."
        self.score = None  # where step() raises: TRL tells the model the error's words
        result = self._env.step(code)
        self.score = result.reward
        self._is_done = result.done
        seen = result.observation
        value = f"--> {seen.result}" if seen.result else ""
        parts = [shorten(seen.stdout), shorten(seen.stderr), shorten(value), seen.feedback]
        return "\n".join(part for part in parts if part) or "It ran, and printed nothing."


def reward(environments: list[PythonAgent], **_: Any) -> list[float | None]:
    """A reward function for GRPOTrainer; it leaves out what is None."""
    return [environment.score for environment in environments]


def text_of(content: Any) -> str:
    """The text of a message, which may be a list of parts."""
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content)


def shorten(text: str) -> str:
    text = text.strip("\n")
    half = MOST_CHARS // 2
    return text if len(text) <= MOST_CHARS else f"{text[:half]}\n[…]\n{text[-half:]}"
