"""Report the backend in use and why others are unavailable, or compile the native backend (`build`)."""

from __future__ import annotations

import argparse
import subprocess
import sys

from contrastive_core._info import info
from contrastive_core.native.build import BuildError, build_cpu
from contrastive_core.native.library import cache_folder


def main() -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m contrastive_core", description=__doc__)
    commands = parser.add_subparsers(dest="command", metavar="build")
    commands.add_parser("build", help="compile the native backend for this machine and store it in the user's cache")
    arguments = parser.parse_args()
    if arguments.command is None:
        print(info())
        return 0
    try:
        print(f"built {build_cpu(cache_folder())}", flush=True)
    except BuildError as error:
        print(f"python -m contrastive_core build: {error}", file=sys.stderr)
        return 1
    # Report from a new process, because this one may have loaded an older library.
    return subprocess.run([sys.executable, "-m", "contrastive_core"], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
