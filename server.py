"""python server.py [flags] is python -m python_env serve [flags]: see --help.

Where no flag or variable names tasks, it serves the tasks.jsonl beside it, if there is one.
"""

import os
import signal
import sys
from pathlib import Path


def main() -> int:
    # A container's first process is deaf to SIGTERM until it has a handler. Importing python_env
    # takes a tenth of a second, so the handler comes first.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    import python_env

    own = Path(__file__).resolve().with_name("tasks.jsonl")
    if own.exists():
        os.environ.setdefault("PYTHON_ENV_TASKS", str(own))
    return python_env.main(["serve", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
