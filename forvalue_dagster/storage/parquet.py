"""Tables as Parquet: dagster-polars' I/O manager with atomic writes and no text in metadata."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, get_origin

import dagster as dg
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from dagster_polars import PolarsParquetIOManager
from dagster_polars.io_managers.parquet import _remap_fsspec_storage_options
from upath import UPath

from forvalue_dagster.data.problems import plain_name
from forvalue_dagster.storage.atomic import atomic_write
from forvalue_dagster.storage.in_force import FILE_DIGEST, ReadsInForce
from forvalue_dagster.storage.location import Storage, partition_name
from forvalue_dagster.storage.parts import StoredParts
from forvalue_dagster.storage.seal import check_parquet, seal_parquet


@dataclass(frozen=True)
class StoredTable:
    """A table that is already written where the I/O manager would write it.

    Attributes:
        path: path of the file.
        digest: the SHA-256 of the file.
        schema: its columns.
        rows: number of rows.
    """

    path: UPath
    digest: str
    schema: pl.Schema
    rows: int


class ParquetIOManager(ReadsInForce, PolarsParquetIOManager):
    """Reads and writes polars frames below the storage's folder, one file for each partition.

    A file is replaced whole and has a seal. When it is read, its seal and the event log's digest
    of the latest materialisation are checked. Metadata shows the schema and the number of rows,
    but never a sample, a minimum or a maximum: training text stays out of the event log.
    """

    storage: Storage

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Resolve the folder."""
        self._base_path = self.storage.path()

    def write_df_to_path(self, context: dg.OutputContext, df: pl.DataFrame, path: UPath) -> None:
        """Write a frame."""
        context.add_output_metadata({FILE_DIGEST: write_table(path, df)})

    def sink_df_to_path(self, context: dg.OutputContext, df: pl.LazyFrame, path: UPath) -> None:
        """Write a lazy frame without loading all of it."""
        context.add_output_metadata({FILE_DIGEST: write_table(path, df)})

    def dump_to_path(self, context: dg.OutputContext, obj: Any, path: UPath) -> None:
        """Write a frame, or a table's parts as one row group each; the parts are then removed."""
        if isinstance(obj, StoredTable):
            if str(obj.path) != str(path):
                raise ValueError(
                    f"{obj.path} was written, but {path} is where this I/O manager reads; expected "
                    "the resources storage and parquet_io_manager to name the same folder."
                )
            context.add_output_metadata({FILE_DIGEST: obj.digest})
        elif isinstance(obj, StoredParts):
            context.add_output_metadata({FILE_DIGEST: write_table(path, obj)})
        else:
            super().dump_to_path(context, obj, path)

    def checked_digest(self, path: UPath) -> str:
        """Return a file's SHA-256."""
        return check_parquet(path)

    def scan_df_from_path(
        self, path: UPath, context: dg.InputContext, partition_key: str | None = None
    ) -> pl.LazyFrame:
        """Scan a file; dagster-polars 0.27.12 passes arguments that polars 2 has dropped."""
        return scan_table(self.storage, path, checked=True)

    def get_path_for_partition(
        self, context: dg.InputContext | dg.OutputContext, path: UPath, partition: str
    ) -> UPath:
        """Return a partition's path, which is always inside the asset's folder."""
        return super().get_path_for_partition(context, path, partition_name(partition))

    def load_input(self, context: dg.InputContext) -> Any:
        """Load an asset or partition; a fan-in is a mapping, even of one partition or none."""
        wanted = get_origin(context.dagster_type.typing_type)
        if not (wanted and issubclass(wanted, Mapping) and context.has_asset_partitions):
            return super().load_input(context)
        paths = self._get_paths_for_partitions(context)
        loaded = {
            key: self._load_partition_from_path(context, key, path) for key, path in paths.items()
        }
        return {key: frame for key, frame in loaded.items() if frame is not None}

    def get_metadata(
        self,
        context: dg.OutputContext,
        obj: pl.DataFrame | pl.LazyFrame | StoredParts | StoredTable | None,
    ) -> dict[str, dg.MetadataValue]:
        """Describe the columns and count the rows."""
        if obj is None:
            return {}
        schema = obj.collect_schema() if isinstance(obj, pl.LazyFrame) else obj.schema
        assert schema is not None  # a table of parts has at least one part
        descriptions = context.definition_metadata.get("descriptions", {})
        metadata: dict[str, dg.MetadataValue] = {
            "dagster/column_schema": describe_columns(schema, descriptions)
        }
        if isinstance(obj, StoredTable):
            metadata["dagster/row_count"] = dg.MetadataValue.int(obj.rows)
        if isinstance(obj, pl.DataFrame):
            partitioned = context.has_partition_key
            name = "dagster/partition_row_count" if partitioned else "dagster/row_count"
            metadata[name] = dg.MetadataValue.int(len(obj))
        return metadata


