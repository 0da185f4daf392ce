"""``python -m simulation``: many seeds, or one of them with its story."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from .ablations import ABLATIONS, without
from .campaign import Report, parts, survey
from .plan import PROFILES, draw
from .shrink import describe, shrink
from .world import run

SHOWN = 5
"""Violating seeds of which more than the number is told."""
MODES = {"mixed": "", "liveness": "liveness"}
"""What is looked at, and the profile that shows it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exits with 1 when an invariant was violated; without a safeguard, when none was within the stated number."""
    parser = argparse.ArgumentParser(prog="simulation", description="Lives through worlds on a virtual clock.")
    parser.add_argument("--seeds", type=int, default=0, help="how many worlds")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="replay this world and tell its story")
    parser.add_argument("--profile", choices=PROFILES, default="", help="all worlds of one sort")
    parser.add_argument(
        "--mode", choices=MODES, default="mixed", help="liveness: all faults stop while much is left to do"
    )
    parser.add_argument("--without", choices=ABLATIONS, default="", metavar="SAFEGUARD", help=" ".join(ABLATIONS))
    parser.add_argument("--no-shrink", action="store_true", help="do not look for the essence of a violation")
    options = parser.parse_args(arguments)
    ablation = ABLATIONS.get(options.without)
    profile = options.profile or MODES[options.mode] or (ablation.profile if ablation else "")
    shrinking = not options.no_shrink
    if options.seed is not None:
        return replay(options.seed, profile, options.without, shrinking=shrinking)
    if options.without:
        seeds = options.seeds or ABLATIONS[options.without].within
        return missed(range(options.first, options.first + seeds), profile, options.without, shrinking=shrinking)
    return many(range(options.first, options.first + (options.seeds or 2000)), profile, shrinking=shrinking)


def many(seeds: range, profile: str, *, shrinking: bool) -> int:
    """Many worlds; of the first that violate something, how, and the essence of the very first."""
    total = Report()
    began = time.perf_counter()
    for report in parts(seeds, profile):
        for seed, violations in report.violating.items():
            if len(total.violating) < SHOWN:
                _tell(seed, violations, profile, "")
            total.violating[seed] = violations
        total.add(report)
    if total.violating and shrinking:
        _essence(min(total.violating), profile, "")
    counts = total.counts
    print(
        f"tasks {counts['tasks']}, handlers started {counts['runs']}, faults {counts['faults']}, "
        f"taken over {counts['reclaimed']}, lost with the server's data {counts['lost']}, "
        f"ran more than once {counts['recovered']}; {time.perf_counter() - began:.0f} s"
    )
    print(total.liveness)
    print(total.summary)
    return 1 if total.violations else 0


def missed(seeds: range, profile: str, name: str, *, shrinking: bool) -> int:
    """Is a safeguard that was taken away missed? 0: it is, soon enough."""
    within = ABLATIONS[name].within
    report = survey(seeds, profile, ablation=name, first_only=True)
    if not report.violating:
        print(f"{name}: not found in {report.seeds} seeds, within {within} stated")
        return 1
    ((seed, violations),) = report.violating.items()
    _tell(seed, violations, profile, name)
    if shrinking:
        _essence(seed, profile, name)
    print(f"{name}: found at seed {seed}, within {within} stated")
    return 0 if report.seeds <= within else 1


def _command(seed: int, profile: str, ablation: str) -> str:
    extra = f" PROFILE={profile}" if profile else ""
    if ablation:
        stated = ABLATIONS[ablation].profile
        extra = f" WITHOUT={ablation}" + ("" if profile == stated else extra)
    return f"make simulate SEED={seed}{extra}"


def _tell(seed: int, violations: list[tuple[str, str]], profile: str, ablation: str) -> None:
    invariant, text = violations[0]
    print(f"seed {seed} violates {invariant}: {text}\n  replay: {_command(seed, profile, ablation)}", flush=True)


def _essence(seed: int, profile: str, ablation: str) -> None:
    with without(ablation):
        plan = draw(seed, profile)
        invariant = run(plan).violations[0][0]
        smallest = shrink(plan, invariant)
        print(f"\nthe essence of seed {seed}, which violates {invariant}:\n{describe(smallest)}")
        result = run(smallest, keep_trace=True)
        print("\n".join(result.lines or ()), end="\n\n")


def replay(seed: int, profile: str, ablation: str, *, shrinking: bool) -> int:
    """One world: who did what, when. Its exit code is that of many worlds with this one among them."""
    with without(ablation):
        plan = draw(seed, profile)
        result = run(plan, keep_trace=True)
    print(describe(plan))
    print("\n".join(result.lines or ()))
    for invariant, text in result.violations:
        print(f"violated {invariant}: {text}")
    if result.violations and shrinking:
        _essence(seed, profile, ablation)
    total = Report(1, result.hours, result.events, result.counts)
    if result.violations:
        total.violating[seed] = result.violations
    print(total.summary)
    return 1 if bool(result.violations) != bool(ablation) else 0
