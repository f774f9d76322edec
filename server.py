"""python server.py [flags] is python -m python_env serve [flags]: see --help."""

import sys

from python_env import main

if __name__ == "__main__":
    sys.exit(main(["serve", *sys.argv[1:]]))
