"""Encode conversations as tokens: chat template, response mask, truncation."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from itertools import chain
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from forvalue_dagster.data import templates
from forvalue_dagster.data.rows import Message, message_images, message_text
from forvalue_dagster.data.templates import TemplateRefusalError
from forvalue_dagster.data.turns import Rendered, Span, Template, Turns, TurnsNotFoundError
from forvalue_dagster.data.ways_to_write import call_arguments, ways_to_write
from forvalue_dagster.options.model import TEMPLATE_DATE

# Inputs other than the tokens that have an entry for each token: [1, T, …].
TOKEN_ALIGNED = frozenset({"token_type_ids", "mm_token_type_ids", "cross_attention_mask"})


@dataclass(frozen=True)
class Encoding:
    """How conversations become tokens.

    Attributes:
        tokens: score the "response" (every assistant turn, end-of-turn token included) or "all".
        max_length: the window, in tokens.
        chat_template: a Jinja template, the path of one, or the name of one of the tokenizer's;
            "plain" for `templates.PLAIN_TEMPLATE`; None for the tokenizer's.
        template_date: date (ISO) for a template that asks for today's date.
        vocabulary: size of the model's vocabulary; None to trust the tokenizer.
    """

    tokens: Literal["response", "all"] = "response"
    max_length: int = 2048
    chat_template: str | None = None
    template_date: str = TEMPLATE_DATE
    vocabulary: int | None = None

    def __post_init__(self) -> None:
        """Check that each option has a valid value."""
        if self.tokens not in ("response", "all"):
            raise ValueError(f"tokens {self.tokens!r} is unknown; expected 'response' or 'all'.")
        if self.max_length < 2:
            raise ValueError(f"max_length must be at least 2; got {self.max_length}.")
        try:
            date.fromisoformat(self.template_date)
        except ValueError as error:
            raise ValueError(
                f"template_date is {self.template_date!r}; expected a day such as {TEMPLATE_DATE}."
            ) from error


@dataclass(frozen=True)
class EncodedRow:
    """A conversation as tokens.

    Attributes:
        input_ids: [T], int64.
        mask: r [T], bool: True at a position whose *next* token is scored.
        truncated: whether anything fell outside the window.
        prompt_tokens: number of tokens before the first response.
        inputs: further inputs of the model for the row, as its processor made them (images, token
            types); those named in `TOKEN_ALIGNED` are [1, T, …].
    """

    input_ids: NDArray[np.int64]
    mask: NDArray[np.bool_]
    truncated: bool
    prompt_tokens: int = 0
    inputs: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def image_bytes(self) -> int:
        """Memory of the model's inputs other than tokens, in bytes."""
        return sum(values.nbytes for values in self.inputs.values())


@dataclass(frozen=True)
class SkippedRow:
    """A conversation that cannot be scored, with the reason (a key of `SKIP_REASONS`)."""

    reason: str
    truncated: bool = False


@dataclass(frozen=True)
class Tokens:
    """A rendered conversation as tokens, before the window.

    Attributes:
        ids: [T], int64.
        response: [T], bool: part of a response.
        left_out: [T], bool: part of a response that training leaves out.
        image: [T], bool: stands for an image, so never a label.
        inputs: further inputs of the model, as in `EncodedRow`.
    """

    ids: NDArray[np.int64]
    response: NDArray[np.bool_]
    left_out: NDArray[np.bool_]
    image: NDArray[np.bool_]
    inputs: Mapping[str, NDArray[Any]] = field(default_factory=dict)


