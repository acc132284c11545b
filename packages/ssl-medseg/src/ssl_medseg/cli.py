"""Define the command line `ssl-medseg`. The code of a command is imported only when it runs, so that help is fast."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from contrastive_core.app.cli import Verb, run
from ssl_medseg import __version__

VERBS: dict[str, Verb] = {
    "check": Verb(
        "ssl_medseg.commands.check:check", "find all problems of a data set in one pass", alone=True, restart=True
    ),
    "make-splits": Verb(
        "ssl_medseg.commands.make_splits:make_splits",
        "choose labelled, unlabelled, validation and test patients, and write split files",
        alone=True,
    ),
    "run": Verb(
        "ssl_medseg.commands.run:run",
        "train a segmenter from a few labelled and many unlabelled volumes",
        common=(
            "split",
            "labelled",
            "validation",
            "recipe",
            "effort",
            "method",
            "baseline_steps",
            "steps",
            "batch_size",
            "opening.channels",
            "cache",
            "run.seed",
            "run.device",
            "run.precision",
            "run.resume",
        ),
    ),
    "train": Verb(
        "ssl_medseg.training.supervised:train",
        "train a segmenter on the labelled volumes only (the baseline)",
        common=(
            "recipe",
            "effort",
            "steps",
            "batch_size",
            "lr",
            "loss",
            "keep",
            "init",
            "opening.channels",
            "cache",
            "run.seed",
            "run.device",
            "run.precision",
            "run.resume",
        ),
    ),
    "pretrain": Verb(
        "ssl_medseg.commands.pretrain:pretrain",
        "train encoder and decoder without labels, for `train --init`",
        common=(
            *("global_loss", "local_loss", "global_steps", "local_steps", "partitions", "temperature", "lr"),
            *("opening.channels", "cache", "run.seed", "run.device", "run.precision", "run.resume"),
        ),
    ),
    "selftrain": Verb(
        "ssl_medseg.selftraining.training:selftrain",
        "continue training with unlabelled volumes: consistency, copy-paste, rounds of pseudo-labels",
        common=(
            "method",
            "recipe",
            "effort",
            "rounds",
            "steps",
            "batch_size",
            "unlabelled_batch",
            "contrast.weight",
            "keep",
            "cache",
            "run.seed",
            "run.device",
            "run.precision",
            "run.resume",
        ),
    ),
    "predict": Verb(
        "ssl_medseg.commands.predict:predict",
        "segment images and write masks",
        alone=True,
        restart=True,
        common=(
            "split",
            "part",
            "mask_format",
            "probabilities",
            "uncertainty",
            "keep_largest",
            "tta",
            "pictures",
            "opening.channels",
            "batch_size",
            "device",
            "overwrite",
        ),
    ),
    "evaluate": Verb(
        "ssl_medseg.reports.evaluation:evaluate",
        "compare masks with reference labels",
        alone=True,
        restart=True,
        common=("split", "part", "tolerance", "name", "out", "pictures", "batch_size", "device", "overwrite"),
    ),
    "next": Verb(
        "ssl_medseg.commands.next_cases:next_cases",
        "rank unlabelled cases by uncertainty, to choose which to label next",
        alone=True,
        restart=True,
        common=("split", "number", "pictures", "batch_size", "device", "overwrite"),
    ),
    "report": Verb("ssl_medseg.commands.report:report", "write a self-contained HTML report of a run", alone=True),
    "demo": Verb(
        "ssl_medseg.commands.demo:demo", "run the complete workflow on generated hearts, in a few minutes on a CPU"
    ),
    "export": Verb(
        "ssl_medseg.commands.export:export",
        "export a model for other programs: MONAI bundle, ONNX, torch.export",
        alone=True,
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `ssl-medseg VERB ...` and return the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    return run("ssl-medseg", VERBS, list(map(_full_flag, arguments)), version=__version__, configs="ssl_medseg.configs")


def _full_flag(argument: str) -> str:
    """Translate ``--data.NAME`` to the flag of the data option NAME, because ``data`` itself is a positional value."""
    name, equals, value = argument.partition("=")
    if not name.startswith("--data."):
        return argument
    option = name.removeprefix("--data.")
    return f"--{'voxel-size' if option == 'spacing' else option}{equals}{value}"
