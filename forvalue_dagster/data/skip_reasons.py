"""The reasons for which rows are not scored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

# Reasons for which a row is not scored, and what they mean.
SKIP_REASONS: dict[str, str] = {
    "unreadable": "the row could not be read as a conversation; `problem` of the raw row says why",
    "no_response": "no assistant turn with any text, or none that training keeps",
    "labelled_bad": "the row's label says that its answer is a bad one (KTO)",
    "text_without_response": "text alone has no response; score all tokens, or name its marker",
    "response_truncated": "no response token lies inside the model's window",
    "template_refused": "the chat template rejects the order of roles or a field",
    "template_unaligned": "the assistant's turns cannot be located in the rendered text",
    "tool_call_unrendered": "the chat template does not write a tool call of the assistant",
    "token_without_embedding": "the tokenizer has a token of the row that the model has not",
    "image_without_vision": "the row has an image and the model reads none",
    "image_missing": "an image's file is not there",
    "image_unreadable": "an image is damaged, without pixels, or of a format that is not read",
    "image_too_large": "an image has more pixels than Pillow's limit",
    "image_refused": "the processor rejects an image, or there are image tokens without an image",
    "image_truncated": "the model's window would cut an image off",
    "non_finite": "the model's output is not finite",
    "out_of_memory": "the row does not fit in memory even alone",
}


def counted(reasons: Iterable[str | None]) -> str:
    """Return a sentence that counts the skipped rows for each reason, most frequent first."""
    counts = Counter(reason for reason in reasons if reason)
    return "; ".join(
        f"{count} × {reason} ({SKIP_REASONS.get(reason, 'no longer known')})"
        for reason, count in counts.most_common()
    )
