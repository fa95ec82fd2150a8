"""Codes of exit status 2: names and values."""

from __future__ import annotations

from vitdeploy.codes.code import Code

CODES: dict[str, Code] = {
    # 20xx: names and values
    "VD2001": Code(
        "The name is not in the table of known ViTs, and no file or folder has it. `vitdeploy models` lists the table.",
        "no model is named 'vit_smal_patch16_224'; did you mean 'vit_small_patch16_224'?",
        "Take a name from `vitdeploy models`, or check the path: a folder is looked for from where you stand.",
    ),
    "VD2002": Code(
        "A recipe or spec file has a key that does not exist, or the command line a command or option. Nothing is ignored: a "
        "typo must not change a result.",
        "job.toml: line 4: unknown key 'export.opst'; did you mean 'opset'?",
        "Correct the word that is named, or take it out; `vitdeploy COMMAND --help` lists the options.",
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
        "The output path can't be used: it is a file, it holds the source, another artifact, or something that vitdeploy did not "
        "write, or it can't be written. Nothing was changed.",
        "photos: exists and was not written by vitdeploy (no artifact.json in it); choose another folder",
        "Name a new folder behind -o. What the same command made from the same source is replaced, any other artifact with "
        "--force, what vitdeploy did not write never.",
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
        "Write --module FILE.py:FUNCTION, or package.file:factory; the function takes no arguments and returns the network.",
    ),
    "VD2013": Code(
        "The artifact was compiled for another engine, or has to be compiled before this engine can run it.",
        "vit/model.onnx: has to be compiled before tensorrt can run it; run: "
        "vitdeploy compile ARTIFACT --backend tensorrt -o OUT",
        "Run compiled artifacts with their own engine; quantize and compile from the ONNX artifact.",
    ),
}
