"""The package `campaign` lies beside this file; its processes are started with the same path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
