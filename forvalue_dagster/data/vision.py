"""Encode conversations with images as tokens and pixels, with the model's own processor.

A processor expands each image's placeholder to as many tokens as the image takes. The assistant's
turns are found in the rendered text, as for text without images, and moved by the length of the
replaced placeholders; the processors' own masks of the assistant's tokens are not used.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forvalue_dagster.data.chat import (
    TOKEN_ALIGNED,
    ConversationEncoder,
    Encoding,
    SkippedRow,
    Tokens,
    covered,
)
from forvalue_dagster.data.images import PictureError, decode_picture, image_digest
from forvalue_dagster.data.prepared_images import CONTENT, PreparedImages, stand_in
from forvalue_dagster.data.rows import Message, message_images
from forvalue_dagster.data.templates import evaluate
from forvalue_dagster.data.turns import Rendered
from forvalue_dagster.data.ways_to_write import in_parts

# For processors without a chat template, as `chat.PLAIN_TEMPLATE`.
_PLAIN_TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image token>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ '\\n' }}"
    "{% endif %}{% endfor %}"
)
_PROBE_SIZE = (64, 48)
# Outputs of a processor that are not inputs of the model.
_OFFSETS, _REPLACED = "offset_mapping", "text_replacement_offsets"


class VisionEncoder(ConversationEncoder):
    """Encodes canonical rows with one processor of transformers.

    Args:
        processor: processor of images and text.
        encoding: the options.
        remembered_images: number of rows whose prepared images are kept, to be used again where the
            same images come again.

    Attributes:
        row_aligned: inputs with one entry for each row of a batch; the others have one for each
            image or patch.

    Raises:
        ValueError: if the processor's tokenizer does not say where its tokens are in the text, or
            has no chat template and none is given.
    """

    def __init__(self, processor: Any, encoding: Encoding, remembered_images: int = 0) -> None:
        super().__init__(processor.tokenizer, encoding, processor.chat_template)
        if self._plain:
            plain = _PLAIN_TEMPLATE.replace("<image token>", processor.image_token)
            self._templates = {"default": plain}
        self._processor = processor
        kinds = (processor.image_token_ids, processor.video_token_ids, processor.audio_token_ids)
        self._image_ids = [token for kind in kinds for token in kind if token is not None]
        # Two images: an input with one entry for both belongs to the row.
        probe = self._processed(processor.image_token * 2, [_blank_picture()] * 2)
        own = probe.keys() - {"input_ids", "attention_mask", _OFFSETS, _REPLACED}
        self.row_aligned = frozenset(name for name in own - TOKEN_ALIGNED if len(probe[name]) == 1)
        self._token_types = [
            name for name in TOKEN_ALIGNED & probe.keys() if np.ndim(probe[name]) == 2
        ]
        self._prepared: PreparedImages | None = None
        if remembered_images:
            self._prepared = PreparedImages(processor.image_processor, remembered_images)
            self._processor = copy.copy(processor)
            self._processor.image_processor = self._prepared

    def _pictures(
        self, conversation: Sequence[Message], images: Sequence[bytes | None]
    ) -> Sequence[Any] | SkippedRow:
        named = sum(len(message_images(message)) for message in conversation)
        if named != len(images):
            raise ValueError(f"{len(images)} images came with a conversation that names {named}.")
        given = [data for data in images if data is not None]
        if len(given) < len(images):
            return SkippedRow("image_missing")
        names = [image_digest(data) for data in given]
        if self._prepared is not None and names in self._prepared:
            return [stand_in(name) for name in names]
        try:
            pictures = [decode_picture(data) for data in given]
        except PictureError as error:
            return SkippedRow(error.reason)
        for picture, name in zip(pictures, names, strict=True):
            picture.info[CONTENT] = name
        return pictures

    def _render(self, template: str, messages: Sequence[Message], tools: Any, prompt: bool) -> str:
        render = partial(
            self._processor.apply_chat_template,
            list(map(in_parts, messages)),
            tools=tools,
            chat_template=template,
            add_generation_prompt=prompt,
        )
        return evaluate(render)

    def _tokenise(self, rendered: Rendered, pictures: Sequence[Any]) -> Tokens | SkippedRow:
        text = rendered.text
        try:
            encoded = self._processed(text, pictures)
        except ValueError:
            # The error is about an image's shape, or a placeholder in the text without an image.
            return SkippedRow("image_refused")
        replaced = (encoded.pop(_REPLACED, None) or [[]])[0]
        ids = np.asarray(encoded.pop("input_ids"), dtype=np.int64)[0]
        offsets = np.asarray(encoded.pop(_OFFSETS), dtype=np.int64)[0]
        encoded.pop("attention_mask", None)
        expanded = _expanded(text, replaced)
        if offsets[:, 1].max(initial=0) > len(expanded):
            # The processor wrote more into the text than it says.
            return SkippedRow("template_unaligned")
        image = np.isin(ids, self._image_ids)
        if image.any() and not pictures:
            return SkippedRow("image_refused")
        for entry in replaced:
            start, end = entry["new_span"]
            image |= (offsets[:, 0] < end) & (offsets[:, 1] > start)
        moved = (
            [(_moved(start, replaced), _moved(end, replaced)) for start, end in spans]
            for spans in (rendered.response, rendered.left_out)
        )
        response, left_out = covered(offsets, *moved)
        return Tokens(ids, response & ~image, left_out, image, self._inputs(encoded, ids))

    def _inputs(self, encoded: dict[str, Any], ids: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Return the model's inputs; a row without images has token types like the others."""
        blank = {name: np.zeros((1, len(ids)), dtype=np.int64) for name in self._token_types}
        # PaliGemma's processor writes labels, for training.
        own = {name: np.asarray(values) for name, values in encoded.items() if name != "labels"}
        return blank | own

    def _processed(self, text: str, pictures: Sequence[Any]) -> dict[str, Any]:
        # As transformers does for its own `apply_chat_template(tokenize=True)`.
        bos = self._processor.tokenizer.bos_token
        return dict(
            self._processor(
                text=[text],
                images=[list(pictures)] if pictures else None,
                add_special_tokens=bos is None or not text.startswith(bos),
                return_tensors="np",
                return_offsets_mapping=True,
                return_text_replacement_offsets=True,
            )
        )


def _blank_picture() -> Any:
    from PIL import Image

    return Image.new("RGB", _PROBE_SIZE, (127, 127, 127))


def _expanded(text: str, replaced: Sequence[dict[str, Any]]) -> str:
    """Return the text that was tokenised."""

    def pieces() -> Iterator[str]:
        last = 0
        for entry in replaced:
            start, end = entry["span"]
            yield text[last:start]
            yield entry["replacement"]
            last = end
        yield text[last:]

    return "".join(pieces())


def _moved(place: int, replaced: Sequence[dict[str, Any]]) -> int:
    """Return the place in the tokenised text of a place in the rendered text."""
    before = [entry for entry in replaced if entry["span"][1] <= place]
    return place + (before[-1]["new_span"][1] - before[-1]["span"][1] if before else 0)
