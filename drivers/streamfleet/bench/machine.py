"""What the figures were measured on: a figure without it means nothing."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from streamfleet.embedded import EmbeddedServer


def description(server: EmbeddedServer, command: str) -> dict[str, str]:
    """Date, machine, versions, command line."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{_processor()}, {os.cpu_count()} CPUs, load {_load()}",
        "system": f"{platform.system()} {platform.release()}, {platform.python_implementation()} "
        f"{platform.python_version()}",
        "server": f"{server.engine} {server.version}, embedded, without persistence",
        "packages": ", ".join(f"{name} {_of(name)}" for name in ("streamfleet", "redis", "hiredis", "trio")),
        "command": command,
    }


def _of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _load() -> str:
    return f"{os.getloadavg()[0]:.1f}"


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
