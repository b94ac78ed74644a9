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


def turns(*texts: str) -> dict:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[n % 2], "content": t} for n, t in enumerate(texts)]}


DRESSES = {
    "zero width": "\u200b".join,
    "soft hyphens": lambda text: text.replace("a", "a\u00ad"),
    "Cyrillic": lambda text: text.translate(str.maketrans("aceopxyBHKMT", "асеорхуВНКМТ")),
    "Greek": lambda text: text.translate(str.maketrans("oivABEZHIKMOPTX", "οινΑΒΕΖΗΙΚΜΟΡΤΧ")),
    "accents": lambda text: text.replace("e", "e\u0301").replace("o", "ö"),
    "full width": lambda text: "".join(
        chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text
    ),
    "directions": lambda text: f"\u202d{text}\u202c",
    "mathematical": lambda text: text.translate({ord("h"): "\U0001d421", ord("l"): "\U0001d425"}),
}


@pytest.mark.parametrize("dress", DRESSES.values(), ids=DRESSES)
def test_letters_that_look_alike_hide_nothing(dress) -> None:
    assert leaks({"prompt": dress(PROMPT), "response": dress(RESPONSE)}) == [(0, 1, "row")]


@pytest.mark.parametrize(
    "row",
    [
        turns(PROMPT, RESPONSE, "Thanks.", "Any time."),
        turns("Hello.", "Hi.", PROMPT, RESPONSE),
        turns("Hello.", "Hi.", PROMPT, RESPONSE, "Thanks.", "Any time."),
        turns("Hello.", "Hi.", PROMPT.replace("o", "о"), RESPONSE, "Thanks."),
    ],
    ids=["turn after", "turn before", "turns around", "look-alikes, too"],
)
def test_another_turn_hides_nothing(row: dict) -> None:
    assert leaks(FRESH, row) == [(1, 1, "row")]


def test_a_shared_greeting_is_no_leak() -> None:
    validation = read_rows(
        [turns("Hello.", "Hi.", "What is the tallest hill?", "The highest one.")]
    )
    assert find_leaks(read_rows([turns("Hello.", "Hi.", *FRESH.values())]), validation).is_empty()


def test_rows_of_a_word_or_two() -> None:
    validation = read_rows([{"prompt": "abcdabdcabcc", "response": "dcbaaccbdaba"}])
    hidden = read_rows(
        [
            {"prompt": "abcdabdcabcc", "response": "dcbaaccbdaba"},
            {"prompt": "\u200b".join("abcdabdcabcc"), "response": "dcbаaccbdaba"},
            {"prompt": "abcdabdcabcc", "response": "dcbaaccbdaba d"},
            {"prompt": "x abcdabdcabcc", "response": "dcbaaccbdaba"},
            {"prompt": "", "response": "abcdabdcabcc dcbaaccbdaba d"},
            {"prompt": "ddddaaaabbbb", "response": "ccccaaaadddd"},
        ]
    )
    found = find_leaks(hidden, validation)
    told = dict(found.select("row", "kind").iter_rows())
    assert told == {0: "row", 1: "row", 2: "prompt", 3: "near", 4: "near"}


def test_the_same_words_in_another_script_are_not_lost() -> None:
    """Folding look-alikes together leaves Russian and Greek, in capitals or not, as they match."""
    russian = {"prompt": "Где находится Москва?", "response": "Москва стоит на реке Москве."}
    greek = {"prompt": "Πού είναι η Αθήνα;", "response": "Η Αθήνα είναι στην Αττική, νότια."}
    validation = read_rows([russian, greek])
    shouted = [{name: text.upper() for name, text in row.items()} for row in (russian, greek)]
    assert find_leaks(read_rows(shouted), validation)["kind"].to_list() == ["row", "row"]
