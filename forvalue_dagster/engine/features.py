"""The feature pass: makes a feature table part by part, without the validation set."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from functools import partial
from hashlib import sha256
from typing import Any, Protocol

import polars as pl
import torch

from forvalue_dagster.engine.encoding import EncodedGroup, encoded_groups, windows, windows_ahead
from forvalue_dagster.engine.feature_table import FEATURE_RESULTS, feature_records
from forvalue_dagster.engine.fingerprint import fingerprint
from forvalue_dagster.engine.forward import Passed, PassedRows, Unscored, pass_group
from forvalue_dagster.engine.memory import TokenBudget
from forvalue_dagster.engine.outcomes import Outcomes, Progress, refuse_broken_model
from forvalue_dagster.engine.transfer import Behind, Transfer, ahead
from forvalue_dagster.models.loading import LoadedModel
from forvalue_dagster.options.valuation import ValuationOptions
from forvalue_dagster.valuation.columns import FORWARD_STATISTICS
from forvalue_dagster.valuation.features import TokenFeatures, token_features
from forvalue_dagster.valuation.prediction_error import PredictionErrors, positions_at_once
from forvalue_dagster.valuation.statistics import summarise_rows

# Number of batches whose records, and windows whose parts, are made while the device continues.
_BATCHES_BEHIND = 3
_PARTS_BEHIND = 1


class PartStore(Protocol):
    """A store of finished parts of a pass, which outlives the process."""

    def __contains__(self, key: str) -> bool:
        """Tell whether a part was finished."""
        ...

    def load(self, key: str) -> tuple[pl.DataFrame, str] | None:
        """Return a part and the token budget after it, if it was finished."""
        ...

    def save(self, key: str, part: pl.DataFrame, budget: str) -> None:
        """Store a finished part, whole or not at all."""
        ...


def feature_parts(
    loaded: LoadedModel,
    frame: pl.DataFrame,
    options: ValuationOptions,
    progress: Progress | None = None,
    store: PartStore | None = None,
) -> Iterator[pl.DataFrame]:
    """Yield the feature table of a frame in parts of a window of rows each, in order.

    Threads encode rows ahead of the device, and make records and parts behind it, so that the
    device waits for neither. A part is taken from the store if its rows, the fingerprint and the
    token budget it began with are the same. So a killed pass continues where it stopped, with the
    batches that an uninterrupted one would have made, and ends with the same bytes.

    Args:
        loaded: the model.
        frame: canonical rows; an empty one yields one empty part.
        options: the valuation options.
        progress: callback after each batch, with counts over the whole frame.
        store: store of finished parts.

    Raises:
        NonFiniteModelError: if rows went through the model and none came out finite.
    """
    run = _FeaturePass(loaded, frame, options, progress, store)
    spans = windows(len(frame), options, loaded.device.type)
    # The parts that an earlier pass has finished come first.
    for span in spans:
        part = run.stored(span)
        if part is None:
            yield from run.pass_windows(itertools.chain([span], spans))
            return
        yield part


class _FeaturePass:
    """One pass over a frame; counts the finished rows."""

    def __init__(
        self,
        loaded: LoadedModel,
        frame: pl.DataFrame,
        options: ValuationOptions,
        progress: Progress | None,
        store: PartStore | None,
    ) -> None:
        self._loaded, self._frame, self._options = loaded, frame, options
        self._progress, self._store = progress, store
        self._mark = fingerprint(loaded, options)
        self._budget = TokenBudget.of(loaded, options)
        self._scored = self._broken = self._tokens = 0

    def stored(self, span: slice) -> pl.DataFrame | None:
        """Return a window's part if an earlier pass has finished it."""
        found = None if self._store is None else self._store.load(self._key(span))
        if found is None:
            return None
        part, budget = found
        self._budget.restore(budget)
        self._tokens += int(part["response_tokens"].sum())
        return self._counted(part)

    def _key(self, span: slice) -> str:
        return _part_key(self._mark, self._budget.mark, self._frame[span])

    def pass_windows(self, spans: Iterator[slice]) -> Iterator[pl.DataFrame]:
        """Pass windows through the model, and yield their parts."""
        loaded, options = self._loaded, self._options
        to_encode, to_pass = itertools.tee(spans)
        encoder = loaded.encoder(options.tokens, options.remembered_images)
        depth = windows_ahead(options, loaded.device.type)
        groups = ahead(encoded_groups(loaded, encoder, self._frame, options, to_encode), depth)
        head = partial(feature_head, loaded, options)
        with (
            closing(groups),
            Behind[int](_BATCHES_BEHIND if depth else 0) as records,
            Behind[pl.DataFrame](_PARTS_BEHIND if depth else 0) as parts,
        ):
            for span in to_pass:
                window = self._frame[span]
                key = self._key(span)
                if self._store is not None and key in self._store:
                    # An earlier row has changed since: the part is used, its encoding was in vain.
                    yield from parts.rest()
                    if (part := self.stored(span)) is not None:
                        for _ in _window(groups):
                            pass
                        yield part
                        continue
                outcome = Outcomes(window)
                begun: list[Future[int]] = []
                rows, tokens = span.start, self._tokens
                for group in _window(groups):
                    for passed in pass_group(loaded, encoder, group, self._budget, options, head):
                        if isinstance(passed, Unscored):
                            outcome.skip(_within(passed, span))
                            rows += 1
                            continue
                        begun.append(records.add(partial(_record, outcome, passed, span)))
                        rows += len(passed.rows)
                        tokens += sum(passed.lengths)
                        records.wait()
                        if self._progress is not None:
                            self._progress(rows, tokens)
                self._tokens = tokens
                finish = partial(self._finish, outcome, begun, key, self._budget.mark)
                parts.add(finish)
                yield from parts.ready()
            yield from parts.rest()

    def _finish(
        self, outcome: Outcomes, begun: Sequence[Future[int]], key: str, budget: str
    ) -> pl.DataFrame:
        """Make a window's part once its records are there, and keep it."""
        for record in begun:
            record.result()
        part = outcome.frame(FEATURE_RESULTS).with_columns(fingerprint=pl.lit(self._mark))
        self._counted(part)
        if self._store is not None:
            self._store.save(key, part, budget)
        return part

    def _counted(self, part: pl.DataFrame) -> pl.DataFrame:
        self._scored += part.filter(pl.col("status") == "scored").height
        self._broken += part.filter(pl.col("reason") == "non_finite").height
        refuse_broken_model(self._scored, self._broken)
        return part


