"""`build`: what is done and unchanged is skipped, what changed is done again, and a killed build goes on.

The verbs are stand-ins that count their calls; `tests/cli/test_commands.py` runs the real ones.
"""

import itertools
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from PIL import Image

from vitdeploy import files
from vitdeploy.artifact import OURS, RECORD, Artifact, Record, seal, set_key
from vitdeploy.errors import InputError, MachineError, UsageError
from vitdeploy.progress import silent
from vitdeploy.recipe import (
    BenchConfig,
    CompileConfig,
    ExportConfig,
    ModelConfig,
    QuantizeConfig,
    Recipe,
    ValidateConfig,
)
from vitdeploy.record import Audit, CompileProof, Origin
from vitdeploy.report import Images, Metric, Report, Row, WorstImage
from vitdeploy.spec import read_spec
from vitdeploy.tomlfile import read_toml
from vitdeploy.verbs import builder
from vitdeploy.verbs.builder import build
from vitdeploy.verbs.keys import key_of
from vitdeploy.verbs.ledger import open_line

SPEC = 'name = "small"\nwidth = 32\ndepth = 1\nheads = 2\nclasses = 3\n[input]\nheight = 32\nwidth = 32\n'


class Verbs:
    """Stand-ins for the verbs, with what was called and what shall fail."""

    def __init__(self) -> None:
        self.called: list[str] = []
        self.fails: dict[str, BaseException] = {}
        self.calls = itertools.count()  # no report is like the one before, as with the real verbs

    def _call(self, name: str) -> None:
        self.called.append(name)
        if name in self.fails:
            raise self.fails[name]

    def export(self, model, config, out, *, force, progress):
        assert force, "its own folder"
        self._call("export")
        with files.folder(out, ours=OURS) as folder:
            text = f"{Path(model.source).read_text()} {model.seed} {config.opset}"
            ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3]) for name in "ab"]
            graph = helper.make_graph([helper.make_node("Identity", ["a"], ["b"])], "g", ports[:1], ports[1:], doc_string=text)
            (folder / "model.onnx").write_bytes(helper.make_model(graph).SerializeToString())
            record = seal(folder, Record(spec=read_spec(Path(model.source)), made_by="export", origin=Origin(random_seed=0)))
        return Artifact(out, record)

    def validate(self, artifact, config, *, kept, progress):
        self._call("validate")
        return Report(
            title="validate",
            taken=f"call {next(self.calls)}",
            rows=(Row("a | b", {"sqnr": Metric(float("inf"), "dB"), "x": Metric(float("nan"))}),),
        )

    def bench(self, artifacts, config, *, progress):
        self._call("bench")
        return Report(title="bench", rows=(Row("a", {"p50": Metric(1.5, "ms", 1.4, 1.6)}),))

    def take(self) -> list[str]:
        called, self.called = self.called, []
        return called


@pytest.fixture
def verbs(monkeypatch):
    verbs = Verbs()
    monkeypatch.setitem(sys.modules, "vitdeploy.verbs.exporter", SimpleNamespace(export=verbs.export))
    monkeypatch.setitem(sys.modules, "vitdeploy.verbs.validator", SimpleNamespace(validate=verbs.validate))
    monkeypatch.setitem(sys.modules, "vitdeploy.verbs.bencher", SimpleNamespace(bench=verbs.bench))
    return verbs


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "small.toml").write_text(SPEC)
    data = tmp_path / "data" / "cat"
    data.mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(data / "a.png")
    return Recipe(
        model=ModelConfig(source=str(tmp_path / "small.toml")),
        validate=ValidateConfig(data=str(tmp_path / "data")),
        bench=BenchConfig(),
    )


def change(recipe, section, **values):
    return msgspec.structs.replace(recipe, **{section: msgspec.structs.replace(getattr(recipe, section), **values)})


ALL = ["export", "validate", "bench"]


def test_layout(verbs, recipe, tmp_path):
    out = tmp_path / "deep" / "out"
    report = build(recipe, out)
    names = {path.name for path in out.iterdir()}
    assert names == {
        "recipe.toml",
        "export",
        "validate.json",
        "bench.json",
        "build.json",
        *(f"report.{kind}" for kind in ("json", "md", "html")),
    }
    assert [part.title for part in report.parts] == ["validate", "bench"]
    assert verbs.take() == ALL
    assert Recipe.load(out / "recipe.toml") == recipe
    assert json.loads((out / "report.json").read_text())["schema_version"] == 1
    assert "random_seed" in (out / "report.md").read_text()
    assert "Origin(" not in (out / "report.md").read_text()
    assert "Made: export" in (out / "report.html").read_text()


