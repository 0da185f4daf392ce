"""The benchmark measures what it says. How fast anything is, is never asserted here."""

import argparse
import json

import pytest

from streamfleet.bench import agent, command, scenarios
from streamfleet.bench.bare import BareConnection
from streamfleet.bench.orders import PAYLOAD, QUEUE, Order
from streamfleet.bench.process import AgentFailed, AgentProcess
from streamfleet.bench.table import FLOOR, ROWS, Goal, Row, lines, render
from streamfleet.bench.usage import usage
from streamfleet.cli import main
from streamfleet.embedded import EmbeddedServer
from streamfleet.errors import MissingExtra

TINY = scenarios.Sizes(rounds=1, backlog=30, each=5, wait_one=5, wait_many=60, slow=3, fast=10, idle_seconds=0.1)
COARSE = {"server-cpu", "client-cpu", "memory", "worker-cpu-1", "worker-cpu-10", "worker-cpu-100"}
"""Figures that may be nothing at these sizes: clocks of CPU time tick slowly."""
OF_IDLE = {"idle-worker", "idle-client"}


def options(*argv):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(argv)


def rows_of(text):
    return {(row["scenario"], row["contender"]): row for row in json.loads(text)["rows"]}


@pytest.fixture(scope="module")
def server():
    with EmbeddedServer(appendonly=False) as running:
        yield running


@pytest.fixture
def connection(server):
    bare = BareConnection(server.url)
    bare.exchange([("FLUSHALL",)])
    yield bare
    bare.close()


def test_every_contender_gives_every_figure_of_the_table(server):
    results = command.measure(server, TINY)
    wanted = {row.key for row in ROWS} - OF_IDLE
    assert set(results) == {FLOOR, *command.SHELLS} == set(agent.CONTENDERS)
    for (figures,) in results.values():
        assert wanted <= set(figures)
        assert all(value > 0 for key, value in figures.items() if key not in COARSE), figures


@pytest.mark.parametrize("contender", agent.CONTENDERS)
@pytest.mark.parametrize("role", ["enqueue", "enqueue-many", "enqueue-each"])
def test_contenders_enqueue_what_they_are_told_to(server, connection, contender, role):
    with AgentProcess(contender, role, Order(server.url, 40)) as process:
        process.ready().run()
    entries = connection.exchange([("XRANGE", f"streamfleet:{QUEUE}", "-", "+")])[0]
    bodies = [dict(zip(fields[::2], fields[1::2], strict=True)) for _, fields in entries]
    assert [body[b"data"] for body in bodies] == [PAYLOAD] * 40
    assert len({body[b"id"] for body in bodies}) == 40


@pytest.mark.parametrize("contender", agent.CONTENDERS)
def test_a_contender_drains_what_another_has_enqueued(server, connection, contender):
    other = next(name for name in agent.CONTENDERS if name != contender)
    with AgentProcess(other, "enqueue", Order(server.url, 40)) as process:
        process.ready().run()
    with AgentProcess(contender, "drain", Order(server.url, 40, concurrency=3)) as process:
        process.ready().run()
    length, group = connection.exchange(
        [("XLEN", f"streamfleet:{QUEUE}"), ("XPENDING", f"streamfleet:{QUEUE}", "streamfleet-server")]
    )
    assert (length, group[0]) == (0, 0)


def test_usage_counts_commands_but_not_its_own(connection):
    before = usage(connection)
    usage(connection)
    connection.exchange([("SET", "a", "b"), ("GET", "a")])
    assert usage(connection).since(before).commands == 2


def test_an_agent_that_fails_is_not_taken_for_a_result(server, capfd):
    with (
        AgentProcess("threads", "no such role", Order(server.url, 1)) as process,
        pytest.raises(AgentFailed, match="not ready"),
    ):
        process.ready()
    assert "KeyError" in capfd.readouterr().err


def test_an_agent_leaves_when_the_benchmark_has_gone(server):
    with AgentProcess("floor", "enqueue", Order(server.url, 1)) as process:
        process.ready()
        process._process.stdin.close()
        assert process._process.wait(10) == 0


def test_the_table_compares_round_by_round_and_tells_what_was_reached():
    results = {
        "floor": [{"enqueue": 100.0, "wait-p50": 50.0, "memory": 90.0}, {"enqueue": 200.0}, {"enqueue": 400.0}],
        "threads": [{"enqueue": 60.0, "wait-p50": 200.0, "memory": 120.0}, {"enqueue": 60.0}, {"enqueue": 260.0}],
    }
    table = {line.row.key: line for line in lines(results)}
    enqueue = table["enqueue"]
    assert (enqueue.value, enqueue.floor, enqueue.ratio) == (60.0, 200.0, 0.6)
    assert (enqueue.reached, enqueue.failed) == (True, False)
    assert table["wait-p50"].reached is False
    assert table["memory"].reached, "its goal is absolute"
    head, _, *rest = render(list(table.values()))
    assert [word.strip() for word in head.split("  ") if word.strip()] == [
        "scenario", "contender", "figure", "floor", "of floor", "of threads", "goal", "reached"
    ]  # fmt: skip
    assert [text.split()[-1] for text in rest] == ["yes", "no", "yes"]


