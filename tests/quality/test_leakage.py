"""Validation rows that reappear among training rows, dressed up or not."""

from __future__ import annotations

import pytest

from forvalue_dagster.data.read import read_rows
from forvalue_dagster.quality.leakage import find_leaks

WORDS = "the quick brown fox jumps over the lazy dog while seven small birds sing in an old oak"
ENGLISH = [
    {"prompt": f"Question {n}: why does {WORDS} {n}?", "response": f"Because {WORDS} at {n}."}
    for n in range(0, 30, 7)
]
VALIDATION = read_rows(
    [
        *ENGLISH,
        {
            "prompt": "\u4f60\u597d\u5417\uff1f",
            "response": "\u6211\u5f88\u597d\uff0c\u8c22\u8c22\u3002",
        },
    ]
)


def leaks(*rows: dict) -> list[tuple[int, int, str]]:
    found = find_leaks(read_rows(list(rows)), VALIDATION)
    return list(found.select("row", "validation_row", "kind").iter_rows())


FRESH = {"prompt": "What is the capital of Peru?", "response": "Lima, on the Pacific coast."}
PROMPT, RESPONSE = f"Question 7: why does {WORDS} 7?", f"Because {WORDS} at 7."


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"prompt": PROMPT, "response": RESPONSE}, "row"),
        ({"prompt": PROMPT.upper(), "response": f"  {RESPONSE[:-1]}!!"}, "row"),
        (
            {
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": PROMPT},
                    {"role": "assistant", "content": RESPONSE},
                ]
            },
            "row",
        ),
        ({"prompt": PROMPT, "response": "No idea."}, "prompt"),
        ({"prompt": PROMPT, "response": RESPONSE + " So it is."}, "prompt"),
        ({"prompt": "Say: " + PROMPT, "response": RESPONSE + " Indeed."}, "near"),
        ({"prompt": "你好吗", "response": "我很好 谢谢"}, "row"),
    ],
    ids=["same", "dressed up", "chat", "other answer", "longer", "a few words more", "no spaces"],
)
def test_a_leak_is_found(row: dict, kind: str) -> None:
    where = 5 if "你" in str(row) else 1
    assert leaks(FRESH, row) == [(1, where, kind)]


def test_fresh_rows_are_no_leaks() -> None:
    assert leaks(FRESH, {"prompt": "Why?", "response": f"The quick fox, {WORDS[:20]}"}) == []
    bad = read_rows([{"text": 1}, FRESH], on_bad_row="skip")
    assert find_leaks(bad, VALIDATION).is_empty()
    assert find_leaks(bad.head(0), VALIDATION).is_empty()
    assert find_leaks(VALIDATION, bad).is_empty()


def test_no_text_in_what_is_told() -> None:
    found = find_leaks(read_rows([{"prompt": PROMPT, "response": RESPONSE}]), VALIDATION)
    assert "fox" not in str(found.to_dicts())
