"""Files that crash the native library that reads them, and data loading processes that are killed."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from contrastive_core.training import crashes, samplers
from contrastive_core.training.files import FolderLock
from tests.workspace.test_outputs_of_commands import filled

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes leave notes on Linux alone")
Places = Callable[[str], dict[str, Path]]
# A program whose readers die of a signal on a file of this name; with a third argument, only the first time.
PROGRAM = """
import importlib, signal, sys
from pathlib import Path
from contrastive_core.training import crashes
domain, bad, signum, once = sys.argv.pop(1), sys.argv.pop(1), int(sys.argv.pop(1)), sys.argv.pop(1)
enter = crashes.native_reader.__enter__
def enter_and_die(self):
    enter(self)
    is_worker = "torch" in sys.modules and sys.modules["torch"].utils.data.get_worker_info() is not None
    if str(self._name).endswith(bad.removeprefix("worker:")) and not (once and Path(once).exists()):
        if bad.startswith("worker:") and not is_worker:
            return
        if once:
            Path(once).touch()
        signal.raise_signal(signum)  # in this thread, as a fault does
crashes.native_reader.__enter__ = enter_and_die
sys.exit(importlib.import_module(f"{domain}.cli").main())
"""
SEGV, KILL = "11", "9"


def run(
    domain: str, bad: str, words: list[str], *, signum: str = SEGV, once: Path | str = ""
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, domain, bad, signum, str(once), *words],
        capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip


def started_again(done: subprocess.CompletedProcess[str], bad: str) -> bool:
    said = [line for line in done.stderr.splitlines() if "starts again" in line]
    return len(said) == 1 and f"{bad}: the library that reads it crashed (SIGSEGV)" in said[0]


def test_images(places: Places, tmp_path: Path) -> None:
    place, bad = places("ssl_vision"), "b/0.png"
    done = run("ssl_vision", bad, filled("check DATA", place, tmp_path))
    assert started_again(done, bad), done.stderr
    assert done.returncode == 1
    assert done.stdout.count("crashed (SIGSEGV)") == 1

    done = run("ssl_vision", bad, filled("predict MODEL DATA OUT/table.csv --device cpu", place, tmp_path))
    assert started_again(done, bad), done.stderr
    assert done.returncode == 0
    rows = {row["path"]: row for row in csv.DictReader((tmp_path / "table.csv").open())}
    assert "crashed" in rows.pop(bad)["error"]
    assert len(rows) == 3
    assert all(row["class"] and not row["error"] for row in rows.values())


def test_videos(places: Places, tmp_path: Path) -> None:
    place, bad = places("ssl_video"), "blue/001.mkv"
    done = run("ssl_video", bad, filled("check DATA --out OUT/found.csv", place, tmp_path))
    assert started_again(done, bad), done.stderr
    problems = {row["path"]: row["problem"] for row in csv.DictReader((tmp_path / "found.csv").open())}
    assert [path for path, problem in problems.items() if problem] == [p for p in problems if p.endswith(bad)]

    line = "predict MODEL DATA OUT/table.csv --clips 1 --crops 1 --device cpu --sheet 0"
    done = run("ssl_video", bad, filled(line, place, tmp_path))
    assert started_again(done, bad), done.stderr
    rows = {row["path"]: row for row in csv.DictReader((tmp_path / "table.csv").open())}
    assert [path for path, row in rows.items() if row["error"]] == [bad]


def test_flow_is_computed_by_workers(places: Places, tmp_path: Path) -> None:
    place, bad = places("ssl_video"), "blue/001.mkv"
    line = filled("flow DATA OUT --workers 2 --method dis_ultrafast --short-side 32", place, tmp_path / "flow")
    done = run("ssl_video", f"worker:{bad}", line)
    assert started_again(done, bad), done.stderr
    assert f"{bad}: the library that reads it crashed" in done.stdout
    assert len(list((tmp_path / "flow").rglob("*.npy"))) == len(list(place["DATA"].rglob("*.mkv"))) - 1


def test_volumes(places: Places, tmp_path: Path) -> None:
    place = places("ssl_medseg")
    bad = f"imagesTr/{place['IMAGE'].name}"
    done = run("ssl_medseg", bad, filled("check DATA --json", place, tmp_path))
    assert started_again(done, bad), done.stderr
    assert "crashed (SIGSEGV)" in done.stdout
    out = tmp_path / "masks"
    done = run("ssl_medseg", bad, filled("predict MODEL DATA OUT --device cpu", place, out))
    assert started_again(done, bad), done.stderr
    assert done.returncode == 1
    cases = json.loads((out / "predictions.json").read_text())["cases"]
    assert ["crashed" in (case["error"] or "") for case in cases].count(True) == 1
    assert len(list(out.glob("*.nii.gz"))) == len(cases) - 1


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(12):
        (tmp_path / "photos" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        picture = torch.randint(0, 256, (20, 20, 3), generator=torch.Generator().manual_seed(number))
        Image.fromarray(picture.byte().numpy()).save(tmp_path / "photos" / "ab"[number % 2] / f"{number}.png")
    return tmp_path / "photos"


def pretrain(photos: Path, out: Path, *command: str) -> list[str]:
    line = "--epochs 3 --batch-size 4 --image-size 16 --encoder.width-multiplier 0.125"
    line += " --workers 1 --load files --device cpu --checkpoint-every 1 --no-progress"
    return [*(command or ["pretrain"]), str(photos), str(out), *line.split()]


def train_videos(place: dict[str, Path], out: Path) -> list[str]:
    line = (
        "train DATA OUT --split SPLIT --views rgb --steps 4 --batch-size 4 --mu 1 --image-size 16 --clip.frames 4 "
        "--clip.stride 2 --recalibrate 0 --network.name small_slow --network.width 4 --workers 1 --device cpu "
        "--checkpoint-every 1 --no-progress"
    )
    return filled(line, place, out)


def test_a_worker_of_training_that_crashes_names_the_file(photos: Path, tmp_path: Path) -> None:
    done = run("ssl_vision", "b/7.png", pretrain(photos, tmp_path / "run"))
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    problem, *command = [line for line in done.stderr.splitlines() if "b/7.png" in line or "--resume" in line]
    assert "b/7.png: the library that reads it crashed in a data loading process (Segmentation fault)" in problem
    assert command


def in_its_own_process(line: list[str]) -> list[str]:
    """The command line of a run that reads without data loading processes."""
    at = line.index("--workers")
    return [*line[:at], "--workers", "0", *line[at + 2 :]]


def named_with_resume(done: subprocess.CompletedProcess[str], bad: str) -> bool:
    problem, *command = [line for line in done.stderr.splitlines() if bad in line or "--resume" in line]
    found = f"{bad}: the library that reads it crashed (SIGSEGV); the file is damaged" in problem
    return found and problem.endswith(", then resume the run with") and len(command) == 1


def test_training_that_crashes_in_its_own_process_names_the_file(photos: Path, tmp_path: Path) -> None:
    line = in_its_own_process(pretrain(photos, tmp_path / "run"))
    done = run("ssl_vision", "b/7.png", line)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert named_with_resume(done, "b/7.png"), done.stderr


@pytest.mark.slow
def test_a_crash_in_training_loses_nothing(photos: Path, tmp_path: Path) -> None:
    line = in_its_own_process(pretrain(photos, tmp_path / "run"))
    assert run("ssl_vision", "b/7.png", line, once=tmp_path / "crashed").returncode == 1
    resumed = run("ssl_vision", "none", [*line, "--resume"])
    assert resumed.returncode == 0, resumed.stderr
    whole = run("ssl_vision", "none", in_its_own_process(pretrain(photos, tmp_path / "whole")))
    assert whole.returncode == 0, whole.stderr
    expected = weights(tmp_path / "whole")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(tmp_path / "run").items())


@pytest.mark.slow
def test_training_on_volumes_and_videos_names_the_file(places: Places, tmp_path: Path) -> None:
    place = places("ssl_medseg")
    line = "train DATA OUT --split SPLIT --steps 1 --network.width 2 --image-size 32 --batch-size 4 --device cpu"
    done = run("ssl_medseg", place["IMAGE"].name, filled(line, place, tmp_path / "masks"))
    assert done.returncode == 1, done.stderr
    assert named_with_resume(done, place["IMAGE"].name), done.stderr
    line = " ".join(in_its_own_process(train_videos(places("ssl_video"), tmp_path / "run")))
    done = run("ssl_video", "red/001.mkv", line.split())
    assert done.returncode == 1, done.stderr
    assert named_with_resume(done, "red/001.mkv"), done.stderr


@pytest.mark.slow
def test_a_process_of_torchrun_names_the_file(photos: Path, tmp_path: Path) -> None:
    line = in_its_own_process(pretrain(photos, tmp_path / "run"))
    (tmp_path / "program.py").write_text(PROGRAM)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = [str(tmp_path / "program.py"), "ssl_vision", "b/7.png", SEGV, "", *line]
    done = subprocess.run([*launch, *words], capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode != 0
    told = "b/7.png: the library that reads it crashed (SIGSEGV)"
    assert any(told in said and said.endswith("resume the run with") for said in done.stderr.splitlines()), done.stderr


@pytest.mark.parametrize("number", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGKILL, "terminal"])
def test_a_supervised_run_is_stopped_and_resumed(photos: Path, tmp_path: Path, number: int | str) -> None:
    """The checkpoint of a signal, Ctrl-C in a terminal, and a kill that leaves no process behind."""
    out = tmp_path / "run"
    words = [*pretrain(photos, out), "--epochs", "2000", "--log-every", "1"]
    child, terminal = pty.fork()
    if not child:
        os.execv(sys.executable, [sys.executable, "-c", PROGRAM, "ssl_vision", "none", SEGV, "", *words])
    shown, metrics = b"", out / "metrics.jsonl"
    while not (metrics.is_file() and metrics.stat().st_size):
        if select.select([terminal], [], [], 0.1)[0]:
            shown += os.read(terminal, 1000)
    if isinstance(number, str):
        os.write(terminal, b"\x03")
    else:
        os.kill(child, number)
    with contextlib.suppress(OSError):  # the terminal's end
        while piece := os.read(terminal, 1000):
            shown += piece
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    said = shown.decode().replace("\r", "")
    assert status == {signal.SIGTERM: 143, signal.SIGKILL: -9}.get(number, 130), said  # type: ignore[call-overload]
    if number != signal.SIGKILL:
        assert said.count("everything is saved in") == 1, said
        assert said.rstrip().endswith("--resume"), said
    lock = FolderLock(out)
    assert lock.acquire(), "a process goes on"
    lock.release()


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["pretrain", "finetune", "distill", "train"])
def test_a_killed_worker_loses_nothing(verb: str, photos: Path, places: Places, tmp_path: Path) -> None:
    def line(out: Path) -> list[str]:
        if verb == "train":
            return train_videos(places("ssl_video"), out)
        model = {"finetune": ["none"], "distill": [str(tmp_path / "teacher")]}.get(verb, [])
        return pretrain(photos, out, verb, *model)

    domain = "ssl_video" if verb == "train" else "ssl_vision"
    bad = "red/001.mkv" if verb == "train" else "b/7.png"  # it has a label
    if verb == "distill":
        assert run(domain, "none", pretrain(photos, tmp_path / "teacher", "finetune", "none")).returncode == 0
    done = run(domain, bad, line(tmp_path / "run"), signum=KILL, once=tmp_path / "killed")
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "a data loading process ended" in done.stderr
    assert done.stderr.rstrip().endswith("--resume")
    resumed = run(domain, "none", [*line(tmp_path / "run"), "--resume"])
    assert resumed.returncode == 0, resumed.stderr
    whole = run(domain, "none", line(tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr
    expected = weights(tmp_path / "whole")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(tmp_path / "run").items())


def test_files_that_are_read_at_once_are_told_apart(tmp_path: Path) -> None:
    program = """
