"""Every option is written once, and says what is wrong without its secrets."""

from __future__ import annotations

import dagster as dg
import pytest
from dagster._core.errors import DagsterResourceFunctionError

import forvalue_dagster as fv
from forvalue_dagster.options.base import Options
from forvalue_dagster.options.gate import GateRules
from forvalue_dagster.options.valuation import FeaturePrecision, ValuationSettings

SET_IN_RUNS = fv.SelectionPolicy.configure_at_launch()


@pytest.mark.parametrize(
    ("resource", "kinds"),
    [
        (fv.SelectionPolicy, [fv.Selection]),
        (fv.GatePolicy, [GateRules]),
        (fv.Valuation, [fv.ModelConfig, ValuationSettings, FeaturePrecision]),
    ],
)
def test_a_resource_has_the_options_as_they_are(
    resource: type[dg.ConfigurableResource], kinds: list[type[Options]]
) -> None:
    for kind in kinds:
        assert kind.of(resource()) == kind()
        for name, field in kind.model_fields.items():
            ours = resource.model_fields[name]
            assert (ours.description, ours.metadata) == (field.description, field.metadata)


def test_options_by_position_and_by_name() -> None:
    assert fv.ModelConfig("path", revision="main") == fv.ModelConfig(name="path", revision="main")
    with pytest.raises(TypeError, match=r"Attribution got \['top'\] twice"):
        fv.Attribution(3, top=3)
    with pytest.raises(TypeError, match="Attribution has 2 options; got 3 values"):
        fv.Attribution(3, True, 4)
    with pytest.raises(ValueError, match=r"tops\n.*not permitted"):
        fv.Attribution(tops=3)
    with pytest.raises(ValueError, match="frozen"):
        fv.Attribution().top = 3


@pytest.mark.parametrize("wrong", [{"webhok": "https://secret"}, {"webhook": ["https://secret"]}])
def test_an_error_shows_no_webhook(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))) as caught:
        fv.Alerts(**{"notify": print} | wrong)
    assert "secret" not in str(caught.value)
    assert "secret" not in repr(fv.Alerts(webhook="https://secret"))


def test_a_webhook_may_stay_in_the_environment() -> None:
    assert isinstance(fv.Alerts(webhook=dg.EnvVar("HOOK")).webhook, dg.EnvVar)


def test_a_run_and_the_environment_may_set_what_a_resource_inherits(monkeypatch) -> None:
    monkeypatch.setenv("MODEL", "some/model")
    seen = {}

    @dg.asset
    def step(valuation: fv.Valuation, selection: fv.SelectionPolicy) -> None:
        seen.update(name=valuation.config().name, keep=fv.Selection.of(selection).keep_fraction)

    resources = {"valuation": fv.Valuation(name=dg.EnvVar("MODEL")), "selection": SET_IN_RUNS}
    run_config = {"resources": {"selection": {"config": {"keep_fraction": 0.25}}}}
    dg.materialize([step], resources=resources, run_config=run_config)
    assert seen == {"name": "some/model", "keep": 0.25}
    run_config["resources"]["selection"]["config"]["keep_fraction"] = 7
    with pytest.raises(DagsterResourceFunctionError) as caught:
        dg.materialize([step], resources=resources, run_config=run_config)
    assert "less than or equal to 1" in str(caught.value.__cause__)


def test_a_policy_that_contradicts_itself_is_refused_where_it_is_written() -> None:
    with pytest.raises(ValueError, match="one alignment, not one for each group"):
        fv.SelectionPolicy(across_groups="mean")
