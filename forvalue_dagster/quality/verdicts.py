"""The verdict on a shard, from its stored scores and the profile's noise probe."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl

from forvalue_dagster.options.gate import GateRules
from forvalue_dagster.valuation.noise import NoiseProbe, log_odds_of
from forvalue_dagster.valuation.noise_fraction import NoiseFraction, noise_fraction, rows_needed
from forvalue_dagster.valuation.prompt_space import PromptSpace, Shift, measure_shift

Verdict = Literal["pass", "warn", "fail", "uncertified", "not certifiable: domain shift"]
SHIFTED: Verdict = "not certifiable: domain shift"
# An interval that reaches this far is useless: most of the rows might be noise.
_TOO_WIDE = 0.5


@dataclass(frozen=True)
class ShardVerdict:
    """Whether a shard may be trained on, with the figures behind it.

    Attributes:
        shard: the partition.
        verdict: the verdict.
        passed: whether the rules let it through.
        reason: the reason, in a clause.
        max_noise_fraction: the threshold.
        noise_fraction: estimated share of noisy ones among the distinct rows; None if there is no
            reliable estimate.
        noise_lower, noise_upper: its 95 % interval.
        shift: ROC-AUC of its prompts against the validation prompts; None if untested.
        scored: number of rows with a score.
        distinct: number of different conversations among them; the estimate is for these.
        noise_of_all: the estimate with every copy of a row counted.
        unexplained: share of distinct rows that are like neither clean nor damaged ones.
    """

    shard: str
    verdict: Verdict
    passed: bool
    reason: str
    max_noise_fraction: float
    noise_fraction: float | None = None
    noise_lower: float | None = None
    noise_upper: float | None = None
    shift: float | None = None
    scored: int = 0
    distinct: int = 0
    noise_of_all: float | None = None
    unexplained: float | None = None

    @property
    def summary(self) -> str:
        """One sentence for a person."""
        return f"shard {self.shard!r}: {self.verdict}: {self.reason}"


@dataclass(frozen=True)
class KeptNoise:
    """The noise of a filtered dataset itself.

    Attributes:
        max_noise_fraction: the threshold.
        noise_fraction: estimated share of noisy rows among the kept ones; None if there is no
            reliable estimate.
        noise_lower, noise_upper: its 95 % interval.
        unexplained: share of kept rows that are like neither clean nor damaged ones.
        rows: number of kept rows in the estimate.
        unjudged: number of kept rows of shards that were let through without an estimate.
    """

    max_noise_fraction: float
    noise_fraction: float | None = None
    noise_lower: float | None = None
    noise_upper: float | None = None
    unexplained: float | None = None
    rows: int = 0
    unjudged: int = 0

    @property
    def passed(self) -> bool:
        """Whether the dataset may be trained on, as far as its noise is known."""
        return self.noise_fraction is None or self.noise_fraction <= self.max_noise_fraction

    @property
    def summary(self) -> str:
        """One clause for a person."""
        if self.noise_fraction is None:
            return f"the noise of its {self.unjudged} rows could not be estimated"
        told = (
            f"estimated noise {self.noise_fraction:.1%} of the {self.rows} rows kept (95 % "
            f"interval {self.noise_lower:.1%} to {self.noise_upper:.1%}), "
            f"{'within' if self.passed else 'above'} the limit of {self.max_noise_fraction:.1%}"
        )
        return told + (f"; {self.unjudged} further rows are unjudged" if self.unjudged else "")


def probe_objection(probe: NoiseProbe | None, rules: GateRules) -> str | None:
    """Return why a probe is not reliable; None if it is."""
    if probe is None:
        return "the validation profile has no noise probe: too few validation rows, or noise off"
    if probe.rows < rules.min_probe_rows:
        return (
            f"the noise probe rests on {probe.rows} validation rows; expected at least "
            f"{rules.min_probe_rows}"
        )
    if not probe.auc >= rules.min_probe_auc:
        return (
            f"the noise probe tells damaged validation rows from clean ones with an AUC of "
            f"{probe.auc:.2f}; expected at least {rules.min_probe_auc:.2f}"
        )
    return None


def judge_shard(
    shard: str,
    scores: pl.DataFrame,
    probe: NoiseProbe | None,
    prompts: PromptSpace | None,
    profile: str,
    rules: GateRules,
) -> ShardVerdict:
    """Return the verdict on a shard from its value scores; one without a scored row is blocked.

    Args:
        shard: the partition.
        scores: the shard's table of `value_scores`.
        probe: noise probe of the validation profile.
        prompts: prompt space of the validation profile.
        profile: identity of that profile.
        rules: the gate's rules.
    """
    scored = scores.filter(pl.col("status") == "scored")
    limit = rules.max_noise_fraction
    # Copies of a row add no information, and selection keeps one of them.
    distinct = scored.unique("sample_id", keep="first", maintain_order=True)

    def verdict(
        verdict: Verdict, passed: bool, reason: str, **figures: float | None
    ) -> ShardVerdict:
        return ShardVerdict(
            shard,
            verdict,
            passed,
            reason,
            limit,
            scored=len(scored),
            distinct=len(distinct),
            **figures,
        )

    if scored.is_empty():
        return verdict("fail", False, f"none of its {len(scores)} rows could be scored")
    if strange := set(scores["profile"].unique()) - {profile}:
        return verdict(
            "uncertified",
            False,
            f"its scores rest on the validation profile {', '.join(map(str, strange))}, not on "
            f"{profile}, which is in force: compute its value scores again",
        )
    objection = probe_objection(probe, rules)
    if objection is not None or probe is None:
        return verdict("uncertified", rules.uncertified == "warn", str(objection))
    shift = _shift(distinct, prompts)
    figures: dict[str, float | None] = {"shift": None if shift is None else shift.auc}
    shifted = shift is not None and shift.lower > rules.max_shift
    if shift is not None and shifted and rules.domain_shift != "judge":
        return verdict(
            SHIFTED,
            rules.domain_shift == "warn",
            f"its prompts can be told from the validation prompts (AUC {shift.auc:.2f}, limit "
            f"{rules.max_shift:.2f}), so its noise cannot be estimated from them",
            **figures,
        )
    noise = noise_fraction(probe, log_odds_of(distinct["noise_probability"].to_numpy()))
    figures |= {
        "noise_fraction": noise.estimate,
        "noise_lower": noise.lower,
        "noise_upper": noise.upper,
        "unexplained": noise.unexplained,
        "noise_of_all": noise.estimate,
    }
    if len(distinct) < len(scored):
        copies = noise_fraction(probe, log_odds_of(scored["noise_probability"].to_numpy()))
        figures["noise_of_all"] = copies.estimate
    told = _told(noise, len(scored), figures["noise_of_all"])
    if shifted:
        told += ", uncalibrated: its prompts are not like the validation prompts"
    if noise.lower > limit:
        return verdict("fail", False, f"{told}, above the limit of {limit:.1%}", **figures)
    if objection := _undecided(noise, limit):
        passed = rules.uncertified == "warn"
        return verdict("uncertified", passed, f"{objection}: {told}", **figures)
    if noise.estimate > limit:
        return verdict(
            "warn", True, f"{told}: above the limit of {limit:.1%}, the interval is not", **figures
        )
    return verdict("pass", True, f"{told}, within the limit of {limit:.1%}", **figures)


def judge_kept(
    verdicts: Iterable[ShardVerdict],
    scores: Mapping[str, pl.DataFrame],
    kept: pl.DataFrame,
    probe: NoiseProbe | None,
    limit: float,
) -> KeptNoise:
    """Estimate the noise of the rows kept of all shards that passed.

    Args:
        verdicts: verdicts of the shards that passed.
        scores: shard → its value scores.
        kept: shard and row of the rows kept.
        probe: noise probe of the validation profile.
        limit: the threshold.
    """
    judged = [verdict.shard for verdict in verdicts if verdict.noise_fraction is not None]
    ours = kept.filter(pl.col("shard").is_in(judged)).select("shard", "row", kept=1)
    unjudged = len(kept) - len(ours)
    if probe is None or ours.is_empty():
        return KeptNoise(limit, unjudged=unjudged)
    names = ["shard", "row", "sample_id", "noise_probability"]
    rows = (
        pl.concat(
            scores[shard].filter(pl.col("status") == "scored").select(names) for shard in judged
        )
        .join(ours, on=["shard", "row"], how="left")
        .group_by("sample_id", maintain_order=True)
        .agg(pl.col("noise_probability").first(), pl.col("kept").sum())
    )
    log_odds = log_odds_of(rows["noise_probability"].to_numpy())
    noise = noise_fraction(probe, log_odds, rows["kept"].to_numpy().astype(np.float64))
    return KeptNoise(
        limit, noise.estimate, noise.lower, noise.upper, noise.unexplained, noise.rows, unjudged
    )


def _told(noise: NoiseFraction, scored: int, of_all: float | None) -> str:
    copies = noise.rows < scored
    told = (
        f"estimated noise {noise.estimate:.1%} of {noise.rows} {'distinct ' if copies else ''}rows "
        f"(95 % interval {noise.lower:.1%} to {noise.upper:.1%})"
    )
    if copies and of_all is not None:
        told += f", {of_all:.1%} of all {scored} with their copies"
    return told


def _undecided(noise: NoiseFraction, limit: float) -> str | None:
    """Return why an estimate within the limit does not count; None if it does."""
    needed = rows_needed(limit)
    if noise.rows < needed:
        return (
            f"too few rows: {noise.rows} distinct ones; expected at least {needed} for a limit of "
            f"{limit:.1%}"
            if math.isfinite(needed)
            else f"no number of rows shows that noise is within a limit of {limit:.1%}"
        )
    if noise.if_clean <= limit < noise.if_noise:
        return (
            f"{noise.unexplained:.1%} of its rows are unexplained, like neither the validation "
            f"rows nor damaged copies of them"
        )
    if noise.upper > max(limit, _TOO_WIDE):
        return "the interval is too wide to judge it"
    return None


def _shift(scored: pl.DataFrame, prompts: PromptSpace | None) -> Shift | None:
    if prompts is None or scored["prompt_coordinates"].null_count():
        return None
    shift = measure_shift(prompts.coordinates, np.array(scored["prompt_coordinates"].to_list()))
    return None if shift is None or math.isnan(shift.auc) else shift
