"""Products that are broken from outside, each in a way that the checker must find; whole, they violate nothing."""

from dataclasses import dataclass, replace

import pytest

from streamfleet_core import moving, outcomes, publishing, reclaiming
from streamfleet_core.client import ClientMachine
from streamfleet_core.clock import ServerClock
from streamfleet_core.events import EventKind
from streamfleet_core.keeping import Kept
from streamfleet_core.publishing import Publisher
from streamfleet_core.reading import Reader
from streamfleet_core.receiving import Receiver
from streamfleet_core.settlement import Commit
from streamfleet_core.settling import Settler
from streamfleet_core.submission import Status
from streamfleet_core.sweeping import Sweeper
from streamfleet_core.wire import Task
from streamfleet_core.worker import WorkerMachine

from .campaign import survey
from .plan import Act, Attempt, Fault, Kind, Plan, TaskPlan
from .world import run

OK, FAIL, LATER = (Attempt(act, 0.01) for act in (Act.OK, Act.FAIL, Act.LATER))
LONG = Attempt(Act.OK, 6.0)


def world(*scripts, faults=(), workers=1, concurrency=1, **task):
    """One task for each script, half a second after the beginning."""
    tasks = tuple(TaskPlan(number, 0.5, 0, 0, script, **task) for number, script in enumerate(scripts))
    sizes = {"workers": workers, "concurrency": concurrency}
    return Plan(seed=1, profile="by hand", tasks=tasks, faults=faults, horizon=8.0, **sizes)


@dataclass(frozen=True)
class Broken:
    """``breaks``: what makes another thing of which attribute of what."""

    invariant: str
    plan: Plan
    breaks: tuple[tuple[object, str, object], ...]


def completes_what_failed(original):
    return lambda machine, delivery, now, *_, **__: machine.handler_returned(delivery, now)


def retries_what_returned(original):
    return lambda machine, delivery, now, result=None: machine.handler_failed(delivery, now, "no")


def a_second_ahead(original):
    return lambda clock, now: original(clock, now) + 1000


def gives_all_up_when_it_reconnects(original):
    def begin(receiver, identity, now):
        original(receiver, identity, now)
        receiver._give_up(receiver._under_way(Status.SENT, Status.ACCEPTED))

    return begin


def deletes_no_key(original):
    def clean(publisher):
        made = original(publisher)
        made.commands[:] = [("PING",) if command[0] == "DEL" else command for command in made.commands]
        return made

    return clean


def keeps_losses_to_itself(original):
    def emit(machine, kind, text, **data):
        if kind is not EventKind.MARKER_REGRESSED:
            original(machine, kind, text, **data)

    return emit


def reports_what_it_has_not_seen(original):
    def greeted(publisher, replies, now):
        original(publisher, replies, now)
        publisher._machine.emit(EventKind.MARKER_REGRESSED, "lost")

    return greeted


def takes_all_for_silent(original):
    def silent(sweeper, queue, reply, now):
        return list(zip(reply[::2], reply[1::2], strict=True))

    return silent


def after_three_leases(original):
    return lambda reply: [row for row in original(reply) if row.idle_ms > 9000]


def believes_to_own_all(original):
    return lambda settler, delivery, owner: original(settler, delivery, settler._machine.consumer)


def deletes_nothing(original):
    def add(commit, commands, mark=None):
        original(commit, [command for command in commands if command[0] != "XDEL"], mark)

    return add


def reads_without_pending(original):
    def pull(reader, now):
        made = original(reader, now)
        if made is not None and made.blocking:
            command = made.commands[0]
            made.commands[0] = (*command[:4], "NOACK", *command[4:])
        return made

    return pull


def moves_five_seconds_early(original):
    return lambda reply, server_ms: original(reply, server_ms + 5000)


def five_seconds_early(original):
    return lambda clock, server_ms: original(clock, server_ms) - 5.0


def never(original):
    return property(lambda kept: float("inf"), lambda kept, at: None)


def says_nothing(original):
    return lambda delivery: []


def always_no(original):
    return lambda *_: False


def no_retries_left(original):
    return property(lambda task: False)


