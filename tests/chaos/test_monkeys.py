"""What the monkeys do is undone, whatever else they do meanwhile."""

from collections import Counter
from random import Random

import pytest
from campaign.fleet import Fleet
from campaign.monkeys import Monkeys

from streamfleet.embedded import EmbeddedServer
from streamfleet_conformance.servers import binary

SETTINGS = ("CONFIG", "GET", "maxmemory"), ("ACL", "DRYRUN", "default", "XDEL", "a", "1-1")
FREE = [[b"maxmemory", b"0"], b"OK"]


@pytest.fixture
def fleet(tmp_path):
    return Fleet(tmp_path, Random(1), 1.0)


@pytest.fixture(params=["valkey-9.1", "redis-8.2"])
def server(request):
    with EmbeddedServer(binary(request.param), appendonly=True) as server:
        yield server


def test_what_was_set_while_the_server_froze_is_undone_after_it(server, fleet):
    monkeys = Monkeys(server, fleet, Random(1))
    assert monkeys.fill_memory()
    assert monkeys.take_permission()
    assert monkeys.ask(*SETTINGS) != FREE
    assert monkeys.suspend_server()
    *settings, thaw = monkeys._later
    monkeys._later = [*((0.0, undo) for _, undo in settings), thaw]
    monkeys.undo_due()
    assert len(monkeys._later) == len(settings) + 1, "not yet, but not forgotten"
    monkeys.undo_everything()
    assert not monkeys._later
    assert monkeys.ask(*SETTINGS) == FREE


def test_a_killed_server_has_forgotten_what_was_set(server, fleet):
    monkeys = Monkeys(server, fleet, Random(1))
    assert monkeys.fill_memory()
    assert monkeys.take_permission()
    undo_settings, monkeys._later = monkeys._later, []
    assert monkeys.kill_server()
    monkeys.undo_everything()
    assert monkeys.ask(*SETTINGS) == FREE
    monkeys._later = undo_settings
    monkeys.undo_everything()
    assert monkeys.ask(*SETTINGS) == FREE


def test_a_server_that_never_comes_back_is_not_waited_for_without_end(fleet, monkeypatch):
    monkeys = Monkeys(server=None, fleet=fleet, rng=Random(1))
    monkeys.ask = lambda *_: []
    monkeypatch.setattr("campaign.monkeys.UNDONE", 0.0)
    monkeys._undo_in(0.0, lambda: monkeys._restore(("CONFIG", "SET", "maxmemory", 0)))
    with pytest.raises(TimeoutError, match="1 faults"):
        monkeys.undo_everything()


def test_a_refused_command_undoes_nothing_and_is_no_fault(server, fleet):
    monkeys = Monkeys(server, fleet, Random(1))
    assert monkeys._meddle("nonsense", ("CONFIG", "SET", "no-such-setting", 1)) == ""
    monkeys._restore(("CONFIG", "SET", "no-such-setting", 1))
    assert len(monkeys._later) == 1


def test_one_round_of_the_deck_brings_everything_also_what_could_not_be_done_at_first(fleet):
    monkeys = Monkeys(server=None, fleet=fleet, rng=Random(1))
    tried = Counter()

    def stubborn(name):
        def act():
            tried[name] += 1
            return name if tried[name] > 2 else ""

        return act

    monkeys._actions = [(3, lambda: "easy"), (1, stubborn("hard")), (1, stubborn("harder"))]
    for _ in range(9):
        monkeys.act()
    assert monkeys.counts == {"easy": 3, "hard": 1, "harder": 1}
