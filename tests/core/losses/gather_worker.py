"""One process of the tests in test_distributed_losses.py.

Every process holds a copy of a small model and computes a loss of its own rows with `gather=True`; the mean of the
parameters' gradients over processes is taken, as DistributedDataParallel does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from contrastive_core import MemoryBank, info_nce, nt_xent, paws, suncet, supcon
from contrastive_core.distributed import Gather, gather_labels, gather_rows, is_distributed, rank, world_size
from contrastive_core.losses import count_skipped_anchors
from tests.core.losses.gloo import Found, be_a_worker

ROWS = 6  # of one process


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, 5)).double()


def inputs(world: int) -> Tensor:
    """Inputs of all processes, [world, ROWS, 7]."""
    return torch.randn(world, ROWS, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def labels(world: int) -> dict[str, Tensor]:
    """Labels of all processes, [world, ROWS]; classes range from complete ones to anchors without positives."""
    n = world * ROWS
    lonely = torch.arange(n) + 100
    first_only = lonely.clone()
    first_only[:ROWS] = torch.tensor([0, 0, 1, 1, 1, 2])
    across = lonely.clone()
    across[[1, ROWS + 1]] = 5
    first_without = torch.arange(n) % 3
    first_without[:ROWS] = 1  # which `unlabelled` removes
    draws = torch.randint(0, 4, (n,), generator=torch.Generator().manual_seed(2))
    named = {
        "interleaved": torch.arange(n) % 3,
        "random": draws,
        "one class": torch.zeros(n, dtype=torch.int64),
        "positives on the first process only": first_only,
        "one positive pair across processes": across,
        "one class on the first process": first_without,
        "no positives": lonely,
    }
    return {name: y.view(world, ROWS) for name, y in named.items()}


def bank() -> Tensor:
    """Memory bank of every process, [11, 5]."""
    return torch.randn(11, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


Case = tuple[str, Callable[[Tensor, Tensor, Gather], Tensor]]


def cases() -> list[Case]:
    """Return name -> loss of (embeddings, labels, gather); rows of both views alternate in nt_xent."""
    return [
        ("nt_xent", lambda z, y, gather: nt_xent(z[::2], z[1::2], temperature=0.3, gather=gather)),
        ("nt_xent at low temperature", lambda z, y, gather: nt_xent(z[::2], z[1::2], temperature=0.002, gather=gather)),
        (
            "nt_xent with a bank",
            lambda z, y, gather: nt_xent(z[::2], z[1::2], bank(), temperature=0.3, gather=gather),
        ),
        ("suncet", lambda z, y, gather: suncet(z, y, temperature=0.3, gather=gather)),
        (
            "smoothed suncet",
            lambda z, y, gather: suncet(z, y, temperature=0.3, label_smoothing=0.2, gather=gather),
        ),
        ("paws", lambda z, y, gather: sum(paws(z[::2], z[1::2], z, y, temperature=0.3, gather=gather))),
        ("info_nce", lambda z, y, gather: info_nce(z[::2], z[1::2], temperature=0.3, gather=gather)),
        (
            "info_nce with a bank and detached keys",
            lambda z, y, gather: info_nce(z[::2], z[1::2].detach(), bank(), temperature=0.3, gather=gather),
        ),
        (
            "info_nce with detached queries",
            lambda z, y, gather: info_nce(z[::2].detach(), z[1::2], temperature=0.3, gather=gather),
        ),
        ("supcon", lambda z, y, gather: supcon(z, y, temperature=0.3, gather=gather)),
        (
            "suncet with unlabelled samples",
            lambda z, y, gather: suncet(broken(z, y), unlabelled(y), temperature=0.3, ignore_index=-1, gather=gather),
        ),
        (
            "smoothed suncet with unlabelled samples",
            lambda z, y, gather: suncet(
                broken(z, y), unlabelled(y), temperature=0.3, label_smoothing=0.2, ignore_index=-1, gather=gather
            ),
        ),
        (
            "supcon with unlabelled samples",
            lambda z, y, gather: supcon(z, unlabelled(y), temperature=0.3, ignore_index=-1, gather=gather),
        ),
        (
            "paws with unlabelled supports",
            lambda z, y, gather: sum(
                paws(z[::2], z[1::2], broken(z, y), unlabelled(y), temperature=0.3, ignore_index=-1, gather=gather)
            ),
        ),
    ]


def unlabelled(y: Tensor) -> Tensor:
    """Remove the labels of one class, of which the processes hold unequal numbers."""
    return y.masked_fill(y == 1, -1)


def broken(z: Tensor, y: Tensor) -> Tensor:
    """Fill the rows that `unlabelled` marks with NaN, which losses that exclude them must not read."""
    return z.masked_fill((y == 1)[:, None], torch.nan)


def penalty(
    loss: Callable[[Tensor, Tensor, Gather], Tensor], net: nn.Module, x: Tensor, y: Tensor, gather: Gather
) -> list[Tensor]:
    """Second derivatives: gradients of the squared gradient of all losses with respect to x."""
    x = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(loss(net(x), y, gather), inputs=x, create_graph=True)
    return gradients(first.square().sum(), net)


def has_labels(name: str) -> bool:
    return "nt_xent" not in name and "info_nce" not in name


def gradients(loss: Tensor, net: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(net.parameters())))


def refused(call: Callable[[], Any]) -> str:
    try:
        call()
    except ValueError as error:
        return str(error)
    return "accepted"


def find(number: int, world: int) -> Found:
    found: Found = {"identity": (is_distributed(), rank(), world_size())}
    net, x = model(), inputs(world)[number]
    for name, loss in cases():
        for kind, y in labels(world).items():
            if not has_labels(name) and kind != "random":
                continue
            value = loss(net(x), y[number], True)
            grads = gradients(value, net)
            for grad in grads:
                dist.all_reduce(grad)
            found[f"{name}, {kind}"] = (value.item(), [grad / world for grad in grads])
    found["penalty"] = {}
    for name, loss in cases():
        if "paws" not in name:
            grads = penalty(loss, net, x, labels(world)["random"][number], True)
            for grad in grads:
                dist.all_reduce(grad)
            found["penalty"][name] = grads
    found["skipped"] = {k: int(count_skipped_anchors(y[number], gather=True)) for k, y in labels(world).items()}

    if world == 2:
        wrapped = nn.parallel.DistributedDataParallel(model())
        nt_xent(*wrapped(x).chunk(2), temperature=0.3, gather=True).backward()
        found["DDP"] = [p.grad for p in wrapped.parameters()]
        compiled = torch.compile(lambda z, y: suncet(z, y, gather=True), fullgraph=True, backend="aot_eager")
        found["compiled"], found["plain"] = (
            gradients(f(net(x), labels(world)["random"][number]), net)
            for f in (compiled, lambda z, y: suncet(z, y, gather=True))
        )

    few = x[: ROWS - 2 * number]
    found["uneven"] = {
        "gather_rows": refused(lambda: gather_rows(few)),
        "gather_labels": refused(lambda: gather_labels(torch.arange(len(few)))),
        "nt_xent": refused(lambda: nt_xent(few, few, gather=True)),
        "suncet": refused(lambda: suncet(few, torch.arange(len(few)), gather=True)),
        "supcon": refused(lambda: supcon(few, torch.arange(len(few)), gather=True)),
        "paws": refused(lambda: paws(few, few, x, torch.arange(len(x)), gather=True)),
        "widths": refused(lambda: gather_rows(x[:, : 3 + number])),
        "types": refused(lambda: gather_rows(x.float() if number else x)),
    }
    # One row each is enough: there are others elsewhere. And the processes still understand each other.
    found["one row each"] = nt_xent(x[:1], x[1:2], temperature=0.3, gather=True).item()
    rows = gather_rows(x.requires_grad_())
    rows.square().sum().backward()
    remembered = MemoryBank(world * ROWS - 1, 7, dtype=torch.float64)
    remembered.add(x, gather=True)
    found["remembered"] = remembered.rows
    found["gathered"], found["gathered's gradient"] = rows.detach(), x.grad
    return found


if __name__ == "__main__":
    be_a_worker(find)
