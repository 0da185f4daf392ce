"""The checker itself: each kind of wrong history must be seen."""

import json

import pytest
from campaign.history import History
from campaign.verdict import judge

STREAM, DEAD, CLIENT = b"streamfleet:q", b"{streamfleet:q}:dead", b"{streamfleet:q}c"
RECEIVER, SCHEDULE, SCHEDULED = (
    b"streamfleet:receiver:" + CLIENT,
    b"{streamfleet:q}:due",
    b"{streamfleet:q}:scheduled",
)
MARKER = [b"HSET", b"{streamfleet:q}:producer:c", b"s", b"1"]
ID = "01900000-0000-7000-8000-000000000000"
OTHER = "01900000-0000-7000-8000-000000000001"


def payload(kind="ok", number=1):
    return json.dumps({"n": number, "do": kind}, separators=(",", ":"))


def fields(retries=0, kind="ok", number=1, expires=0, tracked=False, name=ID):
    pairs = {
        "id": name,
        "client_id": CLIENT.decode(),
        "data": payload(kind, number),
        "send_notif": int(tracked),
        "retries": retries,
        "expires_ts": expires,
    }
    return [str(part).encode() for pair in pairs.items() for part in pair]


def add(entry_id, retries=0, **options):
    return [b"XADD", STREAM, entry_id, *fields(retries, **options)]


def row(**options):
    packed = b"".join(b"%d:%b," % (len(part), part) for part in fields(**options))
    return [b"HSET", SCHEDULED, ID.encode(), packed]


def unrow():
    return [b"HDEL", SCHEDULED, ID.encode()]


def tell(kind, entry_id=b"9-9"):
    return [b"XADD", RECEIVER, b"NOMKSTREAM", entry_id, b"task_id", ID.encode(), b"type", kind]


def bury():
    return [b"XADD", DEAD, b"8-8", b"id", ID.encode()]


def end(entry_id=b"1-1"):
    return [b"XDEL", STREAM, entry_id]


def tick(ms):
    return [[b"XADD", b"campaign:clock", b"%d-0" % ms, b"t", b"1"]]


ENTER = [[b"XGROUP", b"CREATE", RECEIVER, b"streamfleet-client", b"0", b"MKSTREAM"]]
ENQUEUE = [add(b"1-1"), MARKER]
TRACK = [add(b"1-1", tracked=True), MARKER]
TOLD = [tell(b"completed"), end()]
ACCEPTED, RAN = f"accepted 1 {ID}", f"start {ID} 1 1\nend {ID} 1"


def offered(kind="ok", *, tracked=False, options="{}", number=1, ms=0):
    return f"offered {number} {ms} q {int(tracked)} {options} {payload(kind, number)}"


def lines(*texts):
    return "".join(f"{text}\n" for text in texts)


PLAIN = offered(), ACCEPTED


def verdict_of(tmp_path, *transactions, offers=PLAIN, runs=RAN):
    history = History()
    for transaction in transactions:
        history.apply(transaction)
    client, handler = tmp_path / "a.offers", tmp_path / "a.handlers"
    client.write_text(lines("client c", *offers))
    handler.write_text(lines(runs))
    return judge(history, [client], [handler])


def seen(verdict, *kinds):
    """Just these kinds of faults were found."""
    found = {name for name in verdict.FAULTS if getattr(verdict, name)}
    assert found == set(kinds), verdict.as_dict()
    assert bool(kinds) == bool(verdict.violations)


def test_a_good_life(tmp_path):
    verdict = verdict_of(tmp_path, ENQUEUE, [end()])
    seen(verdict)
    assert (verdict.completed, verdict.accepted) == (1, 1)


def test_a_good_life_with_a_retry(tmp_path):
    runs = lines(f"start {ID} 1 1", f"start {ID} 2 1", f"end {ID} 2")
    retried = [add(b"1-2", 1, kind="fail-once"), end()]
    offers = offered("fail-once", options='{"max_retries":2}'), ACCEPTED
    begun = [add(b"1-1", kind="fail-once"), MARKER]
    seen(verdict_of(tmp_path, begun, retried, [end(b"1-2")], offers=offers, runs=runs))


def test_a_good_life_of_a_tracked_task(tmp_path):
    offers = offered(tracked=True), ACCEPTED, f"outcome 1 {ID} COMPLETED 9", "finished 0"
    seen(verdict_of(tmp_path, ENTER, TRACK, TOLD, offers=offers))


def test_a_life_through_the_schedule(tmp_path):
    verdict = verdict_of(tmp_path, [row(), MARKER], [unrow(), add(b"1-2")], [end(b"1-2")])
    seen(verdict)
    assert verdict.completed == 1


