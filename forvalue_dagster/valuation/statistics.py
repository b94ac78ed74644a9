"""Forward statistics of rows: what their response tokens look like to the model."""

from __future__ import annotations

import torch
from torch import Tensor

from forvalue_dagster.valuation.columns import FORWARD_STATISTICS
from forvalue_dagster.valuation.positions import PaddedRows, ResponsePositions
from forvalue_dagster.valuation.prediction_error import TokenStatistics

# Tokens in a row whose mean surprise is looked at for its largest value.
PEAK_TOKENS = 8


def summarise_rows(tokens: TokenStatistics, positions: ResponsePositions) -> Tensor:
    """Return the forward statistics of each row, on the device [R, `FORWARD_STATISTICS`], float64.

    All rows at once, laid side by side: a few operations for a batch, and none that waits.

    Args:
        tokens: statistics [P] of all the rows' tokens.
        positions: which tokens are whose.
    """
    rows = positions.padded
    values = torch.stack([tokens.nll, tokens.entropy, tokens.rank])[:, rows.index].double()
    nll, entropy, rank = values
    surprise = nll - entropy
    place = torch.arange(nll.shape[1], device=nll.device)
    lengths = rows.lengths[:, None]
    quarter = place < (lengths // 4).clamp_(min=1)
    new = _first_occurrences(positions.labels[rows.index], rows)
    means = _mean(
        torch.stack(
            [nll, entropy, surprise, rank.log1p(), (rank >= 5).double(), (rank >= 100).double()]
        ),
        rows.inside,
    )
    mean_nll, mean_entropy, mean_surprise, log_rank, outside_top5, outside_top100 = means
    ordered = torch.where(rows.inside, nll, torch.inf).sort(dim=1).values
    deviation = nll - mean_nll[:, None]
    columns = {
        "nll": mean_nll,
        "nll_median": _quantile(ordered, rows, 0.5),
        "nll_p90": _quantile(ordered, rows, 0.9),
        "nll_std": _mean(deviation * deviation, rows.inside).sqrt(),
        "nll_first_quarter": _mean(nll, quarter),
        "nll_new_tokens": _mean(nll, new),
        "nll_end": nll[:, -1],  # padding repeats a row's last token
        "entropy": mean_entropy,
        "surprise": mean_surprise,
        "surprise_peak": _peak(surprise, rows, mean_surprise),
        "log_rank": log_rank,
        "outside_top5": outside_top5,
        "outside_top100": outside_top100,
    }
    return torch.stack([columns[name] for name in FORWARD_STATISTICS], dim=1)


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    """Return the means of the chosen entries of each row [..., R]."""
    return torch.where(chosen, values, 0.0).sum(dim=-1) / chosen.sum(dim=-1)


def _quantile(ordered: Tensor, rows: PaddedRows, share: float) -> Tensor:
    """Return a quantile of each row by linear interpolation [R]."""
    place = (rows.lengths - 1)[:, None].double() * share
    below = place.floor()
    low, high = (ordered.gather(1, at.long()) for at in (below, place.ceil()))
    return torch.lerp(low, high, place - below)[:, 0]


def _peak(surprise: Tensor, rows: PaddedRows, mean: Tensor) -> Tensor:
    """Return the largest mean of `PEAK_TOKENS` neighbours; a shorter row's mean [R]."""
    if surprise.shape[1] < PEAK_TOKENS:
        return mean
    windows = surprise.unfold(1, PEAK_TOKENS, 1).mean(dim=2)
    whole = rows.inside[:, PEAK_TOKENS - 1 :]
    return torch.where(whole[:, 0], torch.where(whole, windows, -torch.inf).amax(dim=1), mean)


def _first_occurrences(labels: Tensor, rows: PaddedRows) -> Tensor:
    """Return where a token stands in its row for the first time [R, T]."""
    ordered, places = labels.sort(dim=1, stable=True)
    first = torch.ones_like(rows.inside)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    # Padding repeats the last token behind it, so it is never the first.
    return torch.empty_like(first).scatter_(1, places, first)
