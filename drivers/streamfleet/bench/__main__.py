"""``python -m streamfleet.bench``: the benchmark without the rest of the command line."""

import argparse
import sys

from streamfleet.bench.command import add_arguments, command

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m streamfleet.bench")
    add_arguments(parser)
    sys.exit(command(parser.parse_args()))
