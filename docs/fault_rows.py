"""The fault scenarios, and what becomes of a task in each; `make_faults.py` makes a page of them."""

from __future__ import annotations

from dataclasses import dataclass

CORE, SHELLS, SUITE = "tests/core/", "tests/shells/", "conformance/streamfleet_conformance/cases/"

REPLICAS = "Needs replicas, which this stage does not support yet (no Sentinel, no Cluster)."
CAMPAIGN = "tests/chaos/test_campaign.py::test_nothing_is_lost_or_doubled"
WORLDS = (
    "tests/simulation/test_worlds.py::test_a_fixed_set_of_worlds_violates_nothing",
    "tests/simulation/test_worlds.py::test_a_fresh_set_of_worlds_violates_nothing",
)
ABSENT = "Not in this stage: there is no such feature yet ({})."


@dataclass(frozen=True)
class Row:
    """A scenario. ``tests``: those without a mark of it. ``reason``: why there is none, or what they leave out."""

    number: int
    scenario: str
    outcome: str
    tests: tuple[str, ...] = ()
    reason: str = ""


def absent(number: int, scenario: str, outcome: str, feature: str) -> Row:
    """A scenario of a feature that is still to come."""
    return Row(number, scenario, outcome, reason=ABSENT.format(feature))


ENQUEUE = [
    Row(1, "The request of a batch is lost", "The marker shows a smaller number, so the batch is sent once more"),
    Row(2, "The reply to a batch is lost", "The marker shows its number, so it is not sent again"),
    Row(3, "A batch arrives after its connection was given up", "Connecting anew moved the marker: it is aborted"),
    Row(4, "The driver's library would retry by itself", "Drivers use raw connections; nothing is sent twice"),
    Row(5, "The server is killed under load, with an append-only file", "Nothing that was accepted is missing"),
    Row(
        6,
        "The server comes back empty",
        "The client sees the marker gone, says how much may be lost and sends again what it has kept",
    ),
    Row(
        7,
        "A failover loses the last transactions",
        "The marker went back: the kept batches behind it are sent again, in order",
        (CORE + "test_publishing_losses.py::test_batches_that_the_server_lost_are_sent_again",),
        "The failover itself needs replicas; a truncated file and a restored snapshot lose the same tail.",
    ),
    Row(
        8,
        "The client dies, too, before it can send the lost tail again",
        "What only the lost tail held is gone: durability is then the server's",
        reason=REPLICAS,
    ),
    Row(9, "The marker is deleted or evicted", "At-least-once for what is kept, with an event that says so"),
    Row(
        10, "No memory for new entries", "Nothing is applied; tasks wait in the bounded buffer and are sent later"
    ),
    Row(
        11,
        "The server answers, but takes no writes for now",
        "Counts as not applied and is tried again, ever more rarely",
        (CORE + "test_publishing_refusals.py::test_what_may_pass_is_waited_for_and_nothing_is_lost",),
        "CLUSTERDOWN and TRYAGAIN come from a model: a Cluster is not supported yet.",
    ),
    Row(12, "The local buffer is full", "The caller is told (`BufferFull`); what was accepted before survives"),
    Row(
        13,
        "A second batch leaves while the first one's fate is unknown",
        "Cannot happen: the reply to the WATCH behind a batch comes first",
        (
            CORE + "test_publishing.py::test_no_new_batch_leaves_before_the_old_one_is_resolved",
            CORE + "test_publishing.py::test_what_gathers_while_one_batch_is_in_flight_leaves_in_the_next",
        ),
    ),
    Row(
        14,
        "The process forks while its client is in use",
        "The child begins with an identity, connections and a marker of its own, and an empty buffer",
        (SHELLS + "test_sync.py::test_a_forked_child_has_an_identity_of_its_own",),
    ),
    Row(
        15,
        "The queue's slot migrates in mid-transaction",
        "Nothing is applied; retried at the owner",
        reason=REPLICAS,
    ),
    Row(
        16,
        "Queue names with braces in all places",
        "All keys of a queue share its slot, no two queues share a key",
        (CORE + "test_keys.py::test_all_keys_of_an_oddly_named_queue_are_in_the_slot_of_its_stream",),
    ),
]

