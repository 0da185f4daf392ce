"""What happens, act by act."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from types import FrameType

from streamfleet import BufferFull, NotAccepted, driver_from_url
from streamfleet.demo.appendonly import REWRITE_NEVER, additions, applied_commands
from streamfleet.demo.census import Figures, count
from streamfleet.demo.display import Display
from streamfleet.demo.fleet import QUEUE, WorkerProcess, journal_in
from streamfleet.demo.inspection import Inspector
from streamfleet.demo.journal import JournalReader
from streamfleet.demo.plan import Plan
from streamfleet.embedded import EmbeddedServer
from streamfleet.sync import Client
from streamfleet_core.keys import queue_keys

LOOK_EVERY = 0.02
"""Seconds between two looks at what is being waited for."""


def run(plan: Plan, display: Display, *, loud: bool = False) -> Figures:
    """Give the demonstration. ``loud`` shows what the workers log.

    Raises MissingExtra, EmbeddedServerFailed, and Stalled or WorkerEnded when it cannot go on.
    """
    with TemporaryDirectory(prefix="streamfleet-demo-") as directory, ExitStack() as stack:
        stack.enter_context(_ended_by_sigterm())
        server = EmbeddedServer(appendonly=True, appendfsync="always", extra=REWRITE_NEVER)
        stack.callback(server.stop)
        return _Demonstration(plan, display, server, Path(directory), stack, loud=loud).give()


class Stalled(Exception):
    """Something that the demonstration waits for does not happen."""


class _Demonstration:
    def __init__(
        self,
        plan: Plan,
        display: Display,
        server: EmbeddedServer,
        directory: Path,
        stack: ExitStack,
        *,
        loud: bool,
    ) -> None:
        self._plan = plan
        self._display = display
        self._server = server
        self._directory = directory
        self._stack = stack
        self._loud = loud
        self._began = monotonic()
        self._driver = driver_from_url(server.url)
        self._journal = JournalReader(journal_in(directory))
        stack.callback(self._journal.close)
        self._inspector = self._inspect()
        self._workers: list[WorkerProcess] = []
        self._enqueued: list[str] = []
        self._random = random.Random(1)

    def give(self) -> Figures:
        """All acts, and the figures."""
        plan, display = self._plan, self._display
        server = f"{self._server.engine} {self._server.version}, embedded, 127.0.0.1:{self._server.port}"
        display.line("engine", f"{server}, append-only file, fsync always")
        self._start_workers()
        client = Client(self._driver, queues=[QUEUE])
        self._stack.callback(client.close, 0.0)
        self._enqueue(client, plan.tasks // 2)
        display.line("enqueue", f"{plan.tasks:,} tasks in two halves, {plan.workers} worker processes")
        victim, held = self._kill_a_worker(client)
        self._enqueue(client, plan.tasks - plan.tasks // 2)
        buffered = self._kill_the_server(client)
        self._drain(client)
        dead = self._inspector.dead()
        self._stop_workers()
        client.close()
        self._inspector.close()
        self._server.kill()  # its file holds everything, with no help from an orderly end
        stored = additions(applied_commands(self._server.directory), queue_keys(QUEUE).stream)
        journal = self._journal.refresh()
        return count(
            accepted=self._enqueued,
            begun=journal.begun,
            ended=journal.ended,
            stored=stored,
            dead=dead,
            held=held,
            victim=victim,
            buffered=buffered,
            seconds=monotonic() - self._began,
        )

    # ---- acts ---------------------------------------------------------------------------------------

    def _start_workers(self) -> None:
        plan = self._plan
        for number in range(1, plan.workers + 1):
            worker = WorkerProcess(
                f"worker-{number}",
                plan.run,
                self._server.url,
                directory=self._directory,
                lease=plan.lease,
                concurrency=plan.concurrency,
                loud=self._loud,
            )
            self._stack.callback(worker.kill)
            self._workers.append(worker)
        self._wait(lambda: len(self._inspector.consumers()) == plan.workers, "all workers to read")

    def _kill_a_worker(self, client: Client) -> tuple[str, set[str]]:
        """SIGKILL in mid-task. Returns the worker's name and what the server says that it held."""
        victim = self._workers.pop(1)
        consumer = next(name for name in self._inspector.consumers() if name.startswith(f"{victim.name}:"))
        enough = self._plan.tasks // 8
        with self._trickling(client):  # so that few tasks, quickly done, do not leave the victim idle for good
            self._wait(lambda: self._completed() >= enough, "some tasks to be completed")
            self._wait(lambda: len(self._journal.refresh().running(victim.name)) > 0, f"{victim.name} to be busy")
            victim.kill()
        killed_at = monotonic()
        held = self._inspector.held_by(consumer)
        self._display.line("chaos", f"SIGKILL {victim.name} (pid {victim.pid}) holding {len(held)} tasks …")
        if self._comes_true(lambda: all(self._heirs(task, victim) for task in held)):
            heirs = sorted({who for task in held for who in self._heirs(task, victim)})
            self._display.line("", f"… reclaimed by {', '.join(heirs)} after {monotonic() - killed_at:.1f} s")
        else:
            self._display.line("", f"… not reclaimed within {self._plan.patience:g} s")
        return victim.name, held

    def _kill_the_server(self, client: Client) -> int:
        """SIGKILL, while the client enqueues and workers work. Returns how many tasks it took meanwhile."""
        with self._trickling(client):
            enough = self._completed() + self._plan.tasks // 10
            self._wait(lambda: self._completed() >= enough, "the second half to be in progress")
            self._server.kill()
            before = len(self._enqueued)
            self._display.line("chaos", f"SIGKILL the server, down {self._plan.down:g} s …")
            self._pause(self._plan.down)
            buffered = len(self._enqueued) - before
            self._display.line("", f"… {buffered:,} enqueues buffered meanwhile")
            self._server.restart()
        self._inspector.close()
        self._inspector = self._inspect()
        return buffered

    def _drain(self, client: Client) -> None:
        """What the client has taken is to be accepted, and then to come to an end."""
        try:
            back = monotonic()
            client.flush(self._plan.patience)
            self._display.line("", f"… back; what was buffered is flushed after {monotonic() - back:.1f} s")
        except (TimeoutError, NotAccepted) as error:
            self._display.line("enqueue", str(error))
        if not self._comes_true(lambda: self._inspector.left() == 0):
            left = self._inspector.left()
            self._display.line("drain", f"{left:,} tasks are still in the queue after {self._plan.patience:g} s")

    def _stop_workers(self) -> None:
        for worker in self._workers:
            code = worker.stop(self._plan.patience)
            if code != 0:
                self._display.line("workers", f"{worker.name} did not stop in good order (exit code {code})")

    # ---- parts --------------------------------------------------------------------------------------

    def _inspect(self) -> Inspector:
        inspector = Inspector(self._driver, QUEUE)
        self._stack.callback(inspector.close)
        return inspector

    def _enqueue(self, client: Client, number: int) -> None:
        for _ in range(number):
            seconds = self._plan.task_seconds * self._random.uniform(0.5, 1.5)
            self._enqueued.append(client.enqueue(QUEUE, f"{seconds:.4f}").id)

    @contextmanager
    def _trickling(self, client: Client) -> Iterator[None]:
        """A thread that enqueues steadily while the block runs."""
        ended = threading.Event()
        trouble: list[BufferFull] = []

        def trickle() -> None:
            try:
                while not ended.wait(1 / self._plan.trickle):
                    self._enqueue(client, 1)
            except BufferFull as error:
                trouble.append(error)

        thread = threading.Thread(target=trickle, name="trickle", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
        if trouble:
            raise trouble[0]

    def _heirs(self, task: str, victim: WorkerProcess) -> set[str]:
        """Who has begun a task apart from the victim."""
        return set(self._journal.refresh().begun.get(task, ())) - {victim.name}

    def _completed(self) -> int:
        return len(self._journal.refresh().ended)

    def _pause(self, seconds: float) -> None:
        until = monotonic() + seconds
        while monotonic() < until:
            self._look()

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        if not self._comes_true(condition):
            raise Stalled(f"waited {self._plan.patience:g} s for {what}")

    def _comes_true(self, condition: Callable[[], bool]) -> bool:
        """Look until it is true, or until patience is exhausted without any more task being completed."""
        completed, since = -1, monotonic()
        while not condition():
            if self._completed() != completed:
                completed, since = self._completed(), monotonic()
            elif monotonic() - since >= self._plan.patience:
                return False
            self._look()
        return True

    def _look(self) -> None:
        """Show how far things are, and rest for a moment. Raises WorkerEnded."""
        for worker in self._workers:
            worker.check()
        self._display.progress(self._completed(), len(self._enqueued))
        time.sleep(LOOK_EVERY)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """A SIGTERM ends the demonstration as Ctrl-C does, with its server and workers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
