"""A training step reads nothing from the device: on a GPU each such reading makes the host wait.

The operations that would wait are found on the CPU, where they are the same, by a dispatch mode, which does not see
`tolist` and `numpy`. Checks that the code makes on the CPU alone say so in their line.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from contrastive_core import LARS, WarmupCosine, lars_param_groups, nt_xent
from contrastive_core.pseudo_label import fuse
from contrastive_core.similarity import use_backend
from ssl_video.models.networks import SmallSlow
from ssl_video.mvpl.method import MultiviewPseudoLabel
from ssl_vision.methods import SimCLR
from ssl_vision.models import EncoderOptions, build_encoder

_ATEN = torch.ops.aten
WAITING = {
    _ATEN._local_scalar_dense.default, _ATEN.nonzero.default, _ATEN.masked_select.default, _ATEN._unique2.default,
    _ATEN.is_nonzero.default, _ATEN.equal.default,
}  # fmt: skip
HOST_ALONE = 'device.type == "cpu"'


class Waits(TorchDispatchMode):
    """Lines of our packages that read a value, but for those that read it on the CPU alone."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        selects = function is _ATEN.index.Tensor and any(x is not None and x.dtype == torch.bool for x in args[1])
        if function in WAITING or selects:
            own = [frame for frame in traceback.extract_stack() if "/src/" in frame.filename]
            line = f"{own[-1].filename}:{own[-1].lineno} {own[-1].line}" if own else "a test"
            if HOST_ALONE not in line and "if look" not in line and "(look and" not in line:
                self.found.add(f"{line} ({function})")
        return function(*args, **(kwargs or {}))


def test_the_mode_sees_what_would_wait() -> None:
    x = torch.rand(4)
    readings: list[Callable[[], object]] = [x[0].item, lambda: bool(x[0] > 0), lambda: x[x > 0.5]]
    for read in readings:
        with Waits() as waits:
            read()
        assert waits.found, read


@pytest.mark.parametrize("foreach", [False, True])
def test_a_step_of_simclr(foreach: bool) -> None:
    options = EncoderOptions(name="resnet18", stem="cifar", width=0.125)
    network = SimCLR(build_encoder(options, image_size=32), projection_dim=16, layers=2)
    optimizer = LARS(lars_param_groups(network, 1e-6), lr=0.1, foreach=foreach)
    schedule = WarmupCosine(optimizer, peak_lr=0.1, warmup_steps=1, total_steps=5)
    views = [torch.rand(4, 3, 32, 32) for _ in range(2)]
    with use_backend("torch"), Waits() as waits:
        for _ in range(2):
            z = network(*views)
            loss = nt_xent(z[0], z[1], temperature=0.5)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    assert not waits.found


@pytest.mark.parametrize(("fusion", "align"), [("exact", False), ("adaptive", False), ("exact", True)])
def test_a_step_of_multiview_pseudo_labelling(fusion: Any, align: bool) -> None:
    network: nn.Module = SmallSlow(4, width=4)
    mvpl = MultiviewPseudoLabel(network, classes=4, fusion=fusion, align=align, threshold=0.6)
    optimizer = torch.optim.SGD(mvpl.parameters(), 0.1, momentum=0.9)

    def pictures(n: int) -> dict[str, Tensor]:
        return {view: torch.rand(n, 4, 3, 16, 16) * 255 for view in ("rgb", "tg")}

    labels = torch.arange(4)
    mvpl(pictures(4), labels, pictures(4), pictures(4))  # the first step looks at the scale of the pictures
    batches = pictures(4), pictures(4), pictures(4)
    with Waits() as waits:
        losses = mvpl(batches[0], labels, batches[1], batches[2])
        optimizer.zero_grad()
        losses.loss.backward()
        optimizer.step()
        mvpl.update()
    assert not waits.found


def test_weights_on_the_host_are_still_checked() -> None:
    with pytest.raises(ValueError, match="expected 2 non-negative numbers"):
        fuse(torch.rand(2, 3, 4), weights=[1.0, -1.0])
