"""A baseline: a text that stays the same, a later run that is paired with it, and latencies that are of another place."""

import json

import msgspec
import numpy as np
import pytest

from tests.proof.test_slices import lose, make_report
from vitdeploy.errors import InputError, UsageError
from vitdeploy.proof.baseline import compare_with, format_baseline, make_baseline, read_baseline
from vitdeploy.proof.rules import SliceLimits, Thresholds
from vitdeploy.proof.verdict import judge
from vitdeploy.report import Metric, Report, Row

SLOWDOWN = frozenset({"max_slowdown"})


def answer(after: np.ndarray, artifact: str = "one") -> Report:
    report = make_report(lose()[0], after)
    return msgspec.structs.replace(report, settings={"artifact": "vit", "id": artifact})


def time(speedup: float, width: float = 0.05, power: str = "performance", **engine: object) -> Report:
    settings = {
        "backend": "ort",
        "version": "1.0",
        "threads": 2,
        "artifact": "vit",
        "id": "one",
        "reference": "pytorch",
        **engine,
    }
    metrics = {"batch": Metric(1, "count")}
    metrics["speedup"] = Metric(speedup, "ratio", speedup * (1 - width), speedup * (1 + width))
    rows = (
        Row("pytorch", {}, {"backend": "pytorch", "version": "2.0", "reference": "pytorch"}),
        Row("engine", metrics, settings),
    )
    return Report(title="bench", reference="pytorch", rows=rows, settings={"artifact": "vit", "rounds": 10, "power": power})


def write(tmp_path, *reports: Report):
    path = tmp_path / "gate.json"
    path.write_text(format_baseline(make_baseline(reports)))
    return path


def decide(path, report: Report, thresholds: Thresholds, asked: frozenset[str] = frozenset()):
    compared = compare_with(read_baseline(path), [report], path, asked)
    return judge(compared.reports, thresholds, compared.untold)


def test_the_file_is_the_same_for_the_same_numbers_and_in_lines(tmp_path) -> None:
    reports = [answer(lose(class_3=-2)[1]), time(3.0)]
    text = format_baseline(make_baseline(reports))
    assert text == format_baseline(make_baseline(reports[::-1]))
    assert max(map(len, text.splitlines())) < 100
    assert format_baseline(read_baseline(write(tmp_path, *reports))) == text
    (candidate,) = json.loads(text)["candidates"]
    assert (candidate["about"], candidate["subject"], candidate["artifact"], candidate["images"]) == (
        "vit",
        "engine",
        "one",
        1000,
    )
    assert candidate["latency"]["1"]["conditions"]["engine"] == "ort 1.0"


def test_a_later_model_is_paired_image_by_image(tmp_path) -> None:
    """As many right as before, on other images: a drop of nothing, with the interval of what changed."""
    path = write(tmp_path, answer(lose(class_0=5, class_1=-5)[1]))
    (gate,) = decide(path, answer(lose(class_0=-5, class_1=5)[1], "two"), Thresholds(max_drop="1 pt")).gates
    assert gate.subject == "engine against the baseline"
    assert gate.metric.value == 0
    assert gate.metric.high == pytest.approx(0.9, abs=0.1)  # 10 gained and 10 lost of 1000
    verdict = decide(path, answer(lose(class_0=-40)[1], "two"), Thresholds(max_drop="1 pt"))
    assert verdict.outcome == "fail"


def test_the_same_file_is_not_left_to_chance(tmp_path) -> None:
    path = write(tmp_path, answer(lose()[1]))
    for artifact, outcome in (("one", "pass"), ("two", "inconclusive")):
        (gate,) = decide(path, answer(lose()[1], artifact), Thresholds(max_drop="0.1 pt")).gates
        assert gate.outcome == outcome


def test_slices_are_compared_with_the_baseline_too(tmp_path) -> None:
    path = write(tmp_path, answer(lose()[1]))
    asked = Thresholds(slice={"classes": SliceLimits(max_drop="5 pt")})
    (gate,) = decide(path, answer(lose(class_7=-30)[1], "two"), asked).gates
    assert (gate.subject, gate.outcome) == ("engine against the baseline", "fail")
    assert "class 7: -30.0 points" in gate.why


def test_other_images_are_no_verdict_but_an_error(tmp_path) -> None:
    path = write(tmp_path, answer(lose()[1]))
    other = answer(lose()[1])
    other = msgspec.structs.replace(other, images=msgspec.structs.replace(other.images, digest="0" * 64))
    with pytest.raises(InputError, match="is of other images: 1,000 with digest") as raised:
        decide(path, other, Thresholds(max_drop="1 pt"))
    assert (raised.value.code, raised.value.file) == ("VD3032", str(path))


