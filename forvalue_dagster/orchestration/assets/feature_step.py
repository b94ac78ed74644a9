"""The feature pass of one shard, in the asset's step or in a worker."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import polars as pl
from upath import UPath

from forvalue_dagster.orchestration.display.progress import log_progress
from forvalue_dagster.orchestration.naming import resolved
from forvalue_dagster.orchestration.options.resources import Valuation
from forvalue_dagster.storage.feature_store import FeatureStore
from forvalue_dagster.storage.location import Storage
from forvalue_dagster.storage.parts import StoredParts

if TYPE_CHECKING:
    from forvalue_dagster.models.loading import LoadedModel


# The check of a worker: every row is in the feature table.
FEATURE_ROWS = "feature_rows"
_SECRETS = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")


@dataclass(frozen=True)
class ShardFeatures:
    """The result of a shard's feature pass.

    Attributes:
        parts: the table, not yet written.
        lines: the table without its tensors.
        fingerprint: fingerprint of model and options.
        reused: number of rows whose features were stored.
        repeated: number of rows that repeat another row of the shard.
        passed: number of rows that went through the model.
    """

    parts: StoredParts
    lines: pl.DataFrame
    fingerprint: str
    reused: int
    repeated: int
    passed: int

    @property
    def data_version(self) -> str:
        """Hash of the rows, the model and the options.

        The features themselves are not hashed: their last digits depend on the batches.
        """
        decided = self.lines.select("shard", "row", "sample_id", "status", "reason")
        content = f"{self.fingerprint}\n{decided.sort('row').write_ndjson()}"
        return sha256(content.encode()).hexdigest()[:32]

    @property
    def figures(self) -> dict[str, int | str]:
        """Plain metadata."""
        return {
            "dagster/partition_row_count": len(self.lines),
            "scored": self.lines.filter(pl.col("status") == "scored").height,
            "skipped": self.lines.filter(pl.col("status") == "skipped").height,
            "response_tokens": int(self.lines["response_tokens"].sum()),
            "rows_reused": self.reused,
            "rows_repeated": self.repeated,
            "rows_passed": self.passed,
            "parts": len(self.parts.keys),
            "parts_reused": self.parts.reused,
            "fingerprint": self.fingerprint,
        }


def pass_shard(
    loaded: LoadedModel,
    rows: pl.DataFrame,
    parts: StoredParts,
    store: FeatureStore | None,
    valuation: Valuation,
    log: logging.Logger,
) -> ShardFeatures:
    """Compute the features of a shard that are not stored already.

    Args:
        loaded: the model.
        rows: canonical rows.
        parts: the store of the table's parts until it is written.
        store: store of finished tables; None passes every row.
        valuation: the options.
        log: logger for progress.
    """
    from forvalue_dagster.engine.feature_table import PLAIN_COLUMNS
    from forvalue_dagster.engine.reuse import FeaturePass

    passing = FeaturePass(loaded, rows, valuation.options(), store)
    progress = log_progress(log, len(rows))
    lines = pl.concat(part.select(PLAIN_COLUMNS) for part in passing.parts(parts, progress))
    log.info(
        f"{passing.reused} of {len(rows)} rows had their features already and {passing.repeated} "
        f"repeat another row; {passing.passed} went through the model."
    )
    if parts.reused:
        log.info(f"{parts.reused} of {len(parts.keys)} parts had been finished by a run before.")
    return ShardFeatures(
        parts, lines, passing.mark, passing.reused, passing.repeated, passing.passed
    )


def parts_of(folder: UPath, shard: str, attempt: str, rows: pl.DataFrame) -> StoredParts:
    """Return the parts of a shard's feature table.

    Args:
        folder: folder of the feature tables.
        shard: the partition.
        attempt: the run.
        rows: rows of the shard.
    """
    places = rows.select("shard", "row", "sample_id")
    return StoredParts(folder / f".{shard}.parts", attempt, places)


def worker_job(
    rows: UPath,
    features: UPath,
    attempt: str,
    valuation: Valuation,
    storage: Storage,
    adapter: UPath | None,
) -> dict[str, Any]:
    """Return the job for `forvalue_dagster.worker` as a JSON object.

    Credentials of the storage are left out: the worker has its own.

    Args:
        rows: the shard's rows.
        features: path of its feature table.
        attempt: the run.
        valuation: model and options.
        storage: the storage that holds both.
        adapter: file that names the adapter trained by the graph, if there is one.
    """
    s3 = None if storage.s3 is None else resolved(storage.s3, without=_SECRETS)
    return {
        "rows": str(rows),
        "features": str(features),
        "attempt": attempt,
        "valuation": resolved(valuation),
        "storage": {**resolved(storage, without=("s3", "storage_options")), "s3": s3},
        "adapter": None if adapter is None else str(adapter),
    }
