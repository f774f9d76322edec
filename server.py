"""python server.py [flags] is python -m python_env serve [flags]: see --help."""

import signal
import sys

# As a container's first process we are deaf to SIGTERM until there is a handler: before all else.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))

from python_env import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(["serve", *sys.argv[1:]]))
