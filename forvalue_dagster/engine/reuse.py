"""The feature pass that reuses stored features: only new rows go through the model.

A row's features depend on its conversation, which `sample_id` hashes, and on what the fingerprint
names. So the rows of any finished feature table with the same fingerprint can be reused, whatever
their shard and place, and a row that occurs several times goes through the model once.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from typing import Protocol

import polars as pl

from forvalue_dagster.engine.features import PartStore, feature_parts
from forvalue_dagster.engine.fingerprint import fingerprint
from forvalue_dagster.engine.lines import placed
from forvalue_dagster.engine.outcomes import Progress
from forvalue_dagster.models.loading import LoadedModel
from forvalue_dagster.options.valuation import ValuationOptions


class KnownFeatures(Protocol):
    """Finished feature tables, looked up by sample id."""

    def lines(self, mark: str, sample_ids: pl.Series) -> Iterator[pl.DataFrame]:
        """Yield rows of feature tables with this fingerprint, no sample id twice."""
        ...


class FeaturePass:
    """One pass over the rows of a shard.

    Args:
        loaded: the model.
        frame: canonical rows.
        options: the valuation options.
        known: finished feature tables, or None.

    Attributes:
        mark: the fingerprint.
        reused: number of rows whose features were stored.
        repeated: number of rows that repeat another row of the frame.
        passed: number of rows that went through the model, or were found unreadable.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        frame: pl.DataFrame,
        options: ValuationOptions,
        known: KnownFeatures | None = None,
    ) -> None:
        self.mark = fingerprint(loaded, options)
        self.reused = self.repeated = self.passed = 0
        self._loaded, self._frame, self._options, self._known = loaded, frame, options, known

    def parts(
        self, store: PartStore | None = None, progress: Progress | None = None
    ) -> Iterator[pl.DataFrame]:
        """Yield the feature table in parts: stored rows first, then new ones.

        A store receives each part before repeated rows are put in their places
        (`engine.lines.placed`).

        Raises:
            NonFiniteModelError: if rows went through the model and none came out finite.
        """
        places = self._frame.select("shard", "row", "sample_id")
        named = places["sample_id"].drop_nulls()
        found = [pl.Series("sample_id", [], pl.String)]
        if self._known is not None:
            for number, lines in enumerate(self._known.lines(self.mark, named.unique())):
                found.append(lines["sample_id"])
                if store is not None:
                    digest = sha256(f"{self.mark}\n{','.join(found[-1])}".encode()).hexdigest()
                    budget = str(self._options.batch_tokens or "auto")
                    store.save(f"known-{number:07d}-{digest[:20]}", lines, budget)
                yield from placed(lines, places)
        known = pl.concat(found)
        is_known = pl.col("sample_id").is_in(known.implode())
        self.reused = places.filter(is_known).height
        new = self._frame.filter(~is_known | pl.col("sample_id").is_null())
        first = pl.col("sample_id").is_first_distinct() | pl.col("sample_id").is_null()
        distinct = new.filter(first)
        self.repeated, self.passed = len(new) - len(distinct), len(distinct)
        if len(distinct) or not len(self._frame):
            done = len(self._frame) - len(distinct)
            report = None if progress is None else _after(progress, done)
            for part in feature_parts(self._loaded, distinct, self._options, report, store):
                yield from placed(part, places)


def _after(progress: Progress, done: int) -> Progress:
    return lambda rows, tokens: progress(done + rows, tokens)
