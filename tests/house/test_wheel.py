"""The built wheel: the three packages and nothing else, usable outside the checkout."""

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"streamfleet_core", "streamfleet", "streamfleet_conformance"}
AT_ONCE = 5


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


_PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "my-package"
version = "1"

{entry_point}
"""

_HARNESS = """
from streamfleet import driver_from_url
from streamfleet_conformance import Harness


class BareHarness(Harness):
    def driver(self, url):
        return driver_from_url(url.replace("redis://", "bare://"))
"""


class Installed:
    """A fresh virtual environment; what the wheels installed in it need comes from the one we run in."""

    def __init__(self, folder, *wheels):
        self.folder = folder
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        self.python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
        if importlib.util.find_spec("pip"):
            install = [sys.executable, "-m", "pip", "--python", str(self.python), "install", "--no-index"]
        else:
            install = ["uv", "pip", "install", "--python", str(self.python), "--offline"]
        subprocess.run([*install, "--quiet", "--no-deps", *map(str, wheels)], check=True)
        site = self.run("-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip()
        # After the site's own packages, and without the links to a checkout that it may hold.
        Path(site, "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")

    def run(self, *arguments, timeout=60):
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        command = [str(self.python), *arguments]
        done = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=timeout
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
        return done


@pytest.fixture(name="installed", scope="module")
def install_with_the_drivers_readme(wheel, tmp_path_factory):
    """The README's driver as the package of a third party, beside ours."""
    readme = (ROOT / "drivers" / "README.md").read_text("utf-8")
    [code] = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    [entry_point] = re.findall(r"```toml\n(.*?)```", readme, re.DOTALL)
    assert len(code.splitlines()) < 150
    source = tmp_path_factory.mktemp("theirs")
    (source / "pyproject.toml").write_text(_PYPROJECT.format(entry_point=entry_point), encoding="utf-8")
    (source / "my_package").mkdir()
    (source / "my_package" / "__init__.py").write_text(code, encoding="utf-8")
    (source / "my_package" / "proof.py").write_text(_HARNESS, encoding="utf-8")
    theirs = tmp_path_factory.mktemp("their_wheel")
    subprocess.run([sys.executable, "-c", _BUILD, str(theirs)], cwd=source, check=True, capture_output=True)
    return Installed(tmp_path_factory.mktemp("environment"), wheel, next(theirs.glob("*.whl")))


def test_a_third_partys_driver_is_found_by_its_entry_point(installed):
    program = """if True:
        import my_package, streamfleet, streamfleet_core, streamfleet_conformance, sys
        driver = streamfleet.driver_from_url("bare://somewhere:1234")
        assert type(driver) is my_package.BareDriver, driver
        assert driver.url == "bare://somewhere:1234", driver.url
        try:
            streamfleet.driver_from_url("bare://somewhere", shell="trio")
        except streamfleet.errors.WrongDriver:
            pass
        else:
            raise AssertionError("it serves threads only")
        for module in (my_package, streamfleet, streamfleet_core, streamfleet_conformance):
            assert module.__file__.startswith(sys.prefix), module.__file__
    """
    installed.run("-c", program)


def test_a_third_party_proves_its_driver_by_the_whole_suite(installed):
    """On a real server. One process for each file of cases, several at once: they mostly wait."""
    suite = (
        "-m",
        "streamfleet_conformance",
        "--harness",
        "my_package.proof:BareHarness",
        "--server",
        "valkey-9.1",
    )
    files = sorted(path.name for path in installed.folder.rglob("streamfleet_conformance/cases/test_*.py"))
    assert files

    def prove(name):
        results = installed.folder / f"{name}.json"
        done = installed.run(*suite, "-k", name, "--json", str(results), timeout=300)
        assert re.fullmatch(r"\d+ passed, 0 failed, 0 not supported", done.stdout.splitlines()[-1])
        return json.loads(results.read_text("utf-8"))

    with ThreadPoolExecutor(AT_ONCE) as pool:
        results = list(pool.map(prove, files))
    names = sorted(case["name"] for part in results for case in part["cases"])
    whole = hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]
    assert {part["suite"] for part in results} == {whole}, "a case has not run, or twice"
