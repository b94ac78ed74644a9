"""Which chat template is meant, what day it writes, and how its refusals are told from faults."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from forvalue_dagster.data import templates
from forvalue_dagster.data.chat import ConversationEncoder, Encoding, SkippedRow
from forvalue_dagster.data.skip_reasons import SKIP_REASONS, counted
from tests.data.test_chat import conversation, scored_text
from tests.tiny import CHATML, byte_tokenizer

DATED = "{{ strftime_now('%d %b %Y') }}\n" + CHATML
NAMED = {"default": CHATML, "tool_use": "{{ tools | tojson }}" + CHATML, "plainer": "P" + CHATML}


def encoder(template: str | None = None, **options: object) -> ConversationEncoder:
    return ConversationEncoder(byte_tokenizer(), Encoding(chat_template=template, **options))


def named_tokenizer() -> object:
    tokenizer = copy.deepcopy(byte_tokenizer())
    tokenizer.chat_template = NAMED
    return tokenizer


def text(encoder: ConversationEncoder, tools: str | None = None) -> str:
    return byte_tokenizer().decode(encoder.encode(conversation("A?", "B."), tools).input_ids)


def test_a_template_by_path(tmp_path: Path) -> None:
    file = tmp_path / "chat.jinja"
    file.write_text(CHATML)
    assert text(encoder(str(file))) == text(encoder(CHATML))


def test_named_templates_are_chosen_as_transformers_chooses() -> None:
    tokenizer = named_tokenizer()
    chosen = ConversationEncoder(tokenizer, Encoding())
    turns = json.loads(conversation("A?", "B."))
    for tools in (None, [{"type": "function", "function": {"name": "add"}}]):
        expected = tokenizer.apply_chat_template(turns, tools=tools, tokenize=False)
        assert text(chosen, tools and json.dumps(tools)) == expected
    assert text(ConversationEncoder(tokenizer, Encoding(chat_template="plainer"))).startswith("P")
    assert text(ConversationEncoder(tokenizer, Encoding(chat_template="plain"))).startswith("A?")


@pytest.mark.parametrize("asked", ["chatml", "no/such/file.jinja", "tool_use", "a\0b", "x" * 9999])
def test_an_unknown_name(asked: str) -> None:
    with pytest.raises(ValueError, match="neither a Jinja template nor a file; expected") as raised:
        encoder(asked)
    assert len(str(raised.value)) < 300


def test_named_templates_without_a_default() -> None:
    tokenizer = named_tokenizer()
    tokenizer.chat_template = {"tool_use": CHATML, "rag": CHATML}
    with pytest.raises(ValueError, match="'rag', 'tool_use' and none is its default; name one"):
        ConversationEncoder(tokenizer, Encoding())


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{% for m in messages %}{{ m.content ",
            r"TemplateSyntaxError: unexpected end.*\(line 1\)",
        ),
        ("{{ messages[0].missing.thing }}", "UndefinedError: 'dict object' has no attribute"),
        ("{{ 'a' + messages }}", "TypeError: can only concatenate str"),
        ("{{ messages | no_such_filter }}", "No filter named 'no_such_filter'"),
        ("{% if 1 %}{% generation %}{% endif %}", "TemplateSyntaxError"),
    ],
)
def test_a_broken_template_says_what_its_engine_says(template: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"(?s)The chat template does not work: .*{message}"):
        encoder(template).refuse_broken_template()


def test_a_template_that_refuses_on_purpose_is_not_broken() -> None:
    strict = (
        "{% if messages[0]['role'] != 'system' %}{{ raise_exception('no') }}{% endif %}" + CHATML
    )
    encoder(strict).refuse_broken_template()
    encoder(CHATML).refuse_broken_template()
    assert encoder(strict).encode(conversation("A?", "B.")) == SkippedRow("template_refused")


def test_a_fault_of_ours_is_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> object:
        raise TypeError("ours")

    monkeypatch.setattr("forvalue_dagster.data.turns.with_marks", broken)
    with pytest.raises(TypeError, match="ours"):
        encoder(CHATML).encode(conversation("A?", "B."))


@pytest.mark.parametrize(
    "fails", ["{{ 'a' + 1 }}", "{{ messages[9].content }}", "{{ {}['a'] + 1 }}"]
)
def test_what_fails_in_a_template_is_a_refusal(fails: str) -> None:
    template = "{% if messages | length > 2 %}" + fails + "{% endif %}" + CHATML
    working = encoder(template)
    assert scored_text(working.encode(conversation("A?", "B."))) == "B.<|im_end|>"
    refused = working.encode(conversation("A?", "B.", "C?", "D."))
    assert refused == SkippedRow("template_refused")


@pytest.mark.parametrize("tools", ['{"name": "add"}', '["add"]', "[1]"])
def test_tools_that_are_no_objects_take_no_other_row_down(tools: str) -> None:
    assert encoder(CHATML).encode(conversation("A?", "B."), tools) == SkippedRow("template_refused")


def test_the_day_is_fixed() -> None:
    assert text(encoder(DATED)).startswith("26 Jul 2024\n")
    assert text(encoder(DATED, template_date="2026-11-28")).startswith("28 Nov 2026\n")
    # As Llama 3 asks: for a day that was given, else for today.
    asked = (
        '{% if date is not defined %}{% set date = strftime_now("%B %d") %}{% endif %}{{ date }}'
    )
    assert text(encoder(asked + CHATML)).startswith("July 26<|im_start|>")
    inside = (
        "{% macro day() %}{{ 'On ' + strftime_now(format='%Y-%m-%d') }}{% endmacro %}{{ day() }}"
    )
    assert text(encoder(inside + CHATML)).startswith("On 2024-07-26<")


def test_a_day_that_cannot_be_fixed_is_refused() -> None:
    with pytest.raises(ValueError, match="asks for today's date in a way that cannot be fixed"):
        encoder("{% set form = '%d' %}{{ strftime_now(form) }}" + CHATML)
    with pytest.raises(ValueError, match="template_date is 'today'; expected a day such as"):
        Encoding(template_date="today")


def test_a_token_that_the_model_has_not() -> None:
    tokenizer = copy.deepcopy(byte_tokenizer())
    tokenizer.add_tokens(["<|extra|>"], special_tokens=True)
    small = ConversationEncoder(tokenizer, Encoding(vocabulary=len(tokenizer) - 1))
    assert scored_text(small.encode(conversation("A?", "B."))) == "B.<|im_end|>"
    for contents in (("<|extra|>?", "B."), ("A?", "<|extra|>")):
        assert small.encode(conversation(*contents)) == SkippedRow("token_without_embedding")


def test_skip_reasons_are_counted() -> None:
    told = counted(["no_response", "template_refused", None, "template_refused", "older"])
    assert told == (
        f"2 × template_refused ({SKIP_REASONS['template_refused']}); "
        f"1 × no_response ({SKIP_REASONS['no_response']}); 1 × older (no longer known)"
    )


def test_generation_blocks_change_nothing_else() -> None:
    marked = (
        "{% for m in messages %}\n  {%- generation %}\n{{ m.content }}\n"
        " {% endgeneration -%}\n{% endfor %}"
    )
    plain = marked.replace("generation", "_").replace("end_", "endif").replace("{%- _", "{%- if 1")
    turns = json.loads(conversation("A?", "B."))
    tokenizer = byte_tokenizer()
    rendered = [
        tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False)
        for template in (marked, plain, templates.with_generation_marked(marked))
    ]
    without = (
        rendered[2].replace(templates.GENERATED_START, "").replace(templates.GENERATED_END, "")
    )
    assert rendered[0] == rendered[1] == without
