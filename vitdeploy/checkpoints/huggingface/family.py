"""What a family of Hugging Face models is, how its configuration is read, and what families share.

``config.json`` comes from outside: every option is checked for its type, and one that changes the network in a way that is
not supported is refused by name. An option that the file leaves out has the default of transformers' configuration class.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

from vitdeploy.checkpoints.conversion import Rule
from vitdeploy.checkpoints.source import Checkpoint, read_problem
from vitdeploy.errors import InputError
from vitdeploy.spec import Mlp, ModelSpec, SpecFields

Pairs = tuple[tuple[str, str], ...]

ACTIVATIONS: dict[str, Mlp] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
}
"""Names of transformers' ``activations.py`` to ours."""

SIZES: dict[str, object] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
    "qkv_bias": True,
}
"""Defaults of ViTConfig; each family names those of its own class that differ."""

LARGEST = 1_000_000
_PLACEHOLDER = re.compile(r"LABEL_\d+")


class Options:
    """The configuration of the image tower, option by option, with the class's defaults behind it.

    Args:
        checkpoint: What was read.
        family: Whose defaults count.
    """

    def __init__(self, checkpoint: Checkpoint, family: Family) -> None:
        self.checkpoint, self.family, self.path = checkpoint, family, checkpoint.path
        nested = checkpoint.config.get(family.nested) if family.nested else None
        self.given: Mapping[str, object] = nested if isinstance(nested, dict) else checkpoint.config

    def value(self, key: str) -> object:
        """An option, or its default."""
        return self.given.get(key, self.family.defaults.get(key))

    def refuse(self, key: str, why: str = "is not supported") -> InputError:
        """The error that names an option and its value."""
        message = f"config.json says {key} = {self.value(key)!r:.80}, which {why}"
        return InputError("VD3015", message, file=self.path, fix="use --module with the model built by transformers")

    def number(self, key: str) -> float:
        """A number of no more than a million, which is more than any network has of anything."""
        value = self.value(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= LARGEST:
            raise self.refuse(key, "is no number that a network has")
        return value

    def integer(self, key: str) -> int:
        """A whole number of at least 0."""
        value = self.number(key)
        if value != int(value) or value < 0:
            raise self.refuse(key, "is no whole number")
        return int(value)

    def flag(self, key: str) -> bool:
        """True or false."""
        value = self.value(key)
        if not isinstance(value, bool):
            raise self.refuse(key, "is neither true nor false")
        return value

    def pair(self, key: str) -> tuple[int, int]:
        """Height and width, from one number or two."""
        value = self.value(key)
        sides = value if isinstance(value, (list, tuple)) else (value, value)
        if len(sides) != 2 or not all(type(side) is int and 0 < side <= LARGEST for side in sides):
            raise self.refuse(key, "is no size in pixels")
        return sides[0], sides[1]

    def need(self, key: str, *wanted: object) -> None:
        """Refuse an option that has another value than the ones that are understood."""
        if self.value(key) not in wanted:
            raise self.refuse(key)

    def activation(self) -> Mlp:
        """`hidden_act` as ours."""
        name = self.value("hidden_act")
        if not isinstance(name, str) or name not in ACTIVATIONS:
            raise self.refuse("hidden_act", f"is none of {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[name]

    def tensor(self, name: str) -> Tensor | None:
        """A tensor by its name behind the family's prefix, or nothing."""
        tensors = (self.checkpoint.state.get(prefix + name) for prefix in self.family.prefixes)
        return next((tensor for tensor in tensors if tensor is not None), None)

    def has(self, name: str) -> bool:
        """Whether there is such a tensor."""
        return self.tensor(name) is not None

    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches at the size that the network was saved for."""
        (height, width), patch = self.pair("image_size"), self.pair("patch_size")
        return height // patch[0], width // patch[1]

    def classes(self, name: str = "classifier.weight") -> int:
        """Outputs of a Linear head, from its weights; 0 without one."""
        head = self.tensor(name)
        return 0 if head is None or not head.ndim else len(head)

    def labels(self, classes: int) -> tuple[str, ...]:
        """`id2label` in order, or nothing where the file has placeholders or another number of classes."""
        table = self.checkpoint.config.get("id2label")
        if not isinstance(table, dict) or {str(key) for key in table} != {str(index) for index in range(classes)}:
            return ()
        names = {str(key): value for key, value in table.items()}
        ordered = tuple(names[str(index)] for index in range(classes))
        if not all(isinstance(name, str) for name in ordered) or all(_PLACEHOLDER.fullmatch(name) for name in ordered):
            return ()
        return ordered

    def head(self, name: str = "classifier.weight") -> SpecFields:
        """Fields of a Linear head, or of none."""
        classes = self.classes(name)
        if not classes:
            return {"head": "none", "classes": 0}
        return {"head": "linear", "classes": classes, "labels": self.labels(classes), "problem": read_problem(self.checkpoint)}


class Family(NamedTuple):
    """Models that share a configuration class and a table of names.

    Attributes:
        types: `model_type` of ``config.json``.
        architectures: Classes of transformers whose checkpoints are understood.
        source: Paper, for the spec.
        prefixes: What stands before the names of the tower, also nothing.
        processor: The class that prepares its images, a key of `processor.PROCESSORS`.
        defaults: Of the configuration class.
        spec: Fields of `ModelSpec` beyond sizes, from the options.
        rules: The table without prefixes, for a spec.
        nested: Where the tower's options stand when ``config.json`` has them beside those of a text tower.
    """

    types: tuple[str, ...]
    architectures: tuple[str, ...]
    source: str
    prefixes: tuple[str, ...]
    processor: str
    defaults: Mapping[str, object]
    spec: Callable[[Options], SpecFields]
    rules: Callable[[Options, ModelSpec], tuple[Rule, ...]]
    nested: str = ""


def rename(*stems: tuple[str, str], pairs: Pairs) -> tuple[Rule, ...]:
    """Rules for every pair of names under every pair of stems."""
    return tuple(Rule(f"{theirs}{a}", f"{ours}{b}") for theirs, ours in stems for a, b in pairs)


def leave_out(why: str, *patterns: str) -> tuple[Rule, ...]:
    """Rules for tensors that the network does not need."""
    return tuple(Rule(pattern, None, why=why) for pattern in patterns)


def add_prefix(prefixes: tuple[str, ...], rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """The same rules behind every prefix."""
    return tuple(rule._replace(theirs=prefix + rule.theirs) for prefix in prefixes for rule in rules)


ATTENTION: Pairs = (  # hub names, then those of transformers 5 in memory
    ("attention.attention.query.{kind}", "attn.q.{kind}"),
    ("attention.attention.key.{kind}", "attn.k.{kind}"),
    ("attention.attention.value.{kind}", "attn.v.{kind}"),
    ("attention.output.dense.{kind}", "attn.proj.{kind}"),
    ("attention.q_proj.{kind}", "attn.q.{kind}"),
    ("attention.k_proj.{kind}", "attn.k.{kind}"),
    ("attention.v_proj.{kind}", "attn.v.{kind}"),
    ("attention.o_proj.{kind}", "attn.proj.{kind}"),
)
SEPARATE_BIASES: Pairs = (  # stand before `ATTENTION` where keys have no bias
    ("attention.attention.query.bias", "attn.q_bias"),
    ("attention.attention.value.bias", "attn.v_bias"),
    ("attention.q_proj.bias", "attn.q_bias"),
    ("attention.v_proj.bias", "attn.v_bias"),
)
VIT_BLOCK: Pairs = (
    *ATTENTION,
    ("intermediate.dense.{kind}", "mlp.fc1.{kind}"),
    ("output.dense.{kind}", "mlp.fc2.{kind}"),
    ("mlp.fc1.{kind}", "mlp.fc1.{kind}"),
    ("mlp.fc2.{kind}", "mlp.fc2.{kind}"),
    ("layernorm_before.{kind}", "norm1.{kind}"),
    ("layernorm_after.{kind}", "norm2.{kind}"),
)
VIT_STEMS = (("encoder.layer.{i}.", "blocks.{i}."), ("layers.{i}.", "blocks.{i}."))
EMBEDDINGS: Pairs = (
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.patch_embeddings.projection.{kind}", "patch_embed.proj.{kind}"),
    ("layernorm.{kind}", "norm.{kind}"),
)
MASK = leave_out("stands for hidden patches in pre-training; no patch is hidden here", "embeddings.mask_token")
CLASSIFIER = (Rule("classifier.{kind}", "head.{kind}"),)
DECODER = leave_out("rebuilds hidden patches in pre-training; features come from the encoder", "decoder.{any}")
