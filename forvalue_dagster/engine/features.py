"""The feature pass: rows in, a feature table out, part by part, whatever the validation set."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from itertools import compress
from typing import Protocol

import polars as pl
import torch

from forvalue_dagster.engine.feature_table import FEATURE_RESULTS, feature_records
from forvalue_dagster.engine.fingerprint import fingerprint
from forvalue_dagster.engine.forward import PassedRows, Unscored, forward_pass
from forvalue_dagster.engine.memory import TokenBudget
from forvalue_dagster.engine.options import ValuationOptions
from forvalue_dagster.engine.outcomes import Outcomes, Progress, refuse_broken_model
from forvalue_dagster.models.loading import LoadedModel
from forvalue_dagster.valuation.features import token_features
from forvalue_dagster.valuation.prediction_error import PredictionErrors, workspace_positions
from forvalue_dagster.valuation.statistics import summarise_rows


class PartStore(Protocol):
    """Where finished parts of a pass outlive its process."""

    def load(self, key: str) -> tuple[pl.DataFrame, int] | None:
        """Return a part and the token budget after it, if it was finished."""
        ...

    def save(self, key: str, part: pl.DataFrame, budget: int) -> None:
        """Keep a finished part, whole or not at all."""
        ...


def feature_parts(
    loaded: LoadedModel,
    frame: pl.DataFrame,
    options: ValuationOptions,
    progress: Progress | None = None,
    store: PartStore | None = None,
) -> Iterator[pl.DataFrame]:
    """Yield the feature table of a frame in parts of `options.window_rows` rows, in order.

    A part in the store is taken from there if its rows, the fingerprint and the token budget it
    began with are the same; so a killed pass goes on where it was, with the batches that an
    uninterrupted one would have made, and ends with the same bytes.

    Args:
        loaded: the model.
        frame: canonical rows; an empty one yields one empty part.
        options: how rows are passed and what is kept.
        progress: told of each batch, with counts over the whole frame.
        store: of finished parts.

    Raises:
        NonFiniteModelError: if rows went through the model and none came out finite.
    """
    mark = fingerprint(loaded, options)
    budget = TokenBudget(options.batch_tokens)
    scored = broken = tokens = 0
    for first in range(0, max(len(frame), 1), options.window_rows):
        window = frame.slice(first, options.window_rows)
        key = _part_key(mark, budget.tokens, window)
        stored = store.load(key) if store is not None else None
        if stored is not None:
            part, budget.tokens = stored
        else:
            report = _shifted(progress, first, tokens)
            part = _feature_part(loaded, window, options, budget, report)
            part = part.with_columns(fingerprint=pl.lit(mark))
        scored += part.filter(pl.col("status") == "scored").height
        broken += part.filter(pl.col("reason") == "non_finite").height
        refuse_broken_model(scored, broken)
        if store is not None and stored is None:
            store.save(key, part, budget.tokens)
        tokens += int(part["response_tokens"].sum())
        yield part


def _feature_part(
    loaded: LoadedModel,
    window: pl.DataFrame,
    options: ValuationOptions,
    budget: TokenBudget,
    progress: Progress | None,
) -> pl.DataFrame:
    outcome = Outcomes(window, progress)
    for passed in forward_pass(loaded, window, options, budget):
        if isinstance(passed, Unscored):
            outcome.skip(passed)
        else:
            outcome.add(passed, _results(loaded, passed, options))
    return outcome.frame(FEATURE_RESULTS)


@torch.inference_mode()
def _results(
    loaded: LoadedModel, passed: PassedRows, options: ValuationOptions
) -> list[dict[str, float | bytes] | None]:
    """Return statistics and features of each row, None where the model's output is not finite."""
    results: list[dict[str, float | bytes] | None] = [None] * len(passed.rows)
    limit = workspace_positions(loaded.unembedding, passed.positions.hidden)
    for rows, chunk in passed.positions.chunks(limit):
        errors = PredictionErrors(loaded.unembedding, chunk)
        finite = errors.finite_rows()
        places = list(compress(rows, finite))
        if not all(finite):
            if not any(finite):
                continue
            chunk = chunk.select(finite)
            errors = PredictionErrors(loaded.unembedding, chunk)
        statistics = summarise_rows(errors.tokens, chunk)
        tensors = feature_records(
            token_features(errors, chunk, options.features), passed.prompts[torch.tensor(places)]
        )
        for row, a, b in zip(places, statistics, tensors, strict=True):
            results[row] = {**a, **b}
    return results


def _part_key(mark: str, budget: int, window: pl.DataFrame) -> str:
    """Name a part by everything that decides its content."""
    identity = window.select("shard", "row", "sample_id", "problem").write_ndjson()
    first = window["row"][0] if len(window) else 0
    digest = sha256(f"{mark}\n{budget}\n{identity}".encode()).hexdigest()
    return f"{first:010d}-{digest[:20]}"


def _shifted(progress: Progress | None, rows: int, tokens: int) -> Progress | None:
    """Report a window's counts as counts over the whole frame."""
    if progress is None:
        return None
    return lambda done, new: progress(rows + done, tokens + new)
