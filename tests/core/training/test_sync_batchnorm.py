"""Synchronised batch norm on real gloo processes against nn.BatchNorm on the union of their batches, in float64."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn

from contrastive_core.training.sync_batchnorm import SyncBatchNorm, convert_sync_batchnorm

# name: (shape of one sample, rows of each process, keywords of the batch norm, without bias)
CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any], bool]] = {
    "2d": ((3, 4, 5), (2, 2, 2), {}, False),
    "1d": ((6,), (4, 4, 4), {}, False),
    "uneven": ((3, 4), (1, 5, 2), {}, False),
    "3d": ((2, 2, 3, 2), (2, 3, 1), {"momentum": 0.3}, False),
    "no bias": ((3, 4, 5), (2, 2, 2), {}, True),
    "not affine": ((6,), (2, 3, 4), {"affine": False}, False),
    "running average": ((6,), (4, 4, 4), {"momentum": None}, False),
    "no running statistics": ((3, 2, 2), (2, 2, 2), {"track_running_stats": False}, False),
    "frozen statistics": ((3, 2, 2), (2, 2, 2), {}, False),
    "one row each": ((3,), (1, 1, 1), {}, False),
    "far from zero": ((3, 4), (3, 3, 3), {}, False),
}


def inputs(name: str, world_size: int) -> tuple[nn.Module, list[list[Tensor]], list[list[Tensor]]]:
    """Return the norm, and the inputs and loss weights of each process for two successive steps."""
    shape, rows, keywords, without_bias = CASES[name]
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    kinds = {1: nn.BatchNorm1d, 2: nn.BatchNorm1d, 3: nn.BatchNorm2d, 4: nn.BatchNorm3d}
    norm = kinds[len(shape)](shape[0], dtype=torch.float64, **keywords)
    if norm.weight is not None:
        nn.init.normal_(norm.weight, generator=generator)
        nn.init.normal_(norm.bias, generator=generator)
    if name == "frozen statistics":  # there, and not to be changed
        norm.track_running_stats = False
    if without_bias:
        norm.register_parameter("bias", None)
    shift = 1e4 if name == "far from zero" else 0.5

    def draw() -> list[list[Tensor]]:
        return [
            [torch.randn(n, *shape, dtype=torch.float64, generator=generator) for _ in range(2)]
            for n in rows[:world_size]
        ]

    xs = [[x * (1 + r) + shift for x in own] for r, own in enumerate(draw())]
    return norm, xs, draw()


def steps(norm: nn.Module, xs: list[Tensor], weights: list[Tensor]) -> dict[str, Tensor]:
    """Run two training steps and an evaluation; return outputs, input gradients, summed gradients and buffers."""
    results: dict[str, Tensor] = {}
    for i, (x, weight) in enumerate(zip(xs, weights, strict=True)):
        leaf = x.clone().requires_grad_()
        y = norm(leaf)
        (y.square() * weight).sum().backward()
        results[f"y{i}"], results[f"dx{i}"] = y.detach(), leaf.grad
    results.update(higher(norm, xs[0], weights[0]))
    results.update({f"grad {name}": p.grad for name, p in norm.named_parameters()})
    results.update({f"buffer {name}": b.clone() for name, b in norm.named_buffers()})
    results["eval"] = norm.eval()(xs[0]).detach()
    return results


def higher(norm: nn.Module, x: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """Return a gradient penalty, with and without named inputs, and a directional derivative of the batch itself."""
    norm = copy.deepcopy(norm)  # torch.func refuses the change of running statistics
    norm.running_mean = norm.running_var = norm.num_batches_tracked = None
    norm.track_running_stats = False
    leaf = x.clone().requires_grad_()
    (first,) = torch.autograd.grad((norm(leaf) ** 3 * weight).sum(), leaf, create_graph=True)
    second, *rest = torch.autograd.grad((first**2 * weight).sum(), [leaf, *norm.parameters()], allow_unused=True)
    found = {"second": second}
    found.update({f"grad second {i}": torch.zeros(()) if g is None else g for i, g in enumerate(rest)})
    found["tangent"] = torch.func.jvp(norm, (x,), (weight,))[1]
    found["func.grad"] = torch.func.grad(lambda x: (norm(x) ** 3 * weight).sum())(x)
    return found


def process(rank: int, world_size: int, folder: str) -> None:
    torch.set_num_threads(1)
    for size in range(world_size, 1, -1):
        if rank >= size:
            return
        distributed.init_process_group("gloo", init_method=f"file://{folder}/{size}", rank=rank, world_size=size)
        saved = {}
        for name in CASES:
            norm, xs, weights = inputs(name, size)
            synced = convert_sync_batchnorm(norm)
            assert type(synced) is SyncBatchNorm
            saved[name] = steps(synced, xs[rank], weights[rank])
        saved["errors"] = {"texts": errors(rank)}
        torch.save(saved, f"{folder}/{size}-{rank}.pt")
        distributed.barrier()  # nobody leaves while another still talks to it
        distributed.destroy_process_group()


def errors(rank: int) -> list[str]:
    texts = []
    norm = SyncBatchNorm(2)
    for x in (torch.randn(()), torch.randn(3)):
        try:
            norm(x)
        except ValueError as error:
            texts.append(str(error))
    try:
        torch.vmap(norm)(torch.randn(3, 4, 2))
    except RuntimeError as error:
        texts.append(str(error))
    half = norm(torch.randn(4, 2, dtype=torch.bfloat16))
    texts.append(str(half.dtype))
    return texts


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sync")
    multiprocessing.spawn(process, (3, str(folder)), nprocs=3)
    return folder


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("name", list(CASES))
def test_union_batch(outcome: Path, world_size: int, name: str) -> None:
    norm, xs, weights = inputs(name, world_size)
    union = [torch.cat([own[i] for own in xs]) for i in range(2)]
    union_weights = [torch.cat([own[i] for own in weights]) for i in range(2)]
    expected = steps(norm, union, union_weights)
    found = [torch.load(outcome / f"{world_size}-{rank}.pt")[name] for rank in range(world_size)]
    tolerance = {"rtol": 1e-10, "atol": 1e-10 if name != "far from zero" else 1e-8}
    for key, value in expected.items():
        parts = [part[key] for part in found]
        if key.startswith("grad "):
            # The processes' losses are summed here, so is their share of the gradient; DDP averages both.
            torch.testing.assert_close(sum(parts), value, **tolerance)
        elif key.startswith("buffer "):
            for part in parts:
                torch.testing.assert_close(part, value, **tolerance)
        else:
            torch.testing.assert_close(torch.cat(parts), value, **tolerance)


def test_errors_and_types(outcome: Path) -> None:
    for rank in range(2):
        scalar, vector, mapped, half = torch.load(outcome / f"2-{rank}.pt")["errors"]["texts"]
        assert "shape []" in scalar
        assert "shape [3]" in vector
        assert "contrastive_core: torch.vmap" in mapped
        assert half == "torch.bfloat16"


def test_alone_and_in_evaluation_it_is_the_plain_one() -> None:
    plain = nn.BatchNorm2d(3)
    synced = convert_sync_batchnorm(copy.deepcopy(plain))
    x = torch.randn(4, 3, 2, 2)
    assert torch.equal(synced(x), plain(x))
    assert torch.equal(synced.running_var, plain.running_var)
    assert torch.equal(synced.eval()(x), plain.eval()(x))


def test_conversion_keeps_everything_but_the_class() -> None:
    class Own(nn.BatchNorm2d):
        pass

    shared = nn.BatchNorm2d(3)
    model = nn.Sequential(shared, nn.Sequential(nn.BatchNorm1d(2, affine=False), Own(3)), nn.SyncBatchNorm(2), shared)
    keys, parameters, calls = list(model.state_dict()), list(model.parameters()), []
    shared.register_forward_hook(lambda *_: calls.append(1))
    assert convert_sync_batchnorm(model) is model
    assert [type(m) for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)] == [
        SyncBatchNorm,
        SyncBatchNorm,
        Own,
        SyncBatchNorm,
    ]
    assert list(model.state_dict()) == keys
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    shared(torch.randn(2, 3, 1, 1))
    assert calls
    assert type(convert_sync_batchnorm(nn.BatchNorm1d(2))) is SyncBatchNorm
