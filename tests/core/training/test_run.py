"""A run in this process: its folder, and how it continues after a stop."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from contrastive_core.errors import UserError
from contrastive_core.training import Interrupted, load_model, recorder
from contrastive_core.training.launch import resolve_precision, slow_precision
from tests.core.training.toy_runs import content, go, start


def test_a_run_leaves_its_folder(tmp_path: Path) -> None:
    out = tmp_path / "a" / "run"
    with start(out, config={"out": out, "lr": 1e-6, "sizes": (1, 2)}, log_every=3) as run:
        assert run.device == torch.device("cpu")
        assert (run.rank, run.world_size, run.is_main) == (0, 1, True)
        assert not run.is_logged_step
        counter = go(run, 8)
        path = run.save_model({"w": torch.ones(2)}, {"kind": "test"})
        other = run.save_model({"w": torch.zeros(2)}, {}, folder="models/epoch-0001")
    assert counter.steps == list(range(8))
    assert [record["step"] for record in recorder.read(out / "metrics.jsonl")] == [0, 3, 6, 7]
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == ["step-000006", "step-000008"]
    saved = yaml.safe_load((out / "config.yaml").read_text())
    assert (saved["lr"], saved["sizes"], saved["out"], saved["run"]["log_every"]) == (1e-6, [1, 2], str(out), 3)
    assert path == out / "model"
    assert load_model(out)[1] == {"kind": "test"}
    assert torch.equal(load_model(other)[0]["w"], torch.zeros(2))
    timing = [json.loads(line) for line in (out / "timing.jsonl").read_text().splitlines()]
    assert timing[0]["session"] == 0
    assert [record["step"] for record in timing[1:]] == [0, 3, 6, 7]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("stop_at", [0, 4, 5, 9])
def test_stopped_and_resumed_is_the_same_as_never_stopped(tmp_path: Path, stop_at: int, signum: int) -> None:
    before = signal.getsignal(signum)
    with start(tmp_path / "whole") as run:
        go(run, 10)
    with pytest.raises(Interrupted) as caught, start(tmp_path / "part") as run:
        go(run, 10, stop_at=stop_at, signum=signum)
    assert caught.value.signum == signum
    name = signal.Signals(signum).name
    assert f"stopped by {name} after step {stop_at + 1} of 10" in str(caught.value)
    out = tmp_path / "part"
    assert f"prog verb --config {out}/config.yaml --out {out} --resume" in str(caught.value)
    assert signal.getsignal(signum) is before
    assert (out / "checkpoints" / f"step-{stop_at + 1:06d}").is_dir()
    with start(out, resume=True, workers=3, threads=2, checkpoint_every=4) as run:
        assert go(run, 10).steps == list(range(10))
    whole, part = content(tmp_path / "whole"), content(out)
    for files in (whole, part):
        for name in list(files):
            if name.startswith("checkpoints") and "step-000010" not in name:
                del files[name]
    assert part == whole


def test_a_finished_run_resumes_to_nothing(tmp_path: Path) -> None:
    with start(tmp_path) as run:
        go(run, 5)
        run.record(accuracy=0.5)
        after = torch.rand(1)
    before = content(tmp_path)
    with start(tmp_path, resume=True) as run:
        counter = go(run, 5)
        run.record(accuracy=0.5)
        assert torch.equal(torch.rand(1), after)
    assert counter.steps == list(range(5))
    assert content(tmp_path) == before


def test_resuming_nothing_starts_from_the_beginning(tmp_path: Path) -> None:
    with start(tmp_path / "new", resume=True) as run:
        assert go(run, 2).steps == [0, 1]

    def fail() -> None:
        with start(tmp_path / "early", checkpoint_every=100) as run:
            for step in run.steps(10):
                run.log(x=step)
                1 / (3 - step)

    with pytest.raises(ZeroDivisionError):
        fail()
    assert len(recorder.read(tmp_path / "early" / "metrics.jsonl")) == 2
    with start(tmp_path / "early", checkpoint_every=100, resume=True) as run:
        for step in run.steps(10):
            run.log(x=step)
    assert [record["x"] for record in recorder.read(tmp_path / "early" / "metrics.jsonl")] == [0, 2, 4, 6, 8, 9]


def test_a_damaged_checkpoint_is_passed_over_aloud(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with start(tmp_path) as run:
        go(run, 10)
    whole = content(tmp_path)
    newest = tmp_path / "checkpoints" / "step-000010" / "state.json"
    newest.write_bytes(newest.read_bytes()[:-1])
    capsys.readouterr()
    with start(tmp_path, resume=True) as run:
        go(run, 10)
        assert run.restore() == 9
    said = capsys.readouterr().err
    assert "step-000010 is damaged (state.json has" in said
    assert f"resumed from {tmp_path / 'checkpoints' / 'step-000009'}" in said
    part = content(tmp_path)
    assert part.pop("checkpoints/step-000010.damaged/state.json")
    assert {name: value for name, value in part.items() if ".damaged" not in name} == whole
    for state in tmp_path.glob("checkpoints/step-0000*/state.json"):
        state.unlink()
    with start(tmp_path, resume=True) as run, pytest.raises(UserError, match=r"(?s)all checkpoints.*cannot be read"):
        go(run, 10)


def train_line(out: Path, *, stop_at: int | None = None, **options: Any) -> nn.Module:
    """Fit a line in reduced precision, perhaps stopping on the way."""
    with start(out, checkpoint_every=100, **options) as run:
        network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1))
        model, optimizer = run.setup(network, torch.optim.Adam(network.parameters(), lr=0.01))
        run.track(model=model, optimizer=optimizer)
        for step in run.steps(8):
            x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step)).to(run.device)
            loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
            optimizer.zero_grad()
            run.fabric.backward(loss)
            optimizer.step()
            run.log(loss=loss)
            if step == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
    return network.cpu()


def test_reduced_precision_resumes_exactly(tmp_path: Path) -> None:
    train_line(tmp_path / "whole", precision="bf16-mixed")
    with pytest.raises(Interrupted):
        train_line(tmp_path / "part", precision="bf16-mixed", stop_at=3)
    train_line(tmp_path / "part", precision="bf16-mixed", resume=True)
    whole, part = content(tmp_path / "whole"), content(tmp_path / "part")
    for name in ("metrics.jsonl", "checkpoints/step-000008/tensors.safetensors", "checkpoints/step-000008/state.json"):
        assert whole[name] == part[name]


@pytest.mark.parametrize(
    ("found", "expected"),
    [({"avx512_bf16": True}, "bf16-mixed"), ({"amx_bf16": True}, "bf16-mixed"), ({"avx512_f": True}, "32-true")],
)
def test_automatic_precision_follows_the_processor(
    monkeypatch: pytest.MonkeyPatch, found: dict[str, bool], expected: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert resolve_precision("auto", "cpu") == expected
    assert resolve_precision("32-true", "cpu") == "32-true"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_precision("auto", "mps") == "32-true"


def test_emulated_bfloat16_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the arithmetic, a training step takes ten times as long as in float32."""
    for found, warned in (({"avx2": True}, True), ({"avx512_bf16": True}, False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=found: found, raising=False)
        train_line(tmp_path / f"{warned}", precision="bf16-mixed")
        assert ("has no bfloat16 arithmetic" in "".join(capsys.readouterr())) == warned
        train_line(tmp_path / f"{warned}-auto", precision="auto")
        assert "bfloat16" not in "".join(capsys.readouterr())
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)  # as in torch 2.10, which cannot tell
    assert resolve_precision("auto", "cpu") == "32-true"
    assert slow_precision("bf16-mixed", torch.device("cpu")) is None
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    assert "this GPU has no bfloat16" in str(slow_precision("bf16-mixed", torch.device("cuda")))
    assert slow_precision("32-true", torch.device("cuda")) is None


