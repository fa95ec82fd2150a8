"""Where a file can be looked into: by the names of modules, or in the order of the graph."""

from onnx import TensorProto, helper

from vitdeploy.onnxfile.points import find_points
from vitdeploy.onnxfile.reader import read


def write(tmp_path, *nodes):
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node(kind, inputs, [out], name=name) for kind, name, inputs, out in nodes], "g",
                              ports[:1], ports[1:])  # fmt: skip
    path = tmp_path / "model.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    return read(path)


def test_modules_are_found_by_name_with_their_bias_and_before_rounding(tmp_path) -> None:
    model = write(
        tmp_path,
        ("MatMul", "net.blocks.0.attn.qkv/MatMul", ["x", "w"], "a"),
        ("Add", "net.blocks.0.attn.qkv/Add", ["a", "b"], "qkv"),
        ("Reshape", "net.blocks.0.attn/Reshape", ["qkv", "s"], "context"),
        ("Mul", "net.blocks.0.attn.proj.equalise/Mul", ["context", "f"], "c"),
        ("QuantizeLinear", "q", ["c", "scale"], "d"),
        ("DequantizeLinear", "dq", ["d", "scale"], "e"),
        ("MatMul", "net.blocks.0.attn.proj/MatMul", ["e", "w"], "proj"),
        ("Add", "net.blocks.0/Add", ["x", "proj"], "middle"),
        ("Gemm", "net.blocks.0.mlp.fc1/Gemm", ["middle", "w", "b"], "fc1"),
        ("Add", "net.blocks.0/Add_1", ["middle", "fc1"], "y"),
    )
    assert list(find_points(model).items()) == [
        ("blocks.0.attn.qkv", "qkv"),
        ("blocks.0.attn.context", "context"),
        ("blocks.0.attn.proj", "proj"),
        ("blocks.0.mlp.fc1", "fc1"),
        ("blocks.0", "y"),
    ]


def test_without_names_softmaxes_and_the_stream_are_numbered(tmp_path) -> None:
    model = write(
        tmp_path,
        ("Identity", "1", ["x"], "a"),
        ("LayerNormalization", "2", ["a", "g"], "b"),
        ("Softmax", "3", ["b"], "c"),
        ("LayerNormalization", "4", ["c", "g"], "y"),
    )
    assert find_points(model) == {"stream.0": "a", "softmax.0": "c"}
