"""What a GPU's time depends on, counted and timed without one."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from upath import UPath

import forvalue_dagster as fv
from benchmarks.slow_device import measure
from forvalue_dagster.data.read import read_rows
from forvalue_dagster.engine.features import feature_head, feature_parts
from forvalue_dagster.engine.forward import Passed
from forvalue_dagster.engine.scoring import exact_head
from forvalue_dagster.models.loading import LoadedModel
from forvalue_dagster.options.valuation import ValuationOptions
from forvalue_dagster.storage.parts import StoredParts
from forvalue_dagster.valuation.positions import ResponsePositions
from forvalue_dagster.valuation.preconditioner import Preconditioner
from forvalue_dagster.valuation.profile_builder import ProfileBuilder
from forvalue_dagster.valuation.sweep_shape import wide
from tests.tiny import tiny_loaded

OPTIONS = ValuationOptions(noise=None)
# Operations that return another look at the same memory, or none of their own.
_FREE = {"view", "_unsafe_view", "slice", "select", "t", "transpose", "permute", "unsqueeze"} | {
    *("squeeze", "expand", "alias", "detach", "as_strided", "unfold", "split", "unbind"),
    *("empty", "new_empty", "empty_like", "_reshape_alias", "lift_fresh", "unflatten"),
}
_WAITS = {"_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "masked_select"}


class Counted(TorchDispatchMode):
    """Counts operations as a GPU would launch them, and those for which the host would wait."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Without gradients torch hands on what only stands for other operations.
        with self:
            made = func.decompose(*args, **(kwargs or {}))
        if made is not NotImplemented:
            return made
        name = func.overloadpacket.__name__
        if name not in _FREE:
            self.operations[name] += 1
        return func(*args, **(kwargs or {}))

    @property
    def waits(self) -> int:
        return sum(count for name, count in self.operations.items() if name in _WAITS)


def batch_of(vocabulary: int, rows: int, tokens: int) -> tuple[LoadedModel, Passed]:
    """A model with a head of that size, and what it made of a batch, in the wide shape."""
    loaded = tiny_loaded("llama", torch.float32)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(vocabulary, 8, generator=generator)
    unembedding = replace(loaded.unembedding, weight=weight, shape=wide(2**34))
    count = rows * tokens
    labels = torch.randint(0, vocabulary, (count,), generator=generator)
    hidden = torch.randn(count, 8, generator=generator)
    positions = ResponsePositions(hidden, labels, (tokens,) * rows)
    return replace(loaded, unembedding=unembedding), Passed(positions, hidden[:rows])


def test_operations_of_the_feature_head() -> None:
    """16 rows of 130 response tokens at Qwen's vocabulary: at most 120, and none that waits."""
    loaded, passed = batch_of(151_936, 16, 130)
    with Counted() as seen:
        transfer = feature_head(loaded, OPTIONS, passed)
    assert sum(seen.operations.values()) <= 120, seen.operations
    assert seen.waits == 0, seen.operations
    assert np.isfinite(transfer.arrays()["statistics"]).all()


# A full vocabulary takes a CPU most of a minute, and as many operations as a smaller one.
@pytest.mark.parametrize("vocabulary", [20_000, pytest.param(151_936, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("groups", "most"), [(1, 250), (8, 400)])
def test_operations_of_the_exact_head(groups: int, most: int, vocabulary: int) -> None:
    loaded, passed = batch_of(vocabulary, 16, 130)
    names = [f"group {number}" for number in range(groups)]
    builder = ProfileBuilder(loaded.unembedding, names)
    own = replace(passed.positions.select([True] * 8 + [False] * 8))
    builder.add(own, (names * 8)[:8], range(8))
    direction = builder.build().direction(Preconditioner())
    with Counted() as seen:
        transfer = exact_head(loaded, direction, None, passed)
    assert sum(seen.operations.values()) <= most, seen.operations
    assert seen.waits == 0, seen.operations
    assert transfer.arrays()["groups"].shape == (16, groups)


def gsm8k_like(count: int) -> pl.DataFrame:
    """Rows as long as GSM8K's in a tokenizer of bytes: 200 to 900 tokens."""
    rng = np.random.default_rng(0)
    return read_rows(
        [
            {
                "prompt": f"{row} " + "How many? " * int(rng.integers(5, 30)),
                "response": "So many. " * int(rng.integers(10, 60)),
            }
            for row in range(count)
        ]
    )


@pytest.mark.slow
def test_the_host_hides_behind_a_slow_device() -> None:
    """A model that sleeps 20 ms a batch stands for a GPU, which would compute the head, too."""
    found = measure()
    assert found["batches"] in range(95, 106)
    assert found["without the head"] <= 1.2, found


def test_an_error_in_any_thread_ends_the_pass(tmp_path: Path) -> None:
    """A part that cannot be written, or a row that cannot be encoded, is no lost row."""

    class Full(StoredParts):
        def save(self, key: str, part: pl.DataFrame, budget: str) -> None:
            raise OSError(28, "No space left on device")

    loaded = tiny_loaded("llama", torch.float32)
    options = OPTIONS.model_copy(update={"window_rows": 4})
    with pytest.raises(OSError, match="No space left"):
        list(feature_parts(loaded, gsm8k_like(12), options, store=Full(UPath(tmp_path))))
    broken = gsm8k_like(12).with_columns(
        messages=pl.when(pl.col("row") == 9).then(pl.lit("not JSON")).otherwise("messages")
    )
    with pytest.raises(ValueError, match="Expecting value"):
        list(feature_parts(loaded, broken, options))


def test_a_pass_that_is_left_ends_its_threads() -> None:
    import threading

    before = threading.active_count()
    parts = feature_parts(
        tiny_loaded("llama", torch.float32),
        gsm8k_like(40),
        OPTIONS.model_copy(update={"window_rows": 4}),
    )
    next(parts)
    parts.close()
    assert threading.active_count() == before


def test_plain_functions_take_auto() -> None:
    rows = [{"prompt": "a", "response": "b"}] * 3
    loaded = tiny_loaded("llama", torch.float32)
    table = fv.sample_features(rows, model=loaded, batch_tokens="auto")
    assert table["status"].to_list() == ["scored"] * 3
