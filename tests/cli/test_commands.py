"""The command line: results on stdout, talk on stderr, an exit status that says which."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from PIL import Image

import vitdeploy
from vitdeploy.artifact import RECORD, Artifact, seal
from vitdeploy.cli.arguments import parse_image_size
from vitdeploy.cli.commands import main
from vitdeploy.codes import CODES

SPEC = """name = "tiny"
width = 32
depth = 1
heads = 2
classes = 3
patch = [8, 8]
labels = ["cat", "dog|x", "<b>"]
[input]
height = 16
width = 24
resize = "stretch"
"""
RECIPE = """[model]
source = "tiny.toml"
[export]
prove_batches = [1, 2]
[validate]
data = "photos"
batch = 4
backends = ["onnxruntime"]
[bench]
rounds = 2
seconds = 0.01
warmup = 1
backends = ["onnxruntime"]
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with a spec, a recipe, six labelled photos, and the tiny model's export."""
    folder, random = tmp_path_factory.mktemp("work"), np.random.default_rng(0)
    (folder / "tiny.toml").write_text(SPEC)
    (folder / "job.toml").write_text(RECIPE)
    for label in ("cat", "dog|x", "<b>"):
        (folder / "photos" / label).mkdir(parents=True)
        for number in range(2):
            Image.fromarray(random.integers(0, 256, (16, 24, 3), np.uint8)).save(folder / "photos" / label / f"{number}.png")
    assert main(["export", str(folder / "tiny.toml"), "-o", str(folder / "vit"), "-q"]) == 0
    return folder


@pytest.fixture
def call(work, monkeypatch, capsys):
    """Run a command in the work folder: exit status, stdout, stderr."""
    monkeypatch.chdir(work)
    monkeypatch.setenv("NO_COLOR", "1")
    capsys.readouterr()

    def run(*arguments: str) -> tuple[int, str, str]:
        status = main(list(arguments))
        return status, *capsys.readouterr()

    return run


def fails(monkeypatch, error: BaseException):
    """Make `vitdeploy models` end with an error."""

    def show(*_):
        raise error

    monkeypatch.setattr("vitdeploy.render.tables.measure_variants", show)