def file_path(storage: Storage, key: dg.AssetKey, suffix: str) -> UPath:
    """Return the path of a file of an asset without partitions."""
    path: UPath = storage.path(*key.path[:-1], f"{key.path[-1]}{suffix}")
    return path


def store_table(path: UPath, table: pl.LazyFrame) -> StoredTable:
    """Write a table where the I/O manager would write it."""
    digest = write_table(path, table)
    with path.open("rb") as stream:
        rows = pq.read_metadata(stream).num_rows
    return StoredTable(path, digest, table.collect_schema(), rows)


def table_path(storage: Storage, key: dg.AssetKey, partition: str) -> UPath:
    """Return the I/O manager's path of a partition of a table."""
    path: UPath = storage.path(*key.path, f"{partition_name(partition)}.parquet")
    return path


def scan_table(
    storage: Storage, *paths: UPath, named: bool = False, checked: bool = False
) -> pl.LazyFrame:
    """Scan our Parquet files; for s3://, polars reads only the ranges that it needs.

    Args:
        storage: the storage that holds them.
        paths: paths of the files.
        named: whether to add a column `file` with the file of each row.
        checked: whether their seals were checked already.

    Raises:
        DamagedFileError: if a file differs from what was written.
    """
    if not checked:
        for path in paths:
            check_parquet(path)
    options = _remap_fsspec_storage_options(storage.options()) or {}
    if str(options.get("aws_endpoint_url", "")).startswith("http://"):
        options["aws_allow_http"] = "true"
    provider: Any = "auto"
    if storage.s3 is not None and storage.s3.profile_name:
        provider = pl.CredentialProviderAWS(profile_name=storage.s3.profile_name)
    return pl.scan_parquet(
        [str(path) for path in paths],
        glob=False,  # [ or * in a name have no meaning
        hive_partitioning=False,
        storage_options=options or None,
        credential_provider=provider,
        include_file_paths="file" if named else None,
    )


@contextmanager
def unchanged(*paths: UPath) -> Iterator[None]:
    """Check that no file was replaced while it was read inside the block.

    A scan makes several requests: for s3:// it could mix two states of an object.

    Raises:
        OSError: if one was replaced; the message names the file.
    """
    before = _states(paths)
    yield
    after = _states(paths)
    for path in paths:
        if before[path] != after[path]:
            raise OSError(f"{path} was replaced while it was read; start the run again.")


def _states(paths: Sequence[UPath]) -> dict[UPath, object]:
    if len(paths) > 1 and paths[0].protocol == "s3":
        # One listing, not a request for each file.
        listed: dict[str, object] = {}
        for folder in {path.parent for path in paths}:
            found = folder.fs.ls(folder.path, detail=True, refresh=True)
            listed |= {entry["name"]: entry.get("ETag") for entry in found}
        return {path: listed.get(path.path.rstrip("/")) for path in paths}
    return {path: _state(path) for path in paths}


def _state(path: UPath) -> object:
    if path.protocol == "s3":
        return path.fs.info(path.path, refresh=True)["ETag"]
    return path.stat().st_mtime_ns if path.protocol in ("", "file", "local") else path.stat()


def write_table(path: UPath, table: pl.DataFrame | pl.LazyFrame | StoredParts) -> str:
    """Replace a Parquet file whole, and return its SHA-256.

    A lazy frame is written without loading all of it; parts become a row group each, and are then
    removed.
    """
    with atomic_write(path) as stream:
        if isinstance(table, StoredParts):
            write_parts(stream, table.frames())
        elif isinstance(table, pl.LazyFrame):
            table.sink_parquet(stream, compression="zstd")
        else:
            table.write_parquet(stream, compression="zstd")
        digest = seal_parquet(stream)
    if isinstance(table, StoredParts):
        table.clear()
    return digest


def describe_columns(
    schema: Mapping[str, pl.DataType], descriptions: Mapping[str, str]
) -> dg.TableSchemaMetadataValue:
    """Return the columns of a table as metadata; a name that may be text is not shown."""
    return dg.MetadataValue.table_schema(
        dg.TableSchema(
            [
                dg.TableColumn(plain_name(name), str(dtype), description=descriptions.get(name))
                for name, dtype in schema.items()
            ]
        )
    )


def write_parts(stream: IO[bytes], frames: Iterator[pl.DataFrame]) -> None:
    """Write frames of one schema, at least one, as one file with a row group each.

    The bytes depend only on the frames, and one frame is in memory at a time.
    """
    first = _arrow(next(frames))
    with pq.ParquetWriter(stream, first.schema, compression="zstd") as writer:
        writer.write_table(first)
        for frame in frames:
            writer.write_table(_arrow(frame))


def _arrow(frame: pl.DataFrame) -> pa.Table:
    # The oldest layout: some other readers do not support string views.
    return frame.to_arrow(compat_level=pl.CompatLevel.oldest())