def test_numbers_that_json_lacks_come_back(verbs, recipe, tmp_path):
    report = build(recipe, tmp_path / "out")
    again = builder.read_report(tmp_path / "out" / "report.json")
    for whole in (report, again):
        metrics = whole.parts[0].rows[0].metrics
        assert metrics["sqnr"].value == float("inf")
        assert np.isnan(metrics["x"].value)
    text = (tmp_path / "out" / "validate.json").read_text()
    assert '"Infinity"' in text
    json.loads(text, parse_constant=pytest.fail)


def test_unchanged_build_is_skipped_and_writes_the_same_bytes(verbs, recipe, tmp_path):
    out, said = tmp_path / "out", []
    build(recipe, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    verbs.take()
    build(recipe, out, progress=lambda what, done, total: said.append(what))
    assert verbs.take() == []
    assert said == [*(f"{stage}: unchanged, skipped" for stage in ALL), "report: written"]
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_force_does_everything_again(verbs, recipe, tmp_path):
    build(recipe, tmp_path / "out")
    verbs.take()
    build(recipe, tmp_path / "out", force=True)
    assert verbs.take() == ALL


@pytest.mark.parametrize(
    ("section", "values", "expected"),
    [
        ("bench", {"rounds": 3}, ["bench"]),
        ("validate", {"limit": 1}, ["validate"]),
        ("export", {"opset": 18}, ALL),
        ("export", {"tolerance": 1e-3}, ["export"]),  # the stand-in's artifact stays the same: what follows still holds
        ("model", {"seed": 1}, ALL),
    ],
)
def test_a_changed_setting_redoes_its_stage(verbs, recipe, tmp_path, section, values, expected):
    build(recipe, tmp_path / "out")
    verbs.take()
    build(change(recipe, section, **values), tmp_path / "out")
    assert verbs.take() == expected


def test_contents_count_not_paths(verbs, recipe, tmp_path):
    out = tmp_path / "out"
    weights = tmp_path / "w.safetensors"
    weights.write_text("weights, of which the stand-in reads nothing")
    recipe = change(recipe, "model", weights=str(weights))
    build(recipe, out)
    verbs.take()

    (tmp_path / "elsewhere.toml").write_text(SPEC)
    shutil.copytree(tmp_path / "data", tmp_path / "moved")  # copies times too
    moved = change(change(recipe, "model", source=str(tmp_path / "elsewhere.toml")), "validate", data=str(tmp_path / "moved"))
    build(moved, out)
    assert verbs.take() == []

    weights.write_text("other weights")
    build(recipe, out)
    assert verbs.take() == ["export"]

    (tmp_path / "small.toml").write_text(SPEC.replace("depth = 1", "depth = 2"))
    build(recipe, out)
    assert verbs.take() == ALL

    shutil.copy(tmp_path / "data" / "cat" / "a.png", tmp_path / "data" / "cat" / "b.png")
    build(recipe, out)
    assert verbs.take() == ["validate"]


@pytest.mark.parametrize("name", ["validate.json", "bench.json"])
def test_a_result_that_was_touched_or_removed_is_made_again(verbs, recipe, tmp_path, name):
    path = tmp_path / "out" / name
    for spoil in (lambda: path.write_text("{}"), path.unlink):
        build(recipe, tmp_path / "out")
        verbs.take()
        spoil()
        build(recipe, tmp_path / "out")
        assert verbs.take() == [path.stem]


@pytest.mark.parametrize("name", ["model.onnx", RECORD])
def test_a_touched_artifact_is_made_again(verbs, recipe, tmp_path, name):
    build(recipe, tmp_path / "out")
    verbs.take()
    path = tmp_path / "out" / "export" / name
    path.write_bytes(path.read_bytes().replace(b'"small"', b'"smell"') + b" ")
    build(recipe, tmp_path / "out")
    assert verbs.take() == ["export"]  # and comes out as it was, so what follows still holds


@pytest.mark.parametrize("stage", ALL)
@pytest.mark.parametrize("error", [KeyboardInterrupt(), InputError("VD3101", "no images")])
def test_an_ended_build_goes_on_where_it_stopped(verbs, recipe, tmp_path, stage, error):
    verbs.fails[stage] = error
    with pytest.raises(type(error)):
        build(recipe, tmp_path / "out")
    assert not (tmp_path / "out" / "report.json").exists()
    assert verbs.take() == ALL[: ALL.index(stage) + 1]
    verbs.fails.clear()
    build(recipe, tmp_path / "out")
    assert verbs.take() == ALL[ALL.index(stage) :]


@pytest.mark.parametrize("point", range(12))
def test_killed_at_any_write(verbs, recipe, tmp_path, monkeypatch, point):
    """Whichever write is the last, the next build ends well and nothing temporary stays."""
    real, count = files.write, iter(range(100))

    def write(path, data):
        if next(count) == point:
            raise KeyboardInterrupt
        real(path, data)

    monkeypatch.setattr(files, "write", write)
    try:
        build(recipe, tmp_path / "out")
    except KeyboardInterrupt:
        monkeypatch.setattr(files, "write", real)
        verbs.take()
        build(recipe, tmp_path / "out")
        assert len(verbs.take()) < 4
    assert (tmp_path / "out" / "report.md").exists()
    assert not [path for path in (tmp_path / "out").rglob("*.tmp-*")]


def test_an_artifact_is_found_by_its_key(verbs, recipe, tmp_path):
    """Made just before a kill, and in no ledger yet."""
    build(recipe, tmp_path / "out")
    key = Artifact.open(tmp_path / "out" / "export").record.key
    assert len(key) == 64
    ledger = json.loads((tmp_path / "out" / "build.json").read_text())
    assert ledger["stages"]["export"]["key"] == key
    del ledger["stages"]["export"]
    forgotten = json.dumps(ledger)
    (tmp_path / "out" / "build.json").write_text(forgotten)
    verbs.take()
    build(recipe, tmp_path / "out")
    assert "export" not in verbs.take()
    set_key(Artifact.open(tmp_path / "out" / "export"), "another")
    (tmp_path / "out" / "build.json").write_text(forgotten)
    build(recipe, tmp_path / "out")
    assert "export" in verbs.take()


def test_another_version_of_a_tool_does_all_again(verbs, recipe, tmp_path, monkeypatch):
    build(recipe, tmp_path / "out")
    verbs.take()
    there = builder.find_versions
    monkeypatch.setattr(builder, "find_versions", lambda *names: there(*names) | {"onnx": "another"})
    build(recipe, tmp_path / "out")
    assert verbs.take()[0] == "export"


def test_a_key_holds_settings_inputs_and_no_paths():
    inputs = {"artifact": "a", "calibration": "b", "tools": {"onnx": "1"}}
    config = QuantizeConfig(calibration="here")
    key = key_of("quantize", config, inputs)
    assert key == key_of("quantize", msgspec.structs.replace(config, calibration="there"), inputs)
    others = [("compile", config, inputs), ("quantize", msgspec.structs.replace(config, seed=1), inputs)]
    others += [("quantize", config, inputs | {name: "other"}) for name in inputs]
    assert key not in {key_of(*other) for other in others}


def test_calibration_images_and_tools_are_in_the_key_of_quantize(verbs, recipe, tmp_path, monkeypatch):
    """One changed pixel, or another version of an engine: quantized anew."""
    from vitdeploy.verbs import quantizer

    def quantize(artifact, config, out, *, force, progress):
        verbs._call("quantize")
        with files.folder(out, ours=OURS) as folder:
            shutil.copy(artifact.model, folder / "model.onnx")
            record = seal(folder, Record(spec=artifact.spec, made_by="quantize"))
        return Artifact(out, record)

    monkeypatch.setattr(quantizer, "quantize", quantize)
    folder = tmp_path / "calibration"
    folder.mkdir()
    for number in range(2):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(folder / f"{number}.png")
    recipe = msgspec.structs.replace(recipe, quantize=QuantizeConfig(calibration=str(folder), verify=False))
    build(recipe, tmp_path / "out")
    verbs.take()
    build(recipe, tmp_path / "out")
    assert "quantize" not in verbs.take()
    Image.new("RGB", (32, 32), (9, 9, 9)).save(folder / "1.png")
    build(recipe, tmp_path / "out")
    assert "quantize" in verbs.take()
    there = builder.find_versions
    monkeypatch.setattr(builder, "find_versions", lambda *names: there(*names) | {"onnxruntime": "another"})
    build(recipe, tmp_path / "out")
    assert "quantize" in verbs.take()


def test_later_results_of_another_artifact_do_not_stay(verbs, recipe, tmp_path):
    build(recipe, tmp_path / "out")
    verbs.fails["validate"] = InputError("VD3101", "no images")
    with pytest.raises(InputError):
        build(change(recipe, "export", opset=18), tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"recipe.toml", "export", "build.json"}


def test_a_stage_that_left_the_recipe_leaves_the_folder(verbs, recipe, tmp_path):
    build(recipe, tmp_path / "out")
    report = build(msgspec.structs.replace(recipe, bench=None), tmp_path / "out")
    assert [part.title for part in report.parts] == ["validate"]
    assert not (tmp_path / "out" / "bench.json").exists()


def test_export_alone(verbs, recipe, tmp_path):
    report = build(msgspec.structs.replace(recipe, bench=None, validate=None), tmp_path / "out")
    assert report.parts == ()
    assert verbs.take() == ["export"]


def test_a_folder_of_others_is_refused_and_stays(verbs, recipe, tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "letter.txt").write_text("dear")
    for out in (tmp_path / "theirs", tmp_path / "theirs" / "letter.txt"):
        with pytest.raises(UsageError) as caught:
            build(recipe, out)
        assert caught.value.code == "VD2008"
    assert (tmp_path / "theirs" / "letter.txt").read_text() == "dear"
    assert verbs.take() == []
    (tmp_path / "empty").mkdir()
    build(recipe, tmp_path / "empty")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"schema_version": 9, "stages": {}}', '{"stages": {"export": 3}}', "[" * 100_000]
)
def test_a_damaged_ledger_is_named_and_force_goes_on(verbs, recipe, tmp_path, text):
    out = tmp_path / "out"
    build(recipe, out)
    (out / "build.json").write_text(text)
    with pytest.raises(InputError) as caught:
        build(recipe, out)
    assert caught.value.code == "VD3010"
    build(recipe, out, force=True)


