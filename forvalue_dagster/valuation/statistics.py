"""A row's forward statistics: what its response tokens look like to the model."""

from __future__ import annotations

import torch
from torch import Tensor

from forvalue_dagster.valuation.prediction_error import ResponsePositions, TokenStatistics

# Tokens in a row whose mean surprise is looked at for its largest value.
PEAK_TOKENS = 8


def summarise_rows(tokens: TokenStatistics, positions: ResponsePositions) -> list[dict[str, float]]:
    """Return the forward statistics of each row, named as in `valuation.columns`.

    Args:
        tokens: statistics [P] of all the rows' tokens.
        positions: which tokens are whose.
    """
    stacked = torch.stack([tokens.nll, tokens.entropy, tokens.rank]).to("cpu", torch.float64)
    nll, entropy, rank = stacked
    labels = positions.labels.cpu()
    return [
        _summarise(nll[row], entropy[row], rank[row], labels[row]) for row in positions.row_slices()
    ]


def _summarise(nll: Tensor, entropy: Tensor, rank: Tensor, labels: Tensor) -> dict[str, float]:
    quarter = max(1, len(nll) // 4)
    surprise = nll - entropy
    columns: dict[str, Tensor] = {
        "nll": nll.mean(),
        "nll_median": nll.quantile(0.5),
        "nll_p90": nll.quantile(0.9),
        "nll_std": nll.std(correction=0),
        "nll_first_quarter": nll[:quarter].mean(),
        "nll_new_tokens": nll[_first_occurrences(labels)].mean(),
        "nll_end": nll[-1],
        "entropy": entropy.mean(),
        "surprise": surprise.mean(),
        "surprise_peak": surprise.unfold(0, min(PEAK_TOKENS, len(nll)), 1).mean(dim=1).max(),
        "log_rank": rank.log1p().mean(),
        "outside_top5": (rank >= 5).double().mean(),
        "outside_top100": (rank >= 100).double().mean(),
    }
    values = torch.stack(list(columns.values())).tolist()
    return dict(zip(columns, values, strict=True))


def _first_occurrences(labels: Tensor) -> Tensor:
    """Return the positions at which a token stands for the first time."""
    ordered, places = labels.sort(stable=True)
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return places[first]
