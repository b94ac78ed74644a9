"""Forms of rows: which columns hold a conversation, found by their names or configured."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import Literal

from forvalue_dagster.data.columns import (
    CHOSEN,
    FUNCTIONS,
    HISTORY,
    IMAGES,
    LABEL,
    MEDIA,
    REJECTED,
    SYSTEM,
    TOOLS,
    Columns,
)

MESSAGES = ("messages", "conversations", "conversation")
_PROMPTS = ("prompt", "question", "problem", "query", "instruction", "input")
_RESPONSES = ("response", "completion", "output", "answer", "solution")
# The first pair of names that a row has is its form.
_PAIRS = tuple(
    dict.fromkeys(
        (
            ("instruction", "output"),
            ("prompt", "response"),
            ("prompt", "completion"),
            ("question", "answer"),
            ("problem", "solution"),
            ("query", "response"),
            ("instruction", "response"),
            ("input", "output"),
            *product(_PROMPTS, _RESPONSES),
            ("question", "answers"),
            *product(("human", "user"), ("assistant", "gpt", "bot", "chatgpt")),
        )
    )
)
# Further columns of a prompt, in the order in which they are joined.
_BESIDE_A_PROMPT = ("input", "context")
_BESIDE_AN_INSTRUCTION = ("question", "problem", "query", *_BESIDE_A_PROMPT)
# Names of columns that may be part of the conversation. `user` is mostly an id.
_SUSPICIOUS = frozenset(
    (
        *(*MESSAGES, *_PROMPTS, *_RESPONSES, "answers", "context", "score", "text", "objects"),
        *("options", "choices", "passage", "document", "documents", "article", "background"),
        *("responses", "completions", "outputs", "solutions", "turns", "dialog", "dialogue"),
        *("chat", "chat_history", "conversation_history", "dialog_history", "dialogue_history"),
        *("system_message", "system_instruction", "system_instructions", "instructions"),
        *("reasoning", "reasoning_content", "thinking", "thought", "thoughts", "rationale"),
        *("chain_of_thought", "cot", "explanation", "role", "speaker", "parent_id", "segments"),
        *("weight", "weights", "train", "masked", "loss", "loss_weight", "loss_weights"),
        *("loss_mask", "train_on_input", "train_on_inputs", "train_on_prompt", "winner"),
    )
) | {*SYSTEM, *HISTORY, *TOOLS, *FUNCTIONS, *CHOSEN, *REJECTED, *LABEL, *IMAGES, *MEDIA}
_ONE_OF_SEVERAL = re.compile(
    rf"(?:{'|'.join((*_PROMPTS, *_RESPONSES, *MESSAGES, *CHOSEN, *REJECTED, 'context'))})"
    r"_?(?:[a-dj-k]|\d{1,2})"
)
_WORD = re.compile(r"(?<=[a-z])(?=[A-Z])|[\s.-]+")

Name = Literal["chat", "prompt and response", "preference", "text"]


def is_like_conversation(name: str) -> bool:
    """Whether a column or key is named like a part of a conversation: `context`, `systemPrompt`."""
    plain = _WORD.sub("_", name.strip()).casefold()
    return plain in _SUSPICIOUS or _ONE_OF_SEVERAL.fullmatch(plain) is not None


def is_one_of_several(name: str) -> bool:
    """Whether a column is named like one of several answers or prompts: `response_a`."""
    return _ONE_OF_SEVERAL.fullmatch(name.casefold()) is not None


@dataclass(frozen=True)
class Form:
    """The columns of a row that hold its conversation, by the names in the row.

    Attributes:
        name: name of the form.
        main: the columns without which the row is not of this form.
        messages: column with messages.
        prompt: columns that make the prompt.
        response: column with the response.
        chosen: column with the chosen answer.
        text: column with text alone.
        beside: role → further column, which may occur with any form.
    """

    name: Name
    main: tuple[str, ...]
    messages: str | None = None
    prompt: tuple[str, ...] = ()
    response: str | None = None
    chosen: str | None = None
    text: str | None = None
    beside: Mapping[str, str] = field(default_factory=dict)

    @property
    def own(self) -> set[str]:
        """The columns that no row of another form may have."""
        return {*self.main, *self.prompt}

    @cached_property
    def used(self) -> dict[str, str]:
        """Each used column → what it is read as."""
        own = {"messages": self.messages, "response": self.response, "text": self.text}
        own |= {"chosen": self.chosen, **self.beside}
        named = {column: role for role, column in own.items() if column is not None}
        return dict.fromkeys(self.prompt, "prompt") | named

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(self.main)})"


def needed_columns(columns: Columns) -> tuple[str, ...]:
    """Return the columns that a configuration requires in each row."""
    if columns.is_text:
        return (columns.text or "text",)
    names = (columns.messages, *columns.prompts[:1], columns.response, columns.chosen)
    return tuple(name for name in names if name is not None)


def find_form(present: frozenset[str], columns: Columns) -> Form | None:
    """Return the form of rows that have these columns, or None."""
    # A spelling in lower case comes before another.
    names = {n.casefold(): n for n in sorted(present, key=lambda n: (n == n.casefold(), n))}
    beside = _beside(names, present, columns)
    needed = needed_columns(columns)
    if needed:
        if not present.issuperset(needed):
            return None
        return _named_form(needed, names, present, columns, beside)
    return _detected_form(names, columns, beside)


def _beside(names: Mapping[str, str], present: frozenset[str], columns: Columns) -> dict[str, str]:
    found = {}
    usual = {
        "system": (columns.system, SYSTEM),
        "history": (columns.history, HISTORY),
        "tools": (columns.tools, TOOLS),
        "rejected": (columns.rejected, REJECTED),
        "label": (columns.label, LABEL),
    }
    for role, (given, known) in usual.items():
        if given is not None:
            if given in present:
                found[role] = given
        elif name := _first(known, names):
            found[role] = name
    if "tools" not in found and columns.tools is None and (name := _first(FUNCTIONS, names)):
        found["functions"] = name
    return found


def _first(known: Sequence[str], names: Mapping[str, str]) -> str | None:
    return next((names[name] for name in known if name in names), None)


def _named_form(
    needed: tuple[str, ...],
    names: Mapping[str, str],
    present: frozenset[str],
    columns: Columns,
    beside: dict[str, str],
) -> Form:
    if columns.is_text:
        return Form("text", needed, text=needed[0])
    name: Name = "prompt and response"
    messages = columns.messages
    prompt = tuple(name for name in columns.prompts if name in present)
    if messages is None and not prompt:  # only the chosen answer is named
        messages = _first(MESSAGES, names)
        asked = _asked(names) if messages is None else None
        prompt = () if asked is None else _prompt_columns(asked, names)
    if messages is not None:
        name = "chat"
    if columns.chosen is not None or "rejected" in beside:
        name = "preference"
    return Form(
        name,
        needed,
        messages=messages,
        prompt=prompt,
        response=columns.response,
        chosen=columns.chosen,
        beside=beside,
    )


def _detected_form(
    names: Mapping[str, str], columns: Columns, beside: dict[str, str]
) -> Form | None:
    messages = _first(MESSAGES, names)
    pair = next((pair for pair in _PAIRS if pair[0] in names and pair[1] in names), None)
    chosen = _first(CHOSEN, names)
    if chosen is not None and (messages or pair) and "rejected" not in beside:
        chosen = None  # a column of the user's own, beside a whole conversation
    name: Name = "preference" if chosen or "rejected" in beside else "chat"
    if messages is not None:
        return Form(name, (messages,), messages=messages, chosen=chosen, beside=beside)
    if chosen is not None:
        asked = _asked(names)
        prompts = () if asked is None else _prompt_columns(asked, names)
        main = prompts[:1] or (chosen,)
        return Form(name, main, prompt=prompts, chosen=chosen, beside=beside)
    if pair is not None:
        prompt, response = pair
        return Form(
            "preference" if "rejected" in beside else "prompt and response",
            (names[prompt], names[response]),
            prompt=_prompt_columns(prompt, names),
            response=names[response],
            beside=beside,
        )
    if "text" in names:
        return Form("text", (names["text"],), text=names["text"])
    return None


def _asked(names: Mapping[str, str]) -> str | None:
    return next((prompt for prompt in _PROMPTS if prompt in names), None)


def _prompt_columns(main: str, names: Mapping[str, str]) -> tuple[str, ...]:
    """Return the columns of a prompt in order: the instruction first, its subject last."""
    first = [main]
    if main in _BESIDE_AN_INSTRUCTION and "instruction" in names:
        first = ["instruction", main]
    others = _BESIDE_AN_INSTRUCTION if main == "instruction" else _BESIDE_A_PROMPT
    joined = [*first, *(name for name in others if name not in first)]
    return tuple(names[name] for name in joined if name in names)
