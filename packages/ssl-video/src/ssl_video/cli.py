"""The command line `ssl-video`. Importing it loads nothing heavy; a verb is imported when it runs."""

from __future__ import annotations

from collections.abc import Sequence

from contrastive_core.app.cli import Verb, run
from ssl_video import __version__

VERBS = {
    "check": Verb("ssl_video.commands.check:check", "find every problem of a set of videos in one pass", alone=True),
    "make-splits": Verb(
        "ssl_video.commands.make_splits:make_splits",
        "choose labelled, validation and test videos, as files",
        alone=True,
    ),
    "flow": Verb("ssl_video.commands.flow:flow", "compute the optical flow of all videos once", alone=True),
    "train": Verb(
        "ssl_video.commands.train:train",
        "train with few labels: MvPL, FixMatch or labels alone",
        common=(
            *("recipe", "method", "views", "steps", "batch_size", "image_size", "clip.frames", "network.name"),
            *("pseudo.threshold", "validate_every", "optimizer.lr", "seed", "device", "workers", "resume"),
        ),
    ),
    "evaluate": Verb(
        "ssl_video.commands.evaluate:evaluate",
        "test a network: each view and all together, per class, confusion",
        alone=True,
        common=(
            *("split", "part", "views", "clips", "crops", "to_the_end", "flow_cache", "max_bad", "reader", "out"),
            *("device", "network", "overwrite"),
        ),
    ),
    "report": Verb("ssl_video.commands.report:report", "write a run's self-contained HTML report", alone=True),
    "predict": Verb(
        "ssl_video.commands.predict:predict",
        "classify videos into a CSV file and a sheet of pictures",
        alone=True,
        common=("views", "top", "clips", "crops", "sheet", "flow_cache", "reader", "device", "network", "overwrite"),
    ),
    "export": Verb(
        "ssl_video.commands.export:export",
        "write a network for other programs: ONNX, torch.export, weights",
        alone=True,
    ),
    "demo": Verb("ssl_video.commands.demo:demo", "run everything on generated clips, in a few minutes on a CPU"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `ssl-video VERB ...`; the exit status is returned."""
    return run("ssl-video", VERBS, argv, version=__version__, configs="ssl_video.configs")
