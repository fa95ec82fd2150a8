"""The demo on a 64-bit Arm box that is emulated here: each form of it is verified there as on a real one.

    python -m tests.benchmarks.aarch64          (make test-aarch64)

Debian for arm64 is unpacked by debootstrap into `runs/aarch64`, with the wheels that a box needs for vitdeploy and ONNX Runtime;
qemu's user mode runs it as a Cortex-A76. There `vitdeploy verify --run` sends a bundle's samples from the image file to the
outputs, compares with this machine and takes them or not; a bundle with one byte turned has to be refused. What is compared are
numbers, not seconds: emulation has no speed. Exit 1 if a bundle is not taken, or the turned one is.

Needs Debian's packages debootstrap (which wants root) and qemu-user-static; the first run fetches some 100 MB.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

import vitdeploy as vd
from tests.benchmarks import results
from tests.benchmarks.figures import Aarch64, ArmForm
from tests.benchmarks.ptq.models import ROOT
from vitdeploy.verbs.packer import pack
from vitdeploy.verbs.verifier import Verification

BOX = ROOT / "runs" / "aarch64"
QEMU, CPU = "qemu-aarch64-static", "cortex-a76"
PYTHON = "usr/bin/python3.11"
WHEELS = ("onnxruntime", "numpy", "pillow", "msgspec", "typer", "rich")
FORMS = (("fp32", ""), ("fp16", ""), ("int8", ""), ("int8", "neon-dotprod"), ("int8-dynamic", ""))
DESCRIPTION = """\
processor\t: {number}
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x4
CPU part\t: 0xd0b
CPU revision\t: 1

"""
"""What Linux says of a Cortex-A76. Of this machine's own, which qemu would show, ONNX Runtime 1.32 crashes."""


def build_box(say: Callable[[str], None]) -> Path:
    """The emulated box: a program that behaves as its Python. Kept for the next run."""
    missing = [program for program in ("debootstrap", QEMU) if shutil.which(program) is None]
    if missing:
        sys.exit(f"{' and '.join(missing)} not found: install Debian's packages debootstrap and qemu-user-static")
    root, wheels, python = BOX / "root", BOX / "wheels", BOX / "python"
    if python.exists():
        return python
    shutil.rmtree(BOX, ignore_errors=True)
    BOX.mkdir(parents=True)
    say("debootstrap: Debian for arm64")
    include = "--include=python3,libstdc++6,libgomp1"
    _run(["debootstrap", "--arch=arm64", "--variant=minbase", "--foreign", include, "bookworm", root])
    for package in sorted((root / "var/cache/apt/archives").glob("*.deb")):
        _run(["dpkg-deb", "-x", package, root])
    (root / "proc" / "cpuinfo").write_text("".join(DESCRIPTION.format(number=number) for number in range(2)))
    say("pip: wheels for arm64")
    kinds = [f"--platform=manylinux_2_{version}_aarch64" for version in (28, 27, 17)]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"]
    _run([*pip, *kinds, "--python-version=3.11", "-c", ROOT / "constraints.txt", "--target", wheels, *WHEELS])
    (wheels / "sitecustomize.py").write_text(f"import sys\nsys.executable = {str(python)!r}\n")  # children start as this does
    new = BOX / "python.new"
    new.write_text(f'#!/bin/sh\nQEMU_CPU={CPU} exec {QEMU} -L {root} {root}/{PYTHON} "$@"\n')
    new.chmod(0o755)
    new.rename(python)
    return python


def _run(command: Sequence[str | Path], environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0 and environment is None:
        sys.exit(f"{' '.join(map(str, command))} failed: {(done.stderr or done.stdout)[-2000:]}")
    return done


def verify_there(python: Path, bundle: Path) -> subprocess.CompletedProcess[str]:
    """`vitdeploy verify BUNDLE --run` on the box."""
    paths = os.pathsep.join((str(BOX / "wheels"), str(ROOT)))
    environment = {"PATH": os.environ["PATH"], "HOME": str(BOX), "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}
    return _run([python, "-m", "vitdeploy", "verify", bundle, "--run", "--json", "-q"], environment)


def make_bundle(precision: str, isa: str, work: Path) -> Path:
    """The demo in one form, packed here."""
    source, bundle = work / "fp32", work / f"{precision}{isa}.vdb"
    if not source.exists():
        model = vd.ModelConfig(
            source=str(ROOT / "recipes/fashion_mnist_vit.toml"), weights=str(ROOT / "recipes/fashion_mnist_vit.safetensors")
        )
        vd.export(model, vd.ExportConfig(), source)
    made: Path = source
    if precision != "fp32":
        images = (
            {}
            if precision == "int8-dynamic"
            else {"calibration": str(ROOT / "calibration/fashion-mnist"), "split": "calibration"}
        )
        config = vd.QuantizeConfig(precision=precision, target="onnxruntime", limit=64, verify=False, isa=isa or None, **images)
        made = vd.quantize(source, config, work / f"{precision}{isa}").folder
    pack([made], out=bundle)
    return bundle


def measure(work: Path, options: argparse.Namespace) -> Aarch64:
    """All forms on the box, then one of them with a byte turned.

    Raises:
        SystemExit: A bundle is not taken, or the turned one is.
    """
    python, forms = build_box(results.say), []
    for precision, isa in FORMS[:1] if options.quick else FORMS:
        bundle = make_bundle(precision, isa, work)
        done = verify_there(python, bundle)
        if done.returncode != 0:
            sys.exit(f"{bundle.name}: exit {done.returncode} on the box: {done.stderr[-2000:]}{done.stdout[-2000:]}")
        checks = {check.name: check for check in msgspec.json.decode(done.stdout, type=Verification).checks}
        pixels, outputs = checks["images"], checks["outputs"]
        results.say(f"{precision} {isa}: {outputs.metric.value:.3g}, {outputs.limit}")
        forms.append(ArmForm(precision, isa, pixels.metric.value, outputs.metric.value, outputs.limit))
    content = bytearray(bundle.read_bytes())
    content[len(content) // 2] ^= 1
    bundle.write_bytes(content)
    refused = verify_there(python, bundle)
    if refused.returncode != 7 or "VD7007" not in refused.stderr:
        sys.exit(f"a bundle with one byte turned: exit {refused.returncode} on the box: {refused.stderr[-2000:]}")
    said = _run([QEMU, "--version"]).stdout.partition("\n")[0]
    asked = "import onnxruntime, platform; print(platform.python_version(), onnxruntime.__version__)"
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(BOX / "wheels")}
    versions = _run([python, "-c", asked], environment).stdout.split()
    return Aarch64(CPU, said, versions[0], versions[1], forms)


def main() -> None:
    """Build the box, run, store."""
    options = results.parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        results.store("aarch64", measure(Path(scratch), options), options)


if __name__ == "__main__":
    main()
