"""Which tokens are the assistant's, for the shapes of template that real families have.

Each template is written small, and what is to be scored is written out.
"""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from forvalue_dagster.data.chat import ConversationEncoder, EncodedRow, Encoding, SkippedRow
from tests.data.test_chat import scored_text
from tests.tiny import CHATML, byte_tokenizer

HEAD = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
TAIL = "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
EACH_CALL = "{% for c in m.get('tool_calls', []) %}"
NAME, ARGUMENTS = "c['function']['name']", "c['function']['arguments']"
TOJSON = (
    f"{HEAD}{{{{ m['content'] }}}}{EACH_CALL}"
    f'{{"name": "{{{{ {NAME} }}}}", "arguments": {{{{ {ARGUMENTS} | tojson }}}}}}'
    f"{{% endfor %}}{TAIL}"
)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def answer(text: str = "", **keys: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **keys}


def result(text: str, **keys: Any) -> dict[str, Any]:
    return {"role": "tool", "content": text, **keys}


def calling(*calls: tuple[str, Any], text: str = "", **keys: Any) -> dict[str, Any]:
    functions = [{"name": name, "arguments": arguments} for name, arguments in calls]
    listed = [{"type": "function", "function": function} for function in functions]
    return answer(text, tool_calls=listed, **keys)


def encoded(
    template: str | None, turns: list[dict[str, Any]], tokenizer: Any = None, **options: Any
) -> EncodedRow | SkippedRow:
    encoder = ConversationEncoder(
        tokenizer or byte_tokenizer(), Encoding(chat_template=template, **options)
    )
    return encoder.encode(json.dumps(turns))


def scored(template: str | None, turns: list[dict[str, Any]], **options: Any) -> str:
    row = encoded(template, turns, **options)
    return row.reason if isinstance(row, SkippedRow) else scored_text(row)


ADDING = [user("1+2?"), calling(("add", {"a": 1, "b": 2})), result("3"), answer("3.")]

# User and plain assistant turns alternate; turns with calls and results are not counted.
ALTERNATING = (
    "{% set ns = namespace(i=0) %}{% for m in messages %}"
    "{% if m['role'] == 'user' or (m['role'] == 'assistant' and not m.get('tool_calls')) %}"
    "{% if (m['role'] == 'user') != (ns.i % 2 == 0) %}{{ raise_exception('order') }}{% endif %}"
    "{% set ns.i = ns.i + 1 %}{% endif %}{% endfor %}{% for m in messages %}"
    "{% if m['role'] == 'user' %}[ASK]{{ m['content'] }}[/ASK]"
    "{% elif m['role'] == 'tool' %}[RESULT]{{ m['content'] }}[/RESULT]"
    "{% elif m.get('tool_calls') %}[CALLS]{{ m['tool_calls'][0]['function'] | tojson }}"
    "<|endoftext|>{% else %} {{ m['content'] }}<|endoftext|>{% endif %}{% endfor %}"
)
# A result is refused unless a call stands before it, and is named after it.
NAMED_RESULT = (
    "{% set ns = namespace(call='') %}{% for m in messages %}{% if m.get('tool_calls') %}"
    "{% set ns.call = m['tool_calls'][0]['function']['name'] %}<|im_start|>assistant to={{ ns.call"
    " }}\n{{ m['tool_calls'][0]['function']['arguments'] | tojson }}<|im_end|>"
    "{% elif m['role'] == 'tool' %}{% if not ns.call %}{{ raise_exception('no call') }}{% endif %}"
    "<|im_start|>{{ ns.call }}\n{{ m['content'] }}<|im_end|>{% else %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
)
# The results of a turn's calls stand inside it, each behind its call or all of them behind all.
INSIDE = (
    "{% for m in messages %}{% if m['role'] != 'tool' %}<|im_start|>{{ m['role'] }}\n"
    "{% set first = loop.index0 + 1 %}{% for c in m.get('tool_calls', []) %}"
    "[call {{ c['function']['name'] }}({{ c['function']['arguments'].values() | join }})]"
    "{% if messages[first + loop.index0] is defined %}"
    "[result {{ messages[first + loop.index0]['content'] }}]{% endif %}{% endfor %}"
    "{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INSIDE_TOGETHER = (
    "{% for m in messages %}{% if m['role'] != 'tool' %}<|im_start|>{{ m['role'] }}\n"
    "{% for c in m.get('tool_calls', []) %}[call {{ c['function']['name'] }}]{% endfor %}"
    "{% if m.get('tool_calls') %}{% set ns = namespace(go=true) %}"
    "{% for r in messages[loop.index0 + 1:] %}{% if r['role'] != 'tool' %}{% set ns.go = false %}"
    "{% endif %}{% if ns.go %}[result of {{ m['tool_calls'][0]['function']['name'] }}: "
    "{{ r['content'] }}]{% endif %}{% endfor %}{% endif %}{{ m['content'] }}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Without results the turn ends in an opened result; the answer goes on in the same turn.
CONTINUED = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<|im_start|>user\n{{ m['content'] }}"
    "<|im_end|>\n<|im_start|>model\n{% elif m['role'] == 'tool' %}{{ m['content'] }}<result|>"
    "{% elif m.get('tool_calls') %}<call>{{ m['tool_calls'][0]['function']['name'] }}</call>"
    "<|result>{% else %}{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (TOJSON, '{"name": "add", "arguments": {"a": 1, "b": 2}}<|im_end|>|3.<|im_end|>'),
        (
            ALTERNATING,
            '[CALLS]{"name": "add", "arguments": {"a": 1, "b": 2}}<|endoftext|>| 3.<|endoftext|>',
        ),
        (NAMED_RESULT, ' to=add\n{"a": 1, "b": 2}<|im_end|>|\n3.<|im_end|>'),
        (INSIDE, "[call add(12)]|<|im_end|>|3.<|im_end|>"),
        (INSIDE_TOGETHER, "[call add]|<|im_end|>|3.<|im_end|>"),
        (CONTINUED, "<call>add</call><|result>|3.<|im_end|>"),
    ],
    ids=["json", "alternating", "named result", "inside", "inside together", "continued"],
)
def test_calls_are_scored_and_their_results_are_not(template: str, expected: str) -> None:
    assert scored(template, ADDING) == expected


