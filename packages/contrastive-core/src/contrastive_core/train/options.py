"""The settings every training command shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from contrastive_core.errors import UserError

#: Settings that say where and how a run is executed, not what is computed: a resumed run may change them.
FREE_ON_RESUME = frozenset(
    {
        "device",
        "workers",
        "threads",
        "checkpoint_every",
        "keep_checkpoints",
        "resume",
        "tensorboard",
        "wandb",
        "progress",
    }
)


@dataclass(frozen=True)
class RunOptions:
    """How a run is executed, logged and saved.

    Args:
        seed: Every random draw of the run is a function of this number.
        device: Where to compute; auto takes CUDA, then MPS, then the CPU. Another device changes results by rounding.
        precision: Number format of the model: 32-true is float32, the others are automatic mixed precision.
        compile: Compile the model with torch.compile.
        workers: Data loading processes; 0 loads in the training process. The result does not depend on it.
        threads: CPU threads of torch; 0 leaves torch's choice. Another number changes results by rounding.
        log_every: Steps between two lines of metrics.
        checkpoint_every: Steps between two checkpoints.
        keep_checkpoints: How many of the newest checkpoints stay on disk.
        resume: Go on from the newest checkpoint of the run folder, if there is one.
        tensorboard: Write the metrics for TensorBoard too (extra "tensorboard").
        wandb: Send the metrics to Weights & Biases too (extra "wandb").
        progress: Show progress: a bar in a terminal, else a line every few seconds.
    """

    seed: int = 0
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    compile: bool = False
    workers: int = 0
    threads: int = 0
    log_every: int = 10
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    resume: bool = False
    tensorboard: bool = False
    wandb: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        for name, least in (
            ("seed", 0),
            ("workers", 0),
            ("threads", 0),
            ("log_every", 1),
            ("checkpoint_every", 1),
            ("keep_checkpoints", 1),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UserError(f"{name} is {value!r}; expected a whole number of at least {least}")
        for name, choices in (
            ("device", ("auto", "cpu", "cuda", "mps")),
            ("precision", ("32-true", "bf16-mixed", "16-mixed")),
        ):
            value = getattr(self, name)
            if value not in choices:
                raise UserError(f"{name} is {value!r}; expected one of {', '.join(choices)}")
