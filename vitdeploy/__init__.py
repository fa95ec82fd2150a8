"""vitdeploy: a Vision Transformer, from a PyTorch checkpoint to a proven deployment on an edge box.

    import vitdeploy as vd

    artifact = vd.export("vit_tiny_patch16_224", vd.ExportConfig(), "vit")
    report = vd.validate(artifact, vd.ValidateConfig(data="photos"))
    vd.bench("vit")

    with vd.load("vit") as model:  # stays open; from as many threads as one likes
        for answer in model(["cat.jpg", open("dog.jpg", "rb").read(), array]):
            print(answer.image, answer.classes[0].label)

An artifact is given as what a verb returned, or as a path of it. An image is a path, a file's bytes, an image of Pillow or uint8
pixels [height, width, channels]; where several are taken, also a folder, a pattern, a manifest or tar shards.

Names are resolved on first use (PEP 562), so that importing the package costs nothing and needs no engine installed.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vitdeploy.artifact import Artifact as Artifact
    from vitdeploy.contract import InputContract as InputContract
    from vitdeploy.errors import DeviceError as DeviceError
    from vitdeploy.errors import InputError as InputError
    from vitdeploy.errors import MachineError as MachineError
    from vitdeploy.errors import TrustError as TrustError
    from vitdeploy.errors import UsageError as UsageError
    from vitdeploy.errors import VitdeployError as VitdeployError
    from vitdeploy.fleet.box import Connection as Connection
    from vitdeploy.fleet.errands import ServiceConfig as ServiceConfig
    from vitdeploy.fleet.outcomes import BoxState as BoxState
    from vitdeploy.fleet.outcomes import Shipped as Shipped
    from vitdeploy.proof.rules import Thresholds as Thresholds
    from vitdeploy.recipe import BenchConfig as BenchConfig
    from vitdeploy.recipe import CompileConfig as CompileConfig
    from vitdeploy.recipe import ExportConfig as ExportConfig
    from vitdeploy.recipe import ModelConfig as ModelConfig
    from vitdeploy.recipe import QuantizeConfig as QuantizeConfig
    from vitdeploy.recipe import Recipe as Recipe
    from vitdeploy.recipe import ValidateConfig as ValidateConfig
    from vitdeploy.report import Report as Report
    from vitdeploy.report import Verdict as Verdict
    from vitdeploy.spec import ModelSpec as ModelSpec
    from vitdeploy.verbs.bencher import bench as bench
    from vitdeploy.verbs.builder import build as build
    from vitdeploy.verbs.compiler import compile as compile
    from vitdeploy.verbs.exporter import export as export
    from vitdeploy.verbs.gatekeeper import GateConfig as GateConfig
    from vitdeploy.verbs.gatekeeper import gate as gate
    from vitdeploy.verbs.inspector import Inspection as Inspection
    from vitdeploy.verbs.inspector import inspect as inspect
    from vitdeploy.verbs.packer import PackConfig as PackConfig
    from vitdeploy.verbs.packer import Packed as Packed
    from vitdeploy.verbs.packer import pack as pack
    from vitdeploy.verbs.predictor import PredictConfig as PredictConfig
    from vitdeploy.verbs.predictor import Prediction as Prediction
    from vitdeploy.verbs.predictor import Predictor as Predictor
    from vitdeploy.verbs.predictor import load as load
    from vitdeploy.verbs.predictor import predict as predict
    from vitdeploy.verbs.predictor import predict_each as predict_each
    from vitdeploy.verbs.pusher import PushConfig as PushConfig
    from vitdeploy.verbs.pusher import push as push
    from vitdeploy.verbs.quantizer import quantize as quantize
    from vitdeploy.verbs.returner import RollbackConfig as RollbackConfig
    from vitdeploy.verbs.returner import rollback as rollback
    from vitdeploy.verbs.signer import Keys as Keys
    from vitdeploy.verbs.signer import keygen as keygen
    from vitdeploy.verbs.surveyor import status as status
    from vitdeploy.verbs.validator import validate as validate
    from vitdeploy.verbs.verifier import Verification as Verification
    from vitdeploy.verbs.verifier import VerifyConfig as VerifyConfig
    from vitdeploy.verbs.verifier import verify as verify
    from vitdeploy.zoo.variants import VARIANTS as VARIANTS

# onnxruntime reports its use to its makers unless this is set before it is imported; nothing here phones home
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"

VERBS = (
    *("export", "quantize", "compile", "validate", "bench", "gate", "build", "predict", "pack", "verify", "keygen", "push"),
    *("rollback", "status", "inspect"),
)
"""The functions that do the work; each is a command of the same name."""

_HOME = {
    "ModelSpec": "spec",
    "InputContract": "contract",
    "VARIANTS": "zoo.variants",
    "Artifact": "artifact",
    "Report": "report",
    "Recipe": "recipe",
    "ModelConfig": "recipe",
    "ExportConfig": "recipe",
    "QuantizeConfig": "recipe",
    "CompileConfig": "recipe",
    "ValidateConfig": "recipe",
    "BenchConfig": "recipe",
    "GateConfig": "verbs.gatekeeper",
    "Thresholds": "proof.rules",
    "Verdict": "report",
    "PredictConfig": "verbs.predictor",
    "Prediction": "verbs.predictor",
    "export": "verbs.exporter",
    "quantize": "verbs.quantizer",
    "compile": "verbs.compiler",
    "validate": "verbs.validator",
    "bench": "verbs.bencher",
    "gate": "verbs.gatekeeper",
    "build": "verbs.builder",
    "Predictor": "verbs.predictor",
    "predict": "verbs.predictor",
    "predict_each": "verbs.predictor",
    "load": "verbs.predictor",
    "PackConfig": "verbs.packer",
    "Packed": "verbs.packer",
    "Keys": "verbs.signer",
    "keygen": "verbs.signer",
    "pack": "verbs.packer",
    "VerifyConfig": "verbs.verifier",
    "Verification": "verbs.verifier",
    "verify": "verbs.verifier",
    "Connection": "fleet.box",
    "ServiceConfig": "fleet.errands",
    "Shipped": "fleet.outcomes",
    "BoxState": "fleet.outcomes",
    "PushConfig": "verbs.pusher",
    "push": "verbs.pusher",
    "RollbackConfig": "verbs.returner",
    "rollback": "verbs.returner",
    "status": "verbs.surveyor",
    "Inspection": "verbs.inspector",
    "inspect": "verbs.inspector",
    "VitdeployError": "errors",
    "UsageError": "errors",
    "InputError": "errors",
    "MachineError": "errors",
    "DeviceError": "errors",
    "TrustError": "errors",
}

__all__ = ["VERBS", "__version__", *_HOME]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'vitdeploy' has no attribute {name!r}")
    from vitdeploy.errors import needs

    with needs(
        {"verbs.exporter": "export", "verbs.quantizer": "quantize"}.get(_HOME[name], "all")
    ):  # without torch: one line with the pip command
        return getattr(import_module(f"vitdeploy.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
