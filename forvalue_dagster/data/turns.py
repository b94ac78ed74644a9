"""Find the assistant's turns in a rendered conversation.

A template with `{% generation %}` blocks marks them itself. Otherwise a turn begins where its
prompt ends: the messages before it, rendered with a generation prompt. It ends after the last of
its own texts (found by `marks`), together with what the template writes there even at the end of
a conversation: closing brackets of a call, end tokens. Tool results inside the turn are left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from forvalue_dagster.data.marks import STYLES, Rendering, Style, read_marks, with_marks
from forvalue_dagster.data.overlap import OPENING, covered_by_prompt, shared
from forvalue_dagster.data.rows import Message
from forvalue_dagster.data.templates import TemplateRefusalError

Span = tuple[int, int]
Render = Callable[[Sequence[Message], Any, bool], str]

_QUESTION = {"role": "user", "content": "A"}


class TurnsNotFoundError(Exception):
    """The turns cannot be found; `reason` is a key of `skip_reasons.SKIP_REASONS`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Rendered:
    """A rendered conversation.

    Attributes:
        text: the rendered text.
        response: spans of the assistant's turns.
        left_out: spans of the turns that training leaves out.
    """

    text: str
    response: list[Span]
    left_out: list[Span]


@dataclass(frozen=True)
class Template:
    """A chat template.

    Attributes:
        render: function of messages, tool definitions, and whether a generation prompt follows.
        render_generated: the same with the template's `{% generation %}` blocks between marks;
            None if it has none.
        end_token: pattern of white space followed by one of the tokenizer's special tokens.
    """

    render: Render
    render_generated: Render | None
    end_token: re.Pattern[str]

    @cached_property
    def header(self) -> str:
        """The part of the answer that a generation prompt writes; empty if it cannot be found."""
        question, _ = with_marks([_QUESTION], "around")
        try:
            asked = read_marks(self.render(question, None, False))
        except TemplateRefusalError:
            return ""
        behind = asked.text[asked.ends[0] :] if asked.ends else ""
        return self.behind_question[shared(self.behind_question, behind) :]

    @cached_property
    def behind_question(self) -> str:
        """The text that a generation prompt writes after a question; empty if not found."""
        question, _ = with_marks([_QUESTION], "around")
        try:
            prompt = read_marks(self.render(question, None, True))
        except TemplateRefusalError:
            return ""
        return prompt.text[prompt.ends[0] :] if prompt.ends else ""

    @cached_property
    def endless(self) -> bool:
        """Whether only the next message ends a turn."""
        turns = [_QUESTION, {"role": "assistant", "content": "B"}]
        try:
            rendered = read_marks(self.render(with_marks(turns, "around")[0], None, False))
        except TemplateRefusalError:
            return False
        return not rendered.text[rendered.ends.get(1, 0) :].strip()


