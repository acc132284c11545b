"""Compare value and gradient of every loss on a device with the full matrix in float64.

    python -m tools.gpu.accuracy --device cuda --out accuracy.json

Errors are relative, in the Euclidean norm; the largest error over losses, sizes and temperatures is printed for every
type. The backend depends on the environment, as for every user of the package.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from contrastive_core import info, info_nce, nt_xent, suncet, supcon
from contrastive_core.similarity import row_lse, self_lse, use_backend

SIZES = ((5, 8), (70, 37), (512, 128), (1000, 300), (2048, 768))
TEMPERATURES = (0.05, 0.1, 0.5)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
Loss = Callable[[Tensor, Tensor, float], Tensor]


def _weighted_mean(lse: Tensor) -> Tensor:
    """Compute a scalar whose gradient differs between rows."""
    weights = torch.linspace(0.5, 1.5, len(lse), device=lse.device, dtype=torch.float64)
    return (lse.double().masked_fill(lse == -torch.inf, 0.0) * weights).mean()


def losses(rows: int, device: str) -> dict[str, Loss]:
    """Return functions of two views of unit rows [rows, D] and the temperature."""
    labels = torch.randint(0, 10, (2 * rows,), generator=torch.Generator().manual_seed(rows)).to(device)
    sorted_labels = labels.sort().values

    return {
        "nt_xent": lambda a, b, t: nt_xent(a, b, temperature=t),
        "nt_xent with a bank": lambda a, b, t: nt_xent(a, b, b.detach().flip(0), temperature=t),
        "info_nce": lambda a, b, t: info_nce(a, b, temperature=t),
        "supcon": lambda a, b, t: supcon(torch.cat([a, b]), labels, temperature=t),
        "suncet": lambda a, b, t: suncet(torch.cat([a, b]), labels, temperature=t),
        "self_lse": lambda a, b, t: _weighted_mean(
            self_lse(torch.cat([a, b]), scale=1 / t, skip=len(a), max_norm=1.01)
        ),
        "self_lse, other classes": lambda a, b, t: _weighted_mean(
            self_lse(torch.cat([a, b]), scale=1 / t, classes=sorted_labels, among="other", max_norm=1.01)
        ),
        "row_lse": lambda a, b, t: _weighted_mean(row_lse(a, b, scale=1 / t, self_offset=1)),
    }


def evaluate(loss: Loss, a: Tensor, b: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Compute the value and the gradients of both arguments."""
    a, b = (x.detach().clone().requires_grad_() for x in (a, b))
    value = loss(a, b, temperature)
    # Multiply by the number of rows, because a float16 gradient would otherwise be too small for its type.
    gradients = torch.autograd.grad(value * len(a), (a, b))
    return value.detach().double(), torch.cat(gradients).double()


def compare(device: str, sizes: tuple[tuple[int, int], ...]) -> list[dict[str, Any]]:
    rows = []
    for (n, d), (name, dtype), t in itertools.product(sizes, DTYPES.items(), TEMPERATURES):
        generator = torch.Generator().manual_seed(n)
        a = torch.randn(n, d, generator=generator, dtype=torch.float64)
        b = a + 2 * torch.randn(n, d, generator=generator, dtype=torch.float64)
        a, b = (torch.nn.functional.normalize(x, dim=1).to(device, dtype) for x in (a, b))
        for kind, loss in losses(n, device).items():
            row: dict[str, Any] = {"loss": kind, "rows": n, "features": d, "dtype": name, "temperature": t}
            try:
                value, gradient = evaluate(loss, a, b, t)
                with use_backend("reference"):
                    exact, slope = evaluate(loss, a.double(), b.double(), t)
                row["value"] = ((value - exact).abs() / exact.abs().clamp(min=1e-30)).item()
                row["gradient"] = ((gradient - slope).norm() / slope.norm().clamp(min=1e-30)).item()
            except (RuntimeError, ValueError) as error:
                row["failed"] = f"{type(error).__name__}: {error}"[:500]
            rows.append(row)
    return rows


def worst(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the largest errors by type, the cases in which they occur, and the number of failures."""
    errors: dict[str, Any] = {}
    for name in DTYPES:
        cases = [row for row in rows if row["dtype"] == name]
        good = [row for row in cases if "failed" not in row]
        errors[name] = {"failed": len(cases) - len(good)}
        for key in ("value", "gradient"):
            if good:
                # NaN would never compare as the largest error.
                errors[name][key] = max(good, key=lambda row: float("inf") if row[key] != row[key] else row[key])
    return errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--largest", type=int, default=2048, help="number of rows per view in the largest case")
    parser.add_argument("--smallest", type=int, default=0, help="number of rows per view in the smallest case")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    begun = time.monotonic()
    with warnings.catch_warnings(record=True) as records:
        warnings.simplefilter("always")
        sizes = tuple(size for size in SIZES if arguments.smallest <= size[0] <= arguments.largest)
        rows = compare(arguments.device, sizes)
    record = {
        "info": str(info()),
        "warnings": sorted({f"{warning.message}" for warning in records}),
        "worst": worst(rows),
        "seconds": time.monotonic() - begun,
        "rows": rows,
    }
    arguments.out.write_text(json.dumps(record, indent=1))
    print(json.dumps({key: value for key, value in record.items() if key != "rows"}, indent=1))


if __name__ == "__main__":
    main()
