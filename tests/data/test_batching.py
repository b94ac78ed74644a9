from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from forvalue_dagster.data.batching import batches
from forvalue_dagster.data.chat import EncodedRow


def encoded(length: int) -> EncodedRow:
    ids = np.arange(1, length + 1)
    return EncodedRow(ids, ids < length, truncated=False)


@given(lengths=st.lists(st.integers(2, 40), max_size=30), budget=st.integers(1, 100))
def test_every_row_once_within_the_budget_and_padded_right(lengths: list[int], budget: int) -> None:
    rows = [encoded(length) for length in lengths]
    seen = []
    for batch in batches(rows, budget):
        assert len(batch.rows) == 1 or batch.input_ids.size <= budget
        for place, index in enumerate(batch.rows):
            row, length = rows[index], lengths[index]
            np.testing.assert_array_equal(batch.input_ids[place, :length], row.input_ids)
            np.testing.assert_array_equal(batch.mask[place, :length], row.mask)
            assert batch.attention_mask[place].sum() == length
            assert not batch.attention_mask[place, length:].any()
            assert not batch.mask[place, length:].any()
        seen += batch.rows
    assert sorted(seen) == list(range(len(rows)))
