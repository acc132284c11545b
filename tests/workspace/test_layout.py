"""Every package has the same shape, is known to every tool, and depends on the core but on no sibling."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tools.isolation import INSTALLS
from tools.results import ROOT

ROOT_PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
TESTS = {"contrastive-core": "core", "ssl-vision": "vision", "ssl-medseg": "medseg", "ssl-video": "video"}


def project(package: str) -> dict[str, object]:
    return tomllib.loads((ROOT / "packages" / package / "pyproject.toml").read_text())


def imported(text: str) -> Iterator[tuple[str, bool]]:
    """Return modules that a file imports, and whether importing it imports them (not in functions or TYPE_CHECKING)."""

    def walk(node: ast.AST, at_once: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name, at_once) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                yield child.module or "", at_once
            lazy = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            yield from walk(child, at_once and not lazy and not typing_only)

    return walk(ast.parse(text), True)


def test_files_of_a_package(package: str) -> None:
    folder, module = ROOT / "packages" / package, package.replace("-", "_")
    wanted = ["pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", f"src/{module}/__init__.py"]
    missing = [name for name in [*wanted, f"src/{module}/py.typed"] if not (folder / name).is_file()]
    assert missing == []
    assert (folder / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert [path.name for path in (folder / "src").iterdir() if not path.name.startswith(".")] == [module]


def test_pyproject_of_a_package(package: str) -> None:
    definition = project(package)
    assert definition["build-system"] == project("contrastive-core")["build-system"]
    stated = {key: definition["project"][key] for key in ("name", "license", "readme", "requires-python", "dynamic")}
    assert stated == {
        "name": package,
        "license": "Apache-2.0",
        "readme": "README.md",
        "requires-python": ">=3.11",
        "dynamic": ["version"],
    }
    # Without it, pip install --no-build-isolation -e asks for one package more.
    assert definition["tool"]["hatch"]["build"]["dev-mode-dirs"] == ["src"]
    source = (
        ROOT_PROJECT["tool"]["uv"]["sources"] if package == "contrastive-core" else definition["tool"]["uv"]["sources"]
    )
    assert source["contrastive-core"] == {"workspace": True}


def test_every_tool_knows_the_package(package: str) -> None:
    module, tool = package.replace("-", "_"), ROOT_PROJECT["tool"]
    assert (ROOT / "tests" / TESTS[package]).is_dir()
    assert package in INSTALLS
    members = [member["path"] for member in tool["hatch"]["envs"]["default"]["workspace"]["members"]]
    assert f"packages/{package}" in members
    assert f"packages/{package}/src" in tool["mypy"]["files"]
    assert f"packages/{package}/src" in tool["mypy"]["mypy_path"]
    assert module in tool["coverage"]["run"]["source_pkgs"]
    assert module in tool["ruff"]["lint"]["isort"]["known-first-party"]
    assert f"packages/{package}/README.md" in (ROOT / "README.md").read_text()


def test_a_package_imports_no_sibling(package: str, shipped: dict[Path, str]) -> None:
    siblings = {name.replace("-", "_") for name in TESTS} - {package.replace("-", "_"), "contrastive_core"}
    found = [
        f"{path} imports {name}"
        for path, text in shipped.items()
        if path.parts[1] == package
        for name, _ in imported(text)
        if name.partition(".")[0] in siblings | {"tools", "tests"}
    ]
    assert found == []


def test_the_core_needs_torch_only(shipped: dict[Path, str]) -> None:
    allowed = {"torch", "contrastive_core", *sys.stdlib_module_names}
    found = [
        f"{path} imports {name}"
        for path, text in shipped.items()
        if path.parts[1] == "contrastive-core"
        and not {"training", "app"} & set(path.parts)
        and path.name != "tensor_core_kernels.py"  # imported only where there is Triton
        for name, at_once in imported(text)
        if at_once and name.partition(".")[0] not in allowed
    ]
    assert found == []


def modules(shipped: dict[Path, str]) -> dict[str, set[str]]:
    """Return module -> modules of the packages that it imports, also in functions; not those imported for types."""
    names = {path: ".".join(path.with_suffix("").parts[3:]).removesuffix(".__init__") for path in shipped}
    known = set(names.values())
    found: dict[str, set[str]] = {}
    for path, text in shipped.items():
        wanted = set()
        for node in ast.walk(_without_types(ast.parse(text))):
            if isinstance(node, ast.ImportFrom) and node.module:
                inside = {f"{node.module}.{alias.name}" for alias in node.names} & known
                wanted |= inside or {node.module} & known
        found[names[path]] = wanted - {names[path]}
    return found


def _without_types(tree: ast.Module) -> ast.Module:
    tree.body = [
        node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
    ]
    return tree


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Return the nodes of circles in a graph and those that lead to them; empty if there is no circle."""
    left = {node: set(others) for node, others in graph.items()}
    while done := [node for node, others in left.items() if not others & left.keys()]:
        for node in done:
            del left[node]
    return sorted(left)


def test_imports_go_one_way(shipped: dict[Path, str]) -> None:
    """No circle of modules, nor of the folders and modules directly below a package."""
    graph = modules(shipped)
    files = {node: others for node, others in graph.items() if not any(other.startswith(f"{node}.") for other in graph)}
    assert circle(files) == []
    rooms: dict[str, set[str]] = {}
    for node, others in graph.items():
        if "." in node:
            room = ".".join(node.split(".")[:2])
            elsewhere = {".".join(other.split(".")[:2]) for other in others if "." in other} - {room}
            rooms.setdefault(room, set()).update(elsewhere)
    assert circle(rooms) == []
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["a", "b", "c"]


def test_a_command_imports_no_other(shipped: dict[Path, str]) -> None:
    """Except `demo`, which runs them one after the other."""
    found = [
        f"{node} imports {other}"
        for node, others in modules(shipped).items()
        for other in others
        if ".commands." in other and not node.endswith((".demo", ".cli")) and "." in node
    ]
    assert found == []


def test_imports_are_seen() -> None:
    text = (
        "import a.b\nif TYPE_CHECKING:\n    import c\ndef f():\n    from d import e\ntry:\n    import g\nexcept E: pass"
    )
    assert list(imported(text)) == [("a.b", True), ("c", False), ("d", False), ("g", True)]


def test_test_files_have_names_of_their_own(text_files: dict[Path, str]) -> None:
    names = Counter(
        path.name for path in text_files if path.match("tests/**/test_*.py") or path.match("tests/test_*.py")
    )
    assert [name for name, count in names.items() if count > 1] == []
