"""The forward pass: canonical rows in, response positions with their last hidden states out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import polars as pl
import torch
from torch import Tensor

from forvalue_dagster.data.batching import Batch, batches
from forvalue_dagster.data.chat import ConversationEncoder, EncodedRow, Encoding, SkippedRow
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
    """

    rows: tuple[int, ...]
    truncated: tuple[bool, ...]
    positions: ResponsePositions


@dataclass(frozen=True)
class Unscored:
    """A row that did not go through the model, and why."""

    row: int
    reason: str
    truncated: bool


def forward_pass(
    loaded: LoadedModel, frame: pl.DataFrame, options: ValuationOptions
) -> Iterator[PassedRows | Unscored]:
    """Pass canonical rows through the model; every row comes out once, in no particular order.

    Memory holds one window of token lists and one batch of activations, however many rows come.

    Args:
        loaded: the model.
        frame: canonical rows.
        options: tokens, batch and window sizes.
    """
    encoding = Encoding(options.tokens, loaded.max_length, loaded.chat_template)
    encoder = ConversationEncoder(loaded.tokenizer, encoding)
    for first in range(0, len(frame), options.window_rows):
        window = frame.slice(first, options.window_rows)
        indices: list[int] = []
        encoded: list[EncodedRow] = []
        conversations = window.select("messages", "tools", "problem").iter_rows()
        for index, (messages, tools, problem) in enumerate(conversations, start=first):
            row = SkippedRow("unreadable") if problem else encoder.encode(messages, tools)
            if isinstance(row, SkippedRow):
                yield Unscored(index, row.reason, row.truncated)
            else:
                indices.append(index)
                encoded.append(row)
        for batch in batches(encoded, options.batch_tokens):
            yield PassedRows(
                rows=tuple(indices[place] for place in batch.rows),
                truncated=tuple(encoded[place].truncated for place in batch.rows),
                positions=response_positions(loaded, batch),
            )


@torch.inference_mode()
def response_positions(loaded: LoadedModel, batch: Batch) -> ResponsePositions:
    """Pass one batch through the model; the head runs on no more than one position a row."""

    def on_device(array: object) -> Tensor:
        return torch.as_tensor(array, device=loaded.device)

    input_ids = on_device(batch.input_ids)
    with capture_last_hidden(loaded.model) as captured:
        loaded.model(
            input_ids=input_ids, attention_mask=on_device(batch.attention_mask), use_cache=False
        )
    (hidden,) = captured
    return ResponsePositions.from_batch(hidden, input_ids, on_device(batch.mask))
