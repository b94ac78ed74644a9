"""Leakage: training rows that equal, or nearly equal, rows of the validation set.

For-Value assumes that no training input is a validation input (Theorem 1), and a dataset that
contains its validation rows cannot be measured with them. Equal means the same words after
normalisation, also as a part of a longer conversation. Nearly equal means that most word triples
are shared (for a few words, most runs of five characters). Normalisation ignores case, width,
accents and zero-width characters, and treats Cyrillic and Greek letters that look like Latin ones
as Latin.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import polars as pl

from forvalue_dagster.data.rows import message_images, message_text

LEAKS: dict[str, pl.DataType] = {
    "shard": pl.String(),
    "row": pl.Int64(),
    "sample_id": pl.String(),
    "validation_row": pl.Int64(),
    "kind": pl.String(),
    "similarity": pl.Float64(),
}
_WORDS_IN_SHINGLE = 3
_FEW_WORDS, _CHARACTERS_IN_SHINGLE = 6, 5
_PERMUTATIONS = 128
_WIDE = unicodedata.east_asian_width
# Accents on letters, and invisible characters: zero-width ones, soft hyphens, directions.
_UNSEEN = {"Mn", "Me", "Cf"}
_LOOK_ALIKES = str.maketrans(
    "авсԁеһіјкмнорԛѕтухԝ" + "αβεζηικμνορτυχ" + "ıɑɡ",
    "abcdehijkmhopqstyxw" + "abezhikmvoptyx" + "iag",
)


# A turn: its role and its words.
_Turn = tuple[str, tuple[str, ...]]


@dataclass(frozen=True)
class _Text:
    """A row's normalised words; the names of its images count as words."""

    turns: tuple[_Turn, ...]
    images: tuple[str, ...] = ()

    @property
    def whole(self) -> tuple[str, ...]:
        return tuple(word for _, words in self.turns for word in words)

    @property
    def prompt(self) -> tuple[str, ...]:
        return tuple(w for role, words in self.turns if role != "assistant" for w in words)

    def parts(self, beginnings: Mapping[_Turn, set[int]]) -> Iterator[tuple[str, ...]]:
        """Yield the words of parts that begin with one of these turns and have as many turns."""
        for first, turn in enumerate(self.turns):
            for length in beginnings.get(turn, ()):
                yield _Text(self.turns[first : first + length]).whole

    @property
    def shingles(self) -> frozenset[bytes]:
        words = self.whole
        if len(words) < _FEW_WORDS:
            text = " ".join(words)
            last = max(len(text) - _CHARACTERS_IN_SHINGLE, 0)
            runs = (text[at : at + _CHARACTERS_IN_SHINGLE] for at in range(last + 1))
            return frozenset(run.encode() for run in runs)
        windows = zip(*(words[offset:] for offset in range(_WORDS_IN_SHINGLE)), strict=False)
        return frozenset(" ".join(window).encode() for window in windows)


def find_leaks(
    training: pl.DataFrame, validation: pl.DataFrame, min_similarity: float = 0.8
) -> pl.DataFrame:
    """Return the training rows that contain a validation row, each once.

    Candidates come from MinHash signatures; their similarity is then computed exactly.

    Args:
        training: canonical rows.
        validation: canonical rows.
        min_similarity: share of word triples in common (Jaccard) from which rows are nearly equal.

    Returns:
        The columns of `LEAKS`. `kind` is "row" (the same conversation), "prompt" (the same
        prompt with another response) or "near".
    """
    from datasketch import MinHash, MinHashLSH

    trusted = {row: text for row, text in _texts(validation) if text.whole}
    by_whole = {text.whole: row for row, text in reversed(trusted.items())}
    by_prompt = {text.prompt: row for row, text in reversed(trusted.items()) if text.prompt}
    beginnings: dict[_Turn, set[int]] = {}
    for text in trusted.values():
        beginnings.setdefault(text.turns[0], set()).add(len(text.turns))
    shingles = {row: text.shingles for row, text in trusted.items()}
    signatures = MinHash.bulk(shingles.values(), num_perm=_PERMUTATIONS)
    # Signatures only estimate: candidates also come from below the limit, then are measured.
    index = MinHashLSH(threshold=0.75 * min_similarity, num_perm=_PERMUTATIONS)
    for row, signature in zip(shingles, signatures, strict=True):
        index.insert(row, signature)
    leaks = []
    places = training.select("shard", "row", "sample_id").iter_rows()
    for place, (_, text) in zip(places, _texts(training), strict=True):
        if not text.whole:
            continue
        # The whole conversation, or a part: further turns before or after hide nothing.
        parts = (text.whole, *text.parts(beginnings))
        found = next((by_whole[words] for words in parts if words in by_whole), None)
        if found is not None:
            leaks.append((*place, found, "row", 1.0))
            continue
        own = text.shingles
        (signature,) = MinHash.bulk([own], num_perm=_PERMUTATIONS)
        # The same question about a different image is a different row.
        near = [row for row in index.query(signature) if trusted[row].images == text.images]
        similar = {row: _jaccard(own, shingles[row]) for row in near}
        if text.prompt in by_prompt:
            row = by_prompt[text.prompt]
            leaks.append((*place, row, "prompt", _jaccard(own, shingles[row])))
        elif similar and max(similar.values()) >= min_similarity:
            row = max(similar, key=lambda candidate: (similar[candidate], -candidate))
            leaks.append((*place, row, "near", similar[row]))
    return pl.DataFrame(leaks, schema=LEAKS, orient="row")


def _texts(rows: pl.DataFrame) -> list[tuple[int, _Text]]:
    """Return (index, normalised words) of each row, without system prompts, which rows share."""
    found = []
    for index, (messages, problem) in enumerate(rows.select("messages", "problem").iter_rows()):
        turns: list[_Turn] = []
        images: list[str] = []
        for turn in [] if problem else json.loads(messages):
            if turn["role"] == "system":
                continue
            pictures = [str(name) for name in message_images(turn)]
            images += pictures
            turns.append((turn["role"], (*pictures, *_words(message_text(turn)))))
        found.append((index, _Text(tuple(turns), tuple(images))))
    return found


def _words(text: str) -> list[str]:
    """Return normalised words; each ideograph is a word, as there are no spaces."""
    apart = unicodedata.normalize("NFKD", text).casefold()
    seen = "".join(char for char in apart if unicodedata.category(char) not in _UNSEEN)
    folded = unicodedata.normalize("NFKC", seen.translate(_LOOK_ALIKES))
    return "".join(
        " " if not char.isalnum() else f" {char} " if _WIDE(char) == "W" else char
        for char in folded
    ).split()


def _jaccard(one: frozenset[bytes], other: frozenset[bytes]) -> float:
    return len(one & other) / len(one | other)
