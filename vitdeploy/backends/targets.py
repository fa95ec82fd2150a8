"""What `quantize` and `compile` may be asked for, as far as engines tell: refused before any work."""

from __future__ import annotations

from pathlib import Path

import msgspec

from vitdeploy.artifact import Artifact
from vitdeploy.backends.table import (
    PROVER,
    REFERENCE,
    TABLE,
    find_engine,
    find_named,
    find_target,
    list_compilers,
    list_targets,
)
from vitdeploy.errors import UsageError
from vitdeploy.recipe import CompileConfig, QuantizeConfig, Recipe
from vitdeploy.words import PORTABLE


def settle_target(config: QuantizeConfig) -> QuantizeConfig:
    """The same settings with their target, if it reads what they ask for.

    Raises:
        UsageError: VD2009, there is no such target; VD2011, it has no form of this precision, or no such setting.
    """
    name = config.target or PROVER
    target, precision = find_target(name), config.precision
    if precision not in target.precisions:
        fix = f"use --backend {' or '.join(each for each in list_targets() if precision in find_target(each).precisions)}"
        raise UsageError("VD2011", f"{precision} has no form that {name!r} reads", fix=fix)
    if config.attention and target.find_heads(precision) is None:
        message = f"{name!r} does not read {precision} inside attention"
        raise UsageError("VD2011", message, fix="leave attention out")
    if config.keep_fp32 and precision != "fp16" and not target.half:
        raise UsageError("VD2011", "keep_fp32 is for fp16", fix="leave it out")
    return msgspec.structs.replace(config, target=name)


def require_compiler(config: CompileConfig) -> None:
    """Refuse an engine that compiles nothing.

    Raises:
        UsageError: VD2009, there is no such backend, or it makes no engines.
    """
    if not find_engine(config.backend).compiles:
        fix = f"choose from: {', '.join(list_compilers())}"
        raise UsageError("VD2009", f"the backend {config.backend!r} makes no engines", fix=fix)


def write_command(artifact: Artifact, config: CompileConfig, out: Path) -> list[str]:
    """The command line of an engine's own builder for what `compile` would build; nothing is run.

    Args:
        artifact: An ONNX artifact.
        config: How.
        out: Folder of the engine.

    Raises:
        UsageError: VD2009, no such backend; VD2011, its engine has no such program, or that no such setting.
    """
    row = find_engine(config.backend)
    if not row.command:
        others = " or ".join(name for name, other in TABLE.items() if other.command)
        raise UsageError("VD2011", f"the backend {row.name!r} has no builder with a command line", fix=f"use --backend {others}")
    command: list[str] = find_named(row.command)(artifact, config, out)
    return command


def explain_misfit(name: str, artifact: Artifact) -> str:
    """What an 8-bit file that was made for another engine comes to in this one; "" for a file that fits."""
    made_for, precision = artifact.engine, artifact.record.precision
    fits = made_for in (None, name, TABLE[name].quantize_target) or name == REFERENCE
    if fits or artifact.record.kind != "onnx" or not precision.startswith(("int8", "fp8")):
        return ""
    return f"its {precision} was made for {made_for}: {name} may run layers in float, and nothing is proven of it there"


def _fit_targets(recipe: Recipe) -> Recipe:
    """The same recipe, where it compiles for one engine, with that engine's target where `quantize` names none.

    Raises:
        UsageError: VD2011, nothing that is quantized is for that engine.
    """
    engines = [TABLE[config.backend] for config in recipe.compilations.values()]
    if len(engines) != 1 or recipe.quantize is None:
        return recipe
    name, target = engines[0].name, engines[0].quantize_target
    quantize = recipe.map_quantize(lambda config: msgspec.structs.replace(config, target=config.target or target))
    recipe = msgspec.structs.replace(recipe, quantize=quantize)
    targets = [config.target for config in recipe.quantizations.values()]
    if not {target, PORTABLE}.intersection(targets):
        message = f"{name!r} does not compile what [quantize] makes for {', '.join(map(repr, targets))}"
        raise UsageError("VD2011", message, fix=f'write target = "{target}" into [quantize]')
    return recipe


def settle_recipe(recipe: Recipe, file: Path | None = None) -> Recipe:
    """The same recipe with its target, if there are such engines and they have such settings.

    Args:
        recipe: Any. Where it compiles and names no target, the target is what that engine reads.
        file: Where it was read from, for messages.

    Raises:
        UsageError: VD2009, VD2010, VD2011; names the section.
    """
    section = "compile"
    try:
        for config in recipe.compilations.values():
            require_compiler(config)
        _refuse_twice(recipe.compile, [config.backend for config in recipe.compilations.values()])
        recipe = _fit_targets(recipe)
        section = "quantize"
        quantize = recipe.map_quantize(settle_target)
        recipe = msgspec.structs.replace(recipe, quantize=quantize)
        _refuse_twice(quantize, [str(config.target) for config in recipe.quantizations.values()])
        for section in ("validate", "bench"):
            for name in getattr(getattr(recipe, section), "backends", ()):
                find_engine(name)
    except UsageError as exc:
        raise UsageError(exc.code, f"[{section}]: {exc.message}", file=file, fix=exc.fix) from exc
    return recipe


def _refuse_twice(section: object, names: list[str]) -> None:
    """One folder an engine: what is named twice would be written over."""
    if isinstance(section, tuple) and len(names) < len(section):
        raise UsageError("VD2010", f"{len(section)} ways for {len(names)} engines: one is named twice", fix="name each once")