DELIVERY = [
    Row(17, "The reply that delivers an entry is lost", "The own pending list is read first: it runs at once"),
    Row(18, "A read arrives after its connection was given up", "The entry is reclaimed after a lease, by anyone"),
    Row(19, "A worker is killed", "All that it had starts elsewhere within a lease and a scan"),
    Row(
        20,
        "A frozen worker wakes up and completes",
        "Its transaction aborts, it asks who owns the entries, drops its outcome and says so",
    ),
    Row(21, "It fails instead", "It writes no retry; the chain of attempts stays unbranched"),
    Row(22, "It would bury the task that its successor completes", "One end only: the successor's"),
    Row(23, "It beats first", "Beats are fenced like settlements and take nothing back"),
    Row(
        24,
        "A handler blocks the interpreter or the loop beyond its lease",
        "No beat can be sent: perhaps a second run, but one end; loops have a watchdog that names the handler",
        (SHELLS + "test_mirrors_threads.py::test_a_handler_that_blocks_the_loop_is_named_with_its_stack",),
    ),
    Row(25, "A task of ten leases on a healthy worker", "Never reclaimed, delivered once"),
    Row(
        26,
        "The server is down for three leases",
        "Nobody reclaims before a lease of contact: no live task is taken",
    ),
    Row(27, "A worker starts right after the outage", "The same rule holds for it"),
    Row(
        28,
        "Two workers reclaim from the same dead one",
        "Each entry is claimed once",
        (CORE + "test_reclaiming.py::test_two_claims_of_the_same_entries_at_once",),
    ),
    Row(
        29,
        "A worker whose beats stall scans",
        "It leaves out what it has in its own hands",
        (CORE + "test_reclaiming.py::test_own_running_entries_are_never_reclaimed",),
    ),
    Row(30, "A task kills each of its workers", "After so many deliveries it is a dead letter; the queue goes on"),
    Row(31, "An administrator deletes a pending entry", "It leaves the pending list, also on Redis 6.2"),
    Row(32, "An entry that cannot be read", "It becomes a dead letter with its fields as they came"),
    Row(33, "100,000 entries are pending", "Every call asks for a bounded part; none comes near 10 ms"),
    Row(
        34,
        "A thousand dead consumers",
        "Removed once they have been idle for a day and have nothing pending",
        (CORE + "test_sweeping.py::test_consumers_are_removed_after_a_day_without_anything_pending",),
    ),
    Row(35, "The consumer of a live worker is deleted", "A sweep finds the entries that have no owner; they run"),
    Row(
        36, "Group or stream deleted, or everything flushed", "The group comes back at 0; what is left runs again"
    ),
    Row(
        37,
        "The server's clock is set ten minutes forward or back",
        "Forward: second runs at most. Back: dead workers' tasks wait until the clock has caught up; after "
        "a correction the schedule may lag by one `sweep_interval`. Nothing is lost",
        reason="On real servers only where a C compiler is at hand; on the model server always.",
    ),
    Row(38, "Failover to a replica with another clock", "As above", reason=REPLICAS),
    Row(39, "A rolling deployment ends workers that hold tasks", "What has not started is given back at once"),
]

