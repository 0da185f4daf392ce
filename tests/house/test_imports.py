"""What may import what, and which names exist as packages."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = sorted((ROOT / "streamfleet_core").glob("*.py"))

# Pure modules: no I/O, no clock, no entropy, no threads, no logging.
ALLOWED = {
    "__future__",
    "binascii",
    "collections",
    "collections.abc",
    "dataclasses",
    "difflib",
    "enum",
    "functools",
    "ipaddress",
    "itertools",
    "math",
    "re",
    "typing",
    "urllib.parse",
    "weakref",
}
# Builtins that do I/O, or that run what they are given.
FORBIDDEN_CALLS = {"open", "print", "input", "eval", "exec", "compile", "__import__", "breakpoint"}


def imported(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names.add(node.module or "")
    return names


def test_core_is_found():
    assert len(CORE) > 20


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.stem)
def test_core_imports_only_pure_modules(path):
    foreign = {
        name
        for name in imported(ast.parse(path.read_text(encoding="utf-8")))
        if name not in ALLOWED and name.partition(".")[0] != "streamfleet_core"
    }
    assert not foreign


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.stem)
def test_core_calls_nothing_that_does_io(path):
    calls = {
        node.func.id
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not calls & FORBIDDEN_CALLS


def test_modules_stay_small():
    long = {
        str(path.relative_to(ROOT)): lines
        for folder in ("streamfleet_core", "drivers", "conformance")
        for path in (ROOT / folder).rglob("*.py")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 500
    }
    assert not long


@pytest.mark.parametrize("name", ["drivers", "conformance", "tests", "examples"])
def test_folders_are_not_import_names(name, tmp_path):
    code = f"import importlib.util as u, sys; s = u.find_spec({name!r}); sys.exit(bool(s and s.origin))"
    # Outside the checkout, where its folders are not on the path by accident.
    assert subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, check=False).returncode == 0


def test_import_contract():
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_importing_the_package_imports_no_client_library():
    code = (
        "import sys, streamfleet, streamfleet.sync\n"
        "print(*sorted({'redis', 'valkey', 'hiredis', 'trio', 'fakeredis', 'asyncio', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_no_name_of_a_banned_module_is_left():
    for name in ("utils", "helpers", "common", "misc"):
        assert importlib.util.find_spec(f"streamfleet_core.{name}") is None
        assert importlib.util.find_spec(f"streamfleet.{name}") is None
