"""Tables that are made part by part: finished parts outlive a killed process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import polars as pl
from upath import UPath

from forvalue_dagster.storage.atomic import atomic_write

_BUDGET = "forvalue_dagster.token_budget"


@dataclass
class StoredParts:
    """The parts of one table, in a folder of their own until the table is written.

    Attributes:
        folder: where the parts lie.
        keys: of the parts that belong to the table, in order.
        reused: how many of them were there already.
        schema: of the table, once a part is known.
    """

    folder: UPath
    keys: list[str] = field(default_factory=list)
    reused: int = 0
    schema: pl.Schema | None = None

    def load(self, key: str) -> tuple[pl.DataFrame, int] | None:
        """Return a finished part with the token budget after it."""
        path = self._path(key)
        if not path.exists():
            return None
        with path.open("rb") as stream:
            budget = int(pl.read_parquet_metadata(stream)[_BUDGET])
        part = self._read(key)
        self.keys.append(key)
        self.reused += 1
        self.schema = part.schema
        return part, budget

    def save(self, key: str, part: pl.DataFrame, budget: int) -> None:
        """Keep a finished part."""
        with atomic_write(self._path(key)) as stream:
            part.write_parquet(stream, compression="zstd", metadata={_BUDGET: str(budget)})
        self.keys.append(key)
        self.schema = part.schema

    def frames(self) -> Iterator[pl.DataFrame]:
        """Read the table's parts again, one at a time."""
        for key in self.keys:
            yield self._read(key)

    def clear(self) -> None:
        """Remove every part, those of earlier attempts too."""
        if self.folder.exists():
            self.folder.fs.rm(self.folder.path, recursive=True)

    def _read(self, key: str) -> pl.DataFrame:
        with self._path(key).open("rb") as stream:
            return pl.read_parquet(stream)

    def _path(self, key: str) -> UPath:
        path: UPath = self.folder / f"{key}.parquet"
        return path
