"""The job `forvalue_retention`: unused files of removed shards, old models and killed runs."""

# No `from __future__ import annotations` here: Dagster inspects the annotation of `context`.

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal

import dagster as dg
import polars as pl
from pydantic import Field
from upath import UPath

from forvalue_dagster.data.files import DataFileError
from forvalue_dagster.orchestration.naming import Naming
from forvalue_dagster.orchestration.options.sources import RowForm, RowSource
from forvalue_dagster.quality.standing import DATA_VERSION, latest_materialization
from forvalue_dagster.storage.atomic import is_abandoned
from forvalue_dagster.storage.location import Storage
from forvalue_dagster.storage.parquet import scan_table

Kind = Literal["gone_shards", "other_fingerprints", "leftovers"]
TABLES = ("raw_finetuning_data", "sample_features", "value_scores", "training_attribution")
_OP = "sweep"


class Retention(dg.Config):
    """Options of the job `forvalue_retention`."""

    gone_shards: bool = Field(
        default=True,
        description="Look for tables of shards that are not registered and have no file.",
    )
    other_fingerprints: bool = Field(
        default=True,
        description="Look for features that do not match the latest validation profile.",
    )
    leftovers: bool = Field(
        default=True,
        description="Look for files of killed runs: parts of feature passes whose run has ended, "
        "and half-written files older than a day.",
    )
    remove: bool = Field(default=False, description="Remove these files, not only report them.")


@dataclass(frozen=True)
class Orphan:
    """An unused file or folder.

    Attributes:
        path: its path.
        kind: the reason.
        table: the asset it belongs to.
        shard: the partition.
        bytes: its size.
    """

    path: UPath
    kind: Kind
    table: str
    shard: str
    bytes: int


def build_retention_job(naming: Naming) -> dg.JobDefinition:
    """Build the job `forvalue_retention`, which reports unused files, or removes them."""

    @dg.op(name=naming.name(_OP))
    @naming.own
    def sweep(
        context: dg.OpExecutionContext,
        config: Retention,
        storage: Storage,
        training_rows: RowForm,
    ) -> None:
        listed = _listed(context, training_rows) if config.gone_shards else []
        if listed is None:
            config = config.model_copy(update={"gone_shards": False})
        found = list(find_orphans(context.instance, naming, storage, config, listed or ()))
        for orphan in found:
            if not config.remove:
                continue
            orphan.path.fs.rm(orphan.path.path, recursive=True)
            if orphan.kind == "gone_shards":
                # If the shard comes back, even with the same content, it is made again.
                context.log_event(
                    dg.AssetMaterialization(
                        naming.key(orphan.table),
                        partition=orphan.shard,
                        description="Removed: the shard is gone.",
                        tags={DATA_VERSION: "removed"},
                    )
                )
        size = sum(orphan.bytes for orphan in found)
        context.log.info(
            f"{'Removed' if config.remove else 'Found'} {len(found)} unused files or folders, "
            f"{size / 1e6:,.1f} MB."
        )
        context.add_output_metadata(
            {
                "orphans": len(found),
                "megabytes": round(size / 1e6, 1),
                "removed": config.remove,
                "files": dg.MetadataValue.table(
                    [
                        dg.TableRecord(
                            {
                                "path": str(o.path),
                                "kind": o.kind,
                                "shard": o.shard,
                                "bytes": o.bytes,
                            }
                        )
                        for o in found[:1000]
                    ],
                    dg.TableSchema(
                        [
                            dg.TableColumn("path"),
                            dg.TableColumn("kind"),
                            dg.TableColumn("shard"),
                            dg.TableColumn("bytes", "int"),
                        ]
                    ),
                ),
            }
        )

    @dg.job(
        name=naming.name("retention"),
        description="Report unused files, or remove them with remove: true. These are tables of "
        "removed shards, features of another model, and files of killed runs.",
    )
    def retention() -> None:
        sweep()

    return retention


def _listed(context: dg.OpExecutionContext, training_rows: RowForm) -> list[str] | None:
    """Return the shards whose files exist; None if that cannot be found out."""
    if not isinstance(training_rows, RowSource):
        return []  # partitions of another asset: only registered shards exist
    try:
        return list(training_rows.listing())
    except DataFileError as error:
        context.log.warning(f"No table of a shard counts as gone: {error}")
        return None


def purge_request(naming: Naming) -> dg.RunRequest:
    """Return the request of a run that removes the files of removed shards."""
    config = Retention(other_fingerprints=False, leftovers=False, remove=True)
    return dg.RunRequest(run_config=dg.RunConfig(ops={naming.name(_OP): config}))


def find_orphans(
    instance: dg.DagsterInstance,
    naming: Naming,
    storage: Storage,
    wanted: Retention,
    listed: Collection[str] = (),
) -> Iterator[Orphan]:
    """Yield unused files.

    Args:
        instance: the Dagster instance.
        naming: the graph's names.
        storage: the storage to look through.
        wanted: the job's options.
        listed: shards whose files exist, registered or not.
    """
    registered = set(naming.registered(instance))
    kept = registered | set(listed)
    if not registered and wanted.gone_shards:
        # A new instance with an old storage: every shard would look removed.
        wanted = wanted.model_copy(update={"gone_shards": False})
    profile = latest_materialization(instance, naming.key("validation_profile"))
    mark = profile.metadata["fingerprint"].value if profile else None
    for table in TABLES:
        folder = storage.path(*naming.key(table).path)
        if not folder.exists():
            continue
        for path in sorted(folder.iterdir(), key=str):
            if path.suffix == ".parts" and path.name.startswith("."):
                shard = path.name.removeprefix(".").removesuffix(".parts")
                if wanted.leftovers and _is_over(instance, path):
                    yield Orphan(path, "leftovers", table, shard, _size(path))
                continue
            if wanted.leftovers and is_abandoned(path):
                yield Orphan(path, "leftovers", table, "", _size(path))
                continue
            shard = path.stem
            if path.suffix != ".parquet" or path.name.startswith("."):
                continue
            if shard not in kept:
                if wanted.gone_shards:
                    yield Orphan(path, "gone_shards", table, shard, _size(path))
            elif table == "sample_features" and wanted.other_fingerprints and mark is not None:
                made = latest_materialization(instance, naming.key(table), shard)
                if (
                    made is not None
                    and profile is not None
                    and made.storage_id > profile.storage_id
                ):
                    continue  # the profile is the old one
                table_rows = scan_table(storage, path, checked=True)
                rows = table_rows.select(pl.col("fingerprint").first()).collect()
                if rows.item() not in (None, mark):
                    yield Orphan(path, "other_fingerprints", table, shard, _size(path))


def _is_over(instance: dg.DagsterInstance, folder: UPath) -> bool:
    runs = [instance.get_run_by_id(path.name) for path in folder.iterdir()]
    return all(run is None or run.is_finished for run in runs)


def _size(path: UPath) -> int:
    if path.is_file():
        return int(path.stat().st_size)
    return sum(int(inside.stat().st_size) for inside in path.rglob("*") if inside.is_file())
