"""Write the results of a GPU run to the files in docs/results from which the pages are generated.

    python -m tools.gpu.publish out/gpu.json

Stages that did not run or have no results are skipped. Run `tools/run results-table` afterwards to update the pages.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tools.results import RESULTS, ROOT, write_result

Table = tuple[list[str], list[list[Any]]]


def simclr(results: Mapping[str, Any]) -> Table:
    result = results["network.json"]
    columns = ["batch", "images/s of the run", "images/s of the network alone", "share outside the network, %"]
    speeds = [round(result[key]) for key in ("run_images_per_second", "images_per_second")]
    return columns, [[result["batch"], *speeds, round(100 * result["share_outside_network"], 1)]]


def suncet(results: Mapping[str, Any]) -> Table:
    rows = [[name, point["images"], point["top1"]] for name, curve in results["linear.json"].items() for point in curve]
    return ["pre-training", "images seen", "linear top-1 %"], rows


def mvpl(results: Mapping[str, Any]) -> Table:
    names = {"mvpl.json": "MvPL", "supervised.json": "labels alone"}
    rows = [
        [names[file], point["steps"], point["seconds"], point["top1"]]
        for file in names
        for point in results.get(file, {}).get("curve", [])
    ]
    return ["method", "steps", "s", "top-1 %"], rows


def acdc(results: Mapping[str, Any]) -> Table:
    table = results["acdc_strong.json"]["table"]
    return table["columns"], table["rows"]


def profile(results: Mapping[str, Any]) -> Table:
    rows = [
        [name, entry["kernel"].replace("|", "/"), round(entry["us"]), entry["calls"]]
        for name, entries in results["kernels.json"].items()
        for entry in entries[:8]
    ]
    return ["what", "kernel", "us", "calls"], rows


TABLES = {function.__name__: function for function in (simclr, suncet, mvpl, acdc, profile)}


def publish(record: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write ``gpu_STAGE.json`` for every stage with results in a gpu.json."""
    paths = []
    origin = json.loads(record["stages"]["prepare"]["provenance"]["said"].strip().splitlines()[-1])
    for name, table in TABLES.items():
        stage = record["stages"].get(name, {})
        try:
            columns, rows = table(stage.get("results", {}))
        except (KeyError, TypeError, AttributeError) as error:
            print(f"{name}: passed over, no {error}")
            continue
        if not rows:
            continue
        path = folder / f"gpu_{name}.json"
        commands = [command["line"] for command in stage["commands"]]
        write_result(
            path,
            {"name": path.stem, **origin, "seeds": [0], "config": {"commands": commands},
             "table": {"columns": columns, "rows": rows}, "notes": []},
        )  # fmt: skip
        paths.append(path)
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="file gpu.json of a run")
    arguments = parser.parse_args()
    publish(json.loads(arguments.file.read_text()), ROOT / RESULTS)


if __name__ == "__main__":
    main()
