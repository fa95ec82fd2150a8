"""What was typed on the command line, as the settings of a verb. Nothing heavy is imported before it is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vitdeploy.errors import UsageError

if TYPE_CHECKING:
    from vitdeploy.artifact import Artifact
    from vitdeploy.proof.rules import Thresholds
    from vitdeploy.recipe import ModelConfig, Recipe
    from vitdeploy.words import Task

T = TypeVar("T")


def read_settings(kind: type[T], **values: object) -> T:
    """A settings struct, checked; None means its own default."""
    import msgspec

    try:
        return msgspec.convert({name: value for name, value in values.items() if value is not None}, kind)
    except msgspec.ValidationError as exc:
        raise UsageError("VD2003", str(exc).replace("`$.", "`--")) from exc


def choose_model(model: str | None, module: str | None, **more: object) -> ModelConfig:
    """The model that was named, or the module."""
    import vitdeploy as vd

    if (model is None) == (module is None):
        raise UsageError("VD2010", "give MODEL or --module, one of them", fix="run: vitdeploy export --help")
    return read_settings(vd.ModelConfig, source=model or module, module=module is not None, **more)


def parse_image_size(text: str | None) -> tuple[int, int] | None:
    """``224`` or ``224x320`` as height and width."""
    if text is None:
        return None
    sides = [parse_number(side, "image-size") for side in text.lower().split("x")]
    if len(sides) > 2 or min(sides) < 1:
        raise UsageError("VD2003", f"--image-size is {text!r}", fix="use N or HxW, such as 224 or 224x320")
    return sides[0], sides[-1]


def parse_amendments(
    mean: str | None, std: str | None, resize: str | None, labels: str | None, **more: object
) -> dict[str, object]:
    """What was said of a model's input and its classes, as fields of `vitdeploy.amendments.Amendments`."""
    listed = labels is not None and "," in labels and not Path(labels).exists()
    return {
        "mean": parse_floats(mean, "mean"),
        "std": parse_floats(std, "std"),
        "resize": int(resize) if resize is not None and resize.isdecimal() else resize,
        "labels": [name.strip() for name in labels.split(",")] if labels is not None and listed else labels,
        **more,
    }


def parse_floats(text: str | None, option: str) -> list[float] | None:
    """Numbers with commas between them."""
    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        message = f"--{option}: {text!r} is no list of numbers"
        raise UsageError("VD2003", message, fix=f"use --{option} 0.5, or --{option} 0.485,0.456,0.406") from None


def parse_number(text: str, option: str) -> int:
    """Digits as a number; an option's name for the message."""
    try:
        return int(text)
    except ValueError:
        raise UsageError("VD2003", f"--{option}: {text!r} is not a whole number", fix="use digits") from None


def parse_numbers(given: Sequence[str] | None, option: str) -> list[int] | None:
    """All numbers of a repeated option, each of which may be a comma list; None where it was not given."""
    return [parse_number(number, option) for part in given for number in part.split(",")] if given else None


def choose_recipe(name: str, given: Mapping[str, Any], module: str | None = None) -> Recipe:
    """The recipe that was named, or one for the model that was named.

    Args:
        name: A recipe's file, or a model.
        given: Options by name; None, or nothing, where one was not given.
        module: The code that a recipe may import and run.
    """
    from vitdeploy.recipe import ModelConfig, ValidateConfig

    path = Path(name)
    if path.suffix == ".toml" and not path.is_dir() and not is_spec(path):
        if options := [f"--{key}" for key, value in given.items() if value]:
            fix = "write them into the recipe"
            raise UsageError(
                "VD2010", f"is a recipe, complete in itself, but {', '.join(options)} was given too", file=path, fix=fix
            )
        from vitdeploy.backends.targets import settle_recipe
        from vitdeploy.verbs.permission import load_permitted

        return settle_recipe(load_permitted(path, module), path)
    if module is not None:
        fix = "write a recipe whose [model] says module = true, or run: vitdeploy export --help"
        raise UsageError("VD2010", "--module names the code of a recipe, and no recipe was given", fix=fix)
    from vitdeploy.verbs.planner import plan

    model = read_settings(ModelConfig, source=name, weights=given["weights"])
    validate = read_settings(ValidateConfig, **{key: given[key] for key in ("data", "split", "limit")})
    return plan(model, validate, precision=given["precision"], backends=given["backend"] or ())


def is_spec(path: Path) -> bool:
    """Whether a TOML file describes a model. A recipe names one in its table [model]; unreadable files count as recipes."""
    import msgspec

    from vitdeploy import files

    try:
        table = msgspec.toml.decode(files.read_bytes(path, files.LARGEST_TEXT))
    except (OSError, msgspec.DecodeError, ValueError):
        return False
    return "name" in table and "model" not in table


def open_source(path: Path, contract: Path | None = None, output: str | None = None, task: Task | None = None) -> Artifact:
    """An artifact, or an ONNX file with what was given for it: its contract, main output and task."""
    import vitdeploy as vd

    if contract is None:
        if given := [f"--{name}" for name, value in (("output", output), ("task", task)) if value is not None]:
            fix = "give --contract too, or leave it out"
            raise UsageError("VD2010", f"{given[0]} is for an .onnx made elsewhere", file=path, fix=fix)
        return vd.Artifact.open(path)
    from vitdeploy.verbs.importer import Outputs, open_foreign

    return open_foreign(path, contract, Outputs(output, task))


def choose_thresholds(path: Path | None, given: Mapping[str, str | None]) -> Thresholds | None:
    """Thresholds of a file, with those of the command line in their place; None where nothing is asked for."""
    import msgspec

    from vitdeploy.proof.rules import Thresholds
    from vitdeploy.verbs.gatekeeper import read_thresholds

    asked = {name: limit for name, limit in given.items() if limit is not None}
    if path is None:
        return msgspec.convert(asked, Thresholds) if asked else None
    return msgspec.structs.replace(read_thresholds(path), **asked)