SETTLEMENT = [
    Row(
        40,
        "A worker dies after any command of a settlement",
        "Before EXEC the task runs again; after it, it ended",
    ),
    Row(41, "The reply to a settlement is lost", "The fence is moved, then the owner asked for: committed once"),
    Row(42, "A settlement arrives late", "It aborts, because the fence has moved"),
    Row(
        43,
        "A key has the wrong type",
        "Found at the start and named; if it happens later, the task goes back to its queue with an alarm",
    ),
    Row(44, "An ACL right is missing", "Nothing is applied; the worker stops and names command and user"),
    Row(
        45, "No memory to settle with", "What frees memory goes first, one by one on old servers: the queue drains"
    ),
    Row(46, "The append-only file ends within a transaction", "The transaction is absent as a whole"),
    Row(
        47,
        "Success, last failure, expiry, cancellation",
        "One terminal state and one notice in each case",
        (
            SHELLS + "test_sync.py::test_expiry_in_the_past_settles_the_task_as_expired",
            SHELLS + "test_sync.py::test_a_delayed_task_waits_and_can_be_cancelled",
            SHELLS + "test_sync.py::test_do_not_retry_is_final",
        ),
    ),
    Row(48, "A worker dies while a retry waits for its time", "The retry is in the schedule and runs when due"),
    Row(49, "One of ten outcomes in a transaction was lost to others", "Nine are committed, one is dropped"),
]

SCHEDULE = [
    Row(50, "A mover is cut off before or after its EXEC", "Each task is moved once"),
    Row(51, "Three movers race through a bad network", "None twice, none missing"),
    Row(52, "A task is cancelled while it is being moved", "One of both wins; a cancelled one never runs"),
    Row(53, "A full schedule, nothing due", "One look at the first row for each poll; measured with 100,000 rows"),
    Row(54, "10,000 tasks due at once", "Moved 500 at a time, with room for others in between"),
    absent(55, "Recurring tasks with five schedulers", "Each tick once", "recurring tasks"),
    absent(56, "Schedulers whose clocks differ", "No tick twice", "recurring tasks"),
    absent(57, "Daylight saving, or an edit while running", "One row per tick", "recurring tasks"),
]

NOTIFICATION = [
    Row(58, "A worker dies between end and notice", "Cannot: both are in one transaction"),
    Row(59, "The receiver is in another slot", "Told first, then ended: a second notice is possible and ignored"),
    Row(60, "The reply that brings a notice is lost", "The receiver is read again from its start"),
    Row(61, "A notice for a client that has gone", "Written to nowhere; no key appears"),
    Row(62, "A frozen client was collected and wakes up", "It comes back and calls its outcomes unknown"),
    Row(
        63,
        "A client beats while it is being collected",
        "Removed by comparison of its score, so it stays",
        (CORE + "test_safeguards.py::test_sweep_compare_a_client_that_beats_at_the_last_moment_is_kept",),
    ),
    Row(64, "A client whose clock is an hour off", "Never collected while its score changes"),
    Row(65, "All clients and workers close", "Only declared keys remain"),
    Row(
        66,
        "All are killed, and one worker starts",
        "It tidies up: the same keys remain",
        (SUITE + "test_notify.py::test_after_a_crash_of_everybody_one_worker_tidies_up",),
    ),
    Row(
        67,
        "Go and Python share a queue",
        "The nine base fields are always there, as text",
        reason="From the format's description; no Go program runs in the tests.",
    ),
]

FEATURES = [
    absent(68, "Five clients race for a unique key", "One is accepted", "unique keys"),
    absent(69, "A unique key passes on while its task runs", "The successor's stays", "unique keys"),
    absent(
        70,
        "A queued task is cancelled while it is delivered",
        "A cancelled one never ran",
        "cancelling queued tasks",
    ),
    absent(71, "A flood of urgent tasks", "Others get their share", "priorities"),
    absent(72, "A queue is paused during a read", "No start after one block", "pausing"),
    absent(73, "Six workers under a rate limit", "Never above it", "rate limits"),
    absent(74, "The holder of a semaphore is killed", "Freed after its lease", "semaphores"),
    Row(
        75,
        "Only a worker is cut off from the server",
        "Its handlers are told to stop before others may take over",
        (
            CORE + "test_timekeeping.py::test_handlers_are_told_to_stop_before_others_take_their_tasks_over",
            SHELLS + "mirrors/test_handlers.py::"
            "test_a_handler_without_contact_to_the_server_is_cancelled_and_its_task_runs_again",
        ),
    ),
    Row(76, "Sentinel failover under load", "All invariants hold", reason=REPLICAS),
    Row(77, "The server is killed again and again", "All invariants hold"),
    Row(78, "A slow or paused server", "No storm of reclaims, nothing enqueued twice"),
    Row(79, "Many clients that only wait", "A beat each ten seconds; one look at all of them for each sweep"),
    Row(
        80,
        "All of this at random, and each safeguard taken away",
        "The checker finds nothing with the safeguards, and something without any one of them",
        (
            CAMPAIGN,
            *WORLDS,
            "tests/simulation/test_worlds.py::test_without_a_safeguard_invariants_break",
        ),
    ),
]

