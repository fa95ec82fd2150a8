"""A network of the user's own code: ``package.file:factory``, imported and run.

This runs the user's program: the import of its module, the factory and the forward pass, in this process, with all that this
process may do. There is no sandbox and no check of what the code does; name only modules that you would run yourself. What is
checked is what an export relies on: one input [N, C, H, W], one output [N, K] of floats, the same in every run and for every
image alone.

The current folder is on the import path while the module is imported, as with ``python -m``.
"""

from __future__ import annotations

import importlib
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
    """

    net: nn.Module
    classes: int


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
        return take_logits(self.network(pixels)).float()


def load_module(reference: str, contract: InputContract) -> LoadedModule:
    """Import and run ``package.file:factory``, and try what it makes.

    Args:
        reference: A module that Python can import from here, a colon, and the name of a function without arguments (or a
            class) that gives a `torch.nn.Module` with its weights loaded.
        contract: Size and channels of the input, for the trial.

    Raises:
        UsageError: VD2012, no such module or name, or what it gives is no `torch.nn.Module`.
        InputError: VD3022, the network's output can't be exported: no float [N, K], not the same twice, or not the same
            for an image alone.
        MachineError: VD4004, the user's code failed; its exception is the cause.
    """
    factory = _import_factory(reference)
    with _run_theirs(f"the factory {reference}"):
        made = factory()
    if not isinstance(made, nn.Module):
        message = f"{reference} gives {_describe(made)}, not a torch.nn.Module"
        raise UsageError("VD2012", message, fix="name a function that returns the network, without arguments")
    net = OneOutput(made).cpu().float().eval()
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    return LoadedModule(net, _count_classes(net, reference, contract))


def take_logits(output: object) -> Tensor:
    """The logits in what a network returned: the tensor itself, or ``logits`` of a mapping or an object.

    Raises:
        InputError: VD3022, there are none.
    """
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
    if not isinstance(logits, Tensor):
        message = f"the network returns {_describe(output)}; a tensor, or a mapping or object with logits, is needed"
        raise InputError("VD3022", message, fix="wrap it in a module that returns the logits")
    if not logits.is_floating_point():
        message = f"the network's logits are of type {str(logits.dtype)[6:]}, not floating-point numbers"
        raise InputError("VD3022", message, fix="return the logits, not the class")
    return logits


def _import_factory(reference: str) -> Callable[[], object]:
    name, colon, path = reference.partition(":")
    parts = path.split(".")
    if not (colon and all(part.isidentifier() for part in (*name.split("."), *parts))):
        message = f"{reference!r} is no reference to a Python function"
        raise UsageError("VD2012", message, fix="write package.file:factory, with dots and without .py")
    with _search_here():
        member: object = _import_module(name)
    for part in parts:
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
def _search_here() -> Iterator[None]:
    """The current folder first on the import path; modules written a moment ago are seen."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with suppress(ValueError):  # the user's code may have changed the path
            sys.path.remove(here)


@contextmanager
def _run_theirs(what: str) -> Iterator[None]:
    """The user's code runs inside; whatever it raises is a VD4004, and `sys.exit` does not end this program unheard."""
    try:
        with library(what, seam=FOREIGN):
            yield
    except SystemExit as exc:
        raise MachineError("VD4004", f"{what} called sys.exit", fix="leave out what ends the program") from exc


def _count_classes(net: nn.Module, reference: str, contract: InputContract) -> int:
    """K, after running the network on random pixels: twice the same pair of images, and each image alone."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, contract.channels, contract.height, contract.width, generator=generator)  # [2, C, H, W]
    with torch.no_grad(), _run_theirs(f"{reference} on float32 {list(pixels.shape)}"):
        first, again = net(pixels), net(pixels)
        alone = [net(image[None]) for image in pixels]  # 2 x [1, K]
    fix = "the network must treat every image alone; check for batch statistics, dropout and fixed batch sizes"
    if first.ndim != 2 or len(first) != 2 or not first.shape[1]:
        message = f"{reference} gives {list(first.shape)} for 2 images, expected [2, classes]"
        raise InputError("VD3022", message, fix="return one row of logits an image")
    if not torch.isfinite(first).all():
        raise InputError("VD3022", f"{reference} gives NaN or infinity", fix="check that its weights are loaded")
    if not torch.equal(first, again):
        raise InputError("VD3022", f"{reference} gives other numbers in a second run", fix=fix)
    for index, row in enumerate(alone):
        if row.shape != (1, first.shape[1]) or (row[0] - first[index]).abs().max() > TOLERANCE * _measure_spread(first):
            raise InputError("VD3022", f"{reference} gives other numbers for an image alone than in a batch of two", fix=fix)
    return first.shape[1]


def _measure_spread(logits: Tensor) -> Tensor:
    """What differences are measured by, also for a network whose logits hardly differ."""
    return torch.maximum(logits.std(correction=0), 1e-2 * logits.abs().max() + 1e-9)


def _describe(output: object) -> str:
    if isinstance(output, Tensor):
        return f"a tensor of type {str(output.dtype)[6:]}"
    return f"a {type(output).__name__}"
