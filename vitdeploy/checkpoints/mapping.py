r"""A mapping file: how the tensors of a home-made ViT are called here, written by its author, without any code.

    spec = "my_vit.toml"                # a spec file beside this one, or a table [spec] with the same keys
    [rename]                            # regular expression on a whole name = our name, with \1 for its groups
    'encoder\.layers\.(\d+)\.self_attn\.in_proj_(weight|bias)' = 'blocks.\1.attn.qkv.\2'
    [leave_out]                         # regular expression = why the network does not need the tensor
    'decoder\..*' = "not part of the encoder"
    [change]                            # regular expression on *our* name = what is done to the numbers, if anything
    'head\.weight' = "transpose"        # a key of `conversion.CHANGES`, or "blocks"

Every tensor must match a pattern and every pattern a tensor; where two patterns match, the upper one decides, and [rename]
comes before [leave_out]. Our names are those of `vitdeploy.models.vit`. Query, key and value may come packed (``attn.qkv``,
as in torch's ``in_proj_weight``) or apart (``attn.q``, ``attn.k``, ``attn.v``). Heads in layers of their own are numbered in
brackets behind our name, and stacked in that order: ``'blocks\.(\d+)\.heads\.(\d+)\.query\.(\w+)' = 'blocks.\1.attn.q.\3[\2]'``;
with the change "blocks" each of them takes its own channels only.

Names can't say everything. `torch.nn.TransformerEncoderLayer` has the same names with ``norm_first=True`` and ``False``, and
with ReLU (its default) and GELU: the network here normalises first, so a model with ``norm_first=False`` loads without
complaint and computes something else. Attention scores are divided by sqrt(d) unless the spec's ``scale`` says otherwise. Set
``mlp`` and ``norm_eps`` (1e-5 in torch) in the spec, and let ``export --against package.file:factory`` compare the outputs with
those of the code.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import msgspec
from torch import Tensor

from vitdeploy import files
from vitdeploy.checkpoints import parts
from vitdeploy.checkpoints.conversion import CHANGES, Converted, State
from vitdeploy.errors import InputError, UsageError, nearest
from vitdeploy.spec import ModelSpec, read_spec
from vitdeploy.tomlfile import read_toml
from vitdeploy.zoo.variants import find

LONGEST_NAME, LONGEST_PATTERN = 200, 500
"""Characters of a tensor's name and of a pattern; patterns are the user's own and may be as slow as they write them."""


class MappingFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the file says.

    Attributes:
        spec: The model: a known variant, a spec file relative to this one, or the spec itself.
        rename: Pattern of their name to our name.
        leave_out: Pattern of their name to the reason.
        change: Pattern of our name to a key of `CHANGES`, or to `parts.BLOCKS`.
    """

    spec: str | ModelSpec
    rename: dict[str, str]
    leave_out: dict[str, str] = {}
    change: dict[str, str] = {}


class Mapped(NamedTuple):
    """What a mapping made of a checkpoint.

    Attributes:
        spec: The model.
        converted: Tensors by our names, and what was left out.
        matched: Pattern to how many tensors it decided.
    """

    spec: ModelSpec
    converted: Converted
    matched: dict[str, int]


class _Pattern(NamedTuple):
    section: str
    text: str
    compiled: re.Pattern[str]
    value: str
    line: int


def load(mapping: Path, state: State) -> Mapped:
    """Apply a mapping file to a state dict.

    Args:
        mapping: The file; see the top of `vitdeploy.checkpoints.mapping`.
        state: Tensors by their names; not changed.

    Raises:
        InputError: VD3001 unreadable; VD3009, tensors that no pattern matches, two tensors of one name, or numbers that
            can't be changed as asked.
        UsageError: VD2002 unknown key; VD2003 a bad pattern, one that matches nothing or an unknown change; VD2007 not TOML.
    """
    given = read_toml(mapping, MappingFile)
    patterns = _patterns(mapping, given)
    spec = _spec(mapping, given)
    matched = {f"[{pattern.section}] {pattern.text}": 0 for pattern in patterns}
    stacks: dict[str, dict[int | None, Tensor]] = {}
    left_out: dict[str, str] = {}
    unknown = []
    for name, tensor in state.items():
        if len(name) > LONGEST_NAME:
            message = f"is given a tensor whose name has {len(name):,} characters, at most {LONGEST_NAME} are read"
            raise InputError("VD3009", message, file=mapping, fix="rename it in the checkpoint")
        pattern = _first(patterns, name, "rename", "leave_out")
        if pattern is None:
            unknown.append(name)
            continue
        matched[f"[{pattern.section}] {pattern.text}"] += 1
        if pattern.section == "leave_out":
            left_out[name] = pattern.value
            continue
        ours, number = parts.split_name(_rename(pattern, name, mapping))
        known = stacks.setdefault(ours, {})
        if number in known or None in known or (number is None and known):
            fix = "take one out, or number what is to be stacked, in brackets behind our name: 'blocks.\\1.attn.q.\\3[\\2]'"
            raise InputError("VD3009", f"gives two tensors the name {ours!r}, the second is {name!r}", file=mapping, fix=fix)
        change = _first(patterns, ours, "change")
        if change is not None:
            matched[f"[{change.section}] {change.text}"] += 1
        known[number] = tensor if change is None else _change(change, ours, tensor, mapping)
    made = {ours: _assemble(ours, known, patterns, spec, mapping) for ours, known in stacks.items()}
    _check_complete(mapping, patterns, matched, unknown)
    return Mapped(spec, Converted({name: made[name].contiguous() for name in made}, left_out, ()), matched)


