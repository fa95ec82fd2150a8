"""Codes of exit status 7: what would be a stranger's code."""

from __future__ import annotations

from vitdeploy.codes.code import Code

CODES: dict[str, Code] = {
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
    "VD7006": Code(
        "The bundle is not signed, or not with the key that you trust, or its signature is of other files.",
        "vit.vdb: was not made with this key (sha256 9f86d081884c); get the bundle again, and the key from whoever signed it",
        "Get the bundle again, and the public key from whoever signed it, by another way than the bundle.",
    ),
    "VD7007": Code(
        "The bundle does not hold exactly the files that its manifest lists: one is changed, missing, added or a link.",
        "vit.vdb: models/0-int8/model.onnx changed after it was packed; get the bundle again from whoever packed it",
        "Get the bundle again from whoever packed it. If it came over a network that you do not control, ask for a signed one.",
    ),
    "VD7008": Code(
        "The bundle is no later release than the one that it must follow: an old model may have been sent again.",
        "vit.vdb: is release 3 of vit; it must be above 4; get a later release, or give a smaller --after",
        "Get a later release. To go back on purpose, leave out --after or give a smaller number.",
    ),
    "VD7009": Code(
        "The recipe names code that `build` would import and run. A recipe can come from anywhere, so the command line must name "
        "the same code.",
        "job.toml: would import and run net.py:build; read that code, then name it too: vitdeploy build job.toml --module "
        "net.py:build",
        "Read the code that is named. To run it, repeat its name behind --module.",
    ),
    "VD7010": Code(
        "The box trusts no key yet, or another one than was given.",
        "user@box: /home/user/vitdeploy/key.pub: the box trusts no key yet; the box serves no release yet; name the key that it "
        "shall trust from now on: --key KEY.pub",
        "Give the public key with the first push. To change it later, remove key.pub on the box by hand: a push can't.",
    ),
}
