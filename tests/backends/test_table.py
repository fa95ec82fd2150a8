"""What each engine is, once more and by hand: a row that changes in passing is noticed."""

from __future__ import annotations

import msgspec
import pytest

from vitdeploy.artifact import Artifact
from vitdeploy.backends import table
from vitdeploy.backends.table import Heads, Target
from vitdeploy.errors import InputError, UsageError
from vitdeploy.recipe import QuantizeConfig

INT8_HEADS = {"sizes": (16, 32, 64), "multiple": 1, "most_channels": None, "most_tokens": 512}
FP8_HEADS = {"sizes": (), "multiple": 16, "most_channels": 256, "most_tokens": None}
ANY = {"sizes": (), "multiple": 1, "most_channels": None, "most_tokens": None}
ENGINES = {
    "pytorch": {"package": "torch", "compiles": False, "floats": ("f32", "bf16")},
    "onnxruntime": {"package": "onnxruntime", "compiles": True, "capped": True, "floats": ("f32",)},
    "openvino": {"package": "openvino", "compiles": True, "capped": True, "floats": ("f32", "bf16", "f16")},
    "tensorrt": {"package": "tensorrt", "compiles": True, "compiled_only": True, "floats": ("f32",)},
    "tensorrt-rtx": {
        "package": "tensorrt_rtx",
        "compiles": True,
        "compiled_only": True,
        "compiles_anywhere": True,
        "reads": "tensorrt",
        "floats": ("f32",),
    },
}
TARGETS = {
    "onnxruntime": {
        "precisions": ("int8", "fp16", "int8-dynamic", "int8-weight-only"),
        "attention": {},
        "integer_products": True,
        "integer_bias": True,
        "signed_on_arm": True,
    },
    "openvino": {
        "precisions": ("int8", "fp16", "bf16", "int8-dynamic", "int8-weight-only"),
        "attention": {"int8": ANY},
        "raw_pixels": True,
    },
    "tensorrt": {
        "precisions": ("int8", "fp8", "fp16"),
        "attention": {"int8": INT8_HEADS, "fp8": FP8_HEADS},
        "symmetric": True,
        "half": True,
    },
    "portable": {"precisions": ("int8", "fp16"), "attention": {}, "symmetric": True, "integer_bias": True},
}
TRAITS = ("symmetric", "half", "integer_products", "integer_bias", "raw_pixels", "signed_on_arm")


def test_the_engines_are_these():
    assert tuple(table.TABLE) == tuple(ENGINES)
    assert (table.REFERENCE, table.PROVER) == ("pytorch", "onnxruntime")


@pytest.mark.parametrize("name", ENGINES)
def test_what_an_engine_is(name):
    row, expected = table.find_engine(name), ENGINES[name]
    assert (row.name, row.package, row.floats) == (name, expected["package"], expected["floats"])
    for trait in ("compiles", "compiled_only", "compiles_anywhere", "capped"):
        assert getattr(row, trait) == expected.get(trait, False), trait
    assert row.quantize_target == expected.get("reads", name)
    assert (row.target is not None) == (name in TARGETS)
    assert bool(row.command) == (name == "tensorrt")
    assert bool(row.observer) == (name == "onnxruntime")
    extra = "export" if name == "pytorch" else name
    assert row.fix.endswith(f"run: pip install 'vitdeploy[{extra}]'")
    assert ("Jetson" in row.fix) == (name == "tensorrt")


@pytest.mark.parametrize("name", TARGETS)
def test_what_a_target_reads(name):
    target, expected = table.find_target(name), TARGETS[name]
    assert target.precisions == expected["precisions"]
    assert {precision: heads._asdict() for precision, heads in target.attention} == expected["attention"]
    for trait in TRAITS:
        assert getattr(target, trait) == expected.get(trait, False), trait


