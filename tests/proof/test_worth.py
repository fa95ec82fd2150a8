"""The verdict on a conversion: what the sentence says for which numbers, and that the numbers are right."""

from __future__ import annotations

import math
from contextlib import closing
from types import SimpleNamespace

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import numpy_helper
from scipy.special import softmax
from scipy.stats import entropy

from tests.quant.fashion import edited
from vitdeploy.artifact import Artifact
from vitdeploy.backends.base import OpenConfig
from vitdeploy.backends.table import load
from vitdeploy.data import images, synthetic
from vitdeploy.errors import InputError, UsageError
from vitdeploy.measure.latency import Measured
from vitdeploy.measure.probabilities import divergence
from vitdeploy.proof import worth as module
from vitdeploy.proof.thresholds import MOST_ROUNDS, NARROW
from vitdeploy.proof.worth import Comparison, Worth, verdict, worth
from vitdeploy.report import Metric


def numbers(speed=2.4, agreement=0.996, *, images=256, width=0.005, **more) -> Worth:
    """Made-up ones."""
    agreed = None if agreement is None else Metric(agreement, "", agreement - width, min(1.0, agreement + width / 2))
    given = {
        "engine": "onnxruntime",
        "reference": "pytorch",
        "images": images,
        "held_back": True,
        "agreement": agreed,
        "speedup": Metric(speed, "x", 0.95 * speed, 1.05 * speed),
        "size_mib": {"fp32": 88.0, "int8": 22.0},
    }
    return Worth(**given | more)


def test_worth_it():
    said = verdict("int8", "fp32", numbers())
    assert said == "INT8: 2.40x faster than FP32 [2.28, 2.52], agreement 99.6 % [99.1, 99.8] on 256 images: worth it"


def test_images_that_set_the_ranges_are_said_to():
    said = verdict("int8", "fp32", numbers(held_back=False))
    assert "on 256 images that also set the ranges: worth it" in said


@pytest.mark.parametrize(("speed", "words"), [(1.02, "1.02x faster than FP32"), (0.8, "0.80x the speed of FP32")])
def test_not_worth_it_for_speed(speed, words):
    known = {"speedup": Metric(speed, "x", speed - 0.02, speed + 0.02)}
    said = verdict("int8", "fp32", numbers(**known))
    assert words in said
    assert said.endswith("not worth it here for speed, but 4.0x smaller: keep fp32")
    same = verdict("int8", "fp32", numbers(**known, size_mib={"fp32": 20.0, "int8": 19.0}))
    assert same.endswith("not worth it here for speed: keep fp32")


def test_an_interval_that_holds_both_says_nothing():
    said = verdict("int8", "fp32", numbers(speedup=Metric(1.3, "x", 0.9, 1.7)))
    assert said.endswith("too noisy to say: when nothing else runs, measure again: vitdeploy bench ARTIFACT")


def test_a_wide_interval_gives_no_number():
    """That it is faster may be certain where how much is not."""
    said = verdict("int8", "fp32", numbers(speedup=Metric(2.0, "x", 1.2, 5.9)))
    assert said.startswith("INT8: between 1.20x and 5.90x the speed of FP32, agreement")
    assert said.endswith(": worth it")
    said = verdict("int8", "fp32", numbers(speedup=Metric(1.4, "x", 1.02, 2.0)))
    assert said.endswith("too noisy to say: when nothing else runs, measure again: vitdeploy bench ARTIFACT")


def test_the_lower_end_of_the_interval_decides():
    """1.2x in the median is no speed-up when it may as well be 1.0x; without an interval the median decides."""
    wide = numbers(speedup=Metric(1.2, "x", 1.0, 1.4))
    assert "not worth it" in verdict("int8", "fp32", wide)
    assert verdict("int8", "fp32", numbers(speedup=Metric(1.2, "x"))).endswith(": worth it")
    assert "[" not in verdict("int8", "fp32", numbers(agreement=None, images=0, speedup=Metric(1.2, "x")))