class TestResults:
    def test_export(self, call, tmp_path):
        status, out, err = call(
            "export", "tiny.toml", "-o", str(tmp_path / "v"), "--input", "uint8", "--outputs", "tokens,pooled"
        )
        assert status == 0
        assert "uint8-nhwc" in out
        assert err.splitlines()[-1] == f"wrote {tmp_path / 'v'}; next: vitdeploy validate {tmp_path / 'v'}"
        assert vitdeploy.Artifact.open(tmp_path / "v").record.config.outputs == ("tokens", "pooled")

    def test_export_with_the_input_as_told(self, call, tmp_path):
        options = ("--mean", "0.1,0.2,0.3", "--std", "0.5", "--resize", "20", "--crop", "24", "--interpolation", "bilinear")
        options += ("--resize", "30", "--exif", "apply", "--alpha", "drop", "--labels", "ant,bee,cat")
        status, out, _ = call("export", "tiny.toml", "-o", str(tmp_path / "v"), "-q", *options)
        assert status == 0
        told = "shortest to 30, bilinear; mean 0.1, 0.2, 0.3; std 0.5, 0.5, 0.5; EXIF apply, alpha drop"
        assert told in " ".join(out.split())
        assert vitdeploy.Artifact.open(tmp_path / "v").spec.labels == ("ant", "bee", "cat")

    def test_export_compares_its_contract_on_data(self, call, tmp_path):
        (tmp_path / "names.txt").write_text("cat\ndog|x\n<b>\n")
        data = ("--data", "photos", "--limit", "5", "--labels", str(tmp_path / "names.txt"))
        status, out, err = call("export", "tiny.toml", "-o", str(tmp_path / "v"), *data)
        assert status == 0
        assert "export: contract" in err
        assert "top-1 on 5 images of photos; none of" in " ".join(out.split())
        proof = vitdeploy.Artifact.open(tmp_path / "v").record.proof
        assert proof.contract.images == 5 and "channels reversed (BGR)" in proof.contract.others

    def test_export_json(self, call, tmp_path):
        status, out, _ = call(
            "export", "tiny.toml", "-o", str(tmp_path / "v"), "--json", "-q", "--image-size", "32x24", "--top-k", "2"
        )
        document = json.loads(out)
        assert status == 0
        assert document["schema_version"] == 1
        assert document["record"]["spec"]["input"]["height"] == 32
        assert document["id"] == vitdeploy.Artifact.open(tmp_path / "v").id

    def test_validate_writes_its_report(self, call, tmp_path):
        status, out, err = call("validate", "vit", "--data", "photos", "-o", str(tmp_path / "r.md"), "--backend", "openvino")
        assert status == 0
        assert "openvino" in out
        assert err.splitlines()[-1] == f"wrote {tmp_path / 'r.md'}; next: vitdeploy bench vit"
        assert (tmp_path / "r.md").read_text().startswith("# validate")

    def test_validate_json_is_one_document(self, call, tmp_path):
        status, out, err = call("validate", "vit", "--limit", "4", "--json", "-o", str(tmp_path / "r.json"))
        assert status == 0
        assert json.loads(out)["title"] == "validate"
        assert out == (tmp_path / "r.json").read_text()
        assert "validate: done" in err

    @pytest.mark.slow
    def test_bench(self, call):
        status, out, err = call(
            "bench", "vit", "--batch", "1,2", "--rounds", "2", "--seconds", "0.01", "--backend", "onnxruntime", "-q"
        )
        assert status == 0
        assert err == ""
        batch = next(line for line in out.splitlines() if line.strip().startswith("batch"))
        assert batch.split() == ["batch", "1", "1", "2", "2"]

    def test_predict(self, call):
        status, out, _ = call("predict", "vit", "photos/cat/0.png", "photos/cat/1.png", "--top", "2", "--json")
        document = json.loads(out)
        assert status == 0
        assert [len(item["classes"]) for item in document["predictions"]] == [2, 2]
        status, out, _ = call("predict", "vit/model.onnx", "photos/cat/0.png", "-q")
        assert status == 0
        assert "dog|x" in out

    def test_predict_with_an_engine_that_it_was_not_made_for(self, call, work, tmp_path):
        made = shutil.copytree(work / "vit", tmp_path / "int8")
        record = json.loads((made / "artifact.json").read_text())
        del record["sha256"]  # on purpose
        record |= {"precision": "int8", "config": {"verb": "quantize", "target": "onnxruntime", "calibration": "random"}}
        (made / "artifact.json").write_text(json.dumps(record))
        for engine in ("openvino", "onnxruntime"):
            status, _, err = call("predict", str(made), "photos/cat/0.png", "--backend", engine)
            assert status == 0
            assert (f"WARNING: {made}: its int8 was made for onnxruntime: openvino may" in err) == (engine == "openvino")
        assert "onnxruntime" in next(line for line in call("inspect", str(made))[1].splitlines() if "made for" in line)

    def test_build_a_recipe_and_again(self, call, tmp_path):
        out = tmp_path / "out"
        status, shown, err = call("build", "job.toml", "-o", str(out))
        assert status == 0
        assert "compared with" in shown
        assert err.splitlines()[-1].startswith(f"report: {out / 'report.md'}; next: vitdeploy predict ")
        status, again, err = call("build", str(out / "recipe.toml"), "-o", str(out))
        assert status == 0
        assert again == shown
        assert [line for line in err.splitlines() if "skipped" in line] == [
            f"{stage}: unchanged, skipped" for stage in ("export", "validate", "bench")
        ]
        report = json.loads((out / "report.json").read_text())
        assert {part["title"] for part in report["parts"]} == {"validate", "bench"}
        assert "top1" in (out / "report.md").read_text()

    @pytest.mark.slow
    def test_build_of_a_spoiled_model_ends_with_a_failed_gates_status(self, call, tmp_path, monkeypatch):
        """A file that computes something else than its original: everything is written, and CI sees it."""
        from vitdeploy.verbs import exporter

        def spoil(*given, **settings):
            made = export(*given, **settings)
            graph = onnx.load(made.model)
            head = next(tensor for tensor in graph.graph.initializer if tensor.dims == [3, 32] or tensor.dims == [32, 3])
            head.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(head) * np.float32(1.5), head.name))
            onnx.save(graph, made.model)
            (made.folder / RECORD).unlink()
            return Artifact(made.folder, seal(made.folder, msgspec.structs.replace(made.record, files={})))

        export = exporter.export
        monkeypatch.setattr(exporter, "export", spoil)
        status, shown, err = call("build", "job.toml", "-o", str(tmp_path / "out"))
        assert status == 1
        assert "onnxruntime: parity 60 dB: fail" in shown
        assert "error[" not in err
        report = json.loads((tmp_path / "out" / "report.json").read_text())
        assert [part["verdict"]["outcome"] for part in report["parts"] if part["title"] == "validate"] == ["fail"]
        assert call("build", "job.toml", "-o", str(tmp_path / "out"), "-q")[0] == 1  # nothing is done again, nothing is forgotten

    def test_build_a_model_plans_a_recipe_and_ends_with_the_best(self, call, monkeypatch):
        ran = []
        report = vitdeploy.Report(title="build", settings={"best": "compile-openvino"})
        monkeypatch.setattr("vitdeploy.verbs.builder.build", lambda *job, **_: ran.append(job) or report)
        options = ["--data", "photos", "--limit", "3", "--precision", "fp16", "--backend", "openvino"]
        status, _, err = call("build", "tiny.toml", *options)
        assert status == 0
        ((recipe, out),) = ran
        assert out == Path("runs/tiny")
        assert (recipe.model.source, recipe.validate.data, recipe.validate.limit) == ("tiny.toml", "photos", 3)
        assert [(q.precision, q.target, q.calibration) for q in recipe.quantize] == [("fp16", "openvino", "photos")]
        assert [c.backend for c in recipe.compile] == ["openvino"]
        assert err.splitlines()[-1].endswith("next: vitdeploy predict runs/tiny/compile-openvino IMAGE")

    def test_options_beside_a_recipe_are_refused(self, call):
        status, _, err = call("build", "job.toml", "--precision", "int8", "--limit", "3", "-q")
        assert (status, err.partition("]")[0]) == (2, "error[VD2010")
        assert "--limit, --precision was given too" in err

    def test_models(self, call):
        status, out, err = call("models", "deit")
        assert status == 0
        assert "deit_tiny_patch16_224" in out
        assert "next: vitdeploy export deit" in err
        document = json.loads(call("models", "--json")[1])
        assert len(document["models"]) == len(vitdeploy.VARIANTS)

    @pytest.mark.parametrize("code", ["VD3003", "vd3003", "3003", "error[VD3003]"])
    def test_explain(self, call, code):
        status, out, _ = call("explain", code)
        assert status == 0
        assert out.startswith("VD3003 (exit 3): ")
        assert "example: error[VD3003] vit.safetensors: is a git-lfs pointer" in out
        assert "what to do: Run `git lfs install` once" in out
        assert len(out.splitlines()) == 5
        (record,) = json.loads(call("explain", code, "--json")[1])["codes"]
        assert set(record) == {"code", "exit", "meaning", "example", "remedy"}

    def test_explain_lists_all(self, call):
        assert len(call("explain")[1].splitlines()) == len(CODES)
        assert len(json.loads(call("explain", "--json")[1])["codes"]) == len(CODES)

    def test_version(self, call):
        assert call("--version") == (0, f"vitdeploy {vitdeploy.__version__}\n", "")

    @pytest.mark.parametrize("before", [True, False])
    def test_verbose_tells_every_step_and_what_numbers_depend_on(self, call, before):
        command = ["validate", "vit", "--limit", "4", "--batch", "1", "--backend", "onnxruntime"]
        status, plain, err = call(*command)
        assert "settings" not in plain
        status, out, err = call(*(["-v", *command] if before else [*command, "-v"]))
        assert status == 0
        assert "validate: settings" in out
        assert "threads = " in out
        assert [line.partition(" (")[0] for line in err.splitlines()][:4] == [f"validate: {n} of 4" for n in range(4)]

    @pytest.mark.parametrize("arguments", [["-q", "models"], ["models", "-q"], ["models", "--quiet"]])
    def test_quiet_before_and_behind_the_command(self, call, arguments):
        assert call(*arguments)[2] == ""


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "status", "words"),
        [
            (
                ["export", "vit_smal_patch16_224", "-o", "new"],
                2,
                "error[VD2001] no model is named 'vit_smal_patch16_224'; did you",
            ),
            (["export", "none.toml", "-o", "new"], 3, "error[VD3001] none.toml"),
            (["export", "tiny.toml", "-o", "new", "--weights", "none"], 3, "error[VD3001] none"),
            (["export", "tiny.toml", "-o", "photos"], 2, "error[VD2008] photos: exists and was not written by vitdeploy"),
            (["export", "tiny.toml", "-o", "new", "--opset", "3"], 2, "error[VD2011] opset 3 is not supported; use 18 to 22"),
            (["export", "tiny.toml", "-o", "new", "--image-size", "15"], 2, "error[VD2004]"),
            (["export", "tiny.toml", "-o", "new", "--mean", "half"], 2, "error[VD2003] --mean: 'half' is no list of numbers"),
            (["export", "tiny.toml", "-o", "new", "--resize", "most"], 2, "error[VD2003] resize is 'most'"),
            (["export", "tiny.toml", "-o", "new", "--labels", "a,b"], 2, "error[VD2003] 2 labels for 3 classes"),
            (
                ["export", "tiny.toml", "-o", "new", "--labels", "none.txt"],
                3,
                "error[VD3001] none.txt: is no file",
            ),
            (["export", "tiny.toml", "-o", "new", "--data", "none"], 3, "error[VD3001] none"),
            (["export", "tiny.toml", "-o", "new", "--image-size", "1x2x3"], 2, "error[VD2003]"),
            (["export", "tiny.toml", "-o", "new", "--image-size", "0"], 2, "error[VD2003]"),
            (["export", "tiny.toml", "-o", "new", "--outputs", "tokns"], 2, "error[VD2003] Invalid enum value 'tokns'"),
            (["validate", "photos"], 3, "error[VD3010] photos: is not an artifact"),
            (["validate", "vit", "--data", "none"], 3, "error[VD3001] none"),
            (["validate", "vit", "--backend", "onxruntime"], 2, "error[VD2009] there is no backend 'onxruntime'; did you mean"),
            (["validate", "vit", "-o", "photos"], 2, "error[VD2008] photos"),
            (
                ["validate", "vit", "-o", "r.txt"],
                2,
                "error[VD2008] r.txt: can't be written: reports are .json or .md or .html files",
            ),
            (["bench", "vit", "-o", "r.csv"], 2, "name it r.json or r.md or r.html"),
            (
                ["report", "vit", "-o", "r.json"],
                2,
                "error[VD2008] r.json: can't be written: a page is an .html file; name it r.html",
            ),
            (["report", "none.json", "-o", "r.html"], 3, "error[VD3001] none.json"),
            (["report", "photos", "-o", "r.html"], 3, "error[VD3010] photos: is not an artifact"),
            (["validate", "vit", "--limit", "0"], 2, "error[VD2003] limit is 0"),
            (["bench", "vit", "--batch", "1,x"], 2, "error[VD2003] --batch: 'x' is not a whole number"),
            (["bench", "vit", "--batch", "0"], 2, "error[VD2003]"),
            (["predict", "vit", "tiny.toml"], 3, "error[VD3102] tiny.toml"),
            (["predict", "tiny.toml", "a.png"], 3, "error[VD3005] tiny.toml"),
            (["explain", "VD3099"], 2, "did you mean"),
            (["models", "nothing like it"], 2, "error[VD2001]"),
            (["build", "none.toml"], 3, "error[VD3001] none.toml"),
        ],
    )
    def test_one_line_and_the_status(self, call, work, arguments, status, words):
        before = sorted(work.rglob("*"))
        ended, out, err = call(*arguments, "-q")
        assert (ended, out) == (status, "")
        assert words in err
        assert err.count("\n") == 1
        assert sorted(work.rglob("*")) == before
        ended, out, err = call(*arguments, "--json", "-q")
        record = json.loads(out)["error"]
        assert set(record) == {"code", "file", "message", "fix", "exit"}
        assert record["exit"] == ended == status
        assert err.count("\n") == 1

    @pytest.mark.parametrize(
        ("alias", "option"), [("--calibration", "--data"), ("--target", "--backend"), ("--calibration=x", "--data=x")]
    )
    def test_other_words_for_options_are_understood_and_not_listed(self, call, monkeypatch, alias, option):
        """Images are --data and engines --backend in every command."""
        heard = []
        monkeypatch.setattr("vitdeploy.verbs.quantizer.quantize", lambda _, config, *__, **___: heard.append(config) or 1 / 0)
        for word in (option, alias):
            more = [] if "=" in word else ["portable"]
            given = ["--data", "random"] if "--data" not in option else []
            call("quantize", "vit", "-o", "q", word, *more, *given)
        assert heard[0] == heard[1]
        assert alias.partition("=")[0] not in call("quantize", "--help")[1]

    def test_an_alias_behind_the_end_of_options_is_a_name(self, call):
        assert "error[VD3001] --target" in call("inspect", "--", "--target")[2]

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["exprt"], "error[VD2002] there is no command 'exprt'; did you mean 'export'?"),
            (
                ["export", "tiny.toml", "-o", "x", "--opst", "3"],
                "error[VD2002] there is no option '--opst'; did you mean '--opset'?",
            ),
            (["models", "--xyz"], "error[VD2002] there is no option '--xyz'; run: vitdeploy models --help"),
            (["frobnicate"], "error[VD2002] there is no command 'frobnicate'; run: vitdeploy --help"),
            (["bench", "vit", "--batch"], "error[VD2010] option '--batch' requires an argument; run: vitdeploy COMMAND --help"),
            (["export", "tiny.toml"], "error[VD2010] missing option '--out' / '-o'; run: vitdeploy export --help"),
            (["export", "tiny.toml", "-o", "x", "--opset", "many"], "error[VD2003] invalid value for '--opset'"),
            (["export", "tiny.toml", "-o", "x", "--input", "float16"], "uint8-nhwc"),
            (["predict", "vit"], "IMAGE"),
        ],
    )
    def test_misuse_is_one_line_with_a_code(self, call, arguments, words):
        status, out, err = call(*arguments)
        assert (status, out) == (2, "")
        assert words in err
        assert err.count("\n") == 1
        status, out, _ = call(*arguments, "--json")
        assert json.loads(out)["error"]["exit"] == 2

    def test_debug_shows_the_traceback(self, call):
        status, _, err = call("export", "none.toml", "-o", "new", "--debug")
        assert status == 3
        assert "Traceback (most recent call last)" in err
        assert err.splitlines()[-1].startswith("error[VD3001]")

    def test_a_mistake_of_ours_leaves_a_crash_file(self, call, monkeypatch, tmp_path):
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        monkeypatch.setattr("tempfile.tempdir", None)
        fails(monkeypatch, KeyError("lost\x1b[2J"))
        status, out, err = call("models", "--json")
        assert status == 8
        (crash,) = tmp_path.glob("vitdeploy-crash-*.txt")
        assert str(crash) in err
        assert err.count("\n") == 1
        assert "\x1b" not in err
        assert "Traceback" in crash.read_text()
        assert vitdeploy.__version__ in crash.read_text()
        assert json.loads(out)["error"]["exit"] == 8

    @pytest.mark.parametrize(
        ("error", "code"), [(MemoryError(), "VD4006"), (OSError(28, "No space left on device", "x"), "VD4002")]
    )
    def test_a_full_machine_is_no_mistake_of_ours(self, call, monkeypatch, error, code):
        fails(monkeypatch, error)
        status, _, err = call("models")
        assert status == 4
        assert code in err


