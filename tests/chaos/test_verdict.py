"""The checker itself: each kind of wrong history must be seen."""

import pytest
from campaign.history import History
from campaign.verdict import judge

STREAM, DEAD, RECEIVER = b"streamfleet:q", b"{streamfleet:q}:dead", b"streamfleet:receiver:c"
MARKER = [b"HSET", b"{streamfleet:q}:producer:c", b"s", b"1"]
ID = "01900000-0000-7000-8000-000000000000"


def add(entry_id, retries=0, number=1, expires=b"0"):
    data = b'{"n":%d,"do":"ok"}' % number
    fields = [b"id", ID.encode(), b"data", data, b"retries", b"%d" % retries, b"expires_ts", expires]
    return [b"XADD", STREAM, entry_id, *fields]


def tell(kind):
    return [b"XADD", RECEIVER, b"NOMKSTREAM", b"9-9", b"task_id", ID.encode(), b"type", kind]


def bury():
    return [b"XADD", DEAD, b"8-8", b"id", ID.encode()]


def end(entry_id):
    return [b"XDEL", STREAM, entry_id]


ENQUEUE = [add(b"1-1"), MARKER]


def verdict_of(tmp_path, *transactions, offers="offered 1\naccepted 1 " + ID + "\n", runs=f"start {ID} 1 1\n"):
    history = History()
    for transaction in transactions:
        history.apply(transaction)
    client, handler = tmp_path / "a.offers", tmp_path / "a.handlers"
    client.write_text(offers)
    handler.write_text(runs)
    return judge(history, [client], [handler])


def test_a_good_life(tmp_path):
    verdict = verdict_of(tmp_path, ENQUEUE, [add(b"1-2", 1), end(b"1-1")], [tell(b"completed"), end(b"1-2")])
    assert (verdict.violations, verdict.completed, verdict.accepted) == (0, 1, 1)


def test_a_life_through_the_schedule(tmp_path):
    row = [b"HSET", b"{streamfleet:q}:scheduled", ID.encode(), b'4:data,18:{"n":1,"do":"ok"},']
    moved = [[b"HDEL", b"{streamfleet:q}:scheduled", ID.encode()], add(b"1-2")]
    verdict = verdict_of(tmp_path, [row, MARKER], moved, [end(b"1-2")])
    assert (verdict.violations, verdict.completed) == (0, 1)


@pytest.mark.parametrize(
    ("kind", "transactions"),
    [
        ("lost", []),
        ("lost", [ENQUEUE]),
        ("enqueued_twice", [ENQUEUE, [end(b"1-1")], [add(b"1-2"), MARKER], [end(b"1-2")]]),
        ("ended_twice", [ENQUEUE, [bury(), end(b"1-1")], [add(b"1-2", 1)], [end(b"1-2")]]),
        ("branched", [ENQUEUE, [add(b"1-2", 1), end(b"1-1")], [add(b"1-3", 1)], [end(b"1-2")], [end(b"1-3")]]),
        ("branched", [ENQUEUE, [add(b"1-2", 2), end(b"1-1")], [end(b"1-2")]]),
        ("unexpected", [[add(b"1-1", number=7), MARKER], [end(b"1-1")]]),
        ("told_wrongly", [ENQUEUE, [tell(b"error"), bury(), end(b"1-1")], [tell(b"completed")]]),
    ],
)
def test_each_kind_of_wrong_history_is_seen(tmp_path, kind, transactions):
    verdict = verdict_of(tmp_path, *transactions)
    assert getattr(verdict, kind), verdict.as_dict()


def test_a_completion_without_a_run_is_seen(tmp_path):
    verdict = verdict_of(tmp_path, ENQUEUE, [end(b"1-1")], runs="")
    assert verdict.never_ran
    expired = verdict_of(tmp_path, [add(b"1-1", expires=b"5"), MARKER], [end(b"1-1")], runs="")
    assert (expired.violations, expired.expired) == (0, 1)


def test_a_client_that_was_told_something_else_is_seen(tmp_path):
    offers = f"offered 1\naccepted 1 {ID}\noutcome 1 {ID} FAILED\n"
    verdict = verdict_of(tmp_path, ENQUEUE, [tell(b"completed"), end(b"1-1")], offers=offers)
    assert verdict.told_wrongly


def test_a_transaction_without_exec_was_not_applied():
    from campaign.history import transactions_of

    commands = [[b"MULTI"], [b"SET", b"a", b"1"], [b"MULTI"], [b"SET", b"b", b"2"], [b"EXEC"], [b"DEL", b"c"]]
    assert list(transactions_of(commands)) == [[[b"SET", b"b", b"2"]], [[b"DEL", b"c"]]]
