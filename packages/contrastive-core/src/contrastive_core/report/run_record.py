"""What the engine has left in a run's folder: configuration, metrics, timing."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contrastive_core.errors import UserError
from contrastive_core.train import config, metrics


@dataclass(frozen=True)
class RunRecord:
    """A run as it lies on disk, finished or not.

    Attributes:
        config: all settings, as resolved.
        records: the lines of ``metrics.jsonl``.
        sessions: where and how it was started, each time.
        seconds: spent in training steps; None when nothing was logged.
    """

    config: Mapping[str, Any]
    records: list[dict[str, int | float]]
    sessions: list[dict[str, Any]]
    seconds: float | None


def read_record(path: Path, *, made_by: str) -> RunRecord:
    """Read the folder of a run.

    Args:
        path: of the folder.
        made_by: the commands whose folder is expected, for the error message.

    Raises:
        UserError: it is none, or its files are damaged.
    """
    if not (path / "config.yaml").is_file():
        raise UserError(f"{path}: found no config.yaml there, expected the out folder of {made_by}")
    timing = _lines(path / "timing.jsonl", _read_timing)
    return RunRecord(
        config=config.read(path / "config.yaml"),
        records=_lines(path / "metrics.jsonl", metrics.read),
        sessions=[line for line in timing if "session" in line],
        seconds=_seconds(timing),
    )


def _lines(file: Path, read: Callable[[Path], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    try:
        return read(file)
    except ValueError as error:
        raise UserError(f"{file}: damaged ({error}); expected one JSON object per line") from error


def _read_timing(file: Path) -> list[dict[str, Any]]:
    if not file.exists():
        return []
    # A kill may have cut the last line short.
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines(keepends=True) if line[-1] == "\n"]


def _seconds(timing: list[dict[str, Any]]) -> float | None:
    """Time spent in steps over all sessions; what was lost by a kill and done again counts twice, as it was spent."""
    total, current = 0.0, 0.0
    for line in timing:
        if "session" in line:
            total, current = total + current, 0.0
        else:
            current = float(line["seconds"])
    return total + current or None
