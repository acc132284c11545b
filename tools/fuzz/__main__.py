"""Damage valid files at random and read them in separate processes.

    python -m tools.fuzz --cases 60                         # 60 cases of every format, as in CI
    python -m tools.fuzz --cases 170 --log fuzz.jsonl --out docs/results/fuzz.json
    python -m tools.fuzz --only NRRD --case 17 --keep found # repeats one case and keeps its files

A case fails if its reader raises anything but a UserError that names the file, crashes, takes over 10 s or over 2 GB,
or, in formats with a checksum, reads changed content. With --log, an interrupted run continues. The exit status is 1 if
a case fails.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tools.fuzz.server import HARMLESS, OTHER, REFUSED, SAME, Corpus, isolate, load_formats
from tools.results import ROOT, provenance, write_result

PACKAGES = {
    "core": "contrastive-core",
    "vision": "ssl-vision",
    "medseg": "ssl-medseg",
    "video": "ssl-video",
}
"""Groups of formats and the packages that read them."""
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def main(argv: list[str]) -> int:
    """Try the formats and print the counts."""
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", type=int, default=50, help="number of damaged files of each format")
    parser.add_argument("--seed", type=int, default=0, help="seed of the damage")
    parser.add_argument(
        "--package", choices=sorted(PACKAGES), action="append", help="try only the formats of this package"
    )
    parser.add_argument("--only", help="try only this format")
    parser.add_argument(
        "--jobs", type=int, default=min(2, os.cpu_count() or 1), help="number of packages to try at a time"
    )
    parser.add_argument(
        "--log", type=Path, help="JSON lines file for all cases, from which an interrupted run continues"
    )
    parser.add_argument("--out", type=Path, help="results file for the counts")
    parser.add_argument("--case", type=int, help="try only this case of --only and print its outcome")
    parser.add_argument("--keep", type=Path, help="folder for the files of --case")
    options = parser.parse_args(argv)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if options.case is not None:
        return try_one(options.package or list(PACKAGES), options.only, options.case, options.seed, options.keep)
    log = Log(options.log, seed=options.seed)
    with ThreadPoolExecutor(options.jobs) as pool:
        results = pool.map(lambda package: run(package, options, log), options.package or list(PACKAGES))
        problems = [problem for each in results for problem in each]
    if options.only and not log.counts:
        problems.append(f"--only: there is no format {options.only!r}")
    print(summary(log.counts))
    print("\n".join(problems), end="\n" if problems else "", file=sys.stderr)
    if options.out:
        write_result(options.out, result(log, options))
    return int(bool(log.failures or problems))


class Log:
    """Outcomes of all cases, which are also written to a file if one is given.

    The first line of the file describes the run. A file of another commit or seed raises an error.
    """

    def __init__(self, file: Path | None, *, seed: int) -> None:
        self.counts: dict[str, Counter[str]] = defaultdict(Counter)
        self.failures: list[dict[str, Any]] = []
        self.slowest = self.largest = 0.0
        self.seconds = 0.0
        self._lock, self._file = threading.Lock(), file
        self.head = {"seed": seed, **provenance()}
        if file is None:
            return
        if file.is_file():
            head, *records = map(json.loads, file.read_text(encoding="utf-8").splitlines())
            if (head["seed"], head["commit"]) != (seed, self.head["commit"]):
                raise SystemExit(
                    f"{file} belongs to seed {head['seed']} and commit {head['commit']}; choose another file"
                )
            for record in records:
                self._count(record)
        else:
            self._append(self.head)

    def add(self, record: dict[str, Any]) -> None:
        """Count a case and append it to the file."""
        with self._lock:
            self._count(record)
            self._append(record)

    def _count(self, record: dict[str, Any]) -> None:
        self.counts[record["format"]][record["word"]] += 1
        self.seconds += record["seconds"]
        self.slowest = max(self.slowest, record["seconds"])
        self.largest = max(self.largest, record["megabytes"])
        if record["word"] not in HARMLESS:
            self.failures.append(record)

    def _append(self, record: Mapping[str, Any]) -> None:
        if self._file is not None:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")


def run(package: str, options: argparse.Namespace, log: Log) -> list[str]:
    """Try the formats of a package in a separate server, and return problems of the server itself."""
    start = {name: outcomes.total() for name, outcomes in log.counts.items()}
    settings = {"package": package, "seed": options.seed, "only": options.only, "cases": options.cases, "start": start}
    request = json.dumps(settings)
    command = [sys.executable, "-m", "tools.fuzz.server", request]
    with subprocess.Popen(command, cwd=ROOT, env={**os.environ, **_ONE_THREAD}, stdout=subprocess.PIPE) as server:
        for record in _records(server):
            log.add(record)
            if record["word"] not in HARMLESS:
                print(f"{record['format']}, case {record['case']}: {record['word']}\n{record.get('detail', '')}\n",
                      file=sys.stderr, flush=True)  # fmt: skip
    return [f"the server of {package} ended with status {server.returncode}"] if server.returncode else []


def _records(server: subprocess.Popen[bytes]) -> Iterator[dict[str, Any]]:
    for line in server.stdout or ():
        yield json.loads(line)


def try_one(packages: list[str], name: str, number: int, seed: int, keep: Path | None) -> int:
    """Try one case again, print its outcome, and keep its files."""
    import tempfile

    formats = {name: kind for package in packages for name, kind in load_formats(package).items()}
    with tempfile.TemporaryDirectory() as folder:
        corpus = Corpus(formats[name], Path(folder))
        with corpus.case(number, seed) as (place, example, file):
            print(f"{name} {example}: damaged {file.name}, {file.stat().st_size:,} bytes")
            if keep is not None:
                shutil.copytree(place, keep, dirs_exist_ok=True)
            outcome = isolate({0: lambda: corpus.kind.read(place)})[0]
        print(f"{outcome.verdict}\n{outcome.detail}\n{outcome.seconds:.2f} s, {outcome.megabytes:.0f} MB")
    return 0


def summary(counts: Mapping[str, Counter[str]]) -> str:
    """Return the counts of every format, one per line, and their sum."""
    lines = [
        f"{name}: " + ", ".join(f"{n} {verdict}" for verdict, n in outcomes.items())
        for name, outcomes in counts.items()
    ]
    total = sum((outcomes for outcomes in counts.values()), Counter[str]())
    return "\n".join(
        [*lines, f"{total.total():,} cases: " + ", ".join(f"{n:,} {verdict}" for verdict, n in total.items())]
    )


def result(log: Log, options: argparse.Namespace) -> dict[str, Any]:
    """Return the counts as the content of a results file."""
    rows: list[list[Any]] = []
    silent = 0
    for package, title in PACKAGES.items():
        for name, kind in load_formats(package).items():
            outcomes = log.counts.get(name)
            if not outcomes:
                continue
            bad = sum(count for verdict, count in outcomes.items() if verdict not in HARMLESS)
            protection = "made to fit" if kind.sign else "yes" if kind.has_checksum else "no"
            rows.append(
                [title, name, protection, outcomes.total(), outcomes[REFUSED], outcomes[SAME], outcomes[OTHER], bad]
            )
            silent += outcomes[OTHER]
    total = sum(row[3] for row in rows)
    verdicts = Counter(record["word"] for record in log.failures)
    failures = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items()) or "none"
    sums = [sum(row[at] for row in rows) for at in range(3, 8)]
    return {
        "name": "fuzz",
        **log.head,
        "seeds": [options.seed],
        "config": {"cases of each format": options.cases, "limit": "10 s and 2 GB for each case"},
        "failures": dict(verdicts),
        "slowest_seconds": log.slowest,
        "largest_megabytes": log.largest,
        "table": {
            "columns": ["package", "format", "checksum", "cases", "refused", "same", "other content", "failures"],
            "rows": [*rows, ["all", "", "", *sums]],
        },
        "notes": [
            f"{total:,} damaged files. Failures (tracebacks, crashes, more than 10 s or 2 GB, errors that do not name "
            f"the file, other content despite a checksum): {failures}.",
            "The column on checksums is `yes` if the format has checksums, so that other content is a failure; `made "
            "to fit` if the checksums were recomputed after the damage, to test the code behind them; and `no` if the "
            "format has none, so that damage within the content cannot be detected.",
            f"The slowest case took {log.slowest:.1f} s, and the largest process used {log.largest:,.0f} MB including "
            f"libraries; all cases took {log.seconds:,.0f} s.",
        ],
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
