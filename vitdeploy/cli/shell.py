"""How every command is registered, run and ended: shared options, help in groups, results, errors, signals.

Commands return an `Outcome`; only this file prints it, and only this file turns an error into a message and an exit status:

    0 done; 1 a gate failed; 2 to 7 the class of the error; 8 a mistake of ours, with a crash file; 130 interrupted;
    141 nobody reads the result any more (``| head``), as a shell says it of SIGPIPE
"""

from __future__ import annotations

import inspect
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from vitdeploy import __version__
from vitdeploy.errors import (
    INTERNAL,
    INTERRUPTED,
    MachineError,
    UsageError,
    VitdeployError,
    explain_exhaustion,
    explain_refusal,
    first_line,
    nearest,
    printable,
)

PIPE_CLOSED = 141
LONGEST_WAIT_S, _MOMENT_S = 5.0, 0.02
"""How long what must not be cut short may go on after the first signal, and how often it is looked whether it ended."""
_WHOLE = "vitdeploy.files"
"""Modules that make, flush, exchange and remove folders: none is left that nobody knows of."""
GROUPS = BUILD, PROVE, SHIP, LOOK = "Build", "Prove", "Ship", "Look"
_CLICK: type[Exception] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
"""click's own error. typer carries click inside or depends on it, as its version will; this name is right for both."""


class Outcome(NamedTuple):
    """What a command leaves for `main` to print.

    Attributes:
        record: What ``--json`` prints.
        show: Prints the same for people.
        hint: Where the result lies and the next command to try.
        exit: Exit status.
        show_more: Prints what the result depends on, behind it.
    """

    record: object
    show: Callable[[], None]
    hint: str = ""
    exit: int = 0
    show_more: Callable[[], None] | None = None


ALIASES = {"--calibration": "--data", "--target": "--backend", "--optimize": "--optimise"}
"""Other words for options, which help does not list: images are ``--data`` and engines ``--backend`` in every command."""


class Command(TyperCommand):
    """A command that knows `ALIASES` of the options that it has."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 (click's context, which typer moved)
        """The arguments, with other words for options replaced."""
        own = {option for parameter in self.params for option in parameter.opts}
        known = {alias: option for alias, option in ALIASES.items() if option in own and alias not in own}
        end = args.index("--") if "--" in args else len(args)
        words = (arg.partition("=") for arg in args[:end])
        return super().parse_args(ctx, [known.get(name, name) + sign + value for name, sign, value in words] + args[end:])


class Groups(TyperGroup):
    """Help with the commands under their group, without markup: typer groups them only when it draws boxes."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401 (click's types, which typer moved)
        """Write a section a group, commands in the order in which they were registered."""
        for group in GROUPS:
            members = [(name, command) for name, command in self.commands.items() if _get_group(command) == group]
            with formatter.section(group):
                formatter.write_dl([(name.ljust(8), command.get_short_help_str(90)) for name, command in members])


def _get_group(command: object) -> object:
    return getattr(command, "rich_help_panel", "")


Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no hints.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Every step with its time, and what numbers depend on.")]
Debug = Annotated[bool, typer.Option("--debug", help="On an error, print the traceback too.")]
_SHARED: dict[str, Any] = {"json": Json, "quiet": Quiet, "verbose": Verbose, "debug": Debug}


class _Result(NamedTuple):
    outcome: Outcome
    json: bool
    quiet: bool
    verbose: bool


def command(app: typer.Typer, group: str, *examples: str) -> Callable[[Callable[..., Outcome]], Callable[..., Outcome]]:
    """Register a command with its examples and the options that all commands have, so that none can lack them.

    A parameter ``progress`` is no option: the command gets a listener that is closed when it ends.
    """

    def register(function: Callable[..., Outcome]) -> Callable[..., Outcome]:
        works = "progress" in inspect.signature(function).parameters

        def run(context: typer.Context, **given: Any) -> _Result:  # noqa: ANN401 (the values of options)
            _look_around()
            own = {name: value for name, value in given.items() if name not in _SHARED}
            json, quiet, verbose = (given[name] or context.obj.get(name, False) for name in ("json", "quiet", "verbose"))
            if not works:
                return _Result(function(**own), json, quiet, verbose)
            from vitdeploy.render.progress import open_listener

            with open_listener(function.__name__, quiet=quiet, verbose=verbose) as progress:
                return _Result(function(**own, progress=progress), json, quiet, verbose)

        run.__signature__ = _build_signature(function)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in _build_signature(function).parameters.values()}
        lines = "\n".join(f"  {example}" for example in examples)
        encode = f"{inspect.getdoc(function)}\n\n\b\nExamples:\n{lines}"
        app.command(function.__name__, cls=Command, help=encode, rich_help_panel=group)(run)
        return function

    return register


