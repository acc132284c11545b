"""Commands killed while they write: called again, they end with the files of an undisturbed one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.workspace.test_outputs_of_commands import CASES, Case, call, contents, filled

FLOW = Case("flow DATA OUT --workers 0 --method dis_ultrafast --short-side 32")
FAST = {("ssl_vision", "evaluate"), ("ssl_medseg", "evaluate"), ("ssl_video", "evaluate"), ("ssl_medseg", "report")}
WRITING = [
    (domain, case)
    for domain in CASES
    for case in [*CASES[domain], *([FLOW] if domain == "ssl_video" else [])]
    if not case.targets
]


def events(domain: str, line: list[str], out: Path, *, kill_at: int = 0) -> int:
    """Run a command in its own process, killed at a file event in a folder; return the number of events."""
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        count = 0

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal count
            writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
            if (writes or event in ("os.rename", "os.mkdir", "os.remove")) and str(arguments[0]).startswith(str(out)):
                count += 1
                if count == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        call(domain, line)
        os.write(tell, str(count).encode())
        os._exit(0)
    os.close(tell)
    said = os.read(told, 100)
    os.close(told)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) == bool(kill_at)
    return int(said or 0)


def without_times(content: bytes) -> object:
    """Return a JSON document without the durations in it; other content unchanged."""

    def drop(value: object) -> object:
        if isinstance(value, dict):
            return {key: drop(inner) for key, inner in value.items() if "second" not in key}
        return [drop(inner) for inner in value] if isinstance(value, list) else value

    try:
        return drop(json.loads(content))
    except ValueError:  # no JSON, also half of a document
        return content


@pytest.mark.parametrize(
    ("domain", "case"),
    [
        pytest.param(
            domain, case, id=f"{domain}-{number}-{case.verb}",
            marks=() if (domain, case.verb) in FAST or case is FLOW else pytest.mark.slow,
        )
        for number, (domain, case) in enumerate(WRITING)
    ],
)  # fmt: skip
def test_a_command_that_was_killed_is_called_again(
    domain: str, case: Case, places: Callable[[str], dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    line = filled(case.words, places(domain), out)
    total = events(domain, line, out)
    expected = contents(out)
    assert total > 1
    assert expected
    for kill_at in sorted({1, 2, total // 2, total - 1, total}):
        shutil.rmtree(out, ignore_errors=True)
        events(domain, line, out, kill_at=kill_at)
        for file, content in contents(out).items():
            hidden = any(part.startswith(".") for part in file.relative_to(out).parts)
            whole = hidden or file.suffix == ".html" or without_times(content) == without_times(expected[file])
            assert whole, "half a file"
        for left in out.rglob(".*.tmp*"):
            os.utime(left, (0, 0))
        assert call(domain, line) == case.status
        found = contents(out)
        assert set(found) == set(expected), "something stays, or something is missing"
        same = {file for file in found if found[file] == expected[file]}
        assert {file.suffix for file in set(found) - same} <= {".html", ".pt2", ".json", ".png"}
        assert len(same) == len(found) or domain != "ssl_video" or case.verb != "flow"