@pytest.mark.parametrize(("other", "advice"), [(1.8, "worth it"), (2.4, "use --precision bf16"), (3.1, "use --precision bf16")])
def test_bf16_that_is_as_fast_is_better(other, advice):
    said = verdict("int8", "fp32", numbers(other=Metric(other, "x", other, other)))
    assert f"bf16 {other:.2f}x" in said
    assert advice in said.rpartition(": ")[2]


def test_numbers_without_an_interval_have_no_brackets():
    said = verdict("int8", "fp32", numbers(speedup=Metric(1.2, "x", 0.9), agreement=None, images=0))
    assert said == "INT8: 1.20x faster than FP32: not worth it here for speed, but 4.0x smaller: keep fp32"
    said = verdict("int8", "fp32", msgspec.structs.replace(numbers(), agreement=Metric(1.0)))
    assert "agreement 100.0 % on 256 images: fast, but check" in said


def test_low_agreement_is_a_warning():
    said = verdict("int8", "fp32", numbers(agreement=0.90, width=0.03))
    assert "agreement 90.0 % [87.0, 91.5]" in said
    assert said.endswith("check the accuracy first, on labelled images: vitdeploy validate ARTIFACT --data DIR")


def test_few_images_are_not_enough_to_say_that_accuracy_is_kept():
    """All of 8 images agree: the interval reaches down to 68 %. That is said; and where one of them does not, it is a warning."""
    said = verdict("int8", "fp32", numbers(agreement=1.0, images=8, width=0.32))
    assert said.endswith("agreement 100.0 % [68.0, 100.0] on 8 images: worth it, as far as 8 images tell")
    assert "check the accuracy first" in verdict("int8", "fp32", numbers(agreement=0.875, images=8, width=0.3))
    assert "check the accuracy first" in verdict("int8", "fp32", numbers(agreement=0.98, images=500, width=0.04))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"cosine": 0.9987}, "cosine 0.9987, nearest neighbour kept 99.6 % [99.1, 99.8] on 256 images: worth it"),
        ({"cosine": 0.9987, "agreement": 0.8}, "80.0 % [79.5, 80.2] on 256 images: fast, but check your own search first: "),
        ({"cosine": 0.97}, "99.6 % [99.1, 99.8] on 256 images: fast, but check your own search first: "),
        ({"cosine": 0.9987, "agreement": None, "images": 1}, "], cosine 0.9987 on 1 images: worth it, as far as 1 images tell"),
        ({"cosine": math.nan}, "cosine nan, nearest neighbour kept 99.6 % [99.1, 99.8] on 256 images: fast, but check"),
    ],
)
def test_embeddings_have_a_cosine_and_neighbours_and_no_classes(given, words):
    said = verdict("int8", "fp32", numbers(**{"task": "embedding"} | given))
    assert words in said
    assert "class" not in said and "label" not in said


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "correlation 0.9991, mean difference 0.0123 on 256 images: worth it"),
        ({"images": 20}, "on 20 images: worth it, as far as 20 images tell"),
        ({"correlation": 0.98}, "on 256 images: fast, but check the error first, by your own numbers: "),
        ({"correlation": math.nan}, "on 256 images: fast, but check the error first"),
    ],
)
def test_numbers_have_a_correlation_and_a_difference(given, words):
    known = {"task": "regression", "agreement": None, "correlation": 0.9991, "difference": 0.01234, "cosine": 1.0}
    said = verdict("int8", "fp32", numbers(**known | given))
    assert words in said
    assert "agreement" not in said and "cosine" not in said


def test_labels_agree_one_by_one():
    said = verdict("int8", "fp32", numbers(task="multi_label"))
    assert said.endswith("agreement of labels 99.6 % [99.1, 99.8] on 256 images: worth it")
    said = verdict("int8", "fp32", numbers(task="multi_label", agreement=0.8))
    assert said.endswith("fast, but check the accuracy first, by your own labels: vitdeploy predict ARTIFACT IMAGE --json")


def test_without_images_or_times():
    assert verdict("int8", "fp32", numbers(agreement=None, images=0)).endswith(": faster; nothing was compared")
    assert verdict("fp16", "fp32", numbers(speedup=None)) == "FP16: not measured"


