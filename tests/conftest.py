"""Hypothesis profiles: HYPOTHESIS_PROFILE chooses one; ``ci`` where CI is set, else ``dev``."""

import os

from hypothesis import HealthCheck, settings

# Deadlines measure the machine rather than the code: none.
settings.register_profile("dev", deadline=None, max_examples=50)
settings.register_profile("ci", deadline=None, max_examples=200, derandomize=True, print_blob=True)
settings.register_profile(
    "long", deadline=None, max_examples=5000, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev"))
