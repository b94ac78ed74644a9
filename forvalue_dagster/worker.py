"""The feature pass of one shard as a Dagster Pipes process: `python -m forvalue_dagster.worker`.

It can run on any machine that can access the storage. It gets URIs, writes a feature table, and
sends logs, metadata, data version and the check `feature_rows` back through Pipes. Started again
after a crash, it continues after the finished parts. Credentials come from its own environment.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

from dagster_aws.s3 import S3Resource
from dagster_pipes import (
    PipesContext,
    PipesDefaultMessageWriter,
    PipesMessage,
    PipesMessageWriterChannel,
    PipesParams,
    PipesStreamMessageWriterChannel,
    open_dagster_pipes,
)
from upath import UPath

from forvalue_dagster.engine.columns import PLACE
from forvalue_dagster.orchestration.assets.feature_step import FEATURE_ROWS, parts_of, pass_shard
from forvalue_dagster.orchestration.display.progress import engine_warnings
from forvalue_dagster.orchestration.options.resources import Valuation
from forvalue_dagster.orchestration.trained_adapter import fetch_adapter
from forvalue_dagster.storage.feature_store import FeatureStore
from forvalue_dagster.storage.in_force import FILE_DIGEST
from forvalue_dagster.storage.location import Storage
from forvalue_dagster.storage.parquet import scan_table, write_table


class OwnLine(PipesMessageWriterChannel):
    """A channel that writes each message at once and on its own line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write_message(self, message: PipesMessage) -> None:
        """Write a message on a new line, even if the last line was not ended."""
        self._stream.write(f"\n{json.dumps(message)}\n")
        self._stream.flush()


class OwnLineWriter(PipesDefaultMessageWriter):
    """Pipes' default writer, except that messages on stdout or stderr have their own lines.

    If both are one log, as in a Ray job, a message would otherwise be appended to the line that a
    progress bar left open, and be read as output.
    """

    @contextmanager
    def open(self, params: PipesParams) -> Iterator[PipesMessageWriterChannel]:
        """Open the channel that the reader asks for."""
        with super().open(params) as channel:
            if isinstance(channel, PipesStreamMessageWriterChannel):
                channel = OwnLine(getattr(sys, params[self.STDIO_KEY]))
            yield channel


def compute(job: Mapping[str, Any], log: logging.Logger) -> tuple[dict[str, Any], str, bool]:
    """Write the feature table of a shard.

    Args:
        job: the job from `orchestration.assets.feature_step.worker_job`.
        log: logger for progress.

    Returns:
        Metadata, the data version, and whether every row is in the table once.
    """
    endpoint = job["storage"].pop("s3")
    storage = Storage(**job["storage"], s3=S3Resource(**endpoint) if endpoint else None)
    valuation = Valuation(**job["valuation"])
    options = storage.options()
    target = UPath(job["features"], **options)
    rows = scan_table(storage, UPath(job["rows"], **options)).collect()
    adapter = fetch_adapter(UPath(job["adapter"], **options)) if job["adapter"] else None
    ids = rows["sample_id"].drop_nulls().unique()
    store = FeatureStore(storage, target.parent, ids)
    parts = parts_of(target.parent, target.stem, job["attempt"], rows)
    with engine_warnings(log), valuation.session(adapter) as loaded:
        done = pass_shard(loaded, rows, parts, store, valuation, log)
    digest = write_table(target, parts)
    complete = done.lines.select(PLACE).sort(PLACE).equals(rows.select(PLACE).sort(PLACE))
    return {**done.figures, FILE_DIGEST: digest}, done.data_version, complete


def main() -> None:
    """Run the job that the orchestrating process sends."""
    with open_dagster_pipes(message_writer=OwnLineWriter()) as pipes:
        report(pipes)


def report(pipes: PipesContext) -> None:
    """Compute the features, and send back the results."""
    figures, data_version, complete = compute(dict(pipes.extras), pipes.log)
    pipes.report_asset_materialization(metadata=figures, data_version=data_version)
    rows = figures["dagster/partition_row_count"]
    pipes.report_asset_check(FEATURE_ROWS, complete, metadata={"rows": rows})


if __name__ == "__main__":
    main()
