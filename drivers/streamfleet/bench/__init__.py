"""How fast it is: ``streamfleet bench``.

Each scenario is run by each *contender* in turn, on one embedded server without persistence, and the whole is
repeated: what the machine does besides falls on all of them. The contender to compare with is the *floor*: a
bare socket and hiredis, without any safeguard. The ratios are what counts; the figures move with the machine.

    orders        what an agent is to do, and what it reports
    floor, threads, asyncio, trio   the contenders' agents; coroutines: what the last two share
    agent, process   an agent's process, from within and from without
    scenarios     what is measured
    table         the rows, their goals, and how they are printed
"""
