"""Chat templates: choosing one, fixing its date, and telling its errors from others."""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path

from jinja2.exceptions import TemplateError

from forvalue_dagster.data.marks import GENERATED_END, GENERATED_START
from forvalue_dagster.data.rows import Message

# For models without a chat template: turns one after another, with an end token after answers.
PLAIN = "plain"
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ '\\n' }}{% endif %}"
    "{% endfor %}"
)

_CLOCK = "strftime_now"
_CLOCK_CALL = re.compile(_CLOCK + r"\(\s*(?:format\s*=\s*)?(['\"])(.*?)\1\s*\)")
_GENERATION = re.compile(r"\{%([-+]?)\s*generation\s*([-+]?)%\}")
_END_GENERATION = re.compile(r"\{%([-+]?)\s*endgeneration\s*([-+]?)%\}")
_GENERATED = "forvalue_generated"
# `+%}`: the line break after it belongs to the template.
_MARKS_GENERATED = (
    f"{{% macro {_GENERATED}() %}}{GENERATED_START}{{{{ caller() }}}}{GENERATED_END}"
    "{% endmacro +%}"
)


class TemplateRefusalError(Exception):
    """A chat template raised while rendering a conversation; the cause is the engine's error."""


def chosen_templates(asked: str | None, own: str | Mapping[str, str] | None) -> dict[str, str]:
    """Return the templates in use by name: `default`, and `tool_use` where it differs.

    Args:
        asked: a Jinja template, the path of one, the name of one of the tokenizer's, "plain", or
            None for the tokenizer's.
        own: the tokenizer's template, or its templates by name.

    Raises:
        ValueError: if there is none, or none of that name.
    """
    named = dict(own) if isinstance(own, Mapping) else {}
    if asked is None or asked in named:
        return _of_tokenizer(asked, own)
    if asked == PLAIN:
        return {"default": PLAIN_TEMPLATE}
    if "{{" in asked or "{%" in asked:
        return {"default": asked}
    if len(asked) < 4096 and "\0" not in asked and Path(asked).is_file():
        return {"default": Path(asked).read_text(encoding="utf-8")}
    names = f", or one of {', '.join(map(repr, sorted(named)))}" if named else ""
    raise ValueError(
        f"chat_template {asked[:80]!r} is neither a Jinja template nor a file; expected the text "
        f"of a template, the path of a .jinja file, 'plain'{names}."
    )


def _of_tokenizer(asked: str | None, own: str | Mapping[str, str] | None) -> dict[str, str]:
    if own is None:
        raise ValueError(
            "The tokenizer has no chat template; give one as chat_template, or 'plain' to "
            "join the turns by newlines and end each answer with the end-of-text token."
        )
    if isinstance(own, str):
        return {"default": own}
    if asked is not None:
        return {"default": own[asked]}
    if "default" not in own:
        raise ValueError(
            f"The tokenizer has the chat templates {', '.join(map(repr, sorted(own)))} and none "
            "is its default; name one as chat_template."
        )
    return {name: own[name] for name in ("default", "tool_use") if name in own}


def with_fixed_date(template: str, day: str) -> str:
    """Return a template that writes `day` where it would write today's date.

    Raises:
        ValueError: if it asks for the date in an unknown way.
    """
    moment = date.fromisoformat(day)
    fixed = _CLOCK_CALL.sub(lambda call: json.dumps(moment.strftime(call[2])), template)
    if re.search(_CLOCK + r"\s*\(", fixed):
        raise ValueError(
            f"The chat template asks for today's date in a way that cannot be fixed ({_CLOCK} "
            f"with something else than a text); write the format into the call."
        )
    return fixed


def asks_for_date(template: str) -> bool:
    """Return whether a template would write today's date."""
    return _CLOCK in template


def says_more_than_text(template: str) -> bool:
    """Return whether a template writes tool calls, or marks the assistant's text itself."""
    return "tool_calls" in template or marks_generation(template)


def marks_generation(template: str) -> bool:
    """Return whether a template marks the assistant's text itself (`{% generation %}`)."""
    return bool(_GENERATION.search(template))


def with_generation_marked(template: str) -> str:
    """Return a template whose `{% generation %}` blocks are rendered between marks."""
    opened = _GENERATION.sub(rf"{{%\1 call {_GENERATED}() \2%}}", template)
    return _MARKS_GENERATED + _END_GENERATION.sub(r"{%\1 endcall \2%}", opened)


def evaluate(render: Callable[[], str]) -> str:
    """Render, and tell the template's own errors from others.

    Raises:
        TemplateRefusalError: if the template raises, or fails on the conversation.
    """
    try:
        return render()
    except Exception as error:
        # Stack frames of a template have this name; an error without one is ours.
        frames = traceback.extract_tb(error.__traceback__)
        if isinstance(error, TemplateError) or any(f.filename == "<template>" for f in frames):
            raise TemplateRefusalError from error
        raise


def refuse_broken(render: Callable[[list[Message]], str]) -> None:
    """Raise if a template cannot render even a question and an answer.

    One that raises on purpose (it wants a system prompt, say) is not broken.

    Raises:
        ValueError: if it cannot; with the engine's message.
    """
    try:
        render([{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}])
    except TemplateRefusalError as refusal:
        cause = refusal.__cause__
        if type(cause) is TemplateError:
            return
        line = getattr(cause, "lineno", None)
        place = f" (line {line})" if line else ""
        raise ValueError(
            f"The chat template does not work: {type(cause).__name__}: {cause}{place}. Expected a "
            "Jinja template that renders a list of messages with role and content."
        ) from cause
