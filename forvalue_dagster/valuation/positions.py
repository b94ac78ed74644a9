"""The response positions of some rows: their last hidden states, and the next token of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import compress

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forvalue_dagster.valuation.products import score_dtype


def to_device(array: NDArray[np.generic], device: torch.device) -> Tensor:
    """Return an array on a device, without waiting for the device."""
    tensor = torch.from_numpy(array)
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


@dataclass(frozen=True)
class PaddedRows:
    """The positions of R rows laid side by side, each row padded to the longest [R, T].

    Attributes:
        index: place of each entry among the positions; padding repeats the row's last.
        place: index of each position among the R × T entries [P], int64.
        inside: whether an entry is a position of the row, and not padding.
        lengths: positions of each row [R], int64.
    """

    index: Tensor
    place: Tensor
    inside: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class ResponsePositions:
    """The response positions of some rows, concatenated.

    Attributes:
        hidden: last hidden states [P, D], in the model's dtype.
        labels: the token that follows each position [P], int64.
        lengths: number of positions of each row; sums to P, every entry at least 1.
    """

    hidden: Tensor
    labels: Tensor
    lengths: tuple[int, ...]

    def __post_init__(self) -> None:
        """Check that the shapes agree."""
        positions = self.hidden.shape[0]
        if self.labels.shape != (positions,) or sum(self.lengths) != positions:
            raise ValueError(
                f"Expected as many labels and row lengths as positions; got {positions} hidden "
                f"states, {tuple(self.labels.shape)} labels, lengths summing to "
                f"{sum(self.lengths)}."
            )
        if min(self.lengths, default=1) < 1:
            raise ValueError("A row without response positions has no value; leave it out.")

    @classmethod
    def from_batch(
        cls, hidden: Tensor, input_ids: NDArray[np.int64], mask: NDArray[np.bool_]
    ) -> ResponsePositions:
        """Take the response positions out of a padded batch.

        Tokens and mask are on the host, where they come from: so nothing waits for the device.

        Args:
            hidden: last hidden states [B, T, D].
            input_ids: tokens [B, T].
            mask: r [B, T], True at a position whose *next* token is scored.
        """
        index = np.flatnonzero(mask)
        labels = np.roll(input_ids, -1, axis=1).ravel()[index]
        taken = hidden.flatten(0, 1).index_select(0, to_device(index, hidden.device))
        return cls(taken, to_device(labels, hidden.device), tuple(mask.sum(axis=1).tolist()))

    @classmethod
    def concatenate(cls, parts: Sequence[ResponsePositions]) -> ResponsePositions:
        """Join the rows of several batches."""
        return cls(
            torch.cat([part.hidden for part in parts]),
            torch.cat([part.labels for part in parts]),
            tuple(length for part in parts for length in part.lengths),
        )

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that scores are computed in: float32, or float64 where the model is."""
        return score_dtype(self.hidden.dtype)

    @cached_property
    def states(self) -> Tensor:
        """The last hidden states in the dtype of the scores [P, D]."""
        return self.hidden.to(self.dtype)

    @cached_property
    def padded(self) -> PaddedRows:
        """The positions row by row."""
        lengths = np.array(self.lengths)
        place = np.arange(lengths.max(initial=0))
        first = (lengths.cumsum() - lengths)[:, None]
        inside = place < lengths[:, None]
        device = self.hidden.device
        return PaddedRows(
            index=to_device(first + np.minimum(place, lengths[:, None] - 1), device),
            place=to_device(np.flatnonzero(inside), device),
            inside=to_device(inside, device),
            lengths=to_device(lengths, device),
        )

    def row_slices(self) -> list[slice]:
        """Where each row's positions lie."""
        ends = np.cumsum(self.lengths).tolist()
        return [slice(end - n, end) for end, n in zip(ends, self.lengths, strict=True)]

    def select(self, rows: Sequence[bool]) -> ResponsePositions:
        """Return the positions of the rows marked True."""
        positions = self.positions_of(rows)
        lengths = tuple(compress(self.lengths, rows))
        return ResponsePositions(self.hidden[positions], self.labels[positions], lengths)

    def positions_of(self, rows: Sequence[bool]) -> Tensor | slice:
        """Return the index of the positions that belong to the rows marked True."""
        if all(rows):
            return slice(None)
        chosen = np.repeat(np.array(rows, dtype=np.bool_), self.lengths)
        return to_device(chosen, self.hidden.device)

    def chunks(self, positions: int) -> Iterator[tuple[range, ResponsePositions]]:
        """Split into groups of whole rows of at most `positions` positions each.

        A longer row stands alone. Yields (indices of the rows, their positions).
        """
        slices = self.row_slices()
        first = 0
        while first < len(slices):
            last = first + 1
            while last < len(slices) and slices[last].stop - slices[first].start <= positions:
                last += 1
            if (first, last) == (0, len(slices)):
                yield range(first, last), self
                return
            span = slice(slices[first].start, slices[last - 1].stop)
            yield (
                range(first, last),
                ResponsePositions(self.hidden[span], self.labels[span], self.lengths[first:last]),
            )
            first = last
