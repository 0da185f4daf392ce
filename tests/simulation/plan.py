"""What a world is made of, drawn from its seed: actors, tasks, faults. Pure data, so that it can be shrunk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum
from random import Random


class Act(Enum):
    """What a handler does with one attempt."""

    OK = "completes"
    FAIL = "raises"
    LATER = "raises RetryLater"
    FINAL = "raises DoNotRetry"
    HANG = "works for ever"
    POISON = "kills its worker"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt: after ``seconds`` of work, do ``act``."""

    act: Act
    seconds: float


@dataclass(frozen=True, slots=True)
class TaskPlan:
    """One task. ``script`` holds its attempts; the last one stands for all that follow."""

    number: int
    at: float
    client: int
    queue: int
    script: tuple[Attempt, ...]
    tracked: bool = False
    max_retries: int | None = 3
    retry_delay: float = 0.0
    delay: float | None = None
    expires_in: float | None = None
    cancel_after: float | None = None


class Kind(Enum):
    """What goes wrong, beyond single requests."""

    CRASH_WORKER = "a worker is killed, and started again"
    CRASH_CLIENT = "a client is killed, and another one takes its place"
    DEPLOY = "a worker stops in order, and another one takes its place"
    CLOSE_CLIENT = "a client closes in the middle of the work, and another one takes its place"
    SUSPEND_WORKER = "a worker is suspended"
    SUSPEND_CLIENT = "a client is suspended"
    CUT_WORKER = "all connections of a worker are cut"
    CUT_CLIENT = "all connections of a client are cut"
    PARTITION = "a worker cannot reach the server"
    DOWN = "the server is down and comes back with its data"
    SLOW = "the server answers nothing for a while"
    FULL = "the server has no memory for anything new"
    WIPE = "the server restarts without its data"
    FAILOVER = "the server goes back to what it was a moment ago"
    JUMP = "the server's clock jumps"
    DROP_ALL = "all connections are cut"
    DELETE_CONSUMER = "somebody deletes a live worker's consumer"
    DESTROY_GROUP = "somebody destroys a queue's group"
    DELETE_RECEIVER = "somebody deletes a client's receiver"


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. ``amount``: seconds it lasts.

    JUMP: seconds it jumps; FAILOVER: seconds it goes back; DEPLOY, CLOSE_CLIENT: seconds that who leaves is given.
    """

    at: float
    kind: Kind
    who: int = 0
    amount: float = 0.0


@dataclass(frozen=True, slots=True)
class Network:
    """Chances for each exchange, and the mean latency of one way in seconds."""

    latency: float = 0.002
    not_sent: float = 0.0
    request_lost: float = 0.0
    reply_lost: float = 0.0
    late: float = 0.0
    partial: float = 0.0
    half_open: float = 0.0
    connect_fails: float = 0.0
    late_by: float = 2.0
    """Mean seconds by which a late request is late."""

    @property
    def calm(self) -> bool:
        """Does nothing go wrong on the way?"""
        return not (
            self.not_sent
            or self.request_lost
            or self.reply_lost
            or self.late
            or self.partial
            or self.half_open
            or self.connect_fails
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """A world. Times in virtual seconds."""

    seed: int
    profile: str
    workers: int = 2
    clients: int = 1
    queues: int = 1
    concurrency: int = 2
    lease: float = 3.0
    horizon: float = 20.0
    """When faults and new tasks end."""
    timeout: float = 0.0
    """Of the handlers of the last queue."""
    client_timeout: float = 15.0
    skew: float = 0.0
    """How far the wall clocks of processes are off, at most."""
    one_by_one: bool = False
    """Clients put one task into a transaction, workers hold one entry."""
    obedient: int = 0
    """So many workers, the first ones, can stop their handlers, as the shells on event loops do."""
    network: Network = field(default_factory=Network)
    tasks: tuple[TaskPlan, ...] = ()
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True, slots=True)
class Profile:
    """How worlds of one sort are drawn. ``faults``: kinds with the mean number of times in a world."""

    network: Callable[[Random], Network]
    faults: dict[Kind, float] = field(default_factory=dict)
    tasks: tuple[int, int] = (6, 24)
    weight: int = 1
    calm_clients: bool = False
    horizon: tuple[float, float] = (8.0, 25.0)
    tracked: float = 0.5
    delayed: float = 0.15
    retried: float = 0.35
    departures: float = 0.0
    """The mean number of times that somebody leaves in the middle of his work, and in trouble."""
    endless: bool = False
    """Faults last until all faults stop, as far as they last at all."""


def _calm(random: Random) -> Network:
    return Network(latency=random.choice((0.0005, 0.005, 0.02)))


def _lossy(random: Random) -> Network:
    scale = random.choice((0.003, 0.01, 0.03))
    return Network(
        latency=random.choice((0.0005, 0.005, 0.03)),
        not_sent=scale * random.random(),
        request_lost=scale * random.random(),
        reply_lost=scale * random.random(),
        late=scale * random.random(),
        partial=scale * random.random() * 0.5,
        half_open=scale * random.random() * 0.3,
        connect_fails=scale * random.random(),
        late_by=random.choice((0.02, 0.3, 2.0, 8.0)),
    )


def _late(random: Random) -> Network:
    return Network(latency=0.002, late=0.08, reply_lost=0.02, late_by=random.choice((0.1, 0.5, 1.5)))


def _far(random: Random) -> Network:
    return Network(latency=random.choice((0.1, 0.3)))


K = Kind
PROFILES: dict[str, Profile] = {
    "calm": Profile(_calm, {K.DEPLOY: 0.5, K.CLOSE_CLIENT: 0.3}, tasks=(10, 40)),
    "lossy": Profile(_lossy, {K.CRASH_WORKER: 0.3, K.CLOSE_CLIENT: 0.3}, weight=3),
    "late": Profile(_late, {}, weight=2, retried=0.7),
    "crashes": Profile(
        _calm, {K.CRASH_WORKER: 2.0, K.CRASH_CLIENT: 0.7, K.DEPLOY: 1.0, K.CLOSE_CLIENT: 0.5}, weight=2
    ),
    "suspensions": Profile(_calm, {K.SUSPEND_WORKER: 3.0, K.SUSPEND_CLIENT: 0.3}, weight=2),
    "outages": Profile(_calm, {K.DOWN: 1.5, K.SLOW: 1.0, K.DROP_ALL: 0.5, K.FULL: 0.5}, weight=2),
    "partitions": Profile(_calm, {K.PARTITION: 2.0, K.CUT_WORKER: 2.0, K.CUT_CLIENT: 2.0}, weight=1),
    "losses": Profile(_calm, {K.FAILOVER: 0.8, K.WIPE: 0.5, K.DOWN: 0.3, K.CRASH_WORKER: 0.5}, weight=2),
    "clocks": Profile(_calm, {K.JUMP: 1.0, K.CRASH_WORKER: 0.5, K.SUSPEND_WORKER: 0.5}),
    "administrators": Profile(
        _calm,
        {K.DELETE_CONSUMER: 1.5, K.DESTROY_GROUP: 0.8, K.DELETE_RECEIVER: 0.3, K.CRASH_WORKER: 0.5},
        weight=2,
    ),
    "clients": Profile(
        _lossy,
        {K.CLOSE_CLIENT: 1.5, K.CRASH_CLIENT: 0.7, K.SUSPEND_CLIENT: 0.7, K.CUT_CLIENT: 1.0},
        tasks=(20, 50),
        tracked=0.7,
        delayed=0.3,
        weight=2,
    ),
    "closing": Profile(
        _calm, {K.CLOSE_CLIENT: 0.5, K.DEPLOY: 0.5, K.PARTITION: 0.7}, tracked=0.6, departures=5.0, weight=3
    ),
    "schedule": Profile(_calm, {K.CUT_WORKER: 1.0, K.CRASH_WORKER: 0.5}, delayed=0.9, weight=1),
    "collectors": Profile(_far, {K.SUSPEND_CLIENT: 2.0}, tasks=(4, 10), tracked=0.6, horizon=(30.0, 45.0)),
    "chaos": Profile(
        _lossy,
        {
            **{kind: 0.4 for kind in Kind if kind not in (K.JUMP, K.WIPE, K.FAILOVER)},
            K.JUMP: 0.1,
            K.WIPE: 0.1,
            K.FAILOVER: 0.2,
        },
        weight=3,
    ),
}
# Faults that last until all stop, in the middle of the work; drawn on demand only.
PROFILES["liveness"] = Profile(
    _lossy,
    {
        K.CRASH_WORKER: 2.0,
        K.CRASH_CLIENT: 0.3,
        K.SUSPEND_WORKER: 1.0,
        K.SUSPEND_CLIENT: 0.3,
        K.PARTITION: 0.7,
        K.DOWN: 0.5,
        K.SLOW: 0.3,
        K.FULL: 0.7,
        K.DELETE_CONSUMER: 0.3,
    },
    tasks=(40, 120),
    weight=0,
    horizon=(2.0, 12.0),
    delayed=0.3,
    endless=True,
)


def draw(seed: int, profile: str = "") -> Plan:
    """The world of a seed."""
    random = Random(f"plan {seed}")
    names = [name for name, one in PROFILES.items() for _ in range(one.weight)]
    profile = profile or random.choice(names)
    shape = PROFILES[profile]
    plan = Plan(
        seed=seed,
        profile=profile,
        workers=random.choice((1, 2, 2, 3, 3)),
        clients=random.choice((1, 1, 2)),
        queues=random.choice((1, 1, 1, 2)),
        concurrency=random.choice((1, 2, 4)),
        lease=random.choice((2.0, 3.0, 5.0)),
        horizon=random.uniform(*shape.horizon),
        timeout=random.choice((0.0, 0.0, 1.0)),
        skew=random.choice((0.0, 1.0, 3600.0)),
        one_by_one=random.random() < 0.2,
        network=shape.network(random),
    )
    if profile == "schedule":
        plan = replace(plan, workers=3)
    tasks = _tasks(random, plan, shape)
    faults = [*_faults(random, plan, shape), *_departures(random, plan, shape, tasks)]
    plan = replace(plan, tasks=tasks, faults=tuple(sorted(faults, key=lambda fault: fault.at)))
    return replace(plan, obedient=random.choice((0, 0, 1, plan.workers)))


def _tasks(random: Random, plan: Plan, shape: Profile) -> tuple[TaskPlan, ...]:
    tasks: list[TaskPlan] = []
    amount = random.randint(*shape.tasks)
    bursts = [random.uniform(0.0, plan.horizon * 0.9) for _ in range(3)]
    for number in range(amount):
        burst = random.random() < 0.6
        at = random.choice(bursts) if burst else random.uniform(0.0, plan.horizon * 0.9)
        queue = random.randrange(plan.queues)
        delayed = random.random() < shape.delayed
        script = _script(random, plan, queue, shape)
        endless = (None,) if script[-1].act is not Act.FAIL else ()
        tasks.append(
            TaskPlan(
                number=number,
                at=at + random.random() * 0.01,
                client=random.randrange(plan.clients),
                queue=queue,
                script=script,
                tracked=random.random() < shape.tracked,
                max_retries=random.choice((0, 1, 3, 3, *endless)),
                retry_delay=random.choice((0.0, 0.0, 0.3, 2.0)),
                delay=random.choice((0.2, 1.0, 4.0)) if delayed else None,
                expires_in=random.choice((-1.0, 0.5, 3.0)) if random.random() < 0.08 else None,
                cancel_after=random.expovariate(1.0) if delayed and random.random() < 0.3 else None,
            )
        )
    return tuple(sorted(tasks, key=lambda task: task.at))


def _script(random: Random, plan: Plan, queue: int, shape: Profile) -> tuple[Attempt, ...]:
    """Nothing that would never end: an attempt that takes too long for its queue is a HANG, and passes."""
    script: list[Attempt] = []
    timed = bool(plan.timeout) and queue == plan.queues - 1
    longest = plan.timeout * 0.7 if timed else 1e9

    def attempt(act: Act) -> Attempt:
        return Attempt(act, min(_seconds(random, plan), longest))

    while random.random() < shape.retried and len(script) < 4:
        script.append(attempt(random.choice((Act.FAIL, Act.FAIL, Act.LATER))))
    fate = random.random()
    if fate < 0.03:
        script.append(attempt(Act.POISON))
    elif fate < 0.08:
        script.append(attempt(Act.FINAL))
    elif fate < 0.12 and timed:
        script.append(Attempt(Act.HANG, plan.timeout * random.choice((1.0, 3.0, 20.0))))
        script.append(attempt(Act.OK))
    elif fate < 0.15:
        script.append(attempt(Act.FAIL))
    else:
        script.append(attempt(Act.OK))
    return tuple(script)


def _seconds(random: Random, plan: Plan) -> float:
    """Mostly short; some attempts last several leases."""
    return random.choice((0.001, 0.01, 0.05, 0.2, 0.2, 1.0, plan.lease * random.choice((0.5, 1.2, 2.5))))


def _faults(random: Random, plan: Plan, shape: Profile) -> list[Fault]:
    faults: list[Fault] = []
    lease = plan.lease
    amounts: dict[Kind, Callable[[], float]] = {
        K.SUSPEND_WORKER: lambda: lease * random.choice((0.3, 0.9, 1.3, 2.0, 4.0)),
        K.SUSPEND_CLIENT: lambda: plan.client_timeout * random.choice((0.2, 0.97, 1.0, 1.03, 1.1, 1.2)),
        K.PARTITION: lambda: lease * random.choice((0.3, 1.0, 1.5, 3.0)),
        K.DOWN: lambda: lease * random.choice((0.2, 1.0, 3.0, 4.0)),
        K.SLOW: lambda: lease * random.choice((0.3, 0.8, 1.1, 2.0, 4.0)),
        K.FULL: lambda: lease * random.choice((0.3, 1.0, 3.0, 6.0)),
        K.WIPE: lambda: random.choice((0.1, 1.0, 3.0)),
        K.FAILOVER: lambda: random.choice((0.05, 0.5, 2.0)),
        K.JUMP: lambda: random.choice((-600.0, 600.0, -3.0, 3.0, 30.0)),
        K.CRASH_WORKER: lambda: random.choice((0.1, 0.5, lease * 2)),
        K.DEPLOY: lambda: random.choice((0.0, 0.3, lease)),
        K.CLOSE_CLIENT: lambda: random.choice((0.0, 0.1, 2.0, 10.0)),
    }
    for kind, mean in shape.faults.items():
        for _ in range(_poisson(random, mean)):
            who = random.randrange(6)
            amount = amounts.get(kind, lambda: 0.0)()
            if shape.endless and random.random() < 0.7:
                amount = plan.horizon
            faults.append(Fault(random.uniform(0.3, plan.horizon), kind, who, amount))
    return faults


def _departures(random: Random, plan: Plan, shape: Profile, tasks: tuple[TaskPlan, ...]) -> list[Fault]:
    """Clients close right after they were given tasks, workers stop while they run them; often in an outage."""
    faults: list[Fault] = []
    for _ in range(_poisson(random, shape.departures)):
        task = random.choice(tasks)
        trouble = random.choice((None, None, K.DOWN, K.SLOW))
        if trouble is not None:
            begins = max(0.3, task.at - random.uniform(0.0, 0.3))
            faults.append(Fault(begins, trouble, 0, plan.lease * random.choice((0.2, 0.5, 1.0, 2.0))))
        if random.random() < 0.5:
            patience = random.choice((0.0, 0.05, 0.5, 2.0))
            faults.append(Fault(task.at + random.uniform(0.0, 0.02), K.CLOSE_CLIENT, task.client, patience))
        else:
            drain = random.choice((0.0, 0.05, 0.3, 1.0, plan.lease))
            at = task.at + random.uniform(0.0, 0.1 + task.script[0].seconds)
            slots = range(plan.workers) if random.random() < 0.5 else [random.randrange(plan.workers)]
            faults += [Fault(at, K.DEPLOY, slot, drain) for slot in slots]
    return faults


def _poisson(random: Random, mean: float) -> int:
    """How often something of that mean happens."""
    number, left = 0, random.expovariate(1.0)
    while left < mean:
        number += 1
        left += random.expovariate(1.0)
    return number
