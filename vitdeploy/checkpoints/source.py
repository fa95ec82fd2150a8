"""What a checkpoint is once it has been read, and what a source library must say about its own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from vitdeploy.checkpoints.conversion import Rule, State
from vitdeploy.errors import InputError
from vitdeploy.spec import ModelSpec
from vitdeploy.words import Problem

PROBLEMS: dict[str, Problem] = {
    "single_label_classification": "single_label",
    "multi_label_classification": "multi_label",
    "regression": "regression",
}
"""`problem_type` of transformers' ``PreTrainedConfig`` to ours."""

ANY_MODULE = "write it as a module of your own: vitdeploy export --module FILE.py:FUNCTION --contract CONTRACT.toml -o OUT"
"""What to do with a network that vitdeploy's own can't be."""


class Checkpoint(NamedTuple):
    """Tensors and what stood beside them, whatever the file format was.

    Attributes:
        path: The file or folder the user named.
        state: Name to float32 tensor on the CPU, wrappers and prefixes stripped.
        config: ``config.json`` of the folder, or nothing.
        preprocessor: ``preprocessor_config.json`` of the folder, or nothing.
        files: Name to SHA-256 of every file that was read.
        notes: What was stripped, upcast or chosen, a sentence each, for the user and the record.
        doubt: Why the names of a network were left as they are, or nothing; see `vitdeploy.checkpoints.members`.
    """

    path: Path
    state: State
    config: Mapping[str, object]
    preprocessor: Mapping[str, object]
    files: dict[str, str]
    notes: tuple[str, ...]
    doubt: str = ""

    @property
    def names(self) -> Sequence[str]:
        """Names of all tensors."""
        return tuple(self.state)


def read_problem(checkpoint: Checkpoint) -> Problem:
    """What a head's numbers are by `problem_type` of ``config.json``; one class of several where the file does not say.

    Raises:
        InputError: VD3015, it says something else.
    """
    given = checkpoint.config.get("problem_type") or "single_label_classification"
    if not isinstance(given, str) or given not in PROBLEMS:
        message = f"config.json says problem_type = {given!r:.80}, which is none of {', '.join(PROBLEMS)}"
        fix = "correct it, or use --module with the model built by transformers"
        raise InputError("VD3015", message, file=checkpoint.path, fix=fix)
    return PROBLEMS[given]


class Source(NamedTuple):
    """A library whose checkpoints are understood.

    Attributes:
        name: As people call it.
        recognise: Whether a checkpoint is this library's, by its config or its names; cheap, never raises.
        spec: The model's spec, from config, names and shapes; the second argument is the architecture's name, when the
            user gave one. Raises UsageError or InputError with what is missing.
        rules: The table for a checkpoint that `spec` understood.
        grid: Rows and columns of the learned position table, or None for the model's own or a square.
        notes: What is unusual about a checkpoint that `spec` understood, a sentence each; see `Checkpoint.notes`.
        read_fields: Fields of the input contract that the checkpoint itself says; all others are what the library does for such
            a network.
    """

    name: str
    recognise: Callable[[Checkpoint], bool]
    spec: Callable[[Checkpoint, str | None], ModelSpec]
    rules: Callable[[Checkpoint, ModelSpec], tuple[Rule, ...]]
    grid: Callable[[Checkpoint], tuple[int, int] | None] = lambda _: None
    notes: Callable[[Checkpoint, ModelSpec], tuple[str, ...]] = lambda _, __: ()
    read_fields: Callable[[Checkpoint], Collection[str]] = lambda _: ()


class Loaded(NamedTuple):
    """A model from elsewhere, ready to build.

    Attributes:
        spec: The model.
        state: Tensors by our names.
        grid: See `Source.grid`.
        read_fields: See `Source.read_fields`.
        origin: For the record: source library, files and digests, what was stripped and what was left out, and why.
    """

    spec: ModelSpec
    state: State
    grid: tuple[int, int] | None
    origin: Mapping[str, object]
    read_fields: Collection[str] = ()
