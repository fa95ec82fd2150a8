"""What `inspect` says of everything that vitdeploy reads and writes, with and without torch; what it refuses."""

from __future__ import annotations

import collections
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.torch import save_file

from tests.checkpoints import test_clip, test_jax
from vitdeploy import files
from vitdeploy import jsonfile as rendered
from vitdeploy.artifact import Artifact
from vitdeploy.checkpoints.headers import read_npz, read_safetensors
from vitdeploy.data import synthetic
from vitdeploy.errors import InputError, UsageError, VitdeployError
from vitdeploy.report import Metric, Report, Row
from vitdeploy.spec import InputContract
from vitdeploy.verbs.inspector import Inspection, inspect

REPOSITORY = Path(__file__).parents[2]


def looked(path: Path) -> Inspection:
    inspection = inspect(path)
    assert inspection.path == str(path)
    assert json.loads(rendered.encode(inspection))["kind"] == inspection.kind
    return inspection


def test_artifact(tiny_artifact: Artifact) -> None:
    inspection = looked(tiny_artifact.folder)
    assert (inspection.kind, inspection.spec, inspection.contract) == ("artifact", tiny_artifact.spec, tiny_artifact.spec.input)
    assert inspection.facts["id"] == tiny_artifact.id
    assert inspection.facts["files"] == tiny_artifact.record.files
    origin = inspection.facts["origin"]  # plain, so that it is shown as a table and not as a class
    assert isinstance(origin, dict)
    assert origin["sha256"] == tiny_artifact.record.origin.sha256
    assert inspection.facts["weights"] == "float32"
    assert inspection.graph is not None
    assert inspection.graph.inputs[0].shape[1:] == (3, 16, 24)
    assert not inspection.notes
    assert inspect(tiny_artifact.folder / "artifact.json").facts == inspection.facts


def test_changed_artifact(tiny_artifact: Artifact, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(tiny_artifact.folder, folder)
    with (folder / "weights.safetensors").open("ab") as stream:
        stream.write(b"\0")
    assert looked(folder).notes == ("weights.safetensors changed after it was written: its digest is another one",)


def test_our_onnx(tiny_artifact: Artifact) -> None:
    inspection = looked(tiny_artifact.model)
    assert (inspection.kind, inspection.spec, inspection.sha256) == (
        "onnx",
        tiny_artifact.spec,
        files.sha256(tiny_artifact.model),
    )
    assert inspection.facts["opsets"][""] == 20
    assert inspection.facts["dynamic_batch"] is True
    assert inspection.facts["quantization"] == {}
    assert not inspection.notes


def foreign(path: Path, *operators: str, external: str = "") -> Path:
    tensors = [numpy_helper.from_array(np.zeros((8, 9), np.int8), "w"), numpy_helper.from_array(np.zeros(2, np.float32), "b")]
    nodes = [helper.make_node(name, ["x", "w"], [f"y{n}"]) for n, name in enumerate(operators)]
    ports = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])], []
    model = helper.make_model(helper.make_graph(nodes, "g", *ports, tensors), producer_name="someone")
    options = {"save_as_external_data": True, "location": external, "size_threshold": 0} if external else {}
    onnx.save(model, path, **options)
    return path


@pytest.mark.parametrize(
    ("operators", "says"),
    [
        (("MatMul",), "int8"),
        (("QuantizeLinear", "DequantizeLinear"), "int8, Q/DQ"),
        (("DynamicQuantizeLinear", "MatMulInteger"), "int8, integer operators"),
    ],
)
def test_foreign_onnx(operators: tuple[str, ...], says: str, tmp_path: Path) -> None:
    inspection = looked(foreign(tmp_path / "a.onnx", *operators))
    assert inspection.facts["weights"] == says
    assert inspection.facts["producer"] == "someone"
    assert inspection.facts["parameters"] == 74
    assert inspection.facts["dynamic_batch"] is False
    assert inspection.spec is None
    assert "no input contract" in inspection.notes[0]


def test_external_data(tmp_path: Path) -> None:
    path = foreign(tmp_path / "a.onnx", "MatMul", external="a.data")
    assert looked(path).facts["external_data"] == ["a.data"]
    assert looked(path).notes[0] == "needs repair: 2 small tensors beside the model: engines need shapes inside of it"
    assert len(looked(path).notes) == 2
    (tmp_path / "a.data").unlink()
    assert looked(path).notes[0] == "will be refused (VD3027): its external data 'a.data' is missing (80 bytes)"
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        tensor.external_data[0].value = "../a.data"
    path.write_bytes(model.SerializeToString())
    assert looked(path).notes[0] == "will be refused (VD7001): its external data '../a.data' lies outside its folder"


