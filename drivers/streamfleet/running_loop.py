"""Which async library is running here, without importing one that is not."""

from __future__ import annotations

import asyncio
import sys
from typing import Literal

from streamfleet_core.errors import WrongDriver


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


def running_library(driver: str) -> Literal["asyncio", "trio"]:
    """Which of the two runs here. Raises WrongDriver, on behalf of a driver class, when neither does."""
    if in_trio():
        return "trio"
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise WrongDriver(
            f"{driver}.connect_async serves asyncio and trio, but neither is running here: call it from within "
            "asyncio.run() or trio.run(), or use connect() in threads"
        ) from None
    return "asyncio"
