"""Tokens of rows, without a pass."""

from __future__ import annotations

import polars as pl

from forvalue_dagster.data.chat import ConversationEncoder, Encoding, SkippedRow
from forvalue_dagster.engine.options import ValuationOptions
from forvalue_dagster.models.loading import LoadedModel


def count_tokens(loaded: LoadedModel, frame: pl.DataFrame, options: ValuationOptions) -> int:
    """Count the tokens, prompts included, of canonical rows as a pass would see them."""
    encoding = Encoding(options.tokens, loaded.max_length, loaded.chat_template)
    encoder = ConversationEncoder(loaded.tokenizer, encoding)
    rows = frame.filter(pl.col("problem").is_null()).select("messages", "tools").iter_rows()
    encoded = (encoder.encode(messages, tools) for messages, tools in rows)
    return sum(len(row.input_ids) for row in encoded if not isinstance(row, SkippedRow))
