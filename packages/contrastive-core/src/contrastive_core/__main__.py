"""`python -m contrastive_core`: report the backend in use, and why others are not; `build` compiles the fast one."""

from __future__ import annotations

import argparse
import subprocess
import sys

from contrastive_core._info import info
from contrastive_core.native.build import BuildError, build_cpu
from contrastive_core.native.library import cache_folder


def main() -> int:
    """Run one command line."""
    parser = argparse.ArgumentParser(prog="python -m contrastive_core", description=__doc__)
    commands = parser.add_subparsers(dest="command", metavar="build")
    commands.add_parser("build", help="compile the library for this machine's processor into the user's cache")
    arguments = parser.parse_args()
    if arguments.command is None:
        print(info())
        return 0
    try:
        print(f"built {build_cpu(cache_folder())}", flush=True)
    except BuildError as error:
        print(f"python -m contrastive_core build: {error}", file=sys.stderr)
        return 1
    # In a process of its own: this one may hold an older library.
    return subprocess.run([sys.executable, "-m", "contrastive_core"], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