@pytest.mark.parametrize("template", [ALTERNATING, NAMED_RESULT, INSIDE, INSIDE_TOGETHER])
def test_a_longer_result_scores_no_more(template: str) -> None:
    long = [*ADDING[:2], result("3, " * 20), ADDING[3]]
    assert scored(template, long) == scored(template, ADDING)


def test_parallel_calls_with_their_results_between_them() -> None:
    turns = [
        user("Sums?"),
        calling(("add", {"a": "x"}), ("sub", {"a": "y"}), text="Both done."),
        result("r1"),
        result("r2"),
        answer("So."),
    ]
    assert scored(INSIDE, turns) == (
        "[call add(x)]|[call sub(y)]|Both done.<|im_end|>|So.<|im_end|>"
    )
    assert scored(INSIDE_TOGETHER, turns) == (
        "[call add][call sub]|Both done.<|im_end|>|So.<|im_end|>"
    )


def test_a_call_at_the_end_and_a_call_beside_text() -> None:
    last = [user("1+2?"), calling(("add", {}), text="Let me see. ")]
    assert scored(TOJSON, last) == 'Let me see. {"name": "add", "arguments": {}}<|im_end|>'


@pytest.mark.parametrize(
    "turn",
    [
        calling(("add", {"a": 1})),
        calling(("add", {"a": 1}), text="Let me see."),
        calling(("add", {})),
        answer(tool_calls=[{}]),
        answer(tool_calls=["add"]),
    ],
)
def test_a_call_that_the_template_does_not_write(turn: dict[str, Any]) -> None:
    assert scored(CHATML, [user("1+2?"), turn]) == "tool_call_unrendered"


def test_the_second_call_of_a_template_that_writes_one() -> None:
    turns = [user("Sums?"), calling(("add", {}), ("sub", {}))]
    assert scored(NAMED_RESULT, turns) == "tool_call_unrendered"


@pytest.mark.parametrize("arguments", [{"a": "é", "b": [1]}, '{"a": "é", "b": [1]}'])
@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("c['function']['arguments'] | tojson", '{"a": "é", "b": [1]}'),
        # Python's own way to write an object is nobody's: the template expects text.
        ("c['function']['arguments']", '{"a": "é", "b": [1]}'),
        ("'args: ' + c['function']['arguments']", 'args: {"a": "é", "b": [1]}'),
        ("c['function']['arguments'].items() | map('first') | join", "ab"),
    ],
    ids=["json", "as it is", "text only", "object only"],
)
def test_a_template_gets_the_kind_of_arguments_that_it_takes(
    arguments: Any, written: str, expected: str
) -> None:
    template = f"{HEAD}{{{{ m['content'] }}}}{EACH_CALL}{{{{ {written} }}}}{{% endfor %}}{TAIL}"
    named = template.replace(EACH_CALL, f"{EACH_CALL}{{{{ {NAME} }}}}: ")
    canonical = json.loads(arguments) if isinstance(arguments, str) else arguments
    turns = [user("?"), calling(("f", canonical))]
    assert scored(named, turns) == f"f: {expected}<|im_end|>"


