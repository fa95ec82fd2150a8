"""What `build` does with a model that is no recipe: the recipe of everything that can be had here."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from vitdeploy.backends.table import TABLE, find_engine, find_target, is_installed, list_compilers, require_installed
from vitdeploy.errors import UsageError
from vitdeploy.recipe import BenchConfig, CompileConfig, ModelConfig, QuantizeConfig, Recipe, ValidateConfig
from vitdeploy.verbs.doctor import examine
from vitdeploy.words import MadePrecision


def plan(
    model: ModelConfig,
    validate: ValidateConfig,
    *,
    precision: MadePrecision | None = None,
    backends: Sequence[str] = (),
) -> Recipe:
    """A whole job for a model: quantized and compiled for each engine, validated, measured.

    Args:
        model: Which model.
        validate: The images; they set the ranges too.
        precision: What to quantize to, ``fp32`` for nothing; None is ``int8`` where there are images, else ``fp32``.
        backends: Engines; none means all that are installed and run here.

    Raises:
        UsageError: VD2009, no such engine, or it makes none; VD2010, ``int8`` without images; VD2011, no engine here, or one
            that was named, reads this precision.
        MachineError: VD4001, an engine that was named is not installed.
    """
    precision = precision or ("int8" if validate.data else "fp32")
    for name in backends:
        require_installed(name)
    engines = tuple(dict.fromkeys(backends)) or _list_here(precision)
    quantize: tuple[QuantizeConfig, ...] = ()
    if precision != "fp32":
        images = QuantizeConfig(precision=precision, calibration=validate.data, split=validate.split, max_bad=validate.max_bad)
        targets = dict.fromkeys(find_engine(name).quantize_target for name in engines)
        quantize = tuple(msgspec.structs.replace(images, target=target) for target in targets)
    measured = tuple(backends) if not any(find_engine(name).compiled_only for name in engines) else ()
    return Recipe(
        model=model,
        quantize=quantize or None,
        compile=tuple(CompileConfig(backend=name) for name in engines) or None,
        validate=msgspec.structs.replace(validate, backends=measured),
        bench=BenchConfig(backends=measured),
    )


def _list_here(precision: MadePrecision) -> tuple[str, ...]:
    """Engines that are installed, run on this machine, and read files of a precision."""
    names = [name for name in list_compilers() if is_installed(name)]
    on_devices = [name for name in names if TABLE[name].compiled_only]  # the others run on any CPU
    absent = examine(on_devices).unusable if on_devices else ()
    here = [name for name in names if name not in absent]
    reading = [n for n in here if precision == "fp32" or precision in find_target(TABLE[n].quantize_target).precisions]
    if here and not reading:  # without any engine there is not even an export: its own error says what to install
        message = f"no engine here ({', '.join(here)}) reads {precision}"
        raise UsageError("VD2011", message, fix="use another --precision, or name the engine with --backend")
    return tuple(reading)
