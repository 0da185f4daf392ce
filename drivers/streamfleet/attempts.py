"""From how a handler ended to what the worker machine is told."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Context
from traceback import format_exception

from streamfleet.task import Task, result_bytes
from streamfleet_core.errors import DoNotRetry, RetryLater
from streamfleet_core.events import EventKind
from streamfleet_core.state import Delivery, Phase
from streamfleet_core.timekeeping import NO_CONTACT
from streamfleet_core.worker import WorkerMachine

MAX_HANGING = 2
"""So many times the concurrency in handlers may hang in threads before they cost places of the worker."""

_UNSET = object()


class OddResults:
    """Tells once per queue that its handler returns what cannot travel to the client."""

    __slots__ = ("_machine", "_told")

    def __init__(self, machine: WorkerMachine) -> None:
        self._machine = machine
        self._told: set[str] = set()

    def tell(self, delivery: Delivery, value: object) -> None:
        """The handler returned ``value``. Called as the machine is: one at a time."""
        queue = delivery.queue.keys.queue
        if queue not in self._told:
            self._told.add(queue)
            kind = type(value).__name__
            mend = "which is not sent to the client: return bytes or str"
            text = f"the handler of {queue!r} returned {kind}, {mend}"
            self._machine.emit(EventKind.RESULT_DROPPED, text, delivery)


class Attempts:
    """Reports the ends of a worker's attempts to its machine. Used on the event loop's thread only."""

    __slots__ = ("_machine", "_odd_results", "_time")

    def __init__(self, machine: WorkerMachine, time: Callable[[], float]) -> None:
        self._machine = machine
        self._time = time
        self._odd_results = OddResults(machine)

    def returned(self, delivery: Delivery, value: object) -> None:
        """The handler returned ``value``."""
        if value is None:
            self._machine.handler_returned(delivery, self._time())
            return
        result = result_bytes(value)
        if result is None:
            self._odd_results.tell(delivery, value)
        self._machine.handler_returned(delivery, self._time(), result)

    def raised(self, delivery: Delivery, error: BaseException) -> None:
        """The handler raised."""
        failed, now = self._machine.handler_failed, self._time()
        if isinstance(error, RetryLater):
            failed(delivery, now, str(error), retry_in=error.delay)
        else:
            text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            trace = "".join(format_exception(error))
            failed(delivery, now, text, trace, final=isinstance(error, DoNotRetry))

    def stopped(self, delivery: Delivery) -> None:
        """The handler was cancelled because the machine had cancelled the delivery.

        Nothing is to be told where the machine has already decided. Otherwise the entry is still in our hands.
        """
        if delivery.phase is Phase.RUNNING:
            self._machine.handler_stopped(delivery)

    def late(self, delivery: Delivery) -> None:
        """A thread that was left to itself has returned after all."""
        self._machine.handler_returned(delivery, self._time())


class Hanging:
    """Handlers whose attempts were given up, in threads that have not returned: none can be stopped from outside.

    A thread that is left to itself makes room for another, up to `MAX_HANGING` times the concurrency; those beyond
    keep their places in the worker. Called as the machine is: one at a time.
    """

    __slots__ = ("_left", "_machine")

    def __init__(self, machine: WorkerMachine) -> None:
        self._machine = machine
        self._left: dict[Delivery, bool] = {}
        """All of them: was it left to itself?"""

    def leave(self, delivery: Delivery) -> bool:
        """Its attempt was given up. True: another may have its place. False: too many hang, which is told.

        Once the machine stops nobody needs the place, and who keeps it must not hold up the end.
        """
        left = self._left.get(delivery)
        if left is not None and (left or not self._machine.stopping):
            return left
        most = MAX_HANGING * self._machine.config.concurrency
        left = self._left[delivery] = self._machine.stopping or sum(self._left.values()) < most
        if not left:
            hanging = len(self._left)
            text = f"{hanging} handlers hang after they were given up; no more threads are added for them"
            self._machine.emit(EventKind.HANDLERS_HANG, text, handlers=hanging)
        return left

    def returned(self, delivery: Delivery) -> bool:
        """Its handler has returned, or never began. Had it been left to itself?"""
        return bool(self._left) and self._left.pop(delivery, False)


class Canceller:
    """What the machine calls when it cancels the delivery; interrupts a handler once, so that it can clean up.

    A thread cannot be stopped. While there is no contact to the server it is worth waiting for: its outcome counts
    if contact comes back before others have taken the task over. So it is when too many hang already.

    ``hanging``: for a handler in a thread; None: it runs on the event loop.
    """

    __slots__ = ("_cancel", "_delivery", "_hanging", "called")

    def __init__(self, delivery: Delivery, hanging: Hanging | None, cancel: Callable[[], object]) -> None:
        self._delivery = delivery
        self._hanging = hanging
        self._cancel = cancel
        self.called = False
        """Has it interrupted the handler?"""

    def __call__(self) -> None:
        if self.called:
            return
        hanging, delivery = self._hanging, self._delivery
        if hanging is not None and (delivery.cancelled == NO_CONTACT or not hanging.leave(delivery)):
            return
        self.called = True
        self._cancel()


def call_in_thread(function: Callable[[Task], object], task: Task) -> tuple[object, BaseException | None]:
    """Run a plain handler; its error is returned, because a StopIteration could not cross to an event loop."""
    try:
        return function(task), None
    except BaseException as error:
        return None, error


def same_context(clean: Context, now: Context) -> bool:
    """Are all context variables as they were? Otherwise one task's would be seen by the next."""
    if len(clean) != len(now):
        return False
    return not now or all(clean.get(variable, _UNSET) is value for variable, value in now.items())
