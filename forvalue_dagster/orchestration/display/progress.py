"""Progress and warnings of a pass in the Dagster log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SECONDS_BETWEEN_LINES = 10.0


def log_progress(log: logging.Logger, rows: int) -> Callable[[int, int], None]:
    """Return a callback that logs rows, speed and time left, at most every ten seconds."""
    started = last = time.monotonic()

    def report(done: int, tokens: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < SECONDS_BETWEEN_LINES and done < rows:
            return
        last = now
        elapsed = max(now - started, 1e-9)
        left = elapsed / max(done, 1) * (rows - done)
        log.info(
            f"{done:,} of {rows:,} rows, {tokens / elapsed:,.0f} response tokens/s, "
            f"about {left:,.0f} s left"
        )

    return report


@contextmanager
def engine_warnings(log: logging.Logger) -> Iterator[None]:
    """Forward warnings of code that does not know the run, such as the engine, to its log."""
    handler = _PassOn(log)
    logger = logging.getLogger("forvalue_dagster")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _PassOn(logging.Handler):
    def __init__(self, log: logging.Logger) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log.log(record.levelno, record.getMessage())
