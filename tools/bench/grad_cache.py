"""Time and memory of `contrastive_core.encode_in_chunks` beside the whole batch at once.

    python -m tools.bench.grad_cache --batches 512 1024 --chunks 64 256 --out docs/results/grad_cache.json

A step is value and gradient of NT-Xent on a small vision transformer (no batch norm), in float32. Every cell runs in a
process of its own, so that its peak memory is its own. Times are CPU seconds at one thread, which hold on a machine
that is also busy; the gradients of all cells of a batch must agree.
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
    parser.add_argument("--batches", type=int, nargs="+", default=[512, 1024], help="views in a step, even")
    parser.add_argument("--chunks", type=int, nargs="+", default=[64, 256], help="views the encoder sees at a time")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cell", type=int, nargs=2, metavar=("BATCH", "CHUNK"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.cell:
        print(json.dumps(measure(*arguments.cell, repeats=arguments.repeats)))
        return
    rows: list[list[object]] = []
    for batch in arguments.batches:
        whole = cell(batch, batch, arguments.repeats)
        for chunk in [batch, *sorted((c for c in arguments.chunks if c < batch), reverse=True)]:
            found = whole if chunk == batch else cell(batch, chunk, arguments.repeats)
            if not math.isclose(found["gradient_norm"], whole["gradient_norm"], rel_tol=1e-4):
                raise SystemExit(f"{batch} views in chunks of {chunk} have another gradient: {found} and {whole}")
            seconds, mb = found["cpu_s"], found["extra_mb"]
            rows.append([batch, chunk, round(mb), round(seconds, 2), round(seconds / whole["cpu_s"], 2)])
            print(*rows[-1], sep="\t", flush=True)
    if arguments.out:
        columns = ["views", "at a time", "peak memory, MB", "step, s", "times whole"]
        notes = [
            f"Value and gradient of NT-Xent in float32 with a vision transformer ({LAYERS} layers, width {WIDTH}, "
            f"{SIZE} px, patches of {PATCH}); CPU seconds at one thread, median of {arguments.repeats} step(s); memory "
            "is the peak of the process beyond what model and images take.",
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
    """One cell from a fresh process."""
    command = [sys.executable, "-m", "tools.bench.grad_cache", "--cell", str(batch), str(chunk)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--repeats", str(repeats)], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(batch: int, chunk: int, *, repeats: int) -> dict[str, float]:
    """Seconds, extra memory and the gradient's norm of a step."""
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

    step(views[:4])  # what is loaded on first use belongs to no size
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
