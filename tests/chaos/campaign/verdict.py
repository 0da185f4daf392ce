"""Was anything lost, doubled or invented? Judged from logs that the library has no part in."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

from campaign.history import History, Life


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
    lost: list[str] = field(default_factory=list)
    enqueued_twice: list[str] = field(default_factory=list)
    ended_twice: list[str] = field(default_factory=list)
    branched: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    never_ran: list[str] = field(default_factory=list)
    told_wrongly: list[str] = field(default_factory=list)

    FAULTS = ("lost", "enqueued_twice", "ended_twice", "branched", "unexpected", "never_ran", "told_wrongly")

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


def judge(history: History, client_logs: list[Path], handler_logs: list[Path]) -> Verdict:
    """Compare what clients offered and were told, what handlers did, and what the server applied."""
    verdict = Verdict()
    offered: set[int] = set()
    accepted: dict[str, int] = {}
    outcomes: dict[str, str] = {}
    for path in client_logs:
        for kind, *rest in _lines(path):
            if kind == "offered":
                offered.add(int(rest[0]))
            elif kind == "accepted":
                accepted[rest[1]] = int(rest[0])
            elif kind == "outcome":
                outcomes[rest[1]] = rest[2]
    runs: dict[str, int] = {}
    for path in handler_logs:
        for kind, *rest in _lines(path):
            if kind == "start":
                runs[rest[0]] = runs.get(rest[0], 0) + 1
    verdict.offered, verdict.accepted = len(offered), len(accepted)
    for task_id in accepted.keys() - history.lives.keys():
        verdict.lost.append(f"{task_id}: accepted, and never seen by the server")
    for task_id, life in history.lives.items():
        if life.attempts or life.enqueued:
            _judge_life(verdict, task_id, life, offered, task_id in accepted, runs.get(task_id, 0))
    for task_id, outcome in outcomes.items():
        ends = history.lives[task_id].ends if task_id in history.lives else []
        expected = {"completed": "COMPLETED", "dead": "FAILED", "expired": "EXPIRED", "cancelled": "CANCELLED"}
        if outcome != "UNKNOWN" and (not ends or expected.get(ends[0]) != outcome):
            verdict.told_wrongly.append(f"{task_id}: told {outcome}, was {ends}")
    return verdict


def _judge_life(verdict: Verdict, task_id: str, life: Life, offered: set[int], accepted: bool, runs: int) -> None:
    if life.number not in offered:
        verdict.unexpected.append(f"{task_id}: number {life.number} was never offered")
    if not life.ends:
        verdict.lost.append(f"{task_id}: no end; live {life.live}, attempts {life.attempts}")
        return
    end = life.ends[0]
    if end == "completed" and not runs and life.expires:
        end = "expired"  # an untracked task that expires is told to nobody
    setattr(verdict, end, getattr(verdict, end) + 1)
    verdict.recovered += not accepted
    if life.enqueued > 1:
        verdict.enqueued_twice.append(f"{task_id}: {life.enqueued} times")
    if len(life.ends) > 1 or life.live:
        verdict.ended_twice.append(f"{task_id}: {life.ends}, still live {life.live}")
    chain = sorted(set(life.attempts))
    if life.most_live > 1 or life.attempts != chain or chain != list(range(chain[0], chain[0] + len(chain))):
        verdict.branched.append(f"{task_id}: attempts {life.attempts}, {life.most_live} live at once")
    if end == "completed" and not runs:
        verdict.never_ran.append(f"{task_id}: completed without a run")
    verdict.ran_twice += runs > len(life.attempts)
    if len(life.notices) > 1 and len(set(life.notices)) > 1:
        verdict.told_wrongly.append(f"{task_id}: notices {life.notices}")


def _lines(path: Path) -> list[list[str]]:
    """A log's lines, by words. The last may be cut off, when its writer was killed."""
    if not path.exists():
        return []
    text = path.read_text()
    return [line.split() for line in text[: text.rfind("\n") + 1].splitlines() if line]
