"""The processes of a campaign: started, killed, suspended, started again; ended by their own pids."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from random import Random

LEASE = 2.0
BLOCK_OF_NUMBERS = 10_000_000


@dataclass
class Member:
    """One place in the fleet, filled by one process after the other."""

    role: str
    name: str
    shell: str
    url: str
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    suspended: bool = False

    @property
    def alive(self) -> bool:
        """Does its process run?"""
        return self.process is not None and self.process.poll() is None


class Fleet:
    """All workers and clients."""

    def __init__(self, directory: Path, rng: Random, rate: float) -> None:
        self._directory = directory
        self._rng = rng
        self._rate = rate
        self._numbers = 0
        self.members: list[Member] = []
        self.kills = 0
        self.refusals = 0

    def add(self, role: str, shell: str, url: str) -> None:
        """Take one more worker or client in, and start it."""
        member = Member(role, f"{role}-{len(self.members)}", shell, url)
        self.members.append(member)
        self.start(member)

    def start(self, member: Member) -> None:
        """Fill a place with a new process."""
        member.starts += 1
        member.suspended = False
        if member.role == "worker":
            log = self._directory / f"{member.name}.handlers"
            arguments = [member.shell, member.url, member.name, str(log), str(LEASE)]
        else:
            log = self._directory / f"{member.name}-{member.starts}.offers"
            self._numbers += 1
            first = self._numbers * BLOCK_OF_NUMBERS
            seed = self._rng.randrange(1 << 30)
            arguments = [member.shell, member.url, str(log), str(seed), str(first), str(self._rate)]
        root = Path(__file__).parent.parent
        with (self._directory / f"{member.name}.err").open("ab") as errors:
            member.process = subprocess.Popen(
                [sys.executable, "-m", f"campaign.{member.role}_process", *arguments],
                env={**os.environ, "PYTHONPATH": str(root)},
                stdout=errors,
                stderr=errors,
            )

    def restart_dead(self, roles: tuple[str, ...] = ("worker", "client")) -> None:
        """Whoever has died, by our hand or its own, is replaced."""
        for member in self.members:
            if member.role in roles and member.process is not None and not member.alive:
                if member.process.returncode == 3:
                    self.refusals += 1
                elif member.process.returncode == -signal.SIGKILL:
                    self.kills += 1
                self.start(member)

    def pick(self, role: str) -> Member | None:
        """A random living member."""
        living = [member for member in self.members if member.role == role and member.alive]
        return self._rng.choice(living) if living else None

    def send(self, member: Member, number: signal.Signals) -> None:
        """Send a signal to a living member."""
        if member.process is not None and member.alive:
            member.process.send_signal(number)
            member.suspended = number == signal.SIGSTOP

    def resume_all(self) -> None:
        """Nobody stays suspended."""
        for member in self.members:
            if member.suspended:
                self.send(member, signal.SIGCONT)

    def end(self, role: str, seconds: float) -> list[str]:
        """Ask all of a role to finish in order. Returns the names of those that had to be killed."""
        ending = [member for member in self.members if member.role == role and member.alive]
        for member in ending:
            self.send(member, signal.SIGTERM)
        late = []
        for member in ending:
            assert member.process is not None, "alive"
            try:
                member.process.wait(seconds)
            except subprocess.TimeoutExpired:
                late.append(member.name)
                member.process.kill()
                member.process.wait()
        return late

    def kill_all(self) -> None:
        """Leave nothing behind."""
        for member in self.members:
            if member.process is not None and member.alive:
                member.process.kill()
                member.process.wait()

    def logs(self, role: str) -> list[Path]:
        """What the members of a role have written."""
        return sorted(self._directory.glob("*.handlers" if role == "worker" else "*.offers"))