def test_a_target_of_no_name_is_the_provers():
    assert table.find_target(None) == table.find_target("onnxruntime")
    assert table.list_targets() == ("onnxruntime", "openvino", "tensorrt", "portable")
    for name, said in (("openvin", "openvino"), ("pytorch", "choose from: onnxruntime, openvino, tensorrt, portable")):
        with pytest.raises(UsageError) as caught:
            table.find_target(name)
        assert caught.value.code == "VD2009"
        assert said in caught.value.fix


def test_heads_of_an_unknown_precision_are_none():
    target = Target(("int8",), attention=(("int8", Heads(multiple=8)),))
    assert target.find_heads("int8") == Heads(multiple=8)
    assert target.find_heads("fp8") is None


@pytest.mark.parametrize("trait", TRAITS)
def test_what_one_needs_is_needed_and_what_one_lacks_is_lacking(trait):
    with_it, without = Target(("int8",), **{trait: True}), Target(("int8",))
    common = [table.read_by_all(each) for each in ((with_it, without), (without, with_it))]
    assert [getattr(target, trait) for target in common] == [trait in ("symmetric", "integer_bias")] * 2
    assert getattr(table.read_by_all((with_it, with_it)), trait)
    assert not getattr(table.read_by_all((without, without)), trait)


def test_precisions_and_attention_that_all_read():
    heads = (("int8", table.ANY_HEADS), ("fp8", table.ANY_HEADS))
    first, second = Target(("int8", "fp8", "fp16"), heads), Target(("fp16", "int8"), heads[:1])
    assert table.read_by_all((first, second)) == Target(("int8", "fp16"), heads[:1])
    assert table.read_by_all([first]) == first


def test_who_is_installed(monkeypatch):
    monkeypatch.setattr(table, "find_spec", lambda package: None if package == "torch" else package)
    assert (table.list_openers(), table.list_engines()) == (("onnxruntime", "openvino"),) * 2
    assert table.list_judges(None) == ("onnxruntime",)
    assert table.list_judges("openvino") == ("openvino",)
    assert table.list_judges("tensorrt") == ()
    assert table.list_judges("portable") == ("onnxruntime", "openvino")
    monkeypatch.setattr(table, "find_spec", lambda package: package)
    assert table.list_engines() == ("onnxruntime", "openvino")
    assert table.list_packages() == ("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx")


def record(tiny_artifact, engine):
    """The artifact as if `quantize` had written it for an engine."""
    config = QuantizeConfig(precision="int8", target=engine, calibration="random") if engine else None
    return Artifact(tiny_artifact.folder, msgspec.structs.replace(tiny_artifact.record, config=config, kind="onnx"))


def test_an_engine_that_is_not_in_the_table(tiny_artifact):
    other = Artifact(tiny_artifact.folder, msgspec.structs.replace(tiny_artifact.record, kind="abacus"))
    with pytest.raises(InputError, match="'abacus'") as caught:
        table.require_known(other)
    assert caught.value.code == "VD3010"
    assert not table.must_be_compiled(other)
    table.require_known(tiny_artifact)


@pytest.mark.parametrize(("engine", "must"), [("tensorrt", True), ("onnxruntime", False), (None, False)])
def test_what_must_be_compiled_first(engine, must, tiny_artifact):
    assert table.must_be_compiled(record(tiny_artifact, engine)) == must
    compiled = Artifact(tiny_artifact.folder, msgspec.structs.replace(tiny_artifact.record, kind=engine or "openvino"))
    assert not table.must_be_compiled(compiled)


def test_registered_engines_replace_and_join(monkeypatch):
    monkeypatch.setattr(table, "TABLE", dict(table.TABLE))
    table.register([table.find_engine("openvino")._replace(name="new"), table.find_engine("openvino")._replace(extra="x")])
    assert table.find_engine("new").backend == table.find_engine("openvino").backend
    assert table.find_engine("openvino").fix == "run: pip install 'vitdeploy[x]'"
    assert list(table.TABLE)[-1] == "new"
