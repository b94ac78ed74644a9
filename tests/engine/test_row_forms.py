"""Rows of other forms than a conversation, valued."""

from __future__ import annotations

import torch

import forvalue_dagster as fv
from tests.tiny import tiny_loaded

VALIDATION = [{"prompt": f"{n}+1?", "response": f"{n + 1}."} for n in range(3)]


def test_rows_that_are_labelled_bad_are_skipped_and_counted() -> None:
    rows = [{"prompt": "1+1?", "completion": "2.", "label": label} for label in (True, False)]
    scores = fv.value_dataset(
        rows, VALIDATION, model=tiny_loaded("llama", torch.float32), noise=None
    )
    assert scores["status"].to_list() == ["scored", "skipped"]
    assert scores["reason"].to_list() == [None, "labelled_bad"]


def test_text_alone_is_valued_with_all_tokens() -> None:
    model = tiny_loaded("llama", torch.float32)
    rows = [{"text": "Once upon a time."}, {"text": "There was a fox."}]
    scores = fv.value_dataset(rows, VALIDATION, model=model, tokens="all", noise=None)
    assert scores["status"].to_list() == ["scored", "scored"]
    assert scores["value"].is_finite().all()
    scores = fv.value_dataset(rows, VALIDATION, model=model, noise=None)
    assert scores["reason"].to_list() == ["text_without_response"] * 2
    marked = fv.Columns(response_marker="?")
    asked = [{"text": "1+1?2."}]
    scores = fv.value_dataset(asked, asked, model=model, columns=marked, noise=None)
    assert scores["status"].to_list() == ["scored"]
    profile = fv.value_dataset(rows, rows, model=model, tokens="all", noise=None)
    assert (profile["status"] == "scored").all()
