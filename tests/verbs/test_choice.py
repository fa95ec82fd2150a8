"""Which artifact of a build is called the best."""

from pathlib import Path

import msgspec
import pytest

from vitdeploy.artifact import Artifact, Record
from vitdeploy.report import Metric, Report, Row
from vitdeploy.verbs.choice import choose_best


@pytest.fixture
def artifacts(tiny_spec):
    return [Artifact(Path("runs") / name, Record(spec=tiny_spec, made_by="export")) for name in ("export", "quantize", "compile")]


def agree(share, images=1000, low=None):
    return {"top1_agreement": Metric(share, "share", share - 0.01 if low is None else low, 1.0), "images": Metric(images)}


def lose(points):
    return {"top1_difference": Metric(-points, "points"), "top1_agreement": Metric(0.5, "share", 0.4, 0.6), "images": Metric(9)}


def report(title, rows):
    return Report(title=title, reference="pytorch", rows=tuple(Row(name, metrics) for name, metrics in rows.items()))


def choose(artifacts, parity, times):
    speeds = {name: {"p50": Metric(ms, "ms"), "speedup": Metric(10 / ms, "ratio")} for name, ms in times.items()}
    parts = [report("validate", {"pytorch": {}, **parity}), report("bench", {"pytorch": {"p50": Metric(1.0, "ms")}, **speeds})]
    return choose_best(artifacts, parts)


TIMES = {"export / onnxruntime": 8.0, "quantize / onnxruntime": 5.0, "compile / openvino": 2.0}


@pytest.mark.parametrize(
    ("quantized", "compiled", "best"),
    [
        (agree(0.99), agree(0.99), "compile"),
        (agree(0.99), agree(0.93), "quantize"),
        (agree(0.93), agree(0.93), "export"),
        (agree(0.96, low=0.94), agree(0.93), "export"),  # the interval reaches below
        (agree(0.985, images=100, low=0.9), agree(0.97, images=100, low=0.9), "quantize"),  # too few for the interval
        (lose(0.9), lose(1.1), "quantize"),  # with labels, accuracy counts
        ({"correlation": Metric(0.995), "cosine_mean": Metric(0.9)}, {"correlation": Metric(0.98)}, "quantize"),
        ({"cosine_mean": Metric(0.995)}, {"cosine_mean": Metric(0.98)}, "quantize"),
    ],
)
def test_the_fastest_that_answers_as_the_original_does(artifacts, quantized, compiled, best):
    parity = {"export / onnxruntime": agree(1.0), "quantize / onnxruntime": quantized, "compile / openvino": compiled}
    choice = choose(artifacts, parity, TIMES)
    assert choice.folder == best
    assert choice.words.startswith(f"Best: {best} in {choice.engine}: ")
    assert ("compile in openvino is faster (2 ms) and not as good" in choice.words) == (best != "compile")


def test_an_artifact_alone_has_rows_without_its_folder(artifacts):
    choice = choose(artifacts[:1], {"openvino": agree(1.0)}, {"openvino": 4.0})
    assert (choice.folder, choice.engine) == ("export", "openvino")
    assert "4 ms, 2.50x the original, agreement 100.0 % on 1,000 images" in choice.words


def test_without_numbers_there_is_no_choice(artifacts):
    assert choose_best(artifacts, []) is None
    assert choose(artifacts, {}, TIMES) is None
    assert choose(artifacts, {"export / onnxruntime": agree(0.2)}, TIMES) is None


def test_where_the_original_was_only_recorded(artifacts):
    """The FP32 file is what others are compared with, and is itself compared with what was recorded."""
    validated = report("validate", {"export / onnxruntime": {}, "quantize / onnxruntime": agree(0.9)})
    recorded = report("validate", {"pytorch (recorded)": {}, "export / onnxruntime": agree(1.0, images=4)})
    recorded = msgspec.structs.replace(recorded, reference="pytorch (recorded)")
    validated = msgspec.structs.replace(validated, reference="export / onnxruntime", parts=(recorded,))
    times = {"export / onnxruntime": 8.0, "quantize / onnxruntime": 5.0}
    speeds = {name: {"p50": Metric(ms, "ms"), "speedup": Metric(8 / ms, "ratio")} for name, ms in times.items()}
    benched = msgspec.structs.replace(report("bench", speeds), reference="export / onnxruntime")
    choice = choose_best(artifacts[:2], [validated, benched])
    assert choice.words.startswith("Best: export in onnxruntime: 8 ms, agreement 100.0 % on 4 images.")
    better = msgspec.structs.replace(validated, rows=(*validated.rows[:1], Row("quantize / onnxruntime", agree(1.0))))
    choice = choose_best(artifacts[:2], [better, benched])
    assert choice.words.startswith("Best: quantize in onnxruntime: 5 ms, 1.60x export / onnxruntime, ")
