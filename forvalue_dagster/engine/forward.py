"""The forward pass: canonical rows in, response positions with their last hidden states out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import polars as pl
import torch
from torch import Tensor

from forvalue_dagster.data.batching import Batch, batches
from forvalue_dagster.data.chat import ConversationEncoder, EncodedRow
from forvalue_dagster.engine.encoding import encoded_groups
from forvalue_dagster.engine.memory import (
    TokenBudget,
    is_out_of_memory,
    memory_limit,
    release_cached_memory,
)
from forvalue_dagster.engine.options import ValuationOptions
from forvalue_dagster.models.loading import LoadedModel
from forvalue_dagster.valuation.prediction_error import ResponsePositions
from forvalue_dagster.valuation.unembedding import capture_last_hidden


@dataclass(frozen=True)
class PassedRows:
    """Rows that went through the model together.

    Attributes:
        rows: index of each row in the frame.
        truncated: whether the row was cut.
        positions: their response positions.
        prompts: mean last hidden state of each row's prompt [B, D]; zero without a prompt.
    """

    rows: tuple[int, ...]
    truncated: tuple[bool, ...]
    positions: ResponsePositions
    prompts: Tensor


@dataclass(frozen=True)
class Unscored:
    """A row that did not go through the model, and why."""

    row: int
    reason: str
    truncated: bool


def forward_pass(
    loaded: LoadedModel,
    frame: pl.DataFrame,
    options: ValuationOptions,
    budget: TokenBudget | None = None,
) -> Iterator[PassedRows | Unscored]:
    """Pass canonical rows through the model; every row comes out once, in no particular order.

    Memory holds one window of token lists, some batches of prepared images and one batch of
    activations, however many rows come.
    Where a batch does not fit in memory its rows are passed again in smaller ones, and so are all
    that follow; a row that does not fit alone comes out unscored.

    Args:
        loaded: the model.
        frame: canonical rows.
        options: tokens, batch and window sizes.
        budget: of a pass that goes on; a new one starts with `options.batch_tokens`.
    """
    encoder = loaded.encoder(options.tokens, options.remembered_images)
    budget = budget or TokenBudget(options.batch_tokens)
    for group in encoded_groups(loaded, encoder, frame, options):
        for index, skipped in group.skipped:
            yield Unscored(index, skipped.reason, skipped.truncated)
        for batch, states in _fitting_batches(loaded, encoder, group.rows, budget, options):
            if states is None:
                (place,) = batch.rows
                truncated = group.rows[place].truncated
                yield Unscored(group.indices[place], "out_of_memory", truncated)
                continue
            yield PassedRows(
                rows=tuple(group.indices[place] for place in batch.rows),
                truncated=tuple(group.rows[place].truncated for place in batch.rows),
                positions=states[0],
                prompts=states[1],
            )


def _fitting_batches(
    loaded: LoadedModel,
    encoder: ConversationEncoder,
    encoded: Sequence[EncodedRow],
    budget: TokenBudget,
    options: ValuationOptions,
) -> Iterator[tuple[Batch, tuple[ResponsePositions, Tensor] | None]]:
    """Yield batches with their positions and prompts; None for a row that does not fit alone."""
    left = list(range(len(encoded)))
    image_bytes = options.batch_image_mb * 1e6
    while left:
        tried = left
        rows = [encoded[index] for index in tried]
        for batch in batches(rows, budget.tokens, image_bytes, encoder.row_aligned):
            batch = replace(batch, rows=tuple(tried[place] for place in batch.rows))
            states = None
            try:
                with memory_limit(options.memory_limit_gb, loaded.device):
                    states = pass_batch(loaded, batch)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            if states is None:
                # Only here is the exception gone, and the activations that it held.
                release_cached_memory(loaded.device)
                if len(batch.rows) > 1:
                    budget.halve(batch.input_ids.size)
                    break
            yield batch, states
            done = set(batch.rows)
            left = [index for index in left if index not in done]


def response_positions(loaded: LoadedModel, batch: Batch) -> ResponsePositions:
    """Pass one batch through the model and return its response positions."""
    return pass_batch(loaded, batch)[0]


@torch.inference_mode()
def pass_batch(loaded: LoadedModel, batch: Batch) -> tuple[ResponsePositions, Tensor]:
    """Pass one batch through the model; the head runs on no more than one position a row.

    Returns:
        (response positions; mean last hidden state of each prompt [B, D], float32 or float64).
    """

    def on_device(array: object) -> Tensor:
        return torch.as_tensor(array, device=loaded.device)

    input_ids = on_device(batch.input_ids)
    inputs = {name: on_device(values) for name, values in batch.inputs.items()}
    dtype = loaded.unembedding.weight.dtype
    pixels = {name: v.to(dtype) for name, v in inputs.items() if v.is_floating_point()}
    with capture_last_hidden(loaded.model) as captured:
        loaded.model(
            input_ids=input_ids,
            attention_mask=on_device(batch.attention_mask),
            use_cache=False,
            **(inputs | pixels),
        )
    (hidden,) = captured
    positions = ResponsePositions.from_batch(hidden, input_ids, on_device(batch.mask))
    return positions, _prompt_means(hidden, on_device(batch.prompt_tokens), positions.hidden.dtype)


def _prompt_means(hidden: Tensor, tokens: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the mean over the first `tokens` [B] states of each row of [B, T, D]."""
    inside = torch.arange(hidden.shape[1], device=hidden.device) < tokens[:, None]
    weights = inside / tokens.clamp(min=1)[:, None]
    return torch.bmm(weights[:, None].to(dtype), hidden.to(dtype))[:, 0]