def test_another_input_contract_fails_whatever_the_numbers(tmp_path) -> None:
    """PyTorch beside it prepares its images in the same wrong way: only the baseline can tell."""

    def prepare(**contract: object) -> Report:
        report = answer(lose()[1])
        contract = {"interpolation": "bicubic", "mean": (0.5,), "tensor": "float32-nchw", **contract}
        return msgspec.structs.replace(report, settings={**report.settings, "contract": contract})

    path = write(tmp_path, prepare())
    limits = Thresholds(max_drop="1 pt")
    assert decide(path, prepare(tensor="uint8-nhwc"), limits).outcome == "pass"
    gate, _ = decide(path, prepare(interpolation="bilinear"), limits).gates
    assert (gate.name, gate.outcome) == ("contract", "fail")
    assert "images are not prepared as for the baseline: interpolation was bicubic, is bilinear" in gate.why


def test_what_one_side_lacks_never_passes_in_silence(tmp_path) -> None:
    path = write(tmp_path, answer(lose()[1]))
    report = answer(lose()[1])
    right = report.images.right
    images = msgspec.structs.replace(report.images, right={"pytorch": right["pytorch"], "other": right["engine"]})
    verdict = decide(path, msgspec.structs.replace(report, images=images), Thresholds(max_drop="1 pt"))
    told = {(gate.subject, gate.name): gate.outcome for gate in verdict.gates}
    assert told[("other", "baseline")] == "inconclusive"
    assert told[("engine", "baseline")] == "fail"


class TestLatency:
    @pytest.mark.parametrize(("speedup", "outcome"), [(3.0, "pass"), (2.8, "inconclusive"), (1.5, "fail")])
    def test_it_is_a_ratio_of_ratios(self, tmp_path, speedup, outcome) -> None:
        path = write(tmp_path, time(3.0))
        (gate,) = decide(path, time(speedup), Thresholds(max_slowdown=1.1), SLOWDOWN).gates
        assert (gate.name, gate.outcome) == ("max_slowdown", outcome)
        assert gate.metric.value == pytest.approx(3.0 / speedup)
        assert gate.metric.low == pytest.approx(3.0 / speedup * np.exp(-np.hypot(np.log(1 / 0.95), np.log(1.05))))

    @pytest.mark.parametrize(
        ("changes", "word"),
        [
            ({"version": "1.1"}, "engine: ort 1.0, here ort 1.1"),
            ({"power": "powersave"}, "power: performance, here powersave"),
            ({"threads": 4}, "threads: 2, here 4"),
        ],
    )
    def test_of_another_place_it_says_nothing(self, tmp_path, changes, word) -> None:
        path = write(tmp_path, time(3.0))
        (gate,) = decide(path, time(1.0, **changes), Thresholds(max_slowdown=1.1), SLOWDOWN).gates
        assert (gate.name, gate.outcome) == ("max_slowdown", "inconclusive")
        assert "of another place and says nothing here" in gate.why
        assert word in gate.why

    def test_of_another_machine_accuracy_still_serves(self, tmp_path) -> None:
        path = write(tmp_path, answer(lose()[1]), time(3.0))
        elsewhere = msgspec.structs.replace(time(3.0).machine, cpu="another")
        report = Report(
            title="build",
            parts=(answer(lose(class_0=-40)[1], "two"), msgspec.structs.replace(time(3.0), machine=elsewhere)),
        )
        verdict = decide(path, report, Thresholds(max_drop="1 pt", max_slowdown=1.1), SLOWDOWN)
        assert {gate.name: gate.outcome for gate in verdict.gates} == {"max_slowdown": "inconclusive", "max_drop": "fail"}

    def test_a_batch_that_it_has_not_is_said(self, tmp_path) -> None:
        path = write(tmp_path, answer(lose()[1]))
        (gate,) = decide(path, time(3.0), Thresholds(max_slowdown=1.1), SLOWDOWN).gates
        assert (gate.outcome, "no latency at batch 1" in gate.why) == ("inconclusive", True)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"candidates": [{"about": 1}]}', "[" * 5000])
def test_what_is_no_baseline_is_said(tmp_path, text) -> None:
    path = tmp_path / "gate.json"
    path.write_text(text)
    with pytest.raises(InputError, match="is no baseline") as raised:
        read_baseline(path)
    assert raised.value.code == "VD3032"


def test_a_damaged_bitmap_is_no_baseline(tmp_path) -> None:
    path = write(tmp_path, answer(lose()[1]))
    path.write_text(path.read_text().replace('"images": 1000', '"images": 2000'))
    with pytest.raises(InputError, match="bytes for 2000 bits"):
        read_baseline(path)
    with pytest.raises(InputError, match="can't be read"):
        read_baseline(tmp_path / "none.json")


def test_nothing_to_keep_and_two_of_one_name_are_refused() -> None:
    with pytest.raises(UsageError, match="nothing for a baseline"):
        make_baseline([Report(title="validate")])
    with pytest.raises(UsageError, match="two candidates are called vit, engine"):
        make_baseline([answer(lose()[1]), answer(lose()[1], "two")])
