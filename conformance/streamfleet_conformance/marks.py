"""What a case says of itself."""

from __future__ import annotations

import pytest

from streamfleet_core.connection import Capability


def row(*numbers: int) -> pytest.MarkDecorator:
    """The case shows these rows of the list of fault scenarios."""
    return pytest.mark.fault_row(*numbers)


def needs(*capabilities: Capability) -> pytest.MarkDecorator:
    """The case is not supported where the driver declares one of these as missing, and runs everywhere else."""
    return pytest.mark.needs(*capabilities)


in_threads = pytest.mark.in_threads
"""The case is about handlers that cannot be stopped: async shells run them with ``threads=True``."""

owned = pytest.mark.owned_server
"""The case kills, restarts or reconfigures its server: it is left out where that belongs to somebody else."""
