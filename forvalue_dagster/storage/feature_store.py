"""The feature tables of all shards, looked up by sample id."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from forvalue_dagster.engine.lines import lines_to_reuse
from forvalue_dagster.storage.location import Storage
from forvalue_dagster.storage.parquet import scan_table
from forvalue_dagster.storage.seal import check_parquet_stream

_KEYS = ["sample_id", "fingerprint", "reason"]
_log = logging.getLogger(__name__)


@dataclass
class FeatureStore:
    """Finished feature tables in one folder, one file for each shard.

    A file that cannot be read, or was removed, is ignored: its rows pass through the model again.

    Attributes:
        storage: the storage that holds the folder.
        folder: folder of the tables.
        wanted: sample ids that will be looked up; None keeps an index of all.
    """

    storage: Storage
    folder: UPath
    wanted: pl.Series | None = None
    _indexes: dict[str, pl.DataFrame] = field(default_factory=dict)

    def lines(self, mark: str, sample_ids: pl.Series) -> Iterator[pl.DataFrame]:
        """Yield rows with this fingerprint, no sample id twice, a row group in memory at a time.

        Files that have most of the ids are read first.
        """
        hits = self._index(mark).filter(pl.col("sample_id").is_in(sample_ids.implode()))
        taken: set[str] = set()
        for (file,) in hits["file"].value_counts(sort=True).select("file").iter_rows():
            ids = hits.filter(pl.col("file") == file)["sample_id"]
            left = set(ids) - taken
            if not left:
                continue
            for lines in self._read(UPath(self.folder / file), mark, left):
                taken.update(lines["sample_id"])
                yield lines

    def known(self, mark: str, sample_ids: pl.Series) -> pl.Series:
        """Return which sample ids have rows with this fingerprint."""
        ids = self._index(mark)["sample_id"]
        return sample_ids.filter(sample_ids.is_in(ids.implode()))

    def refresh(self, path: UPath) -> None:
        """Read the index of a newly written table."""
        for mark, index in self._indexes.items():
            others = index.filter(pl.col("file") != path.name)
            self._indexes[mark] = pl.concat([others, self._keys([path], mark)])

    def _index(self, mark: str) -> pl.DataFrame:
        if mark not in self._indexes:
            files = [path for path in self.folder.glob("*.parquet") if path.name[0] != "."]
            self._indexes[mark] = self._keys(sorted(files, key=str), mark)
        return self._indexes[mark]

    def _keys(self, paths: list[UPath], mark: str) -> pl.DataFrame:
        """Return sample_id and file of every row that can be reused."""
        nothing = pl.DataFrame(schema={"sample_id": pl.String, "file": pl.String})
        if not paths:
            return nothing
        try:
            return self._scan_keys(paths, mark)
        except (pl.exceptions.PolarsError, OSError):
            found = [nothing]
            for path in paths:
                try:
                    found.append(self._scan_keys([path], mark))
                except (pl.exceptions.PolarsError, OSError) as error:
                    _log.warning(
                        f"{path.name} is not a readable feature table ({error}); not used."
                    )
            return pl.concat(found)

    def _scan_keys(self, paths: list[UPath], mark: str) -> pl.DataFrame:
        # Seals are not checked here: a wrong key finds nothing in the file, which `_read` checks.
        files = scan_table(self.storage, *paths, named=True, checked=True)
        keys = files.filter(lines_to_reuse(mark))
        if self.wanted is not None:
            keys = keys.filter(pl.col("sample_id").is_in(self.wanted.implode()))
        name = pl.col("file").str.split("/").list.last()
        return keys.select("sample_id", name).unique().collect()

    def _read(self, path: UPath, mark: str, sample_ids: set[str]) -> Iterator[pl.DataFrame]:
        left = set(sample_ids)
        try:
            with path.open("rb") as stream:
                check_parquet_stream(stream, path.name)
                file = pq.ParquetFile(stream)
                for group in range(file.num_row_groups):
                    keys = pl.DataFrame(file.read_row_group(group, columns=_KEYS))
                    chosen = keys.with_row_index("line").filter(
                        lines_to_reuse(mark),
                        pl.col("sample_id").is_in(list(left)),
                        pl.col("sample_id").is_first_distinct(),
                    )
                    if chosen.is_empty():
                        continue
                    table = pl.DataFrame(file.read_row_group(group))
                    left -= set(chosen["sample_id"])
                    yield table[chosen["line"]]
        except (pa.ArrowException, OSError) as error:
            _log.warning(f"{path.name} is not a readable feature table ({error}); not used.")