class TestInterruption:
    def test_control_c(self, call, monkeypatch):
        fails(monkeypatch, KeyboardInterrupt())
        status, out, err = call("models")
        assert (status, out) == (130, "")
        assert err.strip() == "interrupted; nothing half-written was left"

    def test_sigterm_is_an_interrupt_and_the_handler_goes_back(self, call, work, monkeypatch):
        before = signal.getsignal(signal.SIGTERM)

        def terminated(*_, **__):
            os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr("vitdeploy.verbs.exporter.prove", terminated)
        status, out, err = call("export", "tiny.toml", "-o", "ended", "--json")
        assert status == 130
        assert json.loads(out)["error"]["exit"] == 130
        assert err.splitlines()[-1] == "interrupted; nothing half-written was left"
        assert not [path for path in work.iterdir() if "ended" in path.name]
        assert signal.getsignal(signal.SIGTERM) is before

    @pytest.mark.parametrize(
        "arguments",
        [["models", "-q"], ["models", "--json"], ["explain", "VD3012"], ["export", "--help"], ["--version"]],
        ids=" ".join,
    )
    def test_a_reader_that_goes_away_is_no_error(self, work, arguments):
        assert run_unread(arguments, work) == (141, "")

    def test_an_error_stays_one_when_nobody_reads_its_record(self, work):
        status, err = run_unread(["models", "--nope", "--json"], work)
        assert (status, err.count("\n"), err.partition("]")[0]) == (2, 1, "error[VD2002")

    def test_a_report_is_written_whole_when_nobody_reads_the_table(self, tiny_artifact, tmp_path):
        options = ["--limit", "2", "--backend", "onnxruntime", "-o", "report.md", "-q"]
        assert run_unread(["validate", str(tiny_artifact.folder), *options], tmp_path) == (141, "")
        assert "verdict: pass" in (tmp_path / "report.md").read_text()


def run_unread(arguments, work):
    """Exit status and stderr of a command whose stdout is closed before it has begun to write."""
    command = [sys.executable, "-m", "vitdeploy", *arguments]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=work, text=True)
    child.stdout.close()
    err = child.stderr.read()
    child.stderr.close()
    return child.wait(), err


@pytest.mark.parametrize(("text", "size"), [("224", (224, 224)), ("224x320", (224, 320)), ("8X16", (8, 16)), (None, None)])
def test_image_size(text, size):
    assert parse_image_size(text) == size
