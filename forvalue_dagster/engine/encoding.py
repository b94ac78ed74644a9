"""Rows to tokens and pixels, in groups that fit in memory, ahead of the model."""

from __future__ import annotations

import copy
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import polars as pl

from forvalue_dagster.data.chat import ConversationEncoder, EncodedRow, SkippedRow
from forvalue_dagster.engine.options import ValuationOptions
from forvalue_dagster.models.loading import LoadedModel

_COLUMNS = ("messages", "tools", "images", "problem")
# Batches are sorted by length within a group, so a group holds some batches.
_BATCHES_IN_GROUP = 4
# Rows that are encoded ahead of the group that is being filled.
_AHEAD = 32

Encoded = EncodedRow | SkippedRow
_Row = tuple[str, str | None, list[bytes | None] | None, str | None]


@dataclass
class EncodedGroup:
    """Rows that are batched among themselves.

    Attributes:
        indices: of each encoded row in the frame.
        rows: encoded.
        skipped: those that are not.
    """

    indices: list[int] = field(default_factory=list)
    rows: list[EncodedRow] = field(default_factory=list)
    skipped: list[tuple[int, SkippedRow]] = field(default_factory=list)


def encoded_groups(
    loaded: LoadedModel,
    encoder: ConversationEncoder,
    frame: pl.DataFrame,
    options: ValuationOptions,
) -> Iterator[EncodedGroup]:
    """Encode a frame in groups: of a window of rows, or of fewer where images fill the memory.

    Args:
        loaded: the model.
        encoder: of the model.
        frame: canonical rows.
        options: sizes of window, batch and images, and how many threads prepare images.
    """
    limit = _BATCHES_IN_GROUP * options.batch_image_mb * 1e6
    for first in range(0, len(frame), options.window_rows):
        group, held = EncodedGroup(), 0
        window = frame.slice(first, options.window_rows)
        workers = options.image_workers if loaded.processor is not None else 0
        for index, row in enumerate(encode_rows(encoder, window, workers), start=first):
            if isinstance(row, SkippedRow):
                group.skipped.append((index, row))
                continue
            group.indices.append(index)
            group.rows.append(row)
            held += row.image_bytes
            if held > limit:
                yield group
                group, held = EncodedGroup(), 0
        yield group


def encode_rows(
    encoder: ConversationEncoder, frame: pl.DataFrame, workers: int = 0
) -> Iterator[Encoded]:
    """Encode every row, in order.

    Args:
        encoder: of the model.
        frame: canonical rows.
        workers: threads that decode and resize images while the caller is busy; with none,
            each row is encoded when it is asked for.
    """
    rows: Iterator[_Row] = frame.select(_COLUMNS).iter_rows()
    if not workers:
        yield from (_encode(encoder, row) for row in rows)
        return
    # A tokenizer may be used by one thread at a time.
    own = threading.local()

    def encode(row: _Row) -> Encoded:
        if not hasattr(own, "encoder"):
            own.encoder = copy.deepcopy(encoder)
        return _encode(own.encoder, row)

    pool = ThreadPoolExecutor(workers, thread_name_prefix="images")
    pending: deque[Future[Encoded]] = deque()
    try:
        for row in rows:
            pending.append(pool.submit(encode, row))
            if len(pending) > _AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _encode(encoder: ConversationEncoder, row: _Row) -> Encoded:
    messages, tools, images, problem = row
    return SkippedRow("unreadable") if problem else encoder.encode(messages, tools, images)