def test_a_task_that_was_refused_for_good(tmp_path):
    offers = offered("refuse"), ACCEPTED
    verdict = verdict_of(tmp_path, [add(b"1-1", kind="refuse"), MARKER], [bury(), end()], offers=offers)
    seen(verdict)
    assert verdict.dead == 1


RETRIED = [add(b"1-2", 1), end()]


@pytest.mark.parametrize(
    ("kinds", "transactions"),
    [
        (("lost",), []),
        (("lost",), [ENQUEUE]),
        (("lost",), [ENQUEUE, [[b"DEL", STREAM]]]),
        (("lost", "unexpected"), [[tell(b"completed")]]),
        (("lost", "unexpected"), [[bury()]]),
        (("enqueued_twice",), [ENQUEUE, [end()], [add(b"1-2"), MARKER], [end(b"1-2")]]),
        (("enqueued_twice",), [ENQUEUE, [end()], [add(b"1-2", name=OTHER), MARKER], [end(b"1-2")]]),
        (("ended_twice",), [ENQUEUE, [end()], [bury()]]),
        (("ended_twice",), [ENQUEUE, [bury(), end()], [add(b"1-2", 1)], [end(b"1-2")]]),
        (("branched",), [ENQUEUE, RETRIED, [add(b"1-3", 1)], [end(b"1-2")], [end(b"1-3")]]),
        (("branched",), [ENQUEUE, [add(b"1-2", 2), end()], [end(b"1-2")]]),
        (("branched",), [ENQUEUE, [add(b"1-2")], [end()], [end(b"1-2")]]),
        (("unexpected",), [[add(b"1-1", number=7), MARKER], [end()]]),
        (("unexpected",), [[add(b"1-1", kind="slow"), MARKER], [end()]]),
        (("unexpected",), [[add(b"1-1", tracked=True), MARKER], [end()]]),
        (("unexpected",), [[[*add(b"1-1")[:1], b"streamfleet:other", *add(b"1-1")[2:]], MARKER], []]),
        (("told_wrongly",), [ENTER, TRACK, TOLD, [tell(b"completed", b"9-10")]]),
        (("told_wrongly",), [ENTER, TRACK, [tell(b"completed")], [end()]]),
        (("told_wrongly",), [ENTER, ENQUEUE, TOLD]),
        (("against_orders",), [ENQUEUE, [bury(), end()]]),
        (("against_orders",), [ENQUEUE, RETRIED, [end(b"1-2")]]),
        (("against_orders",), [[row(), MARKER], [unrow()]]),
        (("not_told",), [ENTER, TRACK, [end()]]),
    ],
)
def test_each_kind_of_wrong_history_is_seen(tmp_path, kinds, transactions):
    verdict = verdict_of(tmp_path, *transactions)
    for kind in kinds:
        assert getattr(verdict, kind), verdict.as_dict()


def test_an_order_that_succeeds_and_is_buried_is_against_it_and_nothing_else(tmp_path):
    seen(verdict_of(tmp_path, ENQUEUE, [bury(), end()]), "against_orders")


def test_a_task_that_is_to_die_and_completes_is_seen(tmp_path):
    offers = offered("refuse"), ACCEPTED
    verdict = verdict_of(tmp_path, [add(b"1-1", kind="refuse"), MARKER], [end()], offers=offers)
    seen(verdict, "against_orders")


def test_retries_beyond_the_maximum_are_seen(tmp_path):
    steps = [[add(b"1-%d" % (n + 1), n, kind="fail"), end(b"1-%d" % n)] for n in range(1, 6)]
    runs = lines(*(f"start {ID} {n} 1" for n in range(1, 7)))
    offers = offered("fail", options='{"max_retries":2}'), ACCEPTED
    history = [add(b"1-1", kind="fail"), MARKER], *steps, [bury(), end(b"1-6")]
    seen(verdict_of(tmp_path, *history, offers=offers, runs=runs), "against_orders")
    short = [add(b"1-1", kind="fail"), MARKER], steps[0], [bury(), end(b"1-2")]
    seen(verdict_of(tmp_path, *short, offers=offers, runs=runs), "against_orders")


@pytest.mark.parametrize("runs", ["", f"start {ID} 1 1", f"start {ID} 1 1\nend {ID} 2"])
def test_a_completion_without_a_run_is_seen(tmp_path, runs):
    seen(verdict_of(tmp_path, ENQUEUE, [end()], runs=runs), "never_ran")


def test_an_attempt_that_was_given_up_without_a_run_is_seen(tmp_path):
    offers = offered("fail-once", options='{"max_retries":2}'), ACCEPTED
    begun = [add(b"1-1", kind="fail-once"), MARKER]
    history = begun, [add(b"1-2", 1, kind="fail-once"), end()], [end(b"1-2")]
    runs = lines(f"start {ID} 2 1", f"end {ID} 2")
    seen(verdict_of(tmp_path, *history, offers=offers, runs=runs), "never_ran")