TWO_ENDS = CHATML.replace(
    "<|im_end|>", "{% if message['role'] == 'assistant' %}<|endoftext|>{% endif %}<|im_end|>"
)
END_OF_ALL = CHATML.replace(
    "{% if add_gen", "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}{% if add_gen"
)
PLAIN_END = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[ASK] {{ m['content'] }} [/ASK]"
    "{% else %} {{ m['content'] }}</s>{% endif %}{% endfor %}"
)
OTHER_END_AT_THE_END = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
    "{% if loop.last %}<|endoftext|>{% else %}<|im_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHAT = [user("A?"), answer("B."), user("C?"), answer("D.")]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (TWO_ENDS, "B.<|endoftext|><|im_end|>|D.<|endoftext|><|im_end|>"),
        (END_OF_ALL, "B.<|im_end|>|D.<|im_end|>\n<|endoftext|>"),
        (PLAIN_END, " B.</s>| D.</s>"),
        (OTHER_END_AT_THE_END, "B.<|im_end|>|D.<|endoftext|>"),
    ],
    ids=["two", "one for all", "plain text", "another at the end"],
)
def test_what_ends_a_turn_is_scored(template: str, expected: str) -> None:
    assert scored(template, CHAT) == expected
    # So it is when the turn is not the last.
    assert scored(template, CHAT[:3]) == expected.split("|D")[0].split("| D")[0]


def test_no_end_is_sought_in_the_next_turn() -> None:
    template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}\n{{ m['content'] }}\n{% else %}"
        "<|im_start|>{{ m['content'] }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>{% endif %}"
    )
    assert scored(template, [user("A?"), answer("B."), answer("C.")]) == "B.|C."


THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think>\n"
    "{{ m.get('reasoning_content', '') | trim }}\n</think>\n\n{% endif %}"
    "{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        # What the prompt does not write, the model does.
        ("", "<think>\n\n</think>\n\nD.<|im_end|>"),
        ("<think>\n", "\n</think>\n\nD.<|im_end|>"),
        ("<think>\n\n</think>\n\n", "D.<|im_end|>"),
    ],
)
def test_an_empty_block_of_reasoning_belongs_to_whom_the_template_says(
    prompt: str, expected: str
) -> None:
    template = THINKING.replace("assistant\n{% endif %}", f"assistant\n{prompt}{{% endif %}}")
    assert scored(template, CHAT) == f"B.<|im_end|>|{expected}"


def test_an_empty_block_that_the_prompt_only_opens() -> None:
    template = CHATML.replace(
        "{{ message['content'] }}",
        "{% if message['role'] == 'assistant' %}<think></think>{% endif %}{{ message['content'] }}",
    ).replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    assert scored(template, CHAT[:2]) == "<think></think>B.<|im_end|>"


def test_reasoning_in_a_key_of_its_own() -> None:
    turns = [user("A?"), answer("B.", reasoning_content="r1"), user("C?")]
    last = [*turns, answer("D.", reasoning_content="r2")]
    assert scored(THINKING, last) == "B.<|im_end|>|<think>\nr2\n</think>\n\nD.<|im_end|>"
    assert scored(CHATML, last) == "B.<|im_end|>|D.<|im_end|>"
    alone = [user("A?"), answer("", reasoning_content="r1")]
    assert scored(THINKING, alone) == "<think>\nr1\n</think>\n\n<|im_end|>"
    assert scored(CHATML, alone) == "no_response"


@pytest.mark.parametrize("content", ["{{ m['content'][-1:] }}", "{{ m['content'] | length }}"])
def test_a_turn_that_cannot_be_told_is_not_guessed_at(content: str) -> None:
    assert scored(f"{HEAD}{content}{TAIL}", [user("A?"), answer("B")]) == "template_unaligned"


