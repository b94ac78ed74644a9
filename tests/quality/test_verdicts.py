"""Verdicts follow from scores, probe and rules."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from forvalue_dagster.quality.verdicts import SHIFTED, GateRules, judge_shard
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