def test_a_strangers_folder_is_not_built_into(verbs, recipe, tmp_path):
    """Other programs have a build.json, too, and a recipe.toml."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "build.json").write_text('{"target": "es2022"}')
    (out / "recipe.toml").write_text('title = "pancakes"')
    before = {path: path.read_bytes() for path in out.iterdir()}
    for force in (False, True):
        with pytest.raises(InputError, match="not a record that vitdeploy wrote"):
            build(recipe, out, force=force)
        assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_notes_in_the_folder_of_a_stage_are_not_removed_with_it(verbs, recipe, tmp_path):
    out = tmp_path / "out"
    build(recipe, out)
    (out / "export" / "notes.txt").touch()
    with pytest.raises(UsageError, match=r"did not write there: notes\.txt"):
        build(recipe, out, force=True)
    assert (out / "export" / "notes.txt").exists()
    (out / "export" / "notes.txt").unlink()
    build(recipe, out, force=True)


def test_two_builds_at_once_into_one_folder_are_refused(verbs, recipe, tmp_path):
    with open_line(tmp_path / "out", False, silent), pytest.raises(UsageError, match="another vitdeploy that is still running"):
        build(recipe, tmp_path / "out")
    build(recipe, tmp_path / "out")


@pytest.mark.parametrize(
    ("section", "values", "code"),
    [
        ("model", {"source": "vit_smal_patch16_224"}, "VD2001"),
        ("model", {"source": "none.toml"}, "VD3001"),
        ("model", {"weights": "none.safetensors"}, "VD3001"),
        ("validate", {"data": "none"}, "VD3001"),
    ],
)
def test_what_is_missing_ends_the_build_before_work(verbs, recipe, tmp_path, section, values, code):
    with pytest.raises((UsageError, InputError)) as caught:
        build(change(recipe, section, **values), tmp_path / "out")
    assert caught.value.code == code
    assert verbs.take() == []
    assert not (tmp_path / "out").exists()


words = st.text(st.characters(codec="utf-8"), max_size=20)
sizes = st.integers(1, 2**40)
recipes = st.builds(
    Recipe,
    model=st.builds(ModelConfig, source=words, weights=st.none() | words, seed=st.integers(0, 2**40)),
    export=st.builds(
        ExportConfig,
        batch=st.none() | sizes,
        image_size=st.none() | st.tuples(sizes, sizes),
        input=st.sampled_from(["float32-nchw", "uint8-nchw", "uint8-nhwc"]),
        outputs=st.lists(st.sampled_from(["tokens", "pooled"]), unique=True).map(tuple),
        tolerance=st.floats(1e-30, 0.99),
    ),
    compile=st.none() | st.lists(st.builds(CompileConfig, backend=words), min_size=1).map(tuple),
    validate=st.none() | st.builds(ValidateConfig, data=st.none() | words, backends=st.lists(words).map(tuple)),
    bench=st.none() | st.builds(BenchConfig, seconds=st.floats(1e-9, 3599.0), batches=st.lists(sizes, min_size=1).map(tuple)),
)


@given(recipes)
@settings(max_examples=100, deadline=None)
def test_recipes_survive_the_way_through_toml(tmp_path_factory, recipe):
    path = tmp_path_factory.mktemp("toml") / "r.toml"
    path.write_text(builder.to_toml(recipe), encoding="utf-8", newline="")
    assert read_toml(path, Recipe) == recipe


def test_an_unknown_key_in_one_of_several_sections_is_named_with_its_line(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('[model]\nsource = "x"\n[[compile]]\nbackend = "a"\n[[compile]]\nbackend = "b"\nstreems = 2\n')
    with pytest.raises(UsageError, match=r"line 7: unknown key 'compile\.streems'") as caught:
        Recipe.load(path)
    assert caught.value.code == "VD2002"


def test_a_path_that_is_no_text_is_refused():
    with pytest.raises(UsageError) as caught:
        builder.to_toml(Recipe(model=ModelConfig(source="bad\udcff.toml")))
    assert caught.value.code == "VD2003"


# The stage that compiles


@pytest.fixture
def compiling(verbs, monkeypatch):
    """A stand-in for `compile`, whose engine was tried (or not: its device is elsewhere)."""

    def make(*, tried=True):
        def compile(artifact, config, out, *, force, progress):
            verbs._call("compile")
            with files.folder(out, ours=OURS) as folder:
                (folder / "model.xml").write_text(f"{artifact.id} {config.precision}")
                proof = CompileProof(audit=Audit() if tried else None)
                spec = artifact.spec
                record = Record(kind="openvino", entry="model.xml", spec=spec, made_by="compile", proof=proof)
                record = seal(folder, record)
            return Artifact(out, record)

        monkeypatch.setitem(sys.modules, "vitdeploy.verbs.compiler", SimpleNamespace(compile=compile))
        return verbs

    return make


@pytest.fixture
def compiled(recipe):
    return msgspec.structs.replace(recipe, compile=CompileConfig(backend="openvino"))


def test_an_engine_is_a_stage_of_its_own(compiling, compiled, tmp_path):
    verbs, out = compiling(), tmp_path / "out"
    report = build(compiled, out)
    assert verbs.take() == ["export", "compile", "validate", "validate", "bench"]
    assert report.settings["stages"][:2] == ["export", "compile"]
    assert Artifact.open(out / "compile").record.kind == "openvino"
    assert Recipe.load(out / "recipe.toml") == compiled
    build(compiled, out)
    assert verbs.take() == []
    build(change(compiled, "compile", precision="bf16"), out)
    assert verbs.take() == ["compile", "validate", "validate", "bench"]


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_another_version_of_an_engine_compiles_again(compiling, compiled, tmp_path, monkeypatch, name):
    """Of the engine itself, whether or not the file that it is made from changed with it."""
    verbs, out = compiling(), tmp_path / "out"
    build(compiled, out)
    verbs.take()
    there = builder.find_versions

    def versions(*names):
        return there(*names) | ({name: "another"} if "torch" not in names else {})  # those of the export stay

    monkeypatch.setattr(builder, "find_versions", versions)
    build(compiled, out)
    assert verbs.take()[0] == "compile"


def test_an_engine_that_is_no_longer_asked_for_goes(compiling, compiled, recipe, tmp_path):
    verbs, out = compiling(), tmp_path / "out"
    build(compiled, out)
    verbs.take()
    build(recipe, out)
    assert verbs.take() == ["validate", "bench"]
    assert not (out / "compile").exists()


def test_an_engine_whose_device_is_elsewhere_is_not_measured(compiling, compiled, tmp_path):
    verbs = compiling(tried=False)
    report = build(compiled, tmp_path / "out")
    assert verbs.take() == ["export", "compile", "validate", "bench"]
    assert any("compile: not measured" in note for note in report.notes)


def test_an_engine_is_measured_only_where_it_is_named(compiling, compiled, tmp_path):
    verbs = compiling()
    build(change(compiled, "validate", backends=("onnxruntime",)), tmp_path / "out")
    assert verbs.take() == ["export", "compile", "validate", "bench"]


# One table of what was compared with the same thing


def table(reference, *subjects, parts=()):
    rows = tuple(Row(subject, {} if subject == reference else {"sqnr": Metric(40.0, "dB")}) for subject in subjects)
    return Report(title="validate", reference=reference, rows=rows, parts=parts, notes=(f"of {subjects[-1]}",))


RECORDED = ("pytorch (recorded)", "pytorch (recorded)", "onnxruntime")


@pytest.mark.parametrize(
    ("first", "others", "expected"),
    [
        pytest.param(
            table("pytorch", "pytorch", "onnxruntime"),
            ("pytorch", "pytorch", "onnxruntime"),
            {"pytorch": ["pytorch", "a / onnxruntime", "b / onnxruntime", "c / onnxruntime"]},
            id="the original",
        ),
        pytest.param(
            table("onnxruntime", "onnxruntime", "openvino", parts=(table(*RECORDED, "openvino"),)),
            ("a / onnxruntime", "a / onnxruntime", "onnxruntime"),
            {
                "a / onnxruntime": ["a / onnxruntime", "a / openvino", "b / onnxruntime", "c / onnxruntime"],
                "pytorch (recorded)": [
                    "pytorch (recorded)",
                    "a / onnxruntime",
                    "a / openvino",
                    "b / onnxruntime",
                    "c / onnxruntime",
                ],
            },
            id="an FP32 file that is compared in two engines",
        ),
        pytest.param(
            table("", "onnxruntime", parts=(table(*RECORDED),)),
            ("a / onnxruntime", "a / onnxruntime", "onnxruntime"),
            {
                "a / onnxruntime": ["a / onnxruntime", "b / onnxruntime", "c / onnxruntime"],
                "pytorch (recorded)": ["pytorch (recorded)", "a / onnxruntime", "b / onnxruntime", "c / onnxruntime"],
            },
            id="an FP32 file with an accuracy alone",
        ),
        pytest.param(
            table(*RECORDED),
            ("a / onnxruntime", "a / onnxruntime", "onnxruntime"),
            {
                "a / onnxruntime": ["a / onnxruntime", "b / onnxruntime", "c / onnxruntime"],
                "pytorch (recorded)": ["pytorch (recorded)", "a / onnxruntime", "b / onnxruntime", "c / onnxruntime"],
            },
            id="an FP32 file in one engine",
        ),
    ],
)
def test_rows_of_several_artifacts(monkeypatch, tmp_path, tiny_spec, first, others, expected):
    monkeypatch.chdir(tmp_path)
    parts = (table(*RECORDED),) if "pytorch (recorded)" in expected else ()
    reports = {"a": first, "b": table(*others, parts=parts), "c": table(*others, parts=parts)}
    artifacts = [Artifact(Path(name), Record(spec=tiny_spec, made_by="export")) for name in reports]
    for artifact in artifacts:
        artifact.folder.mkdir()
        artifact.model.write_bytes(b"")
    stand_in = SimpleNamespace(validate=lambda artifact, config, *, kept, progress: reports[artifact.folder.name])
    monkeypatch.setitem(sys.modules, "vitdeploy.verbs.validator", stand_in)
    whole = builder._measure(artifacts, ValidateConfig(), silent)
    tables = (whole, *whole.parts)
    assert {each.reference: [row.subject for row in each.rows] for each in tables} == expected
    assert len(tables) == len(expected)
    assert all(
        note in whole.notes + sum((part.notes for part in whole.parts), ()) for part in reports.values() for note in part.notes
    )


# Several engines


@pytest.fixture
def quantizing(verbs, monkeypatch):
    """A stand-in for `quantize`, which fails for the targets that are named."""

    def make(*fails: str):
        def quantize(artifact, config, out, *, force, progress):
            verbs._call(f"quantize {config.target}")
            if config.target in fails:
                raise MachineError("VD4009", "the engine does not run what was planned")
            with files.folder(out, ours=OURS) as folder:
                shutil.copy(artifact.model, folder / "model.onnx")
                record = seal(folder, Record(spec=artifact.spec, made_by="quantize", precision="int8", config=config))
            return Artifact(out, record)

        monkeypatch.setitem(sys.modules, "vitdeploy.verbs.quantizer", SimpleNamespace(quantize=quantize))

    return make


@pytest.fixture
def many(recipe):
    """A recipe for two engines."""
    engines = ("onnxruntime", "openvino")
    return msgspec.structs.replace(
        recipe,
        quantize=tuple(QuantizeConfig(target=name, calibration=recipe.validate.data) for name in engines),
        compile=tuple(CompileConfig(backend=name) for name in engines),
    )


def test_each_engine_is_compiled_of_what_was_quantized_for_it(compiling, quantizing, many, tmp_path):
    verbs, out = compiling(), tmp_path / "out"
    quantizing()
    report = build(many, out)
    assert verbs.take()[:5] == ["export", "quantize onnxruntime", "quantize openvino", "compile", "compile"]
    stages = ["export", "quantize-onnxruntime", "quantize-openvino", "compile-onnxruntime", "compile-openvino"]
    assert report.settings["stages"][:5] == stages
    for name in ("onnxruntime", "openvino"):
        source = Artifact.open(out / f"quantize-{name}")
        assert (out / f"compile-{name}" / "model.xml").read_text().startswith(source.id)
    assert any("among those that accuracy was measured on" in note for note in report.notes)
    assert Recipe.load(out / "recipe.toml") == many
    build(many, out)
    assert verbs.take() == []
    build(msgspec.structs.replace(many, quantize=many.quantize[:1], compile=many.compile[:1]), out)
    assert verbs.take() == ["validate"] * 3 + ["bench"]
    assert {path.name for path in out.iterdir() if path.is_dir()} == {"export", *(s for s in stages if "openvino" not in s)}


def test_of_several_engines_one_that_can_not_is_left_out(compiling, quantizing, many, tmp_path):
    compiling()
    out = tmp_path / "out"
    quantizing("openvino")
    report = build(many, out)
    assert "quantize-openvino: left out: the engine does not run what was planned" in report.notes
    assert (out / "compile-openvino" / "model.xml").read_text().startswith(Artifact.open(out / "export").id)
    assert not (out / "quantize-openvino").exists()
    with pytest.raises(MachineError):
        build(msgspec.structs.replace(many, quantize=many.quantize[1], compile=None), tmp_path / "alone")


@pytest.mark.parametrize("section", ["quantize", "compile"])
def test_an_engine_that_is_named_twice_is_refused(verbs, many, tmp_path, section):
    with pytest.raises(UsageError, match="named twice"):
        build(msgspec.structs.replace(many, **{section: (getattr(many, section)[0],) * 2}), tmp_path / "out")


def test_a_ledger_never_removes_what_lies_elsewhere(verbs, recipe, tmp_path):
    """Stages that are no longer wanted are removed by name; a name that leads out of the folder is damage."""
    out, precious = tmp_path / "out", tmp_path / "precious"
    build(recipe, out)
    precious.mkdir()
    ledger = json.loads((out / "build.json").read_text())
    ledger["stages"]["quantize-/../../precious"] = ledger["stages"]["export"]
    (out / "build.json").write_text(json.dumps(ledger))
    with pytest.raises(InputError):
        build(recipe, out)
    assert precious.is_dir()


def test_rows_of_several_artifacts_keep_what_single_images_came_to(tiny_artifact, tiny_bytes):
    """Slices and worst images are of all rows of a build's report, not of the first artifact's alone."""

    def measure(digest="same"):
        kept = {"right": {"pytorch": "gA==", "onnxruntime": "AA=="}, "same": {"onnxruntime": "AA=="}}
        images = Images(digest=digest, count=1, worst={"onnxruntime": (WorstImage("a.png", 1.0),)}, **kept)
        rows = (Row("pytorch", {}), Row("onnxruntime", {}))
        return Report(title="validate", reference="pytorch", rows=rows, images=images)

    first, second = (builder._name_rows(measure(), artifact) for artifact in (tiny_artifact, tiny_bytes))
    images = builder._join([first, second]).images
    names = {f"{artifact.folder.name} / onnxruntime" for artifact in (tiny_artifact, tiny_bytes)}
    assert set(images.same) == set(images.worst) == names
    assert set(images.right) == {"pytorch", *names}
    assert [row.settings["id"] for row in first.rows] == [tiny_artifact.id] * 2
    other = builder._name_rows(measure("other"), tiny_bytes)
    assert builder._join([first, other]).images == first.images