SECTIONS = {
    "Enqueue": ENQUEUE,
    "Delivery, heartbeats, taking over": DELIVERY,
    "Completion, retries, dead letters": SETTLEMENT,
    "Schedule": SCHEDULE,
    "Notices, clients, garbage": NOTIFICATION,
    "Features and the whole": FEATURES,
}

VERDICT = "tests/chaos/test_verdict.py::test_each_kind_of_wrong_history_is_seen"
EVERYWHERE = (CAMPAIGN, *WORLDS)
FAULTS = "tests/faults/"

INVARIANTS: list[tuple[str, str, tuple[str, ...]]] = [
    ("I1", "An accepted task has ended, or is queued, pending or scheduled", (VERDICT, *EVERYWHERE)),
    ("I2", "It ends once", (VERDICT, *EVERYWHERE)),
    ("I3", "Its attempts form one chain", (VERDICT, *EVERYWHERE)),
    ("I4", "At most one live entry holds it", (VERDICT, *EVERYWHERE)),
    (
        "I5",
        "A task that was called cancelled never ran",
        (SUITE + "test_schedule.py::test_a_cancelled_task_never_runs", *WORLDS),
    ),
    (
        "I6",
        "A completed task has run",
        ("tests/chaos/test_verdict.py::test_a_completion_without_a_run_is_seen", *EVERYWHERE),
    ),
    (
        "I7",
        "A handle resolves once, and whoever tracks a task is told of its end",
        (VERDICT, SUITE + "test_notify.py::test_the_first_terminal_notice_counts", *EVERYWHERE),
    ),
    (
        "I8",
        "A healthy worker's entry is not reclaimed",
        (FAULTS + "test_workers.py::test_a_task_of_many_leases_is_run_once", *WORLDS),
    ),
    (
        "I9",
        "A dead worker's entries start elsewhere within a lease and a scan",
        (FAULTS + "test_workers.py::test_all_tasks_of_a_killed_worker_start_elsewhere_within_a_lease_and_a_scan",),
    ),
    ("I10", "Each recurring tick fires once", ()),
    (
        "I11",
        "Retries and deliveries stay within their limits",
        (
            CORE + "test_worker_machine.py::test_a_task_runs_once_and_then_for_each_retry",
            CORE + "test_worker_machine.py::test_an_entry_is_delivered_so_often_and_not_once_more",
            *WORLDS,
        ),
    ),
    (
        "I12",
        "After all have closed only declared keys are left",
        (SUITE + "test_life.py::test_only_declared_keys_remain", *WORLDS),
    ),
    (
        "I13",
        "Each delivered entry is pending for someone",
        (CORE + "test_sweeping.py::test_all_entries_without_an_owner_are_found_and_no_others",),
    ),
    (
        "I14",
        "No call takes 10 ms, however long the pending list",
        (FAULTS + "test_scale.py::test_no_call_is_long_while_100_000_entries_are_pending",),
    ),
    (
        "I15",
        "When faults stop, everything drains",
        EVERYWHERE,
    ),
    (
        "I16",
        "A loss that can be seen is told",
        (SUITE + "test_faults.py::test_a_lost_marker_is_noticed_and_told",),
    ),
]
NO_TICKS = "recurring tasks are not in this stage"
