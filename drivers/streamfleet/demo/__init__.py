"""The demonstration: a small fleet on a real server, two catastrophes, and a count of what is left.

    plan        how much of everything
    fleet       the worker processes, and what their handlers do
    journal     the handlers' own log: which task was begun and ended by whom
    appendonly  what the server has applied, read from its append-only file
    scenario    what happens, act by act
    census      the figures, and the verdict
    display     how it is told

No figure comes from a counter of the library. What was enqueued is what `Client.enqueue` returned for, and
`Client.flush` has confirmed; what ran is in the journal; what the server took is in its append-only file, which
with ``appendfsync always`` holds each write that was ever answered, in the order in which they were applied.
"""
