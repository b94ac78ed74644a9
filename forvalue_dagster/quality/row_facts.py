"""Columns of facts about canonical rows, which expectations check in place of the text."""

from __future__ import annotations

import json
import re
from typing import Any

import polars as pl

from forvalue_dagster.data.rows import message_images, message_text

# Column → its meaning. The text never reaches Great Expectations, nor its reports.
ROW_FACTS: dict[str, str] = {
    "response_characters": "characters of all assistant turns, tool calls included",
    "prompt_characters": "characters of all other turns but the system's",
    "roles": "roles of the turns, in order, joined by commas",
    "images": "images of all turns",
    "missing_images": "images whose file is not there",
    "broken_characters": "replacement and control characters, as bad decoding leaves them",
    "letters_share": "share of letters and digits in the responses, white space aside",
    "has_email": "whether an e-mail address stands in a response",
    "has_phone": "whether something like a telephone number does",
    "has_card": "whether something like the number of a payment card does",
    "has_secret": "whether something like an access key or private key does",
}
# A rough pattern, to warn a person; it proves nothing.
PERSONAL = {
    "has_email": re.compile(r"[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+\.[A-Za-z]{2,}"),
    "has_phone": re.compile(r"(?:\+\d{1,3}[ .-]?)?\(?\b\d{3}\)?[ .-]\d{3}[ .-]\d{4}\b"),
    "has_card": re.compile(r"\b(?:\d{4}[ -]){3}\d{4}\b"),
    "has_secret": re.compile(
        r"AKIA[0-9A-Z]{16}|-----BEGIN [A-Z ]*PRIVATE KEY-----|\bsk-[A-Za-z0-9_-]{20,}"
    ),
}
_BROKEN = re.compile("[\ufffd\x00-\x08\x0b\x0c\x0e-\x1f]")


def row_facts(rows: pl.DataFrame) -> pl.DataFrame:
    """Return canonical rows with the columns of `ROW_FACTS`, without the text.

    The user's own columns are kept, so that the user's suites can check them.
    """
    facts = [
        _facts([] if problem else json.loads(messages))
        for messages, problem in rows.select("messages", "problem").iter_rows()
    ]
    schema = dict.fromkeys(ROW_FACTS, pl.Boolean()) | {
        "response_characters": pl.Int64(),
        "prompt_characters": pl.Int64(),
        "roles": pl.String(),
        "images": pl.Int64(),
        "missing_images": pl.Int64(),
        "broken_characters": pl.Int64(),
        "letters_share": pl.Float64(),
    }
    plain = rows.drop("messages", "tools", "images", "rejected", "source", strict=False)
    return plain.drop(ROW_FACTS, strict=False).hstack(pl.DataFrame(facts, schema=schema))


def _facts(turns: list[dict[str, Any]]) -> dict[str, Any]:
    responses = [message_text(turn) for turn in turns if turn["role"] == "assistant"]
    calls = [json.dumps(turn["tool_calls"]) for turn in turns if turn.get("tool_calls")]
    asked = [turn for turn in turns if turn["role"] not in ("assistant", "system")]
    prompts = [message_text(turn) for turn in asked]
    images = [name for turn in turns for name in message_images(turn)]
    text = "\n".join(responses)
    visible = [char for char in text if not char.isspace()]
    return {
        "response_characters": sum(len(part.strip()) for part in (*responses, *calls)),
        "prompt_characters": sum(len(part.strip()) for part in prompts),
        "roles": ",".join(turn["role"] for turn in turns),
        "images": len(images),
        "missing_images": images.count(None),
        "broken_characters": len(_BROKEN.findall(text)),
        "letters_share": sum(map(str.isalnum, visible)) / len(visible) if visible else 0.0,
        **{name: bool(pattern.search(text)) for name, pattern in PERSONAL.items()},
    }
