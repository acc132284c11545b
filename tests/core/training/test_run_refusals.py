"""What a run refuses: folders, changed configurations, wrong use."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from contrastive_core.errors import UserError
from tests.core.training.toy_runs import Counter, go, start


def test_refused_folders(tmp_path: Path) -> None:
    def refuse(out: Path, message: str, **keywords: Any) -> None:
        with pytest.raises(UserError, match=message), start(out, **keywords):
            pytest.fail("entered")

    (tmp_path / "file").write_text("")
    refuse(tmp_path / "file", "file is a file; expected a folder")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").write_text("")
    for resume in (False, True):
        refuse(tmp_path / "photos", r"photos is not empty \(it contains 1.jpg\) and is not a run folder", resume=resume)
    with start(tmp_path / "run") as run:
        go(run, 1)
        refuse(tmp_path / "run", r"already contains a run; .*--resume, or choose another --out")
    code = (
        "import sys, time; sys.path[:0] = ['x']; from contrastive_core.training.files import FolderLock; "
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
    with pytest.raises(UserError, match="expected a mapping of settings"), start(tmp_path, resume=True):
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
        with pytest.raises(
            UserError, match=r"contains counter, but this program tracks model .*Resume with the version"
        ):
            run.restore()
    with start(tmp_path, resume=True) as run:
        run.track(counter=nn.Linear(1, 1))
        with pytest.raises(
            UserError, match=r"(?s)does not match this program: the state of counter cannot be loaded .*Missing key"
        ):
            run.restore()
    with (
        start(tmp_path, resume=True) as run,
        pytest.raises(UserError, match=r"is at step 2, which is past the end of a run of 1"),
    ):
        go(run, 1)


def test_wrong_use_is_named(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="use it as `with Run"):
        start(tmp_path / "x").say("hello")
    with start(tmp_path / "a") as run:
        with pytest.raises(TypeError, match="number is a int; expected an object with state_dict"):
            run.track(number=3)  # type: ignore[arg-type]
        run.track(counter=Counter())
        with pytest.raises(ValueError, match="'counter' is already in use"):
            run.track(counter=Counter())
        with pytest.raises(RuntimeError, match="no step has begun"):
            run.log(loss=1.0)
        for _ in run.steps(1):
            with pytest.raises(ValueError, match=r"loss is a tensor of shape \(2,\), expected one number"):
                run.log(loss=torch.ones(2))
            with pytest.raises(TypeError, match="loss is a str"):
                run.log(loss="3")  # type: ignore[arg-type]
            with pytest.raises(ValueError, match="'step' is reserved"):
                run.log(step=3)
        with pytest.raises(RuntimeError, match="one loop"):
            next(run.steps(1))
        with pytest.raises(RuntimeError, match="track was called after the checkpoint was read"):
            run.track(late=Counter())


def test_a_loop_that_was_left_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"ended in step 2 of 3.*in zip\(\), pass run.steps"), start(tmp_path) as run:
        for _, _ in zip([0, 1, 2], run.steps(3), strict=False):  # the last step's body is never ended
            pass


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"log_every": 0}, "log_every is 0; expected a whole number of at least 1"),
        ({"seed": 1.5}, "seed is 1.5; expected a whole number"),
        ({"device": "gpu"}, "device is 'gpu'; expected one of auto, cpu, cuda, mps"),
        ({"precision": "fp16"}, "precision is 'fp16'; expected one of"),
        ({"device": "mps"}, "--device mps was requested, but torch .* finds no MPS device; use --device auto"),
        ({"precision": "16-mixed"}, "float16.* is not supported on a CPU; use 32-true or bf16-mixed"),
        ({"wandb": True}, r"--wandb was requested, .*pip install 'contrastive-core\[wandb\]', or omit --wandb"),
        ({"tensorboard": True}, r"pip install 'contrastive-core\[tensorboard\]'"),
    ],
)
def test_options(tmp_path: Path, options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UserError, match=message), start(tmp_path / "run", **options):
        pass
    assert not (tmp_path / "run").exists()


def test_a_run_that_will_not_fit_on_the_disk_is_refused_at_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 10**12 - 1000, 1000))  # type: ignore[attr-defined]
    layer = nn.Linear(100, 10)
    with start(tmp_path / "run") as run:
        run.track(layer=layer, optimizer=torch.optim.Adam(layer.parameters()))
        # Parameters and two averages of Adam, in two checkpoints kept, one being written, and the model.
        with pytest.raises(UserError, match=r"2 checkpoints, .* take about 48\.5 kB, but only 1 kB are free"):
            next(run.steps(3))


def test_what_a_kill_left_half_written_is_removed_at_the_next_start(tmp_path: Path) -> None:
    with start(tmp_path / "run") as run:
        go(run, 2)
    left = [tmp_path / "run" / ".config.yaml.0123abcd.tmp", tmp_path / "run" / "checkpoints" / ".step-000009.tmp"]
    left[0].write_text("half")
    left[1].mkdir()
    (left[1] / "tensors.safetensors").write_text("half")
    with start(tmp_path / "run", resume=True):
        assert not any(path.exists() for path in left)