# ---- expiry -----------------------------------------------------------------------------------------

SOON, LATER = offered(options='{"expires_in":5}'), offered(options='{"expires_in":500}')


def test_a_task_may_expire_once_its_time_has_come_and_not_before(tmp_path):
    begun = [add(b"1-1", expires=5000), MARKER]
    verdict = verdict_of(tmp_path, begun, tick(5100), [end()], tick(5101), offers=(SOON, ACCEPTED), runs="")
    seen(verdict)
    assert verdict.expired == 1
    early = verdict_of(tmp_path, begun, tick(3100), [end()], tick(3101), offers=(SOON, ACCEPTED), runs="")
    seen(early, "against_orders")


def test_a_tracked_task_may_expire_untold_only_while_its_receiver_is_gone(tmp_path):
    begun = [add(b"1-1", expires=5000, tracked=True), MARKER]
    soon = offered(tracked=True, options='{"expires_in":5}')
    gone = ENTER, begun, [[b"DEL", RECEIVER]], tick(5100), [end()], tick(5101)
    verdict = verdict_of(tmp_path, *gone, offers=(soon, ACCEPTED), runs="")
    seen(verdict)
    assert verdict.expired == 1
    there = ENTER, begun, tick(5100), [end()], tick(5101)
    seen(verdict_of(tmp_path, *there, offers=(soon, ACCEPTED), runs=""), "not_told")
    told = ENTER, begun, tick(5100), TOLD, tick(5101)
    assert verdict_of(tmp_path, *told, offers=(soon, ACCEPTED), runs="").never_ran


def test_a_task_whose_expiry_is_far_away_did_not_expire(tmp_path):
    begun = [add(b"1-1", expires=500_000), MARKER]
    verdict = verdict_of(tmp_path, begun, tick(100), [end()], tick(200), offers=(LATER, ACCEPTED), runs="")
    seen(verdict, "against_orders")


@pytest.mark.parametrize("expires", [0, 5000])
def test_a_task_that_was_never_to_expire_did_not(tmp_path, expires):
    verdict = verdict_of(
        tmp_path, [add(b"1-1", expires=expires), MARKER], tick(9000), [end()], tick(9001), runs=""
    )
    assert verdict.never_ran if not expires else verdict.against_orders


def test_an_expiry_that_comes_earlier_than_ordered_is_seen(tmp_path):
    begun = [add(b"1-1", expires=4000), MARKER]
    verdict = verdict_of(tmp_path, begun, tick(5100), [end()], tick(5101), offers=(SOON, ACCEPTED), runs="")
    seen(verdict, "against_orders")


def test_a_client_that_calls_a_task_expired_before_its_time_is_seen(tmp_path):
    told = "outcome 1 {} EXPIRED {}"
    seen(verdict_of(tmp_path, offers=(SOON, told.format(ID, 5000)), runs=""))
    seen(verdict_of(tmp_path, offers=(SOON, told.format(ID, 3000)), runs=""), "told_wrongly")
    seen(verdict_of(tmp_path, offers=(offered(), told.format(ID, 9000)), runs=""), "told_wrongly")


# ---- what clients were told -------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["FAILED", "EXPIRED", "CANCELLED", "REFUSED", "UNKNOWN"])
def test_a_client_that_was_told_something_else_is_seen(tmp_path, status):
    offers = offered(tracked=True), ACCEPTED, f"outcome 1 {ID} {status} 9"
    verdict = verdict_of(tmp_path, ENTER, TRACK, TOLD, offers=offers)
    assert verdict.told_wrongly


def test_a_task_that_was_refused_without_cause_is_seen(tmp_path):
    seen(verdict_of(tmp_path, offers=(offered(), f"outcome 1 {ID} REFUSED 9"), runs=""), "told_wrongly")


def test_a_tracked_task_whose_client_ended_without_its_outcome_is_seen(tmp_path):
    history = ENTER, TRACK, TOLD
    left = offered(tracked=True), ACCEPTED
    seen(verdict_of(tmp_path, *history, offers=(*left, "finished 0")), "not_told")
    seen(verdict_of(tmp_path, *history, offers=left))


def test_tasks_that_a_client_did_not_send_before_it_ended_are_seen(tmp_path):
    seen(verdict_of(tmp_path, offers=(offered(), "full 1", "finished 500"), runs=""), "unsent")
    seen(verdict_of(tmp_path, offers=(offered(), "finished 0"), runs=""), "unsent")
    seen(verdict_of(tmp_path, offers=(offered(), "full 1", "finished 0"), runs=""))


def removed(at, again=None):
    """Somebody removes the receiver, and its client makes it again."""
    return tick(at), [[b"DEL", RECEIVER]], *((tick(again), ENTER, tick(again + 1)) if again else ())


