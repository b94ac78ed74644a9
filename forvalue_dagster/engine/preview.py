"""A preview of how rows are read: what a column became, and which tokens are scored."""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import Any, Literal

import polars as pl

from forvalue_dagster.data.chat import EncodedRow, SkippedRow
from forvalue_dagster.data.columns import Columns
from forvalue_dagster.data.read import Rows, read_rows_with_reading
from forvalue_dagster.data.reading import RowReading
from forvalue_dagster.data.skip_reasons import SKIP_REASONS
from forvalue_dagster.engine.functions import Model, loaded_model
from forvalue_dagster.options.model import EMBEDDED

# Text, and whether its tokens are scored.
Piece = tuple[str, bool]
# (text, whether it is scored) → the text to show.
Mark = Callable[[str, bool], str]
# Characters that change the direction of the text around them.
_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@dataclass(frozen=True)
class RowPreview:
    """One row as the model sees it.

    Attributes:
        shard: the row's shard.
        row: its number in the shard.
        pieces: the rendered text in runs of tokens, and whether they are scored; empty for a row
            that is skipped.
        skipped: reason why it is skipped, or None.
        tokens: number of its tokens.
        scored: number of those that are scored.
        truncated: whether it is cut to the model's window.
    """

    shard: str
    row: int
    pieces: tuple[Piece, ...] = ()
    skipped: str | None = None
    tokens: int = 0
    scored: int = 0
    truncated: bool = False

    @property
    def title(self) -> str:
        """The title above its text."""
        name = f"{self.shard}, row {self.row}"
        if self.skipped is not None:
            return f"{name}: skipped, {self.skipped}"
        cut = ", cut off by the model's window" if self.truncated else ""
        return f"{name}: {self.tokens} tokens, {self.scored} of them scored{cut}"


@dataclass(frozen=True)
class Preview:
    """How rows were read. Printed, it marks scored tokens by brackets; in a notebook, by colour.

    Attributes:
        readings: file → how its rows were read.
        warnings: warnings of the reader: files that were passed over, each with the reason.
        rows: the rows to show.
    """

    readings: Mapping[str, RowReading]
    warnings: tuple[str, ...]
    rows: tuple[RowPreview, ...]

    def __str__(self) -> str:
        """Return the preview as text, with scored tokens in double brackets."""
        legend = "Tokens in [[ ]] are scored."
        return self._text(legend, lambda text, scored: f"[[{text}]]" if scored else text)

    __repr__ = __str__

    def in_colour(self) -> str:
        """Return the preview as text for a terminal, with scored tokens in colour."""
        legend = "Tokens \x1b[30;42min colour\x1b[0m are scored."
        return self._text(
            legend, lambda text, scored: f"\x1b[30;42m{text}\x1b[0m" if scored else text
        )

    def _repr_html_(self) -> str:
        """Return the preview as HTML, which notebooks show."""
        parts = [f"<p>{escape(_plain(line))}</p>" for line in self.warnings]
        for file, reading in self.readings.items():
            listed = "".join(f"<li>{escape(_plain(line))}</li>" for line in _said(reading))
            parts.append(f"<p><b>{escape(_plain(file))}</b></p><ul>{listed}</ul>")
        for row in self.rows:
            parts.append(f"<p><b>{escape(_plain(row.title))}</b></p>")
            text = "".join(
                f"<mark>{escape(_plain(text))}</mark>" if scored else escape(_plain(text))
                for text, scored in row.pieces
            )
            parts.append(f'<pre style="white-space: pre-wrap">{text}</pre>' if text else "")
        return f"<div>{''.join(parts)}<p>Marked tokens are scored.</p></div>"

    def _text(self, legend: str, mark: Mark) -> str:
        lines = [_plain(line) for line in self.warnings]
        for file, reading in self.readings.items():
            lines += [_plain(file), *(f"  {_plain(line)}" for line in _said(reading))]
        for row in self.rows:
            text = "".join(mark(_plain(text), scored) for text, scored in row.pieces)
            lines += ["", f"--- {_plain(row.title)}", *([text] if text else [])]
        return "\n".join([*lines, "", legend])


