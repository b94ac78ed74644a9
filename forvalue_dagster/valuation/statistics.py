"""A row's forward statistics: what its response tokens look like to the model."""

from __future__ import annotations

import torch
from torch import Tensor

from forvalue_dagster.valuation.prediction_error import ResponsePositions, TokenStatistics


def summarise_rows(tokens: TokenStatistics, positions: ResponsePositions) -> list[dict[str, float]]:
    """Return the forward statistics of each row, named as in `valuation.columns`.

    Args:
        tokens: statistics [P] of all the rows' tokens.
        positions: which tokens are whose.
    """
    stacked = torch.stack([tokens.nll, tokens.entropy, tokens.rank]).to("cpu", torch.float64)
    return [_summarise(*stacked[:, row]) for row in positions.row_slices()]


def _summarise(nll: Tensor, entropy: Tensor, rank: Tensor) -> dict[str, float]:
    quarter = max(1, len(nll) // 4)
    columns: dict[str, Tensor] = {
        "nll": nll.mean(),
        "nll_median": nll.quantile(0.5),
        "nll_p90": nll.quantile(0.9),
        "nll_std": nll.std(correction=0),
        "nll_first_quarter": nll[:quarter].mean(),
        "entropy": entropy.mean(),
        "surprise": (nll - entropy).mean(),
        "log_rank": rank.log1p().mean(),
        "outside_top5": (rank >= 5).double().mean(),
    }
    values = torch.stack(list(columns.values())).tolist()
    return dict(zip(columns, values, strict=True))
