"""Records are typed; those of schema 1 are read as what they are; numbers that are none are never lost."""

import json
import math
from pathlib import Path

import msgspec
import pytest

from vitdeploy.artifact import RECORD, SCHEMA, Artifact, Record, read_record, seal, set_key
from vitdeploy.errors import InputError
from vitdeploy.recipe import CompileConfig, ExportConfig, QuantizeConfig
from vitdeploy.record import Calibration, CompileProof, ExportProof, Origin, QuantizeProof, Worth
from vitdeploy.report import Metric
from vitdeploy.spec import ModelSpec

OLD = Path(__file__).parent / "records"
"""As the version before wrote them, one of each kind."""


def old(name: str) -> Record:
    return read_record(OLD / f"{name}.json")


def known(now: object, before: object) -> object:
    """What both have: records have got fields since, of which an old one says nothing."""
    if isinstance(now, dict) and isinstance(before, dict):
        return {name: known(value, before[name]) for name, value in now.items() if name in before}
    return now


USUAL = {
    "export": msgspec.to_builtins(ExportConfig()),
    "quantize": msgspec.to_builtins(QuantizeConfig(calibration="x")),
    "compile": msgspec.to_builtins(CompileConfig(backend="x")),
}
"""What settings are that have come since a record was written."""


@pytest.mark.parametrize("path", sorted(OLD.glob("*.json")), ids=lambda path: path.stem)
def test_an_old_record_is_read_whole(path, tmp_path):
    """And written again it is the same record: nothing of it is lost on the way."""
    before, record = json.loads(path.read_text()), read_record(path)
    assert (before["schema_version"], record.schema_version) == (1, SCHEMA)
    assert record.files == before["files"]
    now = msgspec.to_builtins(record)
    proof = known(now["proof"], before["proof"])
    if "facts" in proof:
        proof["facts"] |= {"build_s": record.proof.build_s}
    before["proof"].get("run", {}).pop("compiled", None)  # engines have no such setting any more
    assert json.loads(json.dumps(proof)) == before["proof"]
    usual = json.loads(json.dumps(USUAL[record.made_by]))
    assert json.loads(json.dumps(now["config"])) == usual | before["config"] | {"verb": record.made_by}
    again = seal(tmp_path, msgspec.structs.replace(record, files={}))
    assert read_record(tmp_path / RECORD) == again == msgspec.structs.replace(record, files={})


def test_an_old_export():
    record = old("export")
    assert record.config == ExportConfig(prove_batches=(1, 3))
    assert isinstance(record.proof, ExportProof)
    assert (record.proof.batches, record.proof.images) == ((1, 3), 3)
    assert record.origin.file == "original.safetensors"


def test_an_old_quantization():
    record = old("int8")
    assert isinstance(record.config, QuantizeConfig) and record.config.target == "portable"
    assert isinstance(record.proof, QuantizeProof)
    assert record.proof.census["openvino"].executed["gemms"] == 9
    assert record.proof.sites[0].layers == ("blocks.0.attn.qkv/MatMul",)
    assert record.proof.calibration.images == 24
    assert record.proof.worth.agreement.value == 1.0
    assert record.verdict == record.proof.worth.verdict
    assert Artifact(OLD, record).engine is None
    assert old("weights").proof.worth is None
    assert (Artifact(OLD, old("weights")).engine, old("weights").verdict) == ("openvino", "")
    assert old("fp16").proof.fp16.half == 63


def test_an_old_engine():
    record = old("openvino")
    assert isinstance(record.config, CompileConfig) and record.config.optimise == "latency"
    assert isinstance(record.proof, CompileProof)
    assert (record.proof.run.precision, record.proof.build_s) == ("bf16", 0.3)
    assert record.proof.optimise.chosen == "bf16, cpu, latency"
    assert record.proof.audit.census.counts["gemm/bf16"] == 9
    assert record.audited and not old("int8").audited
    assert "fp32" in record.proof.rival.latency_ms


def test_an_engine_that_has_not_run_is_not_audited(tmp_path):
    table = json.loads((OLD / "onnxruntime.json").read_text())
    del table["proof"]["audit"]
    (tmp_path / RECORD).write_text(json.dumps(table))
    assert not read_record(tmp_path / RECORD).audited


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_record_holds_a_number_that_is_none_as_null(tmp_path, value):
    worth = Worth(engine="e", reference="r", images=1, held_back=True, agreement=Metric(value, "share"), cosine=value)
    record = Record(spec=ModelSpec(name="x"), made_by="quantize", proof=QuantizeProof(rewritten=value, worth=worth))
    seal(tmp_path, record)
    proof = read_record(tmp_path / RECORD).proof
    for number in (proof.rewritten, proof.worth.agreement.value, proof.worth.cosine):
        assert number == value or (math.isnan(number) and math.isnan(value))


def test_an_old_null_is_no_number(tmp_path):
    """The version before wrote NaN as null."""
    table = json.loads((OLD / "int8.json").read_text())
    table["proof"]["worth"]["divergence"]["value"] = None
    (tmp_path / RECORD).write_text(json.dumps(table))
    assert math.isnan(read_record(tmp_path / RECORD).proof.worth.divergence.value)


@pytest.mark.parametrize("text", ["[]", "null", "1", '{"schema_version": 1}', '{"schema_version": 3}', '{"made_by": "export"'])
def test_what_is_no_record(tmp_path, text):
    (tmp_path / RECORD).write_text(text)
    with pytest.raises(InputError) as caught:
        read_record(tmp_path / RECORD)
    assert caught.value.code == "VD3010"


def test_what_does_not_apply_is_left_out():
    assert msgspec.to_builtins(Origin(random_seed=0)) == {"random_seed": 0}
    assert msgspec.to_builtins(Calibration(source="random", images=64)) == {"source": "random", "images": 64}


def test_the_key_changes_no_identity(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"model")
    made = Artifact(tmp_path, seal(tmp_path, Record(spec=ModelSpec(name="x"), made_by="test")))
    keyed = set_key(made, "a key")
    assert read_record(tmp_path / RECORD) == keyed.record
    assert (keyed.record.key, keyed.id) == ("a key", made.id)
