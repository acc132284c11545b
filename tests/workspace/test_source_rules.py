"""What no file may contain: unsafe reads, assertions on user input, paths and hosts of a machine."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

# In pieces, so that this file does not hold what it looks for.
MACHINE_PATHS = re.compile(r"(?<![\w.~>)}/-])/(?:" + "|".join(["wo" + "rk", "ro" + "ot", "ho" + "me"]) + r")/\w")
REGISTRIES = re.compile("|".join(["py" + r"pi\.org", "pythonho" + r"sted\.org", "download.py" + r"torch\.org"]))
FORBIDDEN_MODULES = ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "pytorchvideo.transforms")
PRIVATE = re.compile(r"torchvision(\.\w+)*\._")


def unsafe(text: str) -> Iterator[str]:
    """Return what a Python file does that shipped code must not do."""
    for node in ast.walk(ast.parse(text)):
        line = f"line {getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Assert):
            yield f"{line}: assert (raise an error that says what to do)"
        elif isinstance(node, ast.ExceptHandler):
            silent = all(isinstance(step, ast.Pass | ast.Continue) for step in node.body)
            if node.type is None:
                yield f"{line}: bare except"
            elif silent and ast.unparse(node.type) in ("Exception", "BaseException"):
                yield f"{line}: {ast.unparse(node.type)} swallowed"
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(f"{node.module}.{name}" for name in names)]
            yield from (f"{line}: imports {name}" for name in names if name in FORBIDDEN_MODULES or PRIVATE.match(name))
        elif isinstance(node, ast.Call):
            yield from (f"{line}: {problem}" for problem in unsafe_call(node))


def unsafe_call(call: ast.Call) -> Iterator[str]:
    name = ast.unparse(call.func)
    keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if name == "torch.load" and keywords.get("weights_only") != "True":
        yield "torch.load without weights_only=True"
    if name in ("eval", "exec"):
        yield name
    if name in ("np.load", "numpy.load") and keywords.get("allow_pickle", "False") != "False":
        yield "numpy.load with pickle"
    if name == "yaml.load":
        yield "yaml.load (use safe_load)"


def test_shipped_code_is_safe(shipped: dict[Path, str]) -> None:
    assert len(shipped) > 20
    found = {
        path: [problem for problem in unsafe(text) if not _reads_declarations(path, problem)]
        for path, text in shipped.items()
    }
    assert {path: problems for path, problems in found.items() if problems} == {}


def _reads_declarations(path: Path, problem: str) -> bool:
    # It evaluates declarations of the installed package itself, which importing the package would run too.
    return path.match("contrastive_core/app/declarations.py") and problem.endswith(": exec")


@pytest.mark.parametrize(
    "text",
    [
        "assert x",
        "try: f()\nexcept: g()",
        "try: f()\nexcept Exception: pass",
        "import pickle",
        "from pickle import loads",
        "from pytorchvideo import transforms",
        "from pytorchvideo.transforms import Normalize",
        "import torchvision.transforms._functional_tensor",
        "from torchvision.transforms import _functional_tensor",
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "eval(x)",
        "np.load(p, allow_pickle=True)",
        "yaml.load(f)",
    ],
)
def test_unsafe_code_is_found(text: str) -> None:
    assert len(list(unsafe(text))) >= 1


@pytest.mark.parametrize(
    "text",
    [
        "torch.load(p, weights_only=True)",
        "model.eval()",
        "try: f()\nexcept OSError: pass",
        "np.load(p)",
        "import torch",
        "from torchvision.transforms.v2 import functional",
    ],
)
def test_safe_code_is_let_through(text: str) -> None:
    assert list(unsafe(text)) == []


def caught(text: str) -> Iterator[frozenset[str]]:
    """The classes of every list of exceptions in a file, in `except` or under a name."""
    for node in ast.walk(ast.parse(text)):
        place = (
            node.type if isinstance(node, ast.ExceptHandler) else node.value if isinstance(node, ast.Assign) else None
        )
        if isinstance(place, ast.Tuple):
            names = frozenset(ast.unparse(name).rpartition(".")[2] for name in place.elts)
            if len(names) > 1 and all(name.endswith(("Error", "Exception", "StopIteration")) for name in names):
                yield names


def test_no_list_of_exceptions_is_repeated(shipped: dict[Path, str]) -> None:
    """What a library raises for damaged files is known in one place; `documents.reading` is for all of it."""
    places: dict[frozenset[str], list[str]] = {}
    for path, text in shipped.items():
        for names in caught(text):
            places.setdefault(names, []).append(path.name)
    assert len(places) > 5
    assert {tuple(sorted(names)): found for names, found in places.items() if len(found) > 1} == {}


@pytest.mark.parametrize("pattern", [MACHINE_PATHS, REGISTRIES], ids=["paths", "registries"])
def test_nothing_of_one_machine(pattern: re.Pattern[str], text_files: dict[Path, str]) -> None:
    found = [
        f"{path}:{number}: {line.strip()}"
        for path, text in text_files.items()
        for number, line in enumerate(text.splitlines(), start=1)
        if pattern.search(line)
    ]
    assert found == []


def test_machine_paths_are_found() -> None:
    for place in ("wo" + "rk", "ro" + "ot", "ho" + "me"):
        assert MACHINE_PATHS.search(f'open("/{place}/me/file")')
        assert not MACHINE_PATHS.search(f"packages/{place}/me")
