"""Hypothesis profiles: HYPOTHESIS_PROFILE chooses one; ``ci`` where CI is set, else ``dev``.

Fresh simulated worlds: their first seed is drawn here, once for all processes of a run, and told before the first
test begins, so that a run that hangs or is killed can be replayed.
"""

import os
import random

import pytest
from hypothesis import HealthCheck, settings

# Deadlines measure the machine rather than the code: none.
settings.register_profile("dev", deadline=None, max_examples=50)
settings.register_profile("ci", deadline=None, max_examples=200, derandomize=True, print_blob=True)
settings.register_profile(
    "long", deadline=None, max_examples=5000, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev"))

FRESH = 80
"""Fresh worlds in a run of the tests."""
# Processes that run a part of the tests (pytest-xdist) inherit it.
os.environ.setdefault("FRESH_SEED", str(random.SystemRandom().randrange(10**6, 10**9)))
os.environ.setdefault("FRESH_SEEDS", str(FRESH))


@pytest.hookimpl(tryfirst=True)  # pytest-xdist lets nothing come after it
def pytest_collection(session: pytest.Session) -> None:
    """Told past the buffer of a pipe, and with ``-q`` as well."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and "PYTEST_XDIST_WORKER" not in os.environ:
        first, seeds = os.environ["FRESH_SEED"], os.environ["FRESH_SEEDS"]
        reporter.ensure_newline()
        reporter.write_line(f"fresh simulated worlds: make simulate FIRST={first} SEEDS={seeds}")
        reporter.flush()
