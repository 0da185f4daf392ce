"""The client: hands messages to the queue, and can wait for what becomes of them.

python client.py alice@example.com bob@example.com
"""

import sys
from contextlib import closing

from message import QUEUE, Message
from server import driver

from streamfleet import TaskFailed
from streamfleet.sync import Client, Handle


def send_later(client: Client, message: Message) -> Handle:
    """Mail servers like to say "not now": try six times, after 0.2 s, 0.4 s, 0.8 s …"""
    return client.enqueue_tracked(QUEUE, message.encode(), max_retries=5, retry_delay=0.2, expires_in=3600)


def welcome(client: Client, addresses: list[str]) -> None:
    """Send a welcome to each address, and tell how it went."""
    handles = {to: send_later(client, Message(to, "Welcome", f"Hello {to}!")) for to in addresses}
    for to, handle in handles.items():
        try:
            print((handle.wait(timeout=60) or b"").decode(), flush=True)
        except TaskFailed as error:
            print(f"{to}: {error}", flush=True)


if __name__ == "__main__":
    with closing(driver), Client(driver) as client:
        welcome(client, sys.argv[1:])
