"""Promises of `export`: the same function at every batch size, stable bytes, nothing half-written."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoints.cases import CASES
from vitdeploy.artifact import METADATA_SPEC, RECORD, Artifact
from vitdeploy.checkpoints.safetensors import rebuild
from vitdeploy.data import images, synthetic
from vitdeploy.errors import InputError, MachineError, UsageError
from vitdeploy.models.vit import build
from vitdeploy.onnxfile.reader import read
from vitdeploy.proof import exported
from vitdeploy.recipe import OPSETS, ExportConfig, ModelConfig
from vitdeploy.spec import InputContract, ModelSpec
from vitdeploy.verbs import exporter
from vitdeploy.verbs.exporter import export

SMALL = ModelSpec(
    name="small", input=InputContract(height=32, width=32), patch=(8, 8), width=32, depth=2, heads=4, classes=10, qkv_bias="qv"
)


def lively(spec: ModelSpec, folder: Path) -> ModelConfig:
    """A spec file and weights in which no parameter has its initial value, so that nothing is right by being zero."""
    plain = msgspec.structs.replace(spec, input=msgspec.structs.replace(spec.input, tensor="float32-nchw"))
    model = build(plain)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spec.json").write_bytes(msgspec.json.encode(spec))
    save_file(model.state_dict(), folder / "weights.safetensors")
    return ModelConfig(source=str(folder / "spec.json"), weights=str(folder / "weights.safetensors"))


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> ModelConfig:
    return lively(SMALL, tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def artifact(small, tmp_path_factory) -> Artifact:
    return export(small, ExportConfig(), tmp_path_factory.mktemp("export") / "small")


def session(artifact: Artifact) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(artifact.model, providers=["CPUExecutionProvider"])


@pytest.mark.sampled(40)
@pytest.mark.parametrize("name", CASES)
def test_every_option_of_the_spec_exports_and_equals_pytorch(name, tmp_path) -> None:
    """Of one block where blocks have nothing to do with each other; whole networks, and what blocks share, of two."""
    depth = 2 if name.startswith(("plain", "like", "relative")) else 1
    artifact = export(lively(msgspec.structs.replace(CASES[name], depth=depth), tmp_path), ExportConfig(), tmp_path / "out")
    model, runner = rebuild(artifact.spec, artifact.weights), session(artifact)
    pixels = images.to_tensor(synthetic.pixels(7, artifact.spec.input, seed=5), artifact.spec.input)
    with torch.inference_mode():
        truth = model(torch.from_numpy(pixels)).numpy()
    for batch in (1, 2, 3, 7):
        (output,) = runner.run([artifact.spec.output], {"pixels": pixels[:batch]})
        assert output.shape == truth[:batch].shape
        assert np.abs(output - truth[:batch]).max() <= 1e-4
    assert truth.std() > 1e-3, "the case must not be constant"


@pytest.mark.slow
@pytest.mark.parametrize("opset", OPSETS)
def test_opsets(small, tmp_path, opset) -> None:
    artifact = export(small, ExportConfig(opset=opset), tmp_path / "out")
    model = onnx.load(artifact.model)
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
    operators = {node.op_type for node in model.graph.node}
    assert "LayerNormalization" in operators
    assert ("Gelu" in operators) == (opset >= 20)
    assert not operators & {"Attention", "Shape", "Identity", "Expand", "Constant"}


@pytest.mark.slow
def test_the_same_input_gives_the_same_bytes_in_another_process(small, artifact, tmp_path) -> None:
    code = (
        "import sys; from pathlib import Path; from vitdeploy.verbs.exporter import export;"
        "from vitdeploy.recipe import ExportConfig, ModelConfig;"
        "export(ModelConfig(source=sys.argv[1], weights=sys.argv[2]), ExportConfig(), Path('again'))"
    )
    subprocess.run([sys.executable, "-c", code, small.source, small.weights], check=True, cwd=tmp_path, capture_output=True)
    export(small, ExportConfig(), tmp_path / "kept")  # of the graph that the tests keep
    for name in ("model.onnx", "weights.safetensors"):
        for folder in ("again", "kept"):
            assert (tmp_path / folder / name).read_bytes() == (artifact.folder / name).read_bytes()


def test_nodes_and_parameters_follow_the_module_path(artifact) -> None:
    graph = onnx.load(artifact.model).graph
    names = {node.name for node in graph.node}
    assert {"blocks.1.attn.qkv/MatMul", "blocks.0.mlp/Gelu", "norm/LayerNormalization", "head/Gemm"} <= names
    assert len(names) == len(graph.node)
    parameters = {tensor.name for tensor in graph.initializer}
    assert {"blocks.0.norm1.weight", "blocks.1.mlp.fc2.weight", "blocks.1.mlp.fc2.bias", "head.weight"} <= parameters
    assert not [name for name in parameters if name.startswith(("val_", "model."))]
    text = artifact.model.read_bytes()
    assert str(Path(exporter.__file__).parent).encode() not in text, "no path of this machine in the file"


@pytest.mark.slow
def test_equal_parameters_of_different_modules_stay_apart(tmp_path) -> None:
    (tmp_path / "spec.json").write_bytes(msgspec.json.encode(SMALL))  # fresh weights: all norms are equal
    artifact = export(ModelConfig(source=str(tmp_path / "spec.json")), ExportConfig(), tmp_path / "out")
    uses = [
        name for node in onnx.load(artifact.model).graph.node if node.op_type == "LayerNormalization" for name in node.input[1:]
    ]
    assert len(uses) == len(set(uses)) == 10
    assert artifact.record.origin.random_seed == 0


def test_metadata_is_enough_to_prepare_a_pixel(artifact) -> None:
    metadata = read(artifact.model).metadata
    assert msgspec.json.decode(metadata[METADATA_SPEC], type=ModelSpec) == artifact.spec
    assert metadata["vitdeploy.weights_sha256"] == artifact.record.files["weights.safetensors"]
    assert Artifact.open(artifact.model).spec == artifact.spec


def test_record_holds_the_proof(artifact) -> None:
    record = json.loads((artifact.folder / RECORD).read_text())
    assert record["proof"]["batches"] == [1, 2, 3, 7, 8]
    assert 0 < record["proof"]["relative"] < 1e-4
    assert record["tools"]["torch"].startswith("2.")
    assert Artifact.open(artifact.folder).id == artifact.id


def test_static_batch(small, tmp_path) -> None:
    artifact = export(small, ExportConfig(batch=3), tmp_path / "out")
    assert session(artifact).get_inputs()[0].shape == [3, 3, 32, 32]
    assert artifact.record.proof.batches == (3,)


@pytest.mark.slow
def test_another_image_size_resamples_positions(small, tmp_path) -> None:
    artifact = export(small, ExportConfig(image_size=(48, 64)), tmp_path / "out")
    assert session(artifact).get_inputs()[0].shape == ["batch", 3, 48, 64]
    assert load_file(artifact.weights)["pos_embed"].shape == (1, 1 + 6 * 8, 32)
    back = export(ModelConfig(source=str(artifact.folder)), ExportConfig(image_size=(64, 64)), tmp_path / "back")
    assert back.record.parent == artifact.id
    assert load_file(back.weights)["pos_embed"].shape == (1, 1 + 8 * 8, 32)


@pytest.mark.sampled(6)
@pytest.mark.parametrize("layout", ["uint8-nchw", "uint8-nhwc"])
@pytest.mark.parametrize("change", [{}, {"embed": "linear"}, {"patch_bias": False}], ids=["conv", "linear", "no bias"])
def test_raw_pixels_give_the_same_logits(tmp_path, layout, change) -> None:
    spec = msgspec.structs.replace(SMALL, **change)
    artifact = export(lively(spec, tmp_path), ExportConfig(input=layout), tmp_path / "out")
    assert artifact.spec.input.tensor == layout
    assert artifact.record.proof.relative < 1e-4
    again = export(ModelConfig(source=str(artifact.folder)), ExportConfig(), tmp_path / "float")
    assert again.spec.input.tensor == "float32-nchw"
    pixels = synthetic.pixels(3, SMALL.input)
    raw, plain = (images.to_tensor(pixels, one.spec.input) for one in (artifact, again))
    assert raw.dtype == np.uint8
    difference = session(artifact).run(["logits"], {"pixels": raw})[0] - session(again).run(["logits"], {"pixels": plain})[0]
    assert np.abs(difference).max() < 1e-4


@pytest.mark.slow
def test_more_outputs_and_top_k(small, tmp_path) -> None:
    config = ExportConfig(outputs=("tokens", "pooled"), top_k=3)
    runner = session(export(small, config, tmp_path / "out"))
    shapes = {output.name: output.shape[1:] for output in runner.get_outputs()}
    assert shapes == {"logits": [10], "tokens": [17, 32], "pooled": [32], "top_k_probabilities": [3], "top_k_indices": [3]}


@pytest.mark.slow
def test_a_projection_gives_an_embedding_and_no_top_k(tmp_path) -> None:
    projection = lively(msgspec.structs.replace(SMALL, head="projection"), tmp_path)
    runner = session(export(projection, ExportConfig(outputs=("pooled",)), tmp_path / "out"))
    assert {output.name: output.shape[1:] for output in runner.get_outputs()} == {"embedding": [10], "pooled": [32]}
    with pytest.raises(UsageError, match="gives an embedding") as caught:
        export(projection, ExportConfig(top_k=3), tmp_path / "ranked")
    assert caught.value.code == "VD2011"
    assert not (tmp_path / "ranked").exists()


@pytest.mark.parametrize(("task", "gives"), [("multi_label", "labels each on its own"), ("regression", "numbers as they are")])
def test_other_tasks_have_no_top_k(small, tmp_path, task, gives) -> None:
    with pytest.raises(UsageError, match=f"gives {gives}") as caught:
        export(msgspec.structs.replace(small, task=task), ExportConfig(top_k=3), tmp_path / "ranked")
    assert caught.value.code == "VD2011"
    assert not (tmp_path / "ranked").exists()


@pytest.mark.slow
def test_a_task_that_the_user_names_is_the_files(small, tmp_path) -> None:
    artifact = export(msgspec.structs.replace(small, task="embedding"), ExportConfig(prove_batches=(1, 2)), tmp_path / "out")
    assert (artifact.spec.task, artifact.spec.output, artifact.spec.labels) == ("embedding", "embedding", ())
    assert [output.name for output in session(artifact).get_outputs()] == ["embedding"]


def test_large_weights_go_beside_the_model(small, artifact, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("vitdeploy.graph.storage.LARGEST_INLINE", 1000)
    large = export(small, ExportConfig(), tmp_path / "large")
    assert set(large.record.files) == {"golden.npz", "model.onnx", "model.onnx.data", "weights.safetensors"}
    assert large.model.stat().st_size < artifact.model.stat().st_size / 2
    pixels = images.to_tensor(synthetic.pixels(2, SMALL.input), SMALL.input)
    ours, theirs = (session(one).run(None, {"pixels": pixels})[0] for one in (large, artifact))
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"opset": 17}, "VD2011"),
        ({"opset": 23}, "VD2011"),
        ({"batch": 0}, "VD2011"),
        ({"top_k": 0}, "VD2011"),
        ({"top_k": 11}, "VD2011"),
        ({"outputs": ("tokens", "tokens")}, "VD2011"),
        ({"prove_batches": ()}, "VD2011"),
        ({"tolerance": float("nan")}, "VD2003"),
        ({"image_size": (33, 32)}, "VD2004"),
    ],
)
def test_impossible_options_are_refused_before_any_work(small, tmp_path, options, code) -> None:
    with pytest.raises(UsageError) as caught:
        export(small, ExportConfig(**options), tmp_path / "out")
    assert caught.value.code == code
    assert not list(tmp_path.iterdir())


def test_unknown_variant_has_a_suggestion(tmp_path) -> None:
    with pytest.raises(UsageError, match="vit_small_patch16_224") as caught:
        export(ModelConfig(source="vit_smal_patch16_224"), ExportConfig(), tmp_path / "out")
    assert caught.value.code == "VD2001"


def test_a_bare_file_has_no_original_to_export(artifact, tmp_path) -> None:
    with pytest.raises(UsageError) as caught:
        export(ModelConfig(source=str(artifact.model)), ExportConfig(), tmp_path / "out")
    assert caught.value.code == "VD2010"


def break_scale(monkeypatch) -> None:
    """An exporter that forgets 1/sqrt(d): plausible, and wrong."""
    real = exporter.freeze

    def wrong(model):
        frozen = real(model)
        for block in frozen.blocks:
            block.attn.qkv.weight[: SMALL.inner] *= 1.5
        return frozen

    monkeypatch.setattr(exporter, "freeze", wrong)


def test_a_wrong_graph_is_refused_and_the_old_artifact_stays(small, tmp_path, monkeypatch) -> None:
    before = export(small, ExportConfig(), tmp_path / "out")
    break_scale(monkeypatch)
    with pytest.raises(MachineError, match="differs from PyTorch") as caught:
        export(small, ExportConfig(), tmp_path / "out")
    assert caught.value.code == "VD4003"
    assert Artifact.open(tmp_path / "out").id == before.id
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_frozen_batch_is_caught(small, tmp_path, monkeypatch) -> None:
    """The lie other exporters tell: the batch axis is called dynamic, the class token's rows are those of the example."""
    real = exporter.trace

    def lying(source, spec, config):
        graph = real(source, spec, config)
        for node in graph.graph:
            if node.name == "Add":  # + token table: let it depend on the place in the batch
                table = node.inputs[1]
                rows = table.const_value.numpy()
                node_table = np.concatenate([rows, rows * 1.01])
                import onnx_ir

                table.const_value = onnx_ir.Tensor(node_table, name=table.name)
                table.shape = onnx_ir.Shape(node_table.shape)
        return graph

    monkeypatch.setattr(exporter, "trace", lying)
    with pytest.raises(MachineError) as caught:
        export(small, ExportConfig(prove_batches=(2,)), tmp_path / "out")
    assert caught.value.code in ("VD4003", "VD4004")
    assert not list(tmp_path.iterdir())


