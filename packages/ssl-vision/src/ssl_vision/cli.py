"""The command line `ssl-vision`. Importing it is cheap: the module of a verb is imported when the verb runs."""

from __future__ import annotations

from collections.abc import Sequence

from contrastive_core.app.cli import Verb, run
from ssl_vision import __version__

VERBS = {
    "check": Verb(
        "ssl_vision.commands.check:check",
        "find all problems of an image data set in one pass",
        alone=True,
        restart=True,
    ),
    "pretrain": Verb(
        "ssl_vision.commands.pretrain:pretrain",
        "pre-train an encoder with SimCLR, SuNCEt or both",
        common=(
            *("part", "init", "epochs", "batch_size", "image_size", "temperature", "encoder.name", "optimizer.lr"),
            *("suncet.labels", "run.seed", "run.device", "run.precision", "run.workers", "run.resume"),
        ),
    ),
    "make-splits": Verb(
        "ssl_vision.commands.make_splits:make_splits",
        "select the images whose labels may be used, and write label files",
        alone=True,
    ),
    "finetune": Verb(
        "ssl_vision.training.finetuning:finetune",
        "train a classifier from a pre-trained encoder",
        common=(
            *("labels", "part", "from_layer", "classifier_init", "epochs", "batch_size", "image_size"),
            *("label_smoothing", "validate_on", "optimizer.lr", "run.seed", "run.device", "run.precision"),
            *("run.workers", "run.resume"),
        ),
    ),
    "distill": Verb(
        "ssl_vision.commands.distill:distill",
        "distil a classifier into a student",
        common=(
            *("part", "init", "encoder", "temperature", "alpha", "labels", "validate_on", "epochs", "batch_size"),
            *("image_size", "optimizer.lr", "run.seed", "run.device", "run.resume"),
        ),
    ),
    "few-labels": Verb(
        "ssl_vision.commands.few_labels:few_labels",
        "find the classifier to use with few labels: linear, nearest neighbours or fine-tuning",
        alone=True,
        common=(
            *("labels", "part", "test_part", "methods", "folds", "epochs", "seed", "batch_size", "device", "precision"),
        ),
    ),
    "linear": Verb(
        "ssl_vision.commands.linear:linear",
        "train and test a linear classifier on frozen features",
        alone=True,
        restart=True,
        common=(
            "train_part",
            "test_part",
            "labels",
            "epochs",
            "lr",
            "augment",
            "batch_size",
            "device",
            "out",
            "overwrite",
        ),
    ),
    "knn": Verb(
        "ssl_vision.commands.knn:knn",
        "classify test images by their nearest training images",
        alone=True,
        restart=True,
        common=("train_part", "test_part", "labels", "k", "temperature", "batch_size", "device", "out", "overwrite"),
    ),
    "transfer": Verb(
        "ssl_vision.commands.transfer:transfer",
        "fit the best regularised linear classifier on another data set",
        alone=True,
        restart=True,
        common=(
            "train_part",
            "test_part",
            "labels",
            "val_part",
            "val_share",
            "metric",
            "batch_size",
            "device",
            "out",
            "overwrite",
        ),
    ),
    "evaluate": Verb(
        "ssl_vision.commands.evaluate:evaluate",
        "test a classifier: accuracies, confusion, calibration",
        alone=True,
        restart=True,
        common=("part", "name", "out", "bins", "batch_size", "device", "overwrite"),
    ),
    "predict": Verb(
        "ssl_vision.commands.predict:predict",
        "classify a folder of images into a CSV file",
        alone=True,
        restart=True,
        common=("part", "top", "probabilities", "batch_size", "device", "overwrite"),
    ),
    "embed": Verb(
        "ssl_vision.commands.embed:embed",
        "write features to a file, or draw a map",
        alone=True,
        restart=True,
        common=("part", "points", "seed", "encoder", "batch_size", "device", "overwrite"),
    ),
    "report": Verb("ssl_vision.commands.report:report", "write the self-contained HTML report of a run", alone=True),
    "import-checkpoint": Verb(
        "ssl_vision.commands.import_checkpoint:import_checkpoint",
        "convert another program's checkpoint to a model folder: SimCLR (TensorFlow), torchvision, timm, lightly",
        alone=True,
    ),
    "export": Verb("ssl_vision.commands.export:export", "export a model to ONNX, torch.export or timm", alone=True),
    "demo": Verb(
        "ssl_vision.commands.demo:demo", "pre-train and classify scikit-learn's digits in a few minutes on a CPU"
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `ssl-vision VERB ...` and return the exit status."""
    return run("ssl-vision", VERBS, argv, version=__version__, configs="ssl_vision.configs")
