"""A Ray head on this machine's loopback, which leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

MARK = "FORVALUE_TEST_RAY"
# The job client puts these above the address that it is given.
OVERRIDES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")


@contextmanager
def ray_cluster(cpus: int = 1, gpus: int = 2, tries: int = 3) -> Iterator[str]:
    """Start a head in a session of its own; give its dashboard's address; stop it for good.

    Its GPUs are only counted, none need be there.
    """
    for left in reversed(range(tries)):
        # A short path: the sockets in it may have 107 bytes.
        folder, mark = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp")), uuid.uuid4().hex
        dashboard, client, agent = free_ports(3)
        variables = {
            **{key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
            MARK: mark,
            "OMP_NUM_THREADS": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            # All on 127.0.0.1, where Ray would take the machine's outer address.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            # SIGTERM stops at once: by default a node drains for 30 seconds.
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        }
        command = [
            # If the tests are killed, the head stops too.
            *(["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []),
            *[sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"],
            *["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", "--port=0"],
            *[f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"],
            *[f"--dashboard-agent-listen-port={agent}"],
            *["--min-worker-port=0", "--max-worker-port=0"],  # any, not 10002 to 19999
            *[f"--num-cpus={cpus}", f"--num-gpus={gpus}", "--object-store-memory=80000000"],
            *[f"--temp-dir={folder}", "--disable-usage-stats", "--log-color=false"],
        ]
        with ExitStack() as stack:
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            log = stack.enter_context((folder / "start.log").open("w+"))
            head = subprocess.Popen(
                command,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            stack.callback(stop, head, mark)
            address = f"http://127.0.0.1:{dashboard}"
            if answers(head, f"{address}/api/version") and answers(head, f"{address}/api/jobs/"):
                with pytest.MonkeyPatch.context() as patch:
                    for name in OVERRIDES:
                        patch.delenv(name, raising=False)
                    patch.setenv("NO_PROXY", "127.0.0.1")
                    yield address
                return
            problem = (folder / "start.log").read_text()
        if not left:
            raise RuntimeError(f"Ray did not start:\n{problem}")


def answers(head: subprocess.Popen[bytes], url: str, seconds: float = 60) -> bool:
    """Wait for an answer; False if there is none in time, or the head has ended."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + seconds
    while time.monotonic() < end and head.poll() is None:
        with suppress(OSError), opener.open(url, timeout=5) as response:
            return response.status == 200
        time.sleep(0.1)
    return False


def stop(head: subprocess.Popen[bytes], mark: str) -> None:
    """Stop the head, then whatever of its session or with its mark is still there."""
    if head.poll() is None:
        head.terminate()
        with suppress(subprocess.TimeoutExpired):
            head.wait(10)
    end = time.monotonic() + 20
    while True:
        with suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGKILL)
        head.poll()
        rest = marked(mark)
        for pid in rest:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not rest:
            return
        if time.monotonic() > end:
            raise RuntimeError(f"Processes of the Ray cluster do not end: {rest}")
        time.sleep(0.1)


def marked(mark: str) -> list[int]:
    """Return the processes that were started with this mark in their environment."""
    wanted, found = f"{MARK}={mark}".encode(), []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if wanted in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def free_ports(count: int) -> list[int]:
    """Return ports that are free now; another process can be faster, so starts are tried again."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
