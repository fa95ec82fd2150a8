"""The steps of a quantization: which images each of them sees, and that none is left out."""

from __future__ import annotations

import pytest
from PIL import Image

from tests.quant.in_process import quantize
from vitdeploy.quant import acceptance
from vitdeploy.quant.pictures import Pictures
from vitdeploy.recipe import QuantizeConfig
from vitdeploy.record import Worth


@pytest.fixture
def seen(monkeypatch):
    """Parts of the images in the order in which they are asked for; those that judge are read."""
    asked, real = [], Pictures.part

    def part(self, name):
        asked.append(name)
        return real(self, name)

    def worth(comparison, batches, progress):
        return Worth(
            engine=comparison.engine,
            reference="",
            images=sum(len(names) for _, names in batches),
            held_back=comparison.held_back,
            verdict="judged",
        )

    monkeypatch.setattr(Pictures, "part", part)
    monkeypatch.setattr(acceptance, "worth", worth)
    return asked


@pytest.mark.parametrize(("count", "held"), [(20, 5), (10, 0)])
def test_held_back_images_judge_and_set_no_range(tiny_artifact, tmp_path, seen, count, held):
    (tmp_path / "images").mkdir()
    for number in range(count):
        Image.new("RGB", (24, 16), (7 * number, 100, 10 * number)).save(tmp_path / "images" / f"{number}.png")
    heard = []
    config = QuantizeConfig(target="onnxruntime", calibration=str(tmp_path / "images"), threads=1)
    made = quantize(tiny_artifact, config, tmp_path / "out", progress=lambda what, *_: heard.append(what))
    assert seen[:3] == ["ranges", "first", "second"]
    assert set(seen[3:-1]) == {"ranges"}
    assert seen[-1] == ("held" if held else "ranges")
    proof = made.record.proof
    assert (proof.worth.images, proof.worth.held_back, proof.verdict) == (held or count, held > 0, "judged")
    assert proof.calibration.images == count - held
    assert "moments" in heard, "weights are rounded against moments of images, not of the few rows that were kept"
    assert any("advised" in note for note in proof.notes)
