import pytest

from streamfleet_core.config import WorkerConfig
from streamfleet_core.connection import ServerError, ServerIdentity
from streamfleet_core.errors import AuthenticationFailed, NotSent, PermissionMissing, WrongKeyType
from streamfleet_core.events import EventKind
from streamfleet_core.link import (
    CONNECT_TIMEOUT,
    FIRST_BACKOFF,
    FOREVER,
    LARGEST_BACKOFF,
    Connect,
    Disconnect,
    Exchange,
    Finished,
    Link,
    Outage,
    Role,
    Sleep,
)
from streamfleet_core.worker import WorkerMachine

IDENTITY = ServerIdentity("redis", "8.2", user="ann")
BATCH = Exchange([("PING",)])


class ScriptedDuty:
    """Says what it is told to say, and writes down what it hears."""

    def __init__(self):
        self.is_wanted = True
        self.is_finished = False
        self.wake_at = FOREVER
        self.batches: list[Exchange] = []
        self.heard: list[object] = []
        self.on_replies = lambda replies, now: None
        self.on_pull = lambda now: None

    def wanted(self):
        return self.is_wanted

    def finished(self):
        return self.is_finished

    def deadline(self):
        return self.wake_at

    def begin(self, identity, now):
        self.heard.append(("begin", identity.server))

    def pull(self, now):
        self.on_pull(now)
        return self.batches.pop(0) if self.batches else None

    def replies(self, replies, now):
        self.heard.append(("replies", replies))
        self.on_replies(replies, now)

    def lost(self, *, sent, now):
        self.heard.append(("lost", sent, now))


class Bench:
    """A link, its duty, and what it tells."""

    def __init__(self, random=lambda: 1.0):
        self.duty = ScriptedDuty()
        self.events = []
        self.kicks = []
        self.outage = Outage(self.events.append, lambda: "; more")
        self.link = self.another(Role.SETTLE, random)

    def another(self, role, random=lambda: 1.0):
        return Link(role, 0, self.duty, random, self.events.append, self.outage, self.kicks.append)

    def kinds(self):
        return [event.kind for event in self.events]

    def connect(self, now=0.0):
        assert isinstance(self.link.step(now), Connect)
        self.link.connected(IDENTITY, now)


@pytest.fixture
def bench():
    return Bench()


def test_it_connects_when_it_is_wanted_and_sends_what_the_duty_has(bench):
    assert bench.link.step(0.0) == Connect(CONNECT_TIMEOUT)
    assert not bench.link.connected_now
    bench.link.connected(IDENTITY, 0.1)
    assert bench.link.connected_now
    assert bench.link.identity is IDENTITY
    bench.duty.batches = [BATCH]
    assert bench.link.step(0.2) is BATCH
    bench.link.replies_received([b"PONG"], 0.3)
    assert bench.duty.heard == [("begin", "redis"), ("replies", [b"PONG"])]


def test_it_sleeps_without_a_connection_while_it_is_not_wanted(bench):
    bench.duty.is_wanted = False
    bench.duty.wake_at = 9.0
    assert bench.link.step(0.0) == Sleep(9.0)
    assert bench.link.sleeping


def test_it_sleeps_until_the_duty_has_something(bench):
    bench.connect()
    bench.duty.wake_at = 5.0
    assert bench.link.step(1.0) == Sleep(5.0)
    bench.duty.wake_at = FOREVER
    assert bench.link.step(2.0) == Sleep(FOREVER)


def test_a_kick_ends_a_sleep_once(bench):
    bench.link.kick()
    assert bench.kicks == [], "not asleep"
    bench.connect()
    bench.link.step(0.0)
    bench.link.kick()
    bench.link.kick()
    assert bench.kicks == [bench.link]
    assert bench.link.kicked
    bench.link.step(0.0)
    assert not bench.link.kicked
    bench.link.kick()
    assert bench.kicks == [bench.link] * 2


def test_a_connection_that_is_not_needed_is_closed(bench):
    bench.connect()
    bench.duty.is_wanted = False
    assert bench.link.step(1.0) == Disconnect()
    assert not bench.link.connected_now
    assert isinstance(bench.link.step(1.0), Sleep)


def test_it_finishes_with_its_duty(bench):
    bench.connect()
    bench.duty.is_finished = True
    assert bench.link.step(1.0) == Finished()


