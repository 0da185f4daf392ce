"""Was anything lost, doubled or invented? Judged from logs that the library has no part in.

What must become of a task follows from what was ordered (`workload`), and from nothing else. Faults excuse just
this: a task may run again; it may expire once its time has come; a client may be left without an outcome when its
receiver was removed meanwhile, or when it asked for the task back.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from math import inf
from pathlib import Path

from campaign.history import History, Life
from campaign.testimony import Offer, Runs, Testimony
from campaign.workload import ATTEMPTS, DEAD

OUTCOMES = {"completed": "COMPLETED", "dead": "FAILED", "expired": "EXPIRED", "cancelled": "CANCELLED"}
NOTICES = {"completed": "completed", "dead": "error", "expired": "expired"}
CLOCK = 50
"""Milliseconds by which two looks at one clock may differ: each comes with a request of its own."""
LATE = 5_000
"""Milliseconds that a suspended client may be late in seeing that its receiver is gone."""


@dataclass
class Verdict:
    """A total-queue verdict: every offered task is accounted for."""

    offered: int = 0
    accepted: int = 0
    """Tasks that a client was told the server has."""
    completed: int = 0
    dead: int = 0
    expired: int = 0
    cancelled: int = 0
    recovered: int = 0
    """Tasks that ended though their client was killed before it knew that they had been accepted."""
    ran_twice: int = 0
    """Tasks with more runs than attempts: allowed, executions are at least once."""
    untold: int = 0
    """Tracked tasks whose outcome nobody can know: their client's receiver was removed."""
    lost: list[str] = field(default_factory=list)
    enqueued_twice: list[str] = field(default_factory=list)
    ended_twice: list[str] = field(default_factory=list)
    branched: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    never_ran: list[str] = field(default_factory=list)
    told_wrongly: list[str] = field(default_factory=list)
    not_told: list[str] = field(default_factory=list)
    unsent: list[str] = field(default_factory=list)
    against_orders: list[str] = field(default_factory=list)
    ran_though_cancelled: list[str] = field(default_factory=list)

    FAULTS = (
        "lost",
        "enqueued_twice",
        "ended_twice",
        "branched",
        "unexpected",
        "never_ran",
        "told_wrongly",
        "not_told",
        "unsent",
        "against_orders",
        "ran_though_cancelled",
    )

    @property
    def violations(self) -> int:
        """How many things went wrong."""
        return sum(len(getattr(self, name)) for name in self.FAULTS)

    def as_dict(self) -> dict[str, object]:
        """Figures, with the first few of each kind of fault."""
        figures = asdict(self)
        for name in self.FAULTS:
            figures[name] = len(figures[name])
            figures[f"{name}_examples"] = getattr(self, name)[:5]
        return figures


def judge(history: History, client_logs: Iterable[Path], handler_logs: Iterable[Path]) -> Verdict:
    """Compare what clients offered and were told, what handlers did, and what the server applied."""
    testimony = Testimony()
    for path in client_logs:
        testimony.read_client(path)
    for path in handler_logs:
        testimony.read_handlers(path)
    return _Judge(history, testimony).verdict


