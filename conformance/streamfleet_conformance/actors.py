"""Workers in processes of their own, to be killed and frozen.

Run as ``python -m streamfleet_conformance.actors <JSON>``. What a worker does with a task is its behaviour:

    complete    return at once
    hang        never return
    poison      end the process by SIGKILL when the payload is ``poison``, else return
    gate        wait until the case opens the gate, then return
    gate-fail   wait until the case opens the gate, then raise

It writes a line of JSON for each event into its journal file, at once and unbuffered, so that nothing that it
has done is missed when it is killed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from streamfleet.task import Task
from streamfleet_conformance.harness import harness_for
from streamfleet_conformance.shells import Running, shell_for
from streamfleet_conformance.waiting import eventually

if TYPE_CHECKING:
    from streamfleet_conformance.backends import Backend

START_SECONDS = 20.0
GATE_SECONDS = 60.0
SIGNAL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Spec:
    """Which cell of the matrix a run is about: enough to make the same harness in another process."""

    shell: str
    driver: str
    server: str
    harness: str
    shared: Backend | None = None
    """The server that most cases share."""


class ActorProcess:
    """A worker process, from the case's side."""

    def __init__(
        self, spec: Spec, url: str, queue: str, behaviour: str, running: Running, config: dict[str, Any]
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="streamfleet-actor-")
        folder = Path(self._folder.name)
        self._journal = folder / "journal"
        self._gate = folder / "gate"
        self._log = folder / "log"
        self._journal.touch()
        order = {"url": url, "queue": queue, "behaviour": behaviour, "running": running.value, "config": config}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "streamfleet_conformance.actors",
                    portable(spec, **order, folder=str(folder)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )

    def events(self, kind: str) -> list[dict[str, Any]]:
        """What it has written of a kind: ``start``, ``end``, ``counts``."""
        lines = self._journal.read_text("utf-8").splitlines()
        return [event for event in map(json.loads, lines) if event["event"] == kind]

    def wait_starts(self, number: int) -> list[dict[str, Any]]:
        """Wait until so many attempts have begun. Raises AssertionError with its log when they do not."""
        return self._wait("start", number)

    def wait_ends(self, number: int) -> list[dict[str, Any]]:
        """Wait until so many handlers have come back."""
        return self._wait("end", number)

    def _wait(self, kind: str, number: int) -> list[dict[str, Any]]:
        def enough() -> list[dict[str, Any]]:
            found = self.events(kind)
            return found if len(found) >= number else []

        try:
            return eventually(enough, f"{number} x {kind} in the worker process", START_SECONDS)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log}") from None

    @property
    def log(self) -> str:
        """What the worker has logged."""
        return self._log.read_text("utf-8", "replace")

    @property
    def consumer(self) -> str:
        """Its consumer, once it has begun with a task."""
        return str(self.events("start")[0]["consumer"])

    def open_gate(self) -> None:
        """Let handlers that wait at the gate go on."""
        self._gate.touch()

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait()

    def suspend(self) -> None:
        """SIGSTOP. Returns once it stands still."""
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WNOWAIT)

    def resume(self) -> None:
        """SIGCONT."""
        self._process.send_signal(signal.SIGCONT)

    def terminate(self) -> dict[str, int]:
        """SIGTERM: stop in order. Returns the worker's counts."""
        self._process.terminate()
        try:
            code = self._process.wait(START_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the worker process did not stop\n{self.log}") from None
        assert code == 0, f"exit code {code}\n{self.log}"
        counts: dict[str, int] = self.events("counts")[-1]["counts"]
        return counts

    def wait_exit(self) -> int:
        """Wait until it has ended, and return its exit code (negative: a signal)."""
        return self._process.wait(START_SECONDS)

    def close(self) -> None:
        """End it, however it is."""
        if self._process.poll() is None:
            self.kill()
        self._folder.cleanup()


def portable(spec: Spec, **more: object) -> str:
    """What another process needs to know to make the same harness and shell, as JSON."""
    cell = {"shell": spec.shell, "driver": spec.driver, "server": spec.server, "harness": spec.harness}
    return json.dumps(cell | more)


class _Actor:
    """The same, from inside the process."""

    def __init__(self, order: dict[str, Any]) -> None:
        folder = Path(order["folder"])
        self._gate = folder / "gate"
        self._journal = os.open(folder / "journal", os.O_WRONLY | os.O_APPEND)
        self._scripts: dict[str, Callable[[Task], object]] = {
            "complete": lambda task: None,
            "hang": lambda task: threading.Event().wait(),
            "poison": self._poison,
            "gate": lambda task: self._wait_at_gate(),
            "gate-fail": self._fail_at_gate,
        }
        self._script = self._scripts[order["behaviour"]]
        self._consumer = Future[str]()  # the first task may come before the worker has told its name
        self.stop = threading.Event()
        self._order = order

    def run(self) -> None:
        """Work until SIGTERM."""
        order = self._order
        signal.signal(signal.SIGTERM, lambda *_: self.stop.set())
        harness = harness_for(order["driver"], order["server"], order["harness"])
        shell = shell_for(order["shell"])
        handlers = {order["queue"]: (self._handle, None)}
        running = Running(order["running"])
        worker = shell.worker(harness.driver(order["url"]), handlers, running, **order["config"])
        self._consumer.set_result(worker.consumer)
        while not self.stop.wait(SIGNAL_SECONDS):
            pass  # a signal that the kernel gives to another thread does not end a wait of the main one
        worker.stop(0.5)
        self._write("counts", counts=worker.counts)

    def _handle(self, task: Task) -> object:
        about = {"id": task.id, "data": task.data.decode("latin-1"), "deliveries": task.deliveries}
        self._write("start", **about, attempt=task.attempt, consumer=self._consumer.result())
        try:
            return self._script(task)
        finally:
            self._write("end", **about)

    def _write(self, event: str, **values: object) -> None:
        line = json.dumps({"event": event, "at": monotonic(), **values}) + "\n"
        os.write(self._journal, line.encode())

    def _poison(self, task: Task) -> None:
        if task.data == b"poison":
            os.kill(os.getpid(), signal.SIGKILL)

    def _wait_at_gate(self) -> None:
        eventually(self._gate.exists, "the gate opens", GATE_SECONDS)

    def _fail_at_gate(self, task: Task) -> None:
        self._wait_at_gate()
        raise RuntimeError("failed behind the gate")


if __name__ == "__main__":
    _Actor(json.loads(sys.argv[1])).run()
