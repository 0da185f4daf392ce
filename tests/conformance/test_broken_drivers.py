"""A driver that breaks the contract fails the suite, at the case that says what is wrong with it."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

HERE = Path(__file__).parent
AT_ONCE = 2
LONGEST = 120.0

BROKEN = {
    "RetryingDriver": "outcome_is_unknown_is_not_sent_again",
    "ReconnectingDriver": "closed_connection_sends_nothing",
    "NotSentDriver": "outcome_is_unknown_is_not_sent_again",
    "ConflictDriver": "outcome_is_unknown_is_not_sent_again",
    "ReorderingDriver": "replies_to_unlike_commands_come_in_order",
    "RaisingDriver": "error_is_a_value_in_its_place",
    "CodelessDriver": "errors_keep_their_code",
    "DecodingDriver": "every_byte_passes",
    "DeafDriver": "blocked_read_can_be_interrupted",
    "OneSessionDriver": "connections_are_sessions_of_their_own",
    "BoastingDriver": "what_is_declared_is_so[xackdel]",
    "ModestDriver": "what_is_declared_is_so[client_unblock]",
}


def run(harness, path, keyword):
    arguments = ["--harness", f"broken_drivers:{harness}", "--json", str(path), "-k", keyword]
    return subprocess.run(
        [sys.executable, "-m", "streamfleet_conformance", *arguments],
        capture_output=True,
        text=True,
        timeout=LONGEST,
        cwd=HERE,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A future for each broken driver, with the path of its results."""
    folder = tmp_path_factory.mktemp("broken")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {
            harness: (pool.submit(run, harness, folder / harness, case.partition("[")[0]), folder / harness)
            for harness, case in BROKEN.items()
        }


@pytest.mark.parametrize("harness", BROKEN)
def test_a_broken_driver_fails(runs, harness):
    future, path = runs[harness]
    done = future.result()
    assert done.returncode == 1, done.stdout[-4000:]
    cases = json.loads(path.read_text())["cases"]
    failed = [case["name"] for case in cases if case["outcome"] == "failed"]
    assert any(BROKEN[harness] in name for name in failed), failed
    assert f", {len(failed)} failed, " in done.stdout.splitlines()[-1]


def test_a_driver_from_elsewhere_passes(tmp_path):
    done = run("HonestDriver", tmp_path / "results", "driver or capabilities")
    assert done.returncode == 0, done.stdout[-4000:]
    assert ", 0 failed, " in done.stdout.splitlines()[-1]
