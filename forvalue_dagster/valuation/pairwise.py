"""Every training row against every validation row, exactly.

    value(i, v) = ⟨G_i, G_v⟩_F        (For-Value, arXiv 2508.10180, Theorem 1)

The gradients are laid out for one narrow vocabulary block at a time, so that the pairs of that
block are one matrix product; no row's V×D gradient is ever held.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from forvalue_dagster.valuation.positions import ResponsePositions
from forvalue_dagster.valuation.preconditioner import Metric
from forvalue_dagster.valuation.prediction_error import PredictionErrors, positions_at_once
from forvalue_dagster.valuation.unembedding import Unembedding

# Both sides' gradient blocks together, and the widest of them.
GRADIENT_BYTES = 192 * 2**20
_WIDEST = 1024


@torch.inference_mode()
def pairwise_values(
    unembedding: Unembedding,
    training: ResponsePositions,
    validation: ResponsePositions,
    metric: Metric | None = None,
) -> Tensor:
    """Return ⟨G_i, G_v⟩ in the metric for all pairs [N, M], float64 on the CPU.

    Args:
        unembedding: the model's unembedding.
        training: response positions of N rows.
        validation: response positions of M rows.
        metric: metric of the preconditioner, in the dtype of the hidden states; None for none.
    """
    rows = len(training.lengths) + len(validation.lengths)
    row_bytes = unembedding.width * training.dtype.itemsize
    block = min(max(GRADIENT_BYTES // (rows * row_bytes), 16), _WIDEST)
    pairs = torch.zeros(len(training.lengths), len(validation.lengths), dtype=torch.float64)
    sides = (
        _gradient_blocks(unembedding, positions, metric or Metric(), block)
        for positions in (training, validation)
    )
    for training_block, validation_block in zip(*sides, strict=True):
        pairs += (training_block @ validation_block.T).to("cpu", torch.float64)
    return pairs


def _gradient_blocks(
    unembedding: Unembedding, positions: ResponsePositions, metric: Metric, block: int
) -> Iterator[Tensor]:
    """Yield the rows' gradients of one vocabulary block after another [rows, block × D]."""
    fits = len(positions.labels) <= positions_at_once(unembedding, positions)
    errors = PredictionErrors(unembedding, positions, keep=fits)
    hidden = metric.apply(positions.states)
    # Rows side by side, so that all their gradients are one batched product. Padding has a
    # hidden state of zero.
    padded = positions.padded
    rows = torch.where(padded.inside[..., None], hidden[padded.index], 0.0)
    for _, error in errors.blocks(block):
        yield torch.bmm(error[padded.index].transpose(1, 2), rows).flatten(start_dim=1)
