import inspect
import re

import pytest

from streamfleet_core import errors

CLASSES = {
    name: value
    for name, value in vars(errors).items()
    if inspect.isclass(value) and issubclass(value, Exception) and value.__module__ == errors.__name__
}


def drawn() -> dict[str, str]:
    """The parent of each class, as the tree in the module's text says."""
    parents: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for line in errors.__doc__.splitlines():
        match = re.match(r"(    [│├└─ ]*)([A-Z]\w+)", line)
        if match is None:
            continue
        depth, name = len(match.group(1)), match.group(2)
        above = [(at, parent) for at, parent in above if at < depth]
        parents[name] = above[-1][1] if above else ""
        above.append((depth, name))
    return parents


def test_the_tree_is_complete_and_right():
    tree = drawn()
    assert set(tree) == set(CLASSES)
    for name, parent in tree.items():
        assert CLASSES[name].__bases__[0].__name__ == (parent or "Exception")


def test_handlers_signals_are_not_errors_of_the_library():
    assert not issubclass(errors.HandlerSignal, errors.StreamfleetError)


@pytest.mark.parametrize("builtin", [(errors.UsageError, ValueError), (errors.MissingExtra, ImportError)])
def test_errors_that_others_expect_under_a_builtin_name(builtin):
    ours, theirs = builtin
    assert issubclass(ours, theirs)


def test_retry_later_says_when_and_why():
    assert errors.RetryLater(2.5).delay == 2.5
    assert str(errors.RetryLater(2.5)) == "retry in 2.5 s"
    assert str(errors.RetryLater(0, "the printer is busy")) == "the printer is busy"


@pytest.mark.parametrize("delay", [-1, -0.001, float("nan")])
def test_retry_later_refuses_a_delay_before_now(delay):
    with pytest.raises(ValueError, match="zero or more"):
        errors.RetryLater(delay)
