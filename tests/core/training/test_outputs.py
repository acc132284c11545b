"""A command replaces its own files and no others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from contrastive_core.errors import UserError
from contrastive_core.training import files
from contrastive_core.training.outputs import INDEX, JOURNAL, Outputs, claim_folder, run_files, write_once


def write(*targets: Path, command: str = "prog verb", text: str = "ours", **options: object) -> None:
    with Outputs(targets, command=command, **options):  # type: ignore[arg-type]
        for target in targets:
            target.parent.mkdir(parents=True, exist_ok=True)
            files.write_atomic(target, text.encode())


def test_what_a_command_wrote_it_replaces(tmp_path: Path) -> None:
    first, second = tmp_path / "out" / "a.csv", tmp_path / "out" / "deep" / "b.csv"
    write(first, second, folder=tmp_path / "out")
    write(first, second, folder=tmp_path / "out", text="again")
    assert (first.read_text(), second.read_text()) == ("again", "again")


@pytest.mark.parametrize("change", ["foreign", "edited", "another command", "link", "dangling link", "damaged index"])
def test_other_files_are_refused_before_the_first_is_written(tmp_path: Path, change: str) -> None:
    new, old = tmp_path / "a.csv", tmp_path / "b.csv"
    if change == "foreign":
        old.write_text("theirs")
    elif change == "link":
        (tmp_path / "theirs").write_text("theirs")
        old.symlink_to(tmp_path / "theirs")
    elif change == "dangling link":
        old.symlink_to(tmp_path / "nothing")
    else:
        write(old, command="prog other" if change == "another command" else "prog verb", text="theirs")
        if change == "edited":
            old.write_text("theirs, edited")
        elif change == "damaged index":
            (tmp_path / INDEX).write_text("[" * 100_000)
    before = old.read_text() if old.exists() else None
    with pytest.raises(
        UserError, match=r"b\.csv already exists, and `prog verb` did not write it to this folder.*--overwrite"
    ):
        write(new, old)
    assert not new.exists()
    assert (old.read_text() if old.exists() else None) == before
    write(new, old, overwrite=True)
    assert old.read_text() == "ours"
    write(new, old)


def test_inputs_are_never_replaced(tmp_path: Path) -> None:
    image, linked, folder = tmp_path / "image.nii", tmp_path / "mask.nii", tmp_path / "series"
    image.write_text("image")
    os.link(image, linked)
    folder.mkdir()
    (folder / "1.dcm").write_text("slice")
    for target, read in ((image, image), (linked, image), (folder / "1.dcm", folder)):
        with pytest.raises(UserError, match="is an input of"):
            write(target, inputs=[read], overwrite=True)
    assert image.read_text() == "image"
    with pytest.raises(UserError, match="is a folder, but"):
        write(folder, overwrite=True)


def test_a_command_that_was_stopped_finds_its_files_again(tmp_path: Path) -> None:
    target = tmp_path / "out" / "a.csv"

    def stopped() -> None:
        with Outputs([target, tmp_path / "out" / "b.csv"], command="prog verb"):
            target.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    write(target)
    child = os.fork()
    if child == 0:
        with Outputs([target], command="prog verb"):
            files.write_atomic(target, b"again")
            os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    write(target, text="whole")
    assert target.read_text() == "whole"


@pytest.mark.parametrize("moment", ["before the first", "before", "between", "after"])
def test_what_is_put_there_after_a_kill_is_foreign(tmp_path: Path, moment: str) -> None:
    """A killed command knows what it has written: a mask that somebody corrected since belongs to them."""
    out, old = tmp_path / "out", moment != "before the first"
    target, later = out / "mask.nii", out / "later.nii"
    if old:
        write(target, text="old")
    child = os.fork()
    if child == 0:
        with Outputs([target, later], command="prog verb"):
            if moment == "between":
                files.on_replacement.append(lambda *_: os.kill(os.getpid(), 9))
            if moment in ("between", "after"):
                files.write_atomic(target, b"new")
            os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    expected = {"before the first": None, "before": "old", "between": "old", "after": "new"}[moment]
    assert (target.read_text() if target.exists() else None) == expected
    if old:
        Outputs([target, later], command="prog verb")
    target.parent.mkdir(exist_ok=True)
    target.write_text("corrected by hand")
    for _ in range(2):
        with pytest.raises(UserError, match=r"mask\.nii already exists, and `prog verb` did not write it"):
            write(target, later)
    assert target.read_text() == "corrected by hand"
    write(target, later, overwrite=True)
    write(target, later, text="again")
    assert (target.read_text(), later.read_text()) == ("again", "again")
    left = {
        path.name for path in out.iterdir() if path.suffix != ".tmp"
    }  # of the kill, removed when it is a second old
    assert left == {"mask.nii", "later.nii", INDEX}


def test_a_damaged_or_foreign_journal_records_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("theirs")
    for content in ("[" * 100_000 + "\n", '{"command": 1, "file": [], "sha256": null}\n', "\x00\n", "{}\n"):
        (tmp_path / JOURNAL).write_text(content)
        with pytest.raises(UserError, match="did not write it"):
            write(tmp_path / "a.csv")


def test_targets_that_are_one_file_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"would write .*a_map\.nii twice, and one result would be lost"):
        Outputs([out / "a_map.nii", out / "b.nii", out / "a_map.nii"], command="prog verb")
    names = ["Case.nii", "case.nii", "caf\u00e9.nii", "cafe\u0301.nii"]
    write(*(out / name for name in names))  # this file system tells them apart
    lexists = os.path.lexists
    monkeypatch.setattr(
        os.path, "lexists", lambda path: lexists(path) or any(
            _folded(entry.name) == _folded(Path(path).name) for entry in Path(path).parent.iterdir()
        ),
    )  # fmt: skip
    for pair in (names[:2], names[2:]):
        with pytest.raises(UserError, match="which are the same file there"):
            Outputs([tmp_path / name for name in pair], command="prog verb")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out"]


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def test_a_file_that_was_not_replaced_after_all_stays_foreign(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("theirs")
    with Outputs([tmp_path / "a.csv"], command="prog verb", overwrite=True):
        pass
    with pytest.raises(UserError, match="did not write it to this folder"):
        write(tmp_path / "a.csv")


def test_a_place_that_cannot_be_written_to_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("theirs")
    with pytest.raises(UserError, match="cannot be written to"):
        Outputs([tmp_path / "file" / "deep" / "a.csv"], command="prog verb")


def test_a_plan_that_writes_nothing_leaves_nothing(tmp_path: Path) -> None:
    with Outputs([tmp_path / "a"], command="prog verb"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_many_files_are_named_in_short(tmp_path: Path) -> None:
    targets = [tmp_path / f"{n}.csv" for n in range(12)]
    for target in targets:
        target.write_text("theirs")
    with pytest.raises(
        UserError,
        match=r"2\.csv and 9 more files already exist, and .* did not write them to this folder or they have been",
    ):
        write(*targets)


def test_temporary_files_that_a_kill_left_are_removed(tmp_path: Path) -> None:
    target, other = tmp_path / "a.csv", tmp_path / ".b.csv.0123abcd.tmp"
    child = os.fork()
    if child == 0:
        with files.open_atomic(target) as file:
            file.write(b"half")
            os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    (left,) = tmp_path.iterdir()
    for path in (left, other):
        path.touch()
        os.utime(path, (0, 0))
    with files.open_atomic(target) as file:
        (alive,) = set(tmp_path.iterdir()) - {left, other}
        os.utime(alive, (0, 0))  # a writer may take hours
        write(target)
        assert [path.exists() for path in (left, alive, other)] == [False, True, True]
        file.write(b"theirs")
    assert target.read_text() == "theirs"


def test_overwrite_names_what_it_replaces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own, foreign, new = (tmp_path / name for name in ("own.csv", "foreign.csv", "new.csv"))
    write(own)
    foreign.write_text("theirs")
    write(own, foreign, new, overwrite=True)
    assert capsys.readouterr().err == f"--overwrite replaces {foreign}\n"


def test_files_that_others_rely_on_are_written_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    split, other = tmp_path / "splits" / "a.json", tmp_path / "splits" / "b.json"
    write_once({split: b"split"}, command="prog make-splits")
    before = split.stat()
    write_once({split: b"split"}, command="prog make-splits")
    after = split.stat()  # the access time may differ, as the file is read
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    for content, change in ((b"drawn again", b""), (b"split", b"edited by hand")):
        split.write_bytes(change or b"split")
        with pytest.raises(UserError, match=r"a\.json already exists with another content"):
            write_once({other: b"new", split: content}, command="prog make-splits")
        assert split.read_bytes() == (change or b"split")
        assert not other.exists()
    write_once({split: b"drawn again"}, command="prog make-splits", overwrite=True)
    assert capsys.readouterr().err == f"--overwrite replaces {split}\n"
    with pytest.raises(UserError, match="is an input of"):
        write_once({split: b"third"}, command="prog make-splits", inputs=[split], overwrite=True)
    assert split.read_bytes() == b"drawn again"


@pytest.mark.parametrize("theirs", ["file", "config.yaml"])
def test_a_folder_is_claimed_only_if_it_is_empty_or_was_claimed_before(tmp_path: Path, theirs: str) -> None:
    own, foreign = tmp_path / "own" / "deep", tmp_path / "foreign"
    claim_folder(own, command="prog demo")
    (own / "data").write_text("ours")
    claim_folder(own, command="prog demo")
    with pytest.raises(UserError, match="not empty"):
        claim_folder(own, command="prog other")
    foreign.mkdir()
    (foreign / theirs).write_text("{}")
    with pytest.raises(UserError, match=r"is not empty \(it contains .*`prog demo` did not create it"):
        claim_folder(foreign, command="prog demo")
    assert [path.name for path in foreign.iterdir()] == [theirs]
    with pytest.raises(UserError, match="is a file, but"):
        claim_folder(own / "data", command="prog demo")


def test_other_commands_in_a_claimed_folder_leave_the_claim(tmp_path: Path) -> None:
    claim_folder(tmp_path / "out", command="prog demo")
    for _ in range(2):
        write(tmp_path / "out" / "report.html", command="prog report")
    claim_folder(tmp_path / "out", command="prog demo")


def test_files_that_a_command_adds_to_a_run_are_written_again(tmp_path: Path) -> None:
    """An export or evaluation in a run's folder is not a file of the run, but settings and weights are."""
    run = tmp_path / "run"
    for name in ("config.yaml", "model/model.json", "checkpoints/step-000001/state.pt"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        files.write_atomic(run / name, b"of the run")
    (run / "evaluation").mkdir()
    targets = [run / "network.onnx", run / "evaluation" / "test.json"]
    for number in range(2):
        for target in targets:
            with Outputs([target], command="prog export", inputs=run_files(run)):
                files.write_atomic(target, str(number).encode())
    targets[1].write_text("edited")
    with Outputs([targets[1]], command="prog export", inputs=run_files(run), overwrite=True):
        files.write_atomic(targets[1], b"again")
    for name in ("config.yaml", "model/model.json", "checkpoints/step-000001/state.pt"):
        with pytest.raises(UserError, match="is an input of `prog export`"):
            Outputs([run / name], command="prog export", inputs=run_files(run), overwrite=True)


def test_a_model_is_an_input_although_a_command_has_written_it(tmp_path: Path) -> None:
    card = tmp_path / "imported" / "model.json"
    card.parent.mkdir()
    with Outputs([card], command="prog import"):
        files.write_atomic(card, b"{}")
    with pytest.raises(UserError, match="is an input"):
        Outputs([card], command="prog export", inputs=run_files(card.parent), overwrite=True)


def test_a_kill_between_two_records_of_a_command_loses_none(tmp_path: Path) -> None:
    """A command that records two files separately is killed when only one of them is recorded."""
    first, second = tmp_path / "found.json", tmp_path / "map.json"
    child = os.fork()
    if child == 0:
        with Outputs([first], command="prog verb"):
            with Outputs([second], command="prog verb"):
                for path in (first, second):
                    files.write_atomic(path, b"{}")
            os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    write(first, second)


@contextmanager
def other_process(code: str, *arguments: Path) -> Iterator[None]:
    """Run code in another process until it waits, and end it after the block as a user ends a command."""
    code = f"import sys\nfrom pathlib import Path\n{code}"
    other = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        yield
    finally:
        other.communicate()
    assert other.returncode == 0


WRITING = """
from contrastive_core.training import files
from contrastive_core.training.outputs import Outputs
targets = [Path(target) for target in sys.argv[1:]]
with Outputs(targets, command="prog verb"):
    print("ready", flush=True)
    sys.stdin.read()
    for target in targets:
        files.write_atomic(target, b"theirs")
"""


def test_two_processes_do_not_write_the_same_file(tmp_path: Path) -> None:
    """One summary described the files of two commands."""
    shared, own, other = (tmp_path / "out" / name for name in ("summary.json", "a.csv", "b.csv"))
    with other_process(WRITING, other, shared):
        with pytest.raises(UserError, match=r"summary\.json is being written by another process; wait for it to end"):
            write(own, shared, folder=tmp_path / "out")
        assert not own.exists()
        write(own)  # other files of the folder remain free
    assert shared.read_text() == "theirs"
    write(own, other, shared, text="again")  # both processes have recorded their files
    assert shared.read_text() == "again"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"summary.json", "a.csv", "b.csv", INDEX}


