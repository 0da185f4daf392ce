"""What to install when an optional dependency is missing: one wording for all that need one."""

from __future__ import annotations

from importlib.util import find_spec

from streamfleet_core.errors import MissingExtra


def missing_extra(what: str, extra: str, otherwise: str = "") -> MissingExtra:
    """The error to raise when ``what`` lacks the extra; ``otherwise`` is another way to mend it."""
    # Quoted for shells to which brackets mean something.
    return MissingExtra(
        f"{what} needs: pip install 'streamfleet[{extra}]'" + (f" ({otherwise})" if otherwise else "")
    )


def require(module: str, what: str, extra: str) -> None:
    """Raises MissingExtra when a module is not installed, without importing it."""
    if find_spec(module) is None:
        raise missing_extra(what, extra)
