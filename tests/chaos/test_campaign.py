"""A short campaign on real servers, with a fixed seed; the long one is ``make chaos``."""

import json
import os
import subprocess
import sys
from pathlib import Path

SEED, SECONDS = 20261124, 35


def test_nothing_is_lost_or_doubled():
    command = ["--server", "valkey-9.1,redis-8.2", "--seconds", str(SECONDS), "--seed", str(SEED), "--json"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    finished = subprocess.run(
        [sys.executable, "-m", "campaign", *command], env=environment, capture_output=True, text=True, timeout=400
    )
    campaigns = json.loads(finished.stdout)
    assert len(campaigns) == 2
    for campaign in campaigns:
        assert campaign["good"], json.dumps(campaign, indent=1)
        assert campaign["completed"] > 500
        assert campaign["faults"] > 30
        assert campaign["kills"] > 3
    assert finished.returncode == 0
