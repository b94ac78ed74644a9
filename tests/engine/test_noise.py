"""The probe's passes: leave-one-out against brute force, and judgements that nothing changes."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

import forvalue_dagster as fv
from forvalue_dagster.data.corruption import corrupted_copies
from forvalue_dagster.data.read import read_rows
from forvalue_dagster.engine import noise
from forvalue_dagster.engine.feature_scoring import score_features
from forvalue_dagster.engine.features import feature_parts
from forvalue_dagster.engine.scoring import build_profile, score_rows
from forvalue_dagster.models.loading import LoadedModel
from forvalue_dagster.options.valuation import FeaturePrecision, ValuationOptions
from forvalue_dagster.valuation.profile import ValidationProfile
from tests.tiny import tiny_loaded

GENERATOR = np.random.default_rng(0)


def make_rows(count: int) -> pl.DataFrame:
    def text(words: int) -> str:
        return " ".join("".join(GENERATOR.choice(list("abcdef"), 3)) for _ in range(words))

    sizes = GENERATOR.integers(2, 7, count).tolist()
    return read_rows([{"prompt": text(n), "response": text(n + 1)} for n in sizes])


VALIDATION, TRAIN = make_rows(14), make_rows(12)
# Nothing rounded, and a metric that does not depend on the validation rows.
EXACT = ValuationOptions(
    preconditioner="none",
    features=FeaturePrecision(1000, "float32"),
    noise=fv.NoiseOptions(recipes=("word_shuffle", "answer_swap"), copies=2),
)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return tiny_loaded("llama", max_length=128)


@pytest.fixture(scope="module")
def profile(loaded) -> ValidationProfile:
    return build_profile(loaded, VALIDATION, EXACT)[0]


def test_alignments_are_those_without_the_row(loaded, monkeypatch) -> None:
    caught = {}

    def catch(clean, copies, recipes, **_):
        caught.update(clean=clean, copies=copies, recipes=recipes)
        return

    monkeypatch.setattr(noise, "fit_probe", catch)
    profile, _ = build_profile(loaded, VALIDATION, EXACT)
    copies = corrupted_copies(VALIDATION, EXACT.noise.recipes, EXACT.noise.seed)
    for place, row in enumerate(profile.rows.tolist()):
        others = VALIDATION.filter(pl.int_range(pl.len()) != row)
        without, _ = build_profile(loaded, others, EXACT.model_copy(update={"noise": None}))
        own = score_rows(loaded, VALIDATION[row], without, EXACT)["alignment"][0]
        assert caught["clean"][place, -1] == pytest.approx(own, rel=1e-6)
        table = score_rows(loaded, copies.filter(pl.col("copy_of") == row), without, EXACT)
        for recipe, alignment, nll in zip(
            copies.filter(pl.col("copy_of") == row)["recipe"],
            table["alignment"],
            table["nll"],
            strict=True,
        ):
            line = caught["copies"][place, caught["recipes"].index(recipe)]
            assert line[-1] == pytest.approx(alignment, rel=1e-6)
            assert line[0] == pytest.approx(nll, rel=1e-9)


@pytest.mark.parametrize("batch_tokens", [1, 90, 10_000])
def test_judgements_do_not_depend_on_batches_order_or_company(
    loaded, profile, batch_tokens: int
) -> None:
    first = score_rows(loaded, TRAIN, profile, EXACT)
    options = EXACT.model_copy(update={"batch_tokens": batch_tokens, "window_rows": 5})
    features = pl.concat(feature_parts(loaded, TRAIN.reverse().head(7), options))
    again = score_features(features.lazy(), profile, options)
    both = again.join(first, on=["shard", "row"], suffix="_first")
    assert len(both) == 7
    np.testing.assert_allclose(
        both["noise_probability"], both["noise_probability_first"], rtol=1e-4
    )
    np.testing.assert_allclose(
        np.array(both["prompt_coordinates"].to_list()),
        np.array(both["prompt_coordinates_first"].to_list()),
        rtol=1e-3,
        atol=1e-4,
    )
    assert set(both["profile"]) == set(both["profile_first"]) == {profile.identity}


def test_a_probe_keeps_to_its_own_metric(loaded, profile) -> None:
    """Valued in another metric, a row is judged as it was."""
    other = EXACT.model_copy(update={"preconditioner": "activation", "damping": 0.5})
    plain = score_rows(loaded, TRAIN, profile, EXACT)
    preconditioned = score_rows(loaded, TRAIN, profile, other)
    assert plain["value"].to_list() != preconditioned["value"].to_list()
    np.testing.assert_allclose(
        plain["noise_probability"], preconditioned["noise_probability"], rtol=1e-9
    )
    features = pl.concat(feature_parts(loaded, TRAIN, EXACT))
    stored = score_features(features.lazy(), profile, other)
    np.testing.assert_allclose(stored["noise_probability"], plain["noise_probability"], rtol=1e-4)


def test_a_stored_profile_judges_the_same(loaded, profile) -> None:
    again = ValidationProfile.from_tensors(*profile.to_tensors())
    assert again.identity == profile.identity
    features = pl.concat(feature_parts(loaded, TRAIN, EXACT)).lazy()
    first, second = (score_features(features, one, EXACT) for one in (profile, again))
    assert first.equals(second)


def test_another_validation_set_has_another_identity(loaded, profile) -> None:
    assert build_profile(loaded, VALIDATION.head(13), EXACT)[0].identity != profile.identity
    assert build_profile(loaded, VALIDATION, EXACT)[0].identity == profile.identity


@pytest.mark.parametrize("rows", [1, 2])
def test_few_validation_rows(loaded, rows: int) -> None:
    profile, _ = build_profile(loaded, VALIDATION.head(rows), EXACT)
    assert (profile.noise is not None) == (rows == 2)
    assert profile.prompts is None
    scores = score_rows(loaded, TRAIN, profile, EXACT)
    assert (scores["noise_probability"].null_count() == 0) == (rows == 2)
    assert scores["prompt_coordinates"].null_count() == len(TRAIN)


def test_without_a_probe(loaded) -> None:
    scores = fv.value_dataset(TRAIN, VALIDATION, model=loaded, noise=None)
    assert scores["noise_probability"].null_count() == len(TRAIN)
    with pytest.raises(ValueError, match="no noise probe has been fitted"):
        fv.select_rows(scores, fv.Selection())


def test_rows_that_cannot_be_scored_are_not_judged(loaded, profile) -> None:
    rows = read_rows([{"prompt": "a", "response": ""}, {"prompt": "abc", "response": "abc def"}])
    scores = score_rows(loaded, rows, profile, EXACT)
    assert scores["noise_probability"].is_null().to_list() == [True, False]


def test_at_most_so_many_rows_are_copied(loaded) -> None:
    few = EXACT.model_copy(
        update={"noise": fv.NoiseOptions(recipes=("word_shuffle",), copies=1, max_rows=5)}
    )
    profile, _ = build_profile(loaded, VALIDATION, few)
    assert profile.noise.rows == 5
    assert len(profile.rows) == 14
    for wrong in ({"recipes": ()}, {"copies": 0}, {"max_rows": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            fv.NoiseOptions(**wrong)
