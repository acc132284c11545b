"""A run in this process: its folder, what it refuses, what it records."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from contrastive_core.errors import UserError
from contrastive_core.train import Interrupted, Run, RunOptions, load_model, metrics

QUIET: dict[str, Any] = {"device": "cpu", "progress": False, "log_every": 2, "checkpoint_every": 3}


def start(out: Path, *, config: dict[str, Any] | None = None, **options: Any) -> Run:
    return Run(out, config=config or {"lr": 0.1}, command="prog verb", options=RunOptions(**{**QUIET, **options}))


class Counter:
    """The smallest thing with a state."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def state_dict(self) -> dict[str, Any]:
        return {"steps": list(self.steps)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = list(state["steps"])


def go(run: Run, total: int, *, stop_at: int | None = None, signum: int = signal.SIGTERM) -> Counter:
    counter = Counter()
    run.track(counter=counter)
    for step in run.steps(total):
        counter.steps.append(step)
        run.log(loss=torch.rand(()), python=random.random(), numpy=np.random.rand())  # noqa: NPY002
        if step == stop_at:
            os.kill(os.getpid(), signum)
    return counter


def content(folder: Path) -> dict[str, bytes]:
    """All files that exact resume promises."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("timing.jsonl", ".lock")
    }


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
    assert [record["step"] for record in metrics.read(out / "metrics.jsonl")] == [0, 3, 6, 7]
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
    assert len(metrics.read(tmp_path / "early" / "metrics.jsonl")) == 2
    with start(tmp_path / "early", checkpoint_every=100, resume=True) as run:
        for step in run.steps(10):
            run.log(x=step)
    assert [record["x"] for record in metrics.read(tmp_path / "early" / "metrics.jsonl")] == [0, 2, 4, 6, 8, 9]


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
    with start(tmp_path, resume=True) as run, pytest.raises(UserError, match=r"(?s)every checkpoint.*cannot be read"):
        go(run, 10)


def train_line(out: Path, *, stop_at: int | None = None, **options: Any) -> nn.Module:
    """A line fitted in reduced precision, perhaps stopped on the way."""
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


# ---- what is refused


def test_refused_folders(tmp_path: Path) -> None:
    def refuse(out: Path, message: str, **keywords: Any) -> None:
        with pytest.raises(UserError, match=message), start(out, **keywords):
            pytest.fail("entered")

    (tmp_path / "file").write_text("")
    refuse(tmp_path / "file", "file is a file; expected a folder")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").write_text("")
    for resume in (False, True):
        refuse(tmp_path / "photos", r"photos is not empty \(it holds 1.jpg\) and not a run folder", resume=resume)
    with start(tmp_path / "run") as run:
        go(run, 1)
        refuse(tmp_path / "run", r"already holds a run; .*--resume, or choose another --out")
    code = (
        "import sys, time; sys.path[:0] = ['x']; from contrastive_core.train.files import FolderLock; "
        "from pathlib import Path; print(FolderLock(Path(sys.argv[1])).acquire(), flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "True\n"
        refuse(tmp_path / "run", "is being written by another process", resume=True)
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    with start(tmp_path / "run", resume=True):
        pass  # a killed process holds nothing


def test_a_changed_configuration_is_refused_with_the_difference(tmp_path: Path) -> None:
    config = {"out": tmp_path, "lr": 0.1, "net": {"width": 8, "depths": [1, 2]}, "gone": None}
    with start(tmp_path, config=config) as run:
        go(run, 2)
    changed = {"out": tmp_path / "..", "lr": 0.2, "net": {"width": 8, "depths": [1, 3]}, "new": "x"}
    with pytest.raises(UserError) as caught, start(tmp_path, config=changed, resume=True, seed=1, workers=2):
        pass
    text = str(caught.value)
    for line in (
        "  lr: 0.1 -> 0.2\n",
        "  net.depths: [1, 2] -> [1, 3]\n",
        "  gone: null -> (not set)\n",
        '  new: (not set) -> "x"\n',
        "  run.seed: 0 -> 1\n",
    ):
        assert line in text
    assert "workers" not in text
    assert "width" not in text
    assert "prog verb --config" in text
    free = {
        "workers": 1,
        "threads": 1,
        "checkpoint_every": 9,
        "keep_checkpoints": 9,
        "progress": False,
        "device": "auto",
    }
    if not torch.cuda.is_available():
        with start(tmp_path, config=config, resume=True, **free):
            pass
    (tmp_path / "config.yaml").write_text("- 1\n")
    with pytest.raises(UserError, match="holds no mapping of settings"), start(tmp_path, resume=True):
        pass
    (tmp_path / "config.yaml").write_text("a: [\n")
    with pytest.raises(UserError, match="not readable as YAML"), start(tmp_path, resume=True):
        pass


def test_a_configuration_that_is_no_text_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(TypeError, match="the setting model is a Linear"),
        start(tmp_path, config={"model": nn.Linear(1, 1)}),
    ):
        pass


def test_a_start_that_failed_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    for config, resume in (({"batch": 10**9}, False), ({"batch": 10**6}, True)):
        with pytest.raises(UserError, match="one step needs"), start(tmp_path, config=config, resume=resume) as run:
            run.batches(10, batch_size=config["batch"], total_steps=3)
    with start(tmp_path, config={"batch": 5}) as run:
        go(run, 3)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["batch"] == 5


def test_other_things_tracked(tmp_path: Path) -> None:
    with start(tmp_path) as run:
        go(run, 2)
    with start(tmp_path, resume=True) as run:
        run.track(model=nn.Linear(1, 1))
        with pytest.raises(UserError, match=r"holds counter; this program tracks model .*Resume with the version"):
            run.restore()
    with start(tmp_path, resume=True) as run:
        run.track(counter=nn.Linear(1, 1))
        with pytest.raises(UserError, match=r"(?s)does not fit: counter refuses its state .*Missing key"):
            run.restore()
    with (
        start(tmp_path, resume=True) as run,
        pytest.raises(UserError, match=r"is at step 2, past the end of a run of 1"),
    ):
        go(run, 1)


def test_wrong_use_is_named(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="use it as `with Run"):
        start(tmp_path / "x").say("hello")
    with start(tmp_path / "a") as run:
        with pytest.raises(TypeError, match="number is a int; expected an object with state_dict"):
            run.track(number=3)  # type: ignore[arg-type]
        run.track(counter=Counter())
        with pytest.raises(ValueError, match="'counter' is taken"):
            run.track(counter=Counter())
        with pytest.raises(RuntimeError, match="no step has begun"):
            run.log(loss=1.0)
        for _ in run.steps(1):
            with pytest.raises(ValueError, match=r"loss is a tensor of shape \(2,\); expected one number"):
                run.log(loss=torch.ones(2))
            with pytest.raises(TypeError, match="loss is a str"):
                run.log(loss="3")  # type: ignore[arg-type]
            with pytest.raises(ValueError, match="'step' is the record's own"):
                run.log(step=3)
        with pytest.raises(RuntimeError, match="one loop"):
            next(run.steps(1))
        with pytest.raises(RuntimeError, match="tracked after the checkpoint was read"):
            run.track(late=Counter())


def test_a_loop_that_was_left_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"left in step 2 of 3.*in zip\(\), put run.steps"), start(tmp_path) as run:
        for _, _ in zip([0, 1, 2], run.steps(3), strict=False):  # the last step's body is never ended
            pass


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"log_every": 0}, "log_every is 0; expected a whole number of at least 1"),
        ({"seed": 1.5}, "seed is 1.5; expected a whole number"),
        ({"device": "gpu"}, "device is 'gpu'; expected one of auto, cpu, cuda, mps"),
        ({"precision": "fp16"}, "precision is 'fp16'; expected one of"),
        ({"device": "mps"}, "--device mps was asked for, but torch .* finds no MPS device here; use --device auto"),
        ({"precision": "16-mixed"}, "float16.* does not train on a CPU; use 32-true or bf16-mixed"),
        ({"wandb": True}, r"--wandb was asked for, .*pip install 'contrastive-core\[wandb\]', or leave --wandb out"),
        ({"tensorboard": True}, r"pip install 'contrastive-core\[tensorboard\]'"),
    ],
)
def test_options(tmp_path: Path, options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UserError, match=message), start(tmp_path / "run", **options):
        pass
    assert not (tmp_path / "run").exists()


# ---- what is recorded


def test_log_and_record(tmp_path: Path) -> None:
    class Lazy(torch.Tensor):
        read = 0

        def item(self) -> float:  # type: ignore[override]
            Lazy.read += 1
            return 1.0

    with start(tmp_path, log_every=4) as run:
        logged = []
        for step in run.steps(7):
            logged.append(run.is_logged_step)
            run.log(a=torch.zeros(1).as_subclass(Lazy))
            run.log(b=step, a2=True)
            if step == 2:
                run.record(accuracy=torch.tensor([0.25], dtype=torch.float64))
            if step == 4:
                run.record(accuracy=float("nan"))
        run.record(final=np.float64(3.5))
    assert logged == [True, False, False, False, True, False, True]
    assert Lazy.read == 3
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == [
        '{"step": 0, "a": 1.0, "b": 0, "a2": 1}',
        '{"step": 2, "accuracy": 0.25}',
        '{"step": 4, "a": 1.0, "b": 4, "a2": 1, "accuracy": "NaN"}',
        '{"step": 6, "a": 1.0, "b": 6, "a2": 1}',
        '{"step": 7, "final": 3.5}',
    ]


def test_every_step_is_seeded_by_itself(tmp_path: Path) -> None:
    def draws(out: Path, first: int, **options: Any) -> Iterator[tuple[Any, ...]]:
        with start(out, **options) as run:
            for step in run.steps(4):
                if step >= first:
                    yield torch.rand(1).item(), random.random(), np.random.rand(), torch.initial_seed()  # noqa: NPY002

    whole = list(draws(tmp_path / "a", 0))
    assert len({value for draw in whole for value in draw}) == 16
    assert list(draws(tmp_path / "b", 2)) == whole[2:]
    assert list(draws(tmp_path / "c", 0, seed=1)) != whole
    with start(tmp_path / "d") as run:
        first = nn.Linear(3, 3).weight
    with start(tmp_path / "e") as run:
        assert torch.equal(nn.Linear(3, 3).weight, first)
        assert run.seed("x", 1) != run.seed("x", 2)


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for options in ({}, {"resume": True}):
        with start(tmp_path, tensorboard=True, log_every=1, **options) as run, contextlib.suppress(Interrupted):
            go(run, 4, stop_at=None if options else 1)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [0, 1, 2, 3]


def test_weights_and_biases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library is not needed for this: a stand-in notes what it is told."""
    told: list[Any] = []

    class Stand:
        @staticmethod
        def init(**keywords: Any) -> Any:
            told.append(keywords)
            return Stand

        @staticmethod
        def log(values: dict[str, float], step: int) -> None:
            told.append((step, sorted(values)))

        @staticmethod
        def finish() -> None:
            told.append("finish")

    monkeypatch.setitem(sys.modules, "wandb", Stand)
    for _ in range(2):
        with start(tmp_path, wandb=True, resume=True) as run:
            go(run, 3)
    first, *steps, second, _ = told
    assert steps == [(0, ["loss", "numpy", "python"]), (2, ["loss", "numpy", "python"]), "finish"]
    assert first["id"] == second["id"]
    assert first["resume"] == "allow"
    assert first["config"]["lr"] == 0.1


# ---- the person watching


def test_plain_lines_when_not_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with start(tmp_path, progress=True) as run:
        for step in run.steps(50):
            run.log(loss=step / 3)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("step 1/50  loss 0  ")
    assert lines[1].startswith("step 50/50  loss 16.33  ")
    assert lines[1].endswith("steps/s  0:00:00 left")


def test_a_bar_in_a_terminal(tmp_path: Path) -> None:
    import pty

    code = (
        "import sys, time; from contrastive_core.train.progress import Watch; w = Watch(shown=True); w.start(3, 9)\n"
        "for i in range(4, 10): w.metrics({'loss': 1.5}); w.advance(i); time.sleep(0.06)\n"
        "w.say('[red]a message'); w.stop()"
    )
    main, end = pty.openpty()
    subprocess.run(
        [sys.executable, "-c", code], stderr=end, check=True, env={**os.environ, "TERM": "xterm", "COLUMNS": "90"}
    )
    os.close(end)
    text = ""
    try:
        while piece := os.read(main, 65536):
            text += piece.decode()
    except OSError:  # the other end is closed
        pass
    os.close(main)
    assert "9/9" in text
    assert "loss 1.5" in text
    assert "[red]a message" in text


# ---- signals

WATCH = """
import signal, sys, time
from contrastive_core.train.interrupt import SignalWatch
with SignalWatch() as watch:
    print("ready", flush=True)
    while True:
        time.sleep(0.01)
        if watch.signum is not None:
            print(watch.signum, flush=True)
"""


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_process_at_once(signum: int) -> None:
    process = subprocess.Popen([sys.executable, "-c", WATCH], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signum)
    assert process.stdout.readline() == f"{int(signum)}\n"
    process.send_signal(signum)  # launchers repeat a signal: that is not a second one
    time.sleep(0.6)
    assert process.poll() is None
    process.send_signal(signum)
    process.stdout.close()
    assert process.wait(5) == -signum


def test_no_handlers_outside_the_main_thread(tmp_path: Path) -> None:
    import threading

    seen: list[Any] = []

    def work() -> None:
        with start(tmp_path) as run:
            seen.extend(signal.getsignal(signal.SIGTERM) for _ in run.steps(1))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]


def test_threads_are_put_back(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    with start(tmp_path, threads=before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