class Turns:
    """Finds turns in one conversation.

    Attributes:
        text: the rendered conversation.

    Raises:
        TemplateRefusalError: if the template does not render the conversation.
        TurnsNotFoundError: if what it renders depends on the marks, in any style.
    """

    def __init__(self, template: Template, messages: Sequence[Message], tools: Any) -> None:
        self.text = template.render(messages, tools, False)
        self._template = template
        self._tools = tools
        self._messages = messages
        self._style, self._whole = self._marked()
        self._after: dict[int, Rendering | None] = {len(messages) - 1: self._whole}

    def _marked(self) -> tuple[Style, Rendering]:
        for style in STYLES:
            self._marked_messages, self._leaves = with_marks(self._messages, style)
            render = self._template.render_generated or self._template.render
            try:
                whole = read_marks(render(self._marked_messages, self._tools, False))
            except TemplateRefusalError:
                continue
            if whole.text == self.text:
                return style, whole
        raise TurnsNotFoundError("template_unaligned")

    def spans(self, index: int) -> list[Span]:
        """Return the spans of an assistant turn; none if it has only reasoning that is left out.

        Raises:
            TurnsNotFoundError: if the turn, or one of its calls, is not in the rendering.
        """
        own = self._own(index)
        if not own:
            return []
        if self._template.render_generated is not None:
            return self._generated(index)
        first, last = own[0], own[-1]
        start = self._start(index, self._whole.starts.get(first, self._whole.ends[first]))
        if self._others(index, start, self._whole.ends[first]):
            raise TurnsNotFoundError("template_unaligned")
        spans = []
        for before, behind in pairwise(own):
            if gap := self._results(index, before, behind):
                spans.append((start, gap[0]))
                start = gap[1]
        end, rest = self._end(index, last)
        return [*spans, (start, end), *self._late_end(index, end, rest)]

    def _own(self, index: int) -> list[int]:
        """Return the turn's leaves that the template wrote, as they follow one another."""
        places, message = self._whole.ends, self._messages[index]
        calls = bool(message.get("tool_calls"))
        # A template may name a call again with its result: not without results.
        alone = self._alone(index) if calls else None
        mine = [n for n, leaf in enumerate(self._leaves) if leaf.message == index]
        own = [n for n in mine if n in places and (alone is None or n in alone.ends)]
        kinds = {self._leaves[n].kind for n in own}
        if calls and any(self._leaves[n].kind == "call" and n not in own for n in mine):
            raise TurnsNotFoundError("tool_call_unrendered")
        written = {self._leaves[n].kind for n in mine}
        if not kinds and calls:
            raise TurnsNotFoundError("tool_call_unrendered")
        if not calls and "content" in written and "content" not in kinds:
            raise TurnsNotFoundError("template_unaligned")
        return sorted(own, key=places.__getitem__)

    def _generated(self, index: int) -> list[Span]:
        """Return the template's own blocks that belong to a turn."""
        assistants = {i for i, m in enumerate(self._messages) if m["role"] == "assistant"}
        owner: int | None = None
        spans = []
        for start, end in self._whole.generated:
            if start == end:
                continue
            inside = {
                self._leaves[n].message
                for n, place in self._whole.ends.items()
                if start <= self._whole.starts.get(n, place) and place <= end
            }
            if len(inside) > 1 or not inside <= assistants:
                raise TurnsNotFoundError("template_unaligned")
            # A block without text of the turn (its end token alone) goes with the one before it.
            owner = next(iter(inside), owner)
            if owner == index:
                spans.append((start, end))
        if not spans:
            raise TurnsNotFoundError("template_unaligned")
        return spans

    def _start(self, index: int, first: int) -> int:
        """Return where the prompt for a turn ends, at the latest where its own text begins."""
        if self._asked(index, first):
            return first
        header = self._template.header
        start = self._prompt_end(index, first)
        if start is None:
            found = self.text.rfind(header, 0, first) if header else -1
            return found + len(header) if found >= 0 else first
        # The finished conversation may have a header that the prompt leaves to the model.
        again = start + len(header)
        return again if again <= first and self.text.startswith(header, start) else start

    def _asked(self, index: int, first: int) -> bool:
        """Return whether only the generation prompt is between a question and the answer.

        Most turns begin so, and this saves a rendering.
        """
        question = [n for n, leaf in enumerate(self._leaves) if leaf.message == index - 1]
        if not question or self._messages[index - 1]["role"] != "user":
            return False
        place, behind = self._whole.ends.get(question[-1]), self._template.behind_question
        return place is not None and behind != "" and self.text[place:first] == behind

    def _prompt_end(self, index: int, first: int) -> int | None:
        if index == 0:
            return None
        try:
            prompt = self._rendered(index, prompt=True)
        except TemplateRefusalError:
            return None
        if prompt.text and self.text.startswith(prompt.text):
            return len(prompt.text)
        # Earlier messages may differ in the finished conversation (without their reasoning, say),
        # or the prompt may open the answer differently (with forced reasoning, say). Then the
        # prompt is what both have in common after the text before the turn.
        before = max(prompt.ends, key=prompt.ends.__getitem__, default=None)
        place = 0 if before is None else self._whole.ends.get(before)
        if place is None or place > first:
            return None
        tail = prompt.text if before is None else prompt.text[prompt.ends[before] :]
        header = self._template.header
        found = self.text.find(header, place, first) if header else -1
        return (
            found + len(header)
            if found >= 0
            else place + covered_by_prompt(self.text[place:first], tail)
        )

    def _end(self, index: int, leaf: int) -> tuple[int, str]:
        """Return where a turn ends that has no text of its own after a leaf.

        Returns:
            The place, and the further text that would end a conversation there.
        """
        place = self._whole.ends[leaf]
        behind = self.text[place : self._next(index, place)]
        expected = self._tail(index, leaf)
        skipped = len(behind) - len(behind.lstrip())
        expected = expected.lstrip()
        common = shared(behind[skipped:], expected)
        end = place + len(behind[: skipped + common].rstrip()) if common else place
        rest = expected[common:]
        tokens = self._template.end_token.finditer(self.text, place, end)
        ended = any(token.end() == end for token in tokens)
        # There is no end, or a different one than at the end of a conversation.
        other = bool(self._template.end_token.match(rest)) or self._template.endless
        token = self._template.end_token.match(self.text, end)
        if token and (end == place or (other and not ended)):
            begins_turn = self._template.header.lstrip().startswith(token[0].lstrip())
            end = end if begins_turn else token.end()
        return end, rest.strip()

    def _tail(self, index: int, leaf: int) -> str:
        """Return the text after a turn's last text at the end of a conversation."""
        last = len(self._messages) - 1
        alike = all(
            self._messages[i]["role"] == "assistant" and not self._messages[i].get("tool_calls")
            for i in (index, last)
        )
        if alike and self._style != "inside":
            ends = [p for n, p in self._whole.ends.items() if self._leaves[n].message == last]
            if ends:
                return self.text[max(ends) :]
        alone = self._alone(index)
        return alone.text[alone.ends[leaf] :] if alone and leaf in alone.ends else ""

    def _alone(self, index: int) -> Rendering | None:
        """Return the conversation up to and with a turn, if the template renders that."""
        if index not in self._after:
            try:
                self._after[index] = self._rendered(index + 1, prompt=False)
            except TemplateRefusalError:
                self._after[index] = None
        return self._after[index]

    def _rendered(self, messages: int, *, prompt: bool) -> Rendering:
        """Render the first messages with marks."""
        marked = self._marked_messages[:messages]
        return read_marks(self._template.render(marked, self._tools, prompt))

    def _others(self, index: int, start: int, end: int) -> list[int]:
        """Return the leaves of other messages between two places."""
        return [
            n
            for n, place in self._whole.ends.items()
            if self._leaves[n].message != index and start < place <= end
        ]

    def _next(self, index: int, place: int) -> int:
        """Return where the first text of another message begins after a place."""
        starts = [
            self._whole.starts.get(n, end)
            for n, end in self._whole.ends.items()
            if self._leaves[n].message != index and end > place
        ]
        return min(starts, default=len(self.text))

    def _results(self, index: int, before: int, behind: int) -> Span | None:
        """Return the span between two of a turn's texts that belongs to other messages."""
        end = self._whole.ends[before]
        start = self._whole.starts.get(behind, self._whole.ends[behind])
        others = self._others(index, end, start)
        if not others:
            return None
        if any(self._messages[self._leaves[n].message]["role"] != "tool" for n in others):
            raise TurnsNotFoundError("template_unaligned")
        alone = self._alone(index)
        known = alone is not None and before in alone.ends and behind in alone.ends
        if alone is None or not known or behind not in alone.starts:
            return end, start
        said = alone.text[alone.ends[before] : alone.starts[behind]]
        closed = shared(self.text[end : self._next(index, end)], said)
        last_result = max(self._whole.ends[n] for n in others)
        opened = shared(self.text[last_result:start][::-1], said[closed:][::-1], OPENING)
        return end + closed, start - opened

    def _late_end(self, index: int, end: int, rest: str) -> list[Span]:
        """Return the end of a turn that the template writes after the results of its calls."""
        if not rest:
            return []
        later = range(index + 1, len(self._messages))
        following = next((i for i in later if self._messages[i]["role"] != "tool"), later.stop)
        ends = [
            p
            for n, p in self._whole.ends.items()
            if index < self._leaves[n].message < following and p > end
        ]
        if not ends or rest in self.text[end : self._next(index, end)]:
            return []
        place = self.text.find(rest, max(ends), self._next(index, max(ends)))
        return [(place, place + len(rest))] if place >= 0 else []
