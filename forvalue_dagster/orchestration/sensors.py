"""New and changed shards become partitions and runs."""

from __future__ import annotations

import json
from pathlib import Path

import dagster as dg

from forvalue_dagster.orchestration.naming import Naming
from forvalue_dagster.orchestration.resources import RowSource

SHARDS_PER_TICK = 50


def build_shard_sensor(naming: Naming, job: dg.UnresolvedAssetJobDefinition) -> dg.SensorDefinition:
    """Build the sensor that watches the training folder.

    The cursor is JSON: shard → version. A new or changed shard is registered and valued, one
    whose file is gone is unregistered; at most 50 a tick.
    """

    @dg.sensor(
        name=naming.name("new_shards"),
        job=job,
        minimum_interval_seconds=60,
        description="Registers new and changed files of the training folder and values them.",
    )
    def new_shards(
        context: dg.SensorEvaluationContext, training_rows: RowSource
    ) -> dg.SensorResult | dg.SkipReason:
        known: dict[str, str] = json.loads(context.cursor or "{}")
        present = {shard: _version(path) for shard, path in training_rows.shards().items()}
        changed = sorted(shard for shard in present if present[shard] != known.get(shard))
        changed = changed[:SHARDS_PER_TICK]
        gone = sorted(known.keys() - present.keys())
        if not changed and not gone:
            return dg.SkipReason(f"{len(known)} shards, none new, changed or gone.")
        cursor = {shard: version for shard, version in known.items() if shard not in gone}
        cursor |= {shard: present[shard] for shard in changed}
        requests: list[dg.AddDynamicPartitionsRequest | dg.DeleteDynamicPartitionsRequest] = []
        if changed:
            requests.append(naming.shards.build_add_request(changed))
        if gone:
            requests.append(naming.shards.build_delete_request(gone))
        return dg.SensorResult(
            run_requests=[
                dg.RunRequest(run_key=f"{shard}:{present[shard]}", partition_key=shard)
                for shard in changed
            ],
            dynamic_partitions_requests=requests,
            cursor=json.dumps(cursor, sort_keys=True),
        )

    return new_shards


def _version(path: Path) -> str:
    """Tell one state of a file, or of a folder that is one dataset, from another."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    stats = [file.stat() for file in files if file.is_file()]
    return "-".join(f"{stat.st_size}.{stat.st_mtime_ns}" for stat in stats)
