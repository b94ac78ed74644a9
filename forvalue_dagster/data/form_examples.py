"""One row of every form, and what it is read as: the table of docs/data.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from forvalue_dagster.data.columns import Columns


@dataclass(frozen=True)
class FormExample:
    """A form and a row of it.

    Attributes:
        form: its name, and other names of its columns.
        row: a row in this form.
        read_as: the conversation, as `outline` writes it.
        columns: columns option that reads it, where detection does not.
    """

    form: str
    row: Mapping[str, Any]
    read_as: str
    columns: Columns = field(default_factory=Columns)


def outline(messages: Sequence[Mapping[str, Any]]) -> str:
    """Write a conversation on one line: who says what, and what is not scored."""
    return " · ".join(
        f"{message['role']}{_mark(message)}: {_said(message)}" for message in messages
    )


def _mark(message: Mapping[str, Any]) -> str:
    if message.get("labelled_bad"):
        return " (labelled bad)"
    if message.get("rendered"):
        return " (text as it is)"
    return "" if message.get("train", True) else " (not scored)"


def _said(message: Mapping[str, Any]) -> str:
    calls = [call["function"]["name"] for call in message.get("tool_calls", [])]
    said = [message["content"], *(f"calls {name}" for name in calls)]
    return " ".join(said).strip().replace("\n", "⏎")


_USER, _ASSISTANT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
_GREETING = "user: Hi · assistant: Hello"
_CALL = {"name": "time", "arguments": '{"zone": "UTC"}'}

FORM_EXAMPLES = (
    FormExample(
        "prompt and response; also prompt, question, problem, query, instruction or input with "
        "response, completion, output, answer or solution, and {human, assistant}",
        {"prompt": "Hi", "response": "Hello"},
        _GREETING,
    ),
    FormExample(
        "Alpaca; `response` for `output`; `input` beside any prompt",
        {"instruction": "Add.", "input": "1 and 2", "output": "3"},
        "user: Add.⏎⏎1 and 2 · assistant: 3",
    ),
    FormExample(
        "Dolly; question, context, answer; SQuAD",
        {"instruction": "When?", "context": "It opens at 9.", "response": "At 9."},
        "user: When?⏎⏎It opens at 9. · assistant: At 9.",
    ),
    FormExample(
        "OpenOrca; `system` or `system_prompt` beside any form",
        {"system_prompt": "Be brief.", "question": "Hi", "response": "Hello"},
        f"system: Be brief. · {_GREETING}",
    ),
    FormExample(
        "earlier turns: `history` beside any form",
        {"query": "And 2?", "response": "4", "history": [["Double 1.", "2"]]},
        "user: Double 1. · assistant: 2 · user: And 2? · assistant: 4",
    ),
    FormExample(
        "TRL: prompt and completion as messages",
        {"prompt": [_USER], "completion": [_ASSISTANT]},
        _GREETING,
    ),
    FormExample("chat: `messages`", {"messages": [_USER, _ASSISTANT]}, _GREETING),
    FormExample(
        "ShareGPT; the usual speakers, text under `value`, `text` or `content`",
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
        _GREETING,
    ),
    FormExample(
        "pairs: human and assistant, input and output, …",
        {"conversation": [{"human": "Hi", "assistant": "Hello"}]},
        _GREETING,
    ),
    FormExample(
        "parts: text under `text`, `value` or `content`; `input_text`, `output_text`, `thinking`",
        {"messages": [{"role": "user", "content": [{"type": "text", "value": "Hi"}]}, _ASSISTANT]},
        _GREETING,
    ),
    FormExample(
        "turns left out of training: `weight`, `train`, `training`, `trainable`, `learn`, "
        "`loss`, `loss_weight`, `loss_mask`, … of 0 or false; `masked`, `no_loss`, … of true",
        {"messages": [_USER, _ASSISTANT | {"weight": 0}, _USER, _ASSISTANT]},
        f"user: Hi · assistant (not scored): Hello · {_GREETING}",
    ),
    FormExample(
        "tool calls, arguments as an object or as JSON text; OpenAI's older `function_call`",
        {
            "messages": [_USER, {"role": "assistant", "content": None, "function_call": _CALL}],
            "functions": [{"name": "time"}],
        },
        "user: Hi · assistant: calls time",
    ),
    FormExample(
        "tool calls as turns: `function_call` or `tool_call`, results from `observation` or `tool`",
        {
            "conversations": [
                {"from": "human", "value": "Time?"},
                {"from": "function_call", "value": '{"name": "time", "arguments": {}}'},
                {"from": "observation", "value": "9"},
                {"from": "gpt", "value": "Nine."},
            ],
            "tools": '[{"name": "time"}]',
        },
        "user: Time? · assistant: calls time · tool: 9 · assistant: Nine.",
    ),
    FormExample(
        "preference: `chosen` and `rejected` as text, message or messages; beside them a prompt in "
        "any form, or whole conversations; `rejected_response`, `rejected_messages`",
        {"prompt": "Hi", "chosen": "Hello", "rejected": "Go away"},
        _GREETING,
    ),
    FormExample(
        "OpenAI's preference data",
        {
            "input": {"messages": [_USER]},
            "preferred_output": [_ASSISTANT],
            "non_preferred_output": [{"role": "assistant", "content": "Go away"}],
        },
        _GREETING,
    ),
    FormExample(
        "KTO: a `label`, `kto_tag` or `desirable` of true or false beside any form",
        {"prompt": "Hi", "completion": "Go away", "label": False},
        "user: Hi · assistant (labelled bad): Go away",
    ),
    FormExample(
        "text alone; scored with `tokens: all`",
        {"text": "Once upon a time."},
        "assistant (text as it is): Once upon a time.",
    ),
    FormExample(
        "text with a marker in front of the response",
        {"text": "Q: Hi A: Hello"},
        "user (text as it is): Q: Hi A: · assistant (text as it is): Hello",
        Columns(response_marker="A:"),
    ),
    FormExample(
        "columns of your own",
        {"task": "Add.", "numbers": "1 and 2", "sum": "3"},
        "user: Add. 1 and 2 · assistant: 3",
        Columns(prompt=("task", "numbers"), response="sum", separator=" "),
    ),
)
