"""The child's side of `compile`: what it is told, and what it does. Builders crash, hang and eat memory."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import msgspec

from vitdeploy.artifact import Artifact, Record
from vitdeploy.backends.base import Compiler
from vitdeploy.backends.table import Engine, load, register
from vitdeploy.recipe import CompileConfig


class BuildOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What the child that builds is told.

    Attributes:
        folder: Of the artifact.
        record: Of the artifact.
        config: How to build.
        out: An empty folder for the engine.
        again: Whether an engine of the same settings came out wrong.
        engines: The table of engines: the caller may have registered some.
    """

    folder: str
    record: Record
    config: CompileConfig
    out: str
    again: bool
    engines: tuple[Engine, ...]


class CandidatesOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What the child that names settings is told.

    Attributes:
        config: The engine.
        engines: The table of engines.
    """

    config: CompileConfig
    engines: tuple[Engine, ...]


def build(argument: object) -> object:
    """The child's side: compile into a folder as a `BuildOrder` says; a `Compiled`. Called by `isolate.run`."""
    order = msgspec.convert(argument, BuildOrder)
    register(order.engines)
    artifact = Artifact(Path(order.folder), order.record)
    return msgspec.to_builtins(_load_compiler(order.config).compile(artifact, order.config, Path(order.out), again=order.again))


def candidates(argument: object) -> object:
    """The child's side: settings that are worth measuring here, as a `CandidatesOrder` says. Called by `isolate.run`."""
    order = msgspec.convert(argument, CandidatesOrder)
    register(order.engines)
    return msgspec.to_builtins(_load_compiler(order.config).candidates(order.config))


def _load_compiler(config: CompileConfig) -> Compiler:
    return cast(Compiler, load(config.backend))
