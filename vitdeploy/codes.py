"""Every error code: what it means, a line that one sees, and what to do; printed by `vitdeploy explain`.

The first digit of a code is the exit status of its class (see `vitdeploy.errors`).
"""

from __future__ import annotations

from typing import NamedTuple


class Code(NamedTuple):
    """One code.

    Attributes:
        meaning: What it says, and why vitdeploy stops.
        example: An error as it is printed, without its code.
        remedy: What to do, in the imperative.
    """

    meaning: str
    example: str
    remedy: str


CODES: dict[str, Code] = {
    # 20xx: names and values
    "VD2001": Code(
        "The name is not in the table of known ViTs, and no file or folder has it. `vitdeploy models` lists the table.",
        "no model is named 'vit_smal_patch16_224'; did you mean 'vit_small_patch16_224'?",
        "Take a name from `vitdeploy models`, or check the path: a folder is looked for from where you stand.",
    ),
    "VD2002": Code(
        "A recipe or spec file has a key that does not exist. Keys are never ignored: a typo must not change a result.",
        "job.toml: line 4: unknown key 'export.opst'; did you mean 'opset'?",
        "Correct the key on that line, or take it out.",
    ),
    "VD2003": Code(
        "A value in a recipe, spec or option has the wrong type or lies outside its range.",
        "--image-size is '1x2x3'; use N or HxW, such as 224 or 224x320",
        "Correct the value that is named. `vitdeploy COMMAND --help` lists options with their values.",
    ),
    "VD2004": Code(
        "The image height or width is not a multiple of the patch, so the image can't be cut into whole patches.",
        "image height 225 is not a multiple of the patch 16; use 224",
        "Give --image-size a multiple of the patch; the nearest is named.",
    ),
    "VD2005": Code(
        "The number of heads does not divide the model width, and no head size was given.",
        "5 heads do not divide the width 384; use 6 heads, or give head_width",
        "Correct `heads` or `width` in the spec, or set `head_width`.",
    ),
    "VD2006": Code(
        "Two settings of the model contradict each other (for example a class-token pool without a class token).",
        "a distillation token needs a class token; set class_token = true",
        "Change one of the two that are named.",
    ),
    "VD2007": Code(
        "The recipe is not valid TOML.",
        "job.toml: is not valid TOML: Invalid value (at line 3, column 10)",
        "Look at the line that is named: text needs quotes, and a key may stand only once.",
    ),
    "VD2008": Code(
        "The output path can't be used: it is a file, it holds something that vitdeploy did not write, or it can't be "
        "written. Nothing was changed.",
        "photos: exists and was not written by vitdeploy (no artifact.json in it); choose another folder",
        "Name a new folder behind -o. Folders that vitdeploy wrote are replaced, others never.",
    ),
    "VD2009": Code(
        "The named backend does not exist.",
        "there is no backend 'onxruntime'; did you mean 'onnxruntime'?",
        "`vitdeploy doctor` lists the backends and says which run here.",
    ),
    "VD2010": Code(
        "The command needs something that was not given (data, a contract, weights), or was given twice.",
        "give MODEL or --module, one of them; run: vitdeploy export --help",
        "Give what is named, once.",
    ),
    "VD2011": Code(
        "A setting is outside what this command supports (opset, batch, top-k, outputs).",
        "opset 3 is not supported; use 18 to 22",
        "Take a value from the range that is named, or leave the option out.",
    ),
    "VD2012": Code(
        "There is no such Python module or name, or what it gives is not a torch.nn.Module.",
        "there is no Python module 'my_project'; run it where my_project can be imported",
        "Write --module package.file:factory; the factory takes no arguments and returns the network.",
    ),
    "VD2013": Code(
        "The artifact was compiled for another engine, or has to be compiled before this engine can run it.",
        "vit/model.onnx: has to be compiled before tensorrt can run it; run: vitdeploy compile ARTIFACT --backend tensorrt",
        "Run compiled artifacts with their own engine; quantize and compile from the ONNX artifact.",
    ),
    # 30xx: files and weights
    "VD3001": Code(
        "The file or folder does not exist, or can't be read.",
        "vit/model.onnx: does not exist",
        "Check the path and your rights to read it.",
    ),
    "VD3002": Code(
        "The file is empty.",
        "vit.safetensors: is empty; download or write it again",
        "Get it again; a download or a copy was cut off, often by a full disk.",
    ),
    "VD3003": Code(
        "The file is a git-lfs pointer: the small text stub that git keeps instead of a large file.",
        "vit.safetensors: is a git-lfs pointer, not the file itself; run: git lfs pull",
        "Run `git lfs install` once, then `git lfs pull` in that repository.",
    ),
    "VD3004": Code(
        "The file is an HTML page, most often a log-in or error page saved under the name of a model.",
        "vit.safetensors: is an HTML page; download the file itself, perhaps after logging in",
        "Open the file in a browser to see what the server said; gated models need a token.",
    ),
    "VD3005": Code(
        "The file is not of the kind that its name or the command says.",
        "model.pth: is a plain Python pickle, which torch.save did not write",
        "`vitdeploy inspect FILE` says what it is.",
    ),
    "VD3006": Code(
        "The weights file is cut off or damaged, or its header does not fit its contents.",
        "vit.safetensors: has an unreadable header; download it again",
        "Get the file again, and compare its size or SHA-256 with the source's.",
    ),
    "VD3007": Code(
        "The safetensors header names the same tensor twice; which one counts is undefined.",
        "vit.safetensors: names the tensor 'head.weight' twice in its header; write it again",
        "Write the file again with safetensors.torch.save_file.",
    ),
    "VD3008": Code(
        "Weights hold NaN or infinity.",
        "vit.safetensors: tensor 'norm.weight' has 3 values of 384 that are NaN or infinite; use a checkpoint from before "
        "the training diverged",
        "Use an earlier checkpoint. Float64 values beyond the range of float32 count as infinite.",
    ),
    "VD3009": Code(
        "The weights' names or shapes do not match the model. Nothing is loaded in part.",
        "vit.safetensors: tensor 'step' is of type int64, weights are floating-point numbers; save the weights alone",
        "Check that name and checkpoint belong together: `vitdeploy inspect FILE` lists names and shapes.",
    ),
    "VD3010": Code(
        "The artifact's record is missing, unreadable or of another version, or a file changed after it was made.",
        "photos: is not an artifact (no artifact.json in it); give a folder that a vitdeploy command wrote, or a .onnx file",
        "Make the artifact again. Artifacts are never edited: their files are held to the digests in artifact.json.",
    ),
    "VD3011": Code(
        "The file is not an ONNX model, or holds no graph.",
        "model.onnx: is not a whole ONNX file (byte 4096); write or download it again",
        "Export or download it again.",
    ),
    "VD3012": Code(
        "The ONNX file carries no input contract, so pixels can't be prepared for it.",
        "timm.onnx: carries no input contract; give an artifact folder, or write the file with `vitdeploy export`",
        "Write a contract and pass it to `quantize` or `compile` as --contract input.toml, for example: height = 224, "
        "width = 224, mean = [0.5, 0.5, 0.5], std = [0.5, 0.5, 0.5], one a line.",
    ),
    "VD3013": Code(
        "The header of the weights file is too large or names too many tensors, or the archive unpacks to far too much.",
        "model.pth: unpacks to 40 GiB from 2 MiB, with a pickle of 1 KiB; write it with torch.save, which does not compress",
        "No real checkpoint looks like that: find out where the file comes from.",
    ),
    "VD3014": Code(
        "The checkpoint is of no source library that is known.",
        "model.safetensors: is of no known source; its first tensors are to_patches.weight, cls, pos",
        "Give the whole folder if config.json lies beside it. Else write a mapping file of a few lines that says what its "
        "tensors are called here, or use --module with your own code; the README.md in vitdeploy/checkpoints shows both.",
    ),
    "VD3015": Code(
        "The checkpoint does not say which architecture it is, or its configuration is one that is not supported.",
        "clip.safetensors: does not say whether its MLP is GELU or QuickGELU",
        "Give the folder with its configuration, or the architecture's name with --weights FILE.",
    ),
    "VD3016": Code(
        "The file is a whole pickled module: its class, not only its weights. Reading it would run the class's code.",
        "model.pth: is a pickled module (my_project.Net), not a state dict; where it was made, run: "
        "torch.save(model.state_dict(), path)",
        "Save the state dict where the class is at home, and give that.",
    ),
    "VD3017": Code(
        "The file is a TorchScript archive, which is a program; the weights alone are needed.",
        "model.pt: is a TorchScript archive, which is a program and is not accepted; save the weights of the model that was "
        "scripted: torch.save(model.state_dict(), path)",
        "Save the state dict of the model before it is scripted.",
    ),
    "VD3018": Code(
        "The checkpoint carries Python objects (arguments, a configuration) beside its weights; none is ever loaded.",
        "last.pth: holds Python objects (argparse.Namespace) beside its weights, which are never loaded",
        'Where it was made, run: ck = torch.load(path, weights_only=False); torch.save({"model": ck["model"]}, path).',
    ),
    "VD3019": Code(
        "A JSON file beside the weights is damaged, too large, or not an object.",
        "vit/config.json: is a JSON list, expected an object",
        "Download the folder again.",
    ),
    "VD3020": Code(
        "A checkpoint in several files is not complete, or its index and its files disagree.",
        "vit/model.safetensors.index.json: 1 of 2 files are missing (model-00002-of-00002.safetensors); download the whole "
        "repository again",
        "Get all files that the index names, of one and the same revision.",
    ),
    "VD3021": Code(
        "No weights were found, or several sets of which none is known to be the one that counts.",
        "vit: holds 2 files of weights (a.safetensors, b.safetensors); name one of them",
        "Name the file instead of the folder.",
    ),
    "VD3022": Code(
        "The network of a Python module can't be exported: its output is not one row of logits an image, the same in "
        "every run and for every image alone.",
        "my.file:build gives [2, 197, 384] for 2 images, expected [2, classes]; return one row of logits an image",
        "Return logits [N, classes]; call .eval() in the factory; look for batch statistics, dropout and fixed batch sizes.",
    ),
    "VD3023": Code(
        "No ViT block was found in the graph: nothing looks like attention between two linear layers.",
        "has no block of a Vision Transformer: MatMul, Softmax, MatMul between linear layers was looked for; it has no MatMul at "
        "all",
        "Check that the file is a Vision Transformer's. Convolutional and windowed networks are not quantized here.",
    ),
    "VD3024": Code(
        "The model is quantized already, or its weights are not float32.",
        "vit-int8/model.onnx: has quantized operators already; give the FP32 model that it was made from",
        "Quantize from the FP32 export.",
    ),
    "VD3025": Code(
        "The graph's operator set, or one of its operators, can't be edited.",
        "the model has operator set 11, 13 to 25 can be edited; export it again with an operator set from 13 to 25",
        "Export the model again with plain ONNX operators of a set in that range.",
    ),
    "VD3026": Code(
        "The graph holds something that the engine can't run as it is meant: it is refused before the engine sees it.",
        "model.onnx: keeps data in a file named 'weights.bin'; save it with another name",
        "Do what the line says; for TensorRT write the file with `vitdeploy quantize --target tensorrt`.",
    ),
    "VD3027": Code(
        "The ONNX file would crash or mislead an engine: impossible sizes, offsets that reach past a file, data missing.",
        "model.onnx: its external data 'model.onnx.data' is missing (346,000,000 bytes); put the file beside the model, under "
        "this name",
        "Copy the data file along, or export or download the model again.",
    ),
    # 31xx: images and data
    "VD3101": Code(
        "No images were found.",
        "photos: holds no images",
        "Give a folder with one subfolder a class, a manifest (.csv, .jsonl), tar shards, or IDX files.",
    ),
    "VD3102": Code(
        "An image can't be decoded: it is damaged, empty, of a format that is not accepted, or not an image.",
        "photos/a.heic: is a HEIC, AVIF or video file, not a JPEG, PNG, WebP or BMP image",
        "Convert or replace the file, or leave it out.",
    ),
    "VD3103": Code(
        "An image has more pixels than the limit allows.",
        "photos/map.png: is 40,000 x 40,000 pixels, more than 178 million; shrink or leave out the image",
        "Shrink it; the model sees a few hundred pixels a side.",
    ),
    "VD3104": Code(
        "More images are unreadable than --max-bad allows.",
        "photos: 1 image can't be read, 0 allowed; the first is cat/7.jpg: is empty",
        "Replace or remove it, or allow it: --max-bad 1. What was passed over is counted and named in the report.",
    ),
    "VD3105": Code(
        "The data source's own index (manifest, tar, IDX header) is damaged or inconsistent.",
        "train-images-idx3-ubyte: its header announces 47,040,000 bytes, it holds 9,000; download it again",
        "Correct the line that is named, or get the file again.",
    ),
    "VD3106": Code(
        "The data's labels do not fit the model (class count, unknown class name).",
        "photos: has 12 classes, the model 10; use data of the model's classes",
        "Name the class folders as the model names its classes (`vitdeploy inspect ARTIFACT`), or by number from 0.",
    ),
    "VD3107": Code(
        "An image's channels, or a tensor's shape, type or batch, do not fit the input contract.",
        "the tensor is float32 [1, 3, 200, 200], the model takes float32 [N, 3, 224, 224]; prepare pixels with "
        "images.to_tensor(pixels, artifact.spec.input)",
        "Prepare images with vitdeploy.data.images, which follows the artifact's own contract.",
    ),
    "VD3108": Code(
        "The image's size does not fit the input contract and may not be changed, or pixels are not uint8 in its shape.",
        "cat.png: is 640 x 480 pixels, the model takes 28 x 28 and resize is 'none'; resize the image, or set resize = "
        "'shortest'",
        "Resize the image before, or export with another `resize` in the spec's [input].",
    ),
    "VD3109": Code(
        "Calibration statistics are damaged, or belong to another model or input contract.",
        "stats: the statistics are of another model or input contract, or of other rewrites; quantize with --calibration, and "
        "save them again",
        "Make them again: --calibration DIR --save-statistics FOLDER.",
    ),
    "VD3110": Code(
        "An activation or the output is NaN or infinite on an image.",
        "the tensor 'blocks.3.mlp/Gelu_out' is nan on the image 'cat/7.jpg' (token 5, channel 12); check the weights, and that "
        "the image is prepared as the model wants",
        "Run `vitdeploy validate` on the FP32 model with these images; if it fails too, the weights or the contract are wrong.",
    ),
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
        "--target onnxruntime",
        "Quantize with --target for the engine that is to run it, and with a version of it that this project is tested with.",
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
    # 70xx: trust
    "VD7001": Code(
        "A path inside an archive or record points outside its folder, or through a link.",
        "model.onnx: its external data '../../etc/passwd' is a link that leads out of its folder; put plain files beside "
        "the model",
        "Put plain files beside the model. If you did not make this file, distrust it.",
    ),
    "VD7002": Code(
        "The pickle would run code if it were loaded.",
        "model.pth: contains code (posix.system); get the safetensors file, or the state dict alone, from whoever made it",
        "Get a safetensors file. --trust-pickle SHA256 loads this very file, with all that it does; the record says so.",
    ),
    "VD7003": Code(
        "The file's SHA-256 is not the one that was said to be trusted.",
        "model.pth: has the SHA-256 9f86d0..., trusted is 2c26b4...; find out which file you have before you trust it",
        "Compare with the digest that its maker publishes; `sha256sum FILE` prints it.",
    ),
    "VD7004": Code(
        "The engine was built elsewhere or for another device, driver or version, or changed since: engines are executable "
        "code, and only those that this machine has built are loaded.",
        "vit-trt/model.plan: was not built by this user on this machine; an engine is executable code and is not loaded",
        "Ship the ONNX artifact and run `vitdeploy compile` on the machine where it will run.",
    ),
    "VD7005": Code(
        "The graph asks for operators of an unknown domain, or for a library of its own: that would be foreign code.",
        "model.onnx: the node 'x' asks for Fused of the domain 'my.ops': that would be foreign code; export the model with "
        "operators of ONNX alone",
        "Export it again without custom operators.",
    ),
}
"""Code to what is to be said of it."""
