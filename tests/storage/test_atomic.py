"""Files are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from upath import UPath

from forvalue_dagster.storage.atomic import atomic_write


def test_content_appears_when_the_block_ends(tmp_path: Path) -> None:
    target = UPath(tmp_path / "folder" / "file")
    with atomic_write(target) as stream:
        stream.write(b"new")
        assert not target.exists()
    assert target.read_bytes() == b"new"
    assert os.listdir(target.parent) == ["file"]


def test_an_error_leaves_the_old_content_and_no_litter(tmp_path: Path) -> None:
    target = UPath(tmp_path / "file")
    target.write_bytes(b"old")

    def interrupted() -> None:
        with atomic_write(target) as stream:
            stream.write(b"half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        interrupted()
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_killed_process_leaves_the_old_content(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"old")
    script = textwrap.dedent(
        """
        import sys, time
        from upath import UPath
        from forvalue_dagster.storage.atomic import atomic_write
        with atomic_write(UPath(sys.argv[1])) as stream:
            stream.write(b"half" * 100_000)
            stream.flush()
            print("writing", flush=True)
            time.sleep(60)
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(target)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "writing\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert target.read_bytes() == b"old"


def test_object_stores_show_an_object_only_when_complete() -> None:
    target = UPath("memory://bucket/key")
    with atomic_write(target) as stream:
        stream.write(b"new")
        assert not target.exists()
    assert target.read_bytes() == b"new"

    def interrupted() -> None:
        with atomic_write(target) as stream:
            stream.write(b"half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        interrupted()
    assert target.read_bytes() == b"new"