def test_a_duty_that_finishes_while_it_is_asked_finishes_the_link(bench):
    bench.connect()
    bench.duty.on_pull = lambda now: setattr(bench.duty, "is_finished", True)
    assert bench.link.step(1.0) == Finished()


def test_it_finishes_when_it_is_stopped(bench):
    bench.connect()
    bench.link.step(0.0)
    bench.link.stop()
    assert bench.kicks == [bench.link]
    assert bench.link.step(0.0) == Finished()


@pytest.mark.parametrize("unknown", [True, False])
def test_a_lost_batch_is_known_to_be_lost_or_not(bench, unknown):
    bench.connect()
    bench.duty.batches = [BATCH]
    bench.link.step(0.0)
    bench.link.connection_lost(OSError("reset"), outcome_unknown=unknown, now=1.0)
    assert bench.duty.heard[-1] == ("lost", unknown, 1.0)
    assert not bench.link.connected_now
    assert bench.link.last_error == "reset"
    assert bench.events[-1].text == "no connection to the server: reset"


def test_an_idle_connection_that_breaks_had_nothing_in_flight(bench):
    bench.connect()
    bench.duty.batches = [BATCH]
    bench.link.step(0.0)
    bench.link.replies_received([b"PONG"], 0.5)
    bench.link.connection_lost(OSError("reset"), outcome_unknown=True, now=1.0)
    assert bench.duty.heard[-1] == ("lost", False, 1.0)


def test_a_break_after_the_end_is_no_outage(bench):
    bench.connect()
    bench.duty.is_finished = True
    bench.link.connection_lost(OSError("closed"), outcome_unknown=True, now=1.0)
    assert bench.events == []
    assert bench.link.step(1.0) == Finished()


def test_pauses_between_attempts_grow_to_a_bound_and_are_spread(bench):
    pauses = []
    now = 0.0
    for _ in range(8):
        assert isinstance(bench.link.step(now), Connect)
        bench.link.connect_failed(NotSent("refused"), now)
        sleep = bench.link.step(now)
        assert isinstance(sleep, Sleep)
        pauses.append(sleep.until - now)
        now = sleep.until
    assert pauses[0] == pytest.approx(FIRST_BACKOFF)
    assert pauses[1] == pytest.approx(2 * FIRST_BACKOFF)
    assert pauses == sorted(pauses)
    assert pauses[-1] == pytest.approx(LARGEST_BACKOFF)
    spread = Bench(random=lambda: 0.0)
    spread.link.step(0.0)
    spread.link.connect_failed(NotSent("refused"), 0.0)
    assert spread.link.step(0.0) == Sleep(pytest.approx(FIRST_BACKOFF / 2))


def test_an_answer_ends_the_growth(bench):
    for now in (0.0, 10.0, 20.0, 30.0):
        bench.link.step(now)
        bench.link.connect_failed(NotSent("refused"), now)
    bench.connect(now=40.0)
    bench.duty.batches = [BATCH]
    bench.link.step(40.0)
    bench.link.replies_received([b"PONG"], 40.0)
    bench.link.connection_lost(OSError("reset"), outcome_unknown=True, now=40.0)
    assert bench.link.step(40.0) == Sleep(pytest.approx(40.0 + FIRST_BACKOFF))


def test_a_server_that_answers_but_cannot_serve_is_asked_ever_more_rarely(bench):
    bench.connect()
    bench.duty.on_replies = lambda replies, now: bench.link.trouble(replies[0], ("PING",), now)
    now, pauses = 0.0, []
    for _ in range(7):
        bench.duty.batches = [BATCH]
        assert bench.link.step(now) is BATCH
        bench.link.replies_received([ServerError("LOADING dataset in memory")], now)
        sleep = bench.link.step(now)
        assert isinstance(sleep, Sleep)
        pauses.append(sleep.until - now)
        now = sleep.until
    assert pauses == [pytest.approx(min(LARGEST_BACKOFF, FIRST_BACKOFF * 2**n)) for n in range(7)]
    assert bench.link.refusal is None


@pytest.mark.parametrize(
    "line",
    ["LOADING x", "READONLY x", "OOM x", "MISCONF x", "NOREPLICAS x", "EXECABORT x", "BUSY x", "TRYAGAIN x"],
)
def test_what_may_pass_is_waited_for(bench, line):
    bench.connect()
    bench.link.trouble(ServerError(line), ("SET", "k", "v"), 0.0)
    assert bench.link.refusal is None
    assert bench.kinds() == [EventKind.BACKING_OFF]
    assert bench.events[0].text == f"settle: {line}"
    assert bench.events[0].data == {"role": "settle"}
    assert isinstance(bench.link.step(0.0), Sleep)