def _window(groups: Iterator[EncodedGroup]) -> Iterator[EncodedGroup]:
    """Yield the groups of one window."""
    for group in groups:
        yield group
        if group.last:
            return


@torch.inference_mode()
def feature_head(loaded: LoadedModel, options: ValuationOptions, passed: Passed) -> Transfer:
    """Begin to bring statistics and features of a batch to the host.

    Args:
        loaded: the model.
        options: the valuation options, with the precision of features.
        passed: the batch.

    Returns:
        The tensors of `TokenFeatures`, "statistics" [R, `FORWARD_STATISTICS`], "prompts" [R, D].
    """
    unembedding, precision = loaded.unembedding, options.features
    statistics, kept = [], []
    for _, chunk in passed.positions.chunks(positions_at_once(unembedding, passed.positions)):
        errors = PredictionErrors(unembedding, chunk, top=precision.top_errors)
        statistics.append(summarise_rows(errors.tokens, chunk))
        kept.append(token_features(errors, chunk, precision))
    features = TokenFeatures.concatenate(kept)
    return Transfer(
        features.tensors()
        | {"statistics": torch.cat(statistics), "prompts": passed.prompts.float()}
    )


def _record(outcome: Outcomes, passed: PassedRows[Transfer], span: slice) -> int:
    """Record a batch's rows; those whose output is not finite are skipped."""
    arrays = passed.result.arrays()
    statistics = arrays.pop("statistics").tolist()
    tensors = feature_records(arrays, passed.lengths)
    results: list[dict[str, Any]] = [
        dict(zip(FORWARD_STATISTICS, numbers, strict=True)) | binary
        for numbers, binary in zip(statistics, tensors, strict=True)
    ]
    rows = [row - span.start for row in passed.rows]
    outcome.add(rows, passed.truncated, passed.lengths, results)
    return len(rows)


def _within(unscored: Unscored, span: slice) -> Unscored:
    return Unscored(unscored.row - span.start, unscored.reason, unscored.truncated)


def _part_key(mark: str, budget: str, window: pl.DataFrame) -> str:
    """Name a part by everything that decides its content."""
    identity = window.select("shard", "row", "sample_id", "problem").write_ndjson()
    first = window["row"][0] if len(window) else 0
    digest = sha256(f"{mark}\n{budget}\n{identity}".encode()).hexdigest()
    return f"{first:010d}-{digest[:20]}"
