"""A row's forward statistics: what its response tokens look like to the model."""

from __future__ import annotations

import torch
from torch import Tensor

from forvalue_dagster.valuation.prediction_error import TokenStatistics


def summarise(tokens: TokenStatistics, row: slice) -> dict[str, float]:
    """Return the forward statistics of one row, named as in `valuation.columns`.

    Args:
        tokens: statistics [P] of the tokens of several rows.
        row: where this row's tokens lie.
    """
    nll, entropy, rank = (t[row].double() for t in (tokens.nll, tokens.entropy, tokens.rank))
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
