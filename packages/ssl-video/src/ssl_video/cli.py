"""The command line `ssl-video`. Importing it is cheap: the module of a verb is imported when the verb runs."""

from __future__ import annotations

from collections.abc import Sequence

from contrastive_core.app.cli import Verb, run
from ssl_video import __version__

VERBS = {
    "check": Verb(
        "ssl_video.commands.check:check", "find all problems of a set of videos in one pass", alone=True, restart=True
    ),
    "make-splits": Verb(
        "ssl_video.commands.make_splits:make_splits",
        "draw labelled, validation and test videos and write split files",
        alone=True,
    ),
    "flow": Verb(
        "ssl_video.commands.flow:flow", "compute the optical flow of all videos once", alone=True, restart=True
    ),
    "train": Verb(
        "ssl_video.commands.train:train",
        "train with few labels: MvPL, FixMatch or labels alone",
        common=(
            *("recipe", "method", "views", "steps", "batch_size", "image_size", "clip.frames", "network.name"),
            *("pseudo.threshold", "optimizer.lr", "seed", "device", "workers", "resume"),
        ),
    ),
    "evaluate": Verb(
        "ssl_video.commands.evaluate:evaluate",
        "test a network: each view, all views, classes and confusion matrix",
        alone=True,
        restart=True,
        common=(
            *("split", "part", "views", "clips", "crops", "to_the_end", "flow_cache", "max_bad", "reader", "out"),
            *("device", "network", "overwrite"),
        ),
    ),
    "report": Verb("ssl_video.commands.report:report", "write the self-contained HTML report of a run", alone=True),
    "predict": Verb(
        "ssl_video.commands.predict:predict",
        "classify videos into a CSV file and a contact sheet",
        alone=True,
        restart=True,
        common=("views", "top", "clips", "crops", "sheet", "flow_cache", "reader", "device", "network", "overwrite"),
    ),
    "export": Verb(
        "ssl_video.commands.export:export",
        "export a network to ONNX, torch.export or safetensors",
        alone=True,
    ),
    "demo": Verb("ssl_video.commands.demo:demo", "run all steps on generated clips, in a few minutes on a CPU"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `ssl-video VERB ...` and return the exit status."""
    return run("ssl-video", VERBS, argv, version=__version__, configs="ssl_video.configs")