class _Judge:
    """One verdict in the making."""

    def __init__(self, history: History, testimony: Testimony) -> None:
        self.verdict = Verdict()
        self._history = history
        self._testimony = testimony
        self._seen: dict[int, str] = {}
        self.verdict.unexpected += history.strays
        self.verdict.offered = len(testimony.offers)
        for task_id, life in history.lives.items():
            self._judge_life(task_id, life)
        for number, offer in testimony.offers.items():
            self._judge_offer(number, offer)
        for client, unsent in testimony.finished.items():
            if unsent:
                self.verdict.unsent.append(f"client {client} ended with {unsent} tasks not sent")

    # ---- by what the server applied -----------------------------------------------------------------

    def _judge_life(self, task_id: str, life: Life) -> None:
        verdict = self.verdict
        offer = self._testimony.offers.get(life.number)
        runs = self._testimony.runs.get(task_id, Runs())
        if not life.enqueued:
            verdict.unexpected.append(f"{task_id}: never enqueued; {life}")
        if offer is None:
            verdict.unexpected.append(f"{task_id}: number {life.number} was never offered")
            return
        twin = self._seen.setdefault(life.number, task_id)
        if twin != task_id:
            verdict.enqueued_twice.append(f"{task_id}: number {life.number} is also {twin}")
        self._judge_contents(task_id, life, offer)
        if life.enqueued > 1:
            verdict.enqueued_twice.append(f"{task_id}: {life.enqueued} times")
        if life.most_live > 1 or life.attempts != list(range(len(life.attempts))):
            verdict.branched.append(f"{task_id}: attempts {life.attempts}, {life.most_live} live at once")
        if not life.ends:
            verdict.lost.append(f"{task_id}: no end; live {life.live}, attempts {life.attempts}")
            return
        end = self._end_of(life, runs)
        if end in OUTCOMES:
            setattr(verdict, end, getattr(verdict, end) + 1)
        verdict.recovered += not (offer.accepted or offer.outcome or offer.answer)
        verdict.ran_twice += len(runs.started) > len(life.attempts)
        if len(life.ends) > 1 or life.live:
            verdict.ended_twice.append(f"{task_id}: {life.ends}, still live {life.live}")
        if life.buried != life.ends.count("dead"):
            verdict.ended_twice.append(f"{task_id}: {life.buried} dead letters, ends {life.ends}")
        self._judge_end(task_id, end, life, offer, runs)
        self._judge_notices(task_id, end, life, offer)

    def _judge_contents(self, task_id: str, life: Life, offer: Offer) -> None:
        order = offer.order
        wrong = life.altered or life.payload != order.payload.encode() or life.tracked != order.tracked
        if wrong or life.queue not in ("", order.queue):
            self.verdict.unexpected.append(f"{task_id}: not what was ordered: {life.payload!r} in {life.queue}")
        expires_in = order.options.get("expires_in")
        if life.expires and expires_in is None:
            self.verdict.against_orders.append(f"{task_id}: expires, which was not ordered")
        elif expires_in and not life.expires >= offer.offered + expires_in * 1000 - CLOCK:
            early = offer.offered + expires_in * 1000 - life.expires
            self.verdict.against_orders.append(f"{task_id}: is to expire {early:.0f} ms too early")

    def _end_of(self, life: Life, runs: Runs) -> str:
        """How it ended. A task whose expiry is told to nobody goes as if it had completed.

        Nobody is told of those that are not tracked, and when the receiver is gone (else see `Life.concealed`).
        """
        end = life.ends[0]
        ran_to_its_end = len(life.attempts) in runs.ended
        unsaid = end == "completed" and not life.notices
        return "expired" if unsaid and life.expires and not ran_to_its_end else end

    def _judge_end(self, task_id: str, end: str, life: Life, offer: Offer, runs: Runs) -> None:
        verdict, last = self.verdict, len(life.attempts)
        kind = offer.order.kind
        before = [attempt for attempt in range(1, last) if attempt not in runs.started]
        if before:
            verdict.never_ran.append(f"{task_id}: attempts {before} were given up without a run")
        if end == "completed" and last not in runs.ended:
            verdict.never_ran.append(f"{task_id}: completed, but no handler has completed attempt {last}")
        if end == "dead" and last not in runs.started:
            verdict.never_ran.append(f"{task_id}: dead without a run of attempt {last}")
        if end == "cancelled":
            if not offer.cancelling:
                verdict.against_orders.append(f"{task_id}: cancelled, and nobody had asked for it")
            if runs.started or life.attempts:
                verdict.ran_though_cancelled.append(f"{task_id}: cancelled; attempts {runs.started} have run")
        elif end == "expired":
            assert life.ended is not None, "it has an end"
            if not life.expires or life.ended.end + CLOCK < life.expires or last > ATTEMPTS[kind]:
                early = life.expires - life.ended.end
                verdict.against_orders.append(f"{task_id}: expired {early:.0f} ms too early, attempt {last}")
        elif (end == "dead") != (kind in DEAD) or last != ATTEMPTS[kind]:
            verdict.against_orders.append(f"{task_id}: {kind} {offer.order.options}, was {end} at attempt {last}")

    def _judge_notices(self, task_id: str, end: str, life: Life, offer: Offer) -> None:
        expected = [NOTICES[end]] if life.tracked and end in NOTICES else []
        if life.early or (life.notices and life.notices != expected):
            self.verdict.told_wrongly.append(f"{task_id}: notices {life.notices}, was {end}")
        if life.concealed:
            self.verdict.not_told.append(f"{task_id}: {end}, and nobody was told")

    # ---- by what clients know -----------------------------------------------------------------------

    def _judge_offer(self, number: int, offer: Offer) -> None:
        verdict = self.verdict
        life = self._history.lives.get(offer.task_id)
        known = life is not None and life.enqueued > 0
        verdict.accepted += offer.accepted
        what = f"{offer.task_id or 'no id'} ({number})"
        if offer.accepted and not known:
            verdict.lost.append(f"{what}: accepted, and never seen by the server")
        if offer.given_back and (known and life is not None and life.ends != ["cancelled"]):
            verdict.told_wrongly.append(f"{what}: told CANCELLED, was {life.ends}")
        if offer.given_back and offer.task_id in self._testimony.runs:
            verdict.ran_though_cancelled.append(f"{what}: told that it never runs, and it ran")
        if offer.answer not in ("", "CANCELLED", "UNKNOWN") and life is not None and "cancelled" in life.ends:
            verdict.told_wrongly.append(f"{what}: told that it is {offer.answer}, was {life.ends}")
        if offer.outcome and not self._justified(offer, life if known else None):
            verdict.told_wrongly.append(f"{what}: told {offer.outcome}, was {life.ends if life else 'unknown'}")
        if offer.client in self._testimony.finished and not (offer.outcome or offer.given_back):
            if offer.order.tracked:
                verdict.not_told.append(f"{what}: tracked, and its client ended without an outcome")
            elif not offer.accepted:
                verdict.unsent.append(f"{what}: its client ended without a word of it")

    def _justified(self, offer: Offer, life: Life | None) -> bool:
        """Was the client told what happened?"""
        if offer.outcome == "UNKNOWN":
            excused = offer.cancelling or self._could_not_be_told(offer, life)
            self.verdict.untold += excused
            return excused
        if life is not None:
            return bool(life.ends) and OUTCOMES.get(life.ends[0]) == offer.outcome
        if offer.outcome == "EXPIRED":  # before it was sent
            due: float = offer.offered + offer.order.options.get("expires_in", inf) * 1000
            return offer.told >= due - CLOCK
        return offer.outcome == "CANCELLED" and offer.cancelling

    def _could_not_be_told(self, offer: Offer, life: Life | None) -> bool:
        """Was its client's receiver away while the task was under way, and its notice not read before?"""
        return any(
            window.start <= offer.told + CLOCK
            and offer.offered <= window.end + LATE
            and (life is None or life.heard >= window.start)
            for window in self._history.could_not_be_told(offer.client)
        )
