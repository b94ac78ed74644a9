"""Verdicts follow from scores, probe and rules."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from forvalue_dagster.options.gate import GateRules
from forvalue_dagster.quality.verdicts import SHIFTED, judge_kept, judge_shard
from forvalue_dagster.valuation.noise import NoiseProbe, fit_probe, probabilities
from forvalue_dagster.valuation.prompt_space import fit_prompt_space

RNG = np.random.default_rng(0)
PROMPTS = fit_prompt_space(RNG.standard_normal((60, 20)))
assert PROMPTS is not None


def probe(rows: int = 100, damage: float = 6.0) -> NoiseProbe:
    clean = np.random.default_rng(1).standard_normal((rows, 2))
    return fit_probe(clean, clean[:, None] + np.array([[[damage, 0.0]]]), ("push",))


def scores(noisy: int = 0, clean: int = 200, shift: float = 0.0) -> pl.DataFrame:
    rng = np.random.default_rng(2)
    statistics = rng.standard_normal((clean + noisy, 2))
    statistics[clean:, 0] += 6
    prompts = rng.standard_normal((clean + noisy, 20)) + shift
    return pl.DataFrame(
        {
            "sample_id": [f"row {place}" for place in range(len(statistics))],
            "status": ["scored"] * len(statistics),
            "profile": ["p"] * len(statistics),
            "noise_probability": probabilities(probe().log_odds(statistics)),
            "prompt_coordinates": PROMPTS.project(prompts).tolist(),
        }
    )


def judge(table: pl.DataFrame, own: NoiseProbe | None = None, **rules):
    return judge_shard("s", table, own or probe(), PROMPTS, "p", GateRules(**rules))


def test_a_clean_shard_passes() -> None:
    verdict = judge(scores())
    assert (verdict.verdict, verdict.passed) == ("pass", True)
    assert verdict.noise_fraction < 0.02
    assert verdict.summary.startswith("shard 's': pass: estimated noise 0.")
    assert "within the limit of 15.0%" in verdict.summary


def test_a_noisy_shard_fails() -> None:
    verdict = judge(scores(noisy=120))
    assert (verdict.verdict, verdict.passed) == ("fail", False)
    assert verdict.noise_lower < 120 / 320 < verdict.noise_upper
    assert "above the limit of 15.0%" in verdict.summary


def test_an_estimate_above_the_limit_alone_warns() -> None:
    table = scores(noisy=40)
    noise = judge(table).noise_fraction
    verdict = judge(table, max_noise_fraction=noise - 0.01)
    assert (verdict.verdict, verdict.passed) == ("warn", True)
    assert not judge(table, max_noise_fraction=verdict.noise_lower - 1e-9).passed


@pytest.mark.parametrize(
    ("own", "reason"),
    [
        (probe(rows=12), "rests on 12 validation rows; expected at least 30"),
        (probe(damage=0.2), "with an AUC of 0."),
    ],
)
def test_a_probe_that_proves_nothing_certifies_nothing(own: NoiseProbe, reason: str) -> None:
    verdict = judge(scores(), own)
    assert (verdict.verdict, verdict.passed) == ("uncertified", False)
    assert reason in verdict.reason
    assert verdict.noise_fraction is None
    assert judge(scores(), own, uncertified="warn").passed


def test_no_probe_at_all() -> None:
    verdict = judge_shard("s", scores(), None, PROMPTS, "p", GateRules())
    assert (verdict.verdict, verdict.passed) == ("uncertified", False)


def test_a_shifted_shard_gets_no_noise_figure() -> None:
    verdict = judge(scores(noisy=200, shift=3.0))
    assert (verdict.verdict, verdict.passed) == (SHIFTED, False)
    assert verdict.noise_fraction is None
    assert verdict.shift > 0.9
    assert "noise cannot be estimated" in verdict.reason
    assert judge(scores(shift=3.0), domain_shift="warn").passed
    judged = judge(scores(noisy=200, shift=3.0), domain_shift="judge")
    assert (judged.verdict, judged.passed) == ("fail", False)
    assert "uncalibrated" in judged.reason


def test_scores_of_another_profile_certify_nothing() -> None:
    verdict = judge(scores().with_columns(profile=pl.lit("q")), uncertified="warn")
    assert (verdict.verdict, verdict.passed) == ("uncertified", False)
    assert "rest on the validation profile q, not on p" in verdict.reason


def test_a_shard_without_a_scored_row_does_not_pass() -> None:
    table = scores().with_columns(status=pl.lit("skipped"))
    verdict = judge(table, max_noise_fraction=1.0, uncertified="warn")
    assert not verdict.passed
    assert "none of its 200 rows" in verdict.reason


def of_log_odds(values: np.ndarray, copies: int = 1) -> pl.DataFrame:
    """Scores of rows of such log-odds, each occurring so often."""
    names = [f"row {place}" for place in range(len(values))] * copies
    return pl.DataFrame(
        {
            "sample_id": names,
            "status": ["scored"] * len(names),
            "profile": ["p"] * len(names),
            "noise_probability": np.tile(probabilities(values), copies),
            "prompt_coordinates": PROMPTS.project(np.zeros((len(names), 20))).tolist(),
        }
    )


def spread(distance: float, rows: int = 100) -> NoiseProbe:
    """A probe with clean rows at −4 and damage at a distance."""
    rng = np.random.default_rng(0)
    clean = rng.normal(-4, 0.3, rows)
    copies = rng.normal(distance - 4, 0.3, (rows, 1))
    return replace(probe(), clean=clean, copies=copies)


def judged(values: np.ndarray, own: NoiseProbe, copies: int = 1, **rules):
    return judge_shard("s", of_log_odds(values, copies), own, None, "p", GateRules(**rules))


def test_too_few_rows_certify_nothing() -> None:
    clean = np.random.default_rng(1).normal(-4, 0.3, 60)
    few = judged(clean[:19], spread(8))
    assert (few.verdict, few.passed) == ("uncertified", False)
    assert "too few rows: 19 distinct ones; expected at least 20 for a limit of 15.0%" in few.reason
    assert judged(clean[:19], spread(8), uncertified="warn").passed
    assert judged(clean[:20], spread(8)).verdict == "pass"
    assert judged(clean[:20], spread(8), max_noise_fraction=0.05).verdict == "uncertified"
    assert judged(clean, spread(8), max_noise_fraction=0.05).verdict == "pass"
    assert "no number of rows" in judged(clean, spread(8), max_noise_fraction=0.0).reason
    # Copies of a row are not rows; plain noise is noise, however few.
    assert judged(clean[:10], spread(8), copies=40).verdict == "uncertified"
    assert judged(np.full(12, 9.0), spread(8), uncertified="warn").verdict == "fail"


def test_unexplained_rows_do_not_pass() -> None:
    clean = np.random.default_rng(1).normal(-4, 0.3, 100)
    for place in (-1.5, 1.0, -20.0):
        verdict = judged(np.concatenate([clean, np.full(60, place)]), spread(8))
        assert (verdict.verdict, verdict.passed) == ("uncertified", False)
        assert verdict.unexplained == 60 / 160
        assert verdict.noise_upper > 60 / 160
        assert "37.5% of its rows are unexplained" in verdict.reason
    few = judged(np.concatenate([clean, np.full(5, -1.5)]), spread(8))
    assert (few.verdict, few.unexplained) == ("pass", 5 / 105)


def test_copies_of_clean_rows_dilute_nothing() -> None:
    clean = np.random.default_rng(1).normal(-4, 0.3, 12)
    table = pl.concat([of_log_odds(clean, 30), of_log_odds(np.full(42, 5.0))[12:]])
    verdict = judge_shard("s", table, spread(8), None, "p", GateRules())
    assert (verdict.verdict, verdict.scored, verdict.distinct) == ("fail", 390, 42)
    assert verdict.noise_fraction > 0.6
    assert verdict.noise_of_all < 0.1


def test_an_interval_that_says_nothing_is_no_pass() -> None:
    rng = np.random.default_rng(2)
    own = replace(probe(), clean=rng.normal(0, 1, 6), copies=rng.normal(1.2, 1, (6, 1)))
    rows = np.concatenate([rng.normal(0, 1, 15), rng.normal(1.2, 1, 10)])
    verdict = judged(rows, own, min_probe_rows=2, min_probe_auc=0.5)
    assert verdict.noise_lower <= 0.15
    assert verdict.noise_upper > 0.5
    assert verdict.verdict == "uncertified"


def test_what_was_kept_is_judged_together() -> None:
    rng = np.random.default_rng(1)
    shards = {
        "a": of_log_odds(rng.normal(-4, 0.3, 40)),
        "b": of_log_odds(np.concatenate([rng.normal(-4, 0.3, 30), np.full(20, 5.0)])),
        "c": of_log_odds(rng.normal(-4, 0.3, 10)),
    }
    for name, table in shards.items():
        shards[name] = table.with_columns(
            sample_id=pl.lit(name) + pl.col("sample_id"), shard=pl.lit(name), row=pl.row_index()
        )
    own = spread(8)
    verdicts = [judge_shard(s, table, own, None, "p", GateRules()) for s, table in shards.items()]
    everything = pl.concat(shards.values())
    kept = judge_kept(verdicts, shards, everything, own, 0.15)
    assert (kept.passed, kept.rows, kept.unjudged) == (False, 100, 0)
    assert kept.noise_lower < 0.2 < kept.noise_upper
    assert "of the 100 rows kept" in kept.summary
    assert "above the limit of 15.0%" in kept.summary

    chosen = judge_kept(
        verdicts, shards, everything.filter(pl.col("noise_probability") < 0.5), own, 0.15
    )
    assert (chosen.passed, chosen.rows) == (True, 80)
    assert chosen.noise_fraction < 0.05
    unjudged = [replace(v, noise_fraction=None) for v in verdicts]
    assert judge_kept(unjudged, shards, everything, own, 0.15).unjudged == 100
