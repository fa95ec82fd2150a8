"""Codes of exit status 3, images and data."""

from __future__ import annotations

from vitdeploy.codes.code import Code

CODES: dict[str, Code] = {
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
        "The data's labels do not fit the model (class count, unknown class name, every label off by one).",
        "photos: has 12 classes, the model 10; use data of the model's classes",
        "Name the class folders as the model names its classes (`vitdeploy inspect ARTIFACT`), or by number from 0. Fewer "
        "folders than classes need names: those of the model, numbers, or WordNet ids for ImageNet's thousand classes.",
    ),
    "VD3107": Code(
        "The channels of an image or array, or a tensor's shape, type or batch, do not fit the input contract.",
        "the tensor is float32 [1, 3, 200, 200], the model takes float32 [N, 3, 224, 224]; prepare pixels with "
        "images.to_tensor(pixels, artifact.spec.input)",
        "Prepare images with vitdeploy.data.images, which follows the artifact's own contract. Data of other channels "
        "are arrays: .npy files of [H, W, C] or [C, H, W].",
    ),
    "VD3108": Code(
        "The size of an image, or the type or scale of an array, does not fit the input contract.",
        "cat.png: is 640 x 480 pixels, the model takes 28 x 28 and resize is 'none'; resize the image, or set resize = "
        "'shortest'",
        "Resize the image before, or export with another --resize. Arrays of floats hold values on the scale of the mean "
        "and std of the contract.",
    ),
    "VD3109": Code(
        "Calibration statistics are damaged, or belong to another model or input contract.",
        "stats: the statistics are of another model or input contract, or of other rewrites; quantize with --data, and "
        "save them again",
        "Make them again: --data DIR --save-statistics FOLDER.",
    ),
    "VD3110": Code(
        "An activation or the output is NaN or infinite on an image.",
        "the tensor 'blocks.3.mlp/Gelu_out' is nan on the image 'cat/7.jpg' (token 5, channel 12); check the weights, and that "
        "the image is prepared as the model wants",
        "Run `vitdeploy validate` on the FP32 model with these images; if it fails too, the weights or the contract are wrong.",
    ),
    "VD3111": Code(
        "A file of images was changed or removed after it was listed, while the images were read.",
        "photos/cat/7.jpg: changed while the images were read; start again when nothing writes there",
        "Every figure is of the images that were found when the command began. Wait until copies and downloads are done, or work "
        "on a copy.",
    ),
}
