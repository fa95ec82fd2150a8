"""A box: how it is reached with the system's ssh, started to listen, and asked one thing."""

from __future__ import annotations

import base64
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from vitdeploy.errors import DeviceError, UsageError, VitdeployError, printable
from vitdeploy.fleet.agent.talk import MARK, VERSION, Words
from vitdeploy.fleet.channel import Channel
from vitdeploy.fleet.luggage import pack_agent
from vitdeploy.isolate.process import rebuild_error

_ADDRESS = re.compile(r"(?P<host>(?:[\w.+~-]+@)?(?:[\w.%-]+|\[[0-9a-fA-F:.%\w]+\]))(?::(?P<port>\d{1,5}))?")
_PROGRAM = re.compile(r"[\w./~+-]+")
_HELLO_S, _ANSWER_S = 60.0, 120.0
_UNREACHED, _NO_PROGRAM = 255, 127
"""Exit statuses of ssh itself, and of a shell that has no such program."""
_START = """\
import sys
if sys.version_info < (3, 10):
    sys.stdout.write({mark!r} + '{{"old": "%d.%d"}}\\n' % sys.version_info[:2])
    sys.exit(1)
import base64, importlib.abc, importlib.util, io, zipfile
content = sys.stdin.buffer.read({size})
archive = zipfile.ZipFile(io.BytesIO(content))
class Archive(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    def find_name(self, name):
        path = name.replace(".", "/")
        return next((each for each in (path + "/__init__.py", path + ".py") if each in archive.namelist()), None)
    def find_spec(self, name, path=None, target=None):
        return importlib.util.spec_from_loader(name, self) if self.find_name(name) else None
    def is_package(self, name):
        return self.find_name(name).endswith("/__init__.py")
    def get_source(self, name):
        return archive.read(self.find_name(name)).decode()
sys.meta_path.insert(0, Archive())
from vitdeploy.fleet.agent.main import serve
sys.exit(serve(base64.b64decode({root!r}).decode(), content))
"""
"""What Python on the box runs first. Nothing is written there for it: its disk may be full."""


