"""Tables that are made part by part; finished parts survive a killed process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import polars as pl
from upath import UPath

from forvalue_dagster.engine.lines import placed
from forvalue_dagster.storage.atomic import atomic_write
from forvalue_dagster.storage.seal import DamagedFileError, check_parquet_stream, seal_parquet

_BUDGET = "forvalue_dagster.token_budget"


@dataclass
class StoredParts:
    """The parts of one table, in a folder of their own until the table is written.

    Every attempt at the table has its own folder, so that two runs at once do not remove each
    other's parts; parts that another attempt has finished are copied.

    Attributes:
        folder: folder of all attempts.
        attempt: name of this attempt: its run.
        places: shard, row and sample_id of every row of the finished table; None leaves rows
            where they are.
        keys: keys of the parts that belong to the table, in order.
        reused: number of parts that an earlier attempt had finished.
        schema: schema of the table, once a part is known.
    """

    folder: UPath
    attempt: str = "attempt"
    places: pl.DataFrame | None = None
    keys: list[str] = field(default_factory=list)
    reused: int = 0
    schema: pl.Schema | None = None

    def __contains__(self, key: str) -> bool:
        """Tell whether a part was finished."""
        return key in self._finished

    def load(self, key: str) -> tuple[pl.DataFrame, str] | None:
        """Return a finished part with the token budget after it."""
        path = self._finished.get(key)
        if path is None:
            return None
        try:
            part = _read(path)
            with path.open("rb") as stream:
                budget = pl.read_parquet_metadata(stream)[_BUDGET]
        except (FileNotFoundError, DamagedFileError):
            return None  # the other attempt has ended; or the part must be made again
        if path.parent.name == self.attempt:
            self._count(key, part)
        else:
            self.save(key, part, budget)
        self.reused += 1
        return part, budget

    def save(self, key: str, part: pl.DataFrame, budget: str) -> None:
        """Store a finished part."""
        with atomic_write(self._path(key)) as stream:
            part.write_parquet(stream, compression="zstd", metadata={_BUDGET: budget})
            seal_parquet(stream)
        self._count(key, part)

    def frames(self) -> Iterator[pl.DataFrame]:
        """Read the table's parts again, one at a time, with repeated rows in all their places."""
        for key in self.keys:
            part = _read(self._path(key))
            yield from [part] if self.places is None else placed(part, self.places)

    def clear(self) -> None:
        """Remove every part of this attempt, and the folder if it was the last."""
        self._remove(self.folder / self.attempt)
        self.sweep(lambda attempt: False)

    def sweep(self, is_over: Callable[[str], bool]) -> None:
        """Remove the parts of other attempts that have ended, and the folder when it is empty."""
        if not self.folder.exists():
            return
        for path in list(self.folder.iterdir()):
            if path.name != self.attempt and is_over(path.name):
                self._remove(path)
        if self.folder.protocol in ("", "file", "local"):
            # This fails, as it should, if another attempt has written something there.
            with suppress(OSError):
                Path(self.folder.path).rmdir()

    @cached_property
    def _finished(self) -> dict[str, UPath]:
        """The parts of all attempts; this attempt's come before others'."""
        paths = sorted(self.folder.glob("*/*.parquet"), key=str) if self.folder.exists() else []
        paths.sort(key=lambda path: path.parent.name == self.attempt)
        return {path.stem: path for path in paths}

    def _count(self, key: str, part: pl.DataFrame) -> None:
        self.keys.append(key)
        self.schema = part.schema

    def _path(self, key: str) -> UPath:
        path: UPath = self.folder / self.attempt / f"{key}.parquet"
        return path

    @staticmethod
    def _remove(folder: UPath) -> None:
        if folder.exists():
            folder.fs.rm(folder.path, recursive=True)


def _read(path: UPath) -> pl.DataFrame:
    with path.open("rb") as stream:
        check_parquet_stream(stream, str(path))
        stream.seek(0)
        return pl.read_parquet(stream)
