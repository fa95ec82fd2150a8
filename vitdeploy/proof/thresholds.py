"""What is accepted: every limit of every proof, with its reason. Measurements have no opinions; these are the opinions."""

from __future__ import annotations

ALMOST_CONSTANT = 1e-6
"""Added to the export's tolerance, in the output's unit: for outputs that are all but constant, whose share of nothing is
nothing."""

TOP_K = 1e-5
"""Largest |difference| of an exported file's top-k probabilities from the softmax of its own logits: float32 rounding of a sum
over thousands of classes stays below."""

REWRITTEN = 1e-4
"""Largest difference of a rewritten float graph, as a share of the output's standard deviation: the rewrites are exact, so only
the order of float32 sums differs, as between PyTorch and an export (`ExportConfig.tolerance`)."""

LIMITS = {"fp32": 1e-3, "fp16": 3e-2, "bf16": 1e-1, "fp8": 3e-1, "int8": 2e-1, "int4": 2e-1}
"""Largest distance of an engine's outputs from the golden ones, by arithmetic.

Rounding of that arithmetic stays well below. Where the outputs have nothing in common with the golden ones but their size, the
distance is 1 and above; one such row in four makes it about 0.6.
"""

LEARNT, CLOSEST = 8.0, 0.2
"""What a bundle asks of a box: that outputs lie at most eight times as far from those that it holds as in any engine where it was
packed. Never more than `LIMITS`, and no less than a fifth of it, for other instructions round otherwise."""

PREPARED = 1.0
"""Levels of 255 that a prepared pixel may be off: decoders and resizes of one rule differ in rounding at most."""

COMPANY = 0.1
"""Share of the limit that may lie between rows of the same image in one batch: kernels may add up a last row in another order."""

RIVAL = 2.0
"""How many limits two precisions of one model may lie apart: each is within its own of the same FP32 outputs."""

FASTER = 1.05
"""Least speed-up, at the lower end of its interval, that is worth a conversion: below it, the next release of an engine or a
busier machine takes it away."""

NARROW, MOST_ROUNDS = 0.1, 32
"""Width of a speed-up's interval, as a share of it, that is waited for, and the rounds after which it is waited for no longer:
half a minute on a machine where others work."""

VAGUE = 0.5
"""Width from which a speed-up is no number any more, only faster or slower."""

NOISY = 0.10
"""Coefficient of variation of a subject's round medians from which a machine was not quiet."""

AGREES = 0.95
"""Least agreement, at the lower end of its interval, that goes without a warning."""

ALIKE, ENOUGH = 0.98, 200
"""Agreement that is good where the images are fewer than can tell: below 200, the interval of even a perfect agreement reaches
under `AGREES` or close to it."""

COSINE = 0.99
"""Least mean cosine of embeddings that goes without a warning: 8 degrees, within which photos of one thing lie apart anyway."""

CORRELATES = 0.99
"""Least correlation of numbers that goes without a warning: 2 % of their variance is unlike."""

LOSES = 1.0
"""Most points of top-1 that the artifact to deploy may be below the original: the answer to one image in a hundred. On a thousand
images the interval of a difference is as wide."""

PARITY_DB = 60.0
"""Least signal to noise of an FP32 file's outputs against its reference's: a thousandth of the outputs' size, as `LIMITS` has it
for engines. Sums in another order leave 100 dB and more; a changed weight, mean or resize does not come near 60."""
