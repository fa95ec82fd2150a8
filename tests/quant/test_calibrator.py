"""Calibration says the same however it runs, stops when it should, and survives what goes wrong."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.quant.networks import HIDDEN, TOKENS, WANTS, network, pictures, run, saved, stream
from vitdeploy.backends.onnxruntime import observer
from vitdeploy.backends.onnxruntime.observer import OnnxRuntimeObserver
from vitdeploy.data import images, synthetic
from vitdeploy.errors import InputError, MachineError, UsageError
from vitdeploy.quant import calibrator
from vitdeploy.quant.calibrator import CalibrateConfig, Images, Want, calibrate
from vitdeploy.quant.observations import Statistics
from vitdeploy.quant.sketch import Sketch


@pytest.fixture
def model(tmp_path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(network(), path)
    return path


def test_what_is_kept_is_what_the_model_computes(model):
    pixels = pictures(21)
    statistics = run(model, stream(pixels))
    matrix = numpy_helper.to_array(onnx.load(model).graph.initializer[0])
    hidden = (pixels @ matrix).reshape(-1, HIDDEN)
    sketch = statistics.sketches["hidden"]
    np.testing.assert_array_equal(sketch.channel_minimum, hidden.min(0))
    np.testing.assert_array_equal(sketch.channel_maximum, hidden.max(0))
    np.testing.assert_allclose(sketch.channel_mean, hidden.mean(0, dtype=np.float64), atol=1e-6)
    assert (statistics.sketches["active"].channel_minimum == 0).all()
    assert sketch.seen == len(hidden)
    assert {row.tobytes() for row in sketch.rows} <= {row.tobytes() for row in hidden}
    assert list(statistics.sketches) == [want.tensor for want in WANTS]
    assert statistics.images == 21


@pytest.mark.parametrize("make", [{}, {"shapes": False}, {"batch": 1}, {"batch": 4}, {"shapes": False, "first": "tokens"}])
def test_neither_batch_nor_order_nor_the_form_of_the_graph_matters(tmp_path, make):
    """37 images in portions of 1, 5 and 37, runs of 1, 3 and 8, forwards and shuffled: the same bytes."""
    path = tmp_path / "model.onnx"
    onnx.save(network(**make), path)
    pixels, shuffled = pictures(37), np.random.default_rng(5).permutation(37)
    found = set()
    for portion, batch, order in ((1, 1, None), (5, 3, None), (37, 8, None), (37, 8, shuffled), (5, 3, shuffled)):
        statistics = run(path, stream(pixels, portion, order=order), batch=batch)
        statistics.sketches.pop("weights")  # its softmax is rounded by the engine as it likes
        found.add(saved(statistics, tmp_path))
    assert len(found) == 1


def test_a_vit_gives_the_same_ranges_at_any_batch(tiny_artifact):
    pixels = images.to_tensor(synthetic.pixels(20, tiny_artifact.spec.input), tiny_artifact.spec.input)
    wants = [Want(f"blocks.{block}.{name}") for block in (0, 1) for name in ("norm1/LayerNormalization_out", "mlp/Gelu_out")]
    found = []
    for portion, batch in ((1, 1), (7, 3), (20, 8)):
        config = CalibrateConfig(batch=batch, threads=1)
        found.append(calibrate(tiny_artifact.model, wants, stream(pixels, portion), config))
    for other in found[1:]:
        assert other.digest == found[0].digest
        for name, sketch in other.sketches.items():
            np.testing.assert_allclose(sketch.rows, found[0].sketches[name].rows, atol=1e-4)
            np.testing.assert_allclose(sketch.channel_maximum, found[0].sketches[name].channel_maximum, atol=1e-4)
            np.testing.assert_allclose(sketch.channel_mean, found[0].sketches[name].channel_mean, atol=1e-5)


@pytest.mark.parametrize("form", ["bytes", "external", "link"])
def test_any_form_of_the_file_is_read(tiny_artifact, tmp_path, form):
    pixels = images.to_tensor(synthetic.pixels(6, tiny_artifact.spec.input), tiny_artifact.spec.input)
    wants, config = [Want("blocks.1.mlp/Gelu_out")], CalibrateConfig(threads=1)
    model: Path | bytes = tmp_path / "copy.onnx"
    if form == "bytes":
        model = tiny_artifact.model.read_bytes()
    elif form == "link":
        (tmp_path / "copy.onnx").symlink_to(tiny_artifact.model)
    else:
        onnx.save(onnx.load(tiny_artifact.model), model, save_as_external_data=True, location="w.bin", size_threshold=1024)
    found = calibrate(model, wants, stream(pixels), config).sketches["blocks.1.mlp/Gelu_out"]
    expected = calibrate(tiny_artifact.model, wants, stream(pixels), config).sketches["blocks.1.mlp/Gelu_out"]
    np.testing.assert_array_equal(found.rows, expected.rows)


def test_progress_is_told_and_ends(model):
    heard: list[tuple[str, int, int]] = []
    calibrate(
        model,
        WANTS,
        stream(pictures(40)),
        CalibrateConfig(limit=100, minimum=100, threads=1),
        progress=lambda what, done, total: heard.append((what, done, total)),
    )
    assert heard[-1] == ("calibrate", 40, 40)
    assert all(done < total for _, done, total in heard[:-1])


def test_the_limit_is_kept_and_no_more_is_read(model):
    read = []

    def endless() -> Iterator[Images]:
        for start in range(0, 10_000, 5):
            read.append(start)
            yield pictures(5, seed=start), tuple(f"image {start + place}" for place in range(5))

    assert run(model, endless(), limit=23).images == 23
    assert len(read) == 5


@pytest.mark.parametrize("portion", [1, 7, 64])
def test_stops_early_when_ranges_settle(model, portion):
    """The extremes are in the first images: looks at 32, 48 and 64 find the same, whatever the batches."""
    pixels = np.tile(pictures(8), (40, 1, 1))
    statistics = run(model, stream(pixels, portion), limit=320, minimum=32, batch=portion)
    assert statistics.early_stopped
    assert statistics.images == 64


def test_does_not_stop_while_ranges_move(model):
    """Each 16 images reach 5 % further."""
    pixels = pictures(160) * np.repeat(1.05 ** np.arange(10), 16)[:, None, None].astype(np.float32)
    statistics = run(model, stream(pixels), limit=160, minimum=32)
    assert not statistics.early_stopped
    assert statistics.images == 160


class Interruption(KeyboardInterrupt):
    """Ctrl-C."""


def interrupted(pixels: np.ndarray, after: int) -> Iterator[Images]:
    for start in range(0, len(pixels), 4):
        if start >= after:
            raise Interruption
        yield pixels[start : start + 4], tuple(f"image {place}" for place in range(start, start + 4))


@pytest.mark.parametrize("after", [4, 32, 52])
def test_resumes_after_an_interruption(model, tmp_path, after):
    """A second call runs only what is missing and ends with the same bytes, early stop included."""
    pixels = np.concatenate([pictures(40), np.tile(pictures(8), (10, 1, 1))])
    whole = run(model, stream(pixels, 4), minimum=32, limit=120)
    assert whole.early_stopped
    state = tmp_path / "state"
    with pytest.raises(Interruption):
        run(model, interrupted(pixels, after), minimum=32, limit=120, state=state)
    assert Statistics.load(state).images == after
    counted = []

    class Counting(OnnxRuntimeObserver):
        def run(self, pixels):
            counted.append(len(pixels))
            return super().run(pixels)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibrator, "open_observer", Counting)
        resumed = run(model, stream(pixels, 4), minimum=32, limit=120, state=state)
    assert whole.images - after <= sum(counted) < len(pixels) - after
    assert saved(resumed, tmp_path) == saved(whole, tmp_path)


def test_it_says_that_it_goes_on(model, tmp_path):
    heard = []
    pixels, state = pictures(12), tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        run(model, interrupted(pixels, 8), state=state)
    config = CalibrateConfig(limit=500, minimum=500, threads=1, state=state)
    calibrate(model, WANTS, stream(pixels), config, progress=lambda *step: heard.append(step[:2]))
    assert heard[0] == ("calibrate: goes on after 8 images", 8)


def test_a_state_that_can_not_be_kept_is_no_failure(model, tmp_path):
    (tmp_path / "file").write_text("in the way")
    kept = run(model, stream(pictures(8)), state=tmp_path / "file" / "state")
    assert kept.images == 8
    assert any("not kept for a second run" in note for note in kept.notes)


def test_a_state_is_kept_while_it_runs_and_a_disk_that_takes_none_is_tried_once(model, tmp_path, monkeypatch):
    monkeypatch.setattr(calibrator, "_SAVE_S", 0.0)
    monkeypatch.setattr(calibrator, "_SAVE_SHARE", 1e9)
    state, there = tmp_path / "state", []

    def slowly():
        for images_, names in stream(pictures(60), 4):
            there.append(state.exists())
            yield images_, names

    run(model, slowly(), state=state)
    assert not there[0]
    assert there[-1]
    (tmp_path / "file").write_text("in the way")
    kept = run(model, stream(pictures(60), 4), state=tmp_path / "file" / "state")
    assert sum("not kept for a second run" in note for note in kept.notes) == 1


def test_what_must_settle_are_extremes_and_the_extent_of_channels():
    values = np.random.default_rng(0).normal(size=(40, 50, 6)).astype(np.float32)
    sketch = Sketch("x")
    sketch.observe(values, [str(number) for number in range(40)])
    channels = values.reshape(-1, 6)
    extent = np.ptp(channels, 0).mean()
    expected = values.min(), values.max(), extent
    np.testing.assert_allclose(calibrator._ranges(sketch), expected, rtol=1e-6)


def test_a_state_of_something_else_is_not_resumed(model, tmp_path):
    state, pixels = tmp_path / "state", pictures(12)
    run(model, stream(pixels[:8]), state=state, source="one")
    assert run(model, stream(pixels), state=state, source="two").images == 12
    onnx.save(network(shapes=False), model)
    assert run(model, stream(pixels[:6]), state=state, source="two").images == 6
    state.write_bytes(b"PK\x03\x04 cut off")
    statistics = run(model, stream(pixels[:6]), state=state)
    assert statistics.images == 6
    assert "saved state was not used" in statistics.notes[0]


def test_a_state_of_other_images_is_refused(model, tmp_path):
    state = tmp_path / "state"
    run(model, stream(pictures(8)), state=state)
    other = [(pictures(8, seed=9), tuple(f"other {place}" for place in range(8)))]
    with pytest.raises(InputError, match=r"VD3109.*other calibration images") as caught:
        run(model, iter(other), state=state)
    assert caught.value.file == str(state)
    with pytest.raises(InputError, match="VD3109"):  # fewer images than the state has seen
        run(model, stream(pictures(4)), state=state)


def test_nothing_is_left_without_a_state(model, tmp_path):
    before = sorted(tmp_path.iterdir())
    with pytest.raises(Interruption):
        run(model, interrupted(pictures(20), 8))
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("batch", [1, 8])
def test_not_finite_names_the_node_and_the_image(model, batch):
    pixels = pictures(30)
    pixels[19, 2, 1] = np.nan
    with pytest.raises(InputError, match=r"VD3110.*'hidden' is nan on the image 'image 19'"):
        run(model, stream(pixels), batch=batch)


def test_a_bad_image_surfaces_as_it_is(model, tmp_path):
    def broken() -> Iterator[Images]:
        yield from stream(pictures(16))
        raise InputError("VD3102", "can't be decoded", file="x.jpg")

    state = tmp_path / "state"
    with pytest.raises(InputError, match="VD3102"):
        run(model, broken(), state=state)
    assert Statistics.load(state).images == 16


def test_an_error_of_the_sketching_thread_surfaces_once(model, monkeypatch):
    def fails(self, values, names):
        raise MemoryError

    monkeypatch.setattr(Sketch, "observe", fails)
    with pytest.raises(MachineError, match="VD4006"):
        run(model, stream(pictures(100)))


def test_memory_does_not_grow_with_the_images(model):
    """Ten times the images: the same peak of what Python and NumPy hold, within what their names take."""
    peaks = []
    run(model, stream(pictures(8)))  # imports, caches
    for count in (40, 400):
        pixels = pictures(count)
        tracemalloc.start()
        run(model, stream(pixels), limit=1000, minimum=1000)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 360 * 1024 // 2  # 512 bytes an image for its name, its key and the list of both


def test_a_smaller_batch_when_memory_does_not_suffice(model, tmp_path, monkeypatch):
    """Runs of more than two images fail for want of memory: the result is the same, and the notes say it."""
    pixels = pictures(37)
    plain = run(model, stream(pixels, 37))
    genuine, sizes = OnnxRuntimeObserver._run_bound, []

    def small(self, images):
        sizes.append(len(images))
        if len(images) > 2:
            try:
                raise RuntimeError("[ONNXRuntimeError] : 6 : Failed to allocate memory for requested buffer of size 99")
            except RuntimeError as exc:
                raise MachineError("VD4004", f"onnxruntime: {exc}") from exc
        return genuine(self, images)

    monkeypatch.setattr(OnnxRuntimeObserver, "_run_bound", small)
    statistics = run(model, stream(pixels, 37))
    assert statistics.notes == [
        "memory did not suffice for 8 images a run: went on with 4",
        "memory did not suffice for 4 images a run: went on with 2",
        *plain.notes,
    ]
    assert sizes[:3] == [8, 4, 2]
    assert max(sizes[2:]) == 2
    assert saved(statistics, tmp_path) == saved(plain, tmp_path)


def test_out_of_memory_with_one_image_is_an_error(model, monkeypatch):
    def fails(self, images):
        raise MachineError("VD4006", "onnxruntime ran out of memory")

    monkeypatch.setattr(OnnxRuntimeObserver, "_run_bound", fails)
    with pytest.raises(MachineError, match="VD4006"):
        run(model, stream(pictures(37)))


def test_large_tensors_run_in_smaller_batches(model, monkeypatch):
    monkeypatch.setattr(observer, "BUFFERS", 2 * 3 * 4 * TOKENS * HIDDEN * 3)  # both sets: three images' three tensors
    opened = OnnxRuntimeObserver(model, [want.tensor for want in WANTS], threads=1, batch=8)
    assert opened.batch == 3
    opened.close()


@pytest.mark.parametrize(
    ("wants", "code"),
    [
        ([], "VD2003"),
        ([Want("hidden"), Want("hidden")], "VD2003"),
        ([Want("hiden")], "VD2003.*hidden"),
        ([Want("pixels")], "VD2003"),
        ([Want("whole numbers")], "VD2011"),
        ([Want("out")], "VD2011"),
    ],
)
def test_impossible_wants(model, wants, code):
    with pytest.raises(UsageError, match=code):
        calibrate(model, wants, stream(pictures(4)), CalibrateConfig(threads=1))


def test_impossible_images(model):
    with pytest.raises(InputError, match="VD3101"):
        run(model, iter(()))
    with pytest.raises(InputError, match=r"VD3107.*float64"):
        run(model, iter([(pictures(1).astype(np.float64), ("a",))]))
    with pytest.raises(InputError, match=r"VD3107.*\[1, 2, 4\]"):
        run(model, iter([(pictures(1)[:, :2], ("a",))]))
    with pytest.raises(InputError, match="VD3107"):
        run(model, iter([(pictures(2), ("a",))]))
    with pytest.raises(UsageError, match=r"VD2003.*'a'"):
        run(model, iter([(pictures(2), ("a", "a"))]))
    with pytest.raises(UsageError, match="VD2003"):
        CalibrateConfig(batch=0)
    with pytest.raises(UsageError, match="VD2003"):
        Want("hidden", rows=-1)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.97])
def test_a_model_cut_off(tiny_artifact, tmp_path, keep):
    raw = tiny_artifact.model.read_bytes()
    path = tmp_path / "cut.onnx"
    path.write_bytes(raw[: int(keep * len(raw))])
    with pytest.raises(InputError, match="VD3011"):
        calibrate(path, [Want("blocks.0.mlp/Gelu_out")], iter(()), CalibrateConfig())


def test_few_images_are_said(model):
    statistics = run(model, stream(pictures(5)), limit=256, minimum=32)
    assert statistics.notes == ["only 5 calibration images were given; 32 or more are advised"]
