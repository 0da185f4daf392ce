"""The checker of ownership: each check of `owned` fails on a history that breaks it."""

import pytest

from streamfleet_core.keys import GROUP

from .stage import KEYS, Stage

ACK = ("XACK", KEYS.stream, GROUP)


@pytest.fixture
def stage():
    return Stage()


@pytest.fixture
def entry(stage):
    entry = stage.enqueue()
    assert stage.read() == [entry]
    return entry


def test_i13_an_entry_that_is_acknowledged_and_stays(stage, entry):
    stage.transaction("w0.1 settle", (*ACK, entry))
    assert stage.violated == {"I13"}


def test_i13_without_a_transaction_too(stage, entry):
    stage.do("w0.1 settle", *ACK, entry)
    assert stage.violated == {"I13"}


def test_i13_an_entry_that_is_delivered_and_pending_for_nobody(stage):
    stage.enqueue()
    stage.do("w0.1 read", "XREADGROUP", "GROUP", GROUP, "w0.1", "NOACK", "STREAMS", KEYS.stream, ">")
    assert stage.violated == {"I13"}


def test_i13_an_entry_that_was_passed_over(stage):
    stage.enqueue()
    stage.do("w0.1 read", "XGROUP", "SETID", KEYS.stream, GROUP, "$")
    assert stage.violated == set()
    stage.observer.owned.look()
    assert stage.violated == {"I13"}


def test_i13_is_forgiven_to_entries_whose_consumer_was_removed(stage, entry):
    stage.do("somebody", "XGROUP", "DELCONSUMER", KEYS.stream, GROUP, "w0.1")
    stage.observer.owned.look()
    assert stage.violated == set()


def test_what_is_pending_or_not_delivered_is_in_order(stage, entry):
    stage.enqueue(retries=1)
    stage.world.violations.clear()  # it has two entries now
    stage.observer.owned.look()
    assert stage.violated == set()


def test_another_workers_entry_is_not_acknowledged(stage, entry):
    stage.ran(entry, worker="w1.1")
    stage.end(entry, who="w1.1 settle")
    assert stage.violated == {"owned"}


@pytest.mark.parametrize(("who", "violated"), [("w0.1", set()), ("w1.1", {"owned"})])
def test_another_workers_entry_is_not_renewed(stage, entry, who, violated):
    stage.transaction(f"{who} settle", ("XCLAIM", KEYS.stream, GROUP, who, 0, entry, "JUSTID"))
    assert stage.violated == violated


def test_an_idle_entry_may_be_claimed_by_others(stage, entry):
    stage.world.engine.now += 10.0
    stage.transaction("w1.1 control", ("XCLAIM", KEYS.stream, GROUP, "w1.1", 3000, entry))
    assert stage.violated == set()


def test_an_owner_that_could_only_be_asked_before_is_not_judged(stage, entry):
    stage.ran(entry, worker="w1.1")
    stage.do("w1.1 settle", "XDEL", KEYS.stream, entry)
    stage.do("w1.1 settle", *ACK, entry)
    assert "owned" not in stage.violated
