import pytest

from streamfleet_core.connection import ServerError
from streamfleet_core.errors import UnsupportedServer
from streamfleet_core.keys import GROUP, queue_keys
from streamfleet_core.link import FOREVER

KEYS = queue_keys("q")


@pytest.fixture
def world(world):
    world.call("XGROUP", "CREATE", KEYS.stream, GROUP, "0", "MKSTREAM")
    return world


def controller(worker):
    return worker.machine.lanes[0].controller


def test_the_server_is_checked_once_per_connection_before_any_chore(world):
    worker = world.worker()
    assert [command[0] for command in worker.control.sent[0]][:2] == ["TIME", "TYPE"]
    checks = [exchange for exchange in worker.control.sent if exchange[1:2] and exchange[1][0] == "TYPE"]
    assert len(checks) == 1
    worker.control.lose()
    world.advance(1)
    checks = [exchange for exchange in worker.control.sent if exchange[1:2] and exchange[1][0] == "TYPE"]
    assert len(checks) == 2


def test_an_idle_worker_is_quiet(world):
    """At most 12 commands in 10 seconds, over all of its connections."""
    worker = world.worker()
    world.advance(10)
    before = sum(len(exchange) for wire in worker.wires for exchange in wire.sent)
    world.advance(300)
    sent = sum(len(exchange) for wire in worker.wires for exchange in wire.sent) - before
    assert sent <= 12 * 30


def test_contact_begins_with_the_connection(world):
    worker = world.worker()
    began = world.now
    world.advance(30)
    assert controller(worker).contact_since == began
    worker.control.lose()
    world.advance(2)
    assert began < controller(worker).contact_since <= world.now


@pytest.mark.parametrize(("beyond", "interrupted"), [(-0.001, False), (0.001, True)])
def test_a_silence_longer_than_a_poll_and_a_quarter_of_the_lease_interrupts_contact(world, beyond, interrupted):
    worker = world.worker(lease=8, poll_interval=1.5)
    began = world.now
    control = controller(worker)
    worker.control.hold_at("ZRANGE")
    world.now = control._last_reply + control.poll + 2.0 + beyond
    worker.control.deliver()
    assert control.contact_since == (world.now if interrupted else began)


def test_a_chore_ends_with_its_connection_and_begins_anew(world):
    worker = world.worker()
    reader = worker.machine.lanes[0].reader
    worker.control.hold_at("XINFO")
    worker.control.lose()
    assert controller(worker)._procedure is None
    assert reader._cursors, "a claim may have been applied: look at our own entries"
    worker.control.held = False
    world.advance(6)
    assert worker.control.sent[-1]
    assert worker.machine.refusal is None


def test_a_chore_that_was_not_sent_leaves_no_doubt(world):
    worker = world.worker()
    worker.control.hold_at("XINFO")
    worker.control.lose(unknown=False)
    assert not worker.machine.lanes[0].reader._cursors


def test_an_idle_connection_that_breaks_ends_no_chore(world):
    worker = world.worker()
    worker.control.lose()
    assert not worker.machine.lanes[0].reader._cursors


def test_it_finishes_with_the_worker_after_the_chore_at_work(world):
    worker = world.worker()
    worker.control.hold_at("XINFO")
    worker.stop()
    assert not controller(worker).finished()
    assert controller(worker).deadline() == FOREVER
    worker.control.release()
    assert worker.control.ended
    assert controller(worker).finished()
    assert not controller(worker).wanted()


def test_a_chore_that_is_not_answered_does_not_hold_a_worker_that_has_given_up(world):
    worker = world.worker(lease=4)
    worker.control.hold_at("XINFO")
    world.enqueue()
    world.pump()
    worker.take()
    worker.settle.frozen = True
    worker.stop(drain=1)
    world.advance(4.9)
    assert not controller(worker).finished()
    world.advance(0.2)
    assert worker.machine.time.gave_up
    assert controller(worker).finished()


def test_no_chore_is_begun_once_the_worker_stops(world):
    worker = world.worker()
    sent = len(worker.control.sent)
    worker.stop()
    assert controller(worker).pull(world.now + 1000) is None
    world.pump()
    assert len(worker.control.sent) == sent


def test_the_next_chore_is_the_one_that_is_due_first(world):
    worker = world.worker(lease=8, poll_interval=60)
    assert controller(worker).poll == 2, "a quarter of the lease at most, for the sake of contact"
    control = controller(worker)
    assert control.deadline() == min(control.mover.next_at, control.reclaimer.next_at, control.sweeper.next_at)
    control.due_at(world.now + 0.3)
    world.pump()
    assert worker.control.wake_at == pytest.approx(world.now + 0.3)


def test_a_chore_that_has_nothing_to_ask_makes_room_for_the_next(world):
    worker = world.worker(sweep_interval=1)
    sweeper = controller(worker).sweeper
    sweeper._turn = 2  # consumers, of which none is old
    sweeper.next_at = world.now
    before = len(worker.control.sent)
    worker.control.link.kick()
    world.pump()
    assert sweeper._turn == 3
    assert len(worker.control.sent) == before


def test_a_command_that_the_server_does_not_know_stops_the_worker(world):
    worker = world.worker(start=False)
    world.refuse("ERR unknown command 'ZRANGE', with args beginning with: ", "ZRANGE")
    world.advance(1)
    assert isinstance(worker.machine.refusal, UnsupportedServer)
    assert "ZRANGE" in str(worker.machine.refusal)


def test_a_refusal_found_by_a_chore_ends_the_link(world):
    worker = world.worker()
    worker.control.hold_at("XINFO")
    worker.control.deliver([ServerError("NOPERM no")])
    worker.control.held = False
    world.pump()
    assert worker.control.ended
