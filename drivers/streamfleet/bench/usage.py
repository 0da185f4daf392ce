"""What the server has spent so far."""

from __future__ import annotations

from dataclasses import dataclass

from streamfleet.bench.bare import BareConnection


@dataclass(frozen=True, slots=True)
class Usage:
    """A server's counters at one moment."""

    cpu_seconds: float
    commands: int
    """Calls, those of a MULTI's inside counted too; without the ones of `usage`."""
    memory_bytes: int

    def since(self, before: Usage) -> Usage:
        """What has been added since."""
        return Usage(
            self.cpu_seconds - before.cpu_seconds,
            self.commands - before.commands,
            self.memory_bytes - before.memory_bytes,
        )


def usage(connection: BareConnection) -> Usage:
    """Read the counters."""
    sections = connection.exchange([("INFO", "cpu"), ("INFO", "commandstats"), ("INFO", "memory")])
    info = dict(
        line.split(":", 1) for section in sections for line in section.decode().splitlines() if ":" in line
    )
    commands = sum(
        int(value.split(",", 1)[0].removeprefix("calls="))
        for name, value in info.items()
        if name.startswith("cmdstat_") and name != "cmdstat_info"
    )
    cpu = float(info["used_cpu_user"]) + float(info["used_cpu_sys"])
    return Usage(cpu, commands, int(info["used_memory"]))