def _spec(mapping: Path, given: MappingFile) -> ModelSpec:
    if isinstance(given.spec, ModelSpec):
        return given.spec
    if given.spec.endswith((".toml", ".json")):
        return read_spec(mapping.absolute().parent / given.spec)
    try:
        return find(given.spec)
    except UsageError as exc:
        raise UsageError(exc.code, exc.message, file=mapping, fix=exc.fix) from exc


def _patterns(mapping: Path, given: MappingFile) -> list[_Pattern]:
    """All patterns in the order in which they are asked, compiled; what is wrong is named with its line."""
    text, patterns = files.read_text(mapping, strict=True), []
    for section in ("rename", "leave_out", "change"):
        pairs: dict[str, str] = getattr(given, section)
        for pattern, value in pairs.items():
            line = _line(text, section, pattern)
            if len(pattern) > LONGEST_PATTERN:
                raise UsageError("VD2003", f"line {line}: pattern of {len(pattern):,} characters", file=mapping)
            try:
                compiled = re.compile(pattern)
            except (re.error, RecursionError, OverflowError) as exc:
                message = f"line {line}: {pattern!r} is no regular expression: {exc}"
                raise UsageError("VD2003", message, file=mapping, fix="escape a dot as \\. inside single quotes") from exc
            if section == "change" and value not in (*CHANGES, parts.BLOCKS):
                known = ", ".join(repr(change) for change in (*CHANGES, parts.BLOCKS) if change)
                fix = nearest(value, (*CHANGES, parts.BLOCKS)) or f"use one of {known}"
                raise UsageError("VD2003", f"line {line}: there is no change {value!r}", file=mapping, fix=fix)
            patterns.append(_Pattern(section, pattern, compiled, value, line))
    return patterns


def _line(text: str, section: str, key: str) -> int:
    """The line in which ``key`` is set: behind the section's heading, raw or with its backslashes doubled."""
    lines = text.splitlines()
    heading = re.compile(rf"\s*\[\s*{section}\s*\]")
    start = next((n for n, line in enumerate(lines) if heading.match(line)), 0)
    spellings = "|".join(re.escape(word) for word in (key, key.replace("\\", "\\\\")))
    wanted = re.compile(rf"""\s*["']?(?:{spellings})["']?\s*=""")
    return next((n for n in range(start, len(lines)) if wanted.match(lines[n])), start) + 1


def _first(patterns: list[_Pattern], name: str, *sections: str) -> _Pattern | None:
    return next((p for p in patterns if p.section in sections and p.compiled.fullmatch(name)), None)


def _rename(pattern: _Pattern, name: str, mapping: Path) -> str:
    match = pattern.compiled.fullmatch(name)
    assert match is not None
    try:
        return match.expand(pattern.value)
    except (re.error, IndexError) as exc:
        message = f"line {pattern.line}: {pattern.value!r} can't be filled in: {exc}"
        raise UsageError("VD2003", message, file=mapping, fix="\\1 stands for the pattern's first (...)") from exc


def _change(pattern: _Pattern, ours: str, tensor: Tensor, mapping: Path) -> Tensor:
    if pattern.value == "transpose" and tensor.ndim != 2:
        message = f"line {pattern.line}: {ours!r} has the shape {list(tensor.shape)}, only matrices can be transposed"
        raise InputError("VD3009", message, file=mapping)
    if pattern.value == parts.BLOCKS:
        return tensor  # when all parts are there
    try:
        return CHANGES[pattern.value](tensor)
    except (RuntimeError, IndexError, ValueError) as exc:
        message = f"line {pattern.line}: {ours!r} of shape {list(tensor.shape)} does not allow the change {pattern.value!r}"
        raise InputError("VD3009", message, file=mapping) from exc


def _assemble(ours: str, given: dict[int | None, Tensor], patterns: list[_Pattern], spec: ModelSpec, mapping: Path) -> Tensor:
    """One tensor of the parts that were given for it."""
    numbered = {number: part for number, part in given.items() if number is not None}
    whole = parts.join(ours, numbered, mapping) if numbered else given[None]
    change = _first(patterns, ours, "change")
    if change is not None and change.value == parts.BLOCKS:
        whole = parts.lay_blocks(ours, whole, spec, mapping)
    parts.check_heads(ours, whole, spec, mapping)
    return whole


def _check_complete(mapping: Path, patterns: list[_Pattern], matched: dict[str, int], unknown: list[str]) -> None:
    if unknown:
        first = ", ".join(unknown[:5]) + ", ..." * (len(unknown) > 5)
        message = f"matches no pattern for {len(unknown):,} tensors: {first}"
        raise InputError("VD3009", message, file=mapping, fix="add them to [rename], or to [leave_out] with a reason")
    for pattern in patterns:
        if not matched[f"[{pattern.section}] {pattern.text}"]:
            message = f"line {pattern.line}: the pattern {pattern.text!r} of [{pattern.section}] decides no tensor"
            fix = "correct it or take it out; where two patterns match, the upper one decides"
            raise UsageError("VD2003", message, file=mapping, fix=fix)
