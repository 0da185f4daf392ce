"""Clients that fork (row 14)."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest


@pytest.mark.fault_row(14)
def test_both_sides_of_a_fork_go_on_with_identities_and_markers_of_their_own(stage):
    program = Path(__file__).parent / "forking.py"
    finished = subprocess.run(
        [sys.executable, str(program), stage.server.url, stage.queue], capture_output=True, text=True, timeout=30
    )
    assert finished.returncode == 0, finished.stderr
    report = json.loads(finished.stdout)
    assert report["parent"] == report["before"] != report["child"]
    assert (report["status"], report["unsent"], report["buffered"]) == (0, 0, 0)
    # Not one batch of either was disturbed by the other: a shared marker or connection would have shown here.
    assert report["counts"].get("aborted", 0) == report["counts"].get("regressed", 0) == 0

    rows = stage.call("XRANGE", stage.keys.stream, "-", "+")
    data = [dict(zip(fields[::2], fields[1::2], strict=True))[b"data"].decode() for _, fields in rows]
    expected = {
        f"{who} {number}" for who in ("before", "across", "child", "parent", "after") for number in range(20)
    }
    assert Counter(data) == Counter(expected)
    markers = {
        command[1].rpartition(b":producer:")[2]
        for transaction in stage.transactions()
        for command in transaction
        if command[0].upper() == b"HSET" and b":producer:" in command[1]
    }
    assert len(markers) == 2
    assert {any(marker.endswith(report[who].encode()) for marker in markers) for who in ("child", "parent")} == {
        True
    }
