"""Pairwise values of two sets of rows: which training row helps which validation row."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

import polars as pl
import torch
from torch import Tensor

from forvalue_dagster.engine.forward import PassedRows, Unscored, forward_pass
from forvalue_dagster.engine.options import ValuationOptions
from forvalue_dagster.models.loading import LoadedModel
from forvalue_dagster.valuation.pairwise import pairwise_values
from forvalue_dagster.valuation.preconditioner import Preconditioner
from forvalue_dagster.valuation.prediction_error import ResponsePositions

# Hidden states of this many training positions are gathered before their pairs are computed:
# the validation side is swept once for each gathering.
GATHERED_POSITIONS = 16_384

_logger = logging.getLogger(__name__)


def pairwise(
    loaded: LoadedModel,
    training: pl.DataFrame,
    validation: pl.DataFrame,
    options: ValuationOptions,
) -> Tensor:
    """Return the value of every training row for every validation row [N, M], float64.

    The last hidden states of all validation positions are held, and those of
    `GATHERED_POSITIONS` training positions. A row that cannot be scored is NaN throughout.
    """
    gathered = list(_gather(forward_pass(loaded, validation, options), "validation", None))
    if not gathered:
        raise ValueError("No validation row can be scored; see the log for the reasons.")
    ((validation_rows, against),) = gathered
    hidden = against.hidden.double()
    preconditioner = Preconditioner(options.preconditioner, options.damping)
    whitening = preconditioner.whitening(hidden.T @ hidden / len(hidden))
    if whitening is not None:
        whitening = whitening.to(against.hidden.dtype)
    pairs = torch.full((len(training), len(validation)), torch.nan, dtype=torch.float64)
    passes = forward_pass(loaded, training, options)
    for rows, positions in _gather(passes, "training", GATHERED_POSITIONS):
        values = pairwise_values(loaded.unembedding, positions, against, whitening)
        pairs[torch.tensor(rows)[:, None], torch.tensor(validation_rows)] = values
    return pairs


def _gather(
    passes: Iterable[PassedRows | Unscored], side: str, limit: int | None
) -> Iterator[tuple[list[int], ResponsePositions]]:
    """Join batches until `limit` positions are reached; log the rows that are left out."""
    rows: list[int] = []
    parts: list[ResponsePositions] = []
    count = 0
    for passed in passes:
        if isinstance(passed, Unscored):
            _logger.warning("%s row %d is not scored: %s", side, passed.row, passed.reason)
            continue
        if limit is not None and parts and count + len(passed.positions.labels) > limit:
            yield rows, ResponsePositions.concatenate(parts)
            rows, parts, count = [], [], 0
        rows += passed.rows
        parts.append(passed.positions)
        count += len(passed.positions.labels)
    if parts:
        yield rows, ResponsePositions.concatenate(parts)
