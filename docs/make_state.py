"""Writes the page on the states of a delivery from the core's transition table.

python docs/make_state.py docs/reference/state.md      (or `make docs`)
"""

from __future__ import annotations

import sys
from pathlib import Path

from streamfleet_core.state import TERMINAL, TRANSITIONS, Phase

INTRODUCTION = """\
# States of a delivery

<!-- Made by `make docs` from streamfleet_core/state.py; do not edit. -->

A stream entry that the server has handed to a worker is a *delivery* there, until it is settled, given back
or lost. The table is the one that the core checks at every move. Why each move is safe stands at the top of
`streamfleet_core/state.py`; what goes over the wire, in the protocol reference.
"""


def diagram() -> str:
    """The transitions as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", "    [*] --> READY: the server delivers the entry"]
    for phase, targets in TRANSITIONS.items():
        # A colon or semicolon would end the label.
        labels = {target: why.replace(":", ",").replace(";", ",") for target, why in targets.items()}
        lines += [f"    {phase.name} --> {target.name}: {label}" for target, label in labels.items()]
    lines += [f"    {phase.name} --> [*]" for phase in Phase if phase in TERMINAL]
    return "\n".join(lines)


def phases() -> str:
    """What each phase means, as a table."""
    rows = ["| phase | meaning | ends |", "| --- | --- | --- |"]
    rows += [f"| `{phase.name}` | {phase.value} | {'yes' if phase in TERMINAL else ''} |" for phase in Phase]
    return "\n".join(rows)


def moves() -> str:
    """The transitions as a table."""
    rows = ["| from | to | when |", "| --- | --- | --- |"]
    for phase, targets in TRANSITIONS.items():
        rows += [f"| `{phase.name}` | `{target.name}` | {why} |" for target, why in targets.items()]
    return "\n".join(rows)


def page() -> str:
    """The whole page."""
    return (
        f"{INTRODUCTION}\n```mermaid\n{diagram()}\n```\n\n## Phases\n\n{phases()}\n\n## Moves\n\n{moves()}\n\n"
        "A delivery can be *in doubt* in any phase that is not terminal: whether it is still ours is then asked "
        "of the server before anything is written for it. Doubt is no phase; a running task goes on running.\n"
    )


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
