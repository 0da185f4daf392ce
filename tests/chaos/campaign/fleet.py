"""The processes of a campaign: started, killed, suspended, started again; ended by their own pids.

Every end of a process is accounted for: by our hand, as ordered by a task, by a refusal that the campaign has
provoked, or in order because it was asked to. Any other end is a crash.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from math import inf
from pathlib import Path
from random import Random

from campaign.logfile import lines_of
from campaign.process import REFUSED

ROOT = str(Path(__file__).parent.parent)
LEASE = 2.0
CLIENT_TIMEOUT = 600.0
BLOCK_OF_NUMBERS = 10_000_000
READY = 20.0
"""Seconds for a process to be up."""
REFUSAL = 20.0
"""Seconds after a right has been given back within which its lack still explains the end of a process."""
TAIL = 12
"""Lines of what a crashed process has said."""
COMPLAINTS = ("Traceback (most recent call last)", "Exception ignored in", "never retrieved", "Warning: ")
"""What no process says on its way to a good end."""


@dataclass(slots=True)
class Denial:
    """An administrator took a right away, for a while."""

    command: str
    end: float = inf
    """When it was given back (monotonic seconds)."""

    def explains(self, reason: str, started: float, ended: float) -> bool:
        """Is this why the server refused a process that ran from ``started`` to ``ended``?"""
        return self.command in reason and started <= self.end and ended <= self.end + REFUSAL


@dataclass
class Member:
    """One place in the fleet, filled by one process after the other."""

    role: str
    name: str
    process: subprocess.Popen[bytes] | None = None
    log: Path = Path()
    errors: Path = Path()
    starts: int = 0
    started: float = 0.0
    suspended: bool = False
    killed: bool = False
    ending: bool = False
    up: bool = False
    """Is it known to be ready?"""

    @property
    def alive(self) -> bool:
        """Does its process run?"""
        return self.process is not None and self.process.poll() is None

    @property
    def ready(self) -> bool:
        """Does its process obey?"""
        self.up = self.up or any(words[0] == "ready" for words in lines_of(self.log))
        return self.up

    @property
    def refusal(self) -> str:
        """Why its server would not work with it, as the process has said."""
        return " ".join(next((words[1:] for words in lines_of(self.log) if words[0] == "refused"), []))


def pairs(shells: Sequence[str], schemes: Sequence[str], number: int) -> tuple[str, str]:
    """The shell and the URL's scheme of the process of this number: after so many, each pair has had its turn."""
    turn, place = divmod(number, len(shells))
    return shells[place], schemes[(place + turn) % len(schemes)]