class ConversationEncoder:
    """Encodes canonical rows with one tokenizer.

    Attributes:
        row_aligned: names in `EncodedRow.inputs` that have one entry for each row of a batch.

    Args:
        tokenizer: a fast tokenizer of transformers.
        encoding: the options.
        chat_template: a chat template to use in place of the tokenizer's own.

    Raises:
        ValueError: if the tokenizer does not say where its tokens are in the text, or has no chat
            template and none is given.
    """

    row_aligned: frozenset[str] = frozenset()

    def __init__(
        self, tokenizer: Any, encoding: Encoding, chat_template: str | None = None
    ) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise ValueError(
                f"{type(tokenizer).__name__} does not report the place of its tokens; expected a "
                "fast tokenizer (a directory with tokenizer.json)."
            )
        own = tokenizer.chat_template if chat_template is None else chat_template
        self._tokenizer = tokenizer
        self._encoding = encoding
        self._plain = encoding.chat_template == templates.PLAIN
        self._templates = {
            name: templates.with_fixed_date(text, encoding.template_date)
            for name, text in templates.chosen_templates(encoding.chat_template, own).items()
        }
        self._known: dict[str, Template] = {}
        special = {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
        words = sorted(special | set(tokenizer.all_special_tokens), key=len, reverse=True)
        # Without special tokens, a pattern that matches nothing.
        self._end_token = re.compile(rf"\s*(?:{'|'.join(map(re.escape, words)) or '(?!)'})")

    def refuse_broken_template(self) -> None:
        """Raise if a template does not work with any conversation.

        Raises:
            ValueError: with the template engine's message.
        """
        for template in self._templates.values():
            templates.refuse_broken(partial(self._render, template, tools=None, prompt=False))

    def encode(
        self, messages: str, tools: str | None = None, images: Sequence[bytes | None] | None = None
    ) -> EncodedRow | SkippedRow:
        """Encode one row.

        Args:
            messages: JSON text of the conversation.
            tools: JSON text of the tool definitions.
            images: bytes of the conversation's images.
        """
        conversation: list[Message] = json.loads(messages)
        if any(message.get("labelled_bad") for message in conversation):
            return SkippedRow("labelled_bad")
        if conversation[0].get("rendered"):
            return self._encode_text(conversation)
        definitions = json.loads(tools) if tools else None
        if not any(_speaks(message) and _trained(message) for message in conversation):
            return SkippedRow("no_response")
        pictures = self._pictures(conversation, images or ())
        if isinstance(pictures, SkippedRow):
            return pictures
        rendered = self._rendered(conversation, definitions)
        if isinstance(rendered, SkippedRow):
            return rendered
        tokens = self._tokenise(rendered, pictures)
        return tokens if isinstance(tokens, SkippedRow) else self._window(tokens)

    def _encode_text(self, parts: Sequence[Message]) -> EncodedRow | SkippedRow:
        """Encode text that is rendered already, without a template."""
        if len(parts) == 1 and self._encoding.tokens == "response":
            return SkippedRow("text_without_response")
        if not _speaks(parts[-1]):
            return SkippedRow("no_response")
        text = "".join(part["content"] for part in parts)
        start = len(text) - len(parts[-1]["content"])
        bos = self._tokenizer.bos_token
        encoded = self._tokenizer(
            text,
            add_special_tokens=bos is None or not text.startswith(bos),
            return_offsets_mapping=True,
        )
        ids = np.asarray(encoded["input_ids"], dtype=np.int64)
        offsets = np.asarray(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)
        (response,) = covered(offsets, [(start, len(text))])
        none = np.zeros_like(response)
        return self._window(Tokens(ids, response, none, none))

    def _pictures(
        self, conversation: Sequence[Message], images: Sequence[bytes | None]
    ) -> Sequence[Any] | SkippedRow:
        """Return the decoded images of a conversation; here, for models that take none."""
        if images or any(message_images(message) for message in conversation):
            return SkippedRow("image_without_vision")
        return ()

    def _rendered(self, conversation: Sequence[Message], tools: Any) -> Rendered | SkippedRow:
        """Render a conversation in the first way of writing it that the template accepts."""
        if tools is not None and not _are_objects(tools):
            return SkippedRow("template_refused")
        reason = None
        for messages in ways_to_write([_without_flag(message) for message in conversation]):
            try:
                found = self._located(messages, conversation, tools)
            except TemplateRefusalError:
                reason = reason or "template_refused"
            except TurnsNotFoundError as error:
                reason = reason or error.reason
            else:
                return found if found.response else SkippedRow("no_response")
        return SkippedRow(reason or "template_refused")

    def _located(
        self, messages: Sequence[Message], flagged: Sequence[Message], tools: Any
    ) -> Rendered:
        turns = Turns(self._template(tools), messages, tools)
        response: list[Span] = []
        left_out: list[Span] = []
        for index, message in enumerate(flagged):
            if _speaks(message) and _trained(message):
                response += turns.spans(index)
            elif _speaks(message) and self._encoding.tokens == "all":
                left_out += turns.spans(index)
        written = "".join(turns.text[start:end] for start, end in response)
        if any(str(arguments) in written for arguments in call_arguments(messages)):
            # Written as Python writes a dict: the template expects JSON text.
            raise TurnsNotFoundError("template_refused")
        return Rendered(turns.text, response, left_out)

    def _template(self, tools: Any) -> Template:
        # The same choice as in transformers.
        name = "tool_use" if tools is not None and "tool_use" in self._templates else "default"
        if name not in self._known:
            text = self._templates[name]
            generated = None
            if templates.marks_generation(text):
                generated = partial(self._render, templates.with_generation_marked(text))
            render = partial(self._render, text)
            self._known[name] = Template(render, generated, self._end_token)
        return self._known[name]

    def _render(self, template: str, messages: Sequence[Message], tools: Any, prompt: bool) -> str:
        """Render messages, with or without a generation prompt after them.

        Raises:
            TemplateRefusalError: if the template refuses.
        """
        render = partial(
            self._tokenizer.apply_chat_template,
            list(messages),
            tools=tools,
            chat_template=template,
            tokenize=False,
            add_generation_prompt=prompt,
        )
        return templates.evaluate(render)

    def _tokenise(self, rendered: Rendered, pictures: Sequence[Any]) -> Tokens | SkippedRow:
        # A chat template writes the special tokens itself; the plain one leaves the first to
        # the tokenizer.
        encoded = self._tokenizer(
            rendered.text, add_special_tokens=self._plain, return_offsets_mapping=True
        )
        ids = np.asarray(encoded["input_ids"], dtype=np.int64)
        flat = chain.from_iterable(encoded["offset_mapping"])
        offsets = np.fromiter(flat, np.int64).reshape(-1, 2)
        response, left_out = covered(offsets, rendered.response, rendered.left_out)
        return Tokens(ids, response, left_out, np.zeros_like(response))

    def _window(self, tokens: Tokens) -> EncodedRow | SkippedRow:
        """Cut to the window: the prompt is cut first, from its beginning.

        Images are never cut, nor is anything in front of one: then the end is cut.
        """
        ids, response, image = tokens.ids, tokens.response, tokens.image
        left_out, own = tokens.left_out, self._encoding.vocabulary
        window = self._encoding.max_length
        truncated = len(ids) > window
        inputs = dict(tokens.inputs)
        if truncated:
            # For a response that fills the window alone, a quarter of the window stays context.
            latest = max(int(response.argmax()) - window // 4, 0)
            start = 0 if image.any() else min(len(ids) - window, latest)
            kept = slice(start, start + window)
            if image[kept].sum() != image.sum():
                return SkippedRow("image_truncated", truncated)
            ids, response, image = ids[kept], response[kept], image[kept]
            left_out = left_out[kept]
            inputs |= {name: inputs[name][:, kept] for name in TOKEN_ALIGNED & inputs.keys()}
        # An image's placeholder is replaced before the embeddings are looked up.
        if own is not None and (ids[~image] >= own).any():
            return SkippedRow("token_without_embedding", truncated)
        scored = response if self._encoding.tokens == "response" else ~left_out
        mask = np.concatenate([(scored & ~image)[1:], [False]])
        if not mask.any() or not response[1:].any():
            return SkippedRow("response_truncated", truncated)
        return EncodedRow(ids, mask, truncated, int(response.argmax()), inputs)


def covered(offsets: NDArray[np.int64], *kinds: Sequence[Span]) -> list[NDArray[np.bool_]]:
    """Return, for each kind of spans, whether each token overlaps any of them.

    Args:
        offsets: start and end of each token in the text [T, 2].
        kinds: spans of the text.
    """
    # Some tokenizers leave leading space out of a token's span: it begins where the last ended.
    previous_end = np.concatenate([[0], np.maximum.accumulate(offsets[:, 1])[:-1]])
    starts = np.minimum(offsets[:, 0], previous_end)
    found = []
    for spans in kinds:
        tokens = np.zeros(len(offsets), dtype=np.bool_)
        for start, end in spans:
            tokens |= (starts < end) & (offsets[:, 1] > start)
        found.append(tokens)
    return found


def _are_objects(tools: Any) -> bool:
    return isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)


def _trained(message: Message) -> bool:
    return message.get("train") is not False


def _without_flag(message: Message) -> Message:
    return {name: value for name, value in message.items() if name != "train"}


def _speaks(message: Message) -> bool:
    reasoning = message.get("reasoning_content")
    return message["role"] == "assistant" and bool(
        message_text(message).strip()
        or message.get("tool_calls")
        or (isinstance(reasoning, str) and reasoning.strip())
    )
