"""Pages that are made from the code are up to date."""

import importlib.util
from pathlib import Path

import pytest

from streamfleet_core.state import TRANSITIONS

ROOT = Path(__file__).parents[2]


@pytest.fixture(name="make_state")
def load_make_state():
    spec = importlib.util.spec_from_file_location("make_state", ROOT / "docs" / "make_state.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_state_page_is_current(make_state):
    page = (ROOT / "docs" / "reference" / "state.md").read_text(encoding="utf-8")
    assert page == make_state.page(), "docs/reference/state.md is out of date: run `make docs`"


def test_state_diagram_shows_every_transition(make_state):
    drawn = make_state.diagram()
    for phase, targets in TRANSITIONS.items():
        for target in targets:
            assert f"    {phase.name} --> {target.name}: " in drawn
    assert drawn.count("-->") == 1 + sum(map(len, TRANSITIONS.values())) + sum(not t for t in TRANSITIONS.values())
