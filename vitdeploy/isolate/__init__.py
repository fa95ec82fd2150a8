"""Work in a process of its own, with limits: what crashes, hangs or eats memory there is one line here.

The child is a fresh interpreter, not a fork: nothing of the caller's memory, threads or open files is in it, and nothing of
the caller's main module runs again. It gets an environment of a few names (no tokens, no keys), an empty folder of its own,
no standard input, a session of its own, and limits. It is asked and answers through a socket, in JSON and plain bytes:
nothing is ever unpickled, and answers are checked as data. When the parent dies, even by ``kill -9``, so does the child.

This contains accidents and bombs. It is no sandbox: the child is the same user on the same file system.
"""

from vitdeploy.isolate.frames import LARGEST_ANSWER, LARGEST_ARRAYS
from vitdeploy.isolate.process import GRACE_S, KEPT, Child, ChildCrash, ChildTraceback, Limits, choose_environment, run
from vitdeploy.isolate.service import is_child, report_progress

__all__ = [
    "run",
    "report_progress",
    "is_child",
    "Child",
    "ChildCrash",
    "ChildTraceback",
    "Limits",
    "choose_environment",
    "KEPT",
    "GRACE_S",
    "LARGEST_ANSWER",
    "LARGEST_ARRAYS",
]