def _look_around() -> None:
    """What every command needs: a folder to stand in. What was killed before has left nothing behind it."""
    from vitdeploy.files import sweep_leases

    try:
        Path.cwd()
    except OSError as exc:
        message = f"the current folder can't be used: {exc.strerror}"
        raise MachineError("VD4004", message, fix="go to another folder, and try again") from exc
    with suppress(MachineError):  # who needs a temporary folder says so
        sweep_leases()


def _build_signature(function: Callable[..., Outcome]) -> inspect.Signature:
    """What typer reads: the command's own parameters, the context, and the shared options."""
    # not typing.get_type_hints: before Python 3.11 it hides an option whose default is None inside an Optional
    own = [p for p in inspect.signature(function, eval_str=True).parameters.values() if p.name != "progress"]
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Signature(
        [
            inspect.Parameter("context", kind, annotation=typer.Context),
            *own,
            *(inspect.Parameter(name, kind, default=False, annotation=option) for name, option in _SHARED.items()),
        ]
    )


def run(app: typer.Typer, arguments: Sequence[str] | None = None) -> int:
    """Run a command line and print its result or its error.

    Args:
        app: The commands.
        arguments: What was typed behind the program's name; the process's own when None.

    Returns:
        The exit status.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    ending = _Ending("--json" in given, "--debug" in given)
    with _treat_signals_as_interrupt() as heard:
        try:
            return _run(app, given, ending, heard)
        except KeyboardInterrupt:  # a second one, while the first was being reported
            return INTERRUPTED


def _run(app: typer.Typer, given: list[str], ending: _Ending, heard: list[int]) -> int:
    try:
        result = typer.main.get_command(app).main(given, "vitdeploy", standalone_mode=False)
        if not isinstance(result, _Result):  # --help, --version, or Ctrl-C as typer reports it
            return ending.report_interrupt() if result == INTERRUPTED else int(result or 0)
        return _print_result(result)
    except (KeyboardInterrupt, typer.Abort):
        return ending.report_interrupt()
    except BrokenPipeError:
        return _close_pipe()
    except SystemExit as end:
        if heard:
            return ending.report_interrupt()
        if not isinstance(end.__context__, BrokenPipeError):
            raise
        return _close_pipe()  # what click and rich make of a closed pipe is status 1, a failed gate's
    except Exception as error:  # noqa: BLE001 (the last door: what gets here is a mistake of ours)
        if heard:  # an import that is interrupted raises what it likes: numpy an ImportError, torch a NameError
            return ending.report_interrupt()
        if isinstance(error, VitdeployError):
            return ending.report(error)
        if isinstance(error, _CLICK):
            return ending.report(explain_misuse(error))
        refusal = explain_exhaustion(error) or explain_refusal(error)
        return ending.report(refusal) if refusal else ending.report_crash(error, given)


def explain_misuse(error: Any) -> UsageError:  # noqa: ANN401 (click's error, see _CLICK)
    """Commands, options and arguments that typer refuses, as our error: a code, and the word that was meant or the help."""
    kind, context = type(error).__name__, error.ctx
    path = "vitdeploy COMMAND" if context is None else context.command_path  # click forgets it of an option without its value
    message = error.format_message().removesuffix(".").replace("Value error, ", "")
    fix = f"run: {path} --help"
    if kind == "NoSuchOption":
        options = [option for parameter in context.command.params for option in parameter.opts if option.startswith("--")]
        message, fix = f"there is no option {error.option_name!r}", nearest(error.option_name, options) or fix
        return UsageError("VD2002", message, fix=fix)
    if message.startswith("No such command"):
        name = message.split("'")[1]
        return UsageError("VD2002", f"there is no command {name!r}", fix=nearest(name, context.command.commands) or fix)
    code = "VD2010" if kind in ("MissingParameter", "BadOptionUsage") else "VD2003"
    return UsageError(code, message[:1].lower() + message[1:], fix=fix)


def _print_result(result: _Result) -> int:
    outcome = result.outcome
    if result.json:
        from vitdeploy.jsonfile import encode

        sys.stdout.write(encode(outcome.record))
    else:
        outcome.show()
        if result.verbose and outcome.show_more is not None:
            outcome.show_more()
    sys.stdout.flush()
    if outcome.hint and not result.quiet:
        _say(outcome.hint)
    return outcome.exit


class _Ending(NamedTuple):
    """How to end badly. Read from the raw arguments, since those may be what is wrong."""

    json: bool
    debug: bool

    def report(self, error: VitdeployError) -> int:
        if self.debug:
            traceback.print_exception(error)
        self._print_record(error.record())
        _say(str(error))
        return error.exit_code

    def report_interrupt(self) -> int:
        self._print_record({"code": "interrupted", "file": None, "message": "interrupted", "fix": "", "exit": INTERRUPTED})
        _say("interrupted; nothing half-written was left")
        return INTERRUPTED

    def report_crash(self, error: Exception, given: list[str]) -> int:
        trace = "".join(traceback.format_exception(error))
        place = _write_crash(f"vitdeploy {__version__}, Python {sys.version}\narguments: {given!r}\n\n{trace}")
        if self.debug or place is None:
            _say(trace, whole=True)
        message, fix = f"internal error: {type(error).__name__}: {first_line(error)}", "please report it with this file"
        self._print_record({"code": "internal", "file": place, "message": message, "fix": fix, "exit": INTERNAL})
        _say(f"{message}; the traceback is in {place}; {fix}" if place else f"{message}; please report it with the lines above")
        return INTERNAL

    def _print_record(self, error: dict[str, object]) -> None:
        if self.json:
            from vitdeploy.jsonfile import encode

            try:
                sys.stdout.write(encode({"schema_version": 1, "error": error}))
                sys.stdout.flush()
            except (OSError, ValueError):  # the error itself is told on stderr, and by the status
                _close_pipe()


def _write_crash(text: str) -> str | None:
    """The file that a crash is told in; None where none can be written."""
    try:
        with tempfile.NamedTemporaryFile("w", prefix="vitdeploy-crash-", suffix=".txt", delete=False, errors="replace") as stream:
            stream.write(text)
    except OSError:  # a full or read-only disk, or no folder for temporary files
        return None
    return stream.name


def _say(line: str, *, whole: bool = False) -> None:
    """A line (or what is ``whole``) on stderr; when nobody listens there any more, or the disk is full, that is no error."""
    with suppress(OSError, ValueError):
        sys.stderr.write(f"{line if whole else printable(line)}\n")
        sys.stderr.flush()


def _close_pipe() -> int:
    """The reader went away (``| head``): stop quietly, with the status that shells give for SIGPIPE."""
    with suppress(OSError, ValueError):  # a stdout without a file descriptor needs no rescue
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that Python's last flush does not fail
    return PIPE_CLOSED


def _wait_for_end(frame: FrameType | None, end: float) -> bool:
    """Whether a module is being imported, or a folder made or removed, and there is time; then the alarm rings in a moment."""
    while frame is not None and not (
        frame.f_code.co_filename.startswith("<frozen importlib") or str(frame.f_globals.get("__name__")).startswith(_WHOLE)
    ):
        frame = frame.f_back
    waits = frame is not None and time.monotonic() < end and hasattr(signal, "SIGALRM")
    if waits:
        signal.setitimer(signal.ITIMER_REAL, _MOMENT_S)
    return waits


@contextmanager
def _treat_signals_as_interrupt() -> Iterator[list[int]]:
    """SIGTERM and SIGHUP end a command as Ctrl-C does: temporary files are removed, finished stages stay.

    What is just being imported is imported to its end first: native code that calls Python then, as torch's does, ends the
    process with SIGABRT where that raises. So are folders that are just made or removed. A second signal, or more than
    `LONGEST_WAIT_S`, waits for nothing.

    Yields:
        The signals that came: whatever else fails after one, the command was interrupted.
    """
    heard: list[int] = []
    end = 0.0

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal end
        heard.append(number)
        end = time.monotonic() + LONGEST_WAIT_S
        if len(heard) > 1 or not _wait_for_end(frame, end):
            raise KeyboardInterrupt

    def look_again(_: int, frame: FrameType | None) -> None:
        if not _wait_for_end(frame, end):
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # whoever runs us there handles signals
        yield heard
        return
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    numbers = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]  # nohup's wish is kept
    before = {number: signal.signal(number, interrupt) for number in numbers}
    if hasattr(signal, "SIGALRM"):
        before[signal.SIGALRM] = signal.signal(signal.SIGALRM, look_again)
    try:
        yield heard
    finally:
        if hasattr(signal, "SIGALRM"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
