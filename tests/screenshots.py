"""Photograph a Dagster instance for the documentation: `make screenshots`, after `make demo`.

Needs chromium. The pages are those that the test of the user interface looks at
(`tests/test_browser.py`).
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import FloatRect, Page, sync_playwright

from tests.serving import serving

ROOT = Path(__file__).parents[1]
# Page → (address, what must be on it before it is photographed).
SHARD = "noisy"
GROUPS = "%2C".join(f"global%40global%3A{group}" for group in ("forvalue", "finetuning"))
PAGES: dict[str, tuple[str, str]] = {
    "lineage": (f"/asset-groups/~*?expanded={GROUPS}", "value_scores"),
    "overview": ("/assets/value_scores", "Kinds"),
    "asset": (f"/assets/value_scores?view=partitions&partition={SHARD}", "most_valuable"),
    "blocked_shard": (
        f"/assets/value_scores?view=checks&checkDetail=noise_fraction&partition={SHARD}",
        "above the limit",
    ),
    "dataset": ("/assets/filtered_dataset?view=events", "shards"),
    "automation": ("/automation", "forvalue_automation"),
}


# The nodes of the graph show their kinds only where there is room for all; other pages end early.
SIZES = {"lineage": (2300, 1100), "dataset": (1500, 600), "automation": (1500, 480)}
SIZE = (1500, 900)
# The part of the report page that the README shows: as wide as a README, so that it can be read.
SHARDS: FloatRect = {"x": 0, "y": 20, "width": 1000, "height": 515}


def chromium() -> str | None:
    """The browser, if there is one."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


@contextmanager
def browser(*, dark: bool = False) -> Iterator[Page]:
    """Open an empty page."""
    path = chromium()
    if path is None:
        raise RuntimeError("chromium is not installed; on Debian: apt-get install chromium.")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=path,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        scheme = "dark" if dark else "light"
        yield opened.new_page(color_scheme=scheme)  # type: ignore[arg-type]
        opened.close()


def show(page: Page, address: str, name: str) -> str:
    """Go to one of `PAGES`, wait until it shows its text, and return all that it shows."""
    path, expected = PAGES[name]
    width, height = SIZES.get(name, SIZE)
    page.set_viewport_size({"width": width, "height": height})
    page.goto(f"{address}{path}", wait_until="domcontentloaded")
    page.get_by_text(expected).first.wait_for(timeout=60_000)
    for offer in ("Skip", "Hide navigation"):
        button = page.get_by_text(offer, exact=True)
        if button.count():
            button.first.click()
    page.wait_for_timeout(4000)  # layouts and pictures settle
    return page.inner_text("body")


def open_plot(page: Page) -> None:
    """On a page with metadata, show the first plot, and wait until it is drawn."""
    page.get_by_text("[Show Markdown]").first.click()
    page.locator("img[src^='data:image/png']").wait_for()
    page.wait_for_timeout(1000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, default=ROOT / ".demo" / "dagster_home")
    parser.add_argument("--images", type=Path, default=ROOT / "docs" / "images")
    arguments = parser.parse_args()
    report = arguments.home.parent / "storage" / "filtered_dataset.report.html"
    with (
        serving(["dagster-webserver", "-w", "workspace.yaml"], arguments.home) as address,
        browser() as page,
    ):
        for name in PAGES:
            show(page, address, name)
            page.screenshot(path=arguments.images / f"{name}.png")
            if name == "asset":
                open_plot(page)
                page.screenshot(path=arguments.images / "plot.png")
        page.goto(f"file://{report}")
        page.set_viewport_size({"width": 1000, "height": 1100})
        page.screenshot(path=arguments.images / "report.png")
        page.screenshot(path=arguments.images / "shards.png", clip=SHARDS)


if __name__ == "__main__":
    main()
