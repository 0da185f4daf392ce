"""The three shells offer the same names with the same signatures, async-ness aside."""

import inspect
import re

import pytest

import streamfleet.asyncio
import streamfleet.sync
import streamfleet.trio

SHELLS = {"asyncio": streamfleet.asyncio, "trio": streamfleet.trio}

ONLY_IN_THREADS = {
    "Worker": {"start": "a task without an owner is what structured shells are there to avoid: use running()"},
    "Client": {},
    "Handle": {},
}
"""Public names that the async shells lack, and why."""

DIFFERENT_PARAMETERS = {
    ("Worker", "handler"): {"threads": "in the shell for threads each handler is run in one"},
    ("Worker", "run"): {"task_status": "trio: for nursery.start(worker.run)"},
}
"""Parameters that only an async shell has, and why."""

ALWAYS_IMMEDIATE = {"handler", "request_stop", "running"}
"""Methods that are plain in each shell: they never wait, or hand out a context manager."""


ASYNC_TYPES = {"AsyncDriver": "Driver", "AsyncIterator": "Iterator"}
"""What annotations of the async shells say instead, and only there."""


def public(kind):
    return {name for name in vars(kind) if not name.startswith("_")} | {"__init__"}


def bare(kind, name):
    """Parameters and their defaults, without those that are declared different; and is it async?"""
    function = inspect.unwrap(getattr(kind, name))
    allowed = DIFFERENT_PARAMETERS.get((kind.__name__, name), {})
    parameters = [
        (p.name, p.kind, p.default)
        for p in inspect.signature(function).parameters.values()
        if p.name not in allowed
    ]
    return parameters, inspect.iscoroutinefunction(function)


@pytest.mark.parametrize("shell", SHELLS)
def test_the_packages_export_the_same_names(shell):
    assert SHELLS[shell].__all__ == streamfleet.sync.__all__


@pytest.mark.parametrize("kind", ["Client", "Worker", "Handle"])
@pytest.mark.parametrize("shell", SHELLS)
def test_the_classes_have_the_same_public_names(shell, kind):
    ours, threads = getattr(SHELLS[shell], kind), getattr(streamfleet.sync, kind)
    missing = set(ONLY_IN_THREADS[kind])
    assert public(ours) == public(threads) - missing
    assert missing <= public(threads)


@pytest.mark.parametrize("kind", ["Client", "Worker", "Handle"])
@pytest.mark.parametrize("shell", SHELLS)
def test_methods_take_the_same_arguments_and_all_that_may_wait_are_async(shell, kind):
    ours, threads = getattr(SHELLS[shell], kind), getattr(streamfleet.sync, kind)
    for name in sorted(public(ours)):
        if isinstance(vars(ours).get(name), property):
            assert isinstance(vars(threads)[name], property), name
            continue
        parameters, is_async = bare(ours, name)
        expected, _ = bare(threads, name)
        assert parameters == expected, f"{kind}.{name}"
        assert is_async == (name not in ALWAYS_IMMEDIATE | {"__init__"}), f"{kind}.{name}"


def annotations(kind, name):
    """The types of parameters and of what is returned, as written, async-ness and declared differences aside."""
    attribute = vars(kind)[name]
    function = attribute.fget if isinstance(attribute, property) else inspect.unwrap(getattr(kind, name))
    allowed = DIFFERENT_PARAMETERS.get((kind.__name__, name), {})
    return {
        parameter: re.sub(r"\w+", lambda word: ASYNC_TYPES.get(word[0], word[0]), text)
        for parameter, text in inspect.get_annotations(function).items()
        if parameter not in allowed
    }


@pytest.mark.parametrize("kind", ["Client", "Worker", "Handle"])
@pytest.mark.parametrize("shell", SHELLS)
def test_methods_and_properties_take_and_return_the_same_types(shell, kind):
    ours, threads = getattr(SHELLS[shell], kind), getattr(streamfleet.sync, kind)
    for name in sorted(public(ours)):
        assert "return" in annotations(ours, name), f"{kind}.{name}"
        assert annotations(ours, name) == annotations(threads, name), f"{kind}.{name}"


@pytest.mark.parametrize("shell", SHELLS)
def test_the_names_of_types_mean_the_same(shell):
    ours = SHELLS[shell]
    assert ours.client.Payload == streamfleet.sync.client.Payload
    assert ours.worker.F.__bound__ == streamfleet.sync.worker.F.__bound__


@pytest.mark.parametrize("name", sorted(public(streamfleet.asyncio.Client) - {"__init__"}))
def test_every_public_name_is_documented_alike(name):
    """The shells differ in how they wait, never in what they promise: the same errors are named."""
    errors = [
        {word.strip("`,.;:") for word in (inspect.getdoc(getattr(shell.Client, name)) or "").split()}
        & set(streamfleet.errors.__all__)
        for shell in (streamfleet.sync, streamfleet.asyncio, streamfleet.trio)
    ]
    assert errors[0] == errors[1] == errors[2]


def test_entering_is_async():
    for shell in SHELLS.values():
        assert inspect.iscoroutinefunction(shell.Client.__aenter__)
        assert not hasattr(shell.Client, "__enter__")