class Fleet:
    """All workers and clients."""

    def __init__(
        self,
        directory: Path,
        rng: Random,
        rate: float,
        shells: Sequence[str] = ("sync", "asyncio", "trio"),
        schemes: Sequence[str] = ("redis", "valkey"),
    ) -> None:
        self._directory = directory
        self._rng = rng
        self._rate = rate
        self._shells = shells
        self._schemes = schemes
        self._ports: dict[str, int] = {}
        self._numbers = {"worker": count(), "client": count(), "blocks": count(1)}
        self.members: list[Member] = []
        self.denials: list[Denial] = []
        self.kills = 0
        self.refusals: Counter[str] = Counter()
        self.crashes: list[str] = []

    def add(self, role: str, port: int, client_timeout: float = CLIENT_TIMEOUT) -> Member:
        """Take one more worker or client in, and start it. It reaches the server through ``port``."""
        self._ports[role] = port
        member = Member(role, f"{role}-{len(self.members)}")
        self.members.append(member)
        self.start(member, client_timeout)
        return member

    def start(self, member: Member, client_timeout: float = CLIENT_TIMEOUT) -> None:
        """Fill a place with a new process, on the shell and library whose turn it is."""
        member.starts += 1
        member.started = time.monotonic()
        member.suspended = member.killed = member.ending = member.up = False
        name = f"{member.name}-{member.starts}"
        shell, scheme = pairs(self._shells, self._schemes, next(self._numbers[member.role]))
        url = f"{scheme}://127.0.0.1:{self._ports[member.role]}?timeout=3"
        if member.role == "worker":
            member.log = self._directory / f"{name}.handlers"
            arguments = [shell, url, member.name, str(member.log), str(LEASE), str(client_timeout)]
        else:
            member.log = self._directory / f"{name}.offers"
            first = next(self._numbers["blocks"]) * BLOCK_OF_NUMBERS
            seed = self._rng.randrange(1 << 30)
            arguments = [shell, url, str(member.log), str(seed), str(first), str(self._rate)]
        member.errors = self._directory / f"{name}.err"
        with member.errors.open("wb") as errors:
            member.process = subprocess.Popen(
                [sys.executable, "-m", f"campaign.{member.role}_process", *arguments],
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH")))),
                },
                stdout=errors,
                stderr=errors,
            )

    def restart_dead(self, roles: tuple[str, ...] = ("worker", "client")) -> None:
        """Whoever has died, by our hand or its own, is accounted for and replaced."""
        for member in self.members:
            if member.role in roles and member.process is not None and not member.alive:
                self._account(member)
                self.start(member)

    def _account(self, member: Member) -> None:
        """Why has its process ended?"""
        assert member.process is not None, "it had a process"
        code = member.process.returncode
        member.process = None
        kinds = {words[0] for words in lines_of(member.log)}
        said = member.errors.read_text(errors="replace") if member.errors.exists() else ""
        why = f"exit code {code}"
        if any(complaint in said for complaint in COMPLAINTS):
            why += ", with complaints"
        elif code == -signal.SIGKILL and (member.killed or "crash" in kinds):
            self.kills += 1
            return
        elif code == REFUSED and self._explained(member):
            self.refusals[f"{member.role}: {member.refusal}"] += 1
            return
        elif code == 0 and member.ending:
            return
        if member.refusal:
            why += f", refused: {member.refusal}"
        tail = " | ".join(said.splitlines()[-TAIL:])
        self.crashes.append(f"{member.name}-{member.starts}: {why}; {tail or 'nothing was said'}")

    def _explained(self, member: Member) -> bool:
        now = time.monotonic()
        return any(denial.explains(member.refusal, member.started, now) for denial in self.denials)

    def pick(self, role: str) -> Member | None:
        """A random living member. Whoever is not up yet has nothing to lose."""
        living = [member for member in self.members if member.role == role and member.alive and member.ready]
        return self._rng.choice(living) if living else None

    def send(self, member: Member, number: signal.Signals) -> None:
        """Send a signal to a living member."""
        if member.process is not None and member.alive:
            member.process.send_signal(number)
            member.suspended = number == signal.SIGSTOP
            if number == signal.SIGKILL:
                member.killed = True
                member.process.wait()

    def resume_all(self) -> None:
        """Nobody stays suspended."""
        for member in self.members:
            if member.suspended:
                self.send(member, signal.SIGCONT)

    def end(self, role: str, seconds: float) -> list[str]:
        """Ask all of a role to finish in order. Returns the names of those that had to be killed."""
        ending = [member for member in self.members if member.role == role and member.process is not None]
        late = []
        for member in ending:
            self._wait_until_ready(member)
            member.ending = True
            self.send(member, signal.SIGTERM)
        deadline = time.monotonic() + seconds
        for member in ending:
            assert member.process is not None, "it is accounted for below"
            try:
                member.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                late.append(f"{member.name}-{member.starts}")
                self.send(member, signal.SIGKILL)
            self._account(member)
        return late

    def _wait_until_ready(self, member: Member) -> None:
        """Whoever is not up yet would not hear that it is to end."""
        deadline = time.monotonic() + READY
        while member.alive and not member.ready and time.monotonic() < deadline:
            time.sleep(0.02)

    def kill_all(self) -> None:
        """Leave nothing behind."""
        for member in self.members:
            self.send(member, signal.SIGKILL)

    def logs(self, role: str) -> list[Path]:
        """What the members of a role have written."""
        return sorted(self._directory.glob("*.handlers" if role == "worker" else "*.offers"))
