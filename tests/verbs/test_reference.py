"""What is compared with what where the original can't be run; never a thing with itself."""

import shutil
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from PIL import Image

from vitdeploy.artifact import METADATA_SPEC, RECORD, Artifact, Record, seal
from vitdeploy.data import synthetic
from vitdeploy.errors import InputError, UsageError
from vitdeploy.proof import golden
from vitdeploy.recipe import BenchConfig, CompileConfig, ExportConfig, ModelConfig, QuantizeConfig, ValidateConfig
from vitdeploy.record import Origin
from vitdeploy.verbs.bencher import bench
from vitdeploy.verbs.compiler import compile
from vitdeploy.verbs.exporter import export
from vitdeploy.verbs.importer import open_foreign
from vitdeploy.verbs.quantizer import quantize
from vitdeploy.verbs.reference import find_float, find_reference, read_recorded, take_reference
from vitdeploy.verbs.validator import validate

ALONE = ValidateConfig(backends=("onnxruntime",), threads=1)
INT8 = QuantizeConfig(calibration="random", limit=8, verify=False, threads=1)


@pytest.fixture(scope="module")
def line(tiny_artifact, tmp_path_factory) -> Path:
    """A folder with what becomes of a module: an export without weights, its INT8, and that compiled."""
    folder = tmp_path_factory.mktemp("line")
    (folder / "mod").mkdir()
    for name in ("model.onnx", golden.FILE):
        shutil.copy(tiny_artifact.folder / name, folder / "mod" / name)
    record = msgspec.structs.replace(tiny_artifact.record, weights=None, origin=Origin(module="their.code:build"), files={})
    seal(folder / "mod", record)
    quantize(folder / "mod", INT8, folder / "mod-int8")
    compile(folder / "mod-int8", CompileConfig(backend="onnxruntime", threads=1), folder / "mod-ort")
    return folder


@pytest.fixture
def copy(line, tmp_path) -> Path:
    """The same, to be changed."""
    return Path(shutil.copytree(line, tmp_path / "line"))


