"""Set up a run: number of steps, optimiser and schedule, and accuracy on held-out images."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from contrastive_core.errors import UserError
from contrastive_core.optim import WarmupCosine, scaled_lr
from contrastive_core.training import Batches, Run
from contrastive_core.training.checkpoint import Unchanged
from ssl_vision.data import ImageSet, Subset
from ssl_vision.evaluation.features import evaluation_batches, outputs
from ssl_vision.training.options import OptimizerOptions, build_optimizer


@dataclass(frozen=True)
class Budget:
    """Batch size and number of steps of a run.

    Attributes:
        images: Number of images.
        batch_size: Number of images per step, over all processes.
        total_steps: Number of steps of the run.
        reduced: Whether the batch is smaller than requested because there are too few images.
    """

    images: int
    batch_size: int
    total_steps: int
    reduced: bool

    def epoch(self, steps: int) -> float:
        """Convert a number of steps to epochs, counted in images."""
        return steps * self.batch_size / self.images

    def ends_epoch(self, step: int, *, every: int = 1) -> bool:
        """Whether a multiple of `every` epochs, or the run, ends in this step."""
        return self.epoch(step) // every < self.epoch(step + 1) // every or step == self.total_steps - 1

    def batches(self, run: Run, purpose: str = "order") -> Batches:
        """Return the indices of the images of this process in each step; `purpose` selects the seed of their order."""
        return Batches(
            self.images,
            batch_size=self.batch_size // run.world_size,
            seed=run.seed(purpose),
            rank=run.rank,
            world_size=run.world_size,
            total_steps=self.total_steps,
        )

    def __str__(self) -> str:
        less = " (all of them)" if self.reduced else ""
        return f"{self.images:,} images, {self.batch_size} per step{less}, {self.total_steps:,} steps"


def plan_budget(images: int, *, epochs: int, batch_size: int, world_size: int) -> Budget:
    """Plan the steps that show ``epochs * images`` images, rounded down, as the released code counts them.

    Images that do not fill a batch at the end of a pass are used in the next pass, which is shuffled again. Small sets
    are therefore shown as often as large ones: 500 images in batches of 256 make 1.95 steps per epoch. A batch larger
    than the set is reduced to the set, divided evenly by the processes.

    Raises:
        UserError: There are no epochs, fewer than two images per process and step, or the batch cannot be shared.

    >>> print(plan_budget(500, epochs=60, batch_size=256, world_size=1))
    500 images, 256 per step, 117 steps
    >>> print(plan_budget(500, epochs=60, batch_size=1024, world_size=1))
    500 images, 500 per step (all of them), 60 steps
    """
    if epochs < 1:
        raise UserError(f"epochs is {epochs}; expected at least 1")
    if batch_size < 1 or batch_size % world_size:
        raise UserError(
            f"batch_size {batch_size} cannot be shared evenly by {world_size} processes; choose a multiple of them"
        )
    batch = min(batch_size, images - images % world_size)
    if batch < 2 * world_size:
        raise UserError(
            f"found {images} images to train on and batch_size {batch_size} for {world_size} process(es); batch norm "
            "needs at least two images in each of them. Give more images, or raise batch_size"
        )
    return Budget(images, batch, max(1, epochs * images // batch), reduced=batch < batch_size)


def set_up(
    run: Run,
    network: nn.Module,
    options: OptimizerOptions,
    *,
    unlabelled: ImageSet | None,
    labelled: ImageSet | None,
    batch_size: int,
    epochs: int,
    total_steps: int,
    unadapted: tuple[str, ...] = (),
) -> tuple[nn.Module, Optimizer, WarmupCosine]:
    """Set up network, optimiser and schedule on the run's device and processes, and register them for checkpoints.

    Args:
        run: Run that they belong to.
        network: Network to train.
        options: Options of optimiser and schedule.
        unlabelled: Images whose labels are not read. A resumed run must have the same.
        labelled: Images with labels, which must also be the same.
        batch_size: Number of images per step over all processes; the learning rate scales with it.
        epochs: Number of epochs of the run; the warm-up is given in epochs.
        total_steps: Number of steps of the run.
        unadapted: Submodules that LARS does not adapt; see `build_optimizer`.

    Raises:
        UserError: The warm-up is as long as the run.
    """
    peak_lr = scaled_lr(options.lr, batch_size, rule=options.scaling)
    model, optimizer = run.setup(network, build_optimizer(network, options, lr=peak_lr, unadapted=unadapted))
    rates = [peak_lr * group.get("lr_scale", 1.0) for group in optimizer.param_groups]
    # At least one step follows the warm-up, however few there are.
    warmup_steps = min(options.warmup_steps(epochs=epochs, steps_per_epoch=total_steps / epochs), total_steps - 1)
    schedule = WarmupCosine(optimizer, peak_lr=rates, warmup_steps=warmup_steps, total_steps=total_steps)
    same = Unchanged(
        _identity(unlabelled, labelled),
        f"{run.out}: the run was started with other images, labels or classes. Restore the data to resume it, or start "
        "a new run in another --out",
    )
    run.track(images=same, model=model, optimizer=optimizer, schedule=schedule)
    return model, optimizer, schedule


def _identity(unlabelled: ImageSet | None, labelled: ImageSet | None) -> str:
    """Hash the paths of all images, relative to their sets, and the classes of the labelled ones."""
    total = hashlib.sha256()
    lines = [] if unlabelled is None else [str(len(unlabelled)), *map(unlabelled.key, range(len(unlabelled)))]
    if labelled is not None:
        lines += [*labelled.classes, *(f"{labelled.label(i)} {labelled.key(i)}" for i in range(len(labelled)))]
    for line in lines:
        total.update(line.encode("utf-8", "surrogateescape") + b"\0")
    return total.hexdigest()


class Validation:
    """Accuracy on held-out images during training, computed by all processes together.

    Args:
        run: Run that records the accuracy.
        images: Validation images; None for no validation.
        budget: Number of steps of the run.
        every: Number of epochs between two validations; the model is also validated after the last step.
        size: Side of the images that the model receives, in pixels.
        batch_size: Number of images per forward pass.
    """

    def __init__(
        self, run: Run, images: ImageSet | None, budget: Budget, *, every: int, size: int, batch_size: int = 256
    ) -> None:
        self._run, self._budget, self._every = run, budget, every
        self._size, self._batch_size = size, batch_size
        self._total = 0 if images is None else len(images)
        if images is not None:
            self._images = Subset(images, range(run.rank, len(images), run.world_size))
            self._labels = images.labels()[run.rank :: run.world_size].to(run.device)

    def after(self, step: int, model: nn.Module) -> None:
        """Record the accuracy of the model if it is to be validated after this step."""
        if self._total and self._budget.ends_epoch(step, every=self._every):
            self._run.record(validation_accuracy=self._accuracy(model), epoch=self._budget.epoch(step + 1))

    @torch.no_grad()
    def _accuracy(self, model: nn.Module) -> Tensor:
        """Share of images that are classified correctly, in [0, 1], with batch norm in inference mode."""
        batches = evaluation_batches(self._images, size=self._size, batch_size=self._batch_size)
        right, start = torch.zeros((), device=self._run.device), 0
        for logits in outputs(model, batches, device=self._run.device):
            right += (logits.argmax(dim=1) == self._labels[start : start + len(logits)]).sum()
            start += len(logits)
        model.train()
        return torch.as_tensor(self._run.fabric.all_reduce(right, reduce_op="sum")) / self._total
