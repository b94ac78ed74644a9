"""The form of a file, decided once for all its rows.

A file has one form. Rows of another form are read too, but only if the forms share no column, so
that no row can be read in the wrong form; any other row that does not fit is a problem.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from forvalue_dagster.data.columns import (
    CHOSEN,
    HISTORY,
    LABEL,
    REJECTED,
    SYSTEM,
    TOOLS,
    Columns,
)
from forvalue_dagster.data.forms import Form, find_form, needed_columns
from forvalue_dagster.data.problems import RowError, plain_names

_BESIDE = (*SYSTEM, *HISTORY, *TOOLS, *CHOSEN, *REJECTED, *LABEL)


@dataclass(frozen=True)
class FileForm:
    """The form of a file.

    Attributes:
        columns: the configured columns.
        forms: the form of most rows, then those that share no column with it.
        by_columns: columns that a row of the file has → its form, if it is one of `forms`.
        marks: columns named like a part of the conversation that hold only numbers.
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
            rows: all rows; None for one that could not be parsed.
            columns: columns of the conversation.
        """
        known = [row for row in rows if row is not None]
        marks = _marks(known, columns)
        kinds = Counter(_present(row, columns, marks) for row in known)
        alike: dict[tuple[str, ...], list[tuple[Form, frozenset[str]]]] = {}
        count: Counter[tuple[str, ...]] = Counter()
        for names, rows_of_it in kinds.items():
            if form := find_form(names, columns):
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
            row: a row of the file.

        Raises:
            RowError: if it does not fit.
        """
        if self.missing:
            raise RowError(
                f"column {self.missing[0]!r} is missing; the row has {plain_names(row)}",
                "missing column",
            )
        present = _present(row, self.columns, self.marks)
        if present not in self.by_columns:
            raise RowError(self._misfit(row, present), "form")
        return self.by_columns[present]

    def _misfit(self, row: Mapping[str, Any], present: frozenset[str]) -> str:
        if not self.forms:
            if missing := [name for name in needed_columns(self.columns) if name not in present]:
                return f"column {missing[0]!r} is null; the row has {plain_names(present)}"
            return (
                f"no conversation found among the columns {plain_names(row)}; expected messages, "
                "conversations, instruction and output, or a pair such as prompt and response. "
                "Name the columns in the configuration"
            )
        lead = self.forms[0]
        missing = [name for name in lead.main if name not in present]
        if missing:
            said = f"column {missing[0]!r} is {'missing' if missing[0] not in row else 'null'}"
        else:
            said = f"it reads as {find_form(present, self.columns)}"
        return (
            f"no conversation found among the columns {plain_names(present)}: {said}, and the "
            f"file's form is {lead}. Write rows of one form in a file, or name the columns in the "
            "configuration"
        )


def _marks(rows: Sequence[Mapping[str, Any]], columns: Columns) -> frozenset[str]:
    """Return columns that are named like a part of a conversation, and are not one.

    A label is KTO's if it is true or false (in a CSV file as text); numbers are classes, ranks or
    scores.
    """
    marks: dict[str, bool] = {}
    for row in rows:
        for name, value in row.items():
            kind = name.casefold()
            if kind not in _BESIDE or value is None or name in columns.named:
                continue
            if kind in LABEL:
                is_answer = isinstance(value, bool) or str(value).casefold() in ("true", "false")
                marks[name] = marks.get(name, False) or not is_answer
            else:
                marks[name] = marks.get(name, True) and isinstance(value, int | float)
    return frozenset(name for name, is_mark in marks.items() if is_mark)


def _present(row: Mapping[str, Any], columns: Columns, marks: frozenset[str]) -> frozenset[str]:
    """Return the columns that are not empty: a columnar file gives every row every column."""
    without = marks.union(columns.ignore)
    return frozenset(name for name, value in row.items() if value is not None) - without
