"""A conversation is the same in every form that can hold it."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from forvalue_dagster.data.read import read_rows
from tests.data.conversation_forms import (
    CALL_WRITERS,
    PREFERENCE_WRITERS,
    WRITERS,
    Calls,
    Conversation,
)

# No tags of media, which are refused; a lone surrogate is no Unicode.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<"), min_size=1)
CONVERSATIONS = st.builds(
    Conversation,
    system=st.none() | TEXTS,
    earlier=st.lists(st.tuples(TEXTS, TEXTS), max_size=2).map(tuple),
    prompt=TEXTS,
    response=TEXTS,
)
VALUES = st.recursive(
    st.booleans() | st.integers(-(2**53), 2**53) | TEXTS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=4,
)
CALLS = st.lists(
    st.tuples(TEXTS, st.dictionaries(TEXTS, VALUES, max_size=3)), min_size=1, max_size=2
)


def read(row: dict[str, Any]) -> tuple[str, list[Any]]:
    table = read_rows([row])
    return table["sample_id"][0], json.loads(table["messages"][0])


@settings(max_examples=25, deadline=None)
@given(conversation=CONVERSATIONS)
def test_every_form_holds_the_same_conversation(conversation: Conversation) -> None:
    known = {name: read(write(conversation)) for name, write in WRITERS.items()}
    identity = known["messages"][0]
    assert known == dict.fromkeys(WRITERS, (identity, conversation.messages))
    if not conversation.earlier and conversation.response != "no":
        for name, write in PREFERENCE_WRITERS.items():
            row = write(conversation)
            assert (name, read(row)) == (name, (identity, conversation.messages))
            (rejected,) = read_rows([row])["rejected"]
            assert json.loads(rejected) == [{"role": "assistant", "content": "no"}]


@settings(max_examples=25, deadline=None)
@given(calls=CALLS)
def test_every_form_holds_the_same_calls(calls: Calls) -> None:
    writers = {n: w for n, w in CALL_WRITERS.items() if len(calls) == 1 or "one call" not in n}
    known = {name: read(write(calls)) for name, write in writers.items()}
    assert len({identity for identity, _ in known.values()}) == 1
    for _, messages in known.values():
        functions = [call["function"] for call in messages[1]["tool_calls"]]
        assert [(f["name"], f["arguments"]) for f in functions] == calls
