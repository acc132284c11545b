"""Effects of signals on a run, and the handlers it restores."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.core.training.toy_runs import start

WATCH = """
import signal, sys, time
from contrastive_core.training.signals import SignalWatch
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


def test_global_generators_are_put_back(tmp_path: Path) -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), np.random.rand(), float(torch.rand(()))  # noqa: NPY002

    def seed() -> None:
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        torch.manual_seed(1)

    seed()
    expected = [draw() for _ in range(2)]
    seed()
    found = []
    for number in range(2):
        found.append(draw())
        with start(tmp_path / str(number)) as run:
            for _ in run.steps(2):
                draw()
    assert found == expected
