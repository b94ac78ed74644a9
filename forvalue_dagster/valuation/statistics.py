"""Forward statistics of rows: how likely the model finds their response tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from forvalue_dagster.valuation.columns import FORWARD_STATISTICS
from forvalue_dagster.valuation.positions import PaddedRows, ResponsePositions
from forvalue_dagster.valuation.prediction_error import TokenStatistics

# Neighbouring tokens whose mean surprise is taken; its largest value is a statistic.
PEAK_TOKENS = 8


def summarise_rows(tokens: TokenStatistics, positions: ResponsePositions) -> Tensor:
    """Return the forward statistics of each row, on the device [R, `FORWARD_STATISTICS`], float64.

    All rows are computed at once, side by side: a few operations for a batch, and none waits.

    Args:
        tokens: statistics [P] of all the rows' tokens.
        positions: the rows' response positions.
    """
    rows = positions.padded
    values = torch.stack([tokens.nll, tokens.entropy, tokens.rank])[:, rows.index].double()
    nll, entropy, rank = values
    surprise = nll - entropy
    quarter = _places(nll) < (rows.lengths // 4).clamp_(min=1)[:, None]
    new = _first_occurrences(positions.labels[rows.index], rows)
    means = _mean(
        torch.stack(
            [nll, entropy, surprise, rank.log1p(), rank >= 5, rank >= 100, nll, nll]  # bool → float
        ),
        torch.stack([*[rows.inside] * 6, quarter, new]),
    )
    mean_nll, mean_entropy, mean_surprise, log_rank, top5, top100, first_quarter, new_tokens = means
    median, p90 = _quantiles(nll, rows, (0.5, 0.9))
    columns = {
        "nll": mean_nll,
        "nll_median": median,
        "nll_p90": p90,
        "nll_std": _mean((nll - mean_nll[:, None]).square(), rows.inside).sqrt(),
        "nll_first_quarter": first_quarter,
        "nll_new_tokens": new_tokens,
        "nll_end": nll[:, -1],  # padding repeats a row's last token
        "entropy": mean_entropy,
        "surprise": mean_surprise,
        "surprise_peak": _peak(surprise, rows, mean_surprise),
        "log_rank": log_rank,
        "outside_top5": top5,
        "outside_top100": top100,
    }
    return torch.stack([columns[name] for name in FORWARD_STATISTICS], dim=1)


def _places(rows: Tensor) -> Tensor:
    return torch.arange(rows.shape[1], device=rows.device)


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    """Return the means of the chosen entries of each row [..., R]."""
    # Padding repeats the row's last token: if that is not finite, neither is the row.
    return (values * chosen).sum(dim=-1) / chosen.sum(dim=-1)


def _quantiles(values: Tensor, rows: PaddedRows, shares: tuple[float, ...]) -> Tensor:
    """Return quantiles of each row by linear interpolation [shares, R]."""
    ordered = values.masked_fill(~rows.inside, torch.inf).sort(dim=1).values
    last = (rows.lengths - 1).double()
    place = torch.stack([last * share for share in shares], dim=1)
    below = place.long()
    low = ordered.gather(1, below)
    high = ordered.gather(1, place.ceil().long())
    return torch.lerp(low, high, place - below).T


def _peak(surprise: Tensor, rows: PaddedRows, mean: Tensor) -> Tensor:
    """Return the largest mean of `PEAK_TOKENS` neighbours; a shorter row's mean [R]."""
    if surprise.shape[1] < PEAK_TOKENS:
        return mean
    windows = surprise.unfold(1, PEAK_TOKENS, 1).mean(dim=2)
    whole = rows.inside[:, PEAK_TOKENS - 1 :]
    largest = windows.masked_fill_(~whole, -torch.inf).amax(dim=1)
    return torch.where(whole[:, 0], largest, mean)


def _first_occurrences(labels: Tensor, rows: PaddedRows) -> Tensor:
    """Return where a token occurs in its row for the first time [R, T]."""
    ordered, places = labels.sort(dim=1, stable=True)
    first = torch.ones_like(rows.inside)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    # Padding repeats the last token behind it, so it is never the first.
    return torch.empty_like(first).scatter_(1, places, first)
