"""The data of the experiments with few labels: half of CIFAR-10's training images, so that a CPU can see them often.

Links, not copies: `OUT/train/<class>/` holds the first 2,500 files of every class, `OUT/test` is the whole test set.
"""

from __future__ import annotations

from pathlib import Path

PER_CLASS = 2500


def half_of(cifar10: Path, out: Path) -> Path:
    """Make the folder, unless it is there; returns it."""
    if not (out / "test").exists():
        for folder in sorted(path for path in (cifar10.resolve() / "train").iterdir() if path.is_dir()):
            (out / "train" / folder.name).mkdir(parents=True, exist_ok=True)
            for image in sorted(folder.iterdir())[:PER_CLASS]:
                (out / "train" / folder.name / image.name).symlink_to(image)
        (out / "test").symlink_to(cifar10.resolve() / "test")
    return out
