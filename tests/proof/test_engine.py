"""Promises of the audit: a right engine passes, and every way of being wrong is found and said."""

import contextlib
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from vitdeploy.artifact import Artifact
from vitdeploy.backends.onnxruntime.backend import OnnxRuntime
from vitdeploy.data import images
from vitdeploy.errors import MachineError
from vitdeploy.proof import engine as module
from vitdeploy.proof import golden
from vitdeploy.proof.census import Plan
from vitdeploy.proof.engine import arithmetic, audit, distance
from vitdeploy.proof.thresholds import LIMITS
from vitdeploy.recipe import CompileConfig


@pytest.fixture(scope="module")
def batch(tiny_artifact):
    return golden.make(tiny_artifact)


class Wrong:
    """An engine that runs the file and then spoils what comes out."""

    def __init__(self, spoil):
        self.spoil = spoil

    def open(self, artifact, config):
        runner = OnnxRuntime().open(artifact, config)
        right = runner.run
        runner.run = lambda tensor: {name: self.spoil(rows.copy()) for name, rows in right(tensor).items()}
        runner.kernels = lambda: ()
        return runner


def leaking(rows):
    """Rows of a larger batch take something from their neighbours."""
    return rows + 0.5 * np.roll(rows, 1, 0) * (np.arange(len(rows)) > 1)[:, None]


def jittery(rows):
    return rows + 0.5 * np.arange(len(rows))[:, None] * rows.std()


def holed(rows):
    rows[0, 0] = np.nan
    return rows


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_right_engine_passes(tiny_artifact, batch, monkeypatch, engine):
    with as_kind(monkeypatch, engine):
        found = audit(tiny_artifact, batch, Plan())
    assert not found.wrong
    assert max(found.audit.distances.values()) < LIMITS["fp32"] / 10
    assert found.audit.settings["backend"] == engine


def as_kind(monkeypatch, engine, instead=None):
    """Audit an ONNX artifact as if it were an engine of that name."""
    from vitdeploy.backends.child import open_in_child

    def opened(kind, *given):
        return open_in_child(engine, *given) if instead is None else instead.open(*given)

    monkeypatch.setattr(module, "open_in_child", opened)
    return contextlib.nullcontext()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda rows: rows[:, ::-1], "at batch 1"),
        (lambda rows: rows * 1.01, "at batch 1"),
        (holed, "at batch 1"),
        (leaking, "at batch 4"),
        (jittery, "at batch 4"),
        (lambda rows: rows[:, :-1], "at batch 1"),
    ],
)
def test_every_way_of_being_wrong_is_said(tiny_artifact, batch, monkeypatch, spoil, said):
    as_kind(monkeypatch, "onnxruntime", Wrong(spoil))
    assert said in audit(tiny_artifact, batch, Plan()).wrong


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize(("share", "right"), [(0.9, True), (1.1, False)])
def test_the_limit_is_met_at_every_batch_size(tiny_artifact, batch, monkeypatch, size, share, right):
    """All rows of batches of one size are off, by a share of the limit."""

    def spoil(rows):
        around = np.linalg.norm(batch.output - batch.output.mean()) / np.sqrt(batch.output.size)
        return rows + share * LIMITS["fp32"] * around * (len(rows) == size)

    as_kind(monkeypatch, "onnxruntime", Wrong(spoil))
    found = audit(tiny_artifact, batch, Plan())
    assert found.audit.distances[f"at batch {size}"] == pytest.approx(share * LIMITS["fp32"], rel=0.01)
    assert (found.audit.limit, found.audit.golden) == (LIMITS["fp32"], "onnxruntime")
    assert found.wrong.startswith("" if right else f"at batch {size}, outputs are 0.0011 apart, 0.001 is the limit")
    assert bool(found.wrong) != right


def test_an_engine_is_run_at_each_batch_size_that_it_was_built_for(tiny_artifact):
    def sizes(batch=None, usual=2, **settings):
        record = msgspec.structs.replace(tiny_artifact.record, config=CompileConfig(backend="tensorrt", usual_batch=usual))
        runner = SimpleNamespace(batch=batch, settings=settings)
        return module._sizes(Artifact(tiny_artifact.folder, record), runner, 4)

    assert sizes() == (1, 4)
    assert sizes(batch=3) == (3,)
    assert sizes(largest_batch=8) == (1, 2, 8)
    assert sizes(largest_batch=8, usual=8) == (1, 8)


