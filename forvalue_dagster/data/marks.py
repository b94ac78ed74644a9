"""Marks that show where a message's texts are in the rendered conversation.

Where a text is in the rendering cannot be found by searching: the same words may occur elsewhere.
So each text is put between marks, the conversation is rendered, and the marks are removed again,
with their places noted. A mark is made of code points that Unicode does not allow in texts
(noncharacters). If the template behaves differently because of the marks, the rendering without
them differs from the rendering of the unmarked texts, which is noticed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from forvalue_dagster.data.rows import Message

_START, _END, _CLOSE = "\ufdea", "\ufdeb", "\ufdec"
GENERATED_START, GENERATED_END = f"\ufded{_CLOSE}", f"\ufdee{_CLOSE}"
_DIGITS = str.maketrans("0123456789", "".join(map(chr, range(0xFDD0, 0xFDDA))))
_NUMBERS = {digit: number for number, digit in _DIGITS.items()}
_MARK = re.compile(
    f"([{_START}{_END}])([\ufdd0-\ufdd9]+){_CLOSE}|({GENERATED_START}|{GENERATED_END})"
)
_REASONING = ("reasoning_content", "reasoning", "thinking")

# "around" is tried first. Some templates look at how a text begins or ends: no mark may be there.
Style = Literal["around", "behind", "inside"]
STYLES: tuple[Style, ...] = ("around", "behind", "inside")
Kind = Literal["content", "reasoning", "call", "argument"]


@dataclass(frozen=True)
class Leaf:
    """A text of a message: its content, its reasoning, a call's name or a text among arguments."""

    message: int
    kind: Kind


@dataclass(frozen=True)
class Rendering:
    """A rendered conversation without its marks, and where they were.

    Attributes:
        text: the text without marks.
        starts: place of each marked leaf's first character, where it is first rendered.
        ends: place after each leaf's last character (in style "inside", in front of it).
        generated: places of the template's own `{% generation %}` blocks.
    """

    text: str
    starts: dict[int, int] = field(default_factory=dict)
    ends: dict[int, int] = field(default_factory=dict)
    generated: list[tuple[int, int]] = field(default_factory=list)


def read_marks(marked: str) -> Rendering:
    """Remove the marks from a rendering."""
    pieces: list[str] = []
    rendering, opened = Rendering(""), 0
    place = last = 0
    for mark in _MARK.finditer(marked):
        pieces.append(marked[last : mark.start()])
        place += mark.start() - last
        last = mark.end()
        kind, digits, generated = mark.groups()
        if generated == GENERATED_START:
            opened = place
        elif generated:
            rendering.generated.append((opened, place))
        else:
            number = int(digits.translate(_NUMBERS))
            places = rendering.starts if kind == _START else rendering.ends
            places.setdefault(number, place)
    pieces.append(marked[last:])
    return Rendering("".join(pieces), rendering.starts, rendering.ends, rendering.generated)


def with_marks(messages: Sequence[Message], style: Style) -> tuple[list[Message], list[Leaf]]:
    """Return the messages with marks in their texts, and the leaf of each mark's number."""
    leaves: list[Leaf] = []

    def marker(index: int, kind: Kind) -> Callable[[str], str]:
        def marked(text: str) -> str:
            if not text.strip():
                return text
            leaves.append(Leaf(index, kind))
            return _marked(text, len(leaves) - 1, style)

        return marked

    marked_messages = []
    for index, message in enumerate(messages):
        role = message["role"]
        changed: Message = {}
        if style == "around" or role in ("assistant", "tool"):
            changed["content"] = _content(message["content"], marker(index, "content"))
        if role == "assistant":
            for name in _REASONING:
                if isinstance(message.get(name), str):
                    changed[name] = marker(index, "reasoning")(message[name])
            if isinstance(message.get("tool_calls"), list):
                named, inside = marker(index, "call"), marker(index, "argument")
                changed["tool_calls"] = [_call(c, named, inside) for c in message["tool_calls"]]
        marked_messages.append(message | changed)
    return marked_messages, leaves


def _marked(text: str, number: int, style: Style) -> str:
    """Mark a text at places where trimming does not remove the marks."""
    digits = f"{str(number).translate(_DIGITS)}{_CLOSE}"
    first = len(text) - len(text.lstrip())
    last = len(text.rstrip())
    if style == "inside":
        return f"{text[: last - 1]}{_END}{digits}{text[last - 1 :]}"
    start = f"{_START}{digits}" if style == "around" else ""
    return f"{text[:first]}{start}{text[first:last]}{_END}{digits}{text[last:]}"


def _content(content: Any, marked: Callable[[str], str]) -> Any:
    if isinstance(content, str):
        return marked(content)
    return [
        part | {"text": marked(part["text"])} if isinstance(part.get("text"), str) else part
        for part in content
    ]


def _call(call: Any, named: Callable[[str], str], inside: Callable[[str], str]) -> Any:
    if not isinstance(call, dict):
        return call
    changed = dict(call)
    if isinstance(call.get("name"), str):
        changed["name"] = named(call["name"])
    if "function" in call:
        changed["function"] = _call(call["function"], named, inside)
    if "arguments" in call:
        changed["arguments"] = _texts(call["arguments"], inside)
    return changed


def _texts(value: Any, marked: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return marked(value)
    if isinstance(value, dict):
        return {name: _texts(inner, marked) for name, inner in value.items()}
    if isinstance(value, list):
        return [_texts(inner, marked) for inner in value]
    return value
