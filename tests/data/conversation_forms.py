"""One conversation, written in every form that can hold it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]
Row = dict[str, Any]


@dataclass(frozen=True)
class Conversation:
    """Turns of text: earlier ones, and the last.

    Attributes:
        system: prompt, or None.
        earlier: [user, assistant] of each earlier turn.
        prompt: of the last turn.
        response: of the last turn.
    """

    system: str | None
    earlier: tuple[tuple[str, str], ...]
    prompt: str
    response: str

    @property
    def turns(self) -> list[Message]:
        pairs = (*self.earlier, (self.prompt, self.response))
        roles = ("user", "assistant")
        return [
            {"role": role, "content": text}
            for pair in pairs
            for role, text in zip(roles, pair, strict=True)
        ]

    @property
    def messages(self) -> list[Message]:
        first = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*first, *self.turns]

    @property
    def beside(self) -> Row:
        return {"system": self.system, "history": [list(pair) for pair in self.earlier]}


def _sharegpt(messages: list[Message], speaker: str, text: str) -> list[Message]:
    names = {"user": "human", "assistant": "gpt"}
    return [{speaker: names.get(m["role"], m["role"]), text: m["content"]} for m in messages]


def _parts(messages: list[Message], key: str) -> list[Message]:
    return [m | {"content": [{"type": "text", key: m["content"]}]} for m in messages]


def _pair(prompt: str, response: str) -> Callable[[Conversation], Row]:
    return lambda c: {prompt: c.prompt, response: c.response, **c.beside}


def _asked(c: Conversation) -> list[Message]:
    return c.messages[:-1]


def _answer(c: Conversation, text: str) -> Message:
    return {"role": "assistant", "content": text}


# Forms that hold any conversation.
WRITERS: dict[str, Callable[[Conversation], Row]] = {
    "messages": lambda c: {"messages": c.messages},
    "messages as JSON text": lambda c: {"messages": json.dumps(c.messages)},
    "messages, a null for every key": lambda c: {
        "messages": [m | {"name": None, "tool_calls": None, "weight": None} for m in c.messages]
    },
    "messages beside a system prompt": lambda c: {"messages": c.turns, "system": c.system},
    "messages behind their history": lambda c: {"messages": c.turns[-2:], **c.beside},
    "messages with flags": lambda c: {"messages": [m | {"train": True} for m in c.messages]},
    "parts": lambda c: {"messages": _parts(c.messages, "text")},
    "LLaMA-Factory v1": lambda c: {
        "messages": [m | {"loss_weight": 1.0} for m in _parts(c.messages, "value")]
    },
    "ShareGPT": lambda c: {"conversations": _sharegpt(c.messages, "from", "value")},
    "old ShareGPT": lambda c: {"conversations": _sharegpt(c.messages, "from", "text")},
    "ShareGPT as columns": lambda c: {
        "conversations": {
            "from": [m["role"] for m in c.messages],
            "value": [m["content"] for m in c.messages],
        }
    },
    "ShareGPT beside a system prompt": lambda c: {
        "conversations": _sharegpt(c.turns, "from", "value"),
        "system_prompt": c.system,
    },
    "pairs": lambda c: {
        "system": c.system,
        "conversation": [
            {"human": asked, "assistant": said}
            for asked, said in (*c.earlier, (c.prompt, c.response))
        ],
    },
    "prompt and response": _pair("prompt", "response"),
    "query and response": _pair("query", "response"),
    "question and answer": _pair("Question", "Answer"),
    "human and assistant": _pair("human", "assistant"),
    "Alpaca": lambda c: {"instruction": c.prompt, "input": "", "output": c.response, **c.beside},
    "Alpaca without input": lambda c: {
        "instruction": c.prompt, "input": None, "output": c.response, **c.beside
    },
    "history as JSON text": lambda c: {
        "query": c.prompt,
        "response": c.response,
        "system": c.system,
        "history": json.dumps(c.beside["history"]),
    },
    "TRL": lambda c: {"prompt": _asked(c), "completion": c.messages[-1:]},
    "KTO": lambda c: {"prompt": _asked(c), "completion": c.messages[-1:], "label": True},
}  # fmt: skip
# Forms of which only the last answer is scored; they hold a conversation of one turn.
PREFERENCE_WRITERS: dict[str, Callable[[Conversation], Row]] = {
    "prompt and answers": lambda c: {
        "prompt": c.prompt, "chosen": c.response, "rejected": "no", "system": c.system
    },
    "messages and answers": lambda c: {
        "prompt": _asked(c), "chosen": [_answer(c, c.response)], "rejected": [_answer(c, "no")]
    },
    "conversations": lambda c: {
        "chosen": c.messages, "rejected": [*_asked(c), _answer(c, "no")], "prompt": c.prompt
    },
    "a conversation and what was rejected": lambda c: {
        "messages": c.messages, "rejected_response": "no"
    },
    "ShareGPT and answers": lambda c: {
        "conversations": _sharegpt(c.turns[:-1], "from", "value"),
        "chosen": {"from": "gpt", "value": c.response},
        "rejected": {"from": "gpt", "value": "no"},
        "system": c.system,
    },
}  # fmt: skip


def _calls(calls: list[tuple[str, dict[str, Any]]], as_text: bool) -> list[Any]:
    return [
        {"name": name, "arguments": json.dumps(arguments) if as_text else arguments}
        for name, arguments in calls
    ]


def _wrapped(calls: list[Any]) -> list[Any]:
    return [{"type": "function", "function": call} for call in calls]


def _around(before: Message, answer: list[Message], after: Message) -> list[Message]:
    return [before, *answer, {"role": "tool", "content": "done"}, after]


Calls = list[tuple[str, dict[str, Any]]]
ASKED, SAID = {"role": "user", "content": "Do."}, {"role": "assistant", "content": "Done."}

# One turn that calls tools, in every form.
CALL_WRITERS: dict[str, Callable[[Calls], Row]] = {
    "objects": lambda calls: {
        "messages": _around(
            ASKED,
            [{"role": "assistant", "content": "", "tool_calls": _wrapped(_calls(calls, False))}],
            SAID,
        )
    },
    "arguments as JSON text": lambda calls: {
        "messages": _around(
            ASKED,
            [{"role": "assistant", "content": None, "tool_calls": _wrapped(_calls(calls, True))}],
            SAID,
        )
    },
    "calls as JSON text": lambda calls: {
        "messages": _around(
            ASKED,
            [{"role": "assistant", "tool_calls": json.dumps(_wrapped(_calls(calls, False)))}],
            SAID,
        )
    },
    "LLaMA-Factory": lambda calls: {
        "conversations": _sharegpt(
            _around(
                ASKED,
                [{"role": "function_call", "content": json.dumps(_calls(calls, False))}],
                SAID,
            ),
            "from",
            "value",
        )
    },
    "ms-swift": lambda calls: {
        "messages": _around(
            ASKED,
            [{"role": "tool_call", "content": json.dumps(c)} for c in _calls(calls, True)],
            SAID,
        )
    },
    "OpenAI's older form, of one call": lambda calls: {
        "messages": _around(
            ASKED,
            [{"role": "assistant", "content": None, "function_call": _calls(calls, True)[0]}],
            SAID,
        )
    },
}
