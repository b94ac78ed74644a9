"""Preference data: the conversation that ends with the chosen answer, and the rejected one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from forvalue_dagster.data.columns import Columns
from forvalue_dagster.data.messages import Message, from_json_text, read_messages
from forvalue_dagster.data.problems import RowError

# Anthropic's form: a conversation as one text.
_SPEAKS = re.compile(r"(?:\A|\n\n)(Human|Assistant):[ ]?")


def with_chosen(
    prompt: list[Message], chosen: Any, column: str, columns: Columns
) -> tuple[list[Message], int]:
    """Join a prompt and the chosen answer.

    Args:
        prompt: the prompt; empty if the chosen conversation holds it.
        chosen: an answer (text, message or list of messages), or a whole conversation.
        column: its name, for the error.
        columns: names of keys and speakers.

    Returns:
        The conversation, and the index where its answer begins.

    Raises:
        RowError: if `chosen` is neither, or does not belong to this prompt.
    """
    turns = read_answer(chosen, column, columns)
    if turns[0]["role"] == "assistant":
        if not prompt:
            raise RowError(
                f"column {column!r} holds an answer and the row no prompt; expected a prompt "
                "column, or a conversation that ends with the answer",
                "preference",
            )
        if prompt[-1]["role"] == "assistant":
            if prompt[-len(turns) :] == turns:  # the conversation is complete as it is
                return prompt, len(prompt) - len(turns)
            raise RowError(
                f"the conversation ends with an answer other than that of column {column!r}; "
                "expected one that ends with the prompt",
                "preference",
            )
        return [*prompt, *turns], len(prompt)
    asked = [message["content"] for message in turns if message["role"] != "assistant"]
    for message in prompt:
        if message["role"] != "assistant" and not _holds(asked, message["content"]):
            raise RowError(
                f"the conversation of column {column!r} does not hold the row's prompt; expected "
                "an answer to it, or a conversation that begins with it",
                "preference",
            )
    return turns, answer_start(turns)


def answer_start(messages: list[Message]) -> int:
    """Return where a conversation's last answer begins: after the user's last turn."""
    asked = [index for index, message in enumerate(messages) if message["role"] == "user"]
    return asked[-1] + 1 if asked else 0


def without_prompt(rejected: list[Message], conversation: list[Message]) -> list[Message]:
    """Return a rejected answer without the prompt that it shares with the conversation."""
    shared = 0
    for one, other in zip(rejected, conversation, strict=False):
        if one != other or shared >= answer_start(rejected):
            break
        shared += 1
    return rejected[shared:]


def read_answer(value: Any, column: str, columns: Columns) -> list[Message]:
    """Read an answer, or a conversation that ends with one.

    Raises:
        RowError: if it is neither.
    """
    if isinstance(value, str):
        if (known := from_json_text(value)) is not value:
            value = known
        elif value.lstrip().startswith("Human:") and "Assistant:" in value:
            return _spoken(value.strip())
        else:
            return [{"role": "assistant", "content": value}]
    if isinstance(value, Mapping) and not all(isinstance(part, list) for part in value.values()):
        value = [value]
    if isinstance(value, list) and value and all(isinstance(text, str) for text in value):
        return [{"role": "assistant", "content": text} for text in value]
    return read_messages(value, column, columns)


def _spoken(text: str) -> list[Message]:
    pieces = _SPEAKS.split(text)[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    speakers, said = pieces[::2], pieces[1::2]
    return [
        {"role": roles[speaker], "content": words}
        for speaker, words in zip(speakers, said, strict=True)
    ]


def _holds(contents: list[Any], content: Any) -> bool:
    texts = [text.strip() if isinstance(text, str) else text for text in contents]
    return (content.strip() if isinstance(content, str) else content) in texts
