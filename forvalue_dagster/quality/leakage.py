"""Leakage: training rows that equal, or nearly equal, rows of the validation set.

For-Value assumes that no training input is a validation input (Theorem 1); and a dataset that
holds its own yardstick measures nothing. Equal means the same words after normalisation; nearly
equal, that most word triples are shared.
"""

from __future__ import annotations

import json
import unicodedata
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
_PERMUTATIONS = 128
_WIDE = unicodedata.east_asian_width


@dataclass(frozen=True)
class _Text:
    """Normalised words; the names of images stand among them as words of their own."""

    prompt: tuple[str, ...]
    whole: tuple[str, ...]
    images: tuple[str, ...] = ()

    @property
    def shingles(self) -> frozenset[bytes]:
        size = min(_WORDS_IN_SHINGLE, len(self.whole))
        windows = zip(*(self.whole[offset:] for offset in range(size)), strict=False)
        return frozenset(" ".join(window).encode() for window in windows)


def find_leaks(
    training: pl.DataFrame, validation: pl.DataFrame, min_similarity: float = 0.8
) -> pl.DataFrame:
    """Return the training rows that a validation row reappears in, each once.

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
    shingles = {row: text.shingles for row, text in trusted.items()}
    signatures = MinHash.bulk(shingles.values(), num_perm=_PERMUTATIONS)
    # Signatures only estimate: candidates are taken from below the limit, then measured.
    index = MinHashLSH(threshold=0.75 * min_similarity, num_perm=_PERMUTATIONS)
    for row, signature in zip(shingles, signatures, strict=True):
        index.insert(row, signature)
    leaks = []
    places = training.select("shard", "row", "sample_id").iter_rows()
    for place, (_, text) in zip(places, _texts(training), strict=True):
        if not text.whole:
            continue
        if text.whole in by_whole:
            leaks.append((*place, by_whole[text.whole], "row", 1.0))
            continue
        own = text.shingles
        (signature,) = MinHash.bulk([own], num_perm=_PERMUTATIONS)
        # The same question about another image is another row.
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
    """Return (index, normalised words) of each row; a system prompt is nobody's own."""
    found = []
    for index, (messages, problem) in enumerate(rows.select("messages", "problem").iter_rows()):
        turns = [] if problem else json.loads(messages)
        prompt: list[str] = []
        whole: list[str] = []
        images: list[str] = []
        for turn in turns:
            if turn["role"] == "system":
                continue
            pictures = [str(name) for name in message_images(turn)]
            words = pictures + _words(message_text(turn))
            images += pictures
            whole += words
            if turn["role"] != "assistant":
                prompt += words
        found.append((index, _Text(tuple(prompt), tuple(whole), tuple(images))))
    return found


def _words(text: str) -> list[str]:
    """Fold case, width and punctuation away; ideographs, unspaced, are words of their own."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(
        " " if not char.isalnum() else f" {char} " if _WIDE(char) == "W" else char
        for char in folded
    ).split()


def _jaccard(one: frozenset[bytes], other: frozenset[bytes]) -> float:
    return len(one & other) / len(one | other)
