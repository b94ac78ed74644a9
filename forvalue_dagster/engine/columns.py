"""Columns of the tables that the engine makes."""

from __future__ import annotations

import polars as pl

from forvalue_dagster.valuation.columns import FORWARD_STATISTICS

IDENTITY: dict[str, pl.DataType] = {
    "sample_id": pl.String(),
    "shard": pl.String(),
    "row": pl.Int64(),
}
OUTCOME: dict[str, pl.DataType] = {
    "response_tokens": pl.Int64(),
    "truncated": pl.Boolean(),
    "status": pl.String(),
    "reason": pl.String(),
}
COLUMN_DESCRIPTIONS: dict[str, str] = {
    "value": "how much a gradient step on the row raises the validation log-likelihood; "
    "positive helps, larger is more valuable",
    "alignment": "cosine between the row's gradient and the validation gradient, −1 to 1",
    "value_per_token": "value / response_tokens, for selection under a token budget",
    "noise_probability": "probability that the response is corrupted; null until a noise probe "
    "is fitted",
    "response_tokens": "scored tokens",
    "truncated": "whether the row was cut to the model's window",
    "value_source": "how the value was computed: exact",
    "status": "scored or skipped",
    "reason": "why the row was skipped",
    **FORWARD_STATISTICS,
}
