"""A network of the user's own code: ``package.file:factory`` or ``FILE.py:factory``, imported and run.

This runs the user's program: the import of its module, the factory and the forward pass, in this process, with all that this
process may do. There is no sandbox and no check of what the code does; name only modules that you would run yourself. What is
checked is what an export relies on: one input [N, C, H, W], one output [N, K] of floats, the same in every run and for every
image alone. What the network returns may be wrapped (a tuple, a dictionary, an output of transformers, [N, 1, K]); what is taken
of it is said.

While the code is imported and the network made, the current folder is on the import path, as with ``python -m``; a file's own
folder as with ``python FILE.py``.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vitdeploy.errors import FOREIGN, InputError, MachineError, UsageError, VitdeployError, library, nearest
from vitdeploy.spec import InputContract

TOLERANCE = 1e-4
"""Largest difference of an image alone and in a batch, as a share of the standard deviation: libraries sum in another order."""


class LoadedModule(NamedTuple):
    """A network of the user's.

    Attributes:
        net: Takes float32 [N, C, H, W], normalised, and returns float32 [N, K]; in evaluation mode, on the CPU.
        classes: K.
        notes: What is taken of the network's output, where that is not the output itself.
    """

    net: nn.Module
    classes: int
    notes: tuple[str, ...] = ()


class OneOutput(nn.Module):
    """The user's network with its logits as the one output, whatever it wraps them in.

    Attributes:
        network: What the factory made.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:  # [N, C, H, W]
        """Logits float32 [N, K]."""
        return take_logits(self.network(pixels)).logits.float()


class Taken(NamedTuple):
    """The logits in an output.

    Attributes:
        logits: [N, K].
        notes: How they were taken out, a phrase a step.
    """

    logits: Tensor
    notes: tuple[str, ...]


def load_module(reference: str, contract: InputContract) -> LoadedModule:
    """Import and run ``package.file:factory``, and try what it makes.

    Args:
        reference: A module that Python can import from here, or a file that ends in ``.py``; a colon; and the name of a function
            without arguments (or a class) that gives a `torch.nn.Module` with its weights loaded.
        contract: Size and channels of the input, for the trial.

    Raises:
        UsageError: VD2012, no such module or name, or what it gives is no `torch.nn.Module`.
        InputError: VD3022, the network takes more than images, or its output can't be exported: no float [N, K], not the same
            twice, or not the same for an image alone.
        MachineError: VD4004, the user's code failed; its exception is the cause.
    """
    name, path = _parse(reference)
    folders = [Path(name).absolute().parent] if _is_file(name) else []
    with _search(Path.cwd(), *folders):
        factory = _import_factory(reference, name, path)
        with _run_theirs(f"the factory {reference}"):
            made = factory()
    if not isinstance(made, nn.Module):
        message = f"{reference} gives {_describe(made)}, not a torch.nn.Module"
        raise UsageError("VD2012", message, fix="name a function that returns the network, without arguments")
    _check_inputs(made, reference)
    net = OneOutput(made).cpu().float().eval()
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    return _try(net, reference, contract)


def _check_inputs(made: nn.Module, reference: str) -> None:
    """Refuse a network that takes more than images: an encoder-decoder that is fed its target, too."""
    try:
        given = inspect.signature(made.forward).parameters.values()
    except (TypeError, ValueError):  # code that is no Python: the trial tells
        return
    needed = [
        each.name for each in given if each.default is each.empty and each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
    ]
    if len(needed) > 1:
        message = f"{reference} takes {len(needed)} inputs ({', '.join(needed)}), an export has one, the images"
        fix = (
            f"wrap it in a module that keeps {' and '.join(needed[1:])} as a buffer or parameter (learned queries, a start token)"
        )
        raise InputError("VD3022", message, fix=fix)


def take_logits(output: object) -> Taken:
    """The logits in what a network returned.

    Args:
        output: A tensor; a tuple or list, of which the first is taken; a mapping or object with ``logits``, or else a mapping's
            first value, as outputs of transformers are ordered. Axes of length 1 beside the classes are dropped.

    Raises:
        InputError: VD3022, there are none.
    """
    notes: list[str] = []
    while not isinstance(output, Tensor):
        whole = output
        if isinstance(output, Mapping) and output:
            key = "logits" if "logits" in output else next(iter(output))
            output = output[key]
            notes += [f"takes {key!r} of the {type(whole).__name__} that the network returns"] * (key != "logits")
        elif isinstance(output, (tuple, list)) and output:
            output = output[0]
            notes.append(f"takes the first of the {len(whole)} that the network returns")  # type: ignore[arg-type]
        elif hasattr(output, "logits"):
            output = output.logits
        else:
            message = f"the network returns {_describe(output)}; a tensor, or a sequence or mapping of them, is needed"
            raise InputError("VD3022", message, fix="wrap it in a module that returns the logits")
    logits = output
    if not logits.is_floating_point():
        message = f"the network's logits are of type {str(logits.dtype)[6:]}, not floating-point numbers"
        raise InputError("VD3022", message, fix="return the logits, not the class")
    if logits.ndim > 2 and sum(size != 1 for size in logits.shape[1:]) <= 1:
        notes.append(f"drops the axes of length 1 of its output [N, {', '.join(map(str, logits.shape[1:]))}]")
        logits = logits.flatten(1)  # [N, K]
    return Taken(logits, tuple(notes))


