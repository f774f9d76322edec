"""What pyproject.toml cannot say: a stub package in the wheel, made from the module.

A module that is one file cannot carry py.typed, so type checkers would pass over its annotations.
What they do read is a package called python_env-stubs (PEP 561). The file is annotated throughout,
hence it is its own stub: a copy cannot be stale.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithStubs(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            stub = Path(self.build_lib, "python_env-stubs", "__init__.pyi")
            stub.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile("python_env.py", stub)


setup(cmdclass={"build_py": BuildWithStubs})
