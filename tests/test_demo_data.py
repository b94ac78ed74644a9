"""The demo data are correct, reproducible and noisy exactly where the truth file says."""

import ast
import json
import os
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from assets.demo_data import NOISE_SHARES, TASK_KINDS, demo_rows, write_demo_data

FILES = {shard: f"train/{shard}.jsonl" for shard in NOISE_SHARES} | {
    "validation": "validation.jsonl",
    "held_out": "held_out.jsonl",
}


def read_rows(path: Path) -> list[dict[str, Any]]:
    # Not splitlines(), which also splits at the line separators of unicode.
    return [json.loads(line) for line in path.read_text("utf-8").split("\n")[:-1]]


def read_bytes(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


def turns(row: dict[str, Any]) -> list[tuple[str, str]]:
    """Pair every prompt of a row with its response."""
    if "prompt" in row:
        return [(row["prompt"], row["response"])]
    contents = [message["content"] for message in row["messages"] if message["role"] != "system"]
    return list(zip(contents[::2], contents[1::2], strict=True))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    write_demo_data(folder, seed=5)
    return folder


@pytest.fixture(scope="module")
def truth(root: Path) -> dict[str, Any]:
    return json.loads((root / "truth.json").read_text("utf-8"))


def test_the_same_seed_gives_the_same_bytes(root: Path, tmp_path: Path):
    write_demo_data(tmp_path, seed=5)
    assert read_bytes(tmp_path) == read_bytes(root)
    assert set(read_bytes(root)) == {*FILES.values(), "truth.json"}


def test_another_seed_gives_other_rows(root: Path, tmp_path: Path):
    write_demo_data(tmp_path, seed=6)
    changed, first = read_bytes(tmp_path), read_bytes(root)
    assert all(changed[name] != first[name] for name in first)


def test_sizes_and_shares_are_as_asked(root: Path, truth: dict[str, Any]):
    assert {name: len(read_rows(root / path)) for name, path in FILES.items()} == {
        "clean": 100,
        "mixed": 100,
        "noisy": 100,
        "validation": 80,
        "held_out": 60,
    }
    assert {shard: len(rows) for shard, rows in truth["noise"].items()} == {
        "clean": 0,
        "mixed": 5,
        "noisy": 45,
    }
    assert truth["shares"] == NOISE_SHARES
    assert truth["seed"] == 5


@pytest.mark.parametrize("name", FILES)
def test_truth_names_exactly_the_damaged_rows(name: str, root: Path, truth: dict[str, Any]):
    clean, written = demo_rows(seed=5)[name], read_rows(root / FILES[name])
    noise = truth["noise"].get(name, {})
    changed = {
        str(index)
        for index, pair in enumerate(zip(clean, written, strict=True))
        if len({*map(str, pair)}) > 1
    }
    assert changed == set(noise)
    for index, recipe in noise.items():
        before, after = turns(clean[int(index)]), turns(written[int(index)])
        assert after[:-1] == before[:-1]
        (prompt, response), (same_prompt, damaged) = before[-1], after[-1]
        assert same_prompt == prompt
        if recipe == "answer_swap":
            task = clean[int(index)]["task"]
            others = {turns(row)[-1][1] for row in clean if row["task"] != task}
            assert damaged in others
        elif recipe == "word_shuffle":
            assert sorted(damaged.split()) == sorted(response.split())
        elif recipe == "span_deletion":
            assert len(damaged.split()) < len(response.split())
        else:
            assert recipe == "span_insertion"
            assert len(damaged.split()) > len(response.split())


@pytest.mark.parametrize("seed", range(5))
def test_no_training_row_is_in_the_validation_file(seed: int, tmp_path: Path):
    write_demo_data(tmp_path, seed=seed)
    rows = {name: read_rows(tmp_path / path) for name, path in FILES.items()}
    held_out = {pair for row in rows.pop("validation") for pair in turns(row)}
    training = [pair for part in rows.values() for row in part for pair in turns(row)]
    assert held_out.isdisjoint(training)
    assert len(set(training)) == len(training)


def test_large_files_have_no_repeated_rows_either():
    pairs = [
        pair for rows in demo_rows(0, 400, 200).values() for row in rows for pair in turns(row)
    ]
    assert len(set(pairs)) == len(pairs)


@pytest.mark.parametrize("name", FILES)
def test_every_file_mixes_the_row_forms(name: str, root: Path):
    rows = read_rows(root / FILES[name])
    forms = Counter(
        ("prompt",) if "prompt" in row else tuple(m["role"] for m in row["messages"])
        for row in rows
    )
    prompt_form, one_turn = ("prompt",), ("user", "assistant")
    assert set(forms) <= {
        prompt_form,
        one_turn,
        ("system", *one_turn),
        one_turn * 2,
        ("system", *one_turn * 2),
    }
    assert forms[prompt_form] >= 20
    assert forms[one_turn] >= 10
    assert forms["system", *one_turn] >= 1
    assert any(len(form) >= 4 for form in forms)
    assert {frozenset(row) for row in rows} == {
        frozenset({"prompt", "response", "task"}),
        frozenset({"messages", "task"}),
    }


def test_every_file_has_the_same_mixture_of_tasks():
    for rows in demo_rows(seed=1).values():
        counts = Counter(row["task"] for row in rows)
        assert set(counts) == {kind.__name__ for kind in TASK_KINDS}
        assert max(counts.values()) - min(counts.values()) <= 1


def clean_pairs() -> list[tuple[str, str]]:
    return [
        pair
        for seed in range(3)
        for rows in demo_rows(seed).values()
        for row in rows
        for pair in turns(row)
    ]


def test_every_equation_in_a_response_holds():
    equation = re.compile(r"\$?(\d+) ([-+x]) \$?(\d+) = \$?(\d+)")
    found = [match for _, response in clean_pairs() for match in equation.findall(response)]
    assert len(found) > 100
    operations = {"+": int.__add__, "-": int.__sub__, "x": int.__mul__}
    for left, sign, right, result in found:
        assert operations[sign](int(left), int(right)) == int(result)


def test_sorted_numbers_are_sorted():
    checked = 0
    for prompt, response in clean_pairs():
        if not re.match("Sort|Put the following", prompt):
            continue
        given = [int(number) for number in re.findall(r"\d+", prompt)]
        answer = [int(number) for number in re.findall(r"\d+", response)]
        assert answer == sorted(given, reverse="largest to smallest" in prompt)
        checked += 1
    assert checked > 30


def test_python_functions_do_what_the_prompt_says():
    expected = {
        "add": lambda value, number: value + number,
        "subtract": lambda value, number: value - number,
        "multiply_by": lambda value, number: value * number,
        "is_greater_than": lambda value, number: value > number,
        "is_divisible_by": lambda value, number: value % number == 0,
    }
    checked = set()
    for prompt, response in clean_pairs():
        if "```python" not in response:
            continue
        code = response.split("```python\n")[1].removesuffix("```")
        name = ast.parse(code).body[0].name  # type: ignore[attr-defined]
        assert name in prompt
        namespace: dict[str, Any] = {}
        exec(code, namespace)
        kind, _, number = name.rpartition("_")
        for value in (-7, 0, int(number), int(number) + 1, 60):
            assert namespace[name](value) == expected[kind](value, int(number))
        checked.add(kind)
    assert checked == set(expected)


def test_json_answers_hold_the_fields_of_the_sentence():
    checked = 0
    for prompt, response in clean_pairs():
        if "JSON" not in prompt:
            continue
        order = json.loads(response.removeprefix("```json").removesuffix("```"))
        assert "{name} from {city} ordered {quantity} {item}.".format(**order) in prompt
        checked += 1
    assert checked > 30


@pytest.mark.parametrize("kind", TASK_KINDS, ids=lambda kind: kind.__name__)
def test_every_kind_writes_short_varied_texts(kind):
    rng = random.Random(0)
    pairs = [kind(rng) for _ in range(100)]
    for prompt, response in pairs:
        assert 5 <= len(prompt.split()) <= 60
        assert 5 <= len(response.split()) <= 60
        assert "{" not in prompt
        assert prompt == prompt.strip()
        assert response == response.strip()
    assert len(set(pairs)) >= 30


def test_a_failed_write_leaves_the_old_file_and_no_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_demo_data(tmp_path, seed=0, rows_per_shard=20, validation_rows=20)
    before = read_bytes(tmp_path)

    def fail(source: Any, target: Any) -> None:
        assert Path(source).parent == Path(target).parent
        assert Path(source).read_bytes()
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_demo_data(tmp_path, seed=1, rows_per_shard=20, validation_rows=20)
    assert read_bytes(tmp_path) == before
