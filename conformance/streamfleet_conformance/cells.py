"""The cells of the matrix that can be run on this machine."""

from __future__ import annotations

from importlib.util import find_spec

from streamfleet_conformance.harness import HARNESSES
from streamfleet_conformance.servers import available
from streamfleet_conformance.shells import SHELLS

NEEDED = {"fake": "fakeredis", "redis": "redis", "valkey": "valkey", "trio": "trio"}
"""The package without which a driver of ours does not work."""


def cells() -> list[tuple[str, str, str]]:
    """Shell, driver and server of each cell whose packages and servers are installed."""
    found: list[tuple[str, str, str]] = []
    for shell in SHELLS:
        for driver, harness in HARNESSES.items():
            if shell not in harness.shells or (driver in NEEDED and find_spec(NEEDED[driver]) is None):
                continue
            servers = [harness.default_server] if harness.in_process else available()
            found += [(shell, driver, server) for server in servers]
    return found
