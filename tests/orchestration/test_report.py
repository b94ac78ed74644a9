"""The dataset on one page: complete, self-contained, without the rows' text."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import polars as pl
import pytest

import forvalue_dagster as fv
from forvalue_dagster.orchestration.display.plots import as_svg, histogram_figure, interval_figure
from tests.orchestration.conftest import Project


class Page(HTMLParser):
    """What a page shows, and what it would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.shown: list[str] = []
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href")
        ]

    def handle_data(self, data: str) -> None:
        self.shown.append(data)


def report(project: Project) -> tuple[str, dict]:
    folder: Path = project.folder / "files"
    page = (folder / "filtered_dataset.report.html").read_text("utf-8")
    return page, json.loads((folder / "filtered_dataset.report.json").read_text("utf-8"))


def test_the_report_says_what_came_of_every_row(project: Project) -> None:
    project.options = {"gate": fv.GatePolicy(on_blocked_shard="exclude")}
    assert project.run("forvalue_profile").success
    project.value("good", "bad")
    assert project.run("forvalue_filter").success
    page, plain = report(project)

    shards = {shard["shard"]: shard for shard in plain["shards"]}
    assert plain["rows"] == {"in": 50, "kept": 15, "dropped": 35}
    assert sum(entry["rows"] for entry in plain["dropped"]) == 35
    assert shards["good"]["passed"]
    assert shards["good"]["kept"] == 15
    assert not shards["bad"]["passed"]
    assert shards["bad"]["noise_lower"] > shards["bad"]["limit"]
    assert [row["value"] for row in plain["best"]] == sorted(
        (row["value"] for row in plain["best"]), reverse=True
    )
    assert plain["configuration"]["gate"]["on_blocked_shard"] == "exclude"
    assert "value_scores.validation_leakage" in shards["good"]["checks"]

    seen = Page(page)
    text = " ".join(" ".join(seen.shown).split())
    assert "50 rows came in, 15 are kept, 35 dropped. Certified." in text
    assert seen.tags.count("svg") == 2
    # Nothing is fetched: links inside the drawings lead to themselves.
    assert [link for link in seen.fetched if not link.startswith("#")] == []
    assert seen.tags.count("script") == 0
    # No row's own text is on the page.
    raw = project.table("raw_finetuning_data", "good")
    for messages in raw["messages"]:
        assert json.loads(messages)[-1]["content"] not in page


def test_the_same_dataset_gives_the_same_page(project: Project) -> None:
    project.run("forvalue_profile")
    project.value("good")
    assert project.run("forvalue_filter").success
    first = report(project)
    assert project.run("forvalue_filter").success
    again = report(project)
    assert again == first


def test_a_name_cannot_write_into_the_page(project: Project) -> None:
    hostile = "<script>alert(1)</script>"
    rows = project.rows(30, "abc", 5)
    project.write("validation.jsonl", [row | {"kind": hostile} for row in rows])
    project.options = {
        "validation_rows": fv.RowSource(
            path=str(project.folder / "validation.jsonl"), group_column="kind"
        )
    }
    project.run("forvalue_profile")
    project.value("good")
    project.run("forvalue_filter")
    page, _ = report(project)
    assert hostile not in page
    assert "script" not in Page(page).tags


# matplotlib only warns if there is no room left for what is drawn.
@pytest.mark.filterwarnings("error::UserWarning")
def test_names_are_drawn_as_they_are_and_leave_room() -> None:
    names = ["price_$1_$2", r"$\foo$", "a[1]{b}*", "x" * 100 + "y" * 100, "a" * 40]
    intervals = dict.fromkeys(names, (0.0, 0.1, 0.2))
    figure = interval_figure(intervals, title="$" * 200, unit="$u$", limit=0.15)
    drawn = Page(as_svg(figure))
    for name in (*names[:3], names[4], f"{'x' * 20}…{'y' * 19}", "$u$"):
        assert name in drawn.shown
    hostile = {name: pl.Series([1.0, 2.0]) for name in names[:4]}
    page = as_svg(histogram_figure(hostile, title=names[1], unit="u", marks={names[3]: 1.5}))
    assert Page(page).shown.count(f"{'x' * 20}…{'y' * 19}") == 2
