"""Read the signature of a function and its dataclasses from source code without running the module.

`prog verb --help` and the error message for a wrong flag need only names, types, defaults and docstrings, but the
modules that declare them import torch, which takes seconds. Therefore the source is parsed, and only declarations are
evaluated: the signature of the function, dataclasses without their methods, type aliases and constants. Imports are
followed.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

_Binding: TypeAlias = ast.stmt | tuple[str, str | None]


class UndeclaredError(Exception):
    """The signature cannot be determined from the source, so the module must be imported."""


def declared_function(target: str) -> Callable[..., Any]:
    """Return an empty function with the signature and docstring of the target.

    Args:
        target: Function, in the form "package.module:function".

    Raises:
        UndeclaredError: The signature depends on more than declarations, or on a third-party package.
    """
    module, _, name = target.partition(":")
    if module in sys.modules:
        function: Callable[..., Any] = getattr(sys.modules[module], name)
        return function
    package = module.partition(".")[0]
    reader = _Reader({package, __name__.partition(".")[0]})
    try:
        function = reader.read(module, name)
    except UndeclaredError:
        raise
    # If evaluating a declaration fails, importing its module shows the error in its context.
    except Exception as error:
        raise UndeclaredError(f"{target}: {type(error).__name__}: {error}") from error
    return function


class _Reader:
    """Evaluator of objects by module and name, each from the statement that binds the name."""

    def __init__(self, packages: set[str]) -> None:
        self._packages = packages
        self._bindings: dict[str, dict[str, _Binding]] = {}
        self._values: dict[tuple[str, str], Any] = {}

    def read(self, module: str, name: str) -> Any:
        if (module, name) not in self._values:
            self._values[module, name] = self._make(module, name)
        return self._values[module, name]

    def _make(self, module: str, name: str) -> Any:
        if module.partition(".")[0] not in self._packages:
            if module.partition(".")[0] not in sys.stdlib_module_names:
                raise UndeclaredError(f"{module} belongs to another package")
            return getattr(importlib.import_module(module), name)
        if module not in self._bindings:
            self._bindings[module] = _bindings_of(module)
        binding = self._bindings[module].get(name)
        if binding is None:
            raise UndeclaredError(f"{module} does not declare {name}")
        if isinstance(binding, tuple):
            source, attribute = binding
            if attribute is not None:
                return self.read(source, attribute)
            if source.partition(".")[0] in sys.stdlib_module_names:
                return importlib.import_module(source)
            raise UndeclaredError(f"{module}: {name} belongs to another package")
        return self._evaluate(module, name, _declaration(binding))

    def _evaluate(self, module: str, name: str, statement: ast.stmt) -> Any:
        bindings = self._bindings[module]
        names = (node for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load))
        dependencies = {node.id for node in names if node.id in bindings} - {name}
        # The name must not contain dots, because jsonargparse would import the module of a class.
        scope = {"__name__": module.replace(".", "_"), **{other: self.read(module, other) for other in dependencies}}
        tree = ast.fix_missing_locations(ast.Module([statement], type_ignores=[]))
        # Compile without the future import of the source, so that annotations are types and not strings.
        exec(compile(tree, f"<declarations of {module}>", "exec", dont_inherit=True), scope)  # noqa: S102 - own source
        return scope[name]


def _declaration(statement: ast.stmt) -> ast.stmt:
    """Remove the methods of a class, or the body, decorators and return type of a function."""
    if isinstance(statement, ast.ClassDef):
        body = [part for part in statement.body if not isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef))]
        return ast.ClassDef(**{**_fields(statement), "body": body or [ast.Pass()]})
    if isinstance(statement, ast.FunctionDef):
        docs = [ast.Expr(ast.Constant(doc))] if (doc := ast.get_docstring(statement, clean=False)) else []
        bare = {"body": [*docs, ast.Pass()], "decorator_list": [], "returns": None}
        return ast.FunctionDef(**{**_fields(statement), **bare})
    return statement


def _fields(node: ast.AST) -> dict[str, Any]:
    return dict(ast.iter_fields(node))


def _bindings_of(module: str) -> dict[str, _Binding]:
    path = _source_of(module)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return {name: binding for statement in _top_level(tree.body) for name, binding in _bound(statement, package)}


def _source_of(module: str) -> Path:
    # find_spec of the module itself would import its parent packages.
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    for root in (spec.submodule_search_locations or []) if spec else []:
        base = Path(root, *rest)
        for path in (base / "__init__.py", base.with_suffix(".py")):
            if path.is_file():
                return path
    raise UndeclaredError(f"{module} has no source file")


def _top_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for statement in body:
        # Packages that import their names on first use have these imports under `if TYPE_CHECKING`.
        if isinstance(statement, (ast.If, ast.Try)):
            yield from _top_level(statement.body)
        else:
            yield statement


def _bound(statement: ast.stmt, package: str) -> Iterator[tuple[str, _Binding]]:
    if isinstance(statement, (ast.ClassDef, ast.FunctionDef)):
        yield statement.name, statement
    elif isinstance(statement, ast.Assign):
        yield from ((target.id, statement) for target in statement.targets if isinstance(target, ast.Name))
    elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value:
        yield statement.target.id, statement
    elif isinstance(statement, ast.Import):
        for name in statement.names:
            top = name.name.partition(".")[0]
            yield name.asname or top, (name.name if name.asname else top, None)
    elif isinstance(statement, ast.ImportFrom):
        parents = package.split(".")[: len(package.split(".")) - statement.level + 1] if statement.level else []
        source = ".".join([*parents, *([statement.module] if statement.module else [])])
        for name in statement.names:
            yield name.asname or name.name, (source, name.name)