import os, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from contrastive_core.errors import UserError
from contrastive_core.training import crashes
status = crashes.supervise("prog")
if status is not None:
    sys.exit(status)
def read(name):
    try:
        with crashes.native_reader(name):
            time.sleep(0.2)
            if name == "bad":
                os.abort()
    except UserError:
        return name
with ThreadPoolExecutor(4) as pool:
    print(list(filter(None, pool.map(read, ["a", "b", "bad", "c", "d"]))))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == "['bad']\n", done.stderr
    assert done.returncode == 0
    assert done.stderr.count("prog: bad: the library that reads it crashed (SIGABRT)") == 1


def test_notes_of_threads_end_with_the_reading() -> None:
    import os

    with crashes.native_reader("one"), crashes.native_reader(Path("two")):
        assert sorted(crashes.files_read_by(os.getpid())) == ["one", "two"]
    assert crashes.files_read_by(os.getpid()) == []


def test_other_signals_end_the_command(tmp_path: Path) -> None:
    program = """
import os, sys
from contrastive_core.training import crashes
status = crashes.supervise("prog")
if status is None:
    with crashes.native_reader("x"):
        os.kill(os.getpid(), int(sys.argv[1]))
sys.exit(status)
"""
    for number in (9, 15):
        done = subprocess.run(
            [sys.executable, "-c", program, str(number)], capture_output=True, check=False, timeout=60
        )
        assert done.returncode == -number
        assert done.stderr == b""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_the_command_is_told_reaches_its_child(number: int) -> None:
    """Also an interrupt sent by a program rather than by a terminal, which signals the child itself."""
    program = """
import signal, sys, time
from contrastive_core.training import crashes
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, lambda number, frame: sys.exit(100 + number))
status = crashes.supervise("prog")
if status is None:
    print("begun", flush=True)
    time.sleep(50)
sys.exit(status)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "begun\n"
        running.send_signal(number)
        assert running.wait(timeout=30) == 100 + number


def test_an_interrupt_of_the_terminal_reaches_the_child_once() -> None:
    program = """
