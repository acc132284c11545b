"""Select the device, launch the processes with Lightning Fabric and set up the model."""

from __future__ import annotations

import inspect
import logging
import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment  # type: ignore[attr-defined]
from lightning_fabric.strategies import DDPStrategy  # type: ignore[attr-defined]
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from contrastive_core.errors import UserError
from contrastive_core.training.config import FixedPrecision, Precision, RunOptions
from contrastive_core.training.sync_batchnorm import convert_sync_batchnorm


def choose_device(name: str) -> torch.device:
    """Resolve a device name; ``auto`` selects CUDA, else Apple's MPS, else the CPU.

    Raises:
        UserError: The device cannot be used on this machine.
    """
    name = _device(name)
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"the device {name!r} cannot be used here: {reason}. Use auto, cpu, cuda or mps") from error
    return device


def resolve_precision(precision: Precision, device: str) -> FixedPrecision:
    """Replace the precision `auto` by bf16-mixed if the device is known to have bfloat16 arithmetic, else by 32-true.

    Args:
        precision: Precision.
        device: Name of the device: auto, cpu, cuda or mps.

    Raises:
        UserError: The device does not exist on this machine.
    """
    if precision != "auto":
        return precision
    return "bf16-mixed" if _has_bfloat16(_device(device)) else "32-true"


def slow_precision(precision: Precision, device: torch.device) -> str | None:
    """Return a warning if the device has no bfloat16 arithmetic, and torch would emulate the requested precision.

    The results are right, but a training step of ResNet-18 took ten times as long as in float32 on a processor with
    AVX2 only.
    """
    if precision != "bf16-mixed" or device.type not in ("cpu", "cuda") or _has_bfloat16(device.type) is not False:
        return None
    hardware = "processor" if device.type == "cpu" else "GPU"
    return (
        f"warning: this {hardware} has no bfloat16 arithmetic, so precision bf16-mixed is emulated and can take ten "
        "times as long as 32-true; use --precision 32-true, or auto, which selects it here"
    )


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which a network computes predictions with a precision."""
    kind = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(resolve_precision(precision, device.type))
    return nullcontext() if kind is None else torch.autocast(device.type, kind)


def make_fabric(options: RunOptions) -> Fabric:
    """Launch Fabric on the device that the options select.

    torchrun determines the number of processes (WORLD_SIZE, LOCAL_WORLD_SIZE). They train with DistributedDataParallel,
    over gloo on CPUs and NCCL on CUDA. Buffers are not broadcast before each forward pass, because they are equal on
    all processes by construction, and a broadcast would overwrite values that the first of two forward passes has saved
    for backward.

    Raises:
        UserError: The device does not exist on this machine, or it lacks a requested feature.
    """
    device = _device(options.device)
    precision = resolve_precision(options.precision, device)
    if device == "cpu" and precision == "16-mixed":
        raise UserError(
            "precision 16-mixed (float16) is not supported on a CPU; use 32-true or bf16-mixed, or a CUDA device"
        )
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        fabric = Fabric(accelerator=device, devices=1, precision=precision, plugins=[LightningEnvironment()])
    else:
        local = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
        if device == "mps":
            raise UserError(
                f"found {world_size} processes on an Apple GPU, which supports only one; use --device cpu, or start "
                "the command without torchrun"
            )
        if device == "cuda" and torch.cuda.device_count() < local:
            raise UserError(
                f"torchrun started {local} processes on this machine, which has {torch.cuda.device_count()} CUDA "
                "device(s); expected one device for each process. Lower --nproc-per-node, or use --device cpu"
            )
        fabric = Fabric(
            accelerator=device,
            devices=local,
            num_nodes=world_size // local,
            precision=precision,
            strategy=DDPStrategy(**_no_buffer_broadcast()),
            plugins=[TorchElasticEnvironment()],
        )
    fabric.launch()
    return fabric


def set_up(
    fabric: Fabric, model: nn.Module, optimizer: Optimizer | None, *, compiled: bool
) -> nn.Module | tuple[nn.Module, Optimizer]:
    """Move a model to the device, synchronise its batch norm layers, compile it if requested and wrap it."""
    if fabric.world_size > 1:
        if fabric.device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        else:
            convert_sync_batchnorm(model)
    if compiled:
        model = torch.compile(model)  # type: ignore[assignment]
    if optimizer is None:
        return fabric.setup(model)  # type: ignore[no-any-return]
    wrapped_model, wrapped_optimizer = fabric.setup(model, optimizer)
    return wrapped_model, wrapped_optimizer


def _no_buffer_broadcast() -> dict[str, Any]:
    # torch 2.14 has renamed the argument. Without the broadcasts, buffers are still made equal once at the beginning.
    parameters = inspect.signature(DistributedDataParallel).parameters
    return {"forward_sync_buffers" if "forward_sync_buffers" in parameters else "broadcast_buffers": False}


def _device(name: str) -> str:
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return "cuda" if cuda else "mps" if mps else "cpu"
    if (name == "cuda" and not cuda) or (name == "mps" and not mps):
        raise UserError(
            f"--device {name} was requested, but torch {torch.__version__} finds no {name.upper()} device; use "
            "--device auto or cpu, or install a torch build (and driver) for the device"
        )
    return name


def _has_bfloat16(device: str) -> bool | None:
    """Return whether the device has bfloat16 arithmetic; None if torch cannot tell."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = getattr(torch.cpu, "get_capabilities", None)  # torch 2.10 does not have it
    if device != "cpu" or capabilities is None:
        return None
    return any(capabilities().get(feature) for feature in ("avx512_bf16", "amx_bf16", "bf16"))
