"""The built wheel: the three packages and nothing else, usable outside the checkout."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"streamfleet_core", "streamfleet", "streamfleet_conformance"}


@pytest.fixture(name="wheel", scope="module")
def build_wheel(tmp_path_factory):
    """Built from a copy: a build must not write into the checkout, nor see what is not part of it."""
    source = tmp_path_factory.mktemp("source")
    for name in ("streamfleet_core", "drivers", "conformance", "tests", "examples", "docs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-c", _BUILD, str(target)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    return next(target.glob("*.whl"))


# The build backend directly: an isolated build would fetch it anew each time.
_BUILD = "import sys; from hatchling.build import build_wheel; build_wheel(sys.argv[1])"


def test_only_the_three_packages_are_in_it(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    metadata = {top for top in tops if top.endswith(".dist-info")}
    assert tops - metadata == PACKAGES
    assert len(metadata) == 1
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(names)
    strangers = [n for n in names if not n.endswith((".py", "py.typed")) and ".dist-info/" not in n]
    assert strangers == []


def test_every_module_is_in_it(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, package in (
        (ROOT, "streamfleet_core"),
        (ROOT / "drivers", "streamfleet"),
        (ROOT / "conformance", "streamfleet_conformance"),
    ):
        for path in (folder / package).rglob("*.py"):
            assert path.relative_to(folder).as_posix() in names


def test_version_and_licence(wheel):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    archive = zipfile.ZipFile(wheel)
    metadata = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
    text = archive.read(metadata).decode()
    assert f"\nVersion: {project['version']}\n" in text
    assert "\nLicense-Expression: MIT\n" in text
    assert "\nRequires-Python: >=3.11\n" in text
    needed = [line for line in text.splitlines() if line.startswith("Requires-Dist:") and "extra ==" not in line]
    assert needed == [], "the package itself needs nothing but Python"


def test_it_works_outside_the_checkout(wheel, tmp_path):
    """A task from a client to a handler, with nothing on the path but the wheel and the standard library."""
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    program = tmp_path / "program.py"
    program.write_text(_PROGRAM, encoding="utf-8")
    command = [sys.executable, "-I", "-S", "-W", "error", str(program), str(tmp_path / "site")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["hello", "completed", *sorted(PACKAGES)]


_PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
import streamfleet, streamfleet_core, streamfleet_conformance
from streamfleet.memory import MemoryDriver
from streamfleet.sync import Client, Worker

driver = MemoryDriver()
worker = Worker(driver, concurrency=1)

@worker.handler("greetings")
def greet(task):
    print(task.text, flush=True)

with worker.running(), Client(driver) as client:
    handle = client.enqueue_tracked("greetings", "hello")
    handle.wait(timeout=20)
print(handle.status.name.lower())
for module in sorted([streamfleet, streamfleet_core, streamfleet_conformance], key=lambda m: m.__name__):
    assert module.__file__.startswith(sys.argv[1]), module.__file__
    print(module.__name__)
"""


_HARNESS = """
from my_driver import BareDriver

from streamfleet_conformance import Harness


class BareHarness(Harness):
    def driver(self, url):
        return BareDriver(url)
"""


def test_a_third_party_proves_the_drivers_readme_on_the_installed_wheel(wheel, tmp_path):
    """The README's driver in a folder of its own, the suite and the library from the wheel, a real server."""
    site, theirs = tmp_path / "site", tmp_path / "theirs"
    zipfile.ZipFile(wheel).extractall(site)
    theirs.mkdir()
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "drivers" / "README.md").read_text("utf-8"), re.DOTALL)
    (theirs / "my_driver.py").write_text(code, encoding="utf-8")
    (theirs / "my_harness.py").write_text(_HARNESS, encoding="utf-8")
    command = [sys.executable, "-m", "streamfleet_conformance", "--harness", "my_harness:BareHarness"]
    done = subprocess.run(
        [*command, "--server", "valkey-9.1", "-k", "test_driver or test_life or test_settle"],
        cwd=theirs,
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(site), str(theirs)))},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    passed = re.fullmatch(r"(\d+) passed, 0 failed, 0 not supported", done.stdout.splitlines()[-1])
    assert passed is not None
    assert int(passed[1]) > 100
    assert len(code.splitlines()) < 150
