"""What the processes of a campaign have in common: how they begin, and how they tell why they end."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from campaign.logfile import LogFile
from streamfleet.errors import ServerRefused

REFUSED = 3
"""Exit code of a process whose server would not work with it; the reason stands in its log."""


def ready(log: LogFile, shell: str, url: str, driver: object) -> None:
    """From here on SIGTERM is obeyed. The driver is named by what it is, not by what was asked for."""
    log.write("ready", shell, type(driver).__name__, url.partition("://")[0])


def exit_code(body: Callable[[], None], log: LogFile) -> int:
    """Run to the end. Refusals end a process in order, alone or in the group that a nursery makes of them."""
    refusals: list[ServerRefused] = []
    try:
        body()
    except* ServerRefused as group:
        refusals.extend(_leaves(group))
    for refusal in refusals:
        log.write("refused", refusal)
    return REFUSED if refusals else 0


def _leaves(group: BaseExceptionGroup[ServerRefused]) -> Iterator[ServerRefused]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
