"""Draw time and memory of the losses by batch size from the results of `tools/bench/losses.py`.

python -m tools.bench.loss_figure docs/results/bench_losses.json    # writes bench_losses.png to the same folder
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from contrastive_core.app.report.figures import SERIES, new_figure, plain_axes, to_png
from tools.results import read, row_of

DIM, THREADS = 128, 1
NAMES = {"nt_xent": "contrastive-core", "full_matrix": "full matrix in PyTorch", "lightly": "lightly"}


def curves(path: Path) -> dict[str, list[tuple[int, float, float]]]:
    """Read N, seconds and megabytes of every method."""
    result = read(path)
    columns = result["table"]["columns"]
    sizes = sorted({row[0] for row in result["table"]["rows"]})
    points: dict[str, list[tuple[int, float, float]]] = {name: [] for name in NAMES}
    for size in sizes:
        row = row_of(result, [size, DIM, THREADS])
        cells = {name: row[columns.index(name)] for name in NAMES}
        seconds, megabytes = (float(number) for number in re.findall(r"([\d.]+) (?:s|MB)", cells["nt_xent"]))
        points["nt_xent"].append((size, seconds, megabytes))
        for name in list(NAMES)[1:]:
            time, memory = (float(number) for number in re.findall(r"([\d.]+)x", cells[name]))
            points[name].append((size, seconds * time, megabytes * memory))
    return points


def main() -> None:
    path = Path(sys.argv[1])
    figure = new_figure(8.4, 3.2)
    for axes, place, title in zip(figure.subplots(1, 2), (1, 2), ("seconds", "extra memory, MB"), strict=True):
        plain_axes(axes, title)
        for colour, (name, points) in zip(SERIES, curves(path).items(), strict=False):
            sizes = [point[0] for point in points]
            axes.plot(sizes, [point[place] for point in points], color=colour, marker="o", label=NAMES[name])
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.set_xlabel(f"embeddings of {DIM} numbers")
        if place == 1:
            axes.legend(frameon=False)
    path.with_suffix(".png").write_bytes(to_png(figure))


if __name__ == "__main__":
    main()