@pytest.mark.parametrize(
    "content",
    [
        # How a text begins and ends decides what else is written.
        "{% if m['content'].startswith('B') %}> {% endif %}{{ m['content'] }}",
        "{{ m['content'] }}{% if not m['content'].endswith('.') %}.{% endif %}",
        "{{ m['content'].split('</think>')[-1] | trim }}",
        "{{ m['content'].replace('\n\n', '\n') | upper | capitalize }}",
        "{{ m['content'] | tojson }}",
    ],
)
def test_texts_that_a_template_looks_at_or_rewrites(content: str) -> None:
    template = f"{HEAD}{content}{TAIL}"
    turns = [user("A?"), answer(" B c. ")]
    row = encoded(template, turns)
    text = byte_tokenizer().apply_chat_template(turns, chat_template=template, tokenize=False)
    assert scored_text(row) == text.split("assistant\n")[1].rstrip("\n")


GENERATION = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}"
    "{%- generation -%}\n{{ m['content'] }}<|im_end|>{% endgeneration %}\n"
    "{% else %}{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
)


def test_blocks_that_say_what_the_assistant_wrote_are_the_truth() -> None:
    assert scored(GENERATION, CHAT) == "B.<|im_end|>|D.<|im_end|>"
    without_end = GENERATION.replace(
        "<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>"
    )
    assert scored(without_end, CHAT) == "B.|D."
    in_two = GENERATION.replace(
        "<|im_end|>{% endgen", "{% endgeneration %}|{% generation %}<|im_end|>{% endgen"
    )
    assert scored(in_two, CHAT) == "B.|<|im_end|>|D.|<|im_end|>"


def test_blocks_in_a_macro_or_a_captured_text_are_found_where_they_come_out() -> None:
    macro = (
        "{% macro said(m) %}{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}"
        "{% endmacro %}{% for m in messages %}{% set turn %}<|im_start|>{{ m['role'] }}\n"
        "{% if m['role'] == 'assistant' %}{{ said(m) }}{% else %}{{ m['content'] }}{% endif %}\n"
        "{% endset %}{{ turn }}{% endfor %}"
    )
    assert scored(macro, CHAT) == "B.<|im_end|>|D.<|im_end|>"


def test_blocks_around_another_speaker_are_not_believed() -> None:
    template = (
        "{% generation %}{% for m in messages %}{{ m['content'] }}{% endfor %}{% endgeneration %}"
    )
    assert scored(template, CHAT) == "template_unaligned"
    assert scored(GENERATION.replace("'assistant'", "'nobody'"), CHAT) == "template_unaligned"


@pytest.mark.parametrize("template", [CHATML, GENERATION], ids=["found", "marked"])
def test_a_turn_that_training_leaves_out_is_not_scored(template: str) -> None:
    turns = [user("A?"), answer("B.", train=False), user("C?"), answer("D.", train=True)]
    assert scored(template, turns) == "D.<|im_end|>"
    assert scored(template, turns[:2]) == "no_response"
    row = encoded(template, turns, tokens="all")
    assert "B." not in scored_text(row)
    assert "C?" in scored_text(row)


def test_the_flag_of_a_turn_is_no_business_of_the_template() -> None:
    template = CHATML.replace(
        "{{ message['content'] }}", "{{ message.keys() | sort | join }}:{{ message['content'] }}"
    )
    assert scored(template, [user("A?"), answer("B.", train=True)]) == "contentrole:B.<|im_end|>"


def test_content_in_parts_where_a_template_wants_parts() -> None:
    template = f"{HEAD}{{% for part in m['content'] %}}{{{{ part['text'] }}}}{{% endfor %}}{TAIL}"
    assert scored(template, CHAT) == "B.<|im_end|>|D.<|im_end|>"


def test_marks_that_a_text_holds_already() -> None:
    marks = "\ufdea\ufdd1\ufdec"
    assert scored(CHATML, [user(marks), answer("B.")]) == "template_unaligned"
    assert scored(CHATML, [user("\ufdea\ufdec"), answer("\ufdeb")]) == "\ufdeb<|im_end|>"


def test_a_copy_encodes_alike() -> None:
    encoder = ConversationEncoder(byte_tokenizer(), Encoding(chat_template=GENERATION))
    before = encoder.encode(json.dumps(CHAT))
    again = copy.deepcopy(encoder).encode(json.dumps(CHAT))
    assert scored_text(before) == scored_text(again)