SUSPENDED = (Fault(1.0, Kind.SUSPEND_WORKER, 0, 7.0),)
CRASHED = (Fault(1.0, Kind.CRASH_WORKER, 0, 60.0),)
PRODUCTS = {
    "completes what has failed": Broken(
        "I6", world((FAIL, OK)), ((WorkerMachine, "handler_failed", completes_what_failed),)
    ),
    "retries what has returned": Broken(
        "I3", world((OK,)), ((WorkerMachine, "handler_returned", retries_what_returned),)
    ),
    "retries nothing": Broken("I11", world((FAIL, OK)), ((Task, "retries_left", no_retries_left),)),
    "lets tasks expire a second early": Broken(
        "expiry",
        world((Attempt(Act.OK, 2.5),), (OK,), expires_in=3.0),
        ((ServerClock, "at_least_ms", a_second_ahead),),
    ),
    "notifies nobody": Broken("I7", world((OK,), tracked=True), ((outcomes, "notice", says_nothing),)),
    "tells UNKNOWN without need": Broken(
        "untrue",
        world((LONG,), tracked=True, faults=(Fault(1.0, Kind.CUT_CLIENT),)),
        ((Receiver, "begin", gives_all_up_when_it_reconnects),),
    ),
    "cancels what has run": Broken(
        "I5",
        world((FAIL, OK), delay=0.2, retry_delay=2.0, cancel_after=1.0),
        ((publishing, "has_failed", always_no),),
    ),
    "moves tasks before they are due": Broken(
        "due",
        world((OK,), delay=4.0),
        ((moving, "_split", moves_five_seconds_early), (ServerClock, "local", five_seconds_early)),
    ),
    "leaves its marker": Broken("I12", world((OK,)), ((Publisher, "_clean", deletes_no_key),)),
    "collects clients that live": Broken(
        "I12", world((LONG,), tracked=True), ((Sweeper, "_silent", takes_all_for_silent),)
    ),
    "keeps losses to itself": Broken(
        "I16",
        world((LONG,), faults=(Fault(1.0, Kind.WIPE, 0, 0.5),)),
        ((ClientMachine, "emit", keeps_losses_to_itself),),
    ),
    "does not ask whether its tasks are lost": Broken(
        "I1",
        replace(world((LONG,), faults=(Fault(2.0, Kind.WIPE, 0, 0.5),)), horizon=30.0),
        ((Kept, "check_at", never),),
    ),
    "reports losses that it has not seen": Broken(
        "I16", world((OK,)), ((Publisher, "_greeted", reports_what_it_has_not_seen),)
    ),
    "takes over after three leases": Broken(
        "I9",
        world((LONG,), (LONG,), workers=2, faults=CRASHED),
        ((reclaiming, "parse_pending", after_three_leases),),
    ),
    "settles what others own": Broken(
        "owned",
        world((LATER, OK), (LONG,), workers=2, faults=SUSPENDED),
        ((Settler, "_resolve", believes_to_own_all),),
    ),
    "acknowledges without deleting": Broken("I13", world((OK,)), ((Commit, "add", deletes_nothing),)),
    "reads without pending entries": Broken("I13", world((OK,)), ((Reader, "pull", reads_without_pending),)),
}


def violated(plan):
    return {invariant for invariant, _ in run(plan).violations}


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_that_is_found(name, monkeypatch):
    broken = PRODUCTS[name]
    assert violated(broken.plan) == set()
    for where, attribute, breaking in broken.breaks:
        monkeypatch.setattr(where, attribute, breaking(getattr(where, attribute)))
    assert broken.invariant in violated(broken.plan)


def test_a_client_that_believes_old_news_is_found(monkeypatch):
    """It takes its receiver for missing after that was made anew; for this the server must lose data in time."""
    registered = Receiver.registered

    def uncounted(receiver, queues, now):
        registered(receiver, queues, now)
        receiver._registrations = 0

    monkeypatch.setattr(Receiver, "registered", uncounted)
    report = survey(range(200), "losses", first_only=True)
    assert [invariant for violations in report.violating.values() for invariant, _ in violations[:1]] == ["untrue"]