def _parse(reference: str) -> tuple[str, str]:
    """The module or file, and the dotted name in it."""
    name, colon, path = reference.rpartition(":")
    parts = path.split(".") if _is_file(name) else [*name.split("."), *path.split(".")]
    if not (colon and all(part.isidentifier() for part in parts)):
        message = f"{reference!r} is no reference to a Python function"
        raise UsageError("VD2012", message, fix="write FILE.py:FUNCTION, or package.file:factory with dots and without .py")
    return name, path


def _is_file(name: str) -> bool:
    return name.endswith(".py")


def _import_factory(reference: str, name: str, path: str) -> Callable[[], object]:
    member: object = _import_file(Path(name)) if _is_file(name) else _import_module(name)
    for part in path.split("."):
        if not hasattr(member, part):
            fix = nearest(part, (word for word in dir(member) if not word.startswith("_")))
            raise UsageError("VD2012", f"{name} has no {path!r}", fix=fix or "name a function of that module")
        member = getattr(member, part)
    if isinstance(member, nn.Module):
        network = member
        return lambda: network
    if not callable(member):
        raise UsageError(
            "VD2012", f"{reference} is {_describe(member)}, not a function", fix="name a function that returns the network"
        )
    return member


def _import_file(path: Path) -> object:
    """A file as a module under its own name, or under one with its path where another module has that name."""
    if not path.is_file():
        raise UsageError("VD2012", "does not exist", file=path, fix="name a Python file, a colon and a function in it")
    name, path = path.stem, path.absolute()
    if name in sys.modules and getattr(sys.modules[name], "__file__", None) != str(path):
        name = re.sub(r"\W", "_", str(path))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # its name ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with _run_theirs(f"importing {path.name}"):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _import_module(name: str) -> object:
    try:
        with _run_theirs(f"importing {name}"):
            return importlib.import_module(name)
    except VitdeployError as exc:
        lost = exc.__cause__
        if isinstance(lost, ModuleNotFoundError) and lost.name and f"{name}.".startswith(f"{lost.name}."):
            fix = "run in the folder that holds it, or install it"
            raise UsageError("VD2012", f"there is no Python module {lost.name!r}", fix=fix) from lost
        raise


@contextmanager
def _search(*folders: Path) -> Iterator[None]:
    """Folders first on the import path; modules written a moment ago are seen."""
    added = [str(folder) for folder in folders]
    sys.path[:0] = added
    importlib.invalidate_caches()
    try:
        yield
    finally:
        for folder in added:
            with suppress(ValueError):  # the user's code may have changed the path
                sys.path.remove(folder)


@contextmanager
def _run_theirs(what: str) -> Iterator[None]:
    """The user's code runs inside; whatever it raises is a VD4004, and `sys.exit` does not end this program unheard."""
    try:
        with library(what, seam=FOREIGN):
            yield
    except SystemExit as exc:
        raise MachineError("VD4004", f"{what} called sys.exit", fix="leave out what ends the program") from exc


def _try(net: OneOutput, reference: str, contract: InputContract) -> LoadedModule:
    """The network with its classes, after running it on random pixels: twice the same pair of images, and each image alone."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, contract.channels, contract.height, contract.width, generator=generator)  # [2, C, H, W]
    with torch.no_grad(), _run_theirs(f"{reference} on float32 {list(pixels.shape)}"):
        taken, again = take_logits(net.network(pixels)), net(pixels)
    first = taken.logits.float()
    fix = "the network must treat every image alone; check for batch statistics, dropout and fixed batch sizes"
    if first.ndim != 2 or len(first) != 2 or not first.shape[1]:
        message = f"{reference} gives {list(first.shape)} for 2 images, expected [2, classes]"
        raise InputError("VD3022", message, fix="return one row of logits an image")
    if not torch.isfinite(first).all():
        raise InputError("VD3022", f"{reference} gives NaN or infinity", fix="check that its weights are loaded")
    if not torch.equal(first, again):
        raise InputError("VD3022", f"{reference} gives other numbers in a second run", fix=fix)
    with torch.no_grad(), _run_theirs(f"{reference} takes two images and fails on float32 {[1, *pixels.shape[1:]]}"):
        alone = [net(image[None]) for image in pixels]  # 2 x [1, K]
    for index, row in enumerate(alone):
        if row.shape != (1, first.shape[1]) or (row[0] - first[index]).abs().max() > TOLERANCE * _measure_spread(first):
            raise InputError("VD3022", f"{reference} gives other numbers for an image alone than in a batch of two", fix=fix)
    return LoadedModule(net, first.shape[1], taken.notes)


def _measure_spread(logits: Tensor) -> Tensor:
    """What differences are measured by, also for a network whose logits hardly differ."""
    return torch.maximum(logits.std(correction=0), 1e-2 * logits.abs().max() + 1e-9)


def _describe(output: object) -> str:
    if isinstance(output, Tensor):
        return f"a tensor of type {str(output.dtype)[6:]}"
    return f"a {type(output).__name__}"
