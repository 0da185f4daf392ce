"""``streamfleet demo``: a fleet, two catastrophes, and a count of what is left."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from dataclasses import replace
from typing import Any

from streamfleet.cli.arguments import add_verbose, positive
from streamfleet.cli.logs import log_to_stderr
from streamfleet.demo.display import display_for
from streamfleet.demo.plan import QUICK, Plan
from streamfleet.demo.scenario import run
from streamfleet_core.errors import UsageError

LEAST_TASKS = 100
"""With fewer, everything is over before a catastrophe can happen."""


def add_to(commands: Any) -> None:
    """Add this command to the parser's."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "demo",
        help="see that nothing is lost, on a real server",
        description="Start an embedded server and three worker processes, enqueue tasks, kill a worker in "
        "mid-task, kill the server, and count what is left. Exit code 1 when a task was lost or enqueued twice.",
    )
    parser.add_argument("--tasks", type=positive, metavar="N", help=f"how many (default {Plan().tasks:,})")
    parser.add_argument("--quick", action="store_true", help="fewer tasks, shorter lease and outage")
    parser.add_argument("--json", action="store_true", help="the figures as JSON on stdout, the story on stderr")
    add_verbose(parser)
    parser.set_defaults(command=command)


def command(arguments: argparse.Namespace, plan: Plan | None = None) -> int:
    """Run it. Returns 0 when every promise was kept, else 1. Raises what `scenario.run` raises."""
    chosen = plan or (QUICK if arguments.quick else Plan())
    if arguments.tasks:
        if arguments.tasks < LEAST_TASKS:
            raise UsageError(f"--tasks must be at least {LEAST_TASKS}: with fewer, all is over too soon")
        chosen = replace(chosen, tasks=arguments.tasks)
    if arguments.verbose:
        log_to_stderr(verbose=True)
    else:
        logging.getLogger("streamfleet").addHandler(logging.NullHandler())  # the story says it all
    with display_for(sys.stderr if arguments.json else sys.stdout) as display:
        figures = run(chosen, display, loud=arguments.verbose)
    display.line("result", f"{figures} · {figures.seconds:g} s")
    if not figures.good:
        display.line("", "a promise was broken")
    if arguments.json:
        print(json.dumps(figures.as_dict()))
    return 0 if figures.good else 1
