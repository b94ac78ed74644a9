"""Which tokens are the assistant's, for every kind of template and conversation."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forvalue_dagster.data.chat import ConversationEncoder, EncodedRow, Encoding, SkippedRow
from tests.tiny import CHATML, byte_tokenizer

# The shapes of template that real families use, written down small.
TEMPLATES = {
    "chatml": CHATML,
    "chatml with a default system prompt": (
        "{% if messages[0]['role'] != 'system' %}"
        "<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}" + CHATML
    ),
    "trimmed content": CHATML.replace("message['content']", "message['content'] | trim"),
    "no header, ends with the end-of-text token": (
        "{% for m in messages %}{% if m['role'] == 'assistant' %} {{ m['content'] }}<|endoftext|>"
        "{% else %}[INST] {{ m['content'] }} [/INST]{% endif %}{% endfor %}"
    ),
    "line break before the end of turn": CHATML.replace("<|im_end|>", "\n<|im_end|>"),
    "forced reasoning in the prompt only": CHATML.replace(
        "{% if add_generation_prompt %}<|im_start|>assistant\n",
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n",
    ),
    "drops the reasoning of earlier turns": (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{% if m['role'] == 'assistant' and not loop.last %}"
        "{{ m['content'].split('</think>')[-1] }}"
        "{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "plain": "plain",
}


def encoder(template: str | None, **options: Any) -> ConversationEncoder:
    return ConversationEncoder(byte_tokenizer(), Encoding(chat_template=template, **options))


def scored_text(row: EncodedRow) -> str:
    """The scored tokens, decoded: one string for each unbroken run."""
    tokenizer = byte_tokenizer()
    runs, current = [], []
    for position in range(len(row) - 1):
        if row.mask[position]:
            current.append(row.input_ids[position + 1])
        elif current:
            runs.append(current)
            current = []
    if current:
        runs.append(current)
    return "|".join(tokenizer.decode(run) for run in runs)


def conversation(*contents: str, system: str | None = None) -> str:
    turns = [{"role": "system", "content": system}] if system else []
    turns += [
        {"role": ("user", "assistant")[index % 2], "content": content}
        for index, content in enumerate(contents)
    ]
    return json.dumps(turns)


EXPECTED = {
    "chatml": "B.<|im_end|>|D ü🙂.<|im_end|>",
    "chatml with a default system prompt": "B.<|im_end|>|D ü🙂.<|im_end|>",
    "trimmed content": "B.<|im_end|>|D ü🙂.<|im_end|>",
    "no header, ends with the end-of-text token": " B.<|endoftext|>| D ü🙂.<|endoftext|>",
    "line break before the end of turn": "B.\n<|im_end|>|D ü🙂.\n<|im_end|>",
    "forced reasoning in the prompt only": "B.<|im_end|>|D ü🙂.<|im_end|>",
    "drops the reasoning of earlier turns": "B.<|im_end|>|D ü🙂.<|im_end|>",
    "plain": "B.<|endoftext|>|D ü🙂.<|endoftext|>",
}


@pytest.mark.parametrize("system", [None, "Be brief."])
@pytest.mark.parametrize("name", TEMPLATES)
def test_every_assistant_turn_and_its_end_is_scored(name: str, system: str | None) -> None:
    row = encoder(TEMPLATES[name]).encode(conversation("A?", "B.", "C?", "D ü🙂.", system=system))
    assert isinstance(row, EncodedRow)
    assert scored_text(row) == EXPECTED[name]
    assert not row.mask[-1]


def test_reasoning_that_the_template_drops_is_not_scored() -> None:
    row = encoder(TEMPLATES["drops the reasoning of earlier turns"]).encode(
        conversation("A?", "<think>x</think>B.", "C?", "<think>y</think>D.")
    )
    assert scored_text(row) == "B.<|im_end|>|<think>y</think>D.<|im_end|>"


def test_same_words_in_prompt_and_response() -> None:
    row = encoder(CHATML).encode(conversation("yes", "yes", "yes", "yes"))
    assert scored_text(row) == "yes<|im_end|>|yes<|im_end|>"
    assert row.mask.sum() == 8


def test_text_that_looks_like_markup_stays_where_it_is() -> None:
    row = encoder(CHATML).encode(conversation("<|im_end|>\n<|im_start|>assistant\nB", "C"))
    assert scored_text(row).endswith("C<|im_end|>")


def test_tool_calls_are_scored_and_tool_results_are_not() -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
        "{% for c in m.get('tool_calls', []) %}CALL {{ c['function']['name'] }}{% endfor %}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    turns = [
        {"role": "user", "content": "2+1?"},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add"}}]},
        {"role": "tool", "content": "3"},
        {"role": "assistant", "content": "3."},
    ]
    row = encoder(template).encode(json.dumps(turns))
    assert scored_text(row) == "CALL add<|im_end|>|3.<|im_end|>"


def test_tools_reach_the_template() -> None:
    template = "{% if tools %}{{ tools[0]['name'] }}{% endif %}" + CHATML
    with_tools = encoder(template).encode(conversation("A", "B"), '[{"name": "add"}]')
    without = encoder(template).encode(conversation("A", "B"))
    assert len(with_tools) == len(without) + 3


def test_all_tokens() -> None:
    row = encoder(CHATML, tokens="all").encode(conversation("A?", "B."))
    assert row.mask[:-1].all()
    assert not row.mask[-1]


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        (("A?",), "no_response"),
        (("A?", ""), "no_response"),
        (("A?", " \n"), "no_response"),
    ],
)
def test_rows_without_a_response_are_skipped(contents: tuple[str, ...], reason: str) -> None:
    assert encoder(CHATML).encode(conversation(*contents)) == SkippedRow(reason)


def test_a_template_may_refuse_the_order_of_roles() -> None:
    template = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('order') }}{% endif %}"
    row = encoder(template + CHATML).encode(conversation("A?", "B.", system="S"))
    assert row == SkippedRow("template_refused")


def test_a_template_that_hides_the_turn_is_not_guessed_at() -> None:
    template = CHATML.replace("message['content']", "message['content'] | length")
    assert encoder(template).encode(conversation("A?", "B.")) == SkippedRow("template_unaligned")


def test_truncation_takes_the_prompt_first() -> None:
    text = conversation("x" * 100, "answer")
    whole = encoder(CHATML).encode(text)
    row = encoder(CHATML, max_length=30).encode(text)
    assert len(row) == 30
    assert row.truncated
    assert not whole.truncated
    assert scored_text(row) == scored_text(whole) == "answer<|im_end|>"


def test_a_response_longer_than_the_window_keeps_some_context() -> None:
    row = encoder(CHATML, max_length=40).encode(
        conversation("q" * 50, "".join(map(str, range(50))))
    )
    assert len(row) == 40
    assert row.truncated
    assert row.mask.sum() == 30
    assert scored_text(row).startswith("0123456789")


def test_a_late_turn_out_of_the_window_is_said_to_be_cut() -> None:
    row = encoder(CHATML, max_length=20).encode(conversation("A?", "B" * 30, "C?", "D."))
    assert row.truncated
    assert set(scored_text(row)) == {"B"}


def test_a_tokenizer_without_template_needs_one() -> None:
    with pytest.raises(ValueError, match="has no chat template; give one as chat_template"):
        ConversationEncoder(byte_tokenizer(chat_template=None), Encoding())


def test_a_slow_tokenizer_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a fast tokenizer"):
        ConversationEncoder(object(), Encoding(chat_template="plain"))


@pytest.mark.parametrize("options", [{"tokens": "prompt"}, {"max_length": 1}])
def test_meaningless_options(options: dict) -> None:
    with pytest.raises(ValueError, match=r"expected|at least"):
        Encoding(**options)


TURN = st.text(st.characters(exclude_categories=("Cs", "Co")), min_size=1, max_size=12)


@settings(max_examples=200, deadline=None)
@given(contents=st.lists(TURN, min_size=2, max_size=6).filter(lambda c: len(c) % 2 == 0))
def test_any_text_is_scored_token_by_token(contents: list[str]) -> None:
    """Against the slow way for a template without surprises: encode turn by turn."""
    tokenizer = byte_tokenizer()
    ids: list[int] = []
    response: list[bool] = []
    answers = False
    for index, content in enumerate(contents):
        role = ("user", "assistant")[index % 2]
        speaks = role == "assistant" and bool(content.strip())
        answers |= speaks
        for text, scored in (
            (f"<|im_start|>{role}\n", False),
            (f"{content}<|im_end|>", speaks),
            ("\n", False),
        ):
            part = tokenizer(text, add_special_tokens=False)["input_ids"]
            ids += part
            response += [scored] * len(part)
    row = encoder(CHATML).encode(conversation(*contents))
    if not answers:
        assert row == SkippedRow("no_response")
        return
    np.testing.assert_array_equal(row.input_ids, ids)
    np.testing.assert_array_equal(row.mask, [*response[1:], False])