@pytest.mark.parametrize(
    ("ms", "told", "history", "good"),
    [
        (100, 2300, [TRACK, *removed(2000, 2200), TOLD], True),
        (100, 2300, [TRACK, tick(1000), TOLD, *removed(2000, 2200)], True),
        (100, 2300, [TRACK, *removed(2000), [end()]], True),
        (100, 1000, [TRACK, *removed(2000, 2200), TOLD], False),
        (9000, 9900, [*removed(2000, 2200), TRACK, TOLD], False),
        (100, 2300, [TRACK, TOLD, [[b"XDEL", RECEIVER, b"9-9"]], *removed(2000, 2200)], False),
        (100, 2300, [TRACK, TOLD], False),
    ],
    ids=["removed", "with the notice", "for good", "told before", "offered after", "already heard", "no cause"],
)
def test_an_unknown_outcome_needs_a_receiver_that_was_removed_meanwhile(tmp_path, ms, told, history, good):
    offers = offered(tracked=True, ms=ms), ACCEPTED, f"outcome 1 {ID} UNKNOWN {told}"
    verdict = verdict_of(tmp_path, ENTER, *history, offers=offers)
    seen(verdict, *(() if good else ("told_wrongly",)))
    assert verdict.untold == good


def test_a_receiver_that_a_notice_has_made_is_seen(tmp_path):
    offers = offered(tracked=True), ACCEPTED
    verdict = verdict_of(tmp_path, TRACK, TOLD, offers=offers)
    seen(verdict, "unexpected")


# ---- cancellation -----------------------------------------------------------------------------------

DELAYED = offered(options='{"delay":1}')
ASKED, GIVEN_BACK = f"cancelling 1 {ID}", f"cancelled 1 {ID} CANCELLED"


def test_a_task_that_was_given_back(tmp_path):
    verdict = verdict_of(
        tmp_path, [row(), MARKER], [unrow()], offers=(DELAYED, ACCEPTED, ASKED, GIVEN_BACK), runs=""
    )
    seen(verdict)
    assert verdict.cancelled == 1
    seen(verdict_of(tmp_path, offers=(DELAYED, ASKED, GIVEN_BACK, f"outcome 1 {ID} CANCELLED 5"), runs=""))


def test_a_task_that_was_called_cancelled_and_ran_is_seen(tmp_path):
    offers = DELAYED, ACCEPTED, ASKED, GIVEN_BACK
    moved = [row(), MARKER], [unrow(), add(b"1-2")], [end(b"1-2")]
    seen(verdict_of(tmp_path, *moved, offers=offers), "told_wrongly", "ran_though_cancelled")
    seen(verdict_of(tmp_path, [row(), MARKER], [unrow()], offers=offers), "ran_though_cancelled")
    buffered = DELAYED, ASKED, f"outcome 1 {ID} CANCELLED 5"
    seen(verdict_of(tmp_path, offers=buffered), "ran_though_cancelled")


def test_a_task_that_vanished_from_the_schedule_is_seen(tmp_path):
    history = [row(), MARKER], [unrow()]
    seen(verdict_of(tmp_path, *history, offers=(DELAYED, ACCEPTED), runs=""), "against_orders")
    seen(verdict_of(tmp_path, *history, offers=(DELAYED, ACCEPTED, ASKED), runs=""))


def test_a_retry_that_was_cancelled_is_seen(tmp_path):
    offers = DELAYED, ACCEPTED, ASKED, GIVEN_BACK
    retried = [row(retries=1), end()]
    verdict = verdict_of(tmp_path, [add(b"1-1"), MARKER], retried, [unrow()], offers=offers)
    seen(verdict, "ran_though_cancelled")


def test_a_task_that_was_kept_and_is_cancelled_is_seen(tmp_path):
    offers = DELAYED, ACCEPTED, ASKED, f"cancelled 1 {ID} ACCEPTED"
    seen(verdict_of(tmp_path, [row(), MARKER], [unrow()], offers=offers, runs=""), "told_wrongly")


def test_a_broken_connection_may_leave_a_client_that_cancels_without_an_outcome(tmp_path):
    offers = offered(tracked=True), ACCEPTED, ASKED, f"cancelled 1 {ID} UNKNOWN", f"outcome 1 {ID} UNKNOWN 9"
    seen(verdict_of(tmp_path, ENTER, TRACK, TOLD, offers=offers))
    seen(verdict_of(tmp_path, ENTER, TRACK, TOLD, offers=(*offers[:2], offers[4])), "told_wrongly")


def test_a_transaction_without_exec_was_not_applied():
    from campaign.history import transactions_of

    commands = [[b"MULTI"], [b"SET", b"a", b"1"], [b"MULTI"], [b"SET", b"b", b"2"], [b"EXEC"], [b"DEL", b"c"]]
    assert list(transactions_of(commands)) == [[[b"SET", b"b", b"2"]], [[b"DEL", b"c"]]]