def test_a_missed_minimum_is_shouted_and_fails_the_check():
    (line,) = lines({"floor": [{"drain-1": 100.0}], "threads": [{"drain-1": 49.0}]})
    assert line.failed
    assert render([line])[-1].endswith("NO")
    (met,) = lines({"floor": [{"drain-1": 100.0}], "threads": [{"drain-1": 51.0}]})
    assert not met.failed


def test_shells_for_event_loops_have_goals_of_their_own():
    results = {
        "floor": [{"drain-1": 100.0, "wait-p50": 10.0, "enqueue-each": 9.0}],
        "threads": [{"drain-1": 60.0, "wait-p50": 100.0, "enqueue-each": 5.0}],
        "asyncio": [{"drain-1": 39.0, "wait-p50": 149.0, "enqueue-each": 4.0}],
        "trio": [{"drain-1": 31.0, "wait-p50": 151.0, "enqueue-each": 4.0}],
    }
    table = {(line.row.key, line.contender): line for line in lines(results)}
    assert [table["drain-1", name].failed for name in command.SHELLS] == [False, True, False]
    assert table["drain-1", "trio"].of_threads == pytest.approx(31 / 60)
    assert table["wait-p50", "threads"].of_threads is None
    assert [table["wait-p50", name].reached for name in command.SHELLS] == [False, True, False]
    assert [table["enqueue-each", name].reached for name in command.SHELLS] == [False, None, None]
    without_threads = {name: results[name] for name in ("floor", "asyncio")}
    (waiting,) = [line for line in lines(without_threads) if line.row.key == "wait-p50"]
    assert (waiting.of_threads, waiting.reached) == (None, None), "nothing to compare with"
    assert render([table["wait-p50", "trio"]])[-1].split()[-5:] == ["≤", "1.5", "of", "threads", "no"]


def test_a_goal_for_all_shells_holds_for_each():
    row = Row("memory", "memory", "bytes", Goal(130.0, ""))
    assert [row.goal(name) for name in command.SHELLS] == [Goal(130.0, "")] * 3


def test_the_command_prints_json_with_what_it_was_measured_on(capsys):
    assert command.command(options("--json", "--only", "one by one"), TINY) == 0
    printed = capsys.readouterr().out
    rows = rows_of(printed)
    assert set(rows) == {("enqueue-each", name) for name in command.SHELLS}
    assert all(row["value"] > 0 for row in rows.values())
    assert {"date", "machine", "system", "server", "packages", "command"} <= set(json.loads(printed))


@pytest.mark.parametrize(
    "argv",
    [["streamfleet", "bench", "--only", "one"], ["bench/__main__.py", "--only", "one"]],
    ids=["cli", "module"],
)
def test_the_header_tells_how_to_repeat_it(argv):
    assert command._command_line(argv) == "streamfleet bench --only one"


def test_it_is_a_command_of_the_command_line(monkeypatch, capsys):
    monkeypatch.setattr(command, "QUICK", TINY)
    assert main(["bench", "--quick", "--json", "--only", "one by one"]) == 0
    assert ("enqueue-each", "threads") in rows_of(capsys.readouterr().out)


def test_shells_can_be_chosen(capsys):
    assert command.command(options("--json", "--only", "one by one", "--shells", "trio,asyncio"), TINY) == 0
    rows = rows_of(capsys.readouterr().out)
    assert list(rows) == [("enqueue-each", "trio"), ("enqueue-each", "asyncio")]
    with pytest.raises(SystemExit):
        options("--shells", "asyncio,tornado")
    assert "'tornado' is none of threads, asyncio, trio" in capsys.readouterr().err


def test_a_shell_that_is_not_installed_is_left_out_and_named(monkeypatch, capsys):
    def without_trio(url, *, shell):
        if shell == "trio":
            raise MissingExtra("the trio driver needs 'pip install streamfleet[trio]'")

    monkeypatch.setattr(command, "driver_from_url", without_trio)
    assert command.command(options("--only", "one by one"), TINY) == 0
    printed = capsys.readouterr().out
    assert "trio      left out: the trio driver needs 'pip install streamfleet[trio]'" in printed
    assert "threads" in printed
    assert "asyncio" in printed
    with pytest.raises(MissingExtra, match="trio left out"):
        command.command(options("--only", "one by one", "--shells", "trio"), TINY)


def test_the_command_prints_a_table_with_the_idle_costs(capsys):
    command.command(options("--only", "idle"), TINY)
    printed = capsys.readouterr().out
    assert "commands of an idle worker per 10 s" in printed
    assert printed.startswith("date ")
