"""Killed, stopped and resumed runs: real processes, started as users start them."""

from __future__ import annotations

import contextlib
import importlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from contrastive_core.training import RunOptions, checkpoint, load_model, recorder

TOY = Path(__file__).with_name("toy_train.py")
PATIENCE = 300.0


class Program:
    """A started program with its process group, which is ended with the test."""

    def __init__(self, words: list[str], log: Path) -> None:
        self.log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)

    def said(self) -> str:
        return self.log.read_text()

    def when(self, condition: Callable[[], bool]) -> None:
        """Wait until something is true of the running program."""
        end = time.monotonic() + PATIENCE
        while not condition():
            assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.said()}"
            assert time.monotonic() < end, f"waited too long:\n{self.said()}"
            time.sleep(0.002)

    def wait(self) -> int:
        return self.process.wait(PATIENCE)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    programs: list[Program] = []

    def start(*words: str) -> Program:
        programs.append(Program(list(words), tmp_path / f"log-{len(programs)}"))
        return programs[-1]

    yield start
    for program in programs:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.process.pid, signal.SIGKILL)
        program.process.wait()


def toy(out: Path, *words: str) -> list[str]:
    return [sys.executable, str(TOY), "train", str(out), "--threads", "1", "--no-progress", *words]


def lines(out: Path) -> int:
    path = out / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def promised(out: Path, steps: int) -> dict[str, bytes]:
    """Return the files of a finished run that exact resumption is about."""
    last = f"checkpoints/step-{steps:06d}"
    names = ["metrics.jsonl", "metrics.csv", "model/model.safetensors", "model/model.json"]
    names += [f"{last}/{name}" for name in ("tensors.safetensors", "state.json", "manifest.json")]
    found = {name: (out / name).read_bytes() for name in names}
    return {**found, "config.yaml": (out / "config.yaml").read_bytes().replace(str(out).encode(), b"OUT")}


def resumed_from(program: Program) -> int:
    match = re.search(r"resumed from .*step-(\d+)", program.said())
    return int(match[1]) if match else 0


BIG = ["--steps", "40", "--pause", "0.02", "--ballast", "2000000", "--checkpoint_every", "6", "--log_every", "2"]


