"""A PostgreSQL server for tests, thrown away with them: what Dagster runs on in most teams."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

USER = "dagster"

SETTINGS = {
    "listen_addresses": "",  # its socket only
    # What a crash could lose is lost with the tests anyway.
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_wal_size": "64MB",
}


def binaries() -> Path | None:
    """Return the folder of `initdb` and `postgres`; Debian keeps them out of the PATH."""
    folders = []
    if found := shutil.which("postgres"):
        folders.append(Path(found).parent)
    if asked := shutil.which("pg_config"):
        told = subprocess.run([asked, "--bindir"], capture_output=True, text=True, check=False)
        folders.append(Path(told.stdout.strip()))
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    names = ("initdb", "postgres")
    complete = (path for path in folders if all((path / name).is_file() for name in names))
    return next(complete, None)


def account() -> pwd.struct_passwd | None:
    """Return whom the server runs as; None if there is nobody, since it refuses to run as root."""
    if os.geteuid() != 0:
        return pwd.getpwuid(os.geteuid())
    known = {entry.pw_name: entry for entry in pwd.getpwall()}
    return known.get("postgres") or known.get("nobody")


def missing() -> str | None:
    """Return what is missing for a server; None if nothing is."""
    if importlib.util.find_spec("dagster_postgres") is None:
        return "dagster-postgres is not installed"
    if binaries() is None:
        return "no PostgreSQL server is installed"
    if account() is None:
        return "PostgreSQL refuses to run as root, and there is no other user"
    return None


@dataclass
class Server:
    """A running server, reached through a socket in its folder."""

    folder: Path
    _numbers: Iterator[int] = field(default_factory=lambda: count(1), repr=False)

    def url(self, database: str) -> str:
        # The driver by name: SQLAlchemy 2.1 takes psycopg 3 unless it is told otherwise, and
        # dagster-postgres brings psycopg2.
        return f"postgresql+psycopg2://{USER}@/{database}?host={self.folder}"

    def create(self, like: str | None = None) -> str:
        """Create a database and return its name.

        Args:
            like: the database to copy, to which nobody may be connected; by default an empty one.
        """
        name = f"test_{next(self._numbers)}"
        self._execute(f"CREATE DATABASE {name}" + (f" TEMPLATE {like}" if like else ""))
        return name

    def disconnect(self, database: str) -> None:
        """End all connections to a database: it can be copied then, and they are not used up."""
        self._execute(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'"
        )

    def connect(self) -> Any:
        import psycopg2

        return psycopg2.connect(host=str(self.folder), user=USER, dbname="postgres")

    def _execute(self, statement: str) -> None:
        with closing(self.connect()) as connection:
            connection.autocommit = True  # no database can be created in a transaction
            with connection.cursor() as cursor:
                cursor.execute(statement)


@contextmanager
def running_server() -> Iterator[Server]:
    """Start a server of its own in a new folder; stop it and remove the folder at the end."""
    programs, user = binaries(), account()
    assert programs is not None, missing()
    assert user is not None, missing()
    # Not below pytest's folder: no other user may enter that, and a socket's path must be short.
    with tempfile.TemporaryDirectory(prefix="pg-") as name:
        folder, log = Path(name), Path(name) / "log"
        become: dict[str, Any] = {"cwd": folder}
        if os.geteuid() == 0:
            os.chown(folder, user.pw_uid, user.pw_gid)
            become |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        options = [f"--username={USER}", "--auth=trust", "--encoding=UTF8", "--no-locale"]
        initdb = [programs / "initdb", "--no-sync", *options, folder / "data"]
        subprocess.run(initdb, check=True, stdout=subprocess.DEVNULL, **become)
        settings = [f"--{setting}={value}" for setting, value in SETTINGS.items()]
        command = [programs / "postgres", "-D", folder / "data", "-k", folder, *settings]
        with log.open("wb") as output:
            # Out of reach of the terminal's Ctrl-C, which is pytest's to answer.
            process = subprocess.Popen(
                command, stdout=output, stderr=output, start_new_session=True, **become
            )
        try:
            server = Server(folder)
            _wait(server, process, log)
            yield server
        finally:
            process.send_signal(signal.SIGINT)  # a fast shutdown: who is connected is cut off
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return when the server takes connections.

    Raises:
        RuntimeError: if it stopped, or does not within half a minute.
    """
    import psycopg2

    deadline = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < deadline:
        try:
            server.connect().close()
        except psycopg2.OperationalError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"PostgreSQL did not start:\n{log.read_text()}")