class Connection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a box is reached, and where things lie on it.

    Attributes:
        path: Folder of the releases; from the home folder if it is not absolute.
        python: Python 3.10 or later on the box, which has the engine.
        ssh: Program and its options, such as ``ssh -F config -i key``.
    """

    path: str = "vitdeploy"
    python: str = "python3"
    ssh: str = "ssh"

    def __post_init__(self) -> None:
        """Refuse what no shell takes as it is."""
        if not _PROGRAM.fullmatch(self.python):
            raise UsageError("VD2003", f"--python is {self.python!r}", fix="name a program on the box, such as venv/bin/python")
        if not self.path or "\0" in self.path:
            raise UsageError("VD2003", f"--path is {self.path!r}", fix="name a folder on the box")


class Box:
    """A box that listens; from `open_box`.

    Attributes:
        name: As it was typed.
        python: Its version there.
        machine: Its kind, such as ``aarch64``.
        root: The folder there.
    """

    def __init__(self, channel: Channel, name: str, hello: Words) -> None:
        self.name, self._channel = name, channel
        self.python, self.machine, self.root = (str(hello.get(key, "")) for key in ("python", "machine", "root"))

    def ask(self, request: Words) -> None:
        """Send the one request."""
        self.send(msgspec.json.encode(request) + b"\n")

    def send(self, content: bytes) -> None:
        """Send bytes. If nobody takes them, the next `listen` says why."""
        try:
            self._channel.send(content)
        except BrokenPipeError:
            self._fail(_ANSWER_S)

    def listen(self, seconds: float = _ANSWER_S) -> Words:
        """What the agent says next: ``plan``, ``step``, ``note`` or ``done``.

        Raises:
            VitdeployError: What the agent found wrong, with what the box serves; VD5003, it says nothing, or something else.
        """
        try:
            words = self._channel.read(seconds)
        except EOFError:
            said = "; ".join(self._channel.read_errors()[-1:])
            raise self._channel.refuse(f"ended before it had answered{f': {said[:300]}' if said else ''}") from None
        if "error" in words:
            raise self._read_error(words)
        return words

    def _fail(self, seconds: float) -> None:
        """It does not listen any more: hear what it said last."""
        while True:
            self.listen(seconds)

    def _read_error(self, words: Words) -> VitdeployError:
        try:
            error = rebuild_error(**words["error"])
            state = _describe_state(words["serves"])
        except (ValueError, KeyError, TypeError):
            return self._channel.refuse("answers what no agent answers")
        about = f"{error.file}: " if error.file else ""
        return type(error)(error.code, f"{about}{error.message}; {state}", file=self.name, fix=error.fix)


def _describe_state(serves: Words | str | None) -> str:
    if serves is None:
        return "the box serves no release yet"
    if isinstance(serves, str):
        return "which release the box serves can't be told"
    return f"the box still serves release {int(serves['release'])} of {printable(str(serves['name']))}"


@contextmanager
def open_box(name: str, connection: Connection) -> Iterator[Box]:
    """Log in, and have the agent listen.

    Args:
        name: ``user@host:port``, or what the user's ssh knows.
        connection: How, and where things lie there.

    Raises:
        UsageError: VD2003, that is no address.
        DeviceError: VD5001, the box can't be reached; VD5002, it has no Python 3.10; VD5003, something else answers.
    """
    with Channel(write_command(name, connection), name) as channel:
        yield greet(channel, name, connection)


def greet(channel: Channel, name: str, connection: Connection) -> Box:
    """Send the agent through a channel at whose other end Python waits for it."""
    agent = pack_agent()
    root = base64.b64encode(connection.path.encode()).decode()
    start = _START.format(mark=MARK, size=len(agent), root=root).encode()
    try:
        channel.send(start.ljust(_START_SIZE) + agent)
        hello = channel.read(_HELLO_S)
    except (BrokenPipeError, EOFError):
        raise _explain_silence(channel, name, connection) from None
    if "old" in hello:
        raise _lack_python(name, f"has Python {str(hello['old'])[:10]} as {connection.python}")
    if hello.get("hello") != VERSION:
        raise channel.refuse("answers what no agent answers")
    return Box(channel, name, hello)


_START_SIZE = 4096
"""Bytes of what is run first, with the spaces that fill it up: the command that reads it is the same for every box."""


def write_start(python: str) -> str:
    """The command of a shell on the box that runs what is sent to it."""
    return f"exec {python} -c 'import sys;exec(sys.stdin.buffer.read({_START_SIZE}))'"


def write_command(name: str, connection: Connection) -> list[str]:
    """The command that logs in and starts Python there. Nothing is asked: a password can't be typed.

    Raises:
        UsageError: VD2003, that is no address.
    """
    match = _ADDRESS.fullmatch(name)
    if match is None or name.startswith("-"):
        raise UsageError("VD2003", f"{name!r} is no address of a box", fix="give user@host, or user@host:port")
    options = ["-T", "-x", "-o", "BatchMode=yes", "-o", "ConnectTimeout=15"]
    options += ["-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4"]
    port = ["-p", match["port"]] if match["port"] else []
    host = match["host"].replace("[", "").replace("]", "")
    return [*shlex.split(connection.ssh), *options, *port, "--", host, write_start(connection.python)]


def _explain_silence(channel: Channel, name: str, connection: Connection) -> DeviceError:
    """Why the other end closed before it had said a word."""
    status, lines = channel.end(), channel.read_errors()
    last = lines[-1][:300] if lines else f"it ended with status {status}"
    if status == _NO_PROGRAM or "not found" in last:
        return _lack_python(name, f"has no {connection.python}: {last}")
    if status != _UNREACHED:
        return _lack_python(name, f"can't run the agent with {connection.python}: {last}")
    fix = f"see that `ssh {name.partition(':')[0]}` works"
    if "Permission denied" in last:
        fix += " without a password: give the box your key (ssh-copy-id)"
    elif "Host key verification failed" in last:
        fix += ": log in once by hand, and compare the box's key"
    return DeviceError("VD5001", f"can't be reached: {last}", file=name, fix=fix)


def _lack_python(name: str, message: str) -> DeviceError:
    return DeviceError("VD5002", message, file=name, fix="install Python 3.10 or later there, or name it: --python PROGRAM")
