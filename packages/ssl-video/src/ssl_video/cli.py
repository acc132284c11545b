"""The command line `ssl-video`. Importing it loads nothing heavy: a verb's code is imported when the verb is run."""

from __future__ import annotations

from collections.abc import Sequence

from contrastive_core.app.cli import Verb, run
from ssl_video import __version__

VERBS = {
    "check": Verb("ssl_video.commands.check:check", "find every problem of a set of videos in one pass", alone=True),
    "make-splits": Verb(
        "ssl_video.commands.make_splits:make_splits",
        "choose what is learned from, with few labels, and what is kept for testing",
        alone=True,
    ),
    "flow": Verb(
        "ssl_video.commands.flow:flow", "compute the optical flow of all videos once, to train on", alone=True
    ),
    "train": Verb("ssl_video.commands.train:train", "train with few labels: MvPL, FixMatch or supervised"),
    "evaluate": Verb(
        "ssl_video.commands.evaluate:evaluate",
        "test a network on kept videos: each view and all together, per class, confusion",
        alone=True,
    ),
    "report": Verb("ssl_video.commands.report:report", "write a run's self-contained HTML report", alone=True),
    "predict": Verb(
        "ssl_video.commands.predict:predict", "classify a folder of videos into a CSV file and a sheet", alone=True
    ),
    "export": Verb(
        "ssl_video.commands.export:export",
        "write a network for other programs: ONNX, torch.export, weights",
        alone=True,
    ),
    "demo": Verb("ssl_video.commands.demo:demo", "the whole of it on generated clips, in a few minutes on a CPU"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `ssl-video VERB ...`; the exit status is returned."""
    return run("ssl-video", VERBS, argv, version=__version__, configs="ssl_video.configs")