def preview(
    data: Rows,
    /,
    *,
    model: Model = EMBEDDED,
    tokens: Literal["response", "all"] = "response",
    columns: Columns | None = None,
    rows: int = 3,
) -> Preview:
    """Show how rows are read: print it, or leave it as the last line of a notebook's cell.

    Args:
        data: a data file or a folder of them, a frame, or a list of dicts.
        model: hub id, local directory, "embedded", a `ModelConfig`, or a loaded model.
        tokens: mark the "response" or "all" tokens as scored.
        columns: columns of the conversations; detected by default.
        rows: number of rows to show of each shard, and of rows that cannot be read.

    Returns:
        The form of each file, what each column became, and the rows as the model sees them.

    Raises:
        ValueError: if the number of rows is not positive.
        DataFileError: if a file cannot be read.
        ModelLoadError: if the model cannot be loaded.
    """
    from forvalue_dagster.engine.encoding import encode_rows

    if rows < 1:
        raise ValueError(f"rows is {rows}; expected at least 1.")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        frame, readings = read_rows_with_reading(data, columns=columns, on_bad_row="skip")
    said = tuple(str(one.message) for one in caught if issubclass(one.category, UserWarning))
    bad = pl.col("problem").is_not_null()
    shown = frame.filter(
        (pl.int_range(pl.len()).over("shard") < rows)
        | (bad & (bad.cum_sum().over("shard") <= rows))
    )
    loaded = loaded_model(model)
    seen = [
        _row(loaded.tokenizer, encoded, *place)
        for encoded, place in zip(
            encode_rows(loaded.encoder(tokens), shown),
            shown.select("shard", "row", "problem").iter_rows(),
            strict=True,
        )
    ]
    return Preview(readings, said, tuple(seen))


def _row(
    tokenizer: Any, encoded: EncodedRow | SkippedRow, shard: str, row: int, problem: str | None
) -> RowPreview:
    if isinstance(encoded, SkippedRow):
        why = problem or SKIP_REASONS[encoded.reason]
        return RowPreview(shard, row, skipped=f"{encoded.reason}: {why}")
    return RowPreview(
        shard,
        row,
        tuple(_rendered(tokenizer, encoded)),
        tokens=len(encoded),
        scored=int(encoded.mask.sum()),
        truncated=encoded.truncated,
    )


def _rendered(tokenizer: Any, encoded: EncodedRow) -> Iterator[Piece]:
    """Yield a row's text in runs of tokens that are scored, or are not."""
    # The mask marks the position in front of the scored token.
    scored = [False, *encoded.mask[:-1].tolist()]
    end, shown = 0, ""
    for is_scored, run in groupby(scored):
        end += sum(1 for _ in run)
        # From the start each time: decoded alone, a run would lose the blank that it begins with.
        text = str(
            tokenizer.decode(
                encoded.input_ids[:end].tolist(),
                skip_special_tokens=False,
                clean_up_tokenization_spaces=False,
            )
        )
        yield text[len(shown) :], is_scored
        shown = text


def _said(reading: RowReading) -> Iterator[str]:
    """Yield the sentences about how a file was read."""
    yield f"form: {reading.form or 'none, for no row could be read'}"
    yield from (f"{name} is read as {role}" for name, role in reading.used.items())
    if reading.unused:
        yield f"unused: {', '.join(reading.unused)}"
    if reading.suspicious:
        yield f"unused, and like a part of the conversation: {', '.join(reading.suspicious)}"
    yield from (f"problem: {kind}, {count} rows" for kind, count in reading.problems.items())


def _plain(text: str) -> str:
    """Return text of a file without characters that control a terminal or cannot be printed."""
    return "".join(
        char
        if char in "\n\t" or not (unicodedata.category(char) in ("Cc", "Cs") or char in _TURNING)
        else repr(char)[1:-1]
        for char in text
    )
