"""The plain functions: strategy never changes a score, and no row is lost."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import forvalue_dagster as fv
from forvalue_dagster.engine.columns import COLUMN_DESCRIPTIONS
from forvalue_dagster.engine.features import feature_parts
from forvalue_dagster.engine.scoring import build_profile, score_rows
from forvalue_dagster.models.loading import LoadedModel
from forvalue_dagster.options.valuation import ValuationOptions
from forvalue_dagster.valuation.columns import FORWARD_STATISTICS
from tests.tiny import tiny_loaded


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return tiny_loaded("qwen2", max_length=128)


def make_rows(count: int, seed: int) -> list[dict]:
    generator = np.random.default_rng(seed)
    words = ["stone", "river", "ü", "🙂", "12", "and", "so", "it", "goes"]

    def text() -> str:
        return " ".join(generator.choice(words, generator.integers(1, 9)))

    return [
        {"prompt": f"{text()}?", "response": text(), "kind": ("a", "b", "c")[index % 3]}
        for index in range(count)
    ]


TRAIN, VALIDATION = make_rows(17, 1), make_rows(6, 2)
GROUPED = fv.Columns(group="kind")


@pytest.mark.parametrize("preconditioner", ["none", "activation"])
@pytest.mark.parametrize("tokens", ["response", "all"])
def test_values_are_the_mean_of_the_pairs(loaded, tokens: str, preconditioner: str) -> None:
    """Two independent ways to the same number: rows against Ḡ, and rows against rows."""
    how = {"model": loaded, "tokens": tokens, "preconditioner": preconditioner}
    scores = fv.value_dataset(TRAIN, VALIDATION, **how)
    pairs = fv.pairwise_values(TRAIN, VALIDATION, **how)
    assert pairs.shape == (len(TRAIN), len(VALIDATION))
    assert pairs.dtype == np.float64
    np.testing.assert_allclose(scores["value"], pairs.mean(axis=1), rtol=1e-9, atol=1e-9)


def test_groups_are_means_of_their_pairs_and_add_up(loaded) -> None:
    scores = fv.value_dataset(TRAIN, VALIDATION, model=loaded, columns=GROUPED)
    pairs = fv.pairwise_values(TRAIN, VALIDATION, model=loaded)
    for number, group in enumerate("abc"):
        np.testing.assert_allclose(scores[f"value_{group}"], pairs[:, number::3].mean(axis=1))
    total = sum(scores[f"value_{group}"] for group in "abc")
    np.testing.assert_allclose(scores["value"], total / 3)


def test_columns_and_order(loaded) -> None:
    scores = fv.value_dataset(TRAIN, VALIDATION, model=loaded)
    assert scores.columns[:4] == ["sample_id", "shard", "row", "value"]
    assert set(scores.columns) - set(COLUMN_DESCRIPTIONS) == {"sample_id", "shard", "row"}
    assert scores["row"].to_list() == list(range(len(TRAIN)))
    assert scores["value"].dtype == pl.Float64
    assert (scores["status"] == "scored").all()
    assert scores["alignment"].is_between(-1, 1).all()
    np.testing.assert_allclose(
        scores["value_per_token"], scores["value"] / scores["response_tokens"]
    )


@pytest.mark.parametrize("batch_tokens", [1, 90, 10_000])
@pytest.mark.parametrize("window_rows", [1, 5, 1000])
def test_batches_and_windows_change_nothing(loaded, batch_tokens: int, window_rows: int) -> None:
    options = ValuationOptions(batch_tokens=batch_tokens, window_rows=window_rows)
    train, validation = fv.read_rows(TRAIN), fv.read_rows(VALIDATION)
    expected = fv.value_dataset(TRAIN, VALIDATION, model=loaded)
    profile, _ = build_profile(loaded, validation, options)
    scores = score_rows(loaded, train, profile, options)
    assert_same_scores(scores, expected)
    features = pl.concat(feature_parts(loaded, train, options))
    for name in FORWARD_STATISTICS:
        np.testing.assert_allclose(features[name], expected[name], rtol=1e-5, atol=1e-6)


def test_order_changes_nothing(loaded) -> None:
    expected = fv.value_dataset(TRAIN, VALIDATION, model=loaded)
    turned = fv.value_dataset(TRAIN[::-1], VALIDATION[::-1], model=loaded)
    assert turned["sample_id"].to_list() == expected["sample_id"].to_list()[::-1]
    np.testing.assert_allclose(turned["value"].reverse(), expected["value"], rtol=1e-5)


def test_other_rows_change_nothing(loaded) -> None:
    expected = fv.value_dataset(TRAIN, VALIDATION, model=loaded)
    few = fv.value_dataset(TRAIN[3:5], VALIDATION, model=loaded)
    np.testing.assert_allclose(few["value"], expected["value"][3:5], rtol=1e-5)


def assert_same_scores(scores: pl.DataFrame, expected: pl.DataFrame) -> None:
    # Normalisation layers round to float32 even here; beyond that nothing may differ.
    scale = float(expected["value"].abs().max())
    np.testing.assert_allclose(scores["value"], expected["value"], rtol=1e-5, atol=1e-6 * scale)
    np.testing.assert_allclose(scores["alignment"], expected["alignment"], rtol=1e-4, atol=1e-5)
    exact = ["sample_id", "row", "response_tokens", "truncated", "status", "reason"]
    assert scores.select(exact).equals(expected.select(exact))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_lower_precision_is_near(loaded, dtype: torch.dtype) -> None:
    other = tiny_loaded("qwen2", dtype, max_length=128)
    expected = fv.value_dataset(TRAIN, VALIDATION, model=loaded)["alignment"]
    got = fv.value_dataset(TRAIN, VALIDATION, model=other)["alignment"]
    np.testing.assert_allclose(got, expected, atol=1e-4 if dtype == torch.float32 else 0.15)


def test_every_row_leaves_scored_or_with_a_reason(loaded, tmp_path: Path) -> None:
    lines = [
        json.dumps(TRAIN[0]),
        "not json",
        json.dumps({"prompt": "a", "response": ""}),
        json.dumps({"prompt": "long", "response": "x" * 500}),
        json.dumps(TRAIN[0]),
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines))
    rows = fv.read_rows(path, on_bad_row="skip")
    scores = fv.value_dataset(rows, VALIDATION, model=loaded)
    assert scores["reason"].to_list() == [None, "unreadable", "no_response", None, None]
    assert scores["truncated"].to_list() == [False, False, False, True, False]
    assert scores["status"].to_list() == ["scored", "skipped", "skipped", "scored", "scored"]
    assert scores["value"].is_null().to_list() == [False, True, True, False, False]
    assert scores["value"][0] == pytest.approx(scores["value"][4])
    pairs = fv.pairwise_values(rows, VALIDATION, model=loaded)
    assert np.isnan(pairs).all(axis=1).tolist() == [False, True, True, False, False]
    assert np.isnan(pairs).sum() == 2 * len(VALIDATION)


def test_rows_the_model_cannot_digest_are_skipped_alone() -> None:
    broken = tiny_loaded("llama", torch.float32)
    rows = [*TRAIN[:3], {"prompt": "z", "response": "~"}]
    expected = fv.value_dataset(TRAIN[:3], VALIDATION, model=broken)
    tilde = broken.tokenizer("~")["input_ids"][0]
    broken.model.get_input_embeddings().weight.data[tilde] = torch.inf
    scores = fv.value_dataset(rows, VALIDATION, model=broken)
    assert scores["reason"].to_list() == [None, None, None, "non_finite"]
    assert scores["value"].is_null().to_list() == [False, False, False, True]
    np.testing.assert_allclose(scores["value"][:3], expected["value"], rtol=1e-4)


def test_empty_training_set(loaded) -> None:
    scores = fv.value_dataset(fv.read_rows([]), VALIDATION, model=loaded)
    assert len(scores) == 0
    assert "value" in scores.columns


def test_some_validation_rows_without_group(loaded) -> None:
    rows = [VALIDATION[0], {"prompt": "a", "response": "b"}]
    with pytest.raises(ValueError, match="1 of 2 validation rows name no group"):
        fv.value_dataset(TRAIN, rows, model=loaded, columns=GROUPED)


def test_a_group_may_not_take_the_name_of_another_column(loaded) -> None:
    rows = [row | {"kind": "source"} for row in VALIDATION]
    with pytest.raises(ValueError, match="need the column 'value_source'"):
        fv.value_dataset(TRAIN, rows, model=loaded, columns=GROUPED)


def test_validation_without_a_usable_row(loaded) -> None:
    """Why not is counted."""
    rows = [{"prompt": "a", "response": ""}] * 2
    with pytest.raises(
        ValueError,
        match=r"No validation row of group 'all' could be used.*: 2 × no_response \(no as",
    ):
        fv.value_dataset(TRAIN, rows, model=loaded)


def test_progress_counts_every_row(loaded) -> None:
    seen: list[tuple[int, int]] = []
    frame = fv.read_rows(TRAIN)
    options = ValuationOptions(batch_tokens=100, window_rows=5)
    list(feature_parts(loaded, frame, options, lambda *counts: seen.append(counts)))
    assert seen[-1][0] == len(TRAIN)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
