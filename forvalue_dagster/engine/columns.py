"""Columns of the tables that the engine makes."""

from __future__ import annotations

from collections.abc import Iterable

import polars as pl

from forvalue_dagster.valuation.columns import FORWARD_STATISTICS

IDENTITY: dict[str, pl.DataType] = {
    "sample_id": pl.String(),
    "shard": pl.String(),
    "row": pl.Int64(),
}
PLACE = ["shard", "row"]
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
    "gradient_norm": "length of the row's gradient at the unembedding, in the metric of its values",
    "value_per_token": "value / response_tokens, for selection under a token budget",
    "noise_probability": "probability, at even odds, that the response is damaged; null without "
    "a noise probe",
    "prompt_coordinates": "where the prompt lies among the validation prompts, in standard "
    "deviations; the last, log distance from their principal directions",
    "profile": "short name of the validation profile that the row was scored against",
    "response_tokens": "scored tokens",
    "truncated": "whether the row was cut to the model's window",
    "value_source": "how the value was computed: exact, features, or refined (exact, near the "
    "boundary of the selection)",
    "last_hidden": "last hidden state of each response token, rounded; [T, D] bytes",
    "hidden_scale": "what each rounded hidden state is multiplied by; float32 [T] bytes",
    "outlier_dims": "where the largest entries of each hidden state lie; int16 [T, 4] bytes",
    "outlier_values": "those entries, float32 [T, 4] bytes",
    "error_tokens": "tokens of the largest prediction errors; int32 [T, k] bytes",
    "error_values": "those prediction errors; float16 or float32 [T, k] bytes",
    "prompt_state": "mean last hidden state of the prompt; float32 [D] bytes",
    "fingerprint": "model, tokenizer, template, precision and code version of the features",
    "status": "scored or skipped",
    "reason": "why the row was skipped",
    **FORWARD_STATISTICS,
}
ATTRIBUTION_COLUMNS: dict[str, str] = {
    "validation_row": "row of the validation data",
    "validation_sample_id": "its content hash",
    "effect": "helps or hurts: the sign of the value that was looked for",
    "rank": "1 is the strongest",
    "shard": "shard of the training row",
    "row": "its place in the shard",
    "sample_id": "its content hash",
    "value": "how much a gradient step on the training row raises the log-likelihood of the "
    "validation row",
}


def group_columns(names: Iterable[str]) -> list[str]:
    """Return the columns that hold values for validation groups."""
    return [n for n in names if n.startswith("value_") and n not in COLUMN_DESCRIPTIONS]
