r"""Measure time and memory of `contrastive_core.nt_xent`, compared with other libraries and plain matrix products.

    python -m tools.bench.losses --out docs/results/bench_losses.json    # about ten minutes on an idle machine

A size is the number N of embeddings (N / 2 samples with two views each); a call computes value and gradient in float32.
Every cell is measured in a separate process (`tools/bench/loss_cell.py`), forked from a process that has imported all
libraries, so that peak memory is not shared. A round measures all cells, and medians over rounds are reported, so that
other work on the machine does not affect only one method. A call that takes longer than `--long` is measured in only
one round. Libraries that are not installed and cells that exceed the memory limit are omitted with a message.

    python -m tools.bench.losses --device cuda --sizes 4096 16384 65536 --dims 128 768 --dtypes float32 bfloat16 \
        --methods nt_xent nt_xent_torch full_matrix full_matrix_compiled --limit-gb 60 --out bench_losses_cuda.json

On CUDA, all cells run in one process. The last columns compare nt_xent with the limits of the machine, measured in the
same run: two products N x N x D at the rate of a plain product of large matrices (float16 on CUDA), and reading the
embeddings twice and writing the gradient once at the rate of a copy.

`nt_xent` uses the compiled library if it has been built (`python -m contrastive_core build`); `nt_xent_torch` does not.
Times are CPU seconds with one thread (which are also valid on a busy machine), wall seconds with several threads, and
device seconds on CUDA. Each row of the table has a size, seconds and megabytes of nt_xent, and those of the other
methods as multiples.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from contrastive_core import info
from tools.bench.loss_cell import METHODS, measure, peak_bytes, peak_flops
from tools.results import provenance, render, write_result

OURS = "nt_xent"
PEERS = frozenset({"lightly", "pml_supcon", "pml_nt_xent"})  # methods of libraries that take long to import
_PRODUCTS = {
    "gemm2": "two N x N x D products by torch without any other work, the products of a symmetric loss",
    "gemm3": "three N x N x D products by torch, those of a loss that stores the N x N matrix",
}


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of the machine, measured in the same run as the losses.

    Attributes:
        flops: Operations per second of a plain product, in float32 on the CPU and in float16 on CUDA.
        bytes: Bytes read and written per second by a copy.
    """

    flops: float
    bytes: float

    @classmethod
    def measure(cls, device: str, threads: int) -> Limits:
        dtype = torch.float16 if device == "cuda" else torch.float32
        return cls(peak_flops(dtype, device, threads), peak_bytes(device, threads))

    def shares(self, rows: int, dim: int, dtype: str, seconds: float) -> list[str]:
        """Return the shares of the time that products and memory traffic alone would take."""
        size = 4 if dtype == "float32" else 2
        products, memory = 4 * rows**2 * dim / self.flops, 3 * rows * dim * size / self.bytes
        return [f"{products / seconds:.0%}", f"{memory / seconds:.1%}"]

    def __str__(self) -> str:
        return f"{self.flops / 1e9:,.0f} GFLOP/s, {self.bytes / 1e9:,.0f} GB/s"


DEFAULT = (OURS, "nt_xent_torch", "gemm2", "full_matrix", "lightly")
Result = dict[str, Any]
Key = tuple[int, str, int, int, str]  # threads, dtype, dim, rows, method


