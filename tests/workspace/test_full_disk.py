"""Disks that are full, out of inodes or read-only: one line that says what to do, from every verb that writes.

Each is a real file system, a small tmpfs; where mounting is not allowed, these tests are skipped.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.workspace.test_outputs_of_commands import CASES, Case, call, contents, filled, help_of

Mount = Callable[[str], Path]
EVERY = [
    pytest.param(domain, case, id=f"{domain}-{number}-{case.verb}")
    for domain in CASES
    for number, case in enumerate(CASES[domain])
]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """`mount("size=4k")` gives a file system of its own with these options."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def make(options: str) -> Path:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)], check=False, capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"mounting is not allowed here ({done.stderr.strip()})")
        return folder

    try:
        yield make
    finally:
        subprocess.run(["umount", str(folder)], check=False, capture_output=True)


def is_run(domain: str, verb: str) -> bool:
    return "--run.resume" in help_of(domain, verb)


def refused(
    domain: str, case: Case, place: dict[str, Path], out: Path, capsys: pytest.CaptureFixture[str]
) -> str | None:
    """Return the one-line message of the command; None if everything fitted."""
    inputs = contents(next(iter(place.values())).parent)
    capsys.readouterr()
    line = filled(case.words, place, out)
    status = call(domain, line)
    said = capsys.readouterr().err
    assert contents(next(iter(place.values())).parent) == inputs
    if status == case.status and "free some space" not in said:
        return None
    assert status == 1, said
    problem = [part for part in said.splitlines() if part.startswith(domain.replace("_", "-"))]
    assert len(problem) == 1, said
    return "\n".join(said.splitlines()[said.splitlines().index(problem[0]) :])


@pytest.mark.parametrize(("domain", "case"), EVERY)
def test_a_read_only_disk(
    domain: str, case: Case, places: Callable[[str], dict[str, Path]], mount: Mount, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = mount("size=4m")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    said = refused(domain, case, places(domain), disk / "out", capsys)
    assert said is not None
    assert "ead-only file system" in said
    assert "choose another" in said
    assert list(disk.iterdir()) == []


@pytest.mark.parametrize("options", ["size=4k", "size=1m,nr_inodes=2"])
@pytest.mark.parametrize(("domain", "case"), EVERY)
def test_a_full_disk(
    domain: str,
    case: Case,
    options: str,
    places: Callable[[str], dict[str, Path]],
    mount: Mount,
    capsys: pytest.CaptureFixture[str],
) -> None:
    disk = mount(options)
    said = refused(domain, case, places(domain), disk / "out", capsys)
    if said is None:
        pytest.skip("what it writes fits")
    assert "free some space" in said or "delete some files" in said
    if is_run(domain, case.verb) and "go on by" in said:
        assert said.rstrip().endswith("--resume")
    half = [path for path in disk.rglob("*.tmp*") if path.is_file() and path.stat().st_size]
    assert half == [], "half a file stays"


@pytest.mark.parametrize(
    ("domain", "words"),
    [
        ("ssl_vision", "embed pixels DATA OUT/x.npz --device cpu"),
        ("ssl_vision", "evaluate MODEL digits --out OUT --device cpu"),
        ("ssl_vision", "predict MODEL DATA OUT/table.csv --device cpu"),
        ("ssl_vision", "export MODEL OUT/net.pt2"),
        ("ssl_medseg", "predict MODEL DATA OUT --probabilities --device cpu"),
        ("ssl_medseg", "evaluate MODEL DATA --out OUT --part all --device cpu"),
        ("ssl_medseg", "export MODEL OUT/net.pt2"),
        ("ssl_medseg", "export MODEL OUT"),
        ("ssl_video", "evaluate MODEL DATA --split SPLIT --out OUT --clips 1 --crops 1 --device cpu"),
        ("ssl_video", "predict MODEL DATA OUT/table.csv --clips 1 --crops 1 --device cpu"),
        ("ssl_video", "export MODEL OUT/net.safetensors"),
    ],
)
def test_space_is_compared_before_the_work(
    domain: str,
    words: str,
    places: Callable[[str], dict[str, Path]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = filled(words, places(domain), tmp_path / "out")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 10, 10))  # type: ignore[attr-defined]
    assert call(domain, line) == 1
    said = capsys.readouterr().err
    assert "but only 10 B are free; free some space, or choose another --out" in said
    assert not (tmp_path / "out").exists()


def test_flow_compares_the_space(
    places: Callable[[str], dict[str, Path]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = filled(
        "flow DATA OUT --workers 0 --method dis_ultrafast --short-side 32", places("ssl_video"), tmp_path / "f"
    )
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 10, 10))  # type: ignore[attr-defined]
    assert call("ssl_video", line) == 1
    assert "but only 10 B are free; free some space, or use a smaller --short-side" in capsys.readouterr().err
    assert not (tmp_path / "f").exists()


@pytest.mark.slow
@pytest.mark.parametrize("size", ["48k", "160k", "400k", "1m"])
@pytest.mark.parametrize(("domain", "case"), [each for each in EVERY if is_run(each.values[0], each.values[1].verb)])
def test_a_disk_that_is_full_in_the_middle_of_a_run(
    domain: str,
    case: Case,
    size: str,
    places: Callable[[str], dict[str, Path]],
    mount: Mount,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("contrastive_core.training.files.check_space", lambda *_, **__: None)
    said = refused(domain, case, places(domain), mount(f"size={size}") / "out", capsys)
    if said is None:
        pytest.skip("what it writes fits")
    assert "free some space" in said
    assert said.rstrip().endswith("--resume")
