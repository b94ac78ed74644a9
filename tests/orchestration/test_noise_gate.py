"""The noise gate on a real instance: shards that once got past it."""

from __future__ import annotations

import json

import forvalue_dagster as fv
from tests.orchestration.conftest import LIKELY, UNLIKELY, Project

KEEP_ALL = fv.SelectionPolicy(max_noise_probability=None, keep_fraction=1.0)


def valued(project: Project, shards: dict[str, list[dict]]) -> None:
    for name, rows in shards.items():
        project.write(f"train/{name}.jsonl", rows)
    assert project.run("forvalue_profile").success
    project.value(*shards)


def noisy(messages: str) -> bool:
    return bool(set(json.loads(messages)[-1]["content"]) & set(UNLIKELY))


def test_what_is_judged_are_distinct_rows_enough_of_them_and_those_kept(project: Project) -> None:
    bad, clean = project.rows(95, UNLIKELY, 31), project.rows(30, LIKELY, 1)
    few = project.rows(4, LIKELY, 8) + bad[:2]
    copies = [project.rows(12, LIKELY, 7)[n % 12] for n in range(370)]
    shards = {
        "clean": clean,
        "diluted": bad[:30] + copies,
        "few": few,
        "one": project.rows(1, LIKELY, 3),
        "mostly_noise": bad + project.rows(5, LIKELY, 32),
    }
    project.options = {"gate": fv.GatePolicy(on_blocked_shard="exclude"), "selection": KEEP_ALL}
    valued(project, shards)
    assert project.run("forvalue_filter").success
    manifest = project.manifest()
    verdicts = {entry["shard"]: entry["verdict"] for entry in manifest["shards"]}

    assert verdicts["clean"]["verdict"] == "pass"
    # The noise of what the damaged copies do not reach is noise, all the same.
    assert verdicts["mostly_noise"]["verdict"] == "fail"
    assert verdicts["mostly_noise"]["noise_lower"] > 0.85
    # Copies of clean rows dilute nothing; both figures are told.
    diluted = verdicts["diluted"]
    assert (diluted["verdict"], diluted["scored"], diluted["distinct"]) == ("fail", 400, 42)
    assert diluted["noise_fraction"] > 0.6
    assert diluted["noise_of_all"] < 0.1
    assert "of 42 distinct rows" in diluted["reason"]
    assert "of all 400 with their copies" in diluted["reason"]
    for shard, count in (("few", 6), ("one", 1)):
        assert verdicts[shard]["verdict"] == "uncertified"
        assert f"too few rows: {count} distinct ones" in verdicts[shard]["reason"]
        assert "expected at least 20" in verdicts[shard]["reason"]

    kept = project.table("filtered_dataset")
    assert set(kept["shard"]) == {"clean"}
    assert manifest["noise"]["rows"] == len(kept) == 30
    assert manifest["noise"]["noise_fraction"] < 0.05
    report = (project.folder / "files" / "filtered_dataset.report.html").read_text("utf-8")
    assert "of the 30 rows kept (95 % interval" in report


def test_a_dataset_of_small_noisy_shards_is_not_certified(project: Project) -> None:
    """Each is too small to judge, and let through; together they are not."""
    shards = {
        f"part_{n}": project.rows(4, LIKELY, 10 + n) + project.rows(2, UNLIKELY, 20 + n)
        for n in range(4)
    }
    project.options = {"gate": fv.GatePolicy(uncertified="warn"), "selection": KEEP_ALL}
    valued(project, shards)
    assert not project.run("forvalue_filter").success
    manifest = project.manifest()
    assert [entry["verdict"]["verdict"] for entry in manifest["shards"]] == ["uncertified"] * 4
    assert manifest["rows"]["kept"] == 24
    assert manifest["noise"]["noise_fraction"] > 0.2
    assert sum(map(noisy, project.table("filtered_dataset")["messages"])) == 8

    project.options["selection"] = fv.SelectionPolicy(keep_fraction=1.0)
    assert project.run("forvalue_filter").success
    assert project.manifest()["noise"]["noise_fraction"] < 0.15
    assert not any(map(noisy, project.table("filtered_dataset")["messages"]))
