"""What several machines do together, on a virtual clock: shares, costs, recovery, what is left behind."""

import pytest

from streamfleet_core.keys import queue_keys
from streamfleet_core.state import Phase

KEYS = queue_keys("q")
DECLARED = {KEYS.stream, KEYS.fence, KEYS.moves, KEYS.dead}


class Hands:
    """The handlers of a worker: each task takes a fixed time."""

    def __init__(self, worker, seconds):
        self.worker = worker
        self.seconds = seconds
        self.busy = []
        self.done = 0

    def turn(self, world):
        """Finish what is due, take what is there. Returns when the next one is due."""
        machine = self.worker.machine
        for delivery, at in list(self.busy):
            if at <= world.now:
                self.busy.remove((delivery, at))
                self.worker.succeed(delivery)
                self.done += 1
        while len(self.busy) < machine.config.concurrency:
            delivery = machine.take(world.now)
            if delivery is None:
                break
            self.busy.append((delivery, world.now + self.seconds))
        return min((at for _, at in self.busy), default=world.now + 0.01)


def work(world, hands, until):
    """Let them work until a condition holds."""
    for _ in range(200_000):
        if until():
            return
        world.pump()
        at = min(hand.turn(world) for hand in hands)
        world.pump()
        world.advance(max(at - world.now, 1e-4))
    raise AssertionError("they never get there")


def commands_sent(actor):
    return sum(len(exchange) for wire in actor.wires for exchange in wire.sent)


def test_two_workers_share_a_backlog_in_proportion_to_their_speed(world):
    quick = Hands(world.worker(concurrency=2), 0.01)
    slow = Hands(world.worker(concurrency=2), 0.1)
    for number in range(1100):
        world.enqueue(f"t{number}")
    work(world, [quick, slow], lambda: quick.done + slow.done == 1100)
    assert quick.done / slow.done == pytest.approx(10, rel=0.2)


def test_a_worker_with_slow_handlers_holds_no_more_than_it_runs(world):
    slow = Hands(world.worker(concurrency=3), 1.0)
    for number in range(50):
        world.enqueue(f"t{number}")
    most = 0

    def watch():
        nonlocal most
        most = max(most, slow.worker.machine.held)
        return slow.done >= 30

    work(world, [slow], watch)
    assert most == 3


def test_an_idle_worker_sends_at_most_12_commands_in_10_seconds(world):
    worker = world.worker()
    world.advance(120)
    for _ in range(60):
        before = commands_sent(worker)
        world.advance(10)
        assert commands_sent(worker) - before <= 12


def test_an_idle_client_sends_at_most_4_commands_in_10_seconds(world):
    client, worker = world.client(), world.worker()
    submission = client.enqueue(tracked=True)
    world.pump()
    worker.succeed(worker.take())
    world.pump()
    assert submission.status.terminal
    world.advance(30)
    for _ in range(30):
        before = commands_sent(client)
        world.advance(10)
        assert commands_sent(client) - before <= 4


def test_an_untracked_client_sends_nothing_once_it_keeps_nothing(world):
    """While it keeps accepted tasks it asks now and then whether the server still knows them."""
    client = world.client(keep_seconds=30.0)
    client.enqueue()
    world.pump()
    sent = commands_sent(client)
    world.advance(40)
    assert sent < commands_sent(client) <= sent + 3
    before = commands_sent(client)
    world.advance(100)
    assert commands_sent(client) == before


def test_after_100_000_tasks_only_declared_keys_remain(world):
    client, worker = world.client(), world.worker(concurrency=100)
    submissions = []
    for burst in range(20):
        for number in range(5000):
            submission = client.enqueue(tracked=number % 100 == 0)
            if submission.tracked:
                submissions.append(submission)
        while client.machine.pending or worker.machine.held or world.call("XLEN", KEYS.stream):
            world.pump()
            while (delivery := worker.machine.take(world.now)) is not None:
                worker.succeed(delivery)
        assert burst >= 0
    world.pump()
    assert all(submission.status.terminal for submission in submissions)
    assert worker.machine.counts["completed"] == 100_000
    assert world.call("XLEN", KEYS.stream) == 0
    client.close()
    worker.stop()
    world.pump()
    assert client.ended
    assert worker.ended
    assert set(world.call("KEYS", "*")) <= DECLARED
    assert world.call("XINFO", "CONSUMERS", KEYS.stream, "streamfleet-server") == []


def test_a_crashed_workers_tasks_start_elsewhere_within_lease_and_scan(world):
    crashing, other = world.worker(concurrency=20), world.worker(concurrency=50)
    other.read.held = True
    world.advance(30)
    for number in range(20):
        world.enqueue(f"t{number}")
    world.pump()
    assert len(crashing.deliveries) == 20
    crashing.crash()
    config = other.machine.config
    world.advance(config.lease + config.scan_interval)
    started = {delivery.task.id for delivery in iter(lambda: other.machine.take(world.now), None)}
    assert len(started) == 20


