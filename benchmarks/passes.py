"""Forward passes whose last hidden states stay in memory, so that many scores share one pass."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import polars as pl

from forvalue_dagster.data.corruption import corrupt_responses
from forvalue_dagster.engine.forward import PassedRows, forward_pass
from forvalue_dagster.models.loading import LoadedModel
from forvalue_dagster.options.valuation import FeaturePrecision, ValuationOptions
from forvalue_dagster.valuation.features import TokenFeatures, token_features
from forvalue_dagster.valuation.positions import ResponsePositions
from forvalue_dagster.valuation.prediction_error import PredictionErrors, positions_at_once
from forvalue_dagster.valuation.profile import ValidationProfile
from forvalue_dagster.valuation.profile_builder import ProfileBuilder
from forvalue_dagster.valuation.unembedding import Unembedding

# The DataInf task's prompts end in "->" and the response follows on: one line of text, no chat.
ONE_LINE = (
    "{% for message in messages %}{{ message['content'] }}{% if not loop.last %} {% endif %}"
    "{% endfor %}"
)


def gathered(loaded: LoadedModel, frame: pl.DataFrame, tokens: str = "response"):
    """Return (response positions of all rows, the frame in their order)."""
    options = ValuationOptions(tokens=tokens)
    passed = list(forward_pass(loaded, frame, options, lambda passed: passed.positions))
    unscored = [entry for entry in passed if not isinstance(entry, PassedRows)]
    assert not unscored, unscored
    rows = [row for entry in passed for row in entry.rows]
    return ResponsePositions.concatenate([entry.result for entry in passed]), frame[rows]


def profile_of(unembedding: Unembedding, validation: ResponsePositions) -> ValidationProfile:
    builder = ProfileBuilder(unembedding, ["all"], FeaturePrecision())
    rows = range(len(validation.lengths))
    builder.add(validation, ["all"] * len(rows), rows)
    return builder.build()


def features_of(
    unembedding: Unembedding, positions: ResponsePositions, precisions: list[FeaturePrecision]
) -> list[TokenFeatures]:
    parts: list[list[TokenFeatures]] = [[] for _ in precisions]
    for _, chunk in positions.chunks(positions_at_once(unembedding, positions)):
        for kept, precision in zip(parts, precisions, strict=True):
            errors = PredictionErrors(unembedding, chunk, top=precision.top_errors)
            kept.append(token_features(errors, chunk, precision))
    return [TokenFeatures.concatenate(kept) for kept in parts]


def noisy_gsm8k(
    train: pl.DataFrame, share: float, seed: int, recipes: Sequence[str] | None = None
) -> tuple[pl.DataFrame, np.ndarray]:
    """Damage a share of the answers; return the rows, and which of them are clean."""
    conversations = [json.loads(text) for text in train["messages"]]
    answers = [conversation[-1]["content"] for conversation in conversations]
    damaged = corrupt_responses(answers, share, seed, recipes)
    for conversation, (text, _) in zip(conversations, damaged, strict=True):
        conversation[-1]["content"] = text
    messages = pl.Series([json.dumps(conversation) for conversation in conversations])
    clean = np.array([recipe is None for _, recipe in damaged])
    return train.with_columns(messages=messages, clean=pl.Series(clean)), clean
