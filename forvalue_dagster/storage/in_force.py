"""Read the file of the latest materialisation, and no other file under its name."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import dagster as dg
from upath import UPath

from forvalue_dagster.storage.seal import DamagedFileError

# Metadata key of a materialisation: the SHA-256 of its file.
FILE_DIGEST = "sha256"
# A file that another run has just written is not in the event log for a moment.
_LOOKS, _SECONDS_BETWEEN = 3, 0.5


class ReadsInForce(dg.UPathIOManager):
    """An I/O manager that checks each file it loads: by its seal, and by the event log's digest."""

    def checked_digest(self, path: UPath) -> str:
        """Return a file's SHA-256; DamagedFileError if it is not what its seal says."""
        raise NotImplementedError

    def _load_single_input(self, path: UPath, context: dg.InputContext) -> Any:
        self._check(context, None, path)
        return super()._load_single_input(path, context)

    def _load_partition_from_path(
        self,
        context: dg.InputContext,
        partition_key: str,
        path: UPath,
        backcompat_path: UPath | None = None,
    ) -> Any:
        self._check(context, partition_key, path)
        return super()._load_partition_from_path(context, partition_key, path, backcompat_path)

    def _check(self, context: dg.InputContext, partition: str | None, path: UPath) -> None:
        with suppress(FileNotFoundError):  # Dagster knows which files may be missing
            check_in_force(self, context, partition, path)


def check_in_force(
    manager: ReadsInForce, context: dg.InputContext, partition: str | None, path: UPath
) -> None:
    """Check that a file is undamaged, and that of the latest materialisation in the event log.

    Args:
        manager: the I/O manager for files of this kind.
        context: context of the input to load.
        partition: partition of the input's asset; None for an asset without partitions.
        path: the file.

    Raises:
        DamagedFileError: if it differs from what was written or recorded.
    """
    for look in range(_LOOKS):
        digest = manager.checked_digest(path)
        recorded = _recorded_digest(context, partition)
        if recorded in (None, digest):
            return
        if look + 1 < _LOOKS:
            time.sleep(_SECONDS_BETWEEN)
    raise DamagedFileError(
        f"{path} is whole, but not the file of the materialisation in force: its SHA-256 is "
        f"{digest}, the event log has {recorded}. Something else wrote it, or a run died before "
        "it was recorded, or this is a different storage. Materialise it again."
    )


def _recorded_digest(context: dg.InputContext, partition: str | None) -> str | None:
    if not context.has_asset_key:
        return None
    partitions = None if partition is None else [partition]
    found = context.instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=context.asset_key, asset_partitions=partitions), limit=1
    ).records
    event = found[0].asset_materialization if found else None
    digest = event.metadata.get(FILE_DIGEST) if event else None
    return None if digest is None else str(digest.value)