def test_after_an_outage_of_three_leases_no_live_task_is_reclaimed(world):
    one, two = world.worker(concurrency=5), world.worker(concurrency=5)
    for number in range(10):
        world.enqueue(f"t{number}")
    world.pump()
    running = [worker.take() for worker in (one, two) for _ in range(5)]
    world.available = False
    for wire in (*one.wires, *two.wires):
        if wire.flight is not None or wire.session is not None:
            wire.lose()
    world.advance(3 * one.machine.config.lease)
    world.available = True
    world.advance(3 * one.machine.config.lease)
    assert one.machine.counts["reclaimed"] == two.machine.counts["reclaimed"] == 0
    assert {delivery.phase for delivery in running} == {Phase.RUNNING}
    for worker, mine in ((one, running[:5]), (two, running[5:])):
        for delivery in mine:
            worker.succeed(delivery)
    world.pump()
    assert {delivery.phase for delivery in running} == {Phase.SETTLED}
    assert world.stream() == []


def test_a_suspended_worker_changes_nothing_that_others_now_own(world):
    client = world.client()
    sleeper = world.worker(concurrency=1)
    submission = client.enqueue(b"x", tracked=True)
    world.pump()
    asleep = sleeper.take()
    other = world.worker(concurrency=1)
    world.advance(30)
    sleeper.suspend()
    world.advance(sleeper.machine.config.lease + 5)
    taken = other.take()
    assert taken.task.id == asleep.task.id
    sleeper.succeed(asleep)
    sleeper.resume()
    assert asleep.phase is Phase.LOST
    assert not submission.status.terminal
    other.fail(taken, final=True)
    world.pump()
    assert submission.status.name == "FAILED"
    assert len(world.dead()) == 1


def hold_at(wire, name):
    """Let the wire's next exchange with this command wait for the test."""

    def hold(exchange):
        if any(command[0] == name for command in exchange.commands):
            wire.held = True
            wire.on_send = None

    wire.on_send = hold


# ---- races between the links of one worker ----------------------------------------------------------------


def end_while_the_history_is_read(world, worker, delivery):
    """The server has answered the read, and the answer comes after the delivery's end: that ends it for good."""
    worker.read.execute()
    worker.succeed(delivery)
    world.pump()
    assert delivery.phase is Phase.SETTLED
    worker.read.release()
    assert worker.machine.take(world.now) is None
    assert worker.deliveries == []


@pytest.mark.parametrize("name", ["XPENDING", "XREADGROUP"])
def test_an_entry_that_ends_while_our_history_is_read_is_not_taken_again(world, name):
    worker = world.worker(concurrency=2)
    world.enqueue("a")
    world.pump()
    delivery = worker.take()
    worker.read.lose()
    hold_at(worker.read, name)
    world.advance(1)
    end_while_the_history_is_read(world, worker, delivery)


def test_an_entry_that_is_read_in_the_place_of_another_and_ends_is_not_taken_again(world):
    """An entry of the history is read by the id before it; when it is gone, the next one comes in its place."""
    group = "streamfleet-server"
    world.call("XGROUP", "CREATE", KEYS.stream, group, "0", "MKSTREAM")
    gone = world.enqueue("gone")
    world.call("XREADGROUP", "GROUP", group, "other", "STREAMS", KEYS.stream, ">")
    worker = world.worker(concurrency=2)
    world.enqueue("a")
    world.pump()
    delivery = worker.take()
    world.call("XCLAIM", KEYS.stream, group, worker.machine.consumer, 0, gone)
    worker.read.lose()
    hold_at(worker.read, "XREADGROUP")
    world.advance(1)
    world.call("XACK", KEYS.stream, group, gone)
    end_while_the_history_is_read(world, worker, delivery)


def test_an_entry_that_a_claim_brings_is_not_taken_from_our_history_too(world):
    dead = world.worker(concurrency=1)
    world.enqueue("a")
    world.pump()
    dead.take()
    dead.crash()
    worker = world.worker(concurrency=1)
    hold_at(worker.control, "XCLAIM")
    world.advance(worker.machine.config.lease + worker.machine.config.scan_interval)
    assert "XCLAIM" in worker.control.flight.names
    worker.control.execute()
    worker.read.lose()
    world.advance(1)
    assert any(exchange[0][0] == "XPENDING" for exchange in worker.read.sent[-4:]), "the history was looked at"
    assert worker.machine.take(world.now) is None, "the claim's reply is still to come"
    worker.control.release()
    assert worker.take().task.id == "a"
    assert worker.machine.take(world.now) is None


def test_a_long_task_on_a_poor_connection_does_not_look_like_one_that_kills(world):
    """The server counts each read of a consumer's history as a delivery; beats put that right."""
    worker = world.worker(concurrency=1)
    world.enqueue("a")
    world.pump()
    worker.take()
    for _ in range(2 * worker.machine.config.max_deliveries):
        worker.read.lose()
        world.advance(worker.machine.config.lease)
    ((_, _, _, deliveries),) = world.call("XPENDING", KEYS.stream, "streamfleet-server", "-", "+", 10)
    assert deliveries <= 2, "one for its delivery, perhaps one for a read since the last beat"
    worker.crash()
    other = world.worker(concurrency=1)
    world.advance(3 * other.machine.config.lease)
    assert other.take().deliveries <= 3
    assert world.dead() == []
