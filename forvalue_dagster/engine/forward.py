"""The forward pass: runs the model on canonical rows, and a head on their response positions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np
import polars as pl
import torch
from torch import Tensor

from forvalue_dagster.data.batching import Batch, batches
from forvalue_dagster.data.chat import ConversationEncoder, EncodedRow
from forvalue_dagster.engine.encoding import (
    EncodedGroup,
    encoded_groups,
    windows,
    windows_ahead,
)
from forvalue_dagster.engine.memory import (
    TokenBudget,
    is_out_of_memory,
    memory_limit,
    release_cached_memory,
)
from forvalue_dagster.engine.transfer import ahead
from forvalue_dagster.models.loading import LoadedModel
from forvalue_dagster.options.valuation import ValuationOptions
from forvalue_dagster.valuation.positions import ResponsePositions, to_device
from forvalue_dagster.valuation.unembedding import capture_last_hidden

T = TypeVar("T")


@dataclass(frozen=True)
class Passed:
    """The model's output for one batch.

    Attributes:
        positions: the rows' response positions.
        prompts: mean last hidden state of each row's prompt [B, D]; zero without a prompt.
    """

    positions: ResponsePositions
    prompts: Tensor


# A function of a batch's output; runs on the device, and again when memory ran out.
Head = Callable[[Passed], T]


@dataclass(frozen=True)
class PassedRows(Generic[T]):
    """Rows that went through the model together.

    Attributes:
        rows: index of each row in the frame.
        truncated: whether the row was cut.
        lengths: response tokens of each row.
        result: the head's result for them.
    """

    rows: tuple[int, ...]
    truncated: tuple[bool, ...]
    lengths: tuple[int, ...]
    result: T


@dataclass(frozen=True)
class Unscored:
    """A row that did not go through the model, and why."""

    row: int
    reason: str
    truncated: bool


def forward_pass(
    loaded: LoadedModel, frame: pl.DataFrame, options: ValuationOptions, head: Head[T]
) -> Iterator[PassedRows[T] | Unscored]:
    """Pass canonical rows through the model; yields every row once, in no particular order.

    Memory holds two windows of token lists, some batches of prepared images and one batch of
    activations, however many rows there are. Rows are encoded while the device is busy.

    Args:
        loaded: the model.
        frame: canonical rows.
        options: tokens, batch and window sizes.
        head: function of each batch's output.
    """
    budget = TokenBudget.of(loaded, options)
    encoder = loaded.encoder(options.tokens, options.remembered_images)
    device = loaded.device.type
    spans = windows(len(frame), options, device)
    groups = encoded_groups(loaded, encoder, frame, options, spans)
    with closing(ahead(groups, windows_ahead(options, device))) as encoded:
        for group in encoded:
            yield from pass_group(loaded, encoder, group, budget, options, head)


def pass_group(
    loaded: LoadedModel,
    encoder: ConversationEncoder,
    group: EncodedGroup,
    budget: TokenBudget,
    options: ValuationOptions,
    head: Head[T],
) -> Iterator[PassedRows[T] | Unscored]:
    """Pass one group of encoded rows.

    If a batch does not fit in memory, its rows are passed again in smaller batches, which are
    kept from then on; a row that does not fit alone is not scored.
    """
    for index, skipped in group.skipped:
        yield Unscored(index, skipped.reason, skipped.truncated)
    for batch, result in _fitting_batches(loaded, encoder, group.rows, budget, options, head):
        if result is None:
            (place,) = batch.rows
            truncated = group.rows[place].truncated
            yield Unscored(group.indices[place], "out_of_memory", truncated)
            continue
        yield PassedRows(
            rows=tuple(group.indices[place] for place in batch.rows),
            truncated=tuple(group.rows[place].truncated for place in batch.rows),
            lengths=tuple(batch.mask.sum(axis=1).tolist()),
            result=result[0],
        )


def _fitting_batches(
    loaded: LoadedModel,
    encoder: ConversationEncoder,
    encoded: Sequence[EncodedRow],
    budget: TokenBudget,
    options: ValuationOptions,
    head: Head[T],
) -> Iterator[tuple[Batch, tuple[T] | None]]:
    """Yield batches with the head's result; None for a row that does not fit alone."""
    left = list(range(len(encoded)))
    image_bytes = options.batch_image_mb * 1e6
    while left:
        tried = left
        rows = [encoded[index] for index in tried]
        for batch in batches(rows, budget.tokens, image_bytes, encoder.row_aligned):
            batch = replace(batch, rows=tuple(tried[place] for place in batch.rows))

            def whole(batch: Batch = batch) -> T:
                passed = pass_batch(loaded, batch)
                while (result := _fitting(lambda: head(passed), loaded, options)) is None:
                    if not budget.halve_workspace():
                        raise MemoryError
                return result[0]

            result = _fitting(whole, loaded, options)
            if result is None and len(batch.rows) > 1:
                budget.halve(batch.input_ids.size)
                break
            yield batch, result
            done = set(batch.rows)
            left = [index for index in left if index not in done]


def _fitting(
    compute: Callable[[], T], loaded: LoadedModel, options: ValuationOptions
) -> tuple[T] | None:
    """Return the result; None if memory ran out, after giving back what was taken."""
    try:
        with memory_limit(options.memory_limit_gb, loaded.device):
            return (compute(),)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    # Only here is the exception gone, and with it the activations that it referred to.
    release_cached_memory(loaded.device)
    return None


def response_positions(loaded: LoadedModel, batch: Batch) -> ResponsePositions:
    """Pass one batch through the model and return its response positions."""
    return pass_batch(loaded, batch).positions


@torch.inference_mode()
def pass_batch(loaded: LoadedModel, batch: Batch) -> Passed:
    """Pass one batch through the model; the head runs on at most one position a row.

    Nothing here waits for the device: the response positions are known on the host.
    """
    device = loaded.device
    inputs = {name: to_device(values, device) for name, values in batch.inputs.items()}
    dtype = loaded.unembedding.weight.dtype
    pixels = {name: v.to(dtype) for name, v in inputs.items() if v.is_floating_point()}
    with capture_last_hidden(loaded.model) as captured:
        loaded.model(
            input_ids=to_device(batch.input_ids, device),
            attention_mask=to_device(batch.attention_mask, device),
            use_cache=False,
            **(inputs | pixels),
        )
    (hidden,) = captured
    positions = ResponsePositions.from_batch(hidden, batch.input_ids, batch.mask)
    tokens = np.array(batch.prompt_tokens)[:, None]
    weights = (np.arange(hidden.shape[1]) < tokens) / np.maximum(tokens, 1)
    means = torch.bmm(
        to_device(weights[:, None], device).to(positions.dtype), hidden.to(positions.dtype)
    )
    return Passed(positions, means[:, 0])
