"""A training step reads nothing from the device: on a GPU each such read makes the host wait."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from contrastive_core import LARS, WarmupCosine, lars_param_groups, nt_xent, synchronization
from contrastive_core.pseudo_label import fuse
from contrastive_core.similarity import use_backend
from ssl_vision.methods import SimCLR
from ssl_vision.models import EncoderOptions, build_encoder
from tests.host_waits import Waits


@pytest.fixture(autouse=True)
def nothing_is_free(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let our packages treat the CPU as a device whose values are costly to read."""
    monkeypatch.setattr(synchronization, "_FREE", set())
    with use_backend("torch"):
        yield


def test_the_mode_sees_what_would_wait() -> None:
    x = torch.rand(4)
    readings: list[Callable[[], object]] = [
        x[0].item,
        lambda: bool(x[0] > 0),
        lambda: x[x > 0.5],
        lambda: Tensor.tolist(x),
        lambda: Tensor.numpy(x),
    ]
    for read in readings:
        with Waits() as waits:
            read()
        assert waits.found, read


@pytest.mark.parametrize("foreach", [False, True])
def test_a_step_of_simclr(foreach: bool) -> None:
    options = EncoderOptions(name="resnet18", stem="cifar", width_multiplier=0.125)
    network = SimCLR(build_encoder(options, image_size=32), projection_dim=16, layers=2)
    optimizer = LARS(lars_param_groups(network, 1e-6), lr=0.1, foreach=foreach)
    schedule = WarmupCosine(optimizer, peak_lr=0.1, warmup_steps=1, total_steps=5)
    views = [torch.rand(4, 3, 32, 32) for _ in range(2)]
    with Waits() as waits:
        for _ in range(2):
            z = network(*views)
            loss = nt_xent(z[0], z[1], temperature=0.5)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    assert not waits.found


def test_weights_on_the_host_are_still_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with pytest.raises(ValueError, match="expected 2 non-negative numbers"):
        fuse(torch.rand(2, 3, 4), weights=[1.0, -1.0])
