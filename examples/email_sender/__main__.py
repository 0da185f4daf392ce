"""Client, sender and worker in one process, to see them together.

python examples/email_sender [ADDRESS …]
"""

import sys
from contextlib import closing

from client import welcome
from server import driver
from worker import worker

from streamfleet.sync import Client

ADDRESSES = ["alice@example.com", "bob@example.com", "nobody@example.invalid"]

with closing(driver), worker.running(), Client(driver) as client:
    welcome(client, sys.argv[1:] or ADDRESSES)
