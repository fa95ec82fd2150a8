"""The original runs once for all artifacts that are compared with it."""

import errno

import numpy as np
import pytest

from tests.verbs.test_trial import SHORT
from vitdeploy.backends.base import OpenConfig
from vitdeploy.errors import MachineError
from vitdeploy.verbs import reference as references
from vitdeploy.verbs.remembered import Remembered
from vitdeploy.verbs.validator import validate


class Counted:
    """A runner that says how often it was asked."""

    batch = None
    opened = 0

    def __init__(self, config: OpenConfig) -> None:
        type(self).opened += 1
        self.settings, self.asked = {"backend": "pytorch", "threads": config.threads}, 0

    def run(self, tensor):
        self.asked += 1
        return {"logits": tensor.reshape(len(tensor), -1).astype(np.float32) * 2}

    def kernels(self):
        return ("none",)

    def close(self) -> None:
        self.asked = -1


@pytest.fixture
def folder(tmp_path):
    Counted.opened = 0
    return tmp_path / "kept"


def test_what_was_asked_before_is_not_run_again(folder) -> None:
    first = Remembered(Counted, OpenConfig(threads=3), folder)
    one, other = np.arange(12, dtype=np.float32).reshape(2, 6), np.arange(12, dtype=np.uint8).reshape(2, 6)
    given = [
        first.run(one)["logits"],
        first.run(one)["logits"],
        first.run(other)["logits"],
        first.run(one.reshape(3, 4))["logits"],
    ]
    assert first._runner.asked == 3
    np.testing.assert_array_equal(given[0], given[1])
    first.close()
    second = Remembered(Counted, OpenConfig(threads=3), folder)
    np.testing.assert_array_equal(second.run(one)["logits"], given[0])
    assert second.run(other)["logits"].dtype == np.float32
    assert Counted.opened == 1
    assert second.settings == {"backend": "pytorch", "threads": 3} and Counted.opened == 2  # nobody had asked before
    third = Remembered(Counted, OpenConfig(threads=3), folder)
    assert third.settings == second.settings and Counted.opened == 2
    third.close()
    assert third.kernels() == ("none",)


def test_a_full_disk_is_told(folder, monkeypatch) -> None:
    def fill(path, **arrays):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", fill)
    with pytest.raises(MachineError, match="VD4002"):
        Remembered(Counted, OpenConfig(threads=3), folder).run(np.zeros((1, 2), np.float32))


def test_validate_runs_the_original_once_for_several_artifacts(tiny_artifact, tmp_path, monkeypatch) -> None:
    opened = []
    real = references.open_in_child
    monkeypatch.setattr(references, "open_in_child", lambda name, *rest: opened.append(name) or real(name, *rest))
    plain = validate(tiny_artifact, SHORT)
    reports = [validate(tiny_artifact, SHORT, kept=tmp_path) for _ in range(3)]
    assert opened == ["pytorch", "pytorch"]  # once without, once for all three
    for report in reports:
        assert report.rows == plain.rows and report.settings == plain.settings