MODULE = """
import torch
from torch import nn


class Windows(nn.Module):
    def __init__(self, whole):
        super().__init__()
        self.patch, self.head, self.whole = nn.Conv2d(3, 8, 8, 8), nn.Linear(8, 5), whole

    def forward(self, x):  # [N, 3, 32, 32]
        windows = self.patch(x).unflatten(2, (2, 2)).unflatten(4, (2, 2)).permute(0, 2, 4, 3, 5, 1).flatten(0, 2).flatten(1, 2)
        batch = windows.shape[0] // 4 if self.whole else int(windows.shape[0] / 4)
        tokens = windows.reshape(batch, 16, 8)
        return self.head(tokens.mean(1, keepdim=True)), tokens  # [N, 1, 5], [N, 16, 8]


def make():
    torch.manual_seed(0)
    return Windows(True)


def fix():
    return Windows(False)
"""


def test_a_module_from_a_file_with_its_logits_wrapped(tmp_path) -> None:
    (tmp_path / "mine.py").write_text(MODULE)
    (tmp_path / "contract.toml").write_text("height = 32\nwidth = 32\n")
    model = ModelConfig(source=f"{tmp_path}/mine.py:make", module=True, contract=str(tmp_path / "contract.toml"))
    artifact = export(model, ExportConfig(prove_batches=(1, 3)), tmp_path / "out")
    assert artifact.spec.classes == 5
    assert artifact.record.origin.notes == (
        "takes the first of the 2 that the network returns",
        "drops the axes of length 1 of its output [N, 1, 5]",
    )
    session = onnxruntime.InferenceSession(artifact.model, providers=["CPUExecutionProvider"])
    assert session.run(None, {"pixels": np.zeros((3, 3, 32, 32), np.float32)})[0].shape == (3, 5)


