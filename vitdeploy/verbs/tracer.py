"""`validate --layers`: every block, and inside it attention and MLP, beside the reference; and the first point that breaks.

An engine is asked for tensors inside a file by naming them as outputs. It then can't fuse what lies around them, so a fault of a
fused kernel may not show here; what the file itself does wrong does.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from vitdeploy import files
from vitdeploy.artifact import Artifact, ArtifactLike
from vitdeploy.backends.base import OpenConfig, Outputs, Runner, run_any
from vitdeploy.backends.child import open_in_child
from vitdeploy.backends.table import REFERENCE, list_engines
from vitdeploy.errors import UsageError, needs
from vitdeploy.measure.layers import Forms, Point
from vitdeploy.onnxfile.augment import augment
from vitdeploy.onnxfile.points import CONTEXT, find_points
from vitdeploy.onnxfile.reader import read
from vitdeploy.onnxfile.summary import list_files
from vitdeploy.progress import Progress, silent
from vitdeploy.proof.breaks import explain_break, find_break
from vitdeploy.report import Report, Row, identify
from vitdeploy.spec import ModelSpec
from vitdeploy.verbs.reference import find_float, has_original, open_other
from vitdeploy.verbs.trial import choose_engines, explain_no_original

BATCH = 4
IMAGES = 16
"""Images that are looked at, at most: a fault of a layer is one for all of them."""
Array = NDArray[Any]


class Tapped(NamedTuple):
    """A model whose inside can be read.

    Attributes:
        runner: It, opened.
        tensors: Point to the runner's output, in the order of the graph.
    """

    runner: Runner
    tensors: dict[str, str]

    def run(self, tensor: Array) -> dict[str, Array]:
        """Every point of any number of images."""
        outputs: Outputs = run_any(self.runner, tensor)
        return {point: outputs[name] for point, name in self.tensors.items()}


def trace(
    candidate: Tapped, reference: Tapped, artifact: Artifact, tensors: Sequence[Array], *, progress: Progress = silent
) -> Report:
    """Compare what is inside an artifact with the reference, on some images.

    Args:
        candidate: The artifact, opened.
        reference: What it is compared with; PyTorch's inside has the paths of its modules.
        artifact: The candidate.
        tensors: Batches as the model takes them.
        progress: Hears of every batch.

    Returns:
        A row a point (see `Point.metrics`), and a note that says which is the first that breaks.

    Raises:
        UsageError: VD2010, the two have no point in common; MachineError: an engine failed.
    """
    precision, engine = artifact.record.precision, str(candidate.runner.settings["backend"])
    equalised = precision.startswith("int8")
    names = [name for name in candidate.tensors if name in reference.tensors and not (equalised and name.endswith(CONTEXT))]
    if not names:
        message = "has no layer that the reference has, by module path or by what it computes"
        raise UsageError("VD2010", message, file=artifact.model, fix="name its FP32 source with --against")
    points = {name: Point(name) for name in names}
    for done, tensor in enumerate(tensors):
        progress(f"layers: {engine}", done, len(tensors))
        expected, got = reference.run(tensor), candidate.run(tensor)
        for name, point in points.items():
            forms = _list_forms(name, expected, artifact.spec)
            point.add(forms[:2] if equalised and name.endswith(".qkv") else forms, got[name])  # values have factors of their own
    progress(f"layers: {engine}", len(tensors), len(tensors))
    rows = tuple(Row(name, point.metrics(), {}) for name, point in points.items())
    broken = find_break(list(points.values()), precision)
    least = min(point.sqnr_db for point in points.values())
    sound = f"No layer breaks: {len(points)} points, the lowest signal to noise is {least:.1f} dB."
    said = sound if broken is None else f"WARNING: {explain_break(broken, precision)}"
    settings = {"artifact": artifact.name, **identify(artifact), "engine": engine, "images": sum(map(len, tensors))}
    compared = str(reference.runner.settings["backend"])
    return Report(title=f"layers in {engine}", reference=compared, rows=rows, settings=settings, notes=(said,))


def trace_all(
    artifact: Artifact, engines: Sequence[str], tensors: Sequence[Array], reference: Inside, *, progress: Progress = silent
) -> tuple[Report, ...]:
    """One report an engine; see `trace`.

    Args:
        artifact: The candidate; of an engine its ONNX file is read.
        engines: Where it is run.
        tensors: Batches as the model takes them.
        reference: What it is compared with.
        progress: Hears of every batch.

    Raises:
        UsageError: VD2010, nothing inside can be read, or nothing compared; as `open_in_child`.
    """
    if artifact.spec.merged:
        message = "merges tokens: what is inside has not the reference's rows"
        raise UsageError("VD2010", message, file=artifact.model, fix="leave out --layers")
    reports = []
    with ExitStack() as stack:
        expected = reference.open(stack)
        for engine in engines:
            folder = stack.enter_context(files.temporary_folder())
            candidate = open_tapped(artifact, engine, folder, reference.config)
            with closing(candidate.runner):
                reports.append(trace(candidate, expected, artifact, tensors, progress=progress))
    return tuple(reports)


class Inside(NamedTuple):
    """What the inside of an artifact is compared with.

    Attributes:
        artifact: Whose.
        engine: `REFERENCE` for the PyTorch original, else where the artifact's ONNX file runs.
        config: How.
    """

    artifact: Artifact
    engine: str
    config: OpenConfig

    def open(self, stack: ExitStack) -> Tapped:
        """It, until the stack ends."""
        if self.engine == REFERENCE:
            tapped = open_original(self.artifact, self.config)
        else:
            tapped = open_tapped(self.artifact, self.engine, stack.enter_context(files.temporary_folder()), self.config)
        stack.enter_context(closing(tapped.runner))
        return tapped


def choose_inside(artifact: Artifact, against: ArtifactLike | None, config: OpenConfig) -> Inside:
    """The model that was named, else the original, else the FP32 file that an artifact was made of.

    Raises:
        UsageError: VD2010, there is none of them, or code was named; InputError: as `Artifact.open`.
    """
    if against is not None:
        if isinstance(against, str) and ":" in against and not Path(against).exists():
            message = f"the inside of the code {against} is not known"
            raise UsageError("VD2010", message, fix="name an artifact or an .onnx with --against, or leave out --layers")
        other = open_other(artifact, against)
        return Inside(other, choose_engines((), other)[0], config)
    if has_original(artifact):
        return Inside(artifact, REFERENCE, config)
    made_of, openers = find_float(artifact), list_engines()
    if made_of is None or not openers:
        message = f"there is nothing to compare layers with: {explain_no_original(artifact)}"
        raise UsageError("VD2010", message, file=artifact.model, fix="name its FP32 source with --against, or leave out --layers")
    return Inside(made_of, openers[0], config)


def open_original(artifact: Artifact, config: OpenConfig) -> Tapped:
    """The PyTorch original, with what its modules give.

    Raises:
        MachineError: VD4001, torch is not installed.
    """
    with needs("export"):
        runner: Any = open_in_child(REFERENCE, artifact, config)
    names = runner.tap()
    return Tapped(runner, {name: name for name in names})


def open_tapped(artifact: Artifact, engine: str, folder: Path, config: OpenConfig) -> Tapped:
    """An ONNX file with its points as outputs.

    Args:
        artifact: Itself is not changed.
        engine: Where it is opened.
        folder: An empty one.
        config: How.

    Raises:
        UsageError: VD2010, it has no ONNX file; as `open_in_child`.
    """
    source = _find_onnx(artifact)
    points = find_points(read(source))
    wanted = augment(source, list(points.values()))
    if wanted.folder is not None:  # the weights that the file points to
        for path in list_files(source):
            target = folder / path.relative_to(source.parent)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    place = folder / "layers.onnx"
    place.write_bytes(wanted.model)
    record = msgspec.structs.replace(
        artifact.record, kind="onnx", entry=place.name, weights=None, original=None, files={}, proof=None
    )
    return Tapped(open_in_child(engine, Artifact(folder, record), config), points)


def _find_onnx(artifact: Artifact) -> Path:
    if artifact.record.kind == "onnx":
        return artifact.model
    name = next((name for name in sorted(artifact.record.files) if name.endswith(".onnx")), None)
    if name is None:
        message = "is an engine without its ONNX file: nothing inside it can be read"
        raise UsageError("VD2010", message, file=artifact.folder, fix="give what it was compiled from")
    return artifact.folder / name


def _list_forms(name: str, expected: dict[str, Array], spec: ModelSpec) -> Forms:
    """The forms that a file may hold a point's values in: as they are, scaled into the stream, and turned."""
    values = expected[name]
    if name.endswith(".attn.qkv"):
        return _list_head_forms(values, spec)
    if name.endswith(CONTEXT):
        return [[values, _turn_heads(values, spec.head_size, 0)]]
    forms = [values, *([expected[f"{name}.scaled"]] if f"{name}.scaled" in expected else [])]
    if name.endswith((".fc1",)) or not name.startswith("blocks."):
        return [[each.reshape(len(each), -1, each.shape[-1]) for each in forms]]
    return [[*forms, *(_turn_stream(form) for form in forms)]]


