"""The command ``streamfleet``.

Exit codes: 0 it went well, 1 the job failed, 2 it was asked for in a wrong way (or an extra is missing), 3 the
server cannot be reached or refuses. Errors are one line on stderr; ``-v`` adds the traceback.
"""

from streamfleet.cli.command import main

__all__ = ["main"]
