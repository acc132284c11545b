"""Measure time and memory of `contrastive_core.encode_in_chunks`, compared with the whole batch at once.

    python -m tools.bench.grad_cache --batches 512 1024 --chunks 64 256 --out docs/results/grad_cache.json

A step is value and gradient of NT-Xent with a small vision transformer (without batch norm) in float32. Every cell of
the table is measured in a separate process, so that peak memory is not shared. Times are CPU seconds of one thread,
which are also valid on a busy machine. The gradients of all cells of a batch must agree.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from tools.results import ROOT, provenance, write_result

SIZE, PATCH, LAYERS, WIDTH = 32, 4, 6, 192


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--batches", type=int, nargs="+", default=[512, 1024], help="numbers of views per step, which must be even"
    )
    parser.add_argument(
        "--chunks", type=int, nargs="+", default=[64, 256], help="numbers of views per call of the encoder"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cell", type=int, nargs=2, metavar=("BATCH", "CHUNK"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.cell:
        print(json.dumps(measure(*arguments.cell, repeats=arguments.repeats)))
        return
    rows: list[list[object]] = []
    for batch in arguments.batches:
        baseline = cell(batch, batch, arguments.repeats)
        for chunk in [batch, *sorted((c for c in arguments.chunks if c < batch), reverse=True)]:
            result = baseline if chunk == batch else cell(batch, chunk, arguments.repeats)
            if not math.isclose(result["gradient_norm"], baseline["gradient_norm"], rel_tol=1e-4):
                raise SystemExit(f"the gradient of {batch} views in chunks of {chunk} differs: {result} and {baseline}")
            seconds, mb = result["cpu_s"], result["extra_mb"]
            rows.append([batch, chunk, round(mb), round(seconds, 2), round(seconds / baseline["cpu_s"], 2)])
            print(*rows[-1], sep="\t", flush=True)
    if arguments.out:
        columns = ["views", "at a time", "peak memory, MB", "step, s", "times whole"]
        notes = [
            f"Value and gradient of NT-Xent in float32 with a vision transformer ({LAYERS} layers, width {WIDTH}, "
            f"{SIZE} px, patches of {PATCH}); CPU seconds of one thread, median of {arguments.repeats} step(s); memory "
            "is the peak of the process in addition to model and images.",
        ]
        config = {name: getattr(arguments, name) for name in ("batches", "chunks", "repeats")}
        table = {"columns": columns, "rows": rows}
        write_result(
            arguments.out,
            {
                "name": arguments.out.stem,
                **provenance(),
                "seeds": [0],
                "config": config,
                "table": table,
                "notes": notes,
            },
        )


def cell(batch: int, chunk: int, repeats: int) -> dict[str, float]:
    """Measure one cell in a fresh process."""
    command = [sys.executable, "-m", "tools.bench.grad_cache", "--cell", str(batch), str(chunk)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    process = subprocess.run(
        [*command, "--repeats", str(repeats)], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    result: dict[str, float] = json.loads(process.stdout.splitlines()[-1])
    return result


def measure(batch: int, chunk: int, *, repeats: int) -> dict[str, float]:
    """Measure seconds, extra memory and the norm of the gradient of a step."""
    import torch
    from torchvision.models import VisionTransformer

    from contrastive_core import encode_in_chunks, nt_xent
    from tools.bench.loss_cell import _HostMemory

    torch.set_num_threads(1)
    torch.manual_seed(0)
    encoder = VisionTransformer(SIZE, PATCH, LAYERS, 4, WIDTH, 4 * WIDTH, num_classes=128)
    torch.nn.init.trunc_normal_(encoder.heads.head.weight, std=0.02)  # torchvision begins with zeros
    views = torch.rand(batch, 3, SIZE, SIZE)

    def step(views: torch.Tensor) -> None:
        encoder.zero_grad(set_to_none=False)
        loss = nt_xent(*encode_in_chunks(encoder, views, chunk_size=chunk).chunk(2))
        loss.backward()  # type: ignore[no-untyped-call]

    step(views[:4])  # excludes what is loaded on first use
    memory = _HostMemory()
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        step(views)
        seconds.append(time.process_time() - start)
    gradient = torch.stack([p.grad.norm() for p in encoder.parameters() if p.grad is not None]).norm()
    return {
        "cpu_s": statistics.median(seconds),
        "extra_mb": memory.peak_extra_mb(),
        "gradient_norm": gradient.item(),
    }


if __name__ == "__main__":
    main()
