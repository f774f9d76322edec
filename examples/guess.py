"""An environment of one's own: guess a number. `python examples/guess.py [PORT]` serves it.

Then, in another program:

    from guess import Guess, GuessEnv

    with GuessEnv("http://localhost:8001") as env:
        env.reset(seed=7)
        print(env.step(Guess(50)).observation.text)  # lower
"""

import random
import sys
from dataclasses import dataclass
from typing import Any

from python_env import Action
from python_env import EnvClient
from python_env import Environment
from python_env import Observation
from python_env import State
from python_env import described
from python_env import serve


@dataclass
class Guess(Action):
    number: int = described("The guess, from 1 to 100", ge=1, le=100)


@dataclass
class Hint(Observation):
    text: str = described("higher, lower or right", "")


class GuessEnvironment(Environment[Guess, Hint]):
    def reset(self, seed: int | None = None, **options: Any) -> Hint:
        self.secret = random.Random(seed).randint(1, 100)
        return Hint("a number from 1 to 100")

    def step(self, action: Guess) -> Hint:
        if action.number == self.secret:
            return Hint("right", reward=1.0, done=True)
        return Hint("higher" if action.number < self.secret else "lower", reward=0.0)


class GuessEnv(EnvClient[Guess, Hint, State]):
    observation_model = Hint
    state_model = State


if __name__ == "__main__":
    serve(GuessEnvironment, Guess, port=int(sys.argv[1]) if len(sys.argv) > 1 else 8001)
