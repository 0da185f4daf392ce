"""What may be left at the end, and what is found when more is."""

import pytest
from campaign.leftovers import MARKER_TTL, clock, collected, killed_clients, left_behind
from campaign.roster import Part, roster

from streamfleet.memory import MemoryDriver
from streamfleet_core.keys import GROUP, queue_keys, receiver_key

MAIL, IMG = queue_keys("mail"), queue_keys("img{7}")
KILLED, FINISHED = "killed-1", "finished-1"


@pytest.fixture
def ask(request):
    connection = MemoryDriver(request.node.name).connect(1.0)
    for key in (MAIL, IMG):
        connection.exchange([("XGROUP", "CREATE", key.stream, GROUP, "0", "MKSTREAM")], 1.0)
    yield lambda *commands: connection.exchange(list(commands), 1.0)
    connection.close()


def marker(client):
    return MAIL.producer(MAIL.client_id(client))


def test_declared_keys_and_our_own_clock_may_stay(ask):
    ask(clock(), ("SET", MAIL.fence, "1"), ("SET", IMG.moves, "1"), ("XADD", MAIL.dead, "*", "id", "a"))
    assert left_behind(ask, set()) == []


def test_a_marker_of_a_killed_client_may_stay_for_its_time_to_live(ask):
    ask(("HSET", marker(KILLED), "s", "1"), ("PEXPIRE", marker(KILLED), MARKER_TTL))
    assert left_behind(ask, {KILLED}) == []


@pytest.mark.parametrize(
    ("commands", "name"),
    [
        ([("HSET", marker(KILLED), "s", "1")], ":producer:"),
        ([("HSET", marker(KILLED), "s", "1"), ("PEXPIRE", marker(KILLED), MARKER_TTL * 2)], ":producer:"),
        ([("HSET", marker(FINISHED), "s", "1"), ("PEXPIRE", marker(FINISHED), 1000)], ":producer:"),
        ([("XADD", receiver_key(MAIL.client_id(KILLED)), "*", "a", "b")], "receiver:"),
        ([("ZADD", MAIL.receivers, 1, MAIL.client_id(KILLED))], ":receivers"),
        ([("HSET", IMG.scheduled, "a", "b")], ":scheduled"),
        ([("SET", "anything", "1")], "anything"),
    ],
    ids=["no time to live", "too long", "ended in order", "receiver", "heartbeat", "schedule", "stranger"],
)
def test_anything_else_is_found(ask, commands, name):
    ask(*commands)
    (found,) = left_behind(ask, {KILLED})
    assert name in found


def test_entries_that_are_pending_in_an_empty_stream_are_found(ask):
    ask(("XADD", MAIL.stream, "1-1", "a", "b"), ("XREADGROUP", "GROUP", GROUP, "w", "STREAMS", MAIL.stream, ">"))
    ask(("XDEL", MAIL.stream, "1-1"))
    (found,) = left_behind(ask, set())
    assert "pending" in found


def test_a_server_that_does_not_answer_has_not_been_found_clean():
    with pytest.raises(ValueError, match="zip"):
        left_behind(lambda *_: [], set())


def test_receivers_and_heartbeats_are_waited_for(ask):
    assert collected(ask)
    ask(("ZADD", IMG.receivers, 1, "a"))
    assert not collected(ask)
    ask(("DEL", IMG.receivers), ("XADD", receiver_key("a"), "*", "a", "b"))
    assert not collected(ask)


def test_killed_clients_are_those_that_did_not_end_in_order(tmp_path):
    for name, text in (
        ("a", f"client {KILLED}\noffered 1\n"),
        ("b", f"client {FINISHED}\nfinished 0\n"),
        ("c", ""),
    ):
        (tmp_path / name).write_text(text)
    assert killed_clients(sorted(tmp_path.iterdir())) == {KILLED}


def test_the_roster_names_what_was_used_and_not_what_was_asked_for(tmp_path):
    log = tmp_path / "log"
    log.write_text("ready trio TrioDriver valkey\nstart a 1 1\nend a 1\nready sync ValkeyDriver redis\nend b 1\n")
    parts = roster("worker", [log])
    assert parts == {"trio on TrioDriver (valkey://)": Part(1, 1), "sync on valkey-py": Part(1, 1)}
    assert roster("client", [log])["sync on valkey-py"] == Part(1, 0)
