"""The templates of real families, against renderings that know nothing of how turns are found.

Some of them come in two versions, one of which says in `{% generation %}` blocks what the
assistant wrote: there the blocks, read by transformers, are the reference. For the others a turn
is what its rendering adds to its prompt, and every word of the conversation is one of its own, so
that it can be sought in what is scored. The templates lie beside the project's data.
"""

from __future__ import annotations

import copy
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from jinja2.exceptions import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from forvalue_dagster.data.chat import ConversationEncoder, Encoding
from forvalue_dagster.data.turns import Rendered
from tests.data.test_turns import answer, result, user
from tests.tiny import byte_tokenizer

FOLDER = Path(os.environ.get("FORVALUE_SHARED_DATA", "../shared/data")) / "chat_templates"
FILES = sorted(FOLDER.glob("*/*.jinja"))
pytestmark = pytest.mark.skipif(not FILES, reason=f"no templates in {FOLDER}")

BOOKING = {
    "name": "book",
    "description": "Books a table.",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "Where."},
            "people": {"type": "integer", "description": "How many."},
        },
        "required": ["city"],
    },
}
TOOLS = [{"type": "function", "function": BOOKING}]


def booking(*cities: str, text: str = "") -> dict[str, Any]:
    calls = [
        {
            "id": f"call{number:05d}",
            "type": "function",
            "function": {"name": "book", "arguments": {"city": city, "people": 2}},
        }
        for number, city in enumerate(cities)
    ]
    return answer(text, tool_calls=calls)


def booked(number: int, text: str) -> dict[str, Any]:
    return result(text, tool_call_id=f"call{number:05d}", name="book")


FIRST, SECOND = [user("Qone?"), answer("Aone.")], [user("Qtwo?"), answer("Atwo.")]
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one turn": FIRST,
    "two turns": FIRST + SECOND,
    "system prompt": [{"role": "system", "content": "Sone."}, *FIRST, *SECOND],
    "call": [user("Qone?"), booking("Oslo"), booked(0, "Rone"), answer("Atwo.")],
    "parallel calls": [
        *(user("Qone?"), booking("Oslo", "Rome"), booked(0, "Rone"), booked(1, "Rtwo")),
        answer("Atwo."),
    ],
    "reasoning": [
        *(user("Qone?"), answer("Aone.", reasoning_content="Tone")),
        *(user("Qtwo?"), answer("Atwo.", reasoning_content="Ttwo")),
    ],
    "text beside a call": [
        *(user("Qone?"), booking("Oslo", text="Lone.")),
        *(booked(0, "Rone"), answer("Aone."), *SECOND),
    ],
    "question at the end": [*FIRST, user("Qtwo?")],
    "call at the end": [user("Qone?"), booking("Oslo")],
}
OURS = re.compile(r"A(?:one|two)\.|T(?:one|two)|Lone\.|Oslo|Rome")
OTHERS = re.compile(r"Q(?:one|two)\?|R(?:one|two)|Sone\.")
SPECIAL = re.compile(
    r"<[|｜][^<>|｜'\"\s{}+]*[|｜]>|<\|?[a-z]+(?:_[a-z]+)*\|?>(?<!<think>)|\[gMASK\]"
)
GENERATION = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")
# What the Gemma family opens behind a call, for a result to follow.
OPENED = "<|tool_response>"


def tokenizer_of(template: str) -> Any:
    """A tokenizer whose special tokens are the template's."""
    tokenizer = copy.deepcopy(byte_tokenizer())
    found = {token for token in SPECIAL.findall(template) if "|" in token or "｜" in token}
    found |= {t for t in SPECIAL.findall(template) if re.fullmatch(r"<(?:start|end)_of_\w+>", t)}
    tokenizer.add_special_tokens(
        {
            "bos_token": "<s>",
            "eos_token": "</s>",
            "additional_special_tokens": ["<|im_start|>", "<|im_end|>", *sorted(found)],
        }
    )
    return tokenizer


def without_blocks(template: str) -> str:
    return GENERATION.sub(
        lambda tag: f"{{%{tag[1]} {'endif' if tag[2] else 'if true'} {tag[3]}%}}", template
    )


