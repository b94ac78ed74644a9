"""What a first contributor adds touches one file and its test, as CONTRIBUTING.md shows it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ADDITIONS = dict(
    zip(
        ("noise recipe", "row form", "head transform"),
        re.findall(r"```diff\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.DOTALL),
        strict=True,
    )
)


def parts(addition: str) -> dict[str, tuple[str, str]]:
    """File → (its lines before, its lines after), as one piece of text each."""
    found = {}
    for file, lines in re.findall(r"^\+\+\+ b/(.*)\n@@.*\n((?:[ +].*\n)*)", addition, re.MULTILINE):
        after = [line[1:] for line in lines.splitlines(keepends=True)]
        before = [line[1:] for line in lines.splitlines(keepends=True) if line[0] == " "]
        found[file] = ("".join(before), "".join(after))
    return found


@pytest.mark.parametrize("name", ADDITIONS)
def test_an_addition_is_one_file_and_its_test(name: str) -> None:
    code, test = parts(ADDITIONS[name])
    assert code.startswith("forvalue_dagster/")
    assert test.startswith("tests/")


@pytest.mark.parametrize("name", ["row form", "head transform"])
def test_what_was_added_is_in_the_tree(name: str) -> None:
    for file, (_, after) in parts(ADDITIONS[name]).items():
        assert (ROOT / file).read_text("utf-8").count(after) == 1


def test_a_new_noise_recipe_needs_nothing_else(tmp_path: Path) -> None:
    for folder in ("forvalue_dagster", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    added = parts(ADDITIONS["noise recipe"])
    for file, (before, after) in added.items():
        text = (tmp_path / file).read_text("utf-8")
        assert text.count(before) == 1
        (tmp_path / file).write_text(text.replace(before, after), "utf-8")
    _, test = added
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", test, "-k", "shouting or registered or any_recipe"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout
