"""Time and memory of `contrastive_core.nt_xent` beside its peers and the matrix products nobody can avoid.

    python -m tools.bench_losses --sizes 1024 4096 --dims 128 --threads 1 2 --out results/bench_losses.json

A size is the number N of embeddings compared (N / 2 samples, two views each); a call is value and gradient in float32.
Every cell runs in a process of its own (`tools/bench/loss_cell.py`), so that its peak memory is its own. A round goes
over all cells, and medians over rounds are reported, so that a busy minute of the machine does not fall on one method.
Peers that are not installed and cells that do not fit into the memory limit are left out, saying so.

`nt_xent` uses the compiled library where it is built (`python -m contrastive_core build`), `nt_xent_torch` does not.
Times are CPU seconds at one thread (they hold on a machine that is also busy), wall seconds at more, device seconds on
CUDA. Printed are Markdown tables: seconds and extra megabytes, then both as multiples of nt_xent.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from contrastive_core import info
from tools.bench.loss_cell import METHODS
from tools.results import ROOT, provenance, write_result

OURS = "nt_xent"
Result = dict[str, Any]
Key = tuple[int, int, int, str]  # threads, dim, rows, method


def main() -> int:
    arguments = parse()
    keys = [*itertools.product(arguments.threads, arguments.dims, sorted(arguments.sizes), arguments.methods)]
    measured: dict[Key, list[Result]] = {key: [] for key in keys}
    for number, (threads, dim, rows, method) in itertools.product(range(arguments.rounds), keys):
        smaller = [measured[threads, dim, size, method] for size in arguments.sizes if size <= rows]
        if any("skipped" in result for results in smaller for result in results):
            continue
        result = run_cell(arguments, method=method, rows=rows, dim=dim, threads=threads)
        measured[threads, dim, rows, method].append(result)
        note = result.get("skipped") or f"{result['wall_s']:.4f} s wall, {result['extra_mb']:.0f} MB"
        print(f"round {number + 1}: N={rows} D={dim} threads={threads} {method}: {note}", file=sys.stderr, flush=True)
    merged = {key: merge(results) for key, results in measured.items()}
    check_agreement(merged)
    for threads, dim in itertools.product(arguments.threads, arguments.dims):
        print_tables(merged, threads, dim, arguments)
    if arguments.out:
        write_result(arguments.out, as_result(merged, arguments))
    return int(any("failed" in f"{result.get('skipped')}" for result in merged.values()))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 4096, 16384, 32768], help="embeddings N, even")
    parser.add_argument("--dims", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=3, help="passes over all cells")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls per cell and round")
    parser.add_argument("--seconds", type=float, default=20.0, help="no further repeat after this long in a cell")
    parser.add_argument("--timeout", type=float, default=900.0, help="give a cell up after this many seconds")
    parser.add_argument("--limit-gb", type=float, default=8.0, help="extra memory a cell may take")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    if any(size < 2 or size % 2 for size in arguments.sizes):
        parser.error(f"--sizes: got {arguments.sizes}, expected even numbers of embeddings (two views per sample)")
    return arguments


def run_cell(arguments: argparse.Namespace, *, method: str, rows: int, dim: int, threads: int) -> Result:
    """The cell's result from a fresh process, or {"skipped": why}."""
    spec = {"method": method, "rows": rows, "dim": dim, "threads": threads, "device": arguments.device}
    spec |= {"repeats": arguments.repeats, "seconds": arguments.seconds, "limit_mb": arguments.limit_gb * 1024}
    command = [sys.executable, "-m", "tools.bench.loss_cell", json.dumps(spec)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=arguments.timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return {"skipped": f"takes more than {arguments.timeout:.0f} s"}
    if done.returncode != 0:
        return {"skipped": f"failed ({done.returncode}): {(done.stderr.strip().splitlines() or ['no message'])[-1]}"}
    result: Result = json.loads(done.stdout.splitlines()[-1])
    return result


def merge(results: list[Result]) -> Result:
    """One result of the rounds: medians, the smallest of the minima, the number of calls behind them."""
    if not results:
        return {"skipped": "a smaller size was left out"}
    for result in results:
        if "skipped" in result:
            return result
    how: dict[str, Callable[[list[float]], float]] = {"wall_min_s": min, "cpu_min_s": min, "repeats": sum}
    return {name: how.get(name, statistics.median)([result[name] for result in results]) for name in results[0]}


def check_agreement(merged: Mapping[Key, Result]) -> None:
    """Marks results whose loss or gradient is not ours: a fast wrong answer is not a peer."""
    for (threads, dim, rows, _), result in merged.items():
        ours = merged.get((threads, dim, rows, OURS), {})
        if "loss" in result and "loss" in ours:
            pairs = [(result[name], ours[name]) for name in ("loss", "gradient_norm")]
            result["agrees"] = all(math.isclose(theirs, mine, rel_tol=1e-4) for theirs, mine in pairs)


def as_result(merged: Mapping[Key, Result], arguments: argparse.Namespace) -> dict[str, object]:
    """The results file: every cell, and a table of times and memory as multiples of nt_xent's."""
    names = ("threads", "dim", "rows", "method")
    config = {name: value for name, value in vars(arguments).items() if name != "out"}
    config["library"] = info().library or "none: nt_xent is nt_xent_torch"
    sizes = sorted(arguments.sizes)
    rows: list[list[object]] = []
    for threads, dim, method in itertools.product(arguments.threads, arguments.dims, arguments.methods):
        pairs = [(merged[threads, dim, size, method], merged[threads, dim, size, OURS]) for size in sizes]
        clock = clock_of(threads, arguments)
        rows.append([method, dim, threads, *(multiple(theirs, ours, clock) for theirs, ours in pairs)])
    return {
        "name": arguments.out.stem,
        **provenance(),
        "seeds": [0],
        "config": config,
        "table": {"columns": ["method", "D", "threads", *(f"N = {size}" for size in sizes)], "rows": rows},
        "notes": [
            "Value and gradient in float32 of N embeddings (N / 2 pairs) of D numbers: time as multiples of nt_xent's, "
            "in brackets extra memory likewise; of nt_xent itself seconds and megabytes. nt_xent_torch lacks the "
            f"compiled library ({config['library'].partition(',')[0]}). gemm2 and gemm3 are two and three N x N x D "
            "products by torch and nothing else: the work of a symmetric loss, and of one that stores N x N.",
            f"Medians over {arguments.rounds} rounds; CPU seconds at one thread, wall seconds at more. A dash: more "
            f"than {arguments.limit_gb:g} GB or {arguments.timeout:g} s would be needed.",
        ],
        "cells": [{**dict(zip(names, key, strict=True)), **result} for key, result in merged.items()],
    }


def multiple(theirs: Result, ours: Result, clock: str) -> str:
    """A cell of the table: "5.70x [29.8x]", and for ourselves "1.51 s [104 MB]"."""
    if "skipped" in theirs or "skipped" in ours:
        return "-"
    if theirs is ours:
        return f"{ours[clock]:.3g} s [{ours['extra_mb']:.0f} MB]"
    ratio = f"{theirs[clock] / ours[clock]:.2f}x [{theirs['extra_mb'] / max(ours['extra_mb'], 0.1):.1f}x]"
    return ratio if theirs.get("agrees", True) else f"{ratio} (another value!)"


def clock_of(threads: int, arguments: argparse.Namespace) -> str:
    return "cpu_s" if threads == 1 and arguments.device == "cpu" else "wall_s"


def print_tables(merged: Mapping[Key, Result], threads: int, dim: int, arguments: argparse.Namespace) -> None:
    clock = clock_of(threads, arguments)

    def absolute(result: Result, _: Result) -> str:
        return f"{result[clock]:.3g} [{result['extra_mb']:.0f}]"

    def ratio(result: Result, ours: Result) -> str:
        if "skipped" in ours:
            return "-"
        return f"{result[clock] / ours[clock]:.2f} [{result['extra_mb'] / max(ours['extra_mb'], 0.1):.1f}]"

    print(f"\nD = {dim}, {arguments.device}, {threads} thread(s): {clock.removesuffix('_s')} seconds [extra MB]\n")
    here = {(method, rows): result for (t, d, rows, method), result in merged.items() if (t, d) == (threads, dim)}
    print_table("N", here, absolute)
    if OURS in arguments.methods:
        print_table(f"times {OURS}", here, ratio)


def print_table(title: str, cells: Mapping[tuple[str, int], Result], entry: Callable[[Result, Result], str]) -> None:
    methods, sizes = (list(dict.fromkeys(names)) for names in zip(*cells, strict=True))
    print(f"| {title} | {' | '.join(map(str, sizes))} |")
    print("|---" * (len(sizes) + 1) + "|")
    for method in methods:
        row = []
        for size in sizes:
            result = cells[method, size]
            shown = result.get("skipped") or entry(result, cells.get((OURS, size), {}))
            row.append(shown if result.get("agrees", True) else f"{shown} (another value!)")
        print(f"| {method} | {' | '.join(row)} |")
    print()


if __name__ == "__main__":
    sys.exit(main())
