"""What the numbers of a head say: probabilities of classes of which one is right, or of labels each on its own."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.spec import ModelSpec

Array = NDArray[Any]


def softmax(logits: Array) -> NDArray[np.float64]:
    """Probabilities of logits [..., K], in double precision; the largest logit is subtracted, so nothing overflows."""
    wide = logits.astype(np.float64)
    powers = np.exp(wide - wide.max(axis=-1, keepdims=True))
    shares: NDArray[np.float64] = powers / powers.sum(axis=-1, keepdims=True)
    return shares


def sigmoid(logits: Array) -> NDArray[np.float64]:
    """1 / (1 + exp(-x)) of every number, in double precision, by the half that can't overflow."""
    wide = logits.astype(np.float64)
    small = np.exp(-np.abs(wide))  # in [0, 1]
    shares: NDArray[np.float64] = np.where(wide < 0, small, 1.0) / (1.0 + small)
    return shares


def compute_probabilities(output: Array, spec: ModelSpec) -> NDArray[np.float64]:
    """Of every class or label, in [0, 1].

    Args:
        output: The main output, float [..., K], of a model with classes or labels.
        spec: Of that model: one whose file ends with the function itself gives probabilities already.

    Source: transformers, ``ImageClassificationPipeline.postprocess``: softmax for one label of several, sigmoid for several.
    """
    if spec.probabilities:
        return output.astype(np.float64)
    return sigmoid(output) if spec.task == "multi_label" else softmax(output)


def to_logits(output: Array, *, probabilities: bool) -> Array:
    """What `divergence` takes: of probabilities their logarithms."""
    return np.log(np.maximum(output, np.finfo(np.float32).tiny)) if probabilities else output


def divergence(reference: NDArray[Any], candidate: NDArray[Any]) -> NDArray[np.float64]:
    """Kullback-Leibler divergence of the classes' probabilities, image by image.

    Args:
        reference: Logits, float [n, classes].
        candidate: Logits, float [n, classes].

    Returns:
        float64 [n], in nats: sum p (log p - log q).
    """
    first, second = (_log_softmax(logits.astype(np.float64)) for logits in (reference, candidate))
    return np.asarray((np.exp(first) * (first - second)).sum(-1))


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    moved = logits - logits.max(-1, keepdims=True)
    return np.asarray(moved - np.log(np.exp(moved).sum(-1, keepdims=True)))
