"""Memory as counted by torch, the same on every machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from torch.profiler import ProfilerActivity, profile


def allocations(run: Callable[[], object], folder: Path) -> tuple[int, int]:
    """Return the largest single allocation of a call and the most memory held at a time."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    profiler.export_chrome_trace(str(folder / "trace.json"))
    trace = json.loads((folder / "trace.json").read_text())["traceEvents"]
    events = [event["args"] for event in trace if event.get("name") == "[memory]"]
    totals = [event["Total Allocated"] for event in events]
    return max(event["Bytes"] for event in events), max(totals) - (totals[0] - events[0]["Bytes"])
