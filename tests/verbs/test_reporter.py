"""The page's parts are found by what a run is: a report, a verdict, a model, the folder of a build."""

import shutil

import msgspec
import numpy as np
import pytest
from PIL import Image

from tests.render.test_page import make_timing, make_validation, make_verdict
from vitdeploy import jsonfile
from vitdeploy.errors import InputError, UsageError
from vitdeploy.report import Images, WorstImage
from vitdeploy.verbs.reporter import write_page


@pytest.fixture
def runs(tmp_path):
    for name, content in (("run", make_validation()), ("bench", make_timing()), ("gate", make_verdict())):
        (tmp_path / f"{name}.json").write_text(jsonfile.encode(content))
    return [tmp_path / f"{name}.json" for name in ("run", "bench", "gate")]


def test_reports_verdicts_and_models(runs, tiny_artifact, tmp_path):
    page = write_page([*runs, tiny_artifact.folder], tmp_path / "page.html")
    assert (page.reports, page.verdicts, page.models, page.thumbnails) == (2, 1, 1, 0)
    text = (tmp_path / "page.html").read_text()
    assert page.bytes == len(text.encode())
    assert "Made: tiny" in text and "Failed" in text and "validate: vit-int8" in text


def test_a_folder_of_a_build(tiny_artifact, tmp_path):
    shutil.copytree(tiny_artifact.folder, tmp_path / "out" / "export")
    (tmp_path / "out" / "report.json").write_text(jsonfile.encode(make_validation()))
    page = write_page([tmp_path / "out"], tmp_path / "page.html")
    assert (page.reports, page.models) == (1, 1)
    assert "Made: export" in (tmp_path / "page.html").read_text()


def test_the_worst_images_are_shown_as_the_model_sees_them(tiny_artifact, tmp_path):
    (tmp_path / "photos").mkdir()
    Image.fromarray(np.full((300, 200, 3), 77, np.uint8)).save(tmp_path / "photos" / "a.png")
    (tmp_path / "photos" / "b.png").write_bytes(b"broken")
    worst = tuple(WorstImage(f"{name}.png", 1.0) for name in "abc")
    contract = msgspec.to_builtins(tiny_artifact.spec.input)
    report = make_validation()
    settings = {**report.settings, "contract": contract}
    report = msgspec.structs.replace(report, images=Images(digest="", count=3, worst={"engine": worst}), settings=settings)
    (tmp_path / "run.json").write_text(jsonfile.encode(report))
    page = write_page([tmp_path / "run.json"], tmp_path / "page.html", data=tmp_path / "photos")
    assert page.thumbnails == 1  # one is damaged, one is not there
    assert (tmp_path / "page.html").read_text().count("<img ") == 1


def test_what_is_no_run(tmp_path):
    with pytest.raises(UsageError, match="nothing to report"):
        write_page([], tmp_path / "page.html")
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(InputError, match="is no report") as raised:
        write_page([tmp_path / "x.json"], tmp_path / "page.html")
    assert raised.value.code == "VD3028"
    assert not (tmp_path / "page.html").exists()
