"""Where the queue lives: $STREAMFLEET_URL, or a server of this process's own."""

import os

from streamfleet import driver_from_url

driver = driver_from_url(os.environ.get("STREAMFLEET_URL", "embedded://"))
