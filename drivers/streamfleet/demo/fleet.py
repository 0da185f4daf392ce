"""The worker processes of the demonstration."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from streamfleet import Task, driver_from_url
from streamfleet.demo.journal import Journal
from streamfleet.sync import Worker

QUEUE = "demo"
TARGET = "streamfleet.demo.fleet:worker"

_JOURNAL = "STREAMFLEET_DEMO_JOURNAL"
_NAME = "STREAMFLEET_DEMO_WORKER"
_LEASE = "STREAMFLEET_DEMO_LEASE"


def worker() -> Worker:
    """The worker of this process, as `WorkerProcess` has described it in the environment."""
    _leave_with_parent()
    name, lease = os.environ[_NAME], float(os.environ[_LEASE])
    journal = Journal(os.environ[_JOURNAL], name)
    driver = driver_from_url(os.environ["STREAMFLEET_URL"])
    made = Worker(driver, name=name, lease=lease, scan_interval=lease / 5)

    @made.handler(QUEUE)
    def work(task: Task) -> None:
        journal.begin(task.id)
        time.sleep(float(task.text))
        journal.end(task.id)

    return made


def _leave_with_parent() -> None:
    """End when the demonstration does, however that happens: its end of our stdin closes then."""

    def watch() -> None:
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


class WorkerProcess:
    """``streamfleet run`` in a process of its own."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        url: str,
        *,
        directory: Path,
        lease: float,
        concurrency: int,
        loud: bool,
    ) -> None:
        self.name = name
        self._log = directory / f"{name}.log"
        environment = os.environ | {_NAME: name, _LEASE: str(lease), _JOURNAL: str(journal_in(directory))}
        options = ["--url", url, "--name", name, "--concurrency", str(concurrency), *(["-v"] if loud else [])]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, TARGET, *options],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=None if loud else log,
                env=environment,
                start_new_session=True,  # Ctrl-C in a terminal is for the demonstration: it ends its workers
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def check(self) -> None:
        """Raises WorkerEnded when it has ended by itself."""
        if self._process.poll() is not None:
            raise WorkerEnded(f"{self.name} ended by itself ({self._process.returncode}):\n{self.log}")

    def kill(self) -> None:
        """End it without warning (SIGKILL)."""
        self._process.kill()
        self._process.wait()
        self._hang_up()

    def stop(self, timeout: float) -> int:
        """End it in good order (SIGTERM). Returns its exit code; kills it after ``timeout`` seconds."""
        self._process.terminate()
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._hang_up()
        return self._process.returncode

    @property
    def log(self) -> str:
        """The end of what it has said."""
        return self._log.read_text(errors="replace")[-2000:]

    def _hang_up(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()


class WorkerEnded(Exception):
    """A worker process ended though nobody had asked it to."""


def journal_in(directory: Path) -> Path:
    """Where the journal of a demonstration is."""
    return directory / "journal"
