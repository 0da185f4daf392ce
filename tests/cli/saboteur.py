"""The command ``streamfleet demo`` in a world that is not as it should be: ``python saboteur.py WHAT… -- demo …``.

The client and the workers, which are started by this file too, meet the faults and lack the safeguards named.

    reply-lost      the replies to the client's first two batches are lost on their way
    no-marker       the client does not learn from the marker which batches were applied
    no-pending      workers read with NOACK: the server does not remember who has what
"""

import sys
from itertools import count

import streamfleet.cli.demo
import streamfleet.cli.run
from streamfleet.cli import main
from streamfleet.demo.plan import Plan
from streamfleet.socket_connection import SocketConnection
from streamfleet_core import safeguards
from streamfleet_core.errors import OutcomeUnknown
from streamfleet_core.link import Exchange
from streamfleet_core.reading import Reader

RUNS_WORKER = "run" in sys.argv
LOST_REPLIES = 2


def reply_lost():
    if RUNS_WORKER:
        return
    exchange, batches = SocketConnection.exchange, count(1)

    def lossy(self, commands, timeout):
        replies = exchange(self, commands, timeout)
        if any(command[0] == "XADD" for command in commands) and next(batches) <= LOST_REPLIES:
            raise OutcomeUnknown("the reply was lost")
        return replies

    SocketConnection.exchange = lossy


def no_marker():
    safeguards.applied_batch = lambda stored: 0


def no_pending():
    pull = Reader.pull

    def forgetful(self, now):
        exchange = pull(self, now)
        if exchange is None or not exchange.blocking:
            return exchange
        command = exchange.commands[0]
        at = command.index("STREAMS")
        return Exchange([(*command[:at], "NOACK", *command[at:])], exchange.timeout, blocking=True)

    Reader.pull = forgetful


SABOTAGE = {"reply-lost": reply_lost, "no-marker": no_marker, "no-pending": no_pending}

if __name__ == "__main__":
    border = sys.argv.index("--")
    chosen, arguments = sys.argv[1:border], sys.argv[border + 1 :]
    for name in chosen:
        SABOTAGE[name]()
    streamfleet.cli.demo.QUICK = Plan(
        tasks=200,
        task_seconds=0.04,
        lease=1.5,
        down=0.5,
        patience=8.0,
        run=(sys.executable, __file__, *chosen, "--", "run"),
    )
    sys.exit(main(arguments))