@pytest.mark.parametrize("precision", ["int8", "fp16", "bf16", "int8-weight-only"])
def test_the_precision_is_named(precision):
    assert verdict(precision, "fp32", numbers()).startswith(f"{precision.upper()}: ")


LOGITS = arrays.arrays(np.float32, (3, 5), elements=st.floats(-40, 40, width=32))


@settings(max_examples=60, deadline=None)
@given(LOGITS, LOGITS)
def test_divergence_is_what_scipy_computes(first, second):
    found = divergence(first, second)
    one, other = (softmax(each.astype(np.float64), axis=1) for each in (first, second))
    np.testing.assert_allclose(found, entropy(one, other, axis=1), rtol=1e-6, atol=1e-9)
    assert (found > -1e-12).all()
    np.testing.assert_allclose(divergence(first, first), 0, atol=1e-12)
    np.testing.assert_allclose(divergence(first + 7, second - 3), found, rtol=1e-3, atol=1e-5)


def test_divergence_of_logits_that_exp_can_not_hold():
    found = divergence(np.array([[0.0, 4000.0]]), np.array([[0.0, 3000.0], [0.0, -1000.0]])[:1])
    assert found == pytest.approx([0.0])
    assert divergence(np.array([[0.0, 1e3]]), np.array([[1e3, 0.0]])) == pytest.approx([1e3])


@pytest.fixture
def untimed(monkeypatch):
    monkeypatch.setattr(module, "_time", lambda comparison, progress: {"speedup": Metric(2.0, "x", 1.9, 2.1)})


def batches(artifact, count=20, size=8):
    tensor = images.to_tensor(synthetic.pixels(count, artifact.spec.input), artifact.spec.input)
    names = [f"image {place}" for place in range(count)]
    return [(tensor[start : start + size], names[start : start + size]) for start in range(0, count, size)]


def changed(artifact, folder, size):
    """Its weights with noise."""

    def change(model: onnx.ModelProto) -> None:
        generator = np.random.default_rng(0)
        for tensor in model.graph.initializer:
            array = numpy_helper.to_array(tensor)
            if tensor.name.endswith(".weight") and array.dtype == np.float32:
                noisy = array * (1 + size * generator.normal(size=array.shape))
                tensor.CopyFrom(numpy_helper.from_array(noisy.astype(np.float32), tensor.name))

    return edited(artifact, folder, change)


def test_a_model_against_itself(tiny_artifact, untimed):
    comparison = Comparison(tiny_artifact, tiny_artifact, "onnxruntime", OpenConfig(threads=1))
    found = worth(comparison, batches(tiny_artifact))
    assert (found.reference, found.engine, found.images, found.held_back) == ("pytorch", "onnxruntime", 20, True)
    assert found.agreement.value == 1
    assert found.agreement.low < 0.95, "20 images do not say more"
    assert found.divergence.value == pytest.approx(0, abs=1e-6)
    assert found.cosine == pytest.approx(1)
    assert found.size_mib["fp32"] == pytest.approx(tiny_artifact.model.stat().st_size / 2**20)
    assert msgspec.json.decode(msgspec.json.encode(found), type=Worth) == found


def test_a_changed_model_against_the_original(tiny_artifact, tmp_path, untimed):
    """The means and the interval are those of the images one by one."""
    made = changed(tiny_artifact, tmp_path / "made", 0.2)
    comparison = Comparison(tiny_artifact, made, "onnxruntime", OpenConfig(threads=1), held_back=False)
    found = worth(comparison, batches(tiny_artifact, 50))
    outputs = []
    for artifact in (tiny_artifact, made):
        with closing(load("onnxruntime").open(artifact, OpenConfig(threads=1))) as runner:
            outputs.append(np.concatenate([runner.run(batch)["logits"] for batch, _ in batches(artifact, 50)]))
    apart = divergence(*outputs)
    assert found.divergence.value == pytest.approx(apart.mean(), rel=1e-3)
    spread = 1.96 * apart.std(ddof=1) / math.sqrt(50)
    assert found.divergence.high - found.divergence.value == pytest.approx(spread, rel=1e-3)
    assert 0 <= found.divergence.low < found.divergence.value
    assert found.agreement.value == pytest.approx((outputs[0].argmax(1) == outputs[1].argmax(1)).mean())
    assert not found.held_back


