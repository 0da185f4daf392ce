"""``python -m streamfleet`` is the command ``streamfleet``."""

import sys

from streamfleet.cli import main

sys.exit(main())