def tools_of(turns: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
    return TOOLS if any("tool_calls" in turn for turn in turns) else None


def in_parts(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [turn | {"content": [{"type": "text", "text": turn["content"]}]} for turn in turns]


def with_text(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Turns with the arguments of their calls as JSON text."""
    turns = copy.deepcopy(turns)
    for call in (call for turn in turns for call in turn.get("tool_calls", [])):
        call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
    return turns


class Reference:
    """A template as transformers renders it, without our code."""

    def __init__(self, template: str) -> None:
        self.template, self.tokenizer = template, tokenizer_of(template)

    def render(self, turns: list[dict[str, Any]], *, prompt: bool = False) -> str | None:
        try:
            text: str = self.tokenizer.apply_chat_template(
                turns,
                tools=tools_of(turns),
                chat_template=self.template,
                tokenize=False,
                add_generation_prompt=prompt,
            )
        except (TemplateError, TypeError):
            return None
        return text

    def writing(self, turns: list[dict[str, Any]], text: str) -> list[dict[str, Any]] | None:
        """The way to write the turns that comes out as `text`."""
        ways = (turns, with_text(turns), in_parts(turns))
        return next((way for way in ways if self.render(way) == text), None)

    def located(self, turns: list[dict[str, Any]]) -> Any:
        # The date would be another one tomorrow.
        fixed = re.sub(r"strftime_now\([^)]*\)", "'a day'", self.template)
        self.template = fixed
        encoder = ConversationEncoder(self.tokenizer, Encoding(chat_template=fixed))
        return encoder._rendered(turns, tools_of(turns))


def covered(spans: list[tuple[int, int]]) -> set[int]:
    return {place for start, end in spans for place in range(start, end)}


def runs(places: set[int], text: str) -> list[str]:
    """The unbroken pieces of a text at some places, without white space around them."""
    pieces, last = [], -2
    for place in sorted(places):
        if place != last + 1:
            pieces.append("")
        pieces[-1] += text[place]
        last = place
    return [piece.strip() for piece in pieces if piece.strip()]


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_words_and_turns(file: Path, name: str) -> None:
    turns = CONVERSATIONS[name]
    reference = Reference(without_blocks(file.read_text("utf-8")))
    found = reference.located(turns)
    if not isinstance(found, Rendered):
        renderings = [reference.render(way) for way in (turns, with_text(turns), in_parts(turns))]
        if found.reason == "tool_call_unrendered":
            cities = [city for city in ("Oslo", "Rome") if city in str(turns)]
            assert any(text and any(c not in text for c in cities) for text in renderings)
        else:
            assert found.reason == "template_refused"
            assert renderings[0] is None
        return
    text, scored = found.text, covered(found.response)
    for word in OTHERS.finditer(text):
        assert not scored & set(range(*word.span()))
    for word in OURS.finditer(text):
        assert scored >= set(range(*word.span()))
    written = reference.writing(turns, text)
    assert written is not None
    header = None
    for index, turn in enumerate(written):
        if turn["role"] != "assistant":
            continue
        prompt = reference.render(written[:index], prompt=True)
        whole = reference.render(written[: index + 1])
        header = header or (prompt or "")[len(reference.render(written[:index]) or "") :]
        if prompt is None or whole is None or not text.startswith(whole):
            continue
        if whole.startswith(prompt):
            added = whole[len(prompt) :].removeprefix(header).rstrip()
            assert scored >= set(range(len(whole.rstrip()) - len(added), len(whole.rstrip())))
            assert len(prompt) - 1 not in scored


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_blocks_of_the_template(file: Path) -> None:
    template = file.read_text("utf-8")
    if not GENERATION.search(template):
        pytest.skip("the template does not say what the assistant wrote")
    compared = 0
    for turns in CONVERSATIONS.values():
        marked, plain = Reference(template), Reference(without_blocks(template))
        ours, found = marked.located(turns), plain.located(turns)
        assert type(ours) is type(found)
        if not isinstance(ours, Rendered):
            continue
        written = marked.writing(turns, ours.text)
        rendered, blocks = render_jinja_template(
            [written],
            tools=tools_of(turns),
            chat_template=marked.template,
            return_assistant_tokens_mask=True,
            **marked.tokenizer.special_tokens_map,
        )
        assert rendered == [ours.text] == [found.text]
        assert ours.response == [(start, end) for start, end in blocks[0] if start < end]
        # Found without the blocks: all of it but what a prompt writes, and nothing beside it.
        theirs, mine = covered(blocks[0]), covered(found.response)
        prompts = [
            plain.render(written[:index], prompt=True) or ""
            for index, turn in enumerate(turns)
            if turn["role"] == "assistant"
        ]
        for piece in runs(theirs - mine, found.text):
            assert any(piece in prompt[-len(piece) - 20 :] for prompt in prompts)
        assert set(runs(mine - theirs, found.text)) <= {OPENED}
        compared += 1
    assert compared >= 4
