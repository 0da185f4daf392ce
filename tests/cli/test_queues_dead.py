"""``streamfleet queues`` and ``streamfleet dead``."""

import json
from contextlib import closing

import pytest

from streamfleet.cli.dead_letters import letters, replay
from streamfleet.cli.found import queues_on
from streamfleet.cli.session import session
from streamfleet.cli.table import age
from streamfleet.embedded import EmbeddedServer
from streamfleet.redis import RedisDriver
from streamfleet.sync import Client, Worker
from streamfleet_core.errors import WrongKeyType
from streamfleet_core.keys import GROUP, queue_keys

ODD = ["a{eu}b", "a}b", "x:y", "naïve", "{", "}"]


@pytest.fixture
def empty():
    """A server without anything."""
    with EmbeddedServer(appendonly=False) as server:
        yield server


def tell(server, *commands):
    with closing(RedisDriver(server.url).connect(5)) as connection:
        return connection.exchange(commands, 5)


@pytest.fixture
def failed(empty, eventually):
    """A server with three dead letters in the queue ``mail``, and the worker that made them gone."""
    driver = RedisDriver(empty.url)
    worker = Worker(driver)

    @worker.handler("mail")
    def fail(task):
        raise LookupError(f"no {task.text}")

    with Client(driver) as client, worker.running():
        tasks = [client.enqueue("mail", name, max_retries=0, expires_in=3600) for name in ("one", "two", "three")]
        eventually(lambda: tell(empty, ("XLEN", queue_keys("mail").dead)) == [3])
    return empty, [task.id for task in tasks]


def test_no_queues(streamfleet, empty):
    ended = streamfleet("queues", "--url", empty.url)
    assert (ended.returncode, ended.stdout) == (0, "no queues\n")


def test_counts_what_is_where(streamfleet, empty):
    keys = queue_keys("mail")
    with Client(RedisDriver(empty.url)) as client:
        client.enqueue_many("mail", ["a", "b", "c"])
        client.enqueue("mail", "later", delay=3600)
        client.enqueue("news", "x")
    tell(
        empty,
        ("XGROUP", "CREATE", keys.stream, GROUP, 0),
        ("XREADGROUP", "GROUP", GROUP, "w", "COUNT", 1, "STREAMS", keys.stream, ">"),
        ("XADD", keys.dead, "*", "id", "d"),
    )
    ended = streamfleet("queues", "--json", STREAMFLEET_URL=empty.url)
    mail, news = json.loads(ended.stdout)
    oldest = mail.pop("oldest_seconds")
    assert 0 <= oldest < 30
    assert mail == {"queue": "mail", "waiting": 2, "in_flight": 1, "scheduled": 1, "dead": 1, "workers": 1}
    assert (news["queue"], news["waiting"], news["in_flight"], news["workers"]) == ("news", 1, 0, 0)
    lines = streamfleet("queues", "mail", "--url", empty.url).stdout.splitlines()
    assert lines[0].split() == ["queue", "waiting", "oldest", "in", "flight", "scheduled", "dead", "workers"]
    assert [word for word in lines[1].split() if word != "s"][3:] == ["1", "1", "1", "1"]
    assert len(lines) == 2


def test_finds_queues_of_any_name_by_any_of_their_keys(empty):
    for number, name in enumerate(ODD):
        keys = queue_keys(name)
        tell(
            empty,
            [
                ("XADD", keys.stream, "*", "a", "b"),
                ("XADD", keys.dead, "*", "a", "b"),
                ("ZADD", keys.schedule, 0, "a"),
            ][number % 3],
        )
    tell(empty, ("ZADD", queue_keys("mail").receivers, 0, "c"), ("XADD", "streamfleet:receiver:c", "*", "a", "b"))
    tell(empty, ("SET", queue_keys("other").fence, "x"), ("SET", "foreign:dead", "x"))
    with session(empty.url) as opened:
        assert queues_on(opened) == sorted(ODD)


def test_dead_letters_are_listed_and_shown(streamfleet, failed):
    server, ids = failed
    ended = streamfleet("dead", "list", "mail", "--url", server.url)
    assert ended.returncode == 0
    lines = ended.stdout.splitlines()
    assert len(lines) == 3
    assert {task for task in ids if task in ended.stdout} == set(ids)
    assert all("failed, no retries allowed: LookupError: no " in line for line in lines)
    assert "3 dead letters in queue 'mail'" in ended.stderr
    ended = streamfleet("dead", "show", "mail", "--id", ids[1], "--url", server.url)
    assert "data        two" in ended.stdout
    assert 'raise LookupError(f"no {task.text}")' in ended.stdout
    assert ids[0] not in ended.stdout
    (shown,) = json.loads(
        streamfleet("dead", "show", "mail", "--json", "--id", ids[2], "--url", server.url).stdout
    )
    assert (shown["task"], shown["data"]) == (ids[2], "three")
    assert "Traceback" in shown["traceback"]