import signal, sys, time
from contrastive_core.training import crashes
told = []
signal.signal(signal.SIGINT, lambda number, frame: told.append(number))
status = crashes.supervise("prog")
if status is None:
    print("begun", flush=True)
    while not told:
        time.sleep(0.05)
    time.sleep(0.5)
    print(len(told), flush=True)
    sys.exit(0)
sys.exit(status)
"""
    child, terminal = pty.fork()
    if not child:
        os.execv(sys.executable, [sys.executable, "-c", program])
    shown = b""
    while b"begun\r\n" not in shown:  # an interrupt discards what the terminal has not passed on
        shown += os.read(terminal, 100)
    os.write(terminal, b"\x03")
    with contextlib.suppress(OSError):  # the terminal's end
        while piece := os.read(terminal, 100):
            shown += piece
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert shown.replace(b"^C", b"").split()[-1] == b"1"


def test_a_worker_that_cannot_pass_a_batch_on_blames_no_file() -> None:
    """The thread that passes batches on ends the process while another may be reading a file."""
    assert crashes.open_notes() is not None
    pid = os.fork()
    if not pid:
        with crashes.native_reader("next.png"):
            samplers._end_worker(RuntimeError("unable to allocate shared memory(shm) for file"), None)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 1
    message = f"DataLoader worker (pid {pid}) exited unexpectedly with exit code 1."
    assert crashes.files_of_worker(message) == ([], "")
