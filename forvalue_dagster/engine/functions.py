"""The same job as the graph's, as plain functions for a notebook or a test."""

from __future__ import annotations

from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from forvalue_dagster.data.read import Rows, read_rows
from forvalue_dagster.data.rows import Columns
from forvalue_dagster.engine.attribution import pairwise
from forvalue_dagster.engine.options import ValuationOptions
from forvalue_dagster.engine.scoring import build_profile, score_rows
from forvalue_dagster.models.config import EMBEDDED, ModelConfig
from forvalue_dagster.models.loading import LoadedModel, load_model

Model = str | ModelConfig | LoadedModel


def value_dataset(
    train: Rows,
    validation: Rows,
    *,
    model: Model = EMBEDDED,
    tokens: Literal["response", "all"] = "response",
    preconditioner: Literal["none", "activation"] = "activation",
    damping: float = 0.1,
    batch_tokens: int = 2048,
    columns: Columns | None = None,
) -> pl.DataFrame:
    """Value every training row against a trusted validation set.

    Args:
        train: a data file or a folder of them, a frame, or a list of dicts.
        validation: the trusted rows, in the same forms. A group column named in `columns` gives
            one value column for each group.
        model: hub id, local directory, "embedded", a `ModelConfig`, or a loaded model.
        tokens: score the "response" or "all" tokens.
        preconditioner: "activation", or "none" for the paper's plain score.
        damping: of the preconditioner, relative to the mean eigenvalue.
        batch_tokens: tokens in a batch, padding included.
        columns: where the conversations are kept; detected by default.

    Returns:
        One row for each training row, in order: sample_id, shard, row, value, value_<group>,
        alignment, forward statistics, status and reason. Values are float64, larger is better.

    Raises:
        DataFileError: if a row or file cannot be read.
        ModelLoadError: if the model is not to be had.
        UnknownUnembeddingError: if the model's logits are not understood.
    """
    options = ValuationOptions(tokens, preconditioner, damping, batch_tokens)
    loaded = _loaded(model)
    profile, _ = build_profile(loaded, read_rows(validation, columns=columns), options)
    return score_rows(loaded, read_rows(train, columns=columns), profile, options)


def pairwise_values(
    train: Rows,
    validation: Rows,
    *,
    model: Model = EMBEDDED,
    tokens: Literal["response", "all"] = "response",
    preconditioner: Literal["none", "activation"] = "activation",
    damping: float = 0.1,
    batch_tokens: int = 2048,
    columns: Columns | None = None,
) -> NDArray[np.float64]:
    """Value every training row for every validation row.

    Takes the arguments of `value_dataset` and raises what it raises.

    Returns:
        [N, M] float64; a row that cannot be scored is NaN, with the reason in the log.
    """
    options = ValuationOptions(tokens, preconditioner, damping, batch_tokens)
    pairs = pairwise(
        _loaded(model),
        read_rows(train, columns=columns),
        read_rows(validation, columns=columns),
        options,
    )
    return pairs.numpy()


def _loaded(model: Model) -> LoadedModel:
    if isinstance(model, LoadedModel):
        return model
    return load_model(ModelConfig(name=model) if isinstance(model, str) else model)
