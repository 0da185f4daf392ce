"""What the demonstration counts from: the journal, the append-only file, and the census."""

import os
import pty
from collections import Counter

import pytest

from streamfleet.demo.appendonly import REWRITE_NEVER, HistoryUnreadable, additions, applied_commands
from streamfleet.demo.census import Contradiction, count
from streamfleet.demo.display import BarDisplay, display_for
from streamfleet.demo.journal import Journal, JournalReader
from streamfleet.embedded import EmbeddedServer
from streamfleet.redis import RedisDriver


def test_journal_is_read_by_whole_lines(tmp_path):
    path = tmp_path / "journal"
    reader = JournalReader(path)
    one, two = Journal(path, "one"), Journal(path, "two")
    one.begin("a")
    two.begin("b")
    two.end("b")
    with path.open("ab") as half:
        half.write(b"end a o")
    reader.refresh()
    assert reader.begun == {"a": ["one"], "b": ["two"]}
    assert reader.ended == {"b": ["two"]}
    assert reader.running("one") == {"a"}
    assert reader.running("two") == set()
    with path.open("ab") as half:
        half.write(b"ne\n")
    assert reader.refresh().ended["a"] == ["one"]
    reader.close()


def exchange(server, commands):
    connection = RedisDriver(server.url).connect(5)
    connection.exchange(commands, 5)
    connection.close()


def test_history_of_a_server_holds_what_it_answered_across_a_crash(tmp_path):
    def added(number, retries=0):
        return ("XADD", "s", "*", "id", f"t{number}", "retries", retries)

    with EmbeddedServer(directory=tmp_path, extra=REWRITE_NEVER) as server:
        exchange(server, [added(1), ("MULTI",), added(2), added(3), ("EXEC",), ("MULTI",), added(9)])
        server.kill()
        server.restart()
        exchange(server, [added(1), added(1, retries=1), ("XADD", "other", "*", "id", "t7")])
        server.kill()
        stored = additions(applied_commands(tmp_path), b"s")
    assert stored == {("t1", "0"): 2, ("t2", "0"): 1, ("t3", "0"): 1, ("t1", "1"): 1}


@pytest.mark.parametrize("cut", range(1, 20))
def test_history_ends_where_a_write_was_cut_short(tmp_path, cut):
    whole = b"*2\r\n$3\r\nDEL\r\n$1\r\na\r\n"
    (tmp_path / "appendonly.aof.1.incr.aof").write_bytes(b"#TS:1\r\n" + whole + whole[:cut])
    assert list(applied_commands(tmp_path)) == [[b"DEL", b"a"]]


def test_history_leaves_out_a_transaction_that_was_not_ended(tmp_path):
    parts = [b"*1\r\n$5\r\nMULTI\r\n", b"*2\r\n$3\r\nDEL\r\n$1\r\na\r\n", b"*1\r\n$4\r\nEXEC\r\n"]
    (tmp_path / "appendonly.aof.1.incr.aof").write_bytes(b"".join(parts))
    (tmp_path / "appendonly.aof.2.incr.aof").write_bytes(parts[0] + parts[1].replace(b"a", b"b"))
    assert list(applied_commands(tmp_path)) == [[b"DEL", b"a"]]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("appendonly.aof.2.incr.aof", b""),
        ("other", b""),
        ("appendonly.aof.1.incr.aof", b"REDIS0011 and so on\r\n"),
    ],
)
def test_history_that_is_not_whole_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(HistoryUnreadable):
        list(applied_commands(tmp_path))


def counted(**changes):
    world = {
        "accepted": ["a", "b", "c"],
        "begun": {"a": ["one"], "b": ["one", "two"], "c": ["two"]},
        "ended": {"a": ["one"], "b": ["two"], "c": ["two"]},
        "stored": Counter({("a", "0"): 1, ("b", "0"): 1, ("c", "0"): 1}),
        "dead": set(),
        "held": {"b"},
        "victim": "one",
        "buffered": 1,
        "seconds": 1.234,
    }
    return count(**(world | changes))


def test_census_of_a_good_day():
    figures = counted()
    assert figures.good
    assert figures.as_dict() == {
        "accepted": 3,
        "completed": 3,
        "lost": 0,
        "enqueued_twice": 0,
        "ran_twice": 1,
        "reclaimed": 1,
        "buffered": 1,
        "seconds": 1.2,
    }
    assert str(figures) == "3 accepted · 3 completed · 0 lost · 0 enqueued twice · 1 ran twice"


def test_census_finds_what_went_wrong():
    lost = counted(ended={"a": ["one"], "b": ["two"]})
    assert (lost.lost, lost.completed, lost.good) == (1, 2, False)
    assert counted(ended={"a": ["one"], "b": ["two"]}, dead={"c"}).good, "a dead letter is not lost"
    never_sent = counted(accepted=["a", "b", "c", "d"])
    assert (never_sent.lost, never_sent.good) == (1, False)
    twice = counted(stored=Counter({("a", "0"): 2, ("b", "0"): 1, ("c", "0"): 1}))
    assert (twice.enqueued_twice, twice.good) == (1, False)
    retried = counted(stored=Counter({("a", "0"): 1, ("a", "1"): 1, ("b", "0"): 1, ("c", "0"): 1}))
    assert retried.good, "a retry is another attempt"
    assert counted(held={"a"}).reclaimed == 0
    with pytest.raises(Contradiction, match="1 tasks were worked on but never stored, for instance a"):
        counted(stored=Counter({("b", "0"): 1, ("c", "0"): 1}))


def test_bar_on_a_terminal_and_lines_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    with (tmp_path / "file").open("w") as file:
        assert type(display_for(file)) is not BarDisplay
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal, display_for(terminal) as display:
        assert type(display) is BarDisplay
        display.progress(3, 10)
        display.line("engine", "valkey [9.1.2]")
    assert b"engine    valkey [9.1.2]" in os.read(ours, 100_000)
    os.close(ours)
