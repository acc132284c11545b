"""The command line `ssl-video`. Importing it loads nothing heavy: a verb's code is imported when the verb is run."""

from __future__ import annotations

from collections.abc import Sequence

from contrastive_core.cli import Verb, run
from ssl_video import __version__

VERBS: dict[str, Verb] = {}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `ssl-video VERB ...`; the exit status is returned."""
    return run("ssl-video", VERBS, argv, version=__version__, configs="ssl_video.configs")
