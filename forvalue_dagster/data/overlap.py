"""The length of what two renderings share, in whole tags and words."""

from __future__ import annotations

import re

OPENING, CLOSING = "<[{(", ">]})"
# A tag or a word, and the white space after it.
_WORD = re.compile(r"(<[^<>\s]*>|[^\s<]+|<|(?=\s))(\s*)")


def covered_by_prompt(text: str, prompt: str) -> int:
    """Return how many characters of a text a prompt covers, in whole tags and words.

    The amount of white space between words makes no difference. Where the prompt has some and the
    text has none, the word does not count: it may be an opened block that the text then closes.
    """
    ours, theirs = (list(_WORD.finditer(one)) for one in (text, prompt))
    covered = 0
    for our, their in zip(ours, theirs, strict=False):
        if our[1] != their[1] or (their[2] and not our[2] and our is not ours[-1]):
            break
        if our[2] and not their[2] and their is not theirs[-1]:
            return our.end(1)
        covered = our.end()
    return covered


def shared(text: str, other: str, boundary: str = CLOSING) -> int:
    """Return how many characters two texts share from their beginning, in whole tags or words."""
    pairs = enumerate(zip(text, other, strict=False))
    same = next((i for i, (a, b) in pairs if a != b), min(len(text), len(other)))
    if same in (len(text), len(other)):
        return same
    edge = re.compile(rf"[\s{re.escape(boundary)}]")
    return max((found.end() for found in edge.finditer(text, 0, same)), default=0)
