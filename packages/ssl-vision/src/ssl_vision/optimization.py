"""Model, optimiser and schedule of a run, set up together."""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer

from contrastive_core.optim import WarmupCosine, scaled_lr
from contrastive_core.training import Run
from ssl_vision.options import OptimizerOptions, build_optimizer


def set_up(
    run: Run,
    network: nn.Module,
    options: OptimizerOptions,
    *,
    batch_size: int,
    epochs: int,
    total_steps: int,
    unadapted: tuple[str, ...] = (),
) -> tuple[nn.Module, Optimizer, WarmupCosine]:
    """The network on its device and over all processes, its optimiser and the schedule, all of them in checkpoints.

    Args:
        run: the run they belong to.
        network: what is trained.
        options: of optimiser and schedule.
        batch_size: images per step over all processes, by which the learning rate is scaled.
        epochs: of the run, by which the warm-up is measured.
        total_steps: of the run.
        unadapted: submodules that LARS does not adapt, see `build_optimizer`.

    Raises:
        UserError: the warm-up does not end before the run does.
    """
    peak_lr = scaled_lr(options.lr, batch_size, rule=options.scaling)
    model, optimizer = run.setup(network, build_optimizer(network, options, lr=peak_lr, unadapted=unadapted))
    # At least one step is not warm-up, however few there are.
    warmup_steps = min(options.warmup_steps(epochs=epochs, steps_per_epoch=total_steps / epochs), total_steps - 1)
    schedule = WarmupCosine(optimizer, peak_lr=peak_lr, warmup_steps=warmup_steps, total_steps=total_steps)
    run.track(model=model, optimizer=optimizer, schedule=schedule)
    return model, optimizer, schedule