class TestRecorded:
    """What the original gave for the golden batch."""

    def test_it_travels_from_artifact_to_artifact(self, line, tiny_artifact) -> None:
        first = golden.read(tiny_artifact)
        assert first.author == "pytorch"
        assert 0 < np.abs(first.original - first.output).max() < 1e-4  # another's numbers, not its own
        for name in ("mod-int8", "mod-ort"):
            kept = golden.read(Artifact.open(line / name))
            assert kept.author == "pytorch"
            np.testing.assert_array_equal(kept.original, first.original)
            np.testing.assert_array_equal(kept.pixels, first.pixels)
            assert np.abs(kept.output - first.output).max() > 1e-3  # its own: 8 bits

    def test_an_fp32_artifact_is_compared_with_it(self, line) -> None:
        report = validate(line / "mod", ALONE)
        assert [row.subject for row in report.rows] == ["pytorch (recorded)", "onnxruntime"]
        assert report.reference == "pytorch (recorded)" and report.parts == ()
        metrics = report.rows[1].metrics
        assert metrics["images"].value == golden.IMAGES
        assert 90 < metrics["sqnr"].value < np.inf
        assert report.verdict.outcome == "pass"
        assert any("it is the code their.code:build, which is imported only where --against names it" in n for n in report.notes)

    def test_another_function_fails(self, copy) -> None:
        mod = Artifact.open(copy / "mod")
        batch = golden.read(mod)
        batch._replace(original=batch.original * np.float32(1.01)).write(mod.folder)
        reseal(mod.folder, mod.record)
        report = validate(mod.folder, ALONE)
        assert (report.verdict.outcome, report.passed) == ("fail", False)
        report = validate(copy / "mod", msgspec.structs.replace(ALONE, backends=("onnxruntime", "openvino")))
        assert [(part.reference, part.verdict) for part in report.parts] == [("pytorch (recorded)", None)]
        assert report.reference == "onnxruntime"
        assert not report.passed
        assert {gate.subject: gate.outcome for gate in report.verdict.gates if gate.outcome == "fail"} == {
            "onnxruntime": "fail",
            "openvino": "fail",
        }

    @pytest.mark.slow
    def test_more_of_it_on_request(self, tiny_artifact, tmp_path) -> None:
        config = ExportConfig(prove_batches=(1, 2), golden=7)
        made = export(ModelConfig(source=str(tiny_artifact.folder)), config, tmp_path / "out")
        kept = golden.read(made)
        assert len(kept.pixels) == len(kept.original) == len(kept.output) == 7
        report = validate(made, msgspec.structs.replace(ALONE, backends=("pytorch", "onnxruntime")))
        assert report.reference == "pytorch" and report.parts == ()
        np.testing.assert_array_equal(kept.pixels, synthetic.pixels(7, made.spec.input))
        np.testing.assert_allclose(kept.output, kept.original, atol=1e-4)

    def test_where_only_the_file_was_recorded_that_is_the_original(self, copy, tmp_path) -> None:
        """Exports of earlier versions: what the FP32 file gave, where it was made and proven, and it is said."""
        mod = Artifact.open(copy / "mod")
        forget(mod)
        report = validate(mod.folder, msgspec.structs.replace(ALONE, backends=("openvino",)))
        assert [row.subject for row in report.rows] == ["onnxruntime (recorded)", "openvino"]
        assert 90 < report.rows[1].metrics["sqnr"].value < np.inf and report.verdict.outcome == "pass"
        assert any("what this file, where it was made, gave in onnxruntime for the 4 images" in note for note in report.notes)
        made = quantize(mod.folder, INT8, tmp_path / "alone" / "int8")
        kept = golden.read(made)
        np.testing.assert_array_equal(kept.original, golden.read(mod).output)
        shutil.rmtree(copy / "mod")
        report = validate(made, ALONE)
        assert report.reference == "onnxruntime (recorded)"
        assert 10 < report.rows[1].metrics["sqnr"].value < 80
        assert any("what the FP32 file gave in onnxruntime for" in note for note in report.notes)

    def test_what_was_made_before_asks_what_it_was_made_of(self, copy) -> None:
        made = Artifact.open(copy / "mod-int8")
        assert golden.read(made).settle(made).author == "pytorch"
        forget(made)
        made = Artifact.open(copy / "mod-int8")
        assert golden.read(made).original is None  # 8 bits are nobody's original
        kept = read_recorded(made, None)
        assert kept.author == "pytorch"
        np.testing.assert_array_equal(kept.original, golden.read(Artifact.open(copy / "mod")).original)
        np.testing.assert_array_equal(kept.output, golden.read(made).output)
        (copy / "mod" / golden.FILE).unlink()
        shutil.rmtree(copy / "mod")
        assert read_recorded(made, None) is None

    def test_more_than_is_read_back_is_refused(self, tiny_artifact) -> None:
        size = 16 * 24 * 3
        golden.require_room((128 << 20) // size, tiny_artifact)
        with pytest.raises(UsageError, match=f"use --golden {(128 << 20) // size:,} or fewer") as caught:
            golden.require_room((128 << 20) // size + 1, tiny_artifact)
        assert caught.value.code == "VD2011"

    def test_one_that_does_not_fit_is_damaged(self, copy) -> None:
        mod = Artifact.open(copy / "mod")
        batch = golden.read(mod)
        batch._replace(original=batch.original[:, 1:]).write(mod.folder)
        reseal(mod.folder, mod.record)
        with pytest.raises(InputError, match="of the original") as caught:
            golden.read(Artifact.open(mod.folder))
        assert caught.value.code == "VD3010"


class TestFloat:
    """The FP32 file that something was made of."""

    @pytest.mark.parametrize("name", ["mod-int8", "mod-ort"])
    def test_what_was_made_of_it_is_compared_with_it(self, line, name) -> None:
        report = validate(line / name, ALONE)
        assert report.reference == "mod / onnxruntime"
        assert [row.subject for row in report.rows] == ["mod / onnxruntime", "onnxruntime"]
        assert 10 < report.rows[1].metrics["sqnr"].value < 80  # INT8 beside FP32, not beside itself
        (part,) = report.parts
        assert (part.reference, part.rows[1].subject) == ("pytorch (recorded)", "onnxruntime")

    def test_it_is_found_by_its_id(self, copy) -> None:
        made = Artifact.open(copy / "mod-ort")
        assert find_float(made).folder.name == "mod"
        assert find_float(Artifact.open(copy / "mod")) is None
        (copy / "mod").rename(copy / "other name")
        assert find_float(Artifact.open(copy / "mod-int8")).folder.name == "other name"
        shutil.rmtree(copy / "mod-int8")  # what lies between says what it was made of
        assert find_float(made) is None

    def test_a_changed_one_is_another(self, copy) -> None:
        made = Artifact.open(copy / "mod-int8")
        changed = onnx.load(copy / "mod" / "model.onnx")
        changed.doc_string = "another"
        onnx.save(changed, copy / "mod" / "model.onnx")
        assert find_float(made) is None
        reseal(copy / "mod", Artifact.open(copy / "mod", verify=False).record)
        assert Artifact.open(copy / "mod").is_float
        assert find_float(made) is None

    def test_without_it_what_was_recorded_is_left(self, copy, tmp_path) -> None:
        shutil.move(copy / "mod-int8", tmp_path / "alone" / "mod-int8")
        report = validate(tmp_path / "alone" / "mod-int8", ALONE)
        assert report.reference == "pytorch (recorded)"
        assert 10 < report.rows[1].metrics["sqnr"].value < 80

    def test_a_file_made_elsewhere_is_one_too(self, tiny_artifact, tmp_path) -> None:
        strip(tiny_artifact, tmp_path / "theirs.onnx")
        (tmp_path / "input.json").write_bytes(msgspec.json.encode(tiny_artifact.spec.input))
        source = open_foreign(tmp_path / "theirs.onnx", tmp_path / "input.json")
        made = quantize(source, INT8, tmp_path / "int8")
        assert made.record.original == "../theirs.onnx"
        report = validate(made, ALONE)
        assert (report.reference, report.parts) == ("theirs.onnx / onnxruntime", ())
        assert 10 < report.rows[1].metrics["sqnr"].value < 80
        (tmp_path / "theirs.onnx").unlink()
        report = validate(made, ALONE)  # what it gave is recorded
        assert report.reference == "onnxruntime (recorded)"
        assert 10 < report.rows[1].metrics["sqnr"].value < 80
        strip(tiny_artifact, tmp_path / "theirs.onnx", doc="another")
        assert find_float(made) is None

    @pytest.mark.slow
    def test_bench_has_it_as_a_row(self, line) -> None:
        quick = BenchConfig(rounds=1, seconds=0.01, warmup=0, threads=1, backends=("onnxruntime",))
        report = bench([line / "mod-int8"], quick)
        assert [row.subject for row in report.rows] == ["mod / onnxruntime", "onnxruntime"]
        assert report.reference == "mod / onnxruntime"
        assert all("speedup" in row.metrics for row in report.rows)
        report = bench([line / "mod-int8", line / "mod"], quick)
        assert [row.subject for row in report.rows] == ["mod-int8 / onnxruntime", "mod / onnxruntime"]
        assert {row.settings["reference"] for row in report.rows} == {"mod / onnxruntime"}
        report = bench([line / "mod"], quick)
        assert (report.reference, "speedup" in report.rows[0].metrics) == ("", False)


class TestNothing:
    """One engine and nothing beside it."""

    @pytest.fixture
    def bare(self, line) -> Artifact:
        model = Artifact.open(line / "mod")
        return Artifact(model.folder, Record(entry="model.onnx", spec=model.spec, made_by="import"))

    def test_is_refused(self, bare) -> None:
        with pytest.raises(UsageError, match=r"there is nothing to compare with: .* all that runs; give --against") as caught:
            validate(bare, ALONE)
        assert caught.value.code == "VD2010"

    def test_has_an_accuracy_all_the_same(self, bare, tmp_path) -> None:
        for index, pixels in enumerate(synthetic.pixels(6, bare.spec.input)):
            (tmp_path / f"{index % 3:02}").mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / f"{index % 3:02}" / f"{index}.png")
        (tmp_path / "rows.csv").write_text("path,label\n" + "".join(f"{n % 3:02}/{n}.png,{n % 3}\n" for n in range(6)))
        config = msgspec.structs.replace(ALONE, data=str(tmp_path / "rows.csv"))
        report = validate(bare, config)
        (row,) = report.rows
        assert (row.subject, set(row.metrics)) == ("onnxruntime", {"top1", "top5", "calibration_error"})
        assert report.reference == ""
        assert any("was not measured" in note and "(--against)" in note for note in report.notes)
        judged = validate(bare, msgspec.structs.replace(config, max_drop="1 pt"))
        assert not judged.passed and "(--against)" in judged.verdict.gates[0].why


class TestAgainst:
    """What the caller names."""

    def test_an_artifact(self, line) -> None:
        report = validate(line / "mod-int8", ALONE, against=line / "mod")
        assert (report.reference, report.parts) == ("mod / onnxruntime", ())
        assert 10 < report.rows[1].metrics["sqnr"].value < 80

    def test_a_file_that_says_nothing_of_its_input(self, line, tiny_artifact, tmp_path) -> None:
        strip(tiny_artifact, tmp_path / "theirs.onnx")
        report = validate(line / "mod", ALONE, against=str(tmp_path / "theirs.onnx"))
        assert report.reference == "theirs.onnx / onnxruntime"
        assert report.rows[1].metrics["max_abs_difference"].value == 0 and report.verdict.outcome == "pass"

    def test_pixels_are_prepared_as_each_takes_them(self, tiny_artifact, tiny_bytes) -> None:
        report = validate(tiny_artifact, ALONE, against=tiny_bytes)
        assert report.rows[1].metrics["sqnr"].value > 90
        assert not any("contract is another" in note for note in report.notes)

    def test_itself_is_refused(self, line) -> None:
        for against in (line / "mod", line / "mod" / "model.onnx", Artifact.open(line / "mod")):
            with pytest.raises(UsageError, match="nothing is compared with itself") as caught:
                validate(line / "mod", ALONE, against=against)
            assert caught.value.code == "VD2010"

    def test_another_model_is_refused(self, line, tiny_headless) -> None:
        with pytest.raises(UsageError, match=r"gives 32 numbers, the artifact .* gives 12") as caught:
            take_reference(Artifact.open(line / "mod"), tiny_headless)
        assert caught.value.code == "VD2010"

    def test_the_original_needs_nobody_to_name_it(self, tiny_artifact) -> None:
        reference = find_reference(tiny_artifact, ("onnxruntime",), ())
        assert (reference.name, reference.note, read_recorded(tiny_artifact, reference)) == ("pytorch", "", None)


def forget(artifact: Artifact) -> None:
    """The golden batch as it was before the original's outputs were recorded."""
    golden.read(artifact)._replace(original=None, author="").write(artifact.folder)
    reseal(artifact.folder, artifact.record)


def reseal(folder: Path, record: Record) -> None:
    """Write the record of a folder in which a file was changed."""
    (folder / RECORD).unlink()
    seal(folder, msgspec.structs.replace(record, files={}))


def strip(artifact: Artifact, path: Path, doc: str = "") -> None:
    """The model as a file that was made elsewhere."""
    model = onnx.load(artifact.model)
    kept = [entry for entry in model.metadata_props if entry.key != METADATA_SPEC]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    model.doc_string = doc
    onnx.save(model, path)
