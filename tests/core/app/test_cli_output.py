"""Output of a command line to real pipes and from real torchrun processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os, sys, time
from contrastive_core.app.cli import Verb, run
from contrastive_core.errors import UserError

def result(lines: int = 3, wait: float = 0.0) -> str:
    print("printed by the verb")
    time.sleep(wait)
    return "\\n".join(["found 3 images"] * lines)

def all_fail() -> None:
    raise UserError("photos is empty; expected images")

def one_fails() -> None:
    if os.environ["RANK"] == "1":
        raise UserError("b.png cannot be read")

def lonely(file: str) -> str:
    with open(file, "a") as written:
        written.write(os.environ["RANK"])
    return "done alone"

def other_pipe() -> None:
    read, write = os.pipe()
    os.close(read)
    os.write(write, b"x")

verbs = {name: Verb(f"__main__:{name}", "a verb") for name in ("result", "all_fail", "one_fails", "other_pipe")}
verbs["lonely"] = Verb("__main__:lonely", "a verb", alone=True)
statuses = [run("toy", verbs, words.split(), version="1") for words in sys.argv[1:]]
time.sleep(float(os.environ.get("LINGER", "0")))  # torchrun ends the others when the first leaves
sys.exit(max(statuses))
"""


@pytest.fixture
def program(tmp_path: Path) -> list[str]:
    script = tmp_path / "toy.py"
    script.write_text(PROGRAM)
    return [sys.executable, str(script)]


def test_two_processes_speak_with_one_voice(program: list[str], tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    lines = ["result", "--help", "--version", "result --help", "result --print_config", f"lonely {tmp_path}/ranks"]
    wrong = ["reslut", "result --lines many", "all_fail", "one_fails"]
    done = subprocess.run(
        [*launcher, *program, *lines, *wrong],
        env={**os.environ, "LINGER": "2"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode != 0
    for text in ("printed by the verb", "commands:", "toy 1", "usage: toy result", "lines: 3", "done alone"):
        assert done.stdout.count(text) == 1, done.stdout
    assert done.stdout.count("found 3 images") == 3
    assert (tmp_path / "ranks").read_text() == "0"
    for text in ("unknown command 'reslut'", "--lines: expected", "photos is empty", "b.png cannot be read"):
        assert done.stderr.count(text) == 1, done.stderr


def test_a_script_goes_on_once(program: list[str]) -> None:
    """A command works in a child process, which must not continue the script that called it."""
    done = subprocess.run([*program, "lonely /dev/null", "result"], capture_output=True, text=True, check=False,
                          env={**os.environ, "RANK": "0", "WORLD_SIZE": "1"})  # fmt: skip
    assert (done.returncode, done.stdout.count("done alone"), done.stdout.count("printed by the verb")) == (0, 1, 1)


def test_without_a_store_an_error_is_still_said(program: list[str]) -> None:
    for address in ({}, {"MASTER_ADDR": "localhost", "MASTER_PORT": "none"}):
        environment = {**os.environ, "RANK": "1", "WORLD_SIZE": "2", **address}
        done = subprocess.run([*program, "one_fails"], env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (1, "", "toy one_fails: b.png cannot be read\n")


@pytest.mark.parametrize("words", ["result --lines 100000", "result --wait 1", "result --help"])
def test_a_reader_who_leaves_ends_the_program_quietly(program: list[str], words: str) -> None:
    process = subprocess.Popen([*program, words], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    if "--lines" in words:
        process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    # argparse swallows what happens when it prints the help.
    assert process.wait(60) in ((0, 141) if "--help" in words else (141,))


def test_a_reader_of_errors_who_leaves(program: list[str]) -> None:
    process = subprocess.Popen([*program, "all_fail"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stderr.close()
    assert process.stdout.read() == b""
    process.stdout.close()
    assert process.wait(60) == 141


def test_closed_streams_are_not_replaced_by_files_of_results(program: list[str], tmp_path: Path) -> None:
    """Without standard streams, the first file that the verb opens has the number of one of them."""
    for closed in (">&-", "2>&-", "<&- >&- 2>&-"):
        words = f"lonely --file {tmp_path / 'lonely'}"
        done = subprocess.run(
            ["/bin/sh", "-c", f'"$@" {closed}', "sh", *program, words],
            env={**os.environ, "RANK": "0"}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == ("done alone\n" if closed == "2>&-" else "")
        assert (tmp_path / "lonely").read_text() == "0"
        (tmp_path / "lonely").unlink()


def test_another_broken_pipe_is_an_error(program: list[str]) -> None:
    done = subprocess.run([*program, "other_pipe"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "BrokenPipeError" in done.stderr
