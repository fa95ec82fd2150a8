"""Codes of exit status 3, files and weights."""

from __future__ import annotations

from vitdeploy.codes.code import Code

CODES: dict[str, Code] = {
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
        "The file or folder is not of the kind that its name or the command says: a model of another program, or a checkpoint in "
        "a form that is not read.",
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
        'torch.save(model.state_dict(), "weights.pth")',
        "Save the state dict where the class is at home, and give that.",
    ),
    "VD3017": Code(
        "The file is a TorchScript archive, which is a program; the weights alone are needed.",
        "model.pt: is a TorchScript archive, which is a program and is not accepted; save the weights of the model that was "
        'scripted: torch.save(model.state_dict(), "weights.pth")',
        "Save the state dict of the model before it is scripted.",
    ),
    "VD3018": Code(
        "The checkpoint carries Python objects (arguments, a configuration) beside its weights; none is ever loaded.",
        "last.pth: holds Python objects (argparse.Namespace) beside its weights, which are never loaded",
        "Where it was made, run the line that is printed: it saves the weights alone, under another name, and reads them by the "
        "key that they have in this file.",
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
        "Return logits [N, classes], or a tuple or mapping that begins with them; call .eval() in the factory; look for batch "
        "statistics, dropout and code that makes a plain number of the batch (int(n / k), not n // k), or fix it by --batch N.",
    ),
    "VD3023": Code(
        "No ViT block was found in the graph: nothing looks like attention between two linear layers.",
        "has no block of a Vision Transformer: MatMul, Softmax, MatMul between linear layers was looked for; it has no MatMul at "
        "all; quantize it with NNCF or another tool for any network, and compile what it gives",
        "Check that the file is a Vision Transformer's. Networks without attention, and those whose attention has no softmax of "
        "scores (EfficientViT, MobileViTv2), are quantized by NNCF or by onnxruntime.quantization.quantize_static; "
        "`vitdeploy compile` takes what they write.",
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
        "Do what the line says; for TensorRT write the file from the FP32 artifact with "
        "`vitdeploy quantize ARTIFACT --backend tensorrt --data DIR -o OUT`.",
    ),
    "VD3027": Code(
        "The ONNX file would crash or mislead an engine: impossible sizes, offsets that reach past a file, data missing.",
        "model.onnx: its external data 'model.onnx.data' is missing (346,000,000 bytes); put the file beside the model, under "
        "this name",
        "Copy the data file along, or export or download the model again.",
    ),
    "VD3028": Code(
        "The file is not a report of this tool, or is cut off: a gate reads what `validate`, `bench` or `build` wrote as JSON.",
        "run.json: is no report: Object missing required field `title`; give the file that "
        "`vitdeploy validate ARTIFACT -o FILE.json` or `bench` wrote",
        "Write the report again with `-o NAME.json`; Markdown is for people.",
    ),
    "VD3029": Code(
        "The model that was described, by a spec or a mapping, gives other outputs than the code it was described after.",
        "'home-made' is another function than its code: outputs differ by 0.83, 0.31 of their standard deviation; 25 % of 4 "
        "images have the same largest output; compare the spec with the code: scale, norm_eps, mlp",
        "Names and shapes of tensors do not say what is done with them: correct what the spec says of it (the factor on "
        "attention scores, the activation, epsilon, where norms stand), or export the code itself with --module.",
    ),
    "VD3030": Code(
        "The bundle can't be read: it is something else, cut off, or written by another program or version.",
        "vit.vdb: does not end where its files end; get the bundle again from whoever packed it",
        "Copy the bundle again, or pack it again with `vitdeploy pack ARTIFACT -o OUT.vdb`.",
    ),
    "VD3031": Code(
        "The file is no key that signs or verifies bundles: a P-256 key in PEM, the private one without a password.",
        "release.pub: is no public key in PEM; give the .pub file of `vitdeploy keygen`, or write one: openssl ec -in KEY "
        "-pubout -out KEY.pub",
        "Make a pair with `vitdeploy keygen -o KEY`; `pack --sign` takes KEY, `verify --key` takes KEY.pub.",
    ),
    "VD3032": Code(
        "The baseline of a gate is damaged, or accuracy was measured on other images than those that it was written for.",
        "baseline.json: is of other images: 2,000 with digest 0f31c6a4e8b2, here are 1,990 with 77e0d5b91c34; give the same "
        "images, or write it again with --update-baseline",
        "Images are told by name, label and contents. Measure on those of the baseline (the same --data, --split, --limit and "
        "--seed); where the data were changed on purpose, write the baseline again.",
    ),
}
