"""python server.py [flags] is python -m python_env serve [flags]: see --help."""

import signal
import sys


def main() -> int:
    # A container's first process is deaf to SIGTERM until it has a handler. Importing python_env
    # takes a tenth of a second, so the handler comes first.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    import python_env

    return python_env.main(["serve", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