def main() -> int:
    arguments = parse()
    start = time.monotonic()
    keys = [
        *itertools.product(
            arguments.threads, arguments.dtypes, arguments.dims, arguments.sizes, arguments.methods
        )
    ]  # fmt: skip
    results_of: dict[Key, list[Result]] = {key: [] for key in keys}
    for number, key in itertools.product(range(arguments.rounds), keys):
        threads, dtype, dim, rows, method = key
        smaller = [results_of[threads, dtype, dim, size, method] for size in arguments.sizes if size <= rows]
        if any("skipped" in result for results in smaller for result in results):
            continue
        if any(result["wall_s"] > arguments.long for result in results_of[key]):
            continue
        result = run_cell(arguments, method=method, rows=rows, dim=dim, threads=threads, dtype=dtype)
        results_of[key].append(result)
        note = result.get("skipped") or f"{result['wall_s']:.4f} s wall, {result['extra_mb']:.0f} MB"
        elapsed = time.monotonic() - start
        print(f"{elapsed:4.0f} s, round {number + 1}: N={rows} D={dim} {dtype} threads={threads} {method}: {note}",
              file=sys.stderr, flush=True)  # fmt: skip
    medians = {key: merge(results) for key, results in results_of.items()}
    check_agreement(medians)
    result = as_result(medians, arguments)
    print(render(result, f"{arguments.out or 'bench_losses.json'}"))
    if arguments.out:
        write_result(arguments.out, result)
    return int(any("failed" in f"{cell.get('skipped')}" for cell in medians.values()))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[1024, 4096, 16384], help="numbers of embeddings N, which must be even"
    )
    parser.add_argument("--dims", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--methods", nargs="+", default=list(DEFAULT), choices=list(METHODS))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtypes", nargs="+", default=["float32"], choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--rounds", type=int, default=3, help="passes over all cells")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls per cell and round")
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="seconds per cell after which calls are not repeated"
    )
    parser.add_argument("--long", type=float, default=4.0, help="seconds per call from which only one round is made")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds after which a cell is stopped")
    parser.add_argument("--limit-gb", type=float, default=8.0, help="limit of extra memory per cell in GB")
    parser.add_argument("--in-process", action="store_true", help="measure all cells in this process, as on CUDA")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    arguments.sizes.sort()
    if any(size < 2 or size % 2 for size in arguments.sizes):
        parser.error(f"--sizes: got {arguments.sizes}, expected even numbers of embeddings (two views per sample)")
    return arguments


def run_cell(arguments: argparse.Namespace, **cell: Any) -> Result:
    """Measure a cell in a separate process (on CUDA in this process); return the result or {"skipped": reason}."""
    options = {"device": arguments.device, "repeats": arguments.repeats, "seconds": arguments.seconds}
    options |= {"long": arguments.long, "limit_mb": arguments.limit_gb * 1024}
    if arguments.device == "cuda" or arguments.in_process:
        return measure(**cell, **options)
    processes = multiprocessing.get_context("forkserver")
    peers = ["tools.bench.peers"] if PEERS.intersection(arguments.methods) else []
    processes.set_forkserver_preload(["tools.bench.loss_cell", *peers])
    results, end = processes.Pipe(duplex=False)
    process = processes.Process(target=work, args=(end, {**cell, **options}))
    process.start()
    end.close()
    try:
        if not results.poll(arguments.timeout):
            process.kill()
            return {"skipped": f"takes more than {arguments.timeout:.0f} s"}
        result: Result = results.recv()
    except EOFError:
        process.join()
        result = {"skipped": f"failed ({process.exitcode})"}
    process.join()
    return result


def work(end: Connection, cell: Mapping[str, Any]) -> None:
    try:
        end.send(measure(**cell))
    except Exception as error:
        end.send({"skipped": f"failed: {type(error).__name__}: {error}"})
        raise


def merge(results: list[Result]) -> Result:
    """Merge the results of all rounds into medians, the smallest minima and the total number of calls."""
    if not results:
        return {"skipped": "a smaller size was skipped"}
    for result in results:
        if "skipped" in result:
            return result
    how: dict[str, Callable[[list[float]], float]] = {"wall_min_s": min, "cpu_min_s": min, "repeats": sum}
    return {name: how.get(name, statistics.median)([result[name] for result in results]) for name in results[0]}


def check_agreement(medians: Mapping[Key, Result]) -> None:
    """Mark the results whose loss or gradient differs from ours."""
    for (threads, dtype, dim, rows, _), result in medians.items():
        ours = medians.get((threads, dtype, dim, rows, OURS), {})
        if "loss" in result and "loss" in ours:
            pairs = [(result[name], ours[name]) for name in ("loss", "gradient_norm")]
            limit = 1e-4 if dtype == "float32" else 1e-2
            result["agrees"] = all(math.isclose(value, reference, rel_tol=limit) for value, reference in pairs)


