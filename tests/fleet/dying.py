"""A Python that dies: it runs a program as `python` does, and kills itself before the step of the disk whose number is DIE_AT.

    dying.py -c CODE        as `python -c CODE`; TRACE names a file for every step that was taken

Steps are what changes or secures a folder: making, renaming, linking, removing and flushing. The environment, and so the steps of
children, stays as it is.
"""

from __future__ import annotations

import os
import signal
import sys

STEPS = ("mkdir", "rename", "replace", "symlink", "link", "unlink", "remove", "rmdir", "fsync")
"""Functions of `os`."""


def count_steps() -> None:
    """Have every step counted. Before anything else has taken these functions for its own (pathlib of Python 3.10 does)."""
    last, trace = int(os.environ.get("DIE_AT", "0")), os.environ.get("TRACE")
    taken = 0

    def wrap(name: str):
        step = getattr(os, name)

        def take(*given, **more):
            nonlocal taken
            taken += 1
            if trace:
                paths = [os.fspath(each) for each in given[:2] if not isinstance(each, int)]
                what = os.readlink(f"/proc/self/fd/{given[0]}") if name == "fsync" else "\t".join(paths)
                with open(trace, "a") as stream:
                    stream.write(f"{name}\t{what}\n")
            if taken == last:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(*given, **more)

        return take

    for name in STEPS:
        setattr(os, name, wrap(name))


if __name__ == "__main__":
    count_steps()
    code = sys.argv[2]
    sys.argv = ["-c", *sys.argv[3:]]
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