def test_more_rows_than_golden_images_are_compared_with_their_own(tiny_artifact, batch):
    """For an engine of batches of 6 the four images go round; with batches of 3 every image has been in one."""

    class Runner:
        def __init__(self, size):
            self.batch, self.settings, self.seen = size, {}, []

        def run(self, tensor):
            self.seen.append(len(tensor))
            places = [int(np.abs(expected - row).max((1, 2, 3)).argmin()) for row in tensor]
            return {"logits": batch.output[places]}

    expected = images.to_tensor(batch.pixels, tiny_artifact.spec.input)
    for size, calls in ((6, [6, 6]), (3, [3, 3, 3]), (4, [4, 4])):
        runner = Runner(size)
        distances = module._distances(tiny_artifact, runner, batch)
        assert distances == {f"at batch {size}": 0, "for the same image in one batch": 0}
        assert runner.seen == calls


def test_rows_of_the_same_image_must_be_the_same(tiny_artifact, batch, monkeypatch):
    """Too little to be seen against the golden outputs, too much for equal rows."""

    def shaky(rows):
        return rows + (np.arange(len(rows)) % 2)[:, None] * 0.5 * LIMITS["fp32"] * batch.output.std()

    as_kind(monkeypatch, "onnxruntime", Wrong(shaky))
    assert "the same image" in audit(tiny_artifact, batch, Plan()).wrong


def test_a_float_engine_for_an_int8_plan_is_wrong(tiny_artifact, batch, monkeypatch):
    as_kind(monkeypatch, "onnxruntime")
    found = audit(tiny_artifact, batch, Plan(gemms=("blocks.0.mlp.fc1/MatMul",)))
    assert list(found.audit.census.missing) == ["blocks.0.mlp.fc1/MatMul"]
    assert "blocks.0.mlp.fc1/MatMul" in found.wrong


def test_what_others_planned_is_a_remark_with_names(tiny_artifact, batch, monkeypatch):
    as_kind(monkeypatch, "onnxruntime")
    found = audit(tiny_artifact, batch, Plan(gemms=("blocks.0.mlp.fc1/MatMul",), ours=False))
    assert not found.wrong
    assert found.audit.distances
    assert list(found.audit.census.missing) == ["blocks.0.mlp.fc1/MatMul"]
    (note,) = found.notes
    assert note.startswith("the file was made elsewhere: onnxruntime: 1 of 1 layers planned for 8 bits do not run in them")
    assert "blocks.0.mlp.fc1/MatMul" in note


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "fp8", "int4-weight-only"])
def test_the_limit_is_that_of_the_file_where_the_engine_computes_finer(tiny_artifact, batch, monkeypatch, precision):
    as_kind(monkeypatch, "openvino")  # which says fp32 of an FP16 file that it computes in fp32
    artifact = Artifact(tiny_artifact.folder, msgspec.structs.replace(tiny_artifact.record, precision=precision))
    limit = {"fp32": 1e-3, "fp16": 3e-2, "int8": 2e-1, "fp8": 3e-1, "int4-weight-only": 2e-1}[precision]
    assert audit(artifact, batch, Plan()).audit.limit == limit


@pytest.mark.parametrize(
    ("precision", "coarsest"),
    [("fp32", "fp32"), ("bf16", "bf16"), ("int8", "int8"), ("int8+bf16", "int8"), ("int8-dynamic", "int8"), ("fp16", "fp16")],
)
def test_the_coarsest_arithmetic_sets_the_limit(precision, coarsest):
    assert arithmetic(precision) == coarsest


def test_distance():
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(4, 50)).astype(np.float32)
    assert distance(rows, rows) == 0
    assert distance(rows + 5, rows + 5) == 0
    assert distance(generator.normal(size=(4, 50)).astype(np.float32), rows) > 1
    assert distance(rows[:2], rows) == float("inf")
    assert distance(1.001 * rows, rows) == pytest.approx(1e-3, rel=0.1)


class Silent(Wrong):
    """An engine whose inspector fails, by the name of another."""

    def __init__(self, name):
        super().__init__(lambda rows: rows)
        self.name = name

    def open(self, artifact, config):
        def fail():
            raise MachineError("VD4004", "the inspector gives nothing")

        runner = super().open(artifact, config)
        runner.settings = runner.settings | {"backend": self.name}
        runner.kernels = fail
        return runner


def test_only_an_engine_that_is_built_on_its_device_may_say_nothing_of_its_kernels(tiny_artifact, batch, monkeypatch):
    as_kind(monkeypatch, "", Silent("tensorrt"))
    found = audit(tiny_artifact, batch, Plan())
    assert (found.wrong, found.audit.census) == ("", None)
    assert found.notes == ("the engine does not tell what it runs: the inspector gives nothing",)
    as_kind(monkeypatch, "", Silent("onnxruntime"))
    with pytest.raises(MachineError, match="the inspector gives nothing"):
        audit(tiny_artifact, batch, Plan())
