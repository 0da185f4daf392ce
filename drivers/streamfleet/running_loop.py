"""Which async library is running here, without importing one that is not."""

from __future__ import annotations

import sys


def in_trio() -> bool:
    """Is this code running under trio?"""
    trio = sys.modules.get("trio")
    if trio is None:
        return False
    try:
        trio.lowlevel.current_trio_token()
    except RuntimeError:
        return False
    return True
