"""Processes of a world: workers and clients around the real machines, mirroring the threads shell."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from streamfleet_core.client import ClientMachine, Options
from streamfleet_core.config import ClientConfig, WorkerConfig
from streamfleet_core.link import Link, Role
from streamfleet_core.retry import RetryPolicy
from streamfleet_core.state import Delivery, Phase
from streamfleet_core.submission import Status, Submission
from streamfleet_core.worker import NO_CONTACT, WorkerMachine

from .bounds import scan_interval
from .loops import WAKE, LinkLoop
from .network import EPOCH_MS
from .plan import Act, TaskPlan

if TYPE_CHECKING:
    from .world import World

MAX_REPLACEMENTS = 2
MAX_TURNS = 2000
"""Turns of all loops of a process within a virtual second, beyond which it spins; 150 are many."""


class Process:
    """What both sorts have in common: a clock of its own, death, suspension, loops."""

    machine: WorkerMachine | ClientMachine

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.random = world.random(name)
        self.dead = False
        self.ended = False
        """It has left in order."""
        self.suspended = False
        self.longest_sleep = 0.0
        """Seconds for which it was suspended at a stretch."""
        self._asleep_since = 0.0
        self.partitioned = False
        self.disturbed_at = world.engine.now
        """When something last happened to this process that does not happen to a healthy one."""
        self._turns = 0
        self._second_ends = 0.0
        self.offset = self.random.uniform(0.0, 1e5)
        skew = self.random.uniform(-world.plan.skew, world.plan.skew)
        self.wall_ms = EPOCH_MS + (world.engine.now + skew) * 1000
        self._deferred: list[tuple[Callable[..., object], tuple[Any, ...]]] = []
        self._impatient: list[tuple[Callable[..., object], tuple[Any, ...]]] = []
        self._loops: dict[Link, LinkLoop] = {}

    @property
    def now(self) -> float:
        """The monotonic clock of this process."""
        return self.world.engine.now + self.offset

    def world_time(self, local: float) -> float:
        """The virtual time at which the monotonic clock shows ``local``."""
        return local - self.offset

    @property
    def loops(self) -> list[LinkLoop]:
        """The loops that were started."""
        return list(self._loops.values())

    def awake(self, do: Callable[..., object], *args: Any) -> bool:
        """Can the process act now? If it is suspended, ``do`` is done when it is awake again."""
        if self.suspended:
            self._deferred.append((do, args))
            return False
        return not self.dead and not self.ended

    def patient(self, do: Callable[..., object], *args: Any) -> bool:
        """As `awake` for a timeout: whoever wakes up looks first at what has arrived."""
        if self.suspended:
            self._impatient.append((do, args))
            return False
        return True

    def turn(self) -> None:
        """A loop takes a turn; how many there are in a second is limited."""
        now = self.world.engine.now
        if now >= self._second_ends:
            self._second_ends, self._turns = now + 1.0, 0
        self._turns += 1
        if self._turns > MAX_TURNS:
            self.world.spins(self)

    @property
    def clock_error(self) -> float:
        """Who sleeps between asking for the time and hearing it takes the middle of that for the moment it was."""
        return self.longest_sleep / 2

    def suspend(self) -> None:
        """SIGSTOP."""
        if not self.suspended:
            self._asleep_since = self.world.engine.now
        self.suspended = True
        self.disturbed_at = self.world.engine.now

    def resume(self) -> None:
        """SIGCONT: go on with what has arrived meanwhile."""
        if self.dead or not self.suspended:
            return
        self.suspended = False
        self.disturbed_at = self.world.engine.now
        self.longest_sleep = max(self.longest_sleep, self.world.engine.now - self._asleep_since)
        self.world.trace.note(self.name, "resumed")
        deferred = [*self._deferred, *self._impatient]
        self._deferred.clear()
        self._impatient.clear()
        for do, args in deferred:
            do(*args)

    def partition(self) -> None:
        """Nothing passes between this process and the server; its connections are dead, unknown to either."""
        self.partitioned = True
        self.disturbed_at = self.world.engine.now
        for loop in self.loops:
            self.world.engine.after(10.0 * self.random.random(), loop.timed_out, loop._exchange)

    def heal(self) -> None:
        """Connections can be made again."""
        self.world.trace.note(self.name, "can reach the server again")
        self.partitioned = False
        self.disturbed_at = self.world.engine.now
        for loop in self.loops:
            loop.cut()

    def cut(self) -> None:
        """All its connections break."""
        for loop in self.loops:
            loop.cut()

    def crash(self) -> None:
        """SIGKILL."""
        if self.dead or self.ended:
            return
        self.dead = True
        self.suspended = False
        for loop in self.loops:
            loop.abandon()
        self.world.trace.note(self.name, "killed")

    @property
    def alive(self) -> bool:
        """Neither killed nor ended."""
        return not self.dead and not self.ended

    def quiet_for(self) -> float:
        """For how many seconds all its connections have stood and nothing has happened to it."""
        now = self.world.engine.now
        loops = [loop for link, loop in self._loops.items() if not loop.ended and link.role is not Role.TIME]
        return min([now - self.disturbed_at, *(now - loop.quiet_since for loop in loops)])

    def after_step(self) -> None:
        """See `streamfleet.sync.loops.Loops.after_step`."""
        kicked = self.machine.kicked
        while kicked:
            loop = self._loops.get(kicked.pop())
            if loop is not None:
                loop.kick()
        self.after()
        events = self.machine.events
        while events:
            event = events.popleft()
            self.world.noted(self, event)

    def after(self) -> None:
        """What the shell does beyond that."""
        raise NotImplementedError

    def interrupt_finished(self) -> None:
        """See `streamfleet.sync.loops.Loops.interrupt_finished`."""
        for loop in self._loops.values():
            if loop.to_end:
                loop.interrupt()
                loop.kick()

    def loop_ended(self) -> None:
        """A loop has ended."""
        self.after()


class WorkerProcess(Process):
    """One start of a worker."""

    machine: WorkerMachine

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        plan = world.plan
        timeouts = dict.fromkeys(world.queues, 0.0)
        timeouts[world.queues[-1]] = plan.timeout
        config = WorkerConfig(
            concurrency=plan.concurrency,
            lease=plan.lease,
            scan_interval=scan_interval(plan),
            sweep_interval=world.sweep_interval,
            client_timeout=plan.client_timeout,
            drain=plan.lease,
            block=world.block,
            max_prefetch=1 if plan.one_by_one else 20,
        )
        self.machine = WorkerMachine(
            name,
            timeouts,
            config,
            now=self.now,
            wall_ms=self.wall_ms,
            entropy=self.random.randbytes,
            random=self.random.random,
        )
        self._idle = config.concurrency
        self._replaced: set[Delivery] = set()
        self._obedient = world.slot_of(name) < plan.obedient
        self._interrupted: dict[Delivery, bool] = {}
        """Handlers that were told to stop; do they?"""
        for link in self.machine.links:
            self._loops[link] = LinkLoop(self, link)
        for loop in self.loops:
            loop.start()

    def after(self) -> None:
        """See `streamfleet.sync.worker`."""
        machine = self.machine
        for _ in range(0 if machine.stopping else min(self._idle, len(machine.ready))):
            self._idle -= 1
            self.world.engine.after(WAKE * self.random.random(), self._take)
        if machine.refusal is not None and not machine.stopping:
            self.world.violated("refused", f"{self.name}: {machine.refusal}")
            machine.stop(self.now)
        if machine.stopping:
            if machine.refusal is not None and not machine.failing_in_order:
                machine.abandon()
            self.interrupt_finished()

    def stop(self, drain: float) -> None:
        """Leave in order."""
        if self.awake(self.stop, drain) and not self.machine.stopping:
            self.world.trace.note(self.name, f"stops, drain {drain:g} s")
            self.machine.stop(self.now, drain)
            self.after_step()

    def loop_ended(self) -> None:
        """The process ends with its last loop."""
        super().loop_ended()
        if all(loop.ended for loop in self.loops):
            self.ended = True
            self.world.trace.note(self.name, "has left")

    # ---- handlers -----------------------------------------------------------------------------------

    def _take(self) -> None:
        if not self.awake(self._take):
            return
        delivery = None if self.machine.stopping else self.machine.take(self.now)
        if delivery is None:
            if self.machine.kicked or self.machine.events:
                self.after_step()
            self._idle += 1
            return
        assert delivery.task is not None, "taken without a task"
        task = self.world.plan_of(delivery.task.data)
        attempt = task.script[min(delivery.task.retries, len(task.script) - 1)]
        run = self.world.observer.run_started(self, delivery)
        delivery.on_cancel = lambda: self._cancelled(delivery)
        self.world.engine.after(attempt.seconds, self._handled, delivery, attempt.act, run)

    def _handled(self, delivery: Delivery, act: Act, run: int) -> None:
        if not self.awake(self._handled, delivery, act, run) or self._interrupted.get(delivery):
            return
        machine, now = self.machine, self.now
        delivery.on_cancel = None
        if act is Act.POISON:
            self.world.poisoned(self)
            return
        self.world.observer.run_ended(run, act)
        self.world.counts["ended while stopping"] += machine.stopping
        if act is Act.OK or act is Act.HANG:
            machine.handler_returned(delivery, now, b"result")
        elif act is Act.FAIL:
            machine.handler_failed(delivery, now, "ValueError: no", "Traceback …")
        elif act is Act.LATER:
            machine.handler_failed(delivery, now, "later", retry_in=0.5)
        else:
            machine.handler_failed(delivery, now, "DoNotRetry: never", final=True)
        if delivery in self._replaced:
            self._replaced.discard(delivery)
        else:
            self._one_more_place()
        self.after_step()

    def _cancelled(self, delivery: Delivery) -> None:
        machine = self.machine
        self.world.counts["drained too short"] += machine.stopping and self.now >= machine.time.stop_at
        if self._obedient:
            self._interrupt(delivery)
        elif delivery.queue.timeout:
            self._replace(delivery)

    def _interrupt(self, delivery: Delivery) -> None:
        """See `streamfleet.attempts.Canceller`: once for each handler. A few go on to their end all the same."""
        if delivery not in self._interrupted:
            obeys = self._interrupted[delivery] = self.random.random() < 0.8
            if obeys:
                cleaning = self.random.choice((WAKE, WAKE, 0.1, 1.0))
                self.world.engine.after(cleaning * self.random.random(), self._stopped, delivery)

    def _stopped(self, delivery: Delivery) -> None:
        """See `streamfleet.attempts.Attempts.stopped`."""
        if not self.awake(self._stopped, delivery):
            return
        assert delivery.task is not None, "a handler has been given a task"
        self.world.trace.note(self.name, f"{self.world.observer.label(delivery.task.id)}: stopped")
        self.world.counts["interrupted"] += 1
        delivery.on_cancel = None
        if delivery.phase is Phase.RUNNING:
            self.world.counts["given back by handlers"] += 1
            self.machine.handler_stopped(delivery)
        self._one_more_place()
        self.after_step()

    def _one_more_place(self) -> None:
        self._idle += 1
        assert self._idle <= self.machine.config.concurrency, "more handlers than there may be"

    def _replace(self, delivery: Delivery) -> None:
        """See `streamfleet.sync.worker`: a handler that hangs after its timeout would take a place for ever."""
        full = len(self._replaced) >= MAX_REPLACEMENTS * self.machine.config.concurrency
        if delivery.cancelled != NO_CONTACT and not self.machine.stopping and not full:
            self._replaced.add(delivery)
            self._one_more_place()


class ClientProcess(Process):
    """One client, with the handles that its user holds."""

    machine: ClientMachine

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        plan = world.plan
        config = ClientConfig(
            heartbeat=plan.client_timeout / 5,
            block=world.block,
            keep_seconds=world.keep_seconds,
            batch_tasks=1 if plan.one_by_one else 500,
        )
        self.machine = ClientMachine(
            name.replace(" ", "-"),
            [],
            config,
            now=self.now,
            wall_ms=self.wall_ms,
            entropy=self.random.randbytes,
            random=self.random.random,
        )
        self.machine.resolve = self._resolve  # type: ignore[method-assign]
        self.handles: dict[str, Submission] = {}
        self.resolved: dict[str, Status] = {}
        self.closing = False
        self.closed_at = float("inf")
        """When its user closed it (virtual seconds)."""

    def enqueue(self, task: TaskPlan) -> None:
        """The user enqueues."""
        if not self.awake(self.enqueue, task):
            return
        if self.closing:
            return
        policy = RetryPolicy(max_retries=task.max_retries, delay=task.retry_delay, factor=1.0, jitter=0.0)
        options = Options(retry=policy, delay=task.delay, expires_in=task.expires_in)
        data = b"%d" % task.number
        queue = self.world.queues[task.queue]
        submission = self.machine.enqueue(queue, data, self.now, options, tracked=task.tracked)
        self.handles[submission.id] = submission
        self.world.observer.enqueued(self, submission, task)
        if submission.status.terminal:
            self.resolved[submission.id] = submission.status
            self.world.observer.resolved(self, submission)
        if task.cancel_after is not None:
            self.world.engine.after(task.cancel_after, self._cancel, submission)
        self.after_step()

    def _cancel(self, submission: Submission) -> None:
        if self.awake(self._cancel, submission) and not submission.status.terminal and not self.closing:
            self.world.observer.cancelling(self, submission)
            self.machine.cancel(submission)
            self.after_step()

    def broke_since(self, moment: float) -> bool:
        """Has a connection on which it publishes broken since, with an exchange whose outcome is unknown?"""
        return any(loop.broke_at >= moment for link, loop in self._loops.items() if link.role is Role.PUBLISH)

    def close(self, timeout: float) -> None:
        """The user closes the client, giving it so much time."""
        if not self.awake(self.close, timeout) or self.closing:
            return
        self.world.trace.note(self.name, f"closes within {timeout:g} s, {self.machine.pending} unsent")
        self.closing = True
        self.closed_at = self.world.engine.now
        self.machine.close(self.now)
        self.world.engine.after(timeout, self._abandon)
        self.after_step()
        self._maybe_ended()

    def _abandon(self) -> None:
        if not self.awake(self._abandon) or not self.alive:
            return
        if self.machine.pending:
            unsent = [one for one in self.handles.values() if one.status is Status.BUFFERED]
            self.world.trace.note(self.name, f"gives {len(unsent)} tasks up")
            self.world.counts["abandoned"] += len(unsent)
            self.world.counts["abandoned though tracked"] += sum(one.tracked for one in unsent)
            self.machine.close(self.now, abandon=True)
            self.after_step()
        self.world.engine.after(1.0, self._give_up)

    def _give_up(self) -> None:
        """The shell waits a second longer than its user, then hangs up."""
        if not self.awake(self._give_up):
            return
        for link in self.machine.links:
            link.stop()
        self.after_step()
        for loop in self.loops:
            if not loop.ended:
                self.world.gave_up_closing.add(self.name)
            loop.abandon()
        self._maybe_ended()

    def after(self) -> None:
        """See `streamfleet.sync.client`."""
        machine = self.machine
        if machine.new_links:
            for link in [link for link in machine.new_links if link.duty.wanted()]:
                machine.new_links.remove(link)
                loop = self._loops[link] = LinkLoop(self, link)
                loop.start()
        machine.changed.clear()
        if machine.refusal is not None:
            self.world.violated("refused", f"{self.name}: {machine.refusal}")
        if self.closing:
            self.interrupt_finished()

    def _resolve(self, submission: Submission, status: Status) -> None:
        """Stands where the machine tells a user of an end: once for each task (I7)."""
        ClientMachine.resolve(self.machine, submission, status)
        if submission.id not in self.handles:
            return  # it has expired before it was handed out
        before = self.resolved.get(submission.id)
        if before is not None:
            text = f"{self.name}: {self.world.observer.label(submission.id)} is {before.name}, then {status.name}"
            self.world.violated("I7", text)
        self.resolved[submission.id] = status
        self.world.observer.resolved(self, submission)

    def loop_ended(self) -> None:
        """The process ends with its last loop."""
        super().loop_ended()
        self._maybe_ended()

    def _maybe_ended(self) -> None:
        if self.closing and all(loop.ended for loop in self.loops) and not self.ended:
            self.ended = True
            self.world.trace.note(self.name, "has left")
            for submission in self.handles.values():
                if submission.status is Status.BUFFERED:
                    label = self.world.observer.label(submission.id)
                    self.world.violated("I7", f"{self.name} has left, and {label} is still to be sent")
