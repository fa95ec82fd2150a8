"""Fixtures that several folders of tests share."""

import gc
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pytest
from filelock import FileLock

from vitdeploy.artifact import Artifact, Record
from vitdeploy.data import synthetic
from vitdeploy.proof import worth
from vitdeploy.recipe import BenchConfig, ExportConfig, ModelConfig
from vitdeploy.spec import InputContract, ModelSpec
from vitdeploy.verbs import compiler
from vitdeploy.verbs.packer import PackConfig, Packed, pack
from vitdeploy.verbs.signer import keygen

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job: tests that send Ctrl-C would wait for ever
    signal.signal(signal.SIGINT, signal.default_int_handler)


def flush_nothing(descriptor: int) -> None:
    """In the place of `os.fsync`: nobody pulls a test's plug. What is flushed, and before what, is still told by tests."""
    os.fstat(descriptor)  # a closed one is an error


os.fsync = flush_nothing

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported: every worker has one core
    os.environ.setdefault("OMP_NUM_THREADS", "1")

TINY = ModelSpec(
    name="tiny",
    input=InputContract(height=16, width=24, channels=3, resize="stretch"),
    patch=(8, 8),
    width=32,
    depth=2,
    heads=2,
    classes=12,
)


SHARED = {
    "tiny": (TINY, ExportConfig(prove_batches=(1, 3))),
    "static": (TINY, ExportConfig(batch=4)),
    "headless": (msgspec.structs.replace(TINY, name="headless", head="none", classes=0), ExportConfig(prove_batches=(1, 3))),
    "embedding": (
        msgspec.structs.replace(TINY, name="embedding", head="projection", head_bias=False),
        ExportConfig(prove_batches=(1, 3)),
    ),
    "bytes": (TINY, ExportConfig(input="uint8-nhwc", top_k=2, prove_batches=(1, 3))),
}
"""The artifacts that many tests read, by name. Nothing may change them."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Mark as slow what `sampled` leaves out of fast runs, before anything is deselected."""
    counts: Counter[str] = Counter()
    for item in items:
        sampled = item.get_closest_marker("sampled")
        if sampled is None:
            continue
        name = item.nodeid.split("[")[0]
        if counts[name] % sampled.args[0]:
            item.add_marker(pytest.mark.slow)
        counts[name] += 1


def pytest_collection_finish() -> None:
    """What is imported by now stays to the end: the garbage collector need not walk through it in every export."""
    gc.collect()
    gc.freeze()


def write_artifact(folder: Path, spec: ModelSpec, config: ExportConfig | None = None) -> Artifact:
    """A tiny artifact with random weights, three times as large as usual so that classes differ clearly."""
    import torch
    from safetensors.torch import save_file

    from vitdeploy.models.vit import build
    from vitdeploy.verbs.exporter import export

    model = build(spec)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    folder.parent.mkdir(parents=True, exist_ok=True)
    source, weights = folder.parent / "spec.json", folder.parent / "original.safetensors"
    source.write_bytes(msgspec.json.encode(spec))
    save_file(model.state_dict(), weights)
    return export(ModelConfig(source=str(source), weights=str(weights)), config or ExportConfig(prove_batches=(1, 3)), folder)


def shared_artifact(name: str, shelf: Path) -> Artifact:
    """Taken from the shelf, or exported onto it: by one process, when several want it at once."""
    place = shelf / name / name
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(shelf / f"{name}.lock"):
        return Artifact.open(place) if (place / "artifact.json").is_file() else write_artifact(place, *SHARED[name])


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory) -> Path:
    """One folder for all workers of this run."""
    place = tmp_path_factory.getbasetemp()
    return place.parent if "PYTEST_XDIST_WORKER" in os.environ else place


@pytest.fixture(scope="session")
def shelf(run_folder) -> Path:
    """Where the shared artifacts stand: those that tests/mutants.py has exported, or those of this run."""
    if "VITDEPLOY_TEST_ARTIFACTS" in os.environ:
        return Path(os.environ["VITDEPLOY_TEST_ARTIFACTS"])
    return run_folder / "shelf"


@pytest.fixture(scope="session", autouse=True)
def kept_exports(run_folder) -> None:
    """See `tests.exporting`; torch is not imported for it."""
    if "vitdeploy.verbs.exporter" in sys.modules:
        from tests.exporting import keep_operators, keep_traces

        keep_operators()
        keep_traces(run_folder / "traces")


@pytest.fixture(scope="session", autouse=True)
def brief_benchmarks() -> None:
    """What `compile` and `quantize` measure to choose by is measured for an instant: no test is decided by a time."""
    for module in (compiler, worth):
        module._BENCH = BenchConfig(rounds=2, seconds=0.01, warmup=0)


@pytest.fixture(scope="session")
def tiny_spec() -> ModelSpec:
    """Two blocks of width 32 on 16 x 24 pixels, 12 classes."""
    return TINY


@pytest.fixture(scope="session")
def tiny_artifact(shelf) -> Artifact:
    """An artifact of `tiny_spec` with a dynamic batch."""
    return shared_artifact("tiny", shelf)


@pytest.fixture(scope="session")
def tiny_static(shelf) -> Artifact:
    """The same for batches of exactly 4."""
    return shared_artifact("static", shelf)


@pytest.fixture(scope="session")
def tiny_headless(shelf) -> Artifact:
    """The same without a head: its output is ``pooled`` [N, 32]."""
    return shared_artifact("headless", shelf)


@pytest.fixture(scope="session")
def tiny_embedding(shelf) -> Artifact:
    """The same with a projection: its output is ``embedding`` [N, 12]."""
    return shared_artifact("embedding", shelf)


@pytest.fixture(scope="session")
def tiny_bytes(shelf) -> Artifact:
    """The same with the normalisation inside: takes uint8 [N, H, W, C], and tells the two best classes."""
    return shared_artifact("bytes", shelf)


@pytest.fixture
def bare_artifact(tiny_artifact) -> Artifact:
    """The exported file alone: no record, no PyTorch original."""
    return Artifact(tiny_artifact.folder, Record(entry="model.onnx", spec=tiny_artifact.spec, made_by="import"))


class Shipment(NamedTuple):
    """Where a bundle and its keys lie, and what packing said."""

    bundle: Path
    private: Path
    public: Path
    packed: Packed


@pytest.fixture(scope="session")
def shipment(tiny_artifact, tiny_bytes, tmp_path_factory) -> Shipment:
    """Two forms of the tiny model: normalised floats first, raw bytes second. Nothing may change it."""
    folder = tmp_path_factory.mktemp("shipment")
    keys = keygen(folder / "release.key")
    config = PackConfig(name="tiny", release=4, version="2.1", licence="Apache-2.0", sign=keys.private)
    packed = pack([tiny_artifact, tiny_bytes], config, folder / "tiny.vdb")
    return Shipment(folder / "tiny.vdb", Path(keys.private), Path(keys.public), packed)


@pytest.fixture(scope="session")
def tiny_pixels() -> np.ndarray:
    """uint8 [7, 16, 24, 3]."""
    return synthetic.pixels(7, TINY.input)