def as_result(medians: Mapping[Key, Result], arguments: argparse.Namespace) -> dict[str, object]:
    """Return the content of the results file, with all cells and a table with a row for every size."""
    names = ("threads", "dtype", "dim", "rows", "method")
    on_cuda = arguments.device == "cuda"
    limits = {threads: Limits.measure(arguments.device, threads) for threads in arguments.threads}
    config = {name: value for name, value in vars(arguments).items() if name != "out"}
    config["library"] = info().library or "none: nt_xent is nt_xent_torch"
    instructions, _, path = config["library"].partition(", ")
    config["library"] = f"{instructions}, {Path(path).name}" if path else instructions
    rows: list[list[object]] = []
    for threads, dtype, dim, size in itertools.product(
        arguments.threads, arguments.dtypes, arguments.dims, arguments.sizes
    ):
        ours = medians.get((threads, dtype, dim, size, OURS), {"skipped": "not requested"})
        cells = [medians[threads, dtype, dim, size, method] for method in arguments.methods]
        row = [size, dim, dtype if on_cuda else threads]
        row += [multiple(cell, ours, clock_of(threads, arguments)) for cell in cells]
        clock, limit = clock_of(threads, arguments), limits[threads]
        rows.append([*row, *(limit.shares(size, dim, dtype, ours[clock]) if clock in ours else ["-", "-"])])
    reasons = {f"{cell['skipped']}" for cell in medians.values() if "not installed" in cell.get("skipped", "")}
    return {
        "name": arguments.out.stem if arguments.out else "bench_losses",
        **provenance(),
        "seeds": [0],
        "config": config,
        "limits": {threads: dataclasses.asdict(limit) for threads, limit in limits.items()},
        "table": {
            "columns": [
                "N",
                "D",
                "type" if on_cuda else "threads",
                *arguments.methods,
                "products / limit",
                "memory / limit",
            ],
            "rows": rows,
        },
        "notes": [
            f"Value and gradient {'' if on_cuda else 'in float32 '}of N embeddings (N / 2 pairs) with D features: "
            "seconds and extra megabytes of nt_xent, and time and extra memory (in brackets) of the others as "
            "multiples of these. "
            + (
                "nt_xent_torch does not use the kernels for tensor cores. The full matrix of bfloat16 inputs is "
                "multiplied in bfloat16. "
                if on_cuda
                else f"nt_xent_torch does not use the compiled library ({instructions}). "
                + "".join(f"{name} is {text}. " for name, text in _PRODUCTS.items() if name in arguments.methods)
            )
            + "The last columns are the shares of nt_xent's time that its products and its memory traffic would take "
            "at the limit of the machine, with two products N x N x D at the rate of the fastest plain product in the "
            "same run, and with the embeddings read twice and the gradient written once at the rate of a copy: "
            + ", ".join(f"{limit}" for limit in limits.values())
            + ".",
            f"Medians over {arguments.rounds} rounds, or one round for calls over {arguments.long:g} s; "
            + (
                "CPU seconds with one thread, wall seconds with several. "
                if arguments.device == "cpu"
                else "device seconds. "
            )
            + f"A dash means that more than {arguments.limit_gb:g} GB or {arguments.timeout:g} s would be needed"
            + "".join(f", or {reason}" for reason in sorted(reasons))
            + ".",
        ],
        "cells": [{**dict(zip(names, key, strict=True)), **result} for key, result in medians.items()],
    }


def multiple(peer: Result, ours: Result, clock: str) -> str:
    """Format a cell of the table: "5.70x [29.8x]", or "1.51 s [104 MB]" for nt_xent."""
    if "skipped" in peer or "skipped" in ours:
        return "-"
    if peer is ours:
        return f"{ours[clock]:.3g} s [{ours['extra_mb']:.0f} MB]"
    ratio = f"{peer[clock] / ours[clock]:.2f}x [{peer['extra_mb'] / max(ours['extra_mb'], 0.1):.1f}x]"
    return ratio if peer.get("agrees", True) else f"{ratio} (another value!)"


def clock_of(threads: int, arguments: argparse.Namespace) -> str:
    return "cpu_s" if threads == 1 and arguments.device == "cpu" else "wall_s"


if __name__ == "__main__":
    sys.exit(main())
