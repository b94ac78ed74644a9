"""Plain functions that do the graph's work, for a notebook or a test.

Modules that load torch are imported when a function is called: Dagster's tools look at every
public name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias, Union

import numpy as np
import polars as pl
from numpy.typing import NDArray

from forvalue_dagster.data.columns import Columns
from forvalue_dagster.data.read import Rows, read_rows
from forvalue_dagster.options.model import EMBEDDED, ModelConfig
from forvalue_dagster.options.valuation import FeaturePrecision, NoiseOptions, ValuationOptions

if TYPE_CHECKING:
    from forvalue_dagster.models.loading import LoadedModel
    from forvalue_dagster.valuation.profile import ValidationProfile

Model: TypeAlias = Union[str, ModelConfig, "LoadedModel"]
DEFAULT_NOISE = NoiseOptions()


def value_dataset(
    train: Rows,
    validation: Rows,
    *,
    model: Model = EMBEDDED,
    tokens: Literal["response", "all"] = "response",
    preconditioner: Literal["none", "activation"] = "activation",
    damping: float = 0.1,
    centre: bool = False,
    batch_tokens: int | Literal["auto"] = "auto",
    columns: Columns | None = None,
    noise: NoiseOptions | None = DEFAULT_NOISE,
) -> pl.DataFrame:
    """Value every training row against a trusted validation set.

    Args:
        train: a data file or a folder of them, a frame, or a list of dicts.
        validation: the trusted rows, in the same forms. A group column named in `columns` gives
            one value column for each group.
        model: hub id, local directory, "embedded", a `ModelConfig`, or a loaded model.
        tokens: score the "response" or "all" tokens.
        preconditioner: "activation", or "none" for the paper's plain score.
        damping: damping of the preconditioner, relative to the mean eigenvalue.
        centre: subtract the validation tokens' mean hidden state first.
        batch_tokens: tokens in a batch, padding included; "auto" follows the device's memory.
        columns: columns of the conversations; detected by default.
        noise: options of the noise probe, which is fitted on damaged copies of the validation
            rows; None fits none, and `noise_probability` is null.

    Returns:
        One row for each training row, in order: sample_id, shard, row, value, value_<group>,
        alignment, noise_probability, forward statistics, status and reason. Values are float64,
        larger is better.

    Raises:
        DataFileError: if a row or file cannot be read.
        ModelLoadError: if the model cannot be loaded.
        UnknownUnembeddingError: if the model's logits are not a known function of its unembedding.
    """
    from forvalue_dagster.engine.scoring import build_profile, score_rows

    options = _options(batch_tokens, tokens, preconditioner, damping, centre, noise=noise)
    loaded = loaded_model(model)
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
    centre: bool = False,
    batch_tokens: int | Literal["auto"] = "auto",
    columns: Columns | None = None,
) -> NDArray[np.float64]:
    """Value every training row for every validation row.

    Takes the arguments of `value_dataset`, and raises the same errors.

    Returns:
        [N, M] float64; a row that cannot be scored is NaN, with the reason in the log.
    """
    from forvalue_dagster.engine.attribution import pairwise

    options = _options(batch_tokens, tokens, preconditioner, damping, centre)
    pairs = pairwise(
        loaded_model(model),
        read_rows(train, columns=columns),
        read_rows(validation, columns=columns),
        options,
    )
    return pairs.numpy()


def sample_features(
    rows: Rows,
    *,
    model: Model = EMBEDDED,
    tokens: Literal["response", "all"] = "response",
    features: FeaturePrecision | None = None,
    batch_tokens: int | Literal["auto"] = "auto",
    columns: Columns | None = None,
) -> pl.DataFrame:
    """Compute the features of each row in one forward pass, to value it later without the model.

    Args:
        rows: a data file or a folder of them, a frame, or a list of dicts.
        model: hub id, local directory, "embedded", a `ModelConfig`, or a loaded model.
        tokens: keep the "response" or "all" tokens.
        features: options for what is kept of each token.
        batch_tokens: tokens in a batch, padding included; "auto" follows the device's memory.
        columns: columns of the conversations; detected by default.

    Returns:
        One row for each input row, in order: forward statistics, token features, status and
        reason (`engine.feature_table`).
    """
    from forvalue_dagster.engine.features import feature_parts

    options = _options(batch_tokens, tokens, features=features or FeaturePrecision())
    frame = read_rows(rows, columns=columns)
    return pl.concat(feature_parts(loaded_model(model), frame, options))


def validation_profile(
    validation: Rows,
    *,
    model: Model = EMBEDDED,
    tokens: Literal["response", "all"] = "response",
    features: FeaturePrecision | None = None,
    batch_tokens: int | Literal["auto"] = "auto",
    columns: Columns | None = None,
    noise: NoiseOptions | None = DEFAULT_NOISE,
) -> ValidationProfile:
    """Summarise trusted rows in a profile for `value_features`.

    Takes the arguments of `sample_features`, and `noise`, the options of the noise probe (None
    fits none).
    """
    from forvalue_dagster.engine.scoring import build_profile

    options = _options(batch_tokens, tokens, features=features or FeaturePrecision(), noise=noise)
    return build_profile(loaded_model(model), read_rows(validation, columns=columns), options)[0]


def value_features(
    features: pl.DataFrame | pl.LazyFrame,
    profile: ValidationProfile,
    *,
    preconditioner: Literal["none", "activation"] = "activation",
    damping: float = 0.1,
    centre: bool = False,
) -> pl.DataFrame:
    """Value rows by their features; no model is loaded.

    Args:
        features: result of `sample_features`; a lazy frame is read in windows.
        profile: result of `validation_profile`, with the same model and options.
        preconditioner: "activation", or "none" for the paper's plain score.
        damping: damping of the preconditioner, relative to the mean eigenvalue.
        centre: subtract the validation tokens' mean hidden state first.

    Returns:
        The columns of `value_dataset`, with value_source "features".

    Raises:
        FingerprintMismatchError: if features and profile differ in model or options.
    """
    from forvalue_dagster.engine.feature_scoring import score_features

    options = ValuationOptions(preconditioner=preconditioner, damping=damping, centre=centre)
    return score_features(features.lazy(), profile, options)


def _options(batch_tokens: int | Literal["auto"], *values: Any, **named: Any) -> ValuationOptions:
    named["batch_tokens"] = batch_tokens  # the option takes "auto", though its type has None
    return ValuationOptions(*values, **named)


def loaded_model(model: Model) -> LoadedModel:
    """Return a loaded model as it is, or load one by its name or configuration."""
    from forvalue_dagster.models.loading import LoadedModel, load_model

    if isinstance(model, LoadedModel):
        return model
    return load_model(ModelConfig(name=model) if isinstance(model, str) else model)