@pytest.mark.parametrize(("wrong", "words"), [(0, "check the weights"), (1, "the source gives numbers there")])
def test_what_is_no_number_is_compared_with_nothing(tiny_artifact, tmp_path, untimed, wrong, words):
    """The image is named, and which of the two it is."""
    pair = [tiny_artifact, tiny_artifact]
    pair[wrong] = changed(tiny_artifact, tmp_path / "made", np.inf)
    pair = [Artifact(each.folder, msgspec.structs.replace(each.record, weights=None)) for each in pair]
    said = rf"VD3110.*the output 'logits' is nan or infinite on the image 'image 0'; .*{words}"
    with pytest.raises(InputError, match=said) as raised:
        worth(Comparison(*pair, "onnxruntime", OpenConfig(threads=1)), batches(tiny_artifact))
    assert raised.value.file == str(pair[wrong].model)


def test_without_the_original_the_source_is_the_reference(bare_artifact, tmp_path, untimed):
    made = changed(bare_artifact, tmp_path / "made", 0.01)
    found = worth(Comparison(bare_artifact, made, "onnxruntime", OpenConfig(threads=1)), batches(bare_artifact))
    assert found.reference == "source"
    assert found.divergence.value > 0


@pytest.mark.parametrize("kind", ["tiny_embedding", "tiny_headless"])
def test_embeddings_are_compared_by_direction_and_neighbours(kind, untimed, request):
    artifact = request.getfixturevalue(kind)
    found = worth(Comparison(artifact, artifact, "onnxruntime", OpenConfig(threads=1)), batches(artifact))
    assert (found.task, found.agreement.value, found.divergence) == ("embedding", 1, None)
    assert found.cosine == pytest.approx(1)
    assert "cosine 1.0000, nearest neighbour kept 100.0 % [83.9, 100.0] on 20 images" in found.verdict


@pytest.mark.parametrize(("task", "agrees"), [("multi_label", True), ("regression", False)])
def test_other_tasks_are_never_compared_as_classes(tiny_artifact, untimed, task, agrees):
    spec = tiny_artifact.spec.change_task(task)
    artifact = Artifact(tiny_artifact.folder, msgspec.structs.replace(tiny_artifact.record, spec=spec))
    found = worth(Comparison(artifact, artifact, "onnxruntime", OpenConfig(threads=1)), batches(artifact))
    assert (found.task, found.divergence, found.agreement is not None) == (task, None, agrees)
    assert (found.correlation is None, found.cosine is None) == (agrees, not agrees)
    assert found.difference < 1e-6


def test_probabilities_are_not_made_probabilities_once_more(tiny_artifact, tmp_path, untimed):
    """The divergence is that of the probabilities which the file gives, where it ends with the softmax."""

    def end(model: onnx.ModelProto) -> None:
        last = next(node for node in model.graph.node if "logits" in node.output)
        last.output[0] = "before"
        model.graph.node.append(onnx.helper.make_node("Softmax", ["before"], ["logits"], axis=1))

    noisy = changed(tiny_artifact, tmp_path / "noisy", 0.2)
    bare = [Artifact(each.folder, msgspec.structs.replace(each.record, weights=None)) for each in (tiny_artifact, noisy)]
    ends = [edited(each, tmp_path / name, end) for each, name in zip(bare, "ab", strict=True)]
    spec = msgspec.structs.replace(tiny_artifact.spec, probabilities=True)
    ends = [Artifact(each.folder, msgspec.structs.replace(each.record, spec=spec, weights=None)) for each in ends]
    expected, found = (
        worth(Comparison(*pair, "onnxruntime", OpenConfig(threads=1)), batches(tiny_artifact)) for pair in (bare, ends)
    )
    assert found.divergence.value == pytest.approx(expected.divergence.value, rel=1e-3)
    assert found.agreement == expected.agreement


def test_without_images_nothing_is_compare(tiny_artifact, untimed):
    found = worth(Comparison(tiny_artifact, tiny_artifact, "onnxruntime", OpenConfig(threads=1)), [])
    assert (found.images, found.agreement, found.divergence) == (0, None, None)
    assert found.verdict.endswith("nothing was compared")


