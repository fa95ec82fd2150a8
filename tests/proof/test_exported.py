"""The proof of an export: every output, at every batch size, in every company, against PyTorch; to the limit, and no further."""

from __future__ import annotations

from types import MappingProxyType

import numpy as np
import pytest
import torch
from torch import nn

from tests.conftest import TINY
from vitdeploy.artifact import Artifact, Record
from vitdeploy.data import images, synthetic
from vitdeploy.errors import MachineError
from vitdeploy.proof import exported
from vitdeploy.proof.exported import prove
from vitdeploy.proof.thresholds import ALMOST_CONSTANT, TOP_K
from vitdeploy.recipe import ExportConfig

TOLERANCE = 1e-3


class Network(nn.Module):
    """Logits and a pooled vector by fixed matrices."""

    def __init__(self, size: float = 1.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.logits, self.pooled = (size * torch.randn(16 * 24 * 3, width, generator=generator) for width in (12, 5))

    def outputs(self, batch):
        return {"logits": batch.flatten(1) @ self.logits, "pooled": batch.flatten(1) @ self.pooled}

    def forward(self, batch):
        return self.outputs(batch)["logits"]


class Engine:
    """Runs the network in float64 and then spoils what comes out."""

    batch, settings = None, MappingProxyType({})

    def __init__(self, network, spoil):
        self.network, self.spoil, self.sizes, self.closed = network, spoil, [], False

    def run(self, tensor):
        self.sizes.append(len(tensor))
        pixels = tensor.reshape(len(tensor), -1).astype(np.float64)
        rows = {name: pixels @ getattr(self.network, name).numpy().astype(np.float64) for name in ("logits", "pooled")}
        self.spoil(rows)
        return {name: values.astype(np.float32) for name, values in rows.items()}

    def close(self):
        self.closed = True


@pytest.fixture
def tried(monkeypatch, tmp_path):
    """Prove an engine that spoils its rows; the proof, the golden batch and the engine."""

    def run(spoil=lambda rows: None, network=None, **settings):
        network = network or Network()
        engine = Engine(network, spoil)
        monkeypatch.setattr(exported, "open_in_child", lambda *_: engine)
        artifact = Artifact(tmp_path, Record(entry="model.onnx", spec=TINY, made_by="export"))
        config = ExportConfig(**{"prove_batches": (3, 1, 9), "tolerance": TOLERANCE} | settings)
        return *prove(network, artifact, config), engine

    return run


def spread(count: int = 9, name: str = "logits") -> float:
    """Standard deviation of what PyTorch puts out for the first images."""
    tensor = images.to_tensor(synthetic.pixels(count, TINY.input), TINY.input)
    return float((tensor.reshape(count, -1) @ getattr(Network(), name).numpy()).std())


def off(share: float, *, size: int | None = None, name: str = "logits"):
    """One number is off by a share of the tolerance, in batches of one size or in all."""

    def spoil(rows):
        if size in (None, len(rows[name])):
            rows[name][0, 3] += share * TOLERANCE * spread(name=name)

    return spoil


def test_a_right_file_passes_at_every_batch_size(tried):
    proof, golden, engine = tried()
    assert (proof.batches, proof.images) == ((1, 3, 9), 9)
    assert sorted(engine.sizes) == [1] * 9 + [3, 9]
    assert max(proof.difference, proof.company) < 0.01 * TOLERANCE * spread()
    assert engine.closed
    np.testing.assert_array_equal(golden.pixels, synthetic.pixels(4, TINY.input))
    expected = images.to_tensor(golden.pixels, TINY.input).reshape(4, -1) @ Network().logits.numpy()
    np.testing.assert_allclose(golden.output, expected, atol=1e-4 * spread())
    assert golden.engine == "onnxruntime"


def test_differences_are_recorded_in_the_outputs_unit_and_as_a_share(tried):
    proof, *_ = tried(off(0.5))
    assert proof.difference == pytest.approx(0.5 * TOLERANCE * spread(), rel=0.02)
    assert proof.relative == pytest.approx(0.5 * TOLERANCE, rel=0.02)


@pytest.mark.parametrize("share", [-0.9, 0.9])
def test_just_within_the_tolerance_passes(tried, share):
    tried(off(share))


@pytest.mark.parametrize("share", [-1.1, 1.1])
@pytest.mark.parametrize("size", [1, 3, 9])
def test_just_beyond_it_is_refused_at_each_batch_size(tried, share, size):
    with pytest.raises(MachineError, match=rf"VD4003.*'logits' at batch {size} differs from PyTorch by"):
        tried(off(share, size=size))


def test_the_same_image_in_other_company_must_be_the_same(tried):
    """Both within the tolerance of PyTorch, on either side of it; together too far apart."""

    def leaning(share):
        def spoil(rows):
            rows["logits"][0, 3] += (share if len(rows["logits"]) > 1 else -share) * TOLERANCE * spread()

        return spoil

    proof, *_ = tried(leaning(0.4))
    assert proof.company == pytest.approx(0.8 * TOLERANCE * spread(), rel=0.02)
    with pytest.raises(MachineError, match=r"at batch 3 differs from the same image in other company by"):
        tried(leaning(0.7))


def test_of_a_fixed_batch_every_place_must_give_the_same(tried):
    def by_place(share):
        def spoil(rows):
            rows["logits"][:, 3] += share * TOLERANCE * spread(4) * np.array([1, -1, 1, -1])

        return spoil

    proof, _, engine = tried(by_place(0.4), batch=4)
    assert (proof.batches, proof.images, engine.sizes) == ((4,), 4, [4, 4])
    assert proof.company == pytest.approx(0.8 * TOLERANCE * spread(4), rel=0.02)
    with pytest.raises(MachineError, match="in other company"):
        tried(by_place(0.7), batch=4)


def test_a_fixed_batch_of_one_is_run(tried):
    _, _, engine = tried(batch=1)
    assert engine.sizes[:2] == [1, 1]


def test_outputs_beside_the_main_one_are_proven_too(tried):
    tried(off(0.9, name="pooled"), outputs=("pooled",))
    with pytest.raises(MachineError, match="output 'pooled' at batch 1 differs"):
        tried(off(1.1, name="pooled"), outputs=("pooled",))


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_no_number_is_refused(tried, wrong):
    def spoil(rows):
        rows["logits"][-1, 3] = wrong

    with pytest.raises(MachineError, match="VD4003"):
        tried(spoil)


def test_another_shape_is_refused(tried):
    def spoil(rows):
        rows["logits"] = rows["logits"][:, :1]  # would be broadcast

    with pytest.raises(MachineError, match="by inf"):
        tried(spoil)


def test_outputs_that_are_all_the_same_have_a_limit_of_their_own(tried):
    def spoil_by(amount):
        def spoil(rows):
            rows["logits"][0, 3] += amount

        return spoil

    proof, *_ = tried(spoil_by(0.9 * ALMOST_CONSTANT), Network(0.0))
    assert proof.relative == proof.difference == pytest.approx(0.9 * ALMOST_CONSTANT)
    with pytest.raises(MachineError, match="differs from PyTorch"):
        tried(spoil_by(1.1 * ALMOST_CONSTANT), Network(0.0))


def best(logits, k=2):
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    places = np.argsort(-shares, 1)[:, :k]
    return np.take_along_axis(shares, places, 1), places


@pytest.mark.parametrize(
    ("change", "right"),
    [
        (lambda shares, places: (shares, places), True),
        (lambda shares, places: (shares + 0.9 * TOP_K, places), True),
        (lambda shares, places: (shares + 1.1 * TOP_K, places), False),
        (lambda shares, places: (shares - 1.1 * TOP_K, places), False),
        (lambda shares, places: (shares[:, ::-1], places[:, ::-1]), False),
        (lambda shares, places: (shares, places[:, ::-1]), False),
        (lambda shares, places: (shares[:, :1], places[:, :1]), False),
    ],
)
def test_the_best_classes_are_those_of_the_files_own_logits(tried, change, right):
    def spoil(rows):
        shares, places = change(*best(0.01 * rows["logits"]))
        rows["logits"] = 0.01 * rows["logits"]
        rows |= {"top_k_probabilities": shares, "top_k_indices": places}

    def run():
        tried(spoil, Shrunk(), top_k=2)

    if right:
        run()
        return
    with pytest.raises(MachineError, match="top_k_probabilities differ from the softmax of the logits"):
        run()


class Shrunk(Network):
    """Logits that are close to each other: no class has all of the probability."""

    def forward(self, batch):
        return 0.01 * super().forward(batch)