def test_findings_of_the_check_are_told(tmp_path: Path) -> None:
    path = foreign(tmp_path / "a.onnx", "LayerNormalization")
    model = onnx.load(path)
    model.graph.node[0].input.append("")
    onnx.save(model, path)
    assert looked(path).notes[0] == ("needs repair: 1 LayerNormalization with an empty last input: it would crash ONNX Runtime")
    model.graph.node[0].domain = "com.evil"
    onnx.save(model, path)
    assert looked(path).notes[0].startswith("will be refused (VD7005): the node 'y0' asks for LayerNormalization of")


def test_broken_contract_in_onnx(tmp_path: Path) -> None:
    path = foreign(tmp_path / "a.onnx", "MatMul")
    model = onnx.load(path)
    for text in ("{", '{"name": 3}', '{"name": "x", "width": 0}'):
        del model.metadata_props[:]
        model.metadata_props.add(key="vitdeploy.spec", value=text)
        onnx.save(model, path)
        assert looked(path).notes[0].startswith("carries a broken input contract")


def test_clip_safetensors_by_its_header(tmp_path: Path) -> None:
    state = test_clip.prefixed(test_clip.tower().half().state_dict())
    config = {"model_cfg": {"vision_cfg": {"image_size": test_clip.SIDE}}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "open_clip_model.safetensors")
    for path in (tmp_path, tmp_path / "open_clip_model.safetensors"):
        inspection = looked(path)
        assert (inspection.kind, inspection.facts["source"], inspection.facts["image"]) == ("checkpoint", "CLIP", [64, 64])
        assert inspection.spec is not None
        assert (inspection.facts["embedding"], "classes" in inspection.facts) == (test_clip.OUT, False)
        assert inspection.contract == inspection.spec.input
        assert inspection.facts["elements"] == {"float16": sum(tensor.numel() for tensor in state.values())}


def test_google_npz_by_its_headers(tmp_path: Path) -> None:
    path = tmp_path / "B_8.npz"
    np.savez(path, **test_jax.arrays())
    inspection = looked(path)
    assert (inspection.facts["source"], inspection.facts["classes"], inspection.spec.name) == ("Google ViT (JAX)", 7, "B_8")
    assert inspection.facts["task"] == "single_label"
    assert inspection.facts["parameters"] == sum(array.size for array in test_jax.arrays().values())
    assert inspection.sha256 == files.sha256(path)


def test_pytorch_file_through_the_safe_reader(tmp_path: Path) -> None:
    pytest.importorskip("vitdeploy.checkpoints.checkpoint")
    path = tmp_path / "clip.pt"
    torch.save({**test_clip.prefixed(test_clip.tower().state_dict()), **test_clip.BUFFERS}, path)
    inspection = looked(path)
    assert (inspection.kind, inspection.facts["source"]) == ("checkpoint", "CLIP")
    assert inspection.spec is not None
    assert inspection.spec.mlp == "quick_gelu"
    cache = tmp_path / "models--org--name" / "snapshots" / "abc"
    cache.mkdir(parents=True)
    shutil.move(path, cache / "open_clip_pytorch_model.bin")
    assert list(looked(cache.parents[1]).facts["files"]) == ["open_clip_pytorch_model.bin"]


def test_checkpoint_that_says_too_little(tiny_artifact: Artifact, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3), "b": torch.zeros(2, 2, dtype=torch.bfloat16)}, tmp_path / "a.safetensors")
    inspection = looked(tmp_path / "a.safetensors")
    assert (inspection.facts["source"], inspection.spec, inspection.facts["elements"]) == (
        "unknown",
        None,
        {"bfloat16": 4, "float32": 3},
    )
    assert "no known source" in inspection.notes[0]
    assert looked(tiny_artifact.weights).spec is None


def test_texts(tmp_path: Path) -> None:
    assert looked(REPOSITORY / "recipes" / "vit_base.toml").facts["model"] == "vit_base_patch16_224"
    spec = looked(REPOSITORY / "recipes" / "fashion_mnist_vit.toml")
    assert (spec.kind, spec.contract.channels) == ("spec", 1)
    (tmp_path / "mapping.toml").write_text("spec = 'x.toml'\n[rename]\n'a' = 'b'\n'c' = 'd'\n")
    assert looked(tmp_path / "mapping.toml").facts == {"spec": "x.toml", "patterns": {"rename": 2}}
    (tmp_path / "contract.toml").write_text("height = 32\nwidth = 48\n")
    assert looked(tmp_path / "contract.toml").contract == InputContract(height=32, width=48)
    report = Report(title="bench", rows=(Row("a", {"x": Metric(float("nan"), "ms")}),), notes=("careful",))
    (tmp_path / "report.json").write_text(rendered.encode(report))
    inspection = looked(tmp_path / "report.json")
    assert (inspection.kind, inspection.facts["subjects"], inspection.notes) == ("report", ["a"], ("careful",))