@pytest.mark.parametrize(
    ("line", "kind", "said"),
    [
        ("NOPERM this user has no permissions to run the 'set' command", PermissionMissing, "'ann'"),
        ("WRONGTYPE Operation against a key", WrongKeyType, "'k'"),
        ("NOAUTH Authentication required.", AuthenticationFailed, "password"),
    ],
)
def test_what_will_not_pass_ends_the_link(bench, line, kind, said):
    bench.connect()
    bench.link.trouble(ServerError(line), ("SET", "k", "v"), 0.0)
    assert type(bench.link.refusal) is kind
    assert said in str(bench.link.refusal)
    assert bench.kinds() == [EventKind.REFUSED]
    assert bench.link.step(0.0) == Finished()


def test_a_refusal_while_the_duty_is_asked_ends_the_link(bench):
    bench.connect()
    bench.duty.on_pull = lambda now: bench.link.refuse(WrongKeyType("no"))
    assert bench.link.step(0.0) == Finished()


def test_the_first_refusal_stays(bench):
    first = WrongKeyType("first")
    bench.link.refuse(first)
    bench.link.refuse(WrongKeyType("second"))
    assert bench.link.refusal is first
    assert len(bench.events) == 1


def test_a_refused_connection_ends_the_link(bench):
    bench.link.step(0.0)
    bench.link.connect_failed(AuthenticationFailed("wrong password"), 0.0)
    assert bench.link.step(0.0) == Finished()
    assert bench.kinds() == [EventKind.REFUSED]
    assert (bench.events[0].text, bench.events[0].data) == ("wrong password", {"role": "settle"})


def test_an_error_is_explained_before_there_was_a_connection(bench):
    error = ServerError("NOPERM no access to a key")
    assert "'default'" in str(bench.link.explain(error, ("SET", "k", "v")))


def test_an_outage_is_told_once_whatever_the_number_of_links(bench):
    links = [bench.link, bench.another(Role.READ), bench.another(Role.CONTROL)]
    for number, link in enumerate(links):
        link.step(100.0)
        link.connect_failed(NotSent("refused"), 100.0 + number)
    links[0].connect_failed(NotSent("refused"), 103.0)
    assert bench.kinds() == [EventKind.DISCONNECTED]
    assert bench.events[0].text == "no connection to the server: refused"
    assert bench.events[0].data == {"role": "settle"}
    assert links[1].last_error == "refused"
    for number, link in enumerate(links):
        assert bench.kinds() == [EventKind.DISCONNECTED]
        link.connected(IDENTITY, 110.0 + number)
    assert bench.kinds() == [EventKind.DISCONNECTED, EventKind.RECONNECTED]
    assert bench.events[1].data == {"seconds": 12.0}
    assert bench.events[1].text == "connected again after 12.0 s; more"


def test_a_link_that_is_not_needed_any_more_does_not_keep_an_outage_up(bench):
    other = bench.another(Role.READ)
    bench.connect()
    other.step(0.0)
    other.connect_failed(NotSent("refused"), 0.0)
    bench.link.connection_lost(OSError("reset"), outcome_unknown=True, now=0.0)
    bench.connect(now=5.0)
    assert EventKind.RECONNECTED not in bench.kinds()
    bench.duty.is_wanted = False
    other.connected(IDENTITY, 6.0)
    assert other.step(6.0) == Disconnect()
    assert bench.kinds()[-1] is EventKind.RECONNECTED


def test_a_link_that_is_down_and_not_needed_any_more_does_not_keep_an_outage_up(bench):
    """As a client's receiving link, when the last task that was waited for is given up meanwhile."""
    others = ScriptedDuty()
    publish = Link(Role.PUBLISH, 0, others, lambda: 1.0, bench.events.append, bench.outage, bench.kicks.append)
    for link in (bench.link, publish):
        link.step(0.0)
        link.connect_failed(NotSent("refused"), 0.0)
    bench.duty.is_wanted = False
    assert bench.link.step(5.0) == Sleep(FOREVER)
    assert bench.kinds() == [EventKind.DISCONNECTED], "the other one is still down"
    publish.connected(IDENTITY, 7.0)
    assert bench.kinds() == [EventKind.DISCONNECTED, EventKind.RECONNECTED]


