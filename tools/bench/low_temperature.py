"""Measure how omitting negligible entries from the compiled backward pass changes time and result.

    python -m tools.bench.low_temperature --out docs/results/low_temperature.json

The backward pass of a mean log-sum-exp over N unit rows, two views of N / 2 samples whose distance is set by noise, is
computed alternately with all entries and without negligible entries, in CPU seconds of one thread. The change is
relative to the size of the gradient before cancellation, which is the norm of the incoming gradient divided by the
temperature.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from contrastive_core.native import library
from contrastive_core.similarity import self_lse, use_backend
from tools.results import provenance, render, write_result

NOISE = {"close views (cosine 0.9)": 0.5, "far views (cosine 0.45)": 2.0}


def rows(count: int, dim: int, noise: float) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(count // 2, dim, generator=generator)
    return F.normalize(torch.cat([a, a + noise * torch.randn(a.shape, generator=generator)]))


def backward(z: Tensor, temperature: float, share: float) -> tuple[float, Tensor]:
    """Return CPU seconds and gradient when entries up to this share of the precision are omitted."""
    library.set_up(part_omitted=share)
    z = z.clone().requires_grad_()
    loss = self_lse(z, scale=1 / temperature, max_norm=1.0).mean()
    begun = time.process_time()
    (gradient,) = torch.autograd.grad(loss, z)
    return time.process_time() - begun, gradient


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[4096])
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table: list[list[object]] = []
    with use_backend("native"):
        for (name, noise), count, temperature in itertools.product(
            NOISE.items(), arguments.sizes, (0.5, 0.1, 0.05, 0.02, 0.01)
        ):
            z = rows(count, arguments.dim, noise)
            runs = [(backward(z, temperature, 0.0), backward(z, temperature, 0.5)) for _ in range(arguments.repeats)]
            full, less = (min(run[i][0] for run in runs) for i in range(2))
            change = (runs[0][0][1] - runs[0][1][1]).norm().item() * temperature * count**0.5
            table.append([name, count, temperature, f"{full:.4f}", f"{less / full:.2f}x", f"{change:.0e}"])
    library.set_up()
    columns = ["embeddings", "N", "temperature", "everything, s", "without negligible entries", "change"]
    result = {
        "name": "low_temperature",
        **provenance(),
        "seeds": [0],
        "config": {"dim": arguments.dim, "repeats": arguments.repeats},
        "table": {"columns": columns, "rows": table},
        "notes": [
            f"Backward pass in float32 with {arguments.dim} features; CPU seconds of one thread, the best of "
            f"{arguments.repeats} calls each. From a temperature of 0.025 down, both use the rectangular form, which "
            "costs twice as much. The change is relative to the norm of the incoming gradient divided by the "
            "temperature."
        ],
    }
    print(render(result, f"{arguments.out or 'low_temperature.json'}"))
    if arguments.out:
        write_result(arguments.out, result)


if __name__ == "__main__":
    main()
