"""Codes of exit status 4: this machine and what is installed on it."""

from __future__ import annotations

from vitdeploy.codes.code import Code

CODES: dict[str, Code] = {
    # 40xx: environment
    "VD4001": Code(
        "A package is not installed. vitdeploy never installs anything by itself.",
        "needs the package 'openvino', which is not installed; run: pip install 'vitdeploy[openvino]'",
        "Run the command that is named, in the same environment. `vitdeploy doctor` says what is there.",
    ),
    "VD4002": Code(
        "Out of disk space, or a child process wrote a larger file than it may.",
        "runs/vit: needs 1,400 MiB, 310 MiB are free; free some disk, or choose another place",
        "Free some disk, or name another place with -o; TMPDIR says where temporary files go.",
    ),
    "VD4003": Code(
        "What was written computes something else than its source: the export than the PyTorch original, in some batch or beside "
        "other images too, or the graph that is to be quantized than the model that was given.",
        "the rewritten graph differs from the source by 0.02 of the output's standard deviation; leave a rewrite out with "
        "--skip, and report this model",
        "Nothing was written. Export: take the versions of torch and onnxruntime in constraints.txt; quantize: leave a rewrite "
        "out with --skip. Report the model.",
    ),
    "VD4004": Code(
        "A library that vitdeploy calls (torch, onnx, safetensors, an engine), the file system, or the user's own module failed; "
        "the message holds its words.",
        "no CUDA graph: operation not permitted when stream is capturing",
        "Read its words; --debug shows the traceback. Try the version in constraints.txt, or another engine.",
    ),
    "VD4006": Code(
        "Out of memory.",
        "onnxruntime ran out of memory; use a smaller batch or model",
        "Use a smaller batch, end other programs, or raise the container's limit.",
    ),
    "VD4007": Code(
        "A child process died of a signal (a crash in native code, or killed for want of memory) or gave no answer.",
        "the engine's process was interrupted",
        "Look at the signal and the memory figures in the line: for SIGKILL give more memory or a smaller batch; for SIGSEGV try "
        "another version of the engine, and report the model.",
    ),
    "VD4008": Code(
        "A child process took longer than it may, and was killed.",
        "quantization was killed: it took longer than 3600 s",
        "Give it more time where the command has such an option (`compile --seconds`), or a less busy machine.",
    ),
    "VD4009": Code(
        "The engine does not run what was planned: layers meant for INT8 run in float.",
        "onnxruntime: 12 of 49 layers planned for 8 bits do not run in them: blocks.0.attn.qkv, ...; quantize for this engine: "
        "--backend onnxruntime",
        "Quantize with --backend for the engine that is to run it, and with a version of it that this project is tested with.",
    ),
    "VD4010": Code(
        "The engine's device, driver or provider can't be used on this machine.",
        "this onnxruntime has no CUDAExecutionProvider; it has CPUExecutionProvider; leave the device out, or install a build "
        "that has it (onnxruntime-gpu)",
        "`vitdeploy doctor` tries each engine and says why one does not run.",
    ),
    "VD4011": Code(
        "The engine could not be built, or what came out is not what was asked for, or computes something else.",
        "vit/model.onnx: tensorrt: the engine is not what was asked for in 3 builds: outputs are too far from the golden batch",
        "Nothing was written. Try another precision, or `compile` without options that change the build; then report the model.",
    ),
    "VD4012": Code(
        "This user has no home: neither HOME nor the system's list of users names one.",
        "this user has no home, and XDG_CACHE_HOME is not set; set HOME or XDG_CACHE_HOME",
        "Set HOME, or the variable that is named, to a folder that this user can write.",
    ),
}
