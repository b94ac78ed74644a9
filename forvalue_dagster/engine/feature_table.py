"""Token features as columns of a table, one table row for each row.

The tensors of a row are stored in binary columns, row-major and little-endian. So a table can be
read part by part, and a reader needs only numpy. With T response tokens of a model of width D:

| column | dtype | shape |
|---|---|---|
| `last_hidden` | the precision that `fingerprint` names | [T, D] |
| `hidden_scale` | float32 | [T] |
| `outlier_dims`, `outlier_values` | int16, float32 | [T, 4]; [T, 0] unless int8 |
| `error_tokens` | int32 | [T, k] |
| `error_values` | float16; float32 beside float32 states | [T, k] |
| `prompt_state` | float32 | [D] |
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from forvalue_dagster.engine.columns import IDENTITY, OUTCOME
from forvalue_dagster.valuation.columns import FORWARD_STATISTICS
from forvalue_dagster.valuation.features import TokenFeatures

# Column → attribute of `TokenFeatures`.
_TENSORS = {
    "last_hidden": "hidden",
    "hidden_scale": "scale",
    "outlier_dims": "outlier_dims",
    "outlier_values": "outliers",
    "error_tokens": "ids",
    "error_values": "errors",
}
FEATURE_RESULTS: dict[str, pl.DataType] = {
    **dict.fromkeys(FORWARD_STATISTICS, pl.Float64()),
    **dict.fromkeys(_TENSORS, pl.Binary()),
    "prompt_state": pl.Binary(),
}
# Every column of a feature table but the tensors.
PLAIN_COLUMNS = [*IDENTITY, *FORWARD_STATISTICS, *OUTCOME, "fingerprint"]


def feature_records(
    arrays: Mapping[str, NDArray[Any]], lengths: Sequence[int]
) -> list[dict[str, bytes]]:
    """Return the binary columns of each row.

    Args:
        arrays: the tensors of `TokenFeatures`, little-endian, and the mean last hidden state of
            each prompt as "prompts" [R, D], float32.
        lengths: response tokens of each row.
    """
    ends = np.cumsum(lengths)
    return [
        {name: arrays[own][end - length : end].tobytes() for name, own in _TENSORS.items()}
        | {"prompt_state": state.tobytes()}
        for end, length, state in zip(ends, lengths, arrays["prompts"], strict=True)
    ]


def read_features(scored: pl.DataFrame) -> TokenFeatures:
    """Rebuild the features of some scored rows, at least one.

    Args:
        scored: rows of a feature table with status "scored".
    """
    lengths = scored["response_tokens"].to_list()
    precision = json.loads(scored["fingerprint"][0])["hidden"]
    errors = "<f4" if precision == "float32" else "<f2"
    dtypes = {
        "last_hidden": {"int8": "i1", "float16": "<f2", "float32": "<f4"}[precision],
        "hidden_scale": "<f4",
        "outlier_dims": "<i2",
        "outlier_values": "<f4",
        "error_tokens": "<i4",
        "error_values": errors,
    }
    positions = sum(lengths)
    tensors = {}
    for column, name in _TENSORS.items():
        # A bytearray, because torch wants memory that it may write to.
        content = bytearray().join(scored[column].to_list())
        flat = torch.from_numpy(np.frombuffer(content, dtypes[column]))
        tensors[name] = flat if name == "scale" else flat.view(positions, len(flat) // positions)
    return TokenFeatures(**tensors, lengths=tuple(lengths))


def read_prompts(scored: pl.DataFrame) -> NDArray[np.float32]:
    """Return the mean last hidden state of each scored row's prompt [R, D], at least one row."""
    content = b"".join(scored["prompt_state"].to_list())
    return np.frombuffer(content, "<f4").reshape(len(scored), -1)
