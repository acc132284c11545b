"""Count the source files involved in six common tasks: ``python -m tools.ways [TASK ...]``.

Each task runs under a profile hook. The source files whose functions run are divided into those that *transform the
value* (a function in them returns a new tensor, array, or an object that contains one) and those that only help
(checks, names, options). The first number is the number of files that a reader opens to follow the value. It is
compared with the number, counted in the same manner, before the packages were reorganised.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = f"{ROOT / 'packages'}{os.sep}"

_SMALL = 16
_PARTS = ("<module>", "<listcomp>", "<dictcomp>", "<setcomp>", "<genexpr>")

BEFORE = {"loss": 10, "view": 10, "batch": 14, "mask": 11, "selftraining": 14, "clip": 15}
"""Number of files that transformed the value at d0b6090, before the packages were reorganised, counted by `follow`."""

Way = Callable[[Path], AbstractContextManager[Callable[[], object]]]
"""Function that prepares a task in an empty folder and returns the call to profile."""


def follow(call: Callable[[], object]) -> tuple[set[str], set[str]]:
    """Run a call and return the files that transform the value, and the other files whose functions ran."""
    transform_files, active_files = set(), set()

    def hook(frame: FrameType, event: str, result: object) -> None:
        file = frame.f_code.co_filename
        # A comprehension belongs to its function, although it has a separate frame before Python 3.12.
        if not file.startswith(PACKAGES) or frame.f_code.co_name in _PARTS:
            return
        active_files.add(file)
        if event == "return" and (new := set(_values(result))):
            inputs = {
                value
                for name, variable in frame.f_locals.items()
                if name in _arguments(frame)
                for value in _values(variable)
            }
            if new - inputs:
                transform_files.add(file)

    sys.setprofile(hook)
    try:
        call()
    finally:
        sys.setprofile(None)
    return transform_files, active_files - transform_files


def _arguments(frame: FrameType) -> tuple[str, ...]:
    code = frame.f_code
    return code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]


def _values(node: object, depth: int = 2) -> Iterator[int]:
    """Yield the identities of the arrays in an object, except small arrays without gradient such as affine matrices."""
    if isinstance(node, torch.Tensor):
        if node.numel() > _SMALL or node.requires_grad:
            yield id(node)
    elif isinstance(node, np.ndarray):
        if node.size > _SMALL:
            yield id(node)
    elif depth and isinstance(node, Mapping):
        for value in node.values():
            yield from _values(value, depth - 1)
    elif depth and isinstance(node, Sequence) and not isinstance(node, str | bytes):
        for value in node[:8]:
            yield from _values(value, depth - 1)
    elif depth and is_dataclass(node) and not isinstance(node, type):
        for field in fields(node):
            yield from _values(getattr(node, field.name, None), depth - 1)


@contextlib.contextmanager
def loss(folder: Path) -> Iterator[Callable[[], object]]:
    """Compute NT-Xent of two batches of embeddings and its gradient, with the PyTorch backend."""
    from contrastive_core import nt_xent
    from contrastive_core.similarity import use_backend

    a, b = torch.randn(64, 16, requires_grad=True), torch.randn(64, 16)
    with use_backend("torch"):
        yield lambda: torch.autograd.grad(nt_xent(a, b), a)


@contextlib.contextmanager
def view(folder: Path) -> Iterator[Callable[[], object]]:
    """Augment a batch of images."""
    from ssl_vision.augment import SimCLRAugment

    augment, images = SimCLRAugment(32), torch.randint(0, 256, (32, 3, 32, 32), dtype=torch.uint8)
    yield lambda: augment(images, seed=0, ids=torch.arange(32))


@contextlib.contextmanager
def batch(folder: Path) -> Iterator[Callable[[], object]]:
    """Load image files and compute the two views of a pre-training step."""
    from PIL import Image

    from contrastive_core.training import Batches
    from ssl_vision.augment import SimCLRAugment
    from ssl_vision.data import open_images
    from ssl_vision.training.loading import Views, open_views

    for number in range(32):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    batches = Batches(32, batch_size=32, seed=0, rank=0, world_size=1, total_steps=2)
    views = open_views(open_images(str(folder)), Views(batches, seed=0), SimCLRAugment(32), load="files", workers=0)
    yield lambda: views.batch(0, torch.device("cpu"))


@contextlib.contextmanager
def mask(folder: Path) -> Iterator[Callable[[], object]]:
    """Predict a mask file from a NIfTI file with a loaded model, as in `ssl-medseg predict`."""
    import nibabel as nib

    from ssl_medseg.io import ImageFile, read_volume, write_mask
    from ssl_medseg.models.model_folder import load_segmenter
    from ssl_medseg.prediction import segment

    _segmenter(folder / "model")
    voxels = np.random.default_rng(0).normal(100, 20, (40, 40, 4)).astype(np.float32)
    image = nib.Nifti1Image(voxels, np.diag([1.5, 1.5, 8, 1]))
    image.header.set_xyzt_units("mm")
    image.set_sform(image.affine, 1)
    image.to_filename(folder / "image.nii.gz")
    model = load_segmenter(folder / "model", device="cpu")

    def call() -> None:
        volume = read_volume(ImageFile(folder / "image.nii.gz"))
        segmentation = segment(volume, model.network, model.preprocessing, refinement=model.refinement)
        write_mask(segmentation.classes, volume, folder / "mask.nii.gz", model.labels)

    yield call


@contextlib.contextmanager
def selftraining(folder: Path) -> Iterator[Callable[[], object]]:
    """Compute the loss of a self-training step from unlabelled slices and their pseudo-labels."""
    from contrastive_core.training import Run, RunOptions
    from ssl_medseg.losses.segmentation import segmentation_loss
    from ssl_medseg.models.model_folder import load_segmenter
    from ssl_medseg.selftraining.losses import PseudoTerm
    from ssl_medseg.selftraining.options import PseudoLabelOptions
    from ssl_medseg.selftraining.rounds import Pool
    from ssl_medseg.selftraining.student import Student
    from ssl_medseg.training.data import TrainingData
    from ssl_medseg.training.optim import BestWeights
    from ssl_medseg.training.slices import AugmentOptions

    _segmenter(folder / "model")
    segmenter = load_segmenter(folder / "model", device="cpu")
    toy_case = _of_tests("toy_cases").toy_case
    cases = [toy_case("a"), toy_case("b")]
    data = TrainingData(
        labels=segmenter.labels, preprocessing=segmenter.preprocessing, labelled=cases[:1], unlabelled=cases[1:]
    )
    with Run(folder / "run", config={}, command="ways", options=RunOptions(device="cpu")) as run:
        pool = Pool(run, data, PseudoLabelOptions(guard="off"))
        student = Student(
            run, segmenter, reuse="whole", embedding=0, norm="apart", lr=1e-3, weight_decay=0.0, schedule="constant",
            cycle=4, decay=0.0, steps=4,
        )  # fmt: skip
        criterion = segmentation_loss("dice", classes=len(segmenter.labels))

        def call() -> None:
            pool.refresh(student.network, BestWeights(), step=0, made_by="", score=None)
            term = PseudoTerm(
                run, pool, classes=len(segmenter.labels), batch_size=2, augment=AugmentOptions(kind="paper"),
                criterion=criterion, weight=1.0,
            )  # fmt: skip
            images = term.images(0)
            logits, _ = student.model(images, len(images))
            student.update(run, term.loss(logits, 0))

        for _ in run.steps(1):
            yield call


@contextlib.contextmanager
def clip(folder: Path) -> Iterator[Callable[[], object]]:
    """Load video files and compute the loss of a step of multiview pseudo-labelling."""
    from contrastive_core.training import Run, RunOptions
    from ssl_video.augment import ClipAugment
    from ssl_video.data import ClipDataset, ClipSpec, open_videos
    from ssl_video.data.synthetic import make_videos
    from ssl_video.models import NetworkOptions
    from ssl_video.models.networks import build_network
    from ssl_video.mvpl.method import MultiviewPseudoLabel
    from ssl_video.training.loader import Feed

    clips = ClipDataset(open_videos(str(make_videos(folder / "videos", per_class=1))), ClipSpec(4, 2), following=True)
    with Run(folder / "run", config={}, command="ways", options=RunOptions(device="cpu", workers=0)) as run:
        feed = Feed(run, clips, clips, ClipAugment(32), batch_size=2, mu=1, total_steps=1, first_unlabelled=0)
        network = build_network(NetworkOptions(name="small_slow", width=4), len(clips.videos.classes))
        method = MultiviewPseudoLabel(network, classes=len(clips.videos.classes), threshold=0.5, bn="split")

        def call() -> None:
            step_batch = feed.batch(0)
            method(step_batch.labelled, step_batch.labels, step_batch.weak, step_batch.strong, step=0).loss.backward()

        for _ in run.steps(1):
            yield call


def _segmenter(folder: Path) -> None:
    from ssl_medseg.preprocessing import Preprocessing

    _of_tests("small_models").random_segmenter(
        folder, Preprocessing(size=(64, 64), spacing=(1.5, 1.5), orientation="RAS", percentiles=(0, 100))
    )


def _of_tests(name: str) -> Any:
    """Import a module of the tests of ssl-medseg, which are not typed."""
    return importlib.import_module(f"tests.medseg.{name}")


WAYS: dict[str, Way] = {
    "loss": loss, "view": view, "batch": batch, "mask": mask, "selftraining": selftraining, "clip": clip,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("ways", nargs="*", default=list(WAYS), metavar="TASK", help=", ".join(WAYS))
    for name in parser.parse_args().ways:
        with tempfile.TemporaryDirectory() as folder, WAYS[name](Path(folder)) as call:
            call()  # caches and lazy imports
            transform_files, helper_files = follow(call)
        print(f"{name}: {WAYS[name].__doc__}")
        for role, files in (
            (f"transform the value ({BEFORE[name]} before)", transform_files),
            ("only help", helper_files),
        ):
            lines = sum(len(Path(file).read_text(encoding="utf-8").splitlines()) for file in files)
            print(f"  {len(files)} files, {lines} lines, {role}")
            for file in sorted(files):
                print(f"    {file.split('/src/')[1]}")


if __name__ == "__main__":
    main()
