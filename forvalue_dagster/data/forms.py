"""The form of a file: which of its columns hold the conversation, decided once for all its rows.

A file has one form. Rows of another one are read as what they are only if the forms share no
column, so that no row can be taken for another's; any other row that does not fit is a problem.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal

from forvalue_dagster.data.columns import (
    CHOSEN,
    FUNCTIONS,
    HISTORY,
    IMAGES,
    LABEL,
    MEDIA,
    REJECTED,
    SYSTEM,
    TOOLS,
    Columns,
)
from forvalue_dagster.data.problems import RowError

MESSAGES = ("messages", "conversations", "conversation")
_PROMPTS = ("prompt", "question", "problem", "query", "instruction", "input")
_RESPONSES = ("response", "completion", "output", "answer", "solution")
# The first pair of names that a row has is its form.
_PAIRS = tuple(
    dict.fromkeys(
        (
            ("instruction", "output"),
            ("prompt", "response"),
            ("prompt", "completion"),
            ("question", "answer"),
            ("problem", "solution"),
            ("query", "response"),
            ("instruction", "response"),
            ("input", "output"),
            *product(_PROMPTS, _RESPONSES),
            ("question", "answers"),
            *product(("human", "user"), ("assistant", "gpt", "bot", "chatgpt")),
        )
    )
)
# What a prompt has beside its main column, in the order in which it is joined.
_BESIDE_A_PROMPT = ("input", "context")
_BESIDE_AN_INSTRUCTION = ("question", "problem", "query", *_BESIDE_A_PROMPT)
_BESIDE = (*SYSTEM, *HISTORY, *TOOLS, *CHOSEN, *REJECTED, *LABEL)
# Names that say: this may be part of the conversation. `user` is mostly an id.
SUSPICIOUS = frozenset(
    (*MESSAGES, *_PROMPTS, *_RESPONSES, "answers", "context", "score", "text", "functions")
) | {*SYSTEM, *HISTORY, *TOOLS, *FUNCTIONS, *CHOSEN, *REJECTED, *LABEL, *IMAGES, *MEDIA}

Name = Literal["chat", "prompt and response", "preference", "text"]


@dataclass(frozen=True)
class Form:
    """Which columns of a row hold its conversation, by the names that the row has.

    Attributes:
        name: of the form.
        main: the columns without which the row is not of this form.
        messages: column with messages.
        prompt: columns that make the prompt.
        response: column with the response.
        chosen: column with the chosen answer.
        text: column with text alone.
        beside: role → column of what stands beside any form.
    """

    name: Name
    main: tuple[str, ...]
    messages: str | None = None
    prompt: tuple[str, ...] = ()
    response: str | None = None
    chosen: str | None = None
    text: str | None = None
    beside: Mapping[str, str] = field(default_factory=dict)

    @property
    def own(self) -> set[str]:
        """Columns that no row of another form may have."""
        return {*self.main, *self.prompt}

    @property
    def used(self) -> dict[str, str]:
        """Column → what it is read as."""
        own = {"messages": self.messages, "response": self.response, "text": self.text}
        own |= {"chosen": self.chosen, **self.beside}
        named = {column: role for role, column in own.items() if column is not None}
        return dict.fromkeys(self.prompt, "prompt") | named

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(self.main)})"


@dataclass(frozen=True)
class FileForm:
    """The form of a file.

    Attributes:
        columns: as they are configured.
        forms: the form of most rows, then those that share no column with it.
        by_columns: columns that a row of the file has → its form, if it is one of `forms`.
        marks: columns named like a part of the conversation that hold numbers alone.
        missing: named columns that no row has.
    """

    columns: Columns
    forms: tuple[Form, ...] = ()
    by_columns: Mapping[frozenset[str], Form] = field(default_factory=dict)
    marks: frozenset[str] = frozenset()
    missing: tuple[str, ...] = ()

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, Any] | None], columns: Columns) -> FileForm:
        """Decide the form of a file.

        Args:
            rows: all of them; None for one that could not be parsed.
            columns: where the conversation is kept.
        """
        known = [row for row in rows if row is not None]
        marks = _marks(known, columns)
        kinds = Counter(_present(row, columns, marks) for row in known)
        alike: dict[tuple[str, ...], list[tuple[Form, frozenset[str]]]] = {}
        count: Counter[tuple[str, ...]] = Counter()
        for names, rows_of_it in kinds.items():
            if form := _form(names, columns):
                count[form.main] += rows_of_it
                alike.setdefault(form.main, []).append((form, names))
        forms: list[Form] = []
        by_columns: dict[frozenset[str], Form] = {}
        taken: set[str] = set()
        held: set[str] = set()
        for main, _ in count.most_common():
            names = frozenset().union(*(names for _, names in alike[main]))
            own = set().union(*(form.own for form, _ in alike[main]))
            form = alike[main][0][0]
            if not forms or (
                form.text is None and own.isdisjoint(taken) and held.isdisjoint(names)
            ):
                forms.append(form)
                by_columns |= {present: form for form, present in alike[main]}
                taken |= names
                held |= own
        keys = {name for row in known for name in row}
        missing = tuple(n for n in columns.named if n not in (columns.group, *keys)) if keys else ()
        return cls(columns, tuple(forms), by_columns, marks, missing)

    def used_by(self, row: Mapping[str, Any]) -> dict[str, str]:
        """Return column → what it is read as; nothing for a row of another form."""
        form = self.by_columns.get(_present(row, self.columns, self.marks))
        return {} if form is None else form.used

    def form_of(self, row: Mapping[str, Any]) -> Form:
        """Return the form of a row.

        Args:
            row: of the file.

        Raises:
            RowError: if it does not fit.
        """
        if self.missing:
            raise RowError(
                f"column {self.missing[0]!r} is missing; the row has {sorted(row)}",
                "missing column",
            )
        present = _present(row, self.columns, self.marks)
        if present not in self.by_columns:
            raise RowError(self._misfit(row, present), "form")
        return self.by_columns[present]

    def _misfit(self, row: Mapping[str, Any], present: frozenset[str]) -> str:
        if not self.forms:
            if missing := [name for name in _needed(self.columns) if name not in present]:
                return f"column {missing[0]!r} is null; the row has {sorted(present)}"
            return (
                f"no conversation found among the columns {sorted(row)}; expected messages, "
                "conversations, instruction and output, or a pair such as prompt and response. "
                "Name the columns in the configuration"
            )
        lead = self.forms[0]
        missing = [name for name in lead.main if name not in present]
        if missing:
            said = f"column {missing[0]!r} is {'missing' if missing[0] not in row else 'null'}"
        else:
            said = f"it reads as {_form(present, self.columns)}"
        return (
            f"no conversation found among the columns {sorted(present)}: {said}, and the file's "
            f"form is {lead}. Write rows of one form in a file, or name the columns in the "
            "configuration"
        )


def _marks(rows: Sequence[Mapping[str, Any]], columns: Columns) -> frozenset[str]:
    """Return columns that are named like what stands beside a conversation, and are no part of it.

    A label is KTO's if it is true or false; numbers are classes, ranks or scores.
    """
    types: dict[str, set[type]] = {}
    for row in rows:
        for name, value in row.items():
            if name.casefold() in _BESIDE and value is not None and name not in columns.named:
                types.setdefault(name, set()).add(type(value))
    return frozenset(
        name
        for name, found in types.items()
        if (found != {bool} if name.casefold() in LABEL else found <= {bool, int, float})
    )


def _present(row: Mapping[str, Any], columns: Columns, marks: frozenset[str]) -> frozenset[str]:
    """Return the columns that hold something: a columnar file gives a row absent ones, too."""
    without = marks.union(columns.ignore)
    return frozenset(name for name, value in row.items() if value is not None) - without


def _needed(columns: Columns) -> tuple[str, ...]:
    """Return the columns that a configuration asks of each row."""
    if columns.messages is not None or columns.chosen is not None:
        names = (columns.messages, *columns.prompts[:1], columns.chosen)
        return tuple(name for name in names if name is not None)
    if columns.prompts:
        return tuple(name for name in (columns.prompts[0], columns.response) if name is not None)
    return (
        ("text",)
        if columns.text is None and columns.response_marker
        else tuple(name for name in (columns.text,) if name is not None)
    )


def _form(present: frozenset[str], columns: Columns) -> Form | None:
    """Return the form of rows that have these columns, or None."""
    # A spelling in lower case goes before another.
    names = {name.casefold(): name for name in sorted(present, key=str.islower)}
    beside = _beside(names, present, columns)
    needed = _needed(columns)
    if needed:
        if not present.issuperset(needed):
            return None
        return _named_form(needed, names, present, columns, beside)
    return _detected_form(names, columns, beside)


def _beside(names: Mapping[str, str], present: frozenset[str], columns: Columns) -> dict[str, str]:
    found = {}
    usual = {
        "system": (columns.system, SYSTEM),
        "history": (columns.history, HISTORY),
        "tools": (columns.tools, TOOLS),
        "rejected": (columns.rejected, REJECTED),
        "label": (columns.label, LABEL),
    }
    for role, (given, known) in usual.items():
        if given is not None:
            if given in present:
                found[role] = given
        elif name := _first(known, names):
            found[role] = name
    if "tools" not in found and columns.tools is None and (name := _first(FUNCTIONS, names)):
        found["functions"] = name
    return found


def _first(known: Sequence[str], names: Mapping[str, str]) -> str | None:
    return next((names[name] for name in known if name in names), None)


def _named_form(
    needed: tuple[str, ...],
    names: Mapping[str, str],
    present: frozenset[str],
    columns: Columns,
    beside: dict[str, str],
) -> Form:
    if columns.is_text:
        return Form("text", needed, text=needed[0])
    name: Name = "prompt and response"
    messages = columns.messages
    prompt = tuple(name for name in columns.prompts if name in present)
    if messages is None and not prompt:  # the chosen answer alone is named
        messages = _first(MESSAGES, names)
        asked = _asked(names) if messages is None else None
        prompt = () if asked is None else _prompt_columns(asked, names)
    if messages is not None:
        name = "chat"
    if columns.chosen is not None or "rejected" in beside:
        name = "preference"
    return Form(
        name,
        needed,
        messages=messages,
        prompt=prompt,
        response=columns.response,
        chosen=columns.chosen,
        beside=beside,
    )


def _detected_form(
    names: Mapping[str, str], columns: Columns, beside: dict[str, str]
) -> Form | None:
    messages = _first(MESSAGES, names)
    pair = next((pair for pair in _PAIRS if pair[0] in names and pair[1] in names), None)
    chosen = _first(CHOSEN, names)
    if chosen is not None and (messages or pair) and "rejected" not in beside:
        chosen = None  # a mark of the user's own, beside a whole conversation
    name: Name = "preference" if chosen or "rejected" in beside else "chat"
    if messages is not None:
        return Form(name, (messages,), messages=messages, chosen=chosen, beside=beside)
    if chosen is not None:
        asked = _asked(names)
        prompts = () if asked is None else _prompt_columns(asked, names)
        main = prompts[:1] or (chosen,)
        return Form(name, main, prompt=prompts, chosen=chosen, beside=beside)
    if pair is not None:
        prompt, response = pair
        return Form(
            "preference" if "rejected" in beside else "prompt and response",
            (names[prompt], names[response]),
            prompt=_prompt_columns(prompt, names),
            response=names[response],
            beside=beside,
        )
    if "text" in names:
        return Form("text", (names["text"],), text=names["text"])
    return None


def _asked(names: Mapping[str, str]) -> str | None:
    return next((prompt for prompt in _PROMPTS if prompt in names), None)


def _prompt_columns(main: str, names: Mapping[str, str]) -> tuple[str, ...]:
    """Return what a prompt is joined of: an instruction first, what it is about last."""
    first = [main]
    if main in _BESIDE_AN_INSTRUCTION and "instruction" in names:
        first = ["instruction", main]
    others = _BESIDE_AN_INSTRUCTION if main == "instruction" else _BESIDE_A_PROMPT
    joined = [*first, *(name for name in others if name not in first)]
    return tuple(names[name] for name in joined if name in names)
