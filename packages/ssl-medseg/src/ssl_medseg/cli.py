"""The command line `ssl-medseg`. Importing it loads nothing heavy: a verb's code is imported when the verb is run."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from contrastive_core.app.cli import Verb, run
from ssl_medseg import __version__

VERBS: dict[str, Verb] = {
    "check": Verb(
        "ssl_medseg.commands.check:check", "find every problem of a data set of volumes in one pass", alone=True
    ),
    "make-splits": Verb(
        "ssl_medseg.commands.make_splits:make_splits",
        "choose labelled, unlabelled, validation and test patients, as split files",
        alone=True,
    ),
    "run": Verb(
        "ssl_medseg.commands.run:run",
        "a few labelled volumes and many others: baseline, self-training, final segmenter",
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
        "train a segmenter on the labelled volumes alone: the baseline",
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
        "ssl_medseg.commands.pretrain:pretrain", "train encoder and decoder without labels, for `train --init`"
    ),
    "selftrain": Verb(
        "ssl_medseg.selftraining.training:selftrain",
        "go on with the unlabelled volumes: consistency, copy-paste, rounds of pseudo-labels",
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
        "write masks of images that overlay on them",
        alone=True,
        common=(
            "split",
            "part",
            "mask_format",
            "probabilities",
            "uncertainty",
            "keep_largest",
            "mirroring",
            "pictures",
            "opening.channels",
            "batch_size",
            "device",
            "overwrite",
        ),
    ),
    "evaluate": Verb(
        "ssl_medseg.reports.evaluation:evaluate", "compare masks with the truth, by case and structure", alone=True
    ),
    "next": Verb(
        "ssl_medseg.commands.next_cases:next_cases",
        "rank the unlabelled cases by uncertainty: which to label next",
        alone=True,
    ),
    "report": Verb("ssl_medseg.commands.report:report", "write a run's self-contained HTML report", alone=True),
    "demo": Verb("ssl_medseg.commands.demo:demo", "the whole of it on generated hearts, in a few minutes on a CPU"),
    "export": Verb(
        "ssl_medseg.commands.export:export",
        "write a model for other programs: MONAI bundle, ONNX, torch.export",
        alone=True,
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `ssl-medseg VERB ...`; the exit status is returned."""
    words = sys.argv[1:] if argv is None else argv
    return run("ssl-medseg", VERBS, list(map(_full_flag, words)), version=__version__, configs="ssl_medseg.configs")


def _full_flag(word: str) -> str:
    """The flag of an option for opening data that is written as ``--data.NAME``, for DATA itself is a value."""
    name, equals, value = word.partition("=")
    if not name.startswith("--data."):
        return word
    option = name.removeprefix("--data.")
    return f"--{'voxel-size' if option == 'spacing' else option}{equals}{value}"
