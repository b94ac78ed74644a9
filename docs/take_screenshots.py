"""Photograph a Dagster instance for the documentation: `make screenshots`, after `make demo`.

Needs chromium. The pages are those that the test of the user interface looks at
(`tests/test_browser.py`).
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).parents[1]
# Page → (address, what must be on it before it is photographed).
SHARD = "noisy"
PAGES: dict[str, tuple[str, str]] = {
    "groups": ("/asset-groups/~*/?expanded=", "Global asset lineage"),
    "overview": ("/assets/value_scores", "Kinds"),
    "asset": (f"/assets/value_scores?view=partitions&partition={SHARD}", "most_valuable"),
    "blocked_shard": (
        f"/assets/value_scores?view=checks&checkDetail=noise_fraction&partition={SHARD}",
        "above the limit",
    ),
    "dataset": ("/assets/filtered_dataset?view=events", "shards"),
    "automation": ("/automation", "forvalue_automation"),
}
_SECONDS = 90


def chromium() -> str | None:
    """The browser, if there is one."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


@contextmanager
def serving(command: Sequence[str], home: Path, folder: Path = ROOT) -> Iterator[str]:
    """Run a server of Dagster's on a free port until the block ends; yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    tool = Path(sys.executable).with_name(command[0])
    process = subprocess.Popen(
        [tool, *command[1:], "-p", str(port)],
        cwd=folder,
        env=os.environ | {"DAGSTER_HOME": str(home), "DAGSTER_DISABLE_TELEMETRY": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        _wait(f"{address}/server_info", process)
        yield address
    finally:
        # The group: `dagster dev` has a daemon and code servers besides.
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait(address: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(_SECONDS * 2):
        if process.poll() is not None:
            raise RuntimeError(f"The server ended with {process.returncode} before it answered.")
        try:
            urllib.request.urlopen(address, timeout=2).close()
            return
        except OSError:
            time.sleep(0.5)
    raise RuntimeError(f"{address} did not answer within {_SECONDS} seconds.")


@contextmanager
def browser(width: int = 1500, height: int = 900, *, dark: bool = False) -> Iterator[Page]:
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
        size = {"width": width, "height": height}
        yield opened.new_page(viewport=size, color_scheme=scheme)  # type: ignore[arg-type]
        opened.close()


def show(page: Page, address: str, expected: str) -> str:
    """Go to a page, wait until it shows a text, and return all that it shows."""
    page.goto(address, wait_until="domcontentloaded")
    page.get_by_text(expected).first.wait_for(timeout=60_000)
    for offer in ("Skip", "Hide navigation"):
        button = page.get_by_text(offer, exact=True)
        if button.count():
            button.first.click()
    page.wait_for_timeout(4000)  # layouts and pictures settle
    return page.inner_text("body")


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
        for name, (path, expected) in PAGES.items():
            show(page, f"{address}{path}", expected)
            page.screenshot(path=arguments.images / f"{name}.png")
        page.goto(f"file://{report}")
        page.set_viewport_size({"width": 1000, "height": 1100})
        page.screenshot(path=arguments.images / "report.png")


if __name__ == "__main__":
    main()
