import pytest

from streamfleet_core.connection import ServerError
from streamfleet_core.errors import PermissionMissing, UnsupportedServer, WrongKeyType
from streamfleet_core.events import EventKind
from streamfleet_core.features import REQUIRED, Feature, parse, query
from streamfleet_core.keys import queue_keys
from streamfleet_core.procedure import Answer
from streamfleet_core.startup import check_server, expected_types

KEYS = queue_keys("q")
WRONG = {"stream": ("SET", "mine"), "zset": ("SET", "mine"), "hash": ("SET", "mine"), "string": ("ZADD", 1, "x")}
SQUATTED = [(key, kind, what) for key, kind, what in expected_types(KEYS)]


@pytest.mark.parametrize(("key", "kind", "what"), SQUATTED, ids=[what for _, _, what in SQUATTED])
def test_a_key_of_another_type_is_found_before_any_work(world, key, kind, what):
    name, *arguments = WRONG[kind]
    world.call(name, key, *arguments)
    worker = world.worker(start=False)
    worker.read.frozen = worker.settle.frozen = True
    world.pump()
    refusal = worker.machine.refusal
    assert isinstance(refusal, WrongKeyType)
    found = "zset" if kind == "string" else "string"
    for part in (key.decode(), what, f"holds a {found}", f"must be a {kind}", "RENAME"):
        assert part in str(refusal)


def test_what_each_key_is_for():
    assert {key.decode(): what for key, _, what in expected_types(KEYS)} == {
        "streamfleet:q": "the queue",
        "{streamfleet:q}:dead": "dead letters",
        "{streamfleet:q}:schedule": "the schedule",
        "{streamfleet:q}:scheduled": "scheduled tasks",
        "streamfleet:q:receivers": "heartbeats of clients",
        "{streamfleet:q}:fence": "the fence",
        "{streamfleet:q}:moves": "the token of moves",
    }


def test_the_server_is_asked_for_the_part_that_tells_of_its_memory(world):
    assert ("INFO", "memory") in world.worker().control.sent[0]


def test_keys_of_every_queue_are_looked_at(world):
    world.call("SET", queue_keys("b").dead, "mine")
    worker = world.worker("a", "b")
    assert isinstance(worker.machine.refusal, WrongKeyType)


def test_the_servers_clock_is_read(world):
    worker = world.worker(start=False)
    world.server.now_ms = lambda: 5_000_000
    world.pump()
    assert worker.machine.clock.synchronised
    assert worker.machine.clock.ms(world.now + 1) == 5_001_000


def run(world, **replies):
    """The procedure with scripted replies; the machine and what it was refused with."""
    worker = world.worker(start=False)
    machine = worker.machine
    steps = check_server(machine, worker.control.link, list(machine.queues.values()))
    commands = next(steps)
    answers = [replies.get(command[0], b"none") for command in commands]
    answers[0] = replies.get("TIME", [b"1700000000", b"0"])
    with pytest.raises(StopIteration):
        steps.send(Answer(answers, world.now, world.now))
    return worker, machine.refusal


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
def test_an_evicting_server_is_warned_of(world, policy):
    info = b"# Memory\r\nused_memory:1\r\nmaxmemory_policy:%b\r\n" % policy.encode()
    worker, refusal = run(world, INFO=info)
    assert refusal is None
    (event,) = worker.events(EventKind.UNSAFE_SERVER)
    assert event.text == (
        f"the server evicts keys when it is full (maxmemory-policy {policy}): tasks can be lost; "
        "set it to noeviction"
    )
    assert event.data == {"policy": policy}


@pytest.mark.parametrize(
    "info",
    [
        b"maxmemory_policy:noeviction\r\n",
        b"\xff\r\nmaxmemory_policy:noeviction\r\n",
        b"used_memory:1\r\n",
        b"",
        ServerError("NOPERM no"),
        None,
    ],
)
def test_a_server_that_keeps_or_does_not_tell_is_not(world, info):
    worker, refusal = run(world, INFO=info)
    assert refusal is None
    assert not worker.events(EventKind.UNSAFE_SERVER)


def test_without_a_clock_the_local_one_serves(world):
    worker, refusal = run(world, TIME=ServerError("NOPERM no"))
    assert refusal is None
    assert not worker.machine.clock.synchronised


def test_a_type_that_may_not_be_asked_for_is_taken_to_be_right(world):
    _, refusal = run(world, TYPE=ServerError("NOPERM no"))
    assert refusal is None


@pytest.mark.parametrize(
    ("name", "code"), [("MULTI", "NOPERM"), ("EXEC", "EXECABORT Transaction discarded because of: NOPERM")]
)
def test_without_the_right_to_a_transaction_there_is_no_work(world, name, code):
    line = f"{code} User app has no permissions to run the '{name.lower()}' command"
    _, refusal = run(world, **{name: ServerError(line)})
    assert isinstance(refusal, PermissionMissing)
    assert f"ACL SETUSER app +{name.lower()}" in str(refusal)


def rows(*missing):
    """COMMAND INFO, as a server answers that lacks some."""
    return [None if name.upper() in missing else [name.encode()] for name in query()[2:]]


def test_a_command_that_is_missing_is_named(world):
    _, refusal = run(world, COMMAND=rows("XCLAIM", "XAUTOCLAIM", "XACKDEL"))
    assert isinstance(refusal, UnsupportedServer)
    assert str(refusal).startswith("the server lacks XCLAIM, XAUTOCLAIM: streamfleet needs")


def test_newer_commands_are_noted(world):
    worker, refusal = run(world, COMMAND=rows("XNACK"))
    assert refusal is None
    assert worker.machine.features == {Feature.XACKDEL}


@pytest.mark.parametrize("reply", [ServerError("ERR unknown command"), None, [], [None]])
def test_a_server_that_does_not_tell_has_the_baseline(reply):
    assert parse(reply) == ([], frozenset())


def test_the_question_names_its_commands_in_lower_case():
    name, option, *asked = query()
    assert (name, option) == ("COMMAND", "INFO")
    assert asked == [known.lower() for known in (*REQUIRED, "XACKDEL", "XNACK")]


def test_what_is_no_description_describes_no_command():
    answer = rows()
    answer[:3] = [b"xadd", [], ServerError("ERR what")]
    assert parse(answer)[0] == list(REQUIRED[:3])


def test_missing_commands_are_told_apart_from_features():
    assert parse(rows())[0] == []
    assert parse(rows(*REQUIRED)) == (list(REQUIRED), frozenset(Feature))
