"""Rows to padded batches under a token budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forvalue_dagster.data.chat import EncodedRow


@dataclass(frozen=True)
class Batch:
    """Rows padded on the right to the longest [B, T].

    Attributes:
        rows: index of each row among those that were batched.
        input_ids: int64.
        attention_mask: int64, 0 on padding.
        mask: bool, r of `EncodedRow`; False on padding.
        prompt_tokens: of each row.
    """

    rows: tuple[int, ...]
    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]
    mask: NDArray[np.bool_]
    prompt_tokens: tuple[int, ...] = ()


def batches(rows: Sequence[EncodedRow], budget: int) -> Iterator[Batch]:
    """Yield batches of rows of similar length, at most `budget` tokens each, padding included.

    A row longer than the budget stands alone. Right padding leaves positions and causal
    attention as they are without it, in every family.
    """
    order = sorted(range(len(rows)), key=lambda index: (len(rows[index]), index))
    group: list[int] = []
    for index in order:
        if group and (len(group) + 1) * len(rows[index]) > budget:
            yield _pad(rows, group)
            group = []
        group.append(index)
    if group:
        yield _pad(rows, group)


def _pad(rows: Sequence[EncodedRow], group: Sequence[int]) -> Batch:
    shape = (len(group), max(len(rows[index]) for index in group))
    input_ids = np.zeros(shape, dtype=np.int64)  # any valid token: padding is never attended to
    attention_mask = np.zeros(shape, dtype=np.int64)
    mask = np.zeros(shape, dtype=np.bool_)
    for place, index in enumerate(group):
        row = rows[index]
        input_ids[place, : len(row)] = row.input_ids
        attention_mask[place, : len(row)] = 1
        mask[place, : len(row)] = row.mask
    prompts = tuple(rows[index].prompt_tokens for index in group)
    return Batch(tuple(group), input_ids, attention_mask, mask, prompts)