def test_a_module_that_fixes_the_batch_is_told_so(tmp_path) -> None:
    (tmp_path / "mine.py").write_text(MODULE)
    (tmp_path / "contract.toml").write_text("height = 32\nwidth = 32\n")
    model = ModelConfig(source=f"{tmp_path}/mine.py:fix", module=True, contract=str(tmp_path / "contract.toml"))
    with pytest.raises(
        InputError, match=r"code fixes the batch at the example's, 2: .*; divide .* with //.*, or use --batch N"
    ) as caught:
        export(model, ExportConfig(), tmp_path / "out")
    assert caught.value.code == "VD3022"
    assert not (tmp_path / "out").exists()
    artifact = export(model, ExportConfig(batch=2), tmp_path / "out")  # as advised
    assert artifact.record.config.batch == 2


def test_nan_never_passes_the_proof(small, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(exported, "_largest", lambda rows, expected: float("nan"))
    with pytest.raises(MachineError) as caught:
        export(small, ExportConfig(), tmp_path / "out")
    assert caught.value.code == "VD4003"


@pytest.mark.parametrize("place", ["file", "foreign folder", "below a file"])
def test_unusable_output_is_refused_before_any_work(small, tmp_path, monkeypatch, place) -> None:
    (tmp_path / "taken").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    out = {"file": "taken", "foreign folder": "full", "below a file": "taken/out"}[place]
    monkeypatch.setattr(exporter, "load", lambda *_: pytest.fail("work before the check"))
    with pytest.raises(UsageError) as caught:
        export(small, ExportConfig(), tmp_path / out)
    assert caught.value.code == "VD2008"
    assert (tmp_path / "taken").read_text() == (tmp_path / "full" / "thesis.tex").read_text() == "mine"


def test_damaged_weights_leave_the_old_artifact(small, artifact, tmp_path) -> None:
    before = export(small, ExportConfig(), tmp_path / "out")
    (tmp_path / "bad.safetensors").write_bytes(Path(small.weights).read_bytes()[:1000])
    with pytest.raises(InputError):
        export(ModelConfig(source=small.source, weights=str(tmp_path / "bad.safetensors")), ExportConfig(), tmp_path / "out")
    assert Artifact.open(tmp_path / "out").id == before.id


@pytest.mark.parametrize("step", range(4))
def test_interrupted_at_each_step_leaves_nothing(small, tmp_path, step) -> None:
    def interrupt(what: str, done: int, total: int) -> None:
        if done == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(small, ExportConfig(), tmp_path / "out", progress=interrupt)
    assert not list(tmp_path.iterdir())


def test_ctrl_c_on_the_command_line(small, tmp_path) -> None:
    """A real SIGINT to a real process while it works: exit 130, no traceback, nothing left."""
    command = [sys.executable, "-m", "vitdeploy", "export", small.source, "--weights", small.weights, "-o", str(tmp_path / "out")]
    environment = os.environ | {"PYTHONPATH": str(Path(exporter.__file__).parents[2])}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    first = process.stderr.readline()  # the first line of progress: work has begun
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 130, first + rest
    assert "Traceback" not in rest
    assert not list(tmp_path.iterdir())


KILL_AT = """
import os, signal, sys
from pathlib import Path
count, at = 0, int(sys.argv[1])
def counted(real):
    def call(*args, **kwargs):
        global count
        count += 1
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    return call
os.fsync = counted(os.fsync)
Path.rename = counted(Path.rename)
Path.replace = counted(Path.replace)
Path.write_bytes = counted(Path.write_bytes)
Path.mkdir = counted(Path.mkdir)
from vitdeploy import files
from vitdeploy.files import outputs
outputs._swap = counted(outputs._swap)
ours = files.Ours("artifact.json", lambda folder: ("artifact.json", "model.onnx", "weights.safetensors"))
with files.folder(Path(sys.argv[2]), ours=ours) as folder:
    for name in ("model.onnx", "weights.safetensors"):
        (folder / name).write_bytes(sys.argv[3].encode() * 100_000)
    (folder / "artifact.json").write_bytes(sys.argv[3].encode())
print(count)
"""


@pytest.mark.slow
def test_kill_at_every_write_leaves_the_old_or_the_new(tmp_path) -> None:
    """kill -9 at each system call that writes: the folder is whole old, or whole new; the next run sweeps the rest."""
    out = tmp_path / "out"

    def run(at: int, content: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", KILL_AT, str(at), str(out), content], capture_output=True, text=True)

    assert run(0, "a").returncode == 0
    points = int(run(0, "b").stdout)  # when an older folder is replaced
    assert points >= 8
    for at in range(1, points + 1):
        content = chr(ord("b") + at % 20 + 1)
        old = (out / "artifact.json").read_text()
        assert run(at, content).returncode == -signal.SIGKILL
        text = (out / "artifact.json").read_text()
        assert text in (old, content)
        assert (out / "model.onnx").read_text() == (out / "weights.safetensors").read_text() == text * 100_000
    assert run(0, "z").returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
