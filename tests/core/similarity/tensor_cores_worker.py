"""Run the Triton kernels in Triton's interpreter, which must be chosen before the import; print errors as JSON."""

from __future__ import annotations

import itertools
import json
import os
import sys
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import torch
import torch.nn.functional as F
from torch import Tensor

from contrastive_core.similarity import row_lse, self_lse, tensor_cores, use_backend

SCALE, SKIP, OFFSET = 10.0, 7, 2


def case(n: int, m: int | None, *, half: bool, classes: bool, length: float) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(n)
    rows = [F.normalize(torch.randn(size, 21, generator=generator)) * length for size in (n, m) if size]
    labels = [torch.randint(0, 4, (len(x),), generator=generator).sort().values for x in rows]
    grad = torch.randn(n, generator=generator, dtype=torch.float64)
    q, k = rows[0], rows[1] if m else None
    scale, among = SCALE / length**2, "other" if classes else "all"

    leaves = [x.double().requires_grad_() for x in rows]
    with use_backend("reference"):
        if k is None:
            exact = self_lse(leaves[0], scale=scale, skip=SKIP, classes=labels[0] if classes else None, among=among)
        else:
            pair = (labels[0], labels[1]) if classes else None
            exact = row_lse(*leaves, scale=scale, self_offset=OFFSET, classes=pair, among=among)
    slopes = torch.autograd.grad((exact * grad).sum(), leaves)

    diagonals = (0, SKIP, -SKIP) if k is None else (OFFSET,)
    problem = tensor_cores.Problem(
        q, k, diagonals, (labels[0], labels[-1]) if classes else None, scale=scale, max_norm=length, half=half
    )
    lse = tensor_cores.forward(problem)
    gradients = tensor_cores.backward(problem, grad, lse)
    only_q = tensor_cores.backward(problem, grad, lse, needs=(True, False))
    return {
        "name": f"{n} x {m or n}, half {half}, classes {classes}, length {length:g}",
        "half": half,
        "value": (lse - exact).abs().max().item(),
        "gradients": [relative(found, slope) for found, slope in zip(gradients, slopes, strict=False)],
        "shapes": [list(x.shape) for x in (*gradients, *only_q)],
        "expected": [[n, 21], [m, 21] if m else [0], [n, 21], [0]],
    }


def relative(found: Tensor, exact: Tensor) -> float:
    return ((found - exact).norm() / exact.norm()).item()


def main() -> None:
    # Tiles so small that little inputs have many, in several strips, with ragged ends.
    tensor_cores._TILE, tensor_cores._DEPTH, tensor_cores._STRIP, tensor_cores._LONGEST_SUM = 16, 16, 32, 16
    cases = [
        case(n, m, half=half, classes=classes, length=1.0)
        for (n, m), half, classes in itertools.product(((70, None), (33, 50)), (True, False), (True, False))
    ]
    cases += [
        case(40, None, half=False, classes=False, length=5.0),
        case(64, 32, half=True, classes=False, length=0.01),
    ]
    alone = tensor_cores.forward(tensor_cores.Problem(torch.ones(2, 5), None, (0, 1, -1), None, 1.0, 3.0, half=True))
    check = tensor_cores.self_check(torch.device("cpu"))
    json.dump({"cases": cases, "alone": alone.tolist(), "check": check}, sys.stdout)


if __name__ == "__main__":
    main()
