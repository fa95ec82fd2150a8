"""Whether a model fits is found by running it, and an engine that can't is an answer."""

import io

import pytest

from vitdeploy.errors import MachineError
from vitdeploy.measure import latency
from vitdeploy.measure.latency import Measured
from vitdeploy.render import checkups, console
from vitdeploy.report import Metric, Row
from vitdeploy.verbs import fitter
from vitdeploy.verbs.fitter import try_fit


@pytest.fixture
def times(monkeypatch):
    """Of each engine, in ms; one that crashes is None."""
    told = {"onnxruntime": 2.0, "openvino": 1.0}

    def measure(subjects, config):
        (subject,) = subjects
        if told[subject.backend] is None:
            raise MachineError("VD4007", "the engine crashed")
        metrics = {"p50": Metric(told[subject.backend], "ms"), "peak_memory": Metric(100.0, "MiB"), "size": Metric(5.0, "MiB")}
        return Measured((Row(subject.name, metrics),), {}, 3, 0.0)

    monkeypatch.setattr(latency, "measure", measure)
    monkeypatch.setattr(fitter.machine, "free_mib", lambda: 2048.0)
    return told


def test_the_fastest_is_named_and_memory_is_a_share_of_what_is_free(times, tiny_artifact):
    first, second = try_fit(tiny_artifact, ["onnxruntime", "openvino"])
    assert (first.engine, first.best, second.best) == ("onnxruntime", False, True)
    assert first.detail == "4.9 % of 2.0 GiB that are free"
    (table,) = checkups._tabulate_fits([first, second])
    stream = io.StringIO()
    console.print_tables([table], stream)
    assert "yes, the fastest" in stream.getvalue() and "1.00 ms" in stream.getvalue()


def test_an_engine_that_cannot_is_an_answer_and_one_alone_is_no_fastest(times, tiny_artifact):
    times["openvino"] = None
    first, second = try_fit(tiny_artifact, ["onnxruntime", "openvino"])
    assert (second.runs, second.detail, second.latency) == (False, "the engine crashed", None)
    assert first.runs and not first.best


@pytest.mark.slow
def test_really_runs(tiny_artifact):
    (fit,) = try_fit(tiny_artifact, ["onnxruntime"])
    assert fit.runs and fit.latency.value > 0 and fit.memory.value > 10
