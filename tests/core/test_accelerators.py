"""The same numbers on an accelerator as on the CPU in float64. The CPU is among the devices, to try the tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from contrastive_core import (
    LARS,
    ProjectionHead,
    distillation,
    info_nce,
    lars_param_groups,
    local_contrastive,
    nt_xent,
    suncet,
    supcon,
)
from contrastive_core.random import uniform

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
    ),
    pytest.param(
        "mps",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.backends.mps.is_available(), reason="needs an Apple GPU"),
        ],
    ),
]
N, D = 700, 48  # ragged tiles on the CPU

Loss = Callable[[Tensor], Tensor]


def labels(x: Tensor) -> Tensor:
    return torch.arange(len(x), device=x.device) % 37


LOSSES: dict[str, Loss] = {
    "nt_xent": lambda z: nt_xent(z[: N // 2], z[N // 2 :]),
    "nt_xent, low temperature": lambda z: nt_xent(z[: N // 2], z[N // 2 :], temperature=0.02),
    "suncet": lambda z: suncet(z, labels(z)),
    "supcon": lambda z: supcon(z, labels(z)),
    "info_nce": lambda z: info_nce(z[:200], z[200:400], z[400:]),
    "distillation": lambda z: distillation(z, z.detach().flip(0), temperature=0.5),
    "local_contrastive": lambda z: local_contrastive(
        z[:512].view(2, 16, 16, D).permute(0, 3, 1, 2),
        (labels(z)[:512] % 3).view(2, 16, 16),
        pairs=torch.tensor([[0, 1]]),
        generator=torch.Generator().manual_seed(0),
    ),
}


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every device that is here, with reduced-precision products switched on, as training scripts do."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield request.param
    torch.set_float32_matmul_precision(before)


def differentiate(loss: Loss, z: Tensor) -> tuple[Tensor, Tensor]:
    leaf = z.detach().requires_grad_()
    value = loss(leaf)
    (grad,) = torch.autograd.grad(value, leaf)
    return value.detach().cpu().double(), grad.cpu().double()


@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
@pytest.mark.parametrize("name", LOSSES)
def test_losses(device: str, name: str, autocast: bool) -> None:
    z = torch.randn(N, D, generator=torch.Generator().manual_seed(0))
    expected = differentiate(LOSSES[name], z.double())
    with torch.autocast(device, torch.float16 if device == "mps" else torch.bfloat16, enabled=autocast):
        value, grad = differentiate(LOSSES[name], z.to(device))
    tolerance = 1e-4 if device == "mps" else 2e-6  # without float64
    torch.testing.assert_close(value, expected[0], rtol=tolerance, atol=tolerance)
    assert (grad - expected[1]).norm() <= 10 * tolerance * expected[1].norm()


def test_draws_are_the_same_bits(device: str) -> None:
    ids = torch.arange(100) * 12345
    assert torch.equal(uniform(3, ids, 5, device=device).cpu(), uniform(3, ids, 5))


def test_steps_of_lars(device: str) -> None:
    def trained(device: str, dtype: torch.dtype) -> list[Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), ProjectionHead(16, 8)).to(device, dtype)
        optimizer = LARS(lars_param_groups(model, 1e-4), lr=0.5)
        for step in range(3):
            x = torch.randn(32, 12, generator=torch.Generator().manual_seed(step)).to(device, dtype)
            optimizer.zero_grad()
            nt_xent(model(x), model(x + 0.1)).backward()
            optimizer.step()
        return [p.detach().cpu().double() for p in model.parameters()]

    for found, expected in zip(trained(device, torch.float32), trained("cpu", torch.float64), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