def test_images_and_data(tmp_path: Path) -> None:
    pixels = synthetic.pixels(4, InputContract(height=20, width=30))
    for n, suffix in enumerate(("jpg", "png", "webp", "bmp")):
        path = tmp_path / "data" / ("cat" if n % 2 else "dog") / f"{n}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[n]).save(path)
        inspection = looked(path)
        assert (inspection.kind, inspection.facts["height"], inspection.facts["width"], inspection.facts["mode"]) == (
            "image",
            20,
            30,
            "RGB",
        )
    inspection = looked(tmp_path / "data")
    assert (inspection.kind, inspection.facts["images"], inspection.facts["first_classes"]) == ("data", 4, ["cat", "dog"])
    (tmp_path / "data" / "list.csv").write_text("path,label\ncat/1.png,cat\n")
    assert looked(tmp_path / "data" / "list.csv").facts["images"] == 1
    assert "splits" in looked(REPOSITORY / "calibration" / "fashion-mnist").notes[0]


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("a.onnx", b"", "VD3002"),
        ("a.onnx", b"version https://git-lfs.github.com/spec/v1\n", "VD3003"),
        ("a.pth", b"<!DOCTYPE html><html>", "VD3004"),
        ("a.onnx", b"\x08\x0a\x3a\x7f", "VD3011"),
        ("a.onnx", b"\x08\x0a\x12\x01a", "VD3011"),
        ("a.safetensors", b"\xff\x00\x00\x00\x00\x00\x00\x00{}", "VD3006"),
        ("a.safetensors", b"\x08\x00\x00\x00\x00\x00\x00\x00{\"a\": 1}", "VD3006"),
        ("a.txt", b"words", "VD3005"),
        ("a.json", b"[1, 2]", "VD3005"),
        ("a.json", b"{", "VD3005"),
        ("a.toml", b"[x]\ny = 1", "VD3005"),
        ("a.json", b'{"title": 1, "rows": []}', "VD3005"),
        ("a.jpg", b"\xff\xd8\xff\xe0 no image", "VD3005"),
        ("a.bin", bytes(range(255, 0, -1)), "VD3005"),
        ("a.tar", bytes(range(255, 0, -1)), "VD3105"),
    ],
)  # fmt: skip
def test_refused(name: str, content: bytes, code: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        inspect(path)
    assert caught.value.code == code
    assert "\n" not in str(caught.value)


def test_missing_and_empty(tmp_path: Path) -> None:
    for path, code in ((tmp_path / "none", "VD3001"), (tmp_path, "VD3101")):
        with pytest.raises(InputError) as caught:
            inspect(path)
        assert caught.value.code == code


def test_typing_errors_keep_their_line(tmp_path: Path) -> None:
    (tmp_path / "spec.toml").write_text('name = "x"\nwdith = 3\n')
    with pytest.raises(UsageError, match="line 2: unknown key 'wdith'"):
        inspect(tmp_path / "spec.toml")


def test_npz_headers(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.zeros((2, 3), np.float16), b=np.zeros((), np.int64), c=np.zeros(3, "V2"))
    outlines = read_npz(tmp_path / "a.npz")
    assert {name: tuple(tensor) for name, tensor in outlines.items()} == {
        "a": ("float16", (2, 3)), "b": ("int64", ()), "c": ("bfloat16", (3,)),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arrays", "kind"),
    [
        ({"x": np.zeros((5, 8, 9, 3), np.uint8), "y": np.arange(5)}, "data"),
        ({"images": np.zeros((5, 3, 8, 9), np.float32), "names": np.array(["a", "b", "a", "b", "c"])}, "data"),
        ({"x": np.zeros((5, 8, 9), np.uint8)}, "data"),
        ({"weight": np.zeros((5, 3, 8, 8), np.float32), "bias": np.zeros(5, np.float32)}, "checkpoint"),
        ({"x": np.zeros((5, 8, 9, 3), np.uint8), "y": np.arange(4)}, "checkpoint"),
        ({"x": np.zeros((5, 8, 9, 3)), "y": np.arange(5), "z": np.arange(5)}, "checkpoint"),
        ({"a": np.zeros((2, 3)), "b": np.arange(2)}, "checkpoint"),
    ],
)
def test_an_archive_of_images_is_data(tmp_path: Path, arrays: dict[str, np.ndarray], kind: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    told = inspect(tmp_path / "a.npz")
    assert told.kind == kind
    if kind == "data":
        assert (told.facts["images"], told.facts["labels"]) == (5, len(arrays) == 2)


def test_a_contract_may_say_the_task(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('height = 32\nwidth = 48\ntask = "regression"\n')
    told = inspect(tmp_path / "c.toml")
    assert (told.kind, told.facts) == ("contract", {"image": [32, 48], "task": "regression"})
    (tmp_path / "c.toml").write_text('height = 32\nwidth = 48\ntask = "guess"\n')
    with pytest.raises(UsageError, match="task"):
        inspect(tmp_path / "c.toml")


def test_safetensors_headers(tmp_path: Path) -> None:
    kinds = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.uint8, torch.int64, torch.bool]
    save_file({str(kind): torch.zeros(2, dtype=kind) for kind in kinds}, tmp_path / "a.safetensors")
    for name, tensor in read_safetensors(tmp_path / "a.safetensors").items():
        assert name == f"torch.{tensor.dtype}"


@pytest.mark.parametrize("kind", ["onnx", "npz", "safetensors", "json", "toml", "png"])
def test_changed_bytes_never_escape(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{kind}"
    if kind == "npz":
        np.savez(path, a=np.zeros((2, 3), np.float32), b=np.zeros(3))
    elif kind == "safetensors":
        save_file({"a": torch.zeros(3), "b": torch.zeros(2, 2)}, path)
    elif kind == "png":
        Image.fromarray(synthetic.pixels(1, InputContract(height=20, width=30))[0]).save(path)
    elif kind == "json":
        path.write_text(rendered.encode(Report(title="bench", rows=(Row("a", {"x": Metric(1.0, "ms")}),))))
    elif kind == "toml":
        shutil.copy(REPOSITORY / "recipes" / "fashion_mnist_vit.toml", path)
    else:
        foreign(path, "MatMul", "QuantizeLinear")
    source, dice, ends = path.read_bytes(), random.Random(1), collections.Counter[str]()
    for turn in range(150):
        raw = bytearray(source)
        for _ in range(dice.randrange(1, 5)):
            raw[dice.randrange(min(len(raw), 600))] = dice.choice((0, 10, 0x22, 0x7F, 0x80, 0xFF, dice.randrange(256)))
        path.write_bytes(bytes(raw[: dice.randrange(len(raw))] if turn % 3 == 0 else raw))
        try:
            rendered.encode(inspect(path))
            ends["told"] += 1
        except VitdeployError as exc:
            ends[exc.code] += 1
    assert len(ends) > 1


WITHOUT = """
import sys
for name in ("torch", "onnx", "onnxruntime", "safetensors", "openvino"):
    sys.modules[name] = None
from pathlib import Path
from vitdeploy.verbs.inspector import inspect
for path in sys.argv[1:]:
    found = inspect(Path(path))
    print(found.kind, found.facts.get("parameters"), *found.notes)
"""


def test_without_torch(tiny_artifact: Artifact, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.zeros((2, 3), np.float32))
    (tmp_path / "hf").mkdir()
    save_file({"a": torch.zeros(5)}, tmp_path / "hf" / "model.safetensors")
    (tmp_path / "hf" / "config.json").write_text("{}")
    paths = [tiny_artifact.folder, tiny_artifact.model, tmp_path / "a.npz", tmp_path / "hf"]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, *map(str, paths)], capture_output=True, text=True, cwd=REPOSITORY, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["artifact", "onnx", "checkpoint", "checkpoint"]
    assert lines[0].split()[1] == lines[1].split()[1]
    assert lines[2].split()[1] == "6"
    assert lines[3].startswith("checkpoint 5 install vitdeploy[export]")


def test_schema_is_plain() -> None:
    assert msgspec.json.schema(Inspection)


def test_a_recipe_tells_all_its_stages(tmp_path: Path) -> None:
    stages = {"quantize": "precision = 'fp16'", "compile": "backend = 'openvino'", "validate": "", "bench": ""}
    path = tmp_path / "job.toml"
    tables = "".join(f"[{name}]\n{text}\n" for name, text in stages.items())
    path.write_text(f"[model]\nsource = 'vit_base_patch16_224'\n{tables}")
    assert looked(path).facts["stages"] == ["export", *stages]
    path.write_text("[model]\nsource = 'vit_base_patch16_224'\n[compile]\nbackend = 'openvino'\n")
    assert looked(path).facts["stages"] == ["export", "compile"]
