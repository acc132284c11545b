"""A process of the tests in test_ring.py: every loss with the rows of others passed round, and with gathered rows."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from contrastive_core import distributed, info_nce, nt_xent, suncet, supcon
from contrastive_core.similarity import torch_backend, use_backend
from contrastive_core.similarity.ring import ring_lse
from tests.core.losses import gather_worker
from tests.core.losses.gather_worker import gradients, has_labels, inputs, labels, model, refused
from tests.core.losses.gloo import Found, be_a_worker
from tests.core.similarity.memory import allocations

# They gather.
SKIPPED = ("smoothed suncet", "paws", "smoothed suncet with unlabelled samples", "paws with unlabelled supports")
BIG = (2048, 64)


def find(rank: int, world: int) -> Found:
    if world == 4:  # the memory alone, to compare with that of three processes
        return {"memory": {way: memory(way) for way in ("all", "ring")}}
    found: Found = {}
    net, x = model(), inputs(world)[rank]
    torch_backend._BLOCK, torch_backend._BLOCK_WITHIN_CLASSES = {"cpu": 4}, 3  # several, with ragged ends
    for name, loss in gather_worker.cases():
        for kind, y in labels(world).items():
            if name in SKIPPED or (not has_labels(name) and kind != "random"):
                continue
            found[f"{name}, {kind}"] = {
                way: (value := loss(net(x), y[rank], way), gradients(value, net)) for way in ("all", "ring")
            }
    found["float32"] = float32(rank, world)
    if world == 2:
        found["compiled"] = compiled(x, labels(world)["random"][rank])
    found["choice"] = choice(x)
    found["uneven"] = uneven(x, rank)
    found["memory"] = {way: memory(way) for way in ("all", "ring")}
    found["no rows"] = nt_xent_of_none()
    found["twice"] = twice(x)
    return detached(found)


def detached(found: Found) -> Found:
    return torch.utils._pytree.tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, found)


def float32(rank: int, world: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Compare float32 rows, as in a training step, with gathered rows in float64."""
    rows = torch.randn(world, 40, 16, generator=torch.Generator().manual_seed(7))[rank]
    result = {}
    for way, dtype in (("ring", torch.float32), ("all", torch.float64)):
        z = rows.to(dtype).requires_grad_()
        value = nt_xent(z[:20], z[20:], temperature=0.1, gather=way)
        result[way] = (value, *torch.autograd.grad(value, z))
    return result


def compiled(x: Tensor, y: Tensor) -> list[list[Tensor]]:
    """Return the gradients of a step compiled as one graph, and of a plain step."""

    def step(z: Tensor) -> Tensor:
        return supcon(z, y, gather="ring") + suncet(z, y, gather="ring")

    results = []
    for f in (torch.compile(step, fullgraph=True, backend="aot_eager"), step):
        z = x.clone().requires_grad_()
        results.append([*torch.autograd.grad(f(z), z)])
    return results


def choice(x: Tensor) -> dict[str, int]:
    """Return the number of hops of a forward pass with `gather=True`, by the size from which the ring is used."""
    hops: list[int] = []
    Hop = distributed.Hop

    class Counted(Hop):
        def __init__(self, *args: object, **keywords: object) -> None:
            hops.append(1)
            super().__init__(*args, **keywords)  # type: ignore[arg-type]

    distributed.Hop, default = Counted, distributed.RING_FROM
    counts = {}
    bytes_of_all = torch.distributed.get_world_size() * x.numel() * 8
    for name, size in (("default", default), ("above", bytes_of_all + 1), ("at", bytes_of_all)):
        distributed.RING_FROM = size
        hops.clear()
        nt_xent(x[::2], x[1::2], gather=True)
        counts[name] = len(hops)
    distributed.Hop, distributed.RING_FROM = Hop, default
    return counts


def uneven(x: Tensor, rank: int) -> dict[str, str]:
    few = x[: len(x) - 2 * rank]
    y = torch.arange(len(few))
    calls: dict[str, Callable[[], Tensor]] = {
        "nt_xent": lambda: nt_xent(few, few, gather="ring"),
        "info_nce": lambda: info_nce(few, few, gather="ring"),
        "suncet": lambda: suncet(few, y, gather="ring"),
        "supcon": lambda: supcon(few, y, gather="ring"),
        "widths": lambda: ring_lse(x[:, : 3 + rank], x[:, : 3 + rank], scale=1.0),
        "types": lambda: nt_xent(*(x.float() if rank else x).chunk(2), gather="ring"),
        "one takes the other way": lambda: nt_xent(few, few, gather="all" if rank else "ring"),
    }
    return {name: refused(call) for name, call in calls.items()}


def nt_xent_of_none() -> str:
    return refused(lambda: nt_xent(torch.ones(0, 3), torch.ones(0, 3), gather="ring"))


def twice(x: Tensor) -> list[str]:
    """Return the messages for a second derivative, forward mode and an empty reverse pass."""
    z = x.clone().requires_grad_()
    texts = []
    (grad,) = torch.autograd.grad(nt_xent(z[::2], z[1::2], gather="ring"), inputs=z, create_graph=True)
    for call in (
        lambda: torch.autograd.grad(grad.sum(), inputs=z),
        lambda: torch.func.jvp(lambda z: nt_xent(z[::2], z[1::2], gather="ring"), (x,), (x,)),
    ):
        try:
            call()
            texts.append("accepted")
        except RuntimeError as error:
            texts.append(str(error))
    return texts


def memory(way: str) -> tuple[int, int]:
    """Bytes of the largest tensor made in either pass, and the most held at a time: the least of five runs.

    A buffer that gloo's thread has sent is freed a moment later or earlier, which is no property of the ring.
    """
    torch_backend._BLOCK = {"cpu": 256}  # every tile is traced; one is half as large as the rows
    n, d = BIG
    z = torch.randn(n, d).requires_grad_()
    # The compiled backend takes a fixed amount for each thread, which at this size hides what is asked here.
    with use_backend("torch"), tempfile.TemporaryDirectory() as folder:
        loss = nt_xent(z[: n // 2], z[n // 2 :], gather=way)  # what is loaded on first use is loaded
        loss.backward()
        found = [
            allocations(lambda: nt_xent(z[: n // 2], z[n // 2 :], gather=way).backward(), Path(folder))
            for _ in range(5)
        ]
    largest, most = zip(*found, strict=True)
    return min(largest), min(most)


if __name__ == "__main__":
    be_a_worker(find)
