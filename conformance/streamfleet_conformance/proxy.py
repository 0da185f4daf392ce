"""A TCP proxy between clients and a Redis or Valkey server that breaks connections where a test says so.

One thread runs a selector loop and owns every socket; the methods hand it calls and wait for their result.
What happens on one client's way is in `link.py`, which fault is next in `faults.py`.

The proxy counts requests and replies of RESP2. Subscriptions and MONITOR, whose replies cannot be counted,
and TLS are beyond it. When it cuts a client off, it closes the server connection in good order: what had left
before is executed.
"""

from __future__ import annotations

import random
import selectors
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TypeVar

from streamfleet_conformance.faults import Commands, Fault, FaultBook, Injection, Match
from streamfleet_conformance.link import READ, Link, Peer, Timers

__all__ = ["Commands", "Fault", "FaultProxy", "Injection", "Match"]

CONNECT_SECONDS = 2.0

T = TypeVar("T")


class FaultProxy:
    """Listens on a free port of the loopback interface, and passes everything on until told otherwise.

    It runs from construction to `close`; use it as a context manager. Any thread may call its methods. They
    raise RuntimeError once the proxy is closed or has failed (a ``match`` raised, a client did not speak
    RESP2); `close` then raises RuntimeError too, with that error as its cause.
    """

    def __init__(self, upstream_port: int, *, upstream_host: str = "127.0.0.1") -> None:
        self._upstream = (upstream_host, upstream_port)
        self._lock = threading.Lock()
        self._calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._stopping = self._closed = self._refusing = self._blackholed = False
        self._failure: BaseException | None = None
        self._links: set[Link] = set()
        self._book = FaultBook()
        self._timers = Timers()
        self._selector = selectors.DefaultSelector()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self._listener.setblocking(False)
        self._wakeup, self._waker = socket.socketpair()
        self._waker.setblocking(False)
        self._selector.register(self._listener, READ, self._client_arrives)
        self._selector.register(self._wakeup, READ, lambda _mask: self._wakeup.recv(4096))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run, name=f"fault proxy {self.port}", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return self._call(lambda: sum(not link.client.closed for link in self._links))

    @property
    def late(self) -> int:
        """How many requests are kept for late delivery, or delivered late and not yet answered."""
        return self._call(lambda: sum(link.late is not None for link in self._links))

    @property
    def counts(self) -> Counter[Fault]:
        """How often each fault has happened, injected and random."""
        return self._book.counts()

    @property
    def log(self) -> deque[tuple[Fault, tuple[bytes, ...]]]:
        """The latest thousand faults, each with the names of the commands that it struck."""
        return self._book.log()

    def inject(
        self, fault: Fault, match: Match = None, times: int = 1, *, delay: float | None = None
    ) -> Injection:
        """Let a fault happen to the next ``times`` pipelines that match.

        ``match``: the name of a command in the pipeline, a predicate on its commands (called in the proxy's
        thread), or None for any. ``delay`` in seconds: SLOW needs it; DELIVERED_LATE without it waits for
        `release_late`. A fault that cannot complete, because the client closes first, waits for the next.
        """
        if fault is Fault.SLOW and delay is None:
            raise ValueError("SLOW needs delay=<seconds>")
        injection = Injection(fault, match, times, delay)
        self._call(lambda: self._book.add(injection))
        return injection

    def random_faults(self, rng: random.Random, rates: dict[Fault, float], *, delay: float = 0.05) -> None:
        """Let faults happen to any pipeline at random, each with its rate (0 to 1), until `calm`.

        SLOW and DELIVERED_LATE take up to ``delay`` seconds. ``rng`` is used in the proxy's thread alone.
        Raises ValueError when a rate is negative or all together are above 1.
        """
        if min(rates.values(), default=0.0) < 0 or sum(rates.values()) > 1:
            raise ValueError(f"rates must not be negative, nor above 1 together: {rates}")
        fixed = dict(rates)
        self._call(lambda: self._book.draw_from(rng, fixed, delay))

    def calm(self) -> None:
        """No more faults, injected or random; those on their way complete."""
        self._call(self._book.clear)

    def release_late(self, timeout: float = 10.0) -> int:
        """Deliver what DELIVERED_LATE has kept, and wait until the server has answered it.

        Returns how many were answered; those whose connection the server has closed meanwhile are not.
        Raises TimeoutError after ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        answers = self._call(self._release_all)
        return sum(answer.result(max(0.0, deadline - time.monotonic())) for answer in answers)

    def refuse(self) -> None:
        """Put the server out of reach: cut everybody off, and close new connections at once."""
        self._call(lambda: self._set_refusing(True))

    def accept(self) -> None:
        """End `refuse`."""
        self._call(lambda: self._set_refusing(False))

    def cut_all(self) -> None:
        """Cut everybody off. Replies are lost; requests that have come in, or are kept for later, are not."""
        self._call(self._cut_all)

    def blackhole(self) -> None:
        """Let no byte pass either way, nor anybody new in, but keep all connections open."""
        self._call(lambda: self._set_blackholed(True))

    def heal(self) -> None:
        """End `blackhole`: all that was held up passes."""
        self._call(lambda: self._set_blackholed(False))

    def close(self) -> None:
        """Cut everybody off and end the thread. Idempotent. Raises RuntimeError when the proxy had failed."""
        self._stopping = True
        self._wake()
        self._thread.join()
        self._waker.close()
        if self._failure is not None:
            raise RuntimeError("the fault proxy had failed") from self._failure

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, function: Callable[[], T]) -> T:
        if threading.current_thread() is self._thread:  # a ``match`` may use the proxy
            return function()
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("the fault proxy is closed") from self._failure
            self._calls.append((future, function))
        self._wake()
        return future.result()

    def _wake(self) -> None:
        with suppress(OSError):  # full: it will wake anyway; closed: nobody is left to be woken
            self._waker.send(b"\0")

    # From here on everything runs in the proxy's thread.

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._turn()
        except BaseException as failure:
            self._failure = failure
        finally:
            self._shut_down()

    def _turn(self) -> None:
        for key, mask in self._selector.select(None if self._blackholed else self._timers.wait()):
            key.data(mask)
        if not self._blackholed:
            self._timers.run()
        while self._calls:
            future, function = self._calls[0]
            future.set_result(function())
            self._calls.popleft()  # only now: should the call fail, `_shut_down` answers it

    def _shut_down(self) -> None:
        for link in list(self._links):
            link.close()
        self._selector.close()
        self._listener.close()
        self._wakeup.close()
        with self._lock:
            self._closed = True
        for future, _ in self._calls:
            future.set_exception(RuntimeError("the fault proxy is closed"))

    def _client_arrives(self, _mask: int) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:  # it has left again
            return
        if self._refusing:
            client.close()
            return
        try:
            server = socket.create_connection(self._upstream, CONNECT_SECONDS)
        except OSError:
            client.close()
            return
        ends = Peer(client, self._selector), Peer(server, self._selector)
        self._links.add(Link(*ends, self._book, self._timers, self._links.discard))

    def _release_all(self) -> list[Future[bool]]:
        answers = []
        for link in self._links:
            if link.late is not None:
                answers.append(link.late.answered)
                # Through the timers, because they stand still in a black hole.
                self._timers.after(0.0, link.release)
        return answers

    def _cut_all(self) -> None:
        for link in list(self._links):
            link.cut()

    def _set_refusing(self, refusing: bool) -> None:
        self._refusing = refusing
        if refusing:
            self._cut_all()

    def _set_blackholed(self, blackholed: bool) -> None:
        if blackholed != self._blackholed:
            self._blackholed = blackholed
            if blackholed:
                self._selector.unregister(self._listener)
            else:
                self._selector.register(self._listener, READ, self._client_arrives)
            for link in list(self._links):
                link.freeze(blackholed)
