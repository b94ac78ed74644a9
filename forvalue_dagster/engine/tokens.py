"""Count the tokens of rows, without running the model."""

from __future__ import annotations

import polars as pl

from forvalue_dagster.data.chat import SkippedRow
from forvalue_dagster.engine.encoding import encode_rows
from forvalue_dagster.models.loading import LoadedModel
from forvalue_dagster.options.valuation import ValuationOptions


def count_tokens(loaded: LoadedModel, frame: pl.DataFrame, options: ValuationOptions) -> int:
    """Count the tokens, prompts included, of canonical rows as a pass would see them."""
    encoded = encode_rows(loaded.encoder(options.tokens), frame)
    return sum(len(row) for row in encoded if not isinstance(row, SkippedRow))