def _list_head_forms(packed: Array, spec: ModelSpec) -> Forms:
    scale = spec.head_size**-0.5 if spec.scale is None else spec.scale
    query, key, value = np.split(packed, 3, -1)
    forms = [[query, scale * query], [key], [value, _turn_heads(value, spec.head_size, 0)]]
    forms[0] += [_turn_heads(form, spec.head_size, 1) for form in forms[0]]
    forms[1] += [_turn_heads(key, spec.head_size, 1)]
    return forms


def _turn_heads(values: Array, size: int, seed: int) -> Array:
    with needs("quantize"):
        from vitdeploy.graph.exact.rotate import make_head_rotation

    heads = values.reshape(*values.shape[:-1], -1, size)
    return np.asarray((heads @ make_head_rotation(size, seed)).reshape(values.shape))


def _turn_stream(values: Array) -> Array:
    with needs("quantize"):
        from vitdeploy.graph.exact.rotate import make_rotation

    return np.asarray(values @ make_rotation(values.shape[-1]))


def cut_batches(tensors: Iterable[Array]) -> list[Array]:
    """The first `IMAGES` images, in batches of `BATCH`."""
    kept: list[Array] = []
    room = IMAGES
    for tensor in tensors:
        part = tensor[:room]
        kept += [part[start : start + BATCH] for start in range(0, len(part), BATCH)]
        room -= len(part)
        if room <= 0:
            break
    return kept
