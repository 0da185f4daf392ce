"""The page on faults names each scenario once, and every test that shows one; all tests that it names exist."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = range(1, 81)
CELL = re.compile(r"^\| (\d+) \| [^|]+ \| [^|]+ \| (.+) \|$", re.MULTILINE)
TEST = re.compile(r"`([^`]+\.py::[^`]+)`")


@pytest.fixture(name="maker", scope="module")
def load_maker():
    spec = importlib.util.spec_from_file_location("make_faults", ROOT / "docs" / "make_faults.py")
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


@pytest.fixture(name="page", scope="module")
def read_page():
    return (ROOT / "docs" / "explanation" / "faults.md").read_text(encoding="utf-8")


def test_the_page_is_current(maker, page):
    assert page == maker.page(), "docs/explanation/faults.md is out of date: run `make docs`"


def test_every_row_is_there_once(page):
    assert [int(number) for number, _ in CELL.findall(page)] == list(ROWS)


def test_every_row_has_a_test_or_a_reason(maker, page):
    marks = maker.marked()
    for number, where in CELL.findall(page):
        assert where.strip(), f"row {number}"
    for row in (row for rows in maker.SECTIONS.values() for row in rows):
        assert maker.shown_by(row, marks) or row.reason, f"row {row.number}"


def test_every_test_on_the_page_exists(maker, page):
    named = set(TEST.findall(page))
    assert len(named) > 80
    assert named <= maker.existing(), sorted(named - maker.existing())


def test_every_marked_test_is_on_the_page_in_its_row(maker, page):
    cells = {int(number): set(TEST.findall(where)) for number, where in CELL.findall(page)}
    marks = maker.marked()
    assert set(marks) <= set(ROWS), "a mark names a row that does not exist"
    for number, tests in marks.items():
        assert set(tests) <= cells[number], f"row {number}"


def test_every_test_of_this_folder_for_a_fault_is_marked(maker):
    everything = {test for tests in maker.marked().values() for test in tests}
    here = {test for test in maker.existing() if test.startswith("tests/faults/test_")}
    unmarked = {test for test in here - everything if "test_page.py" not in test}
    assert unmarked == {"tests/faults/test_clocks.py::test_the_model_follows_its_clock"}


def test_every_invariant_is_there_and_is_looked_at_somewhere(maker):
    assert [name for name, _, _ in maker.INVARIANTS] == [f"I{number}" for number in range(1, 17)]
    assert [name for name, _, tests in maker.INVARIANTS if not tests] == ["I10"]


def test_marks_are_found_in_all_their_forms(maker, tmp_path):
    path = tmp_path / "test_example.py"
    path.write_text(
        "@row(1, 2)\n@pytest.mark.fault_row(3)\n@other(4)\nasync def test_a(): pass\n"
        "class TestB:\n    @marks.row(5)\n    def test_b(self): pass\ndef helper(): pass\n"
    )
    assert {test.name: maker._rows(test) for test in maker.tests_in(path)} == {"test_a": [1, 2, 3], "test_b": [5]}