def test_a_run_records_its_automatic_precision_and_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On another machine, `auto` would continue the run with other numbers."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    train_line(tmp_path / "stated", precision="bf16-mixed")
    with pytest.raises(Interrupted):
        train_line(tmp_path / "auto", precision="auto", stop_at=3)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    with pytest.raises(UserError, match=r'run.precision: "bf16-mixed" -> "32-true"'):
        train_line(tmp_path / "auto", precision="auto", resume=True)
    train_line(tmp_path / "auto", precision="bf16-mixed", resume=True)
    assert content(tmp_path / "auto")["metrics.jsonl"] == content(tmp_path / "stated")["metrics.jsonl"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_cuda(tmp_path: Path, precision: str) -> None:
    whole = train_line(tmp_path / "whole", device="cuda", precision=precision)
    with pytest.raises(Interrupted):
        train_line(tmp_path / "part", device="cuda", precision=precision, stop_at=3)
    engine = json.loads(next(tmp_path.glob("part/checkpoints/step-000004/state.json")).read_text())["_run"]["dict"]
    assert bool(engine["precision"]["dict"]) == (precision == "16-mixed")  # the loss scale is kept
    part = train_line(tmp_path / "part", device="cuda", precision=precision, resume=True)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(part.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    if precision != "16-mixed":
        shutil.rmtree(tmp_path / "part" / "checkpoints" / "step-000008")
        train_line(tmp_path / "part", device="cpu", precision=precision, resume=True)  # on another device
