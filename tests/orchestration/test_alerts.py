"""Somebody is told of what is wrong, once, by a real request to a real server."""

# No `from __future__ import annotations` here: Dagster inspects the annotation of `context`.

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import dagster as dg
import pytest

import forvalue_dagster as fv
from forvalue_dagster.orchestration.options.alerts import Alert
from tests.orchestration.conftest import LIKELY, Instances, Project
from tests.orchestration.test_soak import DEFINITIONS, INSTANCE, dagster_dev, wait

ALERTING = DEFINITIONS.replace(
    "automation=fv.Automation(seconds=3),",
    "automation=fv.Automation(running=False),\n"
    "        alerts=fv.Alerts(webhook=dg.EnvVar('ALERT_WEBHOOK'), seconds=3),",
).replace("import os", "import os\n    import dagster as dg")


class Mailbox:
    """A web server that keeps what is posted to it, or refuses it."""

    def __init__(self) -> None:
        self.posted: list[dict[str, str]] = []
        self.status = 200
        mailbox = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if mailbox.status == 200:
                    mailbox.posted.append(body)
                self.send_response(mailbox.status)
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/secret-path"

    def take(self) -> list[dict[str, str]]:
        taken, self.posted = self.posted, []
        return taken


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    made = Mailbox()
    thread = threading.Thread(target=made.server.serve_forever)
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


@pytest.fixture
def project(
    valued: Path, tmp_path: Path, model_directory: Path, instances: Instances, mailbox: Mailbox
) -> Iterator[Project]:
    folder = tmp_path / "project"
    with instances.open(folder, like=valued) as instance:
        made = Project(folder, model_directory, instance)
        made.options["alerts"] = fv.Alerts(webhook=mailbox.url, stale_minutes=0)
        yield made


def tick(project: Project, cursor: str | None) -> dg.SensorResult:
    definitions = project.definitions
    with dg.build_sensor_context(
        instance=project.instance, cursor=cursor, definitions=definitions
    ) as context:
        return definitions.resolve_sensor_def("forvalue_alerts")(context)


def test_a_blocked_shard_is_told_once(project: Project, mailbox: Mailbox) -> None:
    first = tick(project, None)
    told = mailbox.take()
    blocked = [alert for alert in told if alert["kind"] == "blocked"]
    assert [alert["subject"] for alert in blocked] == ["value_scores.noise_fraction of 'bad'"]
    assert "estimated noise" in blocked[0]["text"]
    second = tick(project, first.cursor)
    assert mailbox.take() == []
    # Mended, it is well; bad again, it is told again.
    rows = (project.folder / "train" / "bad.jsonl").read_bytes()
    project.write("train/bad.jsonl", project.rows(20, LIKELY, seed=11))
    assert project.run("forvalue_shard", "bad").success
    third = tick(project, second.cursor)
    assert not [alert for alert in mailbox.take() if alert["kind"] == "blocked"]
    (project.folder / "train" / "bad.jsonl").write_bytes(rows)
    assert not project.run("forvalue_shard", "bad").success
    tick(project, third.cursor)
    assert blocked[0] in mailbox.take()


def test_nobody_there_is_tried_again(project: Project, mailbox: Mailbox) -> None:
    mailbox.status = 500
    first = tick(project, None)
    assert "Nobody could be told" in first.skip_reason.skip_message
    assert "secret-path" not in first.skip_reason.skip_message
    mailbox.status = 200
    tick(project, first.cursor)
    assert any(alert["kind"] == "blocked" for alert in mailbox.take())


def test_stale_datasets_and_overrides(project: Project, mailbox: Mailbox) -> None:
    @dg.op
    def train(context: dg.OpExecutionContext) -> None:
        fv.require_certified(context, force="the customer agreed, ticket 12")

    @dg.job
    def train_job() -> None:
        train()

    project.options["gate"] = fv.GatePolicy(allow_overrides=True)
    project.instance.delete_dynamic_partition("forvalue_shards", "bad")
    config = {"gate": {"config": {"max_noise_fraction": 0.3, "override_reason": "a trial"}}}
    job = project.definitions.resolve_job_def("forvalue_filter")
    assert job.execute_in_process(
        instance=project.instance, run_config={"resources": config}
    ).success
    first = tick(project, None)
    (override,) = [alert for alert in mailbox.take() if alert["kind"] == "override"]
    assert "gate.max_noise_fraction was 0.3 in this run" in override["text"]
    assert "a trial" in override["text"]

    project.instance.delete_dynamic_partition("forvalue_shards", "other")
    assert train_job.execute_in_process(instance=project.instance).success
    second = tick(project, first.cursor)
    told = {alert["kind"]: alert["text"] for alert in mailbox.take()}
    assert set(told) == {"stale", "override"}
    assert "shard 'other' was withdrawn" in told["stale"]
    assert "the customer agreed, ticket 12" in told["override"]
    tick(project, second.cursor)
    assert mailbox.take() == []


def test_a_function_is_told(project: Project) -> None:
    told: list[Alert] = []
    project.options["alerts"] = fv.Alerts(notify=told.append)
    tick(project, None)
    assert "blocked" in {alert.kind for alert in told}
    with pytest.raises(ValueError, match="tell nobody"):
        fv.Alerts()


@pytest.mark.soak
def test_the_daemon_tells_once(
    valued: Path,
    tmp_path: Path,
    model_directory: Path,
    instances: Instances,
    mailbox: Mailbox,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The real daemon, which looks every few seconds, and a server that is away at first."""
    monkeypatch.setenv("ALERT_WEBHOOK", mailbox.url)
    mailbox.status = 500
    folder = tmp_path / "project"
    with (
        instances.open(folder, like=valued, overrides=INSTANCE) as instance,
        dagster_dev(folder, folder, model_directory, ALERTING),
    ):

        def sensed() -> int:
            """How often the sensor has looked and launched nothing."""
            for state in instance.all_instigator_state():
                if state.name == "forvalue_alerts":
                    ticks = instance.get_ticks(state.instigator_origin_id, state.selector_id)
                    return sum(tick.status.value == "SKIPPED" for tick in ticks)
            return 0

        wait(sensed, "a tick that reached nobody", folder)
        assert mailbox.take() == []
        mailbox.status = 200
        wait(lambda: mailbox.posted, "the alert", folder)
        seen = sensed()
        wait(lambda: sensed() > seen + 3, "further ticks", folder)
        blocked = [alert["subject"] for alert in mailbox.take() if alert["kind"] == "blocked"]
        assert blocked == ["value_scores.noise_fraction of 'bad'"]
    assert "secret-path" not in (folder / "dev.log").read_text()
