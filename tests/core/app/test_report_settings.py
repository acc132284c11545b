"""Reports distinguish what a user set from what a command chose, and explain only lines that are drawn."""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from contrastive_core.app.report import sections
from contrastive_core.app.report.figures import RATE, Panel, running_mean_note
from contrastive_core.app.report.run_record import showing
from contrastive_core.errors import UserError
from contrastive_core.text import decimal
from contrastive_core.training import Run, RunOptions
from contrastive_core.training.config import read
from contrastive_core.training.documents import read_json_lines


@dataclass(frozen=True)
class Network:
    """A network.

    Attributes:
        name: Its name.
        width: Its width.
    """

    name: str = "small"
    width: int = 16


@dataclass(frozen=True)
class Rates:
    """Learning rate.

    Attributes:
        lr: Its value; None: chosen.
        decay: Weight decay.
    """

    lr: float | None = None
    decay: float = 0.0


def command(
    out: Path,
    *,
    steps: int | None = None,
    network: Network | None = None,
    rates: Rates = Rates(),
    run: RunOptions = RunOptions(),  # noqa: B008 - frozen
) -> str:
    """A command that chooses open settings, and whose report is returned."""
    config = dict(locals())
    resolved = {
        "steps": steps or 2,
        "network": network or Network("large", 64),
        "rates": Rates(rates.lr or 0.1, rates.decay),
    }
    with Run(out, config=config, command="toy command", options=run, resolved=resolved) as r:
        for _ in r.steps(1):
            r.log(loss=1.0)
    return sections.settings(
        read(out / "config.yaml"), command, name="toy", again="toy",
        sessions=[line for line in read_json_lines(out / "timing.jsonl") if "session" in line],
    )  # fmt: skip


def bold(page: str) -> dict[str, str]:
    return dict(re.findall(r'<tr class=changed><th scope="row">(\w+)</th>\s*<td>([^<]*)</td>', page))


CPU = RunOptions(device="cpu", progress=False)


def test_what_a_command_chose_is_not_bold(tmp_path: Path) -> None:
    page = command(tmp_path / "a", run=CPU)
    assert set(bold(page)) - {"out"} == {"device", "progress"}
    assert "large" in page


def test_what_a_user_set_is_bold(tmp_path: Path) -> None:
    page = command(tmp_path / "a", steps=7, network=Network(width=32), rates=Rates(decay=0.5), run=CPU)
    found = bold(page)
    assert {name: found.get(name) for name in ("steps", "width", "decay")} == {
        "steps": "7", "width": "32", "decay": "0.5",
    }  # fmt: skip
    assert not {"lr", "name"} & set(found)  # chosen, and left at its default


def test_faint_lines_are_explained_where_there_are_some() -> None:
    panels = (Panel("Loss", {}), RATE)
    few, many = ([{"step": i, "loss": 1.0, "lr": 0.1} for i in range(count)] for count in (20, 60))
    assert running_mean_note(few, panels) == ""
    assert "Faint lines" in running_mean_note(many, panels)
    assert running_mean_note(many, (RATE,)) == ""


def test_a_report_of_damaged_files_names_the_run(tmp_path: Path) -> None:
    said = r"run: its files do not have the content of a run \('steps' is missing\)"
    with pytest.raises(UserError, match=said), showing(tmp_path / "run"):
        raise KeyError("steps")
    for error in (UserError("x"), MemoryError(), OSError(errno.ENOSPC, "full")):
        with pytest.raises(type(error)) as caught, showing(tmp_path / "run"):
            raise error
        assert caught.value is error


def test_huge_losses_are_short() -> None:
    assert [decimal(value) for value in (0.12345, 123456.7, 2.1158e16, float("nan"))] == [
        "0.123", "123456.700", "2.12e+16", "nan",
    ]  # fmt: skip
