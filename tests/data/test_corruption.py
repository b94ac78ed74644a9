"""A known share of damaged rows, and damaged copies of every row."""

import json
from collections import Counter

import polars as pl
import pytest

from forvalue_dagster.data.corruption import corrupt_responses, corrupted_copies
from forvalue_dagster.data.image_recipes import IMAGE_RECIPES
from forvalue_dagster.data.images import image_digest
from forvalue_dagster.data.read import read_rows
from forvalue_dagster.data.recipes import NOISE_RECIPES, SAME_QUESTION

RESPONSES = [f"Row {index} says that the answer is {index * index}." for index in range(41)]

# What plain text is damaged by, left to itself.
PLAIN = set(NOISE_RECIPES) - {SAME_QUESTION}


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 0.45, 1.0])
@pytest.mark.parametrize("rows", [0, 1, 9, 41])
def test_the_share_of_damaged_rows_is_exact(rows, share):
    responses = RESPONSES[:rows]
    damaged = corrupt_responses(responses, share, seed=3)
    assert len(damaged) == rows
    assert sum(recipe is not None for _, recipe in damaged) == round(share * rows)
    for (text, recipe), response in zip(damaged, responses, strict=True):
        assert (text == response) == (recipe is None)


def test_recipes_are_balanced():
    counts = Counter(recipe for _, recipe in corrupt_responses(RESPONSES, 1.0, seed=0))
    assert set(counts) == PLAIN
    assert max(counts.values()) - min(counts.values()) <= 1


def test_damage_depends_on_the_seed_only():
    assert corrupt_responses(RESPONSES, 0.5, seed=7) == corrupt_responses(RESPONSES, 0.5, seed=7)
    assert corrupt_responses(RESPONSES, 0.5, seed=7) != corrupt_responses(RESPONSES, 0.5, seed=8)


def test_only_the_named_recipes_are_used():
    damaged = corrupt_responses(RESPONSES, 0.5, seed=0, recipes=["word_shuffle", "answer_swap"])
    assert {recipe for _, recipe in damaged} == {None, "word_shuffle", "answer_swap"}


def test_donors_come_from_other_groups_and_differ_from_the_response():
    responses = ["one one", "one one", "two two", "three three"]
    groups = ["a", "b", "b", "c"]
    for seed in range(30):
        texts = [
            text
            for text, _ in corrupt_responses(
                responses, 1.0, seed, recipes=["answer_swap"], groups=groups
            )
        ]
        assert texts[0] in ("two two", "three three")
        assert texts[1] == "three three"
        assert texts[2] in ("one one", "three three")
        assert texts[3] in ("one one", "two two")


def test_a_row_takes_the_next_recipe_that_can_change_it():
    damaged = corrupt_responses(["Yes", "No"], 1.0, seed=0, recipes=["word_shuffle", "answer_swap"])
    assert damaged == [("No", "answer_swap"), ("Yes", "answer_swap")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"share": 1.5}, "share must be"),
        ({"share": -0.1}, "share must be"),
        ({"share": float("nan")}, "share must be"),
        ({"recipes": ["typo"]}, "typo"),
        ({"recipes": []}, "no such noise recipes"),
        ({"groups": ["a"]}, "1 groups for 2 responses"),
        ({"recipes": ["word_shuffle"]}, "can change a response"),
    ],
)
def test_impossible_requests_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        corrupt_responses(**{"responses": ["Yes", "No"], "share": 1.0, "seed": 0} | arguments)


ROWS = read_rows(
    [{"prompt": f"Question {i}?", "response": text} for i, text in enumerate(RESPONSES)]
)


def answers(copies: pl.DataFrame) -> list[str]:
    return [json.loads(text)[-1]["content"] for text in copies["messages"]]


def test_every_row_has_a_copy_by_every_recipe():
    copies = corrupted_copies(ROWS)
    assert Counter(copies["recipe"]) == dict.fromkeys(PLAIN, len(ROWS))
    for index, text in zip(copies["copy_of"], answers(copies), strict=True):
        assert text != RESPONSES[index]
    assert set(ROWS.columns) < set(copies.columns)
    assert copies["sample_id"].to_list() == ROWS["sample_id"][copies["copy_of"].to_list()].to_list()