def test_links_that_finish_while_they_are_down_do_not_keep_an_outage_up(bench):
    """As the reader of a worker that stops; but without any connection nobody says that it is over."""
    reader = bench.another(Role.READ)
    for link in (bench.link, reader):
        link.step(0.0)
        link.connect_failed(NotSent("refused"), 0.0)
    reader.stop()
    assert reader.step(5.0) == Finished()
    assert bench.kinds() == [EventKind.DISCONNECTED]
    bench.connect(now=6.0)
    assert bench.kinds() == [EventKind.DISCONNECTED, EventKind.RECONNECTED]
    bench.link.connection_lost(OSError("reset"), outcome_unknown=True, now=7.0)
    bench.link.stop()
    assert bench.link.step(8.0) == Finished()
    assert bench.kinds()[2:] == [EventKind.DISCONNECTED]


def test_a_pause_that_was_asked_for_is_kept(bench):
    bench.connect()
    bench.link.wait(1.0, 5.0)
    bench.link.wait(1.0, 2.0)
    bench.duty.batches = [BATCH]
    assert bench.link.step(2.0) == Sleep(6.0)
    assert bench.link.step(6.0) is BATCH


def test_a_pause_made_while_nothing_was_pulled_is_kept(bench):
    bench.connect()
    bench.duty.wake_at = 0.0
    bench.duty.on_pull = lambda now: bench.link.wait(now, 3.0)
    assert bench.link.step(1.0) == Sleep(4.0)


@pytest.mark.parametrize(("lease", "longest"), [(0.8, 0.2), (4.0, 1.0), (60.0, LARGEST_BACKOFF)])
def test_a_worker_is_back_within_its_lease_after_an_outage(lease, longest):
    """Others reclaim one lease after an outage has ended: by then each live owner must have beaten."""
    machine = WorkerMachine(
        "consumer",
        {"queue": 0.0},
        WorkerConfig(lease=lease),
        now=0.0,
        wall_ms=0.0,
        entropy=bytes,
        random=lambda: 1.0,
    )
    for link in machine.links:
        now = 0.0
        for _ in range(12):
            link.connect_failed(NotSent("down"), now)
            action = machine.step(link, now)
            assert isinstance(action, Sleep)
            assert action.until <= now + longest
            now += longest


def test_nobody_is_told_of_a_return_when_no_link_has_a_connection():
    events = []
    outage = Outage(events.append, lambda: "")
    outage.back(Role.READ, 0, 1.0)
    outage.unneeded(Role.READ, 0, 2.0)
    outage.lost(Role.SETTLE, 0, NotSent("gone"), 3.0)
    outage.unneeded(Role.SETTLE, 0, 4.0)
    assert [event.kind for event in events] == [EventKind.DISCONNECTED]
    outage.back(Role.CONTROL, 0, 5.0)
    assert events[-1].kind is EventKind.RECONNECTED


def test_trouble_long_after_a_good_answer_is_the_first_again(bench):
    """The answer may have come right after the trouble; since then nothing was asked."""
    bench.connect()
    for now in (0.0, 0.1, 0.2, 0.3):
        bench.link.back_off(now, "LOADING")
    bench.duty.batches = [BATCH]
    at = bench.link.step(0.3).until
    bench.link.step(at)
    bench.link.replies_received([b"PONG"], at)
    bench.link.back_off(at + 60.0, "LOADING")
    assert bench.link.step(at + 60.0) == Sleep(pytest.approx(at + 60.0 + FIRST_BACKOFF))


def test_a_good_answer_in_the_midst_of_trouble_does_not_end_the_growth(bench):
    bench.connect()
    now, pauses = 0.0, []
    for _ in range(5):
        bench.duty.batches = [BATCH]
        assert bench.link.step(now) is BATCH
        bench.link.replies_received([b"PONG"], now)
        bench.link.back_off(now, "OOM")
        until = bench.link.step(now).until
        pauses.append(until - now)
        now = until
    assert pauses == [pytest.approx(FIRST_BACKOFF * 2**n) for n in range(5)]


def test_trouble_without_a_good_answer_grows_however_rare_it_is(bench):
    """An attempt to connect may itself take longer than the pause before it."""
    pauses = []
    for now in (0.0, 60.0, 120.0):
        bench.link.step(now)
        bench.link.connect_failed(NotSent("timed out"), now)
        pauses.append(bench.link.step(now).until - now)
    assert pauses == [pytest.approx(FIRST_BACKOFF * 2**n) for n in range(3)]