def test_killed_and_stopped_ends_in_the_same_bytes(tmp_path: Path, start: Callable[..., Program]) -> None:
    whole, out = tmp_path / "whole", tmp_path / "part"
    reference = start(*toy(whole, *BIG))

    first = start(*toy(out, *BIG))
    first.when(lambda: lines(out) >= 8)
    time.sleep(random.random() * 0.15)
    first.kill()

    second = start(*toy(out, *BIG, "--resume", "--workers", "2"))
    second.when(lambda: lines(out) >= 12 and bool(list(out.glob("checkpoints/.step-*.tmp"))))
    second.kill()  # the training process alone: its workers find out later
    assert resumed_from(second) >= 6

    third = start(*toy(out, *BIG, "--resume", "--workers", "1"))
    third.when(lambda: "resumed from" in third.said() and lines(out) >= 16)
    os.killpg(third.process.pid, signal.SIGTERM)  # as a batch system does: the workers too
    assert third.wait() == 128 + signal.SIGTERM, third.said()
    assert not list(out.glob("checkpoints/.step-*"))
    stopped = re.search(r"stopped by SIGTERM after step (\d+) of 40; .*Resume with\n  (.*)\n", third.said())
    assert stopped, third.said()
    assert checkpoint.listing(out / "checkpoints")[-1][0] == int(stopped[1])

    last = start("sh", "-c", stopped[2])
    assert last.wait() == 0, last.said()
    assert resumed_from(last) == int(stopped[1])
    assert reference.wait() == 0, reference.said()
    assert promised(out, 40) == promised(whole, 40)
    steps = [record["step"] for record in recorder.read(out / "metrics.jsonl")]
    assert steps == sorted({*steps})
    assert not list(out.glob("checkpoints/.*"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_killed_many_times_at_random(tmp_path: Path, start: Callable[..., Program], seed: int) -> None:
    draw = random.Random(seed)
    words = ["--steps", "100", "--pause", "0.01", "--ballast", "1000000", "--checkpoint_every", "3", "--log_every", "1"]
    whole, out = tmp_path / "whole", tmp_path / "part"
    reference = start(*toy(whole, *words))
    for target in sorted(draw.sample(range(5, 95, 9), 5)):
        program = start(*toy(out, *words, "--resume", "--workers", draw.choice(["1", "3"]) if lines(out) else "0"))
        program.when(lambda target=target: lines(out) > target)
        if draw.random() < 0.5:
            program.when(lambda: bool(list(out.glob("checkpoints/.step-*"))))
        time.sleep(draw.random() * 0.03)
        program.kill()
        assert program.process.returncode == -signal.SIGKILL
    program = start(*toy(out, *words, "--resume"))
    assert program.wait() == 0, program.said()
    assert resumed_from(program) > 0
    assert reference.wait() == 0, reference.said()
    assert promised(out, 100) == promised(whole, 100)


# ---- several processes


def torchrun(out: Path, *words: str) -> list[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    return [*command, *toy(out, *words)]


@pytest.fixture
def one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run the union of the two processes' batches in this process."""
    monkeypatch.syspath_prepend(TOY.parent)
    module = importlib.import_module("toy_train")
    options = RunOptions(log_every=1, device="cpu", progress=False, threads=1)
    module.train(tmp_path / "one", steps=24, net=module.NetOptions(dropout=0.0), run=options)
    return tmp_path / "one"


DRY = ["--steps", "24", "--dropout", "0", "--log_every", "1", "--device", "cpu"]


def assert_same_curve(out: Path, reference: Path) -> None:
    found, expected = (recorder.read(path / "metrics.jsonl") for path in (out, reference))
    assert [record.keys() for record in found] == [record.keys() for record in expected]
    for a, b in zip(found, expected, strict=True):
        for name, value in b.items():
            assert a[name] == pytest.approx(value, rel=1e-6, abs=1e-6), (name, a, b)


def test_two_processes(tmp_path: Path, start: Callable[..., Program], one_process: Path) -> None:
    out = tmp_path / "two"
    first = start(*torchrun(out, *DRY, "--pause", "0.05", "--checkpoint_every", "1000"))
    first.when(lambda: lines(out) >= 6)
    pids = dict(re.findall(r"process (\d) has pid (\d+)", first.said()))
    os.kill(int(pids["1"]), signal.SIGTERM)  # one of them is told, all stop
    assert first.wait() != 0
    said = re.findall(r"stopped by SIGTERM after step (\d+) of 24(.*)", first.said())
    assert len(said) == 1, first.said()  # once for both
    assert "everything is saved" in said[0][1]
    assert [step for step, _ in checkpoint.listing(out / "checkpoints")] == [int(said[0][0])]
    assert not list(out.glob("checkpoints/.*"))
    assert "torchrun --nproc-per-node 2 --no-python" in first.said()
    assert "Warning" not in first.said()

    second = start(*torchrun(out, *DRY, "--pause", "0.05", "--checkpoint_every", "1000", "--resume"))
    assert second.wait() == 0, second.said()
    assert second.said().count("resumed from") == 1
    assert_same_curve(out, one_process)
    two, one = (load_model(path)[0] for path in (out, one_process))
    assert two.keys() == one.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_two_processes_resume_exactly_and_as_one(
    tmp_path: Path, start: Callable[..., Program], one_process: Path
) -> None:
    whole, part, alone = tmp_path / "whole", tmp_path / "part", tmp_path / "alone"
    words = [*DRY, "--checkpoint_every", "5", "--pause", "0.05"]
    assert start(*torchrun(whole, *words)).wait() == 0
    program = start(*torchrun(part, *words))
    program.when(lambda: lines(part) >= 12)
    os.killpg(program.process.pid, signal.SIGKILL)
    program.wait()
    shutil.copytree(part, alone)
    program = start(*torchrun(part, *words, "--resume"))
    assert program.wait() == 0, program.said()
    assert promised(part, 24) == promised(whole, 24)
    program = start(*toy(alone, *words, "--resume"))
    assert program.wait() == 0, program.said()
    assert "the checkpoint was written by a run on 2 process(es); this run has 1" in program.said()
    assert_same_curve(alone, one_process)
