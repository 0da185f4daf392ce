"""The conformance suite of streamfleet.

    python -m streamfleet_conformance --shell sync --driver redis --server valkey-9.1

A driver from elsewhere is described by a subclass of `Harness` and named by ``--harness module:attribute``.
"""

from streamfleet_conformance.harness import Harness

__all__ = ["Harness"]