def test_copies_by_drawn_recipes():
    copies = corrupted_copies(ROWS, per_row=3)
    assert Counter(copies["copy_of"]) == dict.fromkeys(range(len(ROWS)), 3)
    assert set(copies["recipe"]) == PLAIN
    assert copies.select("copy_of", "recipe").is_unique().all()


def test_a_copy_does_not_depend_on_the_order_of_rows():
    forward = corrupted_copies(ROWS, per_row=3)
    backward = corrupted_copies(ROWS.reverse(), per_row=3)
    key = ["sample_id", "recipe"]
    columns = [*key, "messages"]
    assert forward.select(columns).sort(key).equals(backward.select(columns).sort(key))
    assert corrupted_copies(ROWS, seed=1)["messages"].to_list() != answers(corrupted_copies(ROWS))


def test_the_last_response_alone_is_damaged():
    turns = [("user", "a b c"), ("assistant", "d e f"), ("user", "g"), ("assistant", "h i j")]
    frame = read_rows([{"messages": [{"role": r, "content": c} for r, c in turns]}])
    (copy,) = corrupted_copies(frame, ["word_shuffle"])["messages"]
    *before, last = json.loads(copy)
    assert [(turn["role"], turn["content"]) for turn in before] == turns[:3]
    assert sorted(last["content"].split()) == ["h", "i", "j"]


def test_what_cannot_be_damaged_has_no_copy():
    frame = read_rows(
        [{"prompt": "p", "response": "one"}, {"prompt": "p", "response": ""}, {"text": 1}],
        on_bad_row="skip",
    )
    assert corrupted_copies(frame, ["word_shuffle", "answer_swap"]).is_empty()
    assert corrupted_copies(frame, ["refusal"])["copy_of"].to_list() == [0]
    with pytest.raises(ValueError, match="typo"):
        corrupted_copies(frame, ["typo"])


PICTURES = [f"picture {number}".encode() for number in range(6)]
SEEN = read_rows(
    [
        {"prompt": question, "response": answer, "image": picture}
        for picture, (question, answer) in zip(
            PICTURES, [("What?", "cat"), ("What?", "dog"), ("Odd?", "yes")] * 2, strict=True
        )
    ]
)


def test_images_are_swapped_with_their_names():
    copies = corrupted_copies(SEEN, ["image_swap"])
    assert copies["copy_of"].to_list() == list(range(6))
    for index, text, images in copies.select("copy_of", "messages", "images").iter_rows():
        (image,) = images
        assert image in PICTURES
        assert image != PICTURES[index]
        question, response = json.loads(text)
        assert question["content"][0] == {"type": "image", "image": image_digest(image)}
        assert response["content"] == json.loads(SEEN["messages"][index])[-1]["content"]


def test_answers_are_flipped_within_their_question():
    copies = corrupted_copies(SEEN, [SAME_QUESTION])
    # Nobody answers the third question otherwise.
    assert copies["copy_of"].to_list() == [0, 1, 3, 4]
    assert answers(copies) == ["dog", "cat", "dog", "cat"]
    assert copies["images"].to_list() == [[PICTURES[index]] for index in (0, 1, 3, 4)]


def test_rows_with_images_have_recipes_of_their_own():
    assert {SAME_QUESTION, *IMAGE_RECIPES} < set(corrupted_copies(SEEN)["recipe"])
    with pytest.raises(ValueError, match="no such noise recipes"):
        corrupted_copies(SEEN, ["image_blur"])


def test_a_turn_that_is_not_scored_is_not_damaged():
    turns = [
        {"role": "user", "content": "Sum."},
        {"role": "assistant", "content": "It is three."},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "It is four.", "weight": 0},
    ]
    copies = corrupted_copies(read_rows([{"messages": turns}]), seed=0, recipes=["word_shuffle"])
    (messages,) = copies["messages"]
    assert json.loads(messages)[3] == {
        "role": "assistant",
        "content": "It is four.",
        "train": False,
    }
    assert json.loads(messages)[1]["content"] != "It is three."
