"""Copies of results from the device, and threads that work while the device is busy."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

T = TypeVar("T")
_NUMPY = {
    torch.float64: "<f8",
    torch.float32: "<f4",
    torch.float16: "<f2",
    torch.int64: "<i8",
    torch.int32: "<i4",
    torch.int16: "<i2",
    torch.int8: "i1",
}
_END = object()


class Transfer:
    """A copy of some tensors to the host, started without waiting for its end.

    Args:
        tensors: name → tensor, all on one device, of dtypes that tables can hold.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._event: torch.cuda.Event | None = None
        # Widest entries first: each array then begins at a multiple of its entries' size.
        ordered = sorted(tensors.items(), key=lambda item: -item[1].element_size())
        self._layout = [(name, tuple(t.shape), _NUMPY[t.dtype]) for name, t in ordered]
        parts = [t.contiguous().view(-1).view(torch.uint8) for _, t in ordered]
        packed = torch.cat(parts) if len(parts) > 1 else parts[0]
        if packed.is_cuda:
            self._bytes = torch.empty(packed.shape, dtype=torch.uint8, pin_memory=True)
            self._bytes.copy_(packed, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()
        else:
            self._bytes = packed.cpu()

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Wait for the copy, and return the tensors as arrays."""
        if self._event is not None:
            self._event.synchronize()
        content, start, arrays = self._bytes.numpy(), 0, {}
        for name, shape, dtype in self._layout:
            stop = start + int(np.prod(shape)) * np.dtype(dtype).itemsize
            arrays[name] = content[start:stop].view(dtype).reshape(shape)
            start = stop
        return arrays


def ahead(items: Iterator[T], depth: int) -> Generator[T]:
    """Yield items that a thread makes ahead of their use.

    Args:
        items: the iterator; only the thread uses it.
        depth: largest number of items that are ready or being made; with 0 there is no thread.
    """
    if depth < 1:
        yield from items
        return
    pool = ThreadPoolExecutor(1, thread_name_prefix="ahead")
    try:
        pending = deque(pool.submit(next, items, _END) for _ in range(depth))
        while (item := pending.popleft().result()) is not _END:
            pending.append(pool.submit(next, items, _END))
            yield item  # type: ignore[misc]
    finally:
        pool.shutdown(cancel_futures=True)


class Behind(Generic[T]):
    """A thread that finishes work in order, some of it while the caller continues.

    Args:
        depth: largest number of unfinished pieces; with 0 the caller waits for each.
    """

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="behind")
        self._pending: deque[Future[T]] = deque()

    def __enter__(self) -> Behind[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def add(self, work: Callable[[], T]) -> Future[T]:
        """Add a piece of work, to be started when those before it are done."""
        self._pending.append(self._pool.submit(work))
        return self._pending[-1]

    def ready(self) -> Iterator[T]:
        """Wait until at most `depth` pieces are unfinished; yield the results of the others."""
        while len(self._pending) > self._depth:
            yield self._pending.popleft().result()

    def wait(self) -> None:
        """Wait until at most `depth` pieces are unfinished."""
        for _ in self.ready():
            pass

    def rest(self) -> Iterator[T]:
        """Yield the remaining results."""
        while self._pending:
            yield self._pending.popleft().result()
