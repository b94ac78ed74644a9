"""Read tool calls and tool definitions of any form into one canonical form.

A call is {type: function, function: {name, arguments}}; arguments are an object, or text that is
not JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from forvalue_dagster.data.canonical_json import parsed, parsed_or_none, without_nulls
from forvalue_dagster.data.problems import RowError

_ARGUMENTS = ("parameters", "args", "input")


def read_calls(value: Any, where: str) -> list[dict[str, Any]]:
    """Read a message's `tool_calls`.

    Args:
        value: a list of calls, one call, or either as JSON text.
        where: the place, for the error.

    Raises:
        RowError: if it is none of these.
    """
    is_text = isinstance(value, str)
    if is_text:
        value = parsed_or_none(value) if value.strip() else []
    entries = [value] if isinstance(value, Mapping) else value
    if not isinstance(entries, list | tuple):
        raise RowError(f"{where} holds no calls; expected a list of objects", "tool calls")
    calls = []
    for entry in entries:
        text = is_text or isinstance(entry, str)
        call = _without_nulls(parsed_or_none(entry) if isinstance(entry, str) else entry, text)
        if not isinstance(call, dict) or not (call.get("name") or call.get("function")):
            raise RowError(
                f"{where} has a call without a function's name; expected objects with name and "
                "arguments",
                "tool calls",
            )
        calls.append(_with_arguments(call))
    return calls


def _without_nulls(call: Any, is_text: bool) -> Any:
    """Remove nulls from a call; in arguments that are JSON text they are meant, and stay."""
    if not (is_text and isinstance(call, Mapping)):
        return without_nulls(call)
    function = call.get("function")
    inner = {"function": _without_nulls(function, True)} if isinstance(function, Mapping) else {}
    meant = {n: call[n] for n in ("arguments", *_ARGUMENTS) if call.get(n) is not None}
    return {**without_nulls(call), **inner, **meant}


def bare_calls(value: Any, where: str) -> list[dict[str, Any]]:
    """Read calls given as name and arguments only: `function_call`, and ShareGPT's turns."""
    calls = read_calls(value, where)
    return [
        call if "function" in call else {"type": "function", "function": call} for call in calls
    ]


def _with_arguments(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    if isinstance(function, dict):
        return call | {"function": _with_arguments(function)}
    if "arguments" not in call:  # other programs' names for them
        other = next((name for name in _ARGUMENTS if isinstance(call.get(name), dict | str)), None)
        call = {"arguments" if name == other else name: value for name, value in call.items()}
    arguments = call.get("arguments")
    if isinstance(arguments, str):
        known = parsed_or_none(arguments) if arguments.strip() else {}
        if isinstance(known, dict):
            return call | {"arguments": known}
    return call


def read_tools(value: Any, column: str) -> list[Any] | None:
    """Read a row's tool definitions; None if it has none.

    Args:
        value: a list of definitions, one definition, or either as JSON text.
        column: its name, for the error.

    Raises:
        RowError: if it is none of these.
    """
    is_text = isinstance(value, str)
    if is_text:
        value = parsed(value, column) if value.strip() else None
    if not value:
        return None
    entries = [value] if isinstance(value, Mapping) else value
    if not isinstance(entries, list | tuple):
        kind = type(value).__name__
        raise RowError(
            f"column {column!r} is a {kind}; expected a list of tool definitions, or JSON text of "
            "one. Name it among the columns to ignore if it is none",
            "tool calls",
        )
    # Some files store each definition as JSON text, because their schemas differ.
    return [
        known
        if isinstance(known := entry if is_text else parsed_or_none(entry), dict)
        else without_nulls(entry)
        for entry in entries
        if entry is not None
    ]


def read_functions(value: Any, column: str) -> list[Any] | None:
    """Read OpenAI's older `functions` as tool definitions.

    Raises:
        RowError: if they are not a list of functions.
    """
    functions = read_tools(value, column)
    if functions is None:
        return None
    if not all(isinstance(function, dict) and function.get("name") for function in functions):
        raise RowError(
            f"column {column!r} holds something without a name; expected definitions of functions. "
            "Name it among the columns to ignore if it holds none",
            "tool calls",
        )
    return [{"type": "function", "function": function} for function in functions]
