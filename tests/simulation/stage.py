"""A world in which a test acts by hand, command by command, past all machines."""

from __future__ import annotations

from streamfleet_core.keys import GROUP, queue_keys, receiver_key
from streamfleet_core.state import Delivery, QueueState
from streamfleet_core.wire import (
    NoticeType,
    Notification,
    Task,
    decode_task,
    encode_notification,
    encode_task,
    pack_fields,
)

from .network import Wire
from .plan import Act, Attempt, Plan, TaskPlan
from .world import World

KEYS = queue_keys("q0")
TASK = TaskPlan(0, 0.0, 0, 0, (Attempt(Act.OK, 0.01),), tracked=True, max_retries=1)


class Owner:
    """Stands for a loop."""

    def __init__(self, name):
        self.name = name

    def disturbed(self):
        pass


class Stage:
    """A world without workers of its own, in which a test acts."""

    def __init__(self, task=TASK, **plan):
        self.world = World(Plan(seed=0, profile="checker", tasks=(task,), **plan))
        self.world._tasks = {0: task}
        self.world.start_client(0)
        (self.client,) = self.world.clients
        self.client.enqueue(task)
        (self.submission,) = self.client.handles.values()
        self.id = self.submission.id
        self.observer = self.world.observer
        self.wires = {}
        self.do("nobody settle", "XGROUP", "CREATE", KEYS.stream, GROUP, "0", "MKSTREAM")

    def do(self, who, *command):
        wire = self.wires.get(who)
        if wire is None:
            wire = Wire(self.world.server, Owner(who), self.world.random(who), self.observer)
            self.wires[who] = wire
        self.observer.actor = wire
        return wire.session.execute(command)

    def transaction(self, who, *commands):
        self.do(who, "MULTI")
        for command in commands:
            self.do(who, *command)
        return self.do(who, "EXEC")

    def entry(self, retries=0, task_id=None):
        task = Task(task_id or self.id, "q0", "c", b"0", max_retries=1, retries=retries)
        return ("XADD", KEYS.stream, "*", *encode_task(task))

    def enqueue(self, retries=0):
        return self.do("c0.1 publish", *self.entry(retries))

    def ran(self, entry_id=b"1-1", act=Act.OK, worker="w0.1"):
        queue = QueueState(KEYS)
        fields = list(self.entry()[3:])
        delivery = Delivery(queue, entry_id, decode_task(fields, "q0"), fields, None, 0.0)
        run = self.observer.run_started(Owner(worker), delivery)
        if act is not None:
            self.observer.run_ended(run, act)

    def notice(self, kind=NoticeType.COMPLETED):
        fields = encode_notification(Notification(self.id, kind))
        return ("XADD", receiver_key(self.client.machine.lanes[0].client_id), "NOMKSTREAM", "*", *fields)

    def letter(self, reason, **more):
        return ("XADD", KEYS.dead, "*", *self.entry(**more)[3:], "dead_reason", reason)

    def end(self, entry_id, *commands, who="w0.1 settle"):
        """Acknowledge and delete an entry; by default its task has completed."""
        ends = (("XACK", KEYS.stream, GROUP, entry_id), ("XDEL", KEYS.stream, entry_id))
        return self.transaction(who, *(commands or (self.notice(),)), *ends)

    def read(self, who="w0.1 read"):
        """A worker is given all there is."""
        command = ("XREADGROUP", "GROUP", GROUP, who.split()[0], "STREAMS", KEYS.stream, ">")
        return [entry for _, entries in self.do(who, *command) for entry, _ in entries]

    def schedule(self, due_ms=5, retries=0):
        body = pack_fields(list(self.entry(retries)[3:]))
        return (("ZADD", KEYS.schedule, due_ms, self.id), ("HSET", KEYS.scheduled, self.id, body))

    def greeted(self, stored=None):
        """The client hears what its marker says."""
        greeting = [("UNWATCH",), ("MULTI",), ("HINCRBY", b"m", "e", 1), ("HGET", b"m", "s"), ("EXEC",), ("TIME",)]
        replies = [b"OK", b"OK", b"QUEUED", b"QUEUED", [1, stored], [b"1", b"2"]]
        self.observer.markers.heard(self.client, greeting, replies)

    @property
    def violated(self):
        return {invariant for invariant, _ in self.world.violations}