@pytest.mark.parametrize(("made", "bf16", "forms"), [("int8", True, 3), ("int8", False, 2), ("bf16", True, 2), ("fp16", True, 2)])
@pytest.mark.parametrize("size", [None, 4])
def test_what_is_timed(tiny_artifact, monkeypatch, made, bf16, forms, size):
    """The source is the reference of all; its bf16 form takes part where the CPU has it and nothing else is in 16 bits."""
    opened, given = [], []

    def open_it(engine, artifact, config):
        opened.append((engine, artifact, config))
        if config.precision == "bf16" and not bf16:
            raise UsageError("VD2011", "this CPU has no bf16")
        return SimpleNamespace(batch=size, close=lambda: None)

    def measure(subjects, bench, *, goal, progress):
        assert goal == (NARROW, MOST_ROUNDS)
        given.append((subjects, bench))
        times = {"fp32": 4.0, "bf16": 2.0, "int8": 1.0, "fp16": 3.0}
        speeds = {name: Metric(4 / each, "x", 3.9 / each, 4.1 / each) for name, each in times.items()}
        each = [subject.name for subject in subjects]
        rows = [SimpleNamespace(subject=n, metrics={"p50": Metric(times[n], "ms"), "speedup": speeds[n]}) for n in each]
        return Measured(tuple(rows), {}, 8, 0.0)

    monkeypatch.setattr(module, "open_in_child", open_it)
    monkeypatch.setattr(module.latency, "measure", measure)
    target = Artifact(tiny_artifact.folder, msgspec.structs.replace(tiny_artifact.record, precision=made))
    found = worth(Comparison(tiny_artifact, target, "openvino", OpenConfig(threads=3)), [])
    ((subjects, bench),) = given
    assert [(each.artifact, each.backend, each.reference) for each in subjects[:2]] == [
        (tiny_artifact, "openvino", "fp32"),
        (target, "openvino", "fp32"),
    ]
    assert (bench.batches, bench.threads) == ((size or 1,), 3)
    assert len(subjects) == len(found.latency_ms) == forms
    assert found.speedup == Metric({"int8": 4, "bf16": 2, "fp16": 4 / 3}[made], "x", found.speedup.low, found.speedup.high)
    if forms == 3:
        assert subjects[2].artifact is tiny_artifact
        assert subjects[2].config.precision == "bf16"
        assert found.other.value == 2.0
        assert ("openvino", tiny_artifact, OpenConfig(threads=3, precision="bf16")) in opened
    assert (found.other is None) == (forms == 2)


@pytest.mark.slow
def test_latency_is_measured_for_each_form(tiny_static, monkeypatch):
    """Of one tiny model against itself, for a fixed batch: the numbers are there; how large they are is not for a test."""
    monkeypatch.setattr(module, "MOST_ROUNDS", 3)
    other = Artifact(tiny_static.folder, msgspec.structs.replace(tiny_static.record, precision="int8"))
    heard = []
    found = worth(
        Comparison(tiny_static, other, "onnxruntime", OpenConfig(threads=1)), [], progress=lambda *news: heard.append(news)
    )
    assert set(found.latency_ms) == {"fp32", "int8"}
    assert found.speedup.value > 0
    assert dict.fromkeys(what for what, _, _ in heard) == dict.fromkeys(("compare", "bench"))
    assert heard[-1] == ("bench", 6, 6)


def test_every_batch_that_is_compared_is_heard(tiny_artifact, monkeypatch):
    monkeypatch.setattr(module, "_time", lambda *_: {})
    contract, heard = tiny_artifact.spec.input, []
    batches = [(images.to_tensor(synthetic.pixels(4, contract), contract), "abcd")] * 3
    comparison = Comparison(tiny_artifact, tiny_artifact, "onnxruntime", OpenConfig(threads=1), images=12)
    worth(comparison, batches, progress=lambda *news: heard.append(news))
    assert heard == [("compare", done, 12) for done in (0, 0, 4, 8, 12)]
