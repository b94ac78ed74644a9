"""Make padded batches of rows, within a budget of tokens and of image memory."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forvalue_dagster.data.chat import TOKEN_ALIGNED, EncodedRow


@dataclass(frozen=True)
class Batch:
    """Rows padded on the right to the longest [B, T].

    Attributes:
        rows: index of each row among those that were batched.
        input_ids: int64.
        attention_mask: int64, 0 on padding.
        mask: bool, r of `EncodedRow`; False on padding.
        prompt_tokens: number of prompt tokens of each row.
        inputs: further inputs of the model.
    """

    rows: tuple[int, ...]
    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]
    mask: NDArray[np.bool_]
    prompt_tokens: tuple[int, ...] = ()
    inputs: Mapping[str, NDArray[Any]] = field(default_factory=dict)


def batches(
    rows: Sequence[EncodedRow],
    budget: int,
    image_bytes: float = float("inf"),
    row_aligned: Collection[str] = (),
) -> Iterator[Batch]:
    """Yield batches of rows of similar length.

    A row beyond a budget is a batch of its own. Right padding changes neither positions nor causal
    attention, in any model family.

    Args:
        rows: encoded rows of one encoder.
        budget: tokens of a batch, padding included.
        image_bytes: memory of a batch's inputs other than tokens.
        row_aligned: the encoder's `row_aligned`.
    """
    kinds = [_cross_attention(row) for row in rows]
    order = sorted(range(len(rows)), key=lambda index: (kinds[index], len(rows[index]), index))
    group: list[int] = []
    held = 0
    for index in order:
        held += rows[index].image_bytes
        full = (len(group) + 1) * len(rows[index]) > budget or held > image_bytes
        if group and (full or kinds[index] != kinds[group[0]]):
            yield pad(rows, group, row_aligned)
            group, held = [], rows[index].image_bytes
        group.append(index)
    if group:
        yield pad(rows, group, row_aligned)


def _cross_attention(row: EncodedRow) -> tuple[int, ...]:
    """Return (images, tiles) that a row attends to across; none in most families.

    In transformers' Mllama a token in front of all images attends to every image of the batch's
    longest row, the padding included (5.23: the output of a fully masked row of attention is not
    zeroed). So only rows with equally many images do not affect each other.
    """
    mask = row.inputs.get("cross_attention_mask")
    return () if mask is None else mask.shape[2:]


def pad(
    rows: Sequence[EncodedRow], group: Sequence[int], row_aligned: Collection[str] = ()
) -> Batch:
    """Put the rows of a group into one batch."""
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
    inputs = _joined([rows[index].inputs for index in group], row_aligned, shape[1])
    return Batch(tuple(group), input_ids, attention_mask, mask, prompts, inputs)


def _joined(
    inputs: Sequence[Mapping[str, NDArray[Any]]], row_aligned: Collection[str], tokens: int
) -> dict[str, NDArray[Any]]:
    """Join the inputs of rows; zeros fill up a row that has less, as in processors."""
    joined = {}
    for name in sorted({name for own in inputs for name in own}):
        of_row = name in row_aligned or name in TOKEN_ALIGNED
        given = [own[name] for own in inputs if name in own]
        shape = np.max([values.shape[1:] for values in given], axis=0).astype(int)
        if name in TOKEN_ALIGNED:
            shape[0] = tokens
        parts = []
        for own in inputs:
            if name in own:
                values = own[name]
                room = zip(shape.tolist(), values.shape[1:], strict=True)
                parts.append(np.pad(values, [(0, 0), *((0, most - n) for most, n in room)]))
            elif of_row:
                parts.append(np.zeros((1, *shape), dtype=given[0].dtype))
        joined[name] = np.concatenate(parts)
    return joined
