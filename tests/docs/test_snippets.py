"""The programs in the README, copied as they stand, run and print what they say; links lead somewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from streamfleet.embedded import EmbeddedServer

ROOT = Path(__file__).parents[2]
URL = "redis://localhost:6379"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")])


def programs(page: Path) -> list[tuple[str, str]]:
    """Each Python block of a page, with the heading that it stands under."""
    found, heading = [], ""
    for match in re.finditer(r"^#+ ([^\n]*)$|^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        if match[1]:
            heading = match[1]
        else:
            found.append((heading, match[2]))
    return found


@pytest.fixture(scope="module")
def server():
    with EmbeddedServer(appendonly=False) as running:
        yield running


@pytest.mark.parametrize(("heading", "code"), programs(ROOT / "README.md"))
def test_a_program_of_the_readme_runs(server, tmp_path, heading, code):
    assert URL in code
    program = tmp_path / "program.py"
    program.write_text(code.replace(URL, server.url))
    finished = subprocess.run(
        [sys.executable, "-W", "error", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (finished.returncode, finished.stderr) == (0, ""), heading
    assert "b'HI'" in finished.stdout


def test_the_readme_shows_all_three_shells():
    assert [heading for heading, _ in programs(ROOT / "README.md")] == ["Threads", "asyncio", "trio"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"
