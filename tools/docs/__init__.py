"""Sphinx extension that writes the reference pages before a build reads its sources.

The pages are generated from docstrings and command lines and written to `docs/<package>/reference/`, which git ignores.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
from pathlib import Path
from typing import cast

from sphinx.application import Sphinx

from tools.docs import commands, reference
from tools.results import ROOT

PACKAGES = ("contrastive-core", "ssl-vision", "ssl-medseg", "ssl-video")
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", write_reference)
    app.connect("source-read", link_pages)
    app.connect("include-read", link_included)
    app.connect("autodoc-process-docstring", keep_formulas, priority=400)  # before napoleon
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def write_reference(app: Sphinx) -> None:
    """Write the generated pages of every package and delete obsolete pages of an earlier build."""
    for package in PACKAGES:
        folder = Path(app.srcdir) / package / "reference"
        files = reference_files(package)
        for path in folder.rglob("*") if folder.is_dir() else ():
            if path.is_file() and path.relative_to(folder).as_posix() not in files:
                path.unlink()
        for name, text in files.items():
            path = folder / name
            if not path.is_file() or path.read_text(encoding="utf-8") != text:  # unchanged pages are not read again
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")


def reference_files(package: str) -> dict[str, str]:
    """Return the generated pages of a package by their path below `reference/`."""
    module = package.replace("-", "_")
    python = reference.pages(module)
    files = {f"{name}.rst": text for name, text in python.items()}
    sections = ["# Reference"]
    if importlib.util.find_spec(f"{module}.cli"):
        verbs = getattr(importlib.import_module(f"{module}.cli"), "VERBS", {})
        for name, verb in verbs.items():
            files[f"commands/{name}.md"] = commands.page(package, name, verb)
        sections += ["## Commands", commands.overview(package, verbs), _toctree([f"commands/{name}" for name in verbs])]
    recipes = sorted((Path(importlib.import_module(module).__path__[0]) / "configs").glob("*.yaml"))
    if recipes:
        files["recipes.md"] = "\n\n".join(["# Recipes for `--config`", *map(recipe, recipes)]) + "\n"
        sections += ["## Recipes", "YAML files that `--config NAME` selects by name.", _toctree(["recipes"])]
    sections += ["## Python", _toctree(list(python))]
    changelog = ROOT / "packages" / package / "CHANGELOG.md"
    if changelog.is_file():
        files["changelog.md"] = changelog.read_text(encoding="utf-8")
        sections += ["## Changes", _toctree(["changelog"])]
    files["index.md"] = "\n\n".join(sections) + "\n"
    return files


def recipe(path: Path) -> str:
    """Format a recipe with its leading comment as text, followed by its values."""
    lines = path.read_text(encoding="utf-8").splitlines()
    about = [line.removeprefix("#").strip() for line in lines if line.startswith("#")]
    values = "\n".join(line for line in lines if not line.startswith("#"))
    return f"## `{path.stem}`\n\n" + "\n".join(about) + f"\n\n```yaml\n{values}\n```"


def link_pages(app: Sphinx, page: str, source: list[str]) -> None:
    """Convert the links of a page to links of the site."""
    path = Path(app.env.doc2path(page))
    if path.suffix == ".md":
        source[0] = site_links(source[0], path, path)


def link_included(app: Sphinx, file: Path, page: str, content: list[str]) -> None:
    """Convert the links of an included README to links of the page that includes it."""
    content[0] = site_links(content[0], Path(app.srcdir, file), Path(app.env.doc2path(app.env.docname)))


def site_links(text: str, source: Path, page: Path) -> str:
    """Convert links between files of the repository to links between pages of the site.

    A README is the first page of its folder, and a changelog is a page of the reference. A link to any other file is
    replaced by its text.
    """

    def link(match: re.Match[str]) -> str:
        target, _, anchor = match[3].partition("#")
        if not target or "://" in target or target.startswith("mailto:"):
            return match[0]
        path = Path(os.path.normpath(source.parent / target))
        if path.is_relative_to(ROOT / "packages"):
            folder = ROOT / "docs" / path.relative_to(ROOT / "packages").parts[0]
            path = {"README.md": folder / "index.md", "CHANGELOG.md": folder / "reference/changelog.md"}.get(
                path.name, path
            )
        path = path.with_name("index.md") if path == ROOT / "docs" / "README.md" else path
        if not path.is_relative_to(ROOT / "docs") or path.is_dir():
            return match[2]
        relative = Path(os.path.relpath(path, page.parent)).as_posix()
        return f"{match[1]}[{match[2]}]({relative}{'#' * bool(anchor)}{anchor})"

    return LINK.sub(link, text)


def keep_formulas(*arguments: object) -> None:
    """Preserve the line breaks of indented formulas and examples, which reStructuredText would show as a quotation."""
    lines = cast(list[str], arguments[-1])  # the last argument is the docstring, which is changed in place
    for index in reversed(range(2, len(lines))):
        before, blank, line = lines[index - 2 : index + 1]
        begins = line.startswith("    ") and not blank.strip() and before and not before.startswith((" ", "-", "*"))
        if begins and not before.endswith("::"):
            lines[index - 1 : index] = ["", "::", ""]


def _toctree(pages: list[str]) -> str:
    entries = "\n".join(pages)
    return f"```{{toctree}}\n:maxdepth: 1\n\n{entries}\n```"
