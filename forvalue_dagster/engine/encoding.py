"""Encode rows as tokens and pixels, in groups that fit in memory, ahead of the model."""

from __future__ import annotations

import copy
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import polars as pl

from forvalue_dagster.data.chat import ConversationEncoder, EncodedRow, SkippedRow
from forvalue_dagster.models.loading import LoadedModel
from forvalue_dagster.options.valuation import ValuationOptions

_COLUMNS = ("messages", "tools", "images", "problem")
# Batches are sorted by length within a group, so a group holds several batches.
_BATCHES_IN_GROUP = 4
# Number of rows that are encoded ahead of the current group.
_AHEAD = 32
# Rows in a window on a CPU. On a GPU batches are larger, and need more rows to find others of
# similar length; the first windows are small, so that the GPU starts at once.
_CPU_ROWS = 512
_GPU_ROWS = (64, 1024)

Encoded = EncodedRow | SkippedRow
_Row = tuple[str, str | None, list[bytes | None] | None, str | None]


@dataclass
class EncodedGroup:
    """Encoded rows that share batches.

    Attributes:
        indices: index in the frame of each encoded row.
        rows: the encoded rows.
        skipped: index and reason of each row that is skipped.
        last: whether the group is the last of its window.
    """

    indices: list[int] = field(default_factory=list)
    rows: list[EncodedRow] = field(default_factory=list)
    skipped: list[tuple[int, SkippedRow]] = field(default_factory=list)
    last: bool = False


def windows(rows: int, options: ValuationOptions, device: str) -> Iterator[slice]:
    """Yield the windows of a frame, at least one; only rows of one window share batches.

    Args:
        rows: number of rows of the frame.
        options: the valuation options; `window_rows` is used.
        device: type of the device: "cpu", "cuda", …
    """
    size, most = _GPU_ROWS if device != "cpu" else (_CPU_ROWS, _CPU_ROWS)
    if options.window_rows is not None:
        size = most = options.window_rows
    first = 0
    while first == 0 or first < rows:
        yield slice(first, min(first + size, rows))
        first += size
        size = min(2 * size, most)


def windows_ahead(options: ValuationOptions, device: str) -> int:
    """Return how many groups are encoded ahead of the device; 0 if memory is limited on a CPU.

    (There the limit holds for the process, and would stop whichever thread allocates.)
    """
    return 0 if options.memory_limit_gb is not None and device == "cpu" else 2


def encoded_groups(
    loaded: LoadedModel,
    encoder: ConversationEncoder,
    frame: pl.DataFrame,
    options: ValuationOptions,
    spans: Iterable[slice],
) -> Iterator[EncodedGroup]:
    """Encode a frame in groups: a window of rows each, or fewer where images fill the memory.

    Args:
        loaded: the model.
        encoder: the model's encoder.
        frame: canonical rows.
        options: sizes of batch and images, and how many threads prepare images.
        spans: the windows.
    """
    limit = _BATCHES_IN_GROUP * options.batch_image_mb * 1e6
    workers = options.image_workers if loaded.processor is not None else 0
    for span in spans:
        group, held = EncodedGroup(), 0
        for index, row in enumerate(encode_rows(encoder, frame[span], workers), start=span.start):
            if isinstance(row, SkippedRow):
                group.skipped.append((index, row))
                continue
            group.indices.append(index)
            group.rows.append(row)
            held += row.image_bytes
            if held > limit:
                yield group
                group, held = EncodedGroup(), 0
        yield replace(group, last=True)


def encode_rows(
    encoder: ConversationEncoder, frame: pl.DataFrame, workers: int = 0
) -> Iterator[Encoded]:
    """Encode every row, in order.

    Args:
        encoder: the model's encoder.
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
