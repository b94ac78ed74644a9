"""Conversations to tokens: chat template, response mask, truncation.

Which characters of the rendered conversation are the assistant's cannot be read off the text,
and few templates mark it. So each assistant turn is located by rendering: what precedes it is the
conversation up to the turn with a generation prompt; what follows it is found by rendering the
whole conversation once more with the turn's content replaced by a marker. This also holds for
templates that rewrite earlier turns (dropping their reasoning, say).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jinja2.exceptions import TemplateError
from numpy.typing import NDArray

from forvalue_dagster.data.rows import Message, message_images, message_text

# For models without a chat template: turns one after another, each answer ended.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ '\\n' }}{% endif %}"
    "{% endfor %}"
)
# Inputs beside the tokens with a place for each token: [1, T, …].
TOKEN_ALIGNED = frozenset({"token_type_ids", "mm_token_type_ids", "cross_attention_mask"})
_MARKER = "\ue000forvalue\ue001"  # private-use characters, so in no text

# Reasons for which a row leaves unscored, and what they mean.
SKIP_REASONS: dict[str, str] = {
    "unreadable": "the row could not be read as a conversation; `problem` of the raw row says why",
    "no_response": "no assistant turn with any text",
    "labelled_bad": "the row's label says that its answer is a bad one (KTO)",
    "text_without_response": "text alone has no response; score all tokens, or name its marker",
    "response_truncated": "no response token lies inside the model's window",
    "template_refused": "the chat template rejects the order of roles or a field",
    "template_unaligned": "the assistant's turns cannot be located in the rendered text",
    "image_without_vision": "the row has an image and the model reads none",
    "image_missing": "an image's file is not there",
    "image_unreadable": "an image is damaged, without pixels, or of a format that is not read",
    "image_too_large": "an image has more pixels than Pillow's limit",
    "image_refused": "the processor rejects an image, or there are image tokens without an image",
    "image_truncated": "the model's window would cut an image off",
    "non_finite": "the model's output is not finite",
    "out_of_memory": "the row does not fit in memory even alone",
}


@dataclass(frozen=True)
class Encoding:
    """How conversations become tokens.

    Attributes:
        tokens: score the "response" (every assistant turn, end-of-turn token included) or "all".
        max_length: the window, in tokens.
        chat_template: a Jinja template; "plain" for `PLAIN_TEMPLATE`; None for the tokenizer's.
    """

    tokens: Literal["response", "all"] = "response"
    max_length: int = 2048
    chat_template: str | None = None

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if self.tokens not in ("response", "all"):
            raise ValueError(f"tokens {self.tokens!r} is unknown; expected 'response' or 'all'.")
        if self.max_length < 2:
            raise ValueError(f"max_length must be at least 2; got {self.max_length}.")


@dataclass(frozen=True)
class EncodedRow:
    """A conversation as tokens.

    Attributes:
        input_ids: [T], int64.
        mask: r [T], bool: True at a position whose *next* token is scored.
        truncated: whether anything fell outside the window.
        prompt_tokens: how many tokens stand before the first response.
        inputs: what else the model is given for the row, as its processor made it (images, token
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
        """Memory of what the model is given beside tokens."""
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
        image: [T], bool: stands for an image, so never a label.
        inputs: as of `EncodedRow`.
    """

    ids: NDArray[np.int64]
    response: NDArray[np.bool_]
    image: NDArray[np.bool_]
    inputs: Mapping[str, NDArray[Any]] = field(default_factory=dict)


class ConversationEncoder:
    """Encodes canonical rows with one tokenizer.

    Attributes:
        row_aligned: of `EncodedRow.inputs`, those that have one entry for each row of a batch.

    Args:
        tokenizer: a fast tokenizer of transformers.
        encoding: the options.
        chat_template: that takes the place of the tokenizer's own.

    Raises:
        ValueError: if the tokenizer cannot tell where its tokens lie, or has no chat template
            and none is given.
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
        template = encoding.chat_template or chat_template or tokenizer.chat_template
        if template is None:
            raise ValueError(
                "The tokenizer has no chat template; give one as chat_template, or 'plain' to "
                "join the turns by newlines and end each answer with the end-of-text token."
            )
        self._tokenizer = tokenizer
        self._encoding = encoding
        self._template = PLAIN_TEMPLATE if template == "plain" else template
        self._special_ids = {
            token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special
        } | set(tokenizer.all_special_ids)

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
        if not any(_speaks(message) for message in conversation):
            return SkippedRow("no_response")
        pictures = self._pictures(conversation, images or ())
        if isinstance(pictures, SkippedRow):
            return pictures
        try:
            text = self._render(conversation, definitions)
            spans = [
                self._turn_span(text, conversation, definitions, index)
                for index, message in enumerate(conversation)
                if _speaks(message)
            ]
        except (TemplateError, TypeError):
            return SkippedRow("template_refused")
        if any(span is None for span in spans):
            return SkippedRow("template_unaligned")
        tokens = self._tokenise(text, [span for span in spans if span is not None], pictures)
        return tokens if isinstance(tokens, SkippedRow) else self._window(tokens)

    def _encode_text(self, parts: Sequence[Message]) -> EncodedRow | SkippedRow:
        """Encode text that is rendered already: as it stands, without a template."""
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
        response = self._response(text, ids, encoded["offset_mapping"], [(start, len(text))])
        return self._window(Tokens(ids, response, np.zeros_like(response)))

    def _pictures(
        self, conversation: Sequence[Message], images: Sequence[bytes | None]
    ) -> Sequence[Any] | SkippedRow:
        """Return the decoded images of a conversation; here, for models that read none."""
        if images or any(message_images(message) for message in conversation):
            return SkippedRow("image_without_vision")
        return ()

    def _render(
        self, conversation: Sequence[Message], tools: Any, *, generation_prompt: bool = False
    ) -> str:
        rendered: str = self._tokenizer.apply_chat_template(
            conversation,
            tools=tools,
            chat_template=self._template,
            tokenize=False,
            add_generation_prompt=generation_prompt,
        )
        return rendered

    def _turn_span(
        self, text: str, conversation: list[Message], tools: Any, index: int
    ) -> tuple[int, int] | None:
        """Return where the turn's content lies in `text`, without its end-of-turn token."""
        marked = list(conversation)
        marked[index] = {"role": "assistant", "content": _MARKER}
        before, found, after = self._render(marked, tools).partition(_MARKER)
        if not found or _MARKER in after or not text.endswith(after):
            return None
        end = len(text) - len(after)
        # A template may open the answer differently in a prompt (forced reasoning, for example)
        # than in a finished conversation; then what both have in common is the prompt.
        start = _common_prefix(text, before)
        if index > 0:
            try:
                prompt = self._render(conversation[:index], tools, generation_prompt=True)
            except TemplateError:
                prompt = ""
            if prompt and text.startswith(prompt):
                start = len(prompt)
        return (start, end) if start <= end else None

    def _tokenise(
        self, text: str, spans: Sequence[tuple[int, int]], pictures: Sequence[Any]
    ) -> Tokens | SkippedRow:
        # A chat template writes the special tokens itself; the plain one leaves the first to
        # the tokenizer.
        plain = self._template is PLAIN_TEMPLATE
        encoded = self._tokenizer(text, add_special_tokens=plain, return_offsets_mapping=True)
        ids = np.asarray(encoded["input_ids"], dtype=np.int64)
        response = self._response(text, ids, encoded["offset_mapping"], spans)
        return Tokens(ids, response, np.zeros_like(response))

    def _response(
        self,
        text: str,
        ids: NDArray[np.int64],
        offset_mapping: Any,
        spans: Sequence[tuple[int, int]],
    ) -> NDArray[np.bool_]:
        """Return whether each token is part of a response: of its text, or of its end."""
        offsets = np.asarray(offset_mapping, dtype=np.int64).reshape(-1, 2)
        # Some tokenizers trim leading space off a token's place: it begins where the last ended.
        previous_end = np.concatenate([[0], np.maximum.accumulate(offsets[:, 1])[:-1]])
        starts = np.minimum(offsets[:, 0], previous_end)
        ends = offsets[:, 1]
        response = np.zeros(len(ids), dtype=np.bool_)
        for start, end in spans:
            response |= (starts < end) & (ends > start)
            response |= self._end_of_turn(text, ids, starts, ends, end)
        return response

    def _end_of_turn(
        self,
        text: str,
        ids: NDArray[np.int64],
        starts: NDArray[np.int64],
        ends: NDArray[np.int64],
        content_end: int,
    ) -> NDArray[np.bool_]:
        """Mark the special token that ends a turn, and white space between content and it."""
        mark = np.zeros(len(ids), dtype=np.bool_)
        first = int(np.searchsorted(starts, content_end))
        for position in range(first, len(ids)):
            if int(ids[position]) in self._special_ids:
                mark[first : position + 1] = True
                break
            if text[starts[position] : ends[position]].strip():
                break
        return mark

    def _window(self, tokens: Tokens) -> EncodedRow | SkippedRow:
        """Cut to the window: the prompt gives way first, from its beginning.

        Images are never cut, nor is anything in front of one: then it is the end that gives way.
        """
        ids, response, image = tokens.ids, tokens.response, tokens.image
        window = self._encoding.max_length
        truncated = len(ids) > window
        inputs = dict(tokens.inputs)
        if truncated:
            # A response that fills the window alone still keeps a quarter of it as context.
            latest = max(int(response.argmax()) - window // 4, 0)
            start = 0 if image.any() else min(len(ids) - window, latest)
            kept = slice(start, start + window)
            if image[kept].sum() != image.sum():
                return SkippedRow("image_truncated", truncated)
            ids, response, image = ids[kept], response[kept], image[kept]
            inputs |= {name: inputs[name][:, kept] for name in TOKEN_ALIGNED & inputs.keys()}
        scored = response if self._encoding.tokens == "response" else np.ones_like(response)
        mask = np.concatenate([(scored & ~image)[1:], [False]])
        if not mask.any() or not response[1:].any():
            return SkippedRow("response_truncated", truncated)
        return EncodedRow(ids, mask, truncated, int(response.argmax()), inputs)


def _common_prefix(text: str, other: str) -> int:
    """Return how many characters two texts share from their beginning."""
    pairs = enumerate(zip(text, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(text), len(other)))


def _speaks(message: Message) -> bool:
    return message["role"] == "assistant" and bool(
        message_text(message).strip() or message.get("tool_calls")
    )
