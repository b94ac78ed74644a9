"""What an experiment needs of a GPU: an estimate from the model's size, never measured here.

Memory: weights in bfloat16, one validation gradient Ḡ and its copy in the metric [V, D] in
float32, two bytes for each entry of a batch's hidden states in four layers at once, and 2 GB for
CUDA itself. A warm-up holds the activations of a batch in all layers instead, 34 bytes for each
entry of a hidden state (Korthikanti et al., arXiv 2205.05198, without the attention's own), and
its logits.

Time: 2 FLOP for each parameter and token of a forward pass, 6 of a warm-up, of which an A100 does
125·10¹² a second: 40 % of its 312.
"""

from __future__ import annotations

from dataclasses import dataclass

FLOP_PER_SECOND = 125e12
BATCH_TOKENS = 2048  # of the configurations, the default


@dataclass(frozen=True)
class Size:
    """Of a model: parameters, width D, head's vocabulary V, layers."""

    parameters: float
    width: int
    vocabulary: int
    layers: int


SIZES = {
    "Qwen/Qwen2.5-1.5B": Size(1.54e9, 1536, 151_936, 28),
    "meta-llama/Llama-3.1-8B": Size(8.03e9, 4096, 128_256, 32),
    "meta-llama/Llama-3.1-8B-Instruct": Size(8.03e9, 4096, 128_256, 32),
    "Qwen/Qwen2.5-VL-3B-Instruct": Size(3.75e9, 2048, 151_936, 36),
}


@dataclass(frozen=True)
class Work:
    """Rows, and about how many tokens one has, its images included.

    Attributes:
        training: training rows.
        validation: validation rows.
        tokens: of a row.
        warm_up_rows: rows of the warm-up.
        batch_rows: rows of one step of it.
    """

    training: int
    validation: int
    tokens: int
    warm_up_rows: int = 0
    batch_rows: int = 0


def gigabytes(size: Size, work: Work) -> float:
    """Memory of the largest step, 10⁹ bytes."""
    weights = 2 * size.parameters
    gradients = 2 * 4 * size.vocabulary * size.width
    valuing = weights + gradients + 2 * BATCH_TOKENS * size.width * 4
    tokens = work.batch_rows * work.tokens
    training = weights + tokens * (34 * size.width * size.layers + 8 * size.vocabulary)
    return (max(valuing, training if tokens else 0) + 2e9) / 1e9


def hours(size: Size, work: Work) -> float:
    """Time of all passes on one A100."""
    passed = work.training + work.validation
    flop = (2 * passed + 6 * work.warm_up_rows) * work.tokens * size.parameters
    return flop / FLOP_PER_SECOND / 3600
