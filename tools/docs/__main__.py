"""Write the reference pages of docs/ from docstrings and signatures, or check that they are what the code says.

`python -m tools.docs` writes every page and deletes generated ones that are no more; with --check it changes nothing,
and its exit status is 1 if a page differs.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.docs.commands import render_command, render_overview
from tools.docs.python import render_module
from tools.results import ROOT

MARK = "<!-- Written by `tools/run docs` from the docstrings; edit those. -->\n"

# Page -> title and modules, by package.
PYTHON: dict[str, dict[str, tuple[str, list[str]]]] = {
    "contrastive-core": {
        "losses": ("Losses", ["contrastive_core.losses", "contrastive_core.memory_bank"]),
        "heads": ("Projection heads", ["contrastive_core.heads"]),
        "optim": ("Optimiser and schedule", ["contrastive_core.optim"]),
        "grad_cache": ("Batches larger than memory", ["contrastive_core.grad_cache"]),
        "similarity": ("The similarity primitive", ["contrastive_core.similarity"]),
        "distributed": ("Several processes", ["contrastive_core.distributed"]),
        "train": (
            "The training engine",
            ["contrastive_core.training", "contrastive_core.training.launch", "contrastive_core.errors"],
        ),
        "pseudo_label": ("Pseudo-labels", ["contrastive_core.pseudo_label"]),
        "classification": ("How good class probabilities are", ["contrastive_core.metrics"]),
        "random": ("Randomness as a function", ["contrastive_core.rng"]),
        "cli": ("Command lines from functions", ["contrastive_core.app.cli"]),
        "findings": ("What a check finds", ["contrastive_core.app.checks"]),
    },
    "ssl-medseg": {
        "data": ("Data sets, label maps and splits", ["ssl_medseg.data", "ssl_medseg.checking"]),
        "geometry": (
            "Volumes, slices and the way back",
            [
                "ssl_medseg.volumes",
                "ssl_medseg.volumes.dicom_seg",
                "ssl_medseg.preprocessing",
                "ssl_medseg.prepared_cases",
                "ssl_medseg.prediction.segment",
            ],
        ),
        "networks": (
            "Networks, losses and model folders",
            [
                "ssl_medseg.models",
                "ssl_medseg.losses.dice",
                "ssl_medseg.losses.segmentation",
                "ssl_medseg.model_folder",
            ],
        ),
        "training": (
            "Pieces of a training loop",
            [
                "ssl_medseg.training_data",
                "ssl_medseg.slices",
                "ssl_medseg.augment",
                "ssl_medseg.batches",
                "ssl_medseg.validation",
                "ssl_medseg.inference",
                "ssl_medseg.keeping",
                "ssl_medseg.optimization",
                "ssl_medseg.pace",
            ],
        ),
        "pretraining": (
            "Pre-training without labels",
            [
                "ssl_medseg.pretraining.networks",
                "ssl_medseg.pretraining.batches",
                "ssl_medseg.pretraining.stages",
                "ssl_medseg.pretraining.trunk_folder",
                "ssl_medseg.losses.global_contrastive",
                "ssl_medseg.losses.local_regions",
            ],
        ),
        "selftraining": (
            "Pseudo-labels and joint training",
            [
                "ssl_medseg.selftraining.options",
                "ssl_medseg.selftraining.pseudo_labels",
                "ssl_medseg.selftraining.rounds",
                "ssl_medseg.selftraining.pairing",
                "ssl_medseg.selftraining.terms",
                "ssl_medseg.selftraining.contrast_term",
                "ssl_medseg.selftraining.student",
                "ssl_medseg.selftraining.pool",
                "ssl_medseg.selftraining.withheld",
                "ssl_medseg.crf",
            ],
        ),
        "scoring": ("Scores of masks", ["ssl_medseg.scoring", "ssl_medseg.scoring.measure"]),
        "phantom": ("The phantom", ["ssl_medseg.phantom"]),
    },
    "ssl-vision": {
        "methods": ("Methods", ["ssl_vision.methods"]),
        "models": ("Encoders and model folders", ["ssl_vision.models", "ssl_vision.model_folder"]),
        "augment": (
            "Augmentation",
            ["ssl_vision.augment", "ssl_vision.augment.ops_simclr", "ssl_vision.augment.ops_torchvision"],
        ),
        "data": ("Data", ["ssl_vision.data", "ssl_vision.label_files", "ssl_vision.checking"]),
        "evaluation": (
            "Features and evaluation",
            [
                "ssl_vision.features",
                "ssl_vision.neighbours",
                "ssl_vision.probe",
                "ssl_vision.logistic",
                "ssl_vision.scores",
                "ssl_vision.classifier_score",
                "ssl_vision.prediction_files",
            ],
        ),
    },
    "ssl-video": {
        "method": (
            "The method",
            [
                "ssl_video.method",
                "ssl_video.targets",
                "ssl_video.losses",
                "ssl_video.adaptation",
                "ssl_video.diagnostics",
            ],
        ),
        "views": ("Views", ["ssl_video.views"]),
        "data": (
            "Data and splits",
            [
                "ssl_video.data",
                "ssl_video.data.pytorchvideo",
                "ssl_video.flow_cache",
                "ssl_video.splits",
                "ssl_video.official_lists",
                "ssl_video.checking",
            ],
        ),
        "augment": ("Augmentation", ["ssl_video.augment"]),
        "testing": (
            "Models and testing",
            ["ssl_video.model_folder", "ssl_video.testing", "ssl_video.recognition_score", "ssl_video.tested_network"],
        ),
        "models": ("Networks and batch norm", ["ssl_video.models", "ssl_video.view_norm", "ssl_video.recalibration"]),
    },
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="report what differs instead of writing")
    check = parser.parse_args(argv).check
    wanted = pages()
    folders = [ROOT / "docs" / package / "reference" for package in PYTHON]
    present = {path for folder in folders for path in folder.rglob("*.md")}
    problems = [f"{path.relative_to(ROOT)} is generated no more" for path in sorted(present - set(wanted))]
    for path, text in wanted.items():
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        problems.append(f"{path.relative_to(ROOT)} differs from the code")
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    if not check:
        for path in present - set(wanted):
            path.unlink()
        return 0
    if problems:
        print("\n".join([*problems, "run `tools/run docs` (python -m tools.docs)"]), file=sys.stderr)
    return int(bool(problems))


def pages() -> dict[Path, str]:
    """Every generated page."""
    found: dict[Path, str] = {}
    for package, rooms in PYTHON.items():
        folder = ROOT / "docs" / package / "reference"
        listed = [f"- [{title}]({page}.md): {_in_code(modules)}" for page, (title, modules) in rooms.items()]
        index = [f"# Reference of {package}"]
        for page, (title, modules) in rooms.items():
            found[folder / f"{page}.md"] = _page(f"# {title}", *map(render_module, modules))
        cli = importlib.util.find_spec(f"{package.replace('-', '_')}.cli")
        verbs = getattr(importlib.import_module(f"{package.replace('-', '_')}.cli"), "VERBS", {}) if cli else {}
        for name, verb in verbs.items():
            found[folder / "commands" / f"{name}.md"] = _page(render_command(package, name, verb))
        recipes = sorted((ROOT / "packages" / package / "src" / package.replace("-", "_") / "configs").glob("*.yaml"))
        if recipes:
            found[folder / "recipes.md"] = _page("# Recipes for `--config`", *map(_recipe, recipes))
            index.append("[Recipes](recipes.md) for `--config`: " + _in_code([path.stem for path in recipes]) + ".")
        if verbs:
            index += ["## Commands", render_overview(package, verbs, folder="commands")]
        found[folder / "README.md"] = _page(*index, "## Python", "\n".join(listed))
    return found


def _recipe(path: Path) -> str:
    """What a recipe says of itself, and its values."""
    lines = path.read_text(encoding="utf-8").splitlines()
    about = [line.removeprefix("#").strip() for line in lines if line.startswith("#")]
    values = "\n".join(line for line in lines if not line.startswith("#"))
    return f"## `{path.stem}`\n\n" + "\n".join(about) + f"\n\n```yaml\n{values}\n```"


def _in_code(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _page(*parts: str) -> str:
    return "\n\n".join([MARK, *parts]).replace("\n\n\n", "\n\n") + "\n"


if __name__ == "__main__":
    sys.exit(main())