def test_replayed_tasks_run_again(streamfleet, failed, eventually):
    server, ids = failed
    asked = streamfleet("dead", "replay", "mail", "--url", server.url)
    assert asked.returncode == 2
    assert "add --yes" in asked.stderr
    dry = streamfleet("dead", "replay", "mail", "--dry-run", "--url", server.url)
    assert (dry.returncode, dry.stdout) == (0, "would put 3 dead letters back into queue 'mail'\n")
    one = streamfleet("dead", "replay", "mail", "--id", ids[0], "--yes", "--url", server.url)
    assert one.stdout == "1 dead letter put back into queue 'mail'\n"
    assert streamfleet("dead", "replay", "mail", "--yes", "--url", server.url).returncode == 0
    seen = {}
    worker = Worker(RedisDriver(server.url))

    @worker.handler("mail")
    def succeed(task):
        seen[task.id] = (task.attempt, task.text, dict(task.fields).keys() & {b"dead_reason", b"traceback"})

    with worker.running():
        eventually(lambda: len(seen) == 3)
        eventually(lambda: tell(server, ("XLEN", queue_keys("mail").stream)) == [0])
    assert seen == {task: (1, text, set()) for task, text in zip(ids, ("one", "two", "three"), strict=True)}
    assert tell(server, ("XLEN", queue_keys("mail").dead)) == [0]


def test_a_letter_is_replayed_once(failed):
    server, _ = failed
    keys = queue_keys("mail")
    with session(server.url) as ours, session(server.url) as theirs:
        letter = next(letters(ours, keys))
        assert replay(ours, keys, letter)
        assert not replay(theirs, keys, letter)
    assert tell(server, ("XLEN", keys.stream), ("XLEN", keys.dead)) == [1, 2]


class Interfering:
    """A session during whose first transaction another dead letter arrives."""

    def __init__(self, session, server, keys):
        self._session, self._server, self._keys, self.transactions = session, server, keys, 0

    def ask_all(self, commands):
        if commands[0] == ("MULTI",):
            self.transactions += 1
            if self.transactions == 1:
                tell(self._server, ("XADD", self._keys.dead, "*", "id", "new"))
        return self._session.ask_all(commands)


def test_a_replay_that_is_disturbed_is_done_again(failed):
    server, _ = failed
    keys = queue_keys("mail")
    with session(server.url) as ours:
        disturbed = Interfering(ours, server, keys)
        assert replay(disturbed, keys, next(letters(ours, keys)))
    assert disturbed.transactions == 2
    assert tell(server, ("XLEN", keys.stream), ("XLEN", keys.dead)) == [1, 3]


def test_a_letter_is_kept_when_its_queue_is_something_else(failed):
    server, _ = failed
    keys = queue_keys("mail")
    tell(server, ("DEL", keys.stream), ("SET", keys.stream, "text"))
    with session(server.url) as ours, pytest.raises(WrongKeyType, match="nothing was put back"):
        replay(ours, keys, next(letters(ours, keys)))
    assert tell(server, ("XLEN", keys.dead)) == [3]


def test_purged_letters_are_gone(streamfleet, failed):
    server, ids = failed
    assert streamfleet("dead", "purge", "mail", "--url", server.url).returncode == 2
    ended = streamfleet("dead", "purge", "mail", "--id", ids[0], "--id", ids[1], "--yes", "--url", server.url)
    assert ended.stdout == "2 dead letters of queue 'mail' deleted\n"
    assert ids[2] in streamfleet("dead", "list", "mail", "--url", server.url).stdout


def test_unknown_ids_are_refused_as_a_whole(streamfleet, failed):
    server, ids = failed
    ended = streamfleet("dead", "purge", "mail", "--id", ids[0], "--id", "nobody", "--yes", "--url", server.url)
    assert ended.returncode == 2
    assert "queue 'mail' has no dead letter nobody" in ended.stderr
    assert tell(server, ("XLEN", queue_keys("mail").dead)) == [3]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, ""), (0, "0.0 s"), (9.94, "9.9 s"), (12, "12 s"), (90, "2 min"), (7200, "2 h"), (200_000, "2 d")],
)
def test_ages(seconds, text):
    assert age(seconds) == text