def test_processes_at_once_lose_no_record(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from contrastive_core.training import files
from contrastive_core.training.outputs import Outputs
for number in range(50):
    target = Path(sys.argv[1]) / f"{sys.argv[2]}-{number}.csv"
    with Outputs([target], command="prog verb"):
        files.write_atomic(target, b"theirs")
"""
    others = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name]) for name in "ab"]
    assert [other.wait() for other in others] == [0, 0]
    assert len(json.loads((tmp_path / INDEX).read_text())["prog verb"]) == 100
    assert not (tmp_path / files.OUTPUTS_LOCK).exists()


def test_thousands_of_files_are_locked_by_the_first_and_the_last(tmp_path: Path) -> None:
    names = [f"case {number:05d}.nii.gz" for number in range(20_000)]
    code = (
        "from contrastive_core.training.files import FileLocks\nlocks = FileLocks(Path(sys.argv[1]))\n"
        "names = [f'case {number:05d}.nii.gz' for number in range(20_000)]\n"
        "assert locks.acquire([*names, 'summary.json']) is None\nprint('ready', flush=True)\nsys.stdin.read()"
    )
    with other_process(code, tmp_path):
        locks = files.FileLocks(tmp_path)
        assert locks.acquire(["other.nii.gz"]) is None
        assert locks.acquire([names[0], "other.json"]) == names[0]
        assert locks.acquire([*names[5000:9000], "summary.json"]) == "summary.json"
        locks.release()


def test_without_permission_for_the_lock_the_files_are_written(tmp_path: Path) -> None:
    """Members of a group share a folder of results, but the first one owns the lock."""
    (tmp_path / files.OUTPUTS_LOCK).mkdir()  # cannot be opened, also by root
    write(tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text() == "ours"
