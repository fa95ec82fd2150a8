import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from vitdeploy.artifact import Artifact
from vitdeploy.backends.base import OpenConfig
from vitdeploy.errors import InputError, MachineError, UsageError
from vitdeploy.isolate import ChildCrash
from vitdeploy.measure import latency
from vitdeploy.measure import worker as worker_module
from vitdeploy.measure.latency import Goal, Subject, measure
from vitdeploy.measure.worker import Worker
from vitdeploy.recipe import BenchConfig
from vitdeploy.report import Metric

QUICK = BenchConfig(rounds=5, seconds=0.01, warmup=1, threads=1)


def is_alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def is_gone(pid: int, seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while is_alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not is_alive(pid)


@pytest.fixture
def worker(tiny_artifact):
    with Worker("tiny / onnxruntime", tiny_artifact, "onnxruntime", OpenConfig(threads=1)) as started:
        started.open()
        yield started


def test_rows_and_columns(tiny_artifact):
    heard = []
    subjects = [
        Subject("tiny / openvino", tiny_artifact, "openvino", "tiny / openvino"),
        Subject("tiny / onnxruntime", tiny_artifact, "onnxruntime", "tiny / openvino"),
    ]
    config = BenchConfig(batches=(3, 1), rounds=5, seconds=0.02, warmup=1, threads=1)
    rows = measure(subjects, config, progress=lambda *news: heard.append(news)).rows
    assert [(row.subject, row.settings["batch"]) for row in rows] == [
        ("tiny / openvino", 1),
        ("tiny / onnxruntime", 1),
        ("tiny / openvino", 3),
        ("tiny / onnxruntime", 3),
    ]
    for row in rows:
        metrics = row.metrics
        assert 0 < metrics["p50"].value <= metrics["p90"].value <= metrics["p99"].value
        assert metrics["throughput"].value == pytest.approx(1000 * row.settings["batch"] / metrics["mean"].value)
        assert metrics["runs"].value >= 5
        assert metrics["peak_memory"].value > 10
        assert metrics["load"].value > 0
        assert row.settings["threads"] == 1
    reference, engine = rows[:2]
    assert reference.metrics["speedup"].value == 1
    assert reference.metrics["speedup"].low is None
    assert engine.metrics["speedup"].low <= engine.metrics["speedup"].value <= engine.metrics["speedup"].high
    assert heard[0] == ("bench", 0, 20)
    assert heard[-1] == ("bench", 20, 20)
    assert [done for _, done, _ in heard] == sorted(done for _, done, _ in heard)


def test_every_subject_takes_every_place(monkeypatch, tiny_artifact):
    order = []

    class Fake:
        def __init__(self, name):
            self.name = name

        def run(self, seconds):
            order.append(self.name)
            return [1.0]

    monkeypatch.setattr(latency, "PAUSE_S", 0)
    workers = {name: Fake(name) for name in "abc"}
    taken = {name: latency._Times(0.0) for name in "abc"}
    latency._run_rounds(workers, taken, BenchConfig(rounds=3), lambda done: None)
    assert "".join(order) == "abcbcacab"


def test_a_row_of_known_times(tiny_artifact):
    """101 runs of 0 to 100 ms: every quantile is its own number; the reference's round medians are three times as long."""
    own = latency._Times(7.0, 50.0, [[float(time) for time in range(101)]] + [[50.0]] * 4)
    reference = latency._Times(0.0, rounds=[[150.0]] * 5)
    subject = Subject("own", tiny_artifact, "onnxruntime", "reference")
    opened = SimpleNamespace(load_ms=3.0, settings={})
    metrics = latency._make_row(subject, 4, {"own": own, "reference": reference}, opened).metrics
    values = [metrics[name].value for name in ("p50", "p90", "p99", "mean")]
    assert values == pytest.approx([50, 89.6, 98.96, 50])
    assert metrics["throughput"].value == 80
    assert (metrics["speedup"].value, metrics["speedup"].low, metrics["speedup"].high) == (3, 3, 3)
    assert (metrics["load"].value, metrics["first_run"].value, metrics["peak_memory"].value) == (3, 7, 50)
    assert metrics["runs"].value == 105


def test_energy_is_of_all_runs_and_of_one_image(tiny_artifact):
    """Two rounds of 3 and 1 counted runs, and one more each that is not counted: 6 runs of 4 images took 12 J."""
    subject, opened = Subject("own", tiny_artifact, "onnxruntime"), SimpleNamespace(load_ms=3.0, settings={})

    def make_row(joules):
        own = latency._Times(0.0, rounds=[[1.0] * 3, [1.0]], joules=joules)
        return latency._make_row(subject, 4, {"own": own}, opened)

    assert make_row([8.0, 4.0]).metrics["energy"] == Metric(0.5, "J/image")
    for unknown in ([None, None], [8.0, None], []):
        assert "energy" not in make_row(unknown).metrics


def test_few_rounds_give_no_interval(tiny_artifact):
    subjects = [Subject(name, tiny_artifact, "onnxruntime", reference) for name, reference in (("a", None), ("b", "a"))]
    measured = measure(subjects, BenchConfig(rounds=2, seconds=0.01, warmup=0, threads=1))
    assert "speedup" not in measured.rows[0].metrics
    assert measured.rows[1].metrics["speedup"].low is None
    assert measured.rounds == 2
    assert set(measured.variation) == {("a", 1), ("b", 1)}


class Scripted:
    """A worker whose rounds take what a script says, the last time for ever."""

    def __init__(self, name, *_):
        self.name, self.left = name, list(TIMES[name])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def open(self):
        return SimpleNamespace(load_ms=1.0, settings={})

    def prepare(self, batch, warmup):
        return 1.0

    def peak_mib(self):
        return 1.0

    def run(self, seconds):
        return [self.left.pop(0) if len(self.left) > 1 else self.left[0]]


TIMES = {
    "source": [10.0],
    "steady": [5.0],
    "settling": [5.0, 2.0, 9.0, 2.0, 9.0, 2.0, 5.0],
    "restless": [2.0, 9.0] * 100,
}


@pytest.mark.parametrize(
    ("name", "rounds"),
    [("steady", 5), ("settling", range(7, 40)), ("restless", 40)],
)
def test_rounds_go_on_until_the_speedup_is_known(name, rounds, tiny_artifact, monkeypatch):
    heard = []
    monkeypatch.setattr(latency, "PAUSE_S", 0)
    monkeypatch.setattr(latency, "Worker", Scripted)
    monkeypatch.setattr(latency.machine, "load", lambda: 0.7)
    subjects = [Subject(each, tiny_artifact, "onnxruntime", "source") for each in ("source", name)]
    measured = measure(subjects, QUICK, goal=Goal(0.1, 40), progress=lambda *news: heard.append(news))
    assert measured.rounds in (rounds if isinstance(rounds, range) else (rounds,))
    assert measured.load == 0.7
    speedup = measured.rows[1].metrics["speedup"]
    assert (speedup.high - speedup.low <= 0.1 * speedup.value) == (name != "restless")
    assert heard[0] == ("bench", 0, 80)
    assert heard[-1] == ("bench", 80, 80)
    assert [done for _, done, _ in heard] == sorted(done for _, done, _ in heard)
    assert measure(subjects, QUICK).rounds == 5, "without a goal, what was asked for"


def test_a_subjects_own_settings_go_before_the_benchmarks(tiny_artifact):
    given = {"plain": None, "two": OpenConfig(threads=2), "usual": OpenConfig()}
    subjects = [Subject(name, tiny_artifact, "onnxruntime", config=config) for name, config in given.items()]
    rows = measure(subjects, BenchConfig(rounds=1, seconds=0.01, warmup=0, threads=1)).rows
    assert {row.subject: row.settings["threads"] for row in rows} == {"plain": 1, "two": 2, "usual": 1}


def test_an_artifact_of_another_engine_is_refused_before_anything_is_started(tiny_artifact, monkeypatch):
    monkeypatch.setattr(worker_module, "start", lambda *_: pytest.fail("a process was started"))
    other = Artifact(tiny_artifact.folder, msgspec.structs.replace(tiny_artifact.record, kind="openvino"))
    with pytest.raises(UsageError) as caught:
        measure([Subject("x", other, "onnxruntime")], QUICK)
    assert caught.value.code == "VD2013"


def test_worker_measures_its_own_peak(tiny_artifact, worker):
    """A large parent must not show in the child's peak (ru_maxrss would inherit it)."""
    ballast = np.ones((1 << 29) // 8)  # 512 MiB
    with Worker("second", tiny_artifact, "onnxruntime", OpenConfig(threads=1)) as second:
        second.open()
        assert second.peak_mib() < 400
    assert ballast.nbytes == 1 << 29


def test_worker_runs_for_the_time_asked(worker):
    assert worker.prepare(2, 1) > 0
    start = time.monotonic()
    times = worker.run(0.2)
    assert 0.2 <= time.monotonic() - start < 2
    assert all(value > 0 for value in times)
    assert math.fsum(times) >= 100


def test_engines_errors_cross_the_pipe(tiny_static):
    subject = Subject("static", tiny_static, "onnxruntime", None)
    with pytest.raises(InputError, match=r"\[4, 3, 16, 24\]") as caught:
        measure([subject], QUICK)
    assert caught.value.code == "VD3107"
    assert caught.value.fix == "use batch 4"


def test_a_dead_worker_is_named_with_its_signal(worker):
    os.kill(worker._child.pid, signal.SIGKILL)
    with pytest.raises(
        MachineError, match=r"'tiny / onnxruntime' \(onnxruntime [\d.]+\) was ended by SIGKILL: it had used"
    ) as caught:
        worker.run(0.1)
    assert caught.value.code == "VD4007"
    assert caught.value.file == str(worker._opening[1].model)
    assert "memory" in caught.value.fix


def test_a_worker_that_fails_tells_its_last_words(tiny_artifact):
    """A mistake of this program in the child is one here, with its words: no engine's error."""
    with (
        Worker("odd", tiny_artifact, "onnxruntime", OpenConfig(threads="two")) as odd,  # type: ignore[arg-type]
        pytest.raises(ChildCrash, match=r"measuring process of 'odd'.*Expected `int"),
    ):
        odd.open()


def test_leaving_ends_the_process_at_once(tiny_artifact):
    with Worker("w", tiny_artifact, "onnxruntime", OpenConfig(threads=1)) as started:
        pid = started._child.pid
        started.open()
        assert is_alive(pid)
        start = time.monotonic()
    assert time.monotonic() - start < 1
    assert is_gone(pid)


SCRIPT = """
    import sys
    from pathlib import Path
    from vitdeploy.artifact import Artifact
    from vitdeploy.measure import latency
    from vitdeploy.measure.worker import Worker
    from vitdeploy.recipe import BenchConfig
    artifact = Artifact.open(Path(sys.argv[1]))
    start = Worker.open
    def open_and_tell(worker):
        opened = start(worker)
        print(worker._child.pid, flush=True)
        return opened
    Worker.open = open_and_tell
    subjects = [latency.Subject(name, artifact, "onnxruntime", None) for name in "ab"]
    latency.measure(subjects, BenchConfig(rounds=1000, seconds=1.0, threads=1))
"""


@pytest.mark.sampled(3)
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_child_outlives_the_parent(how, tiny_artifact):
    """The script has no ``if __name__ == "__main__"``: nothing of it may run again in the children."""
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(tiny_artifact.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        children = [int(parent.stdout.readline()) for _ in range(2)]
        time.sleep(0.3)
        start = time.monotonic()
        parent.send_signal(how)
        parent.wait(10)
        assert time.monotonic() - start < 3
        assert all(is_gone(pid) for pid in children)


def test_workers_import_their_own_engine_only(tiny_artifact):
    code = "import sys, vitdeploy.measure.worker as w; print({'torch', 'onnx', 'onnxruntime', 'openvino'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
