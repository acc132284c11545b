"""The reference on the site has every public name, every command and every flag."""

from __future__ import annotations

import dataclasses
import importlib
import re

import pytest

import tools.docs
from contrastive_core.app.flags import Flags
from tools.docs import site_links
from tools.results import ROOT


def test_every_public_name_has_an_entry(package: str) -> None:
    module = package.replace("-", "_")
    text = "\n".join(tools.docs.reference_files(package).values())
    missing = [name for name in importlib.import_module(module).__all__ if f":: {module}.{name}\n" not in text]
    assert missing == []


@pytest.mark.parametrize("program", ["ssl-vision", "ssl-medseg", "ssl-video"])
def test_names_of_the_core_are_in_the_index_once(program: str) -> None:
    module = program.replace("-", "_")
    text = "\n".join(tools.docs.reference_files(program).values())
    entry = re.search(rf":: {module}\.RunOptions\n((   :.*\n)*)", text)
    assert entry is not None
    assert ":no-index:" in entry[1]
    assert "<contrastive_core.training.config.RunOptions>" in text


@pytest.mark.parametrize("program", ["ssl-vision", "ssl-medseg", "ssl-video"])
def test_every_command_and_flag_has_an_entry(program: str) -> None:
    files = tools.docs.reference_files(program)
    for name, verb in importlib.import_module(f"{program.replace('-', '_')}.cli").VERBS.items():
        module, _, attribute = verb.target.partition(":")
        flags = Flags(getattr(importlib.import_module(module), attribute))
        text = files[f"commands/{name}.md"]
        leaves = [key for key, kind in flags.types.items() if not dataclasses.is_dataclass(kind)]
        written = {key: flags.short_name(key).replace("_", "-") for key in leaves if key not in flags.required}
        missing = [key for key, flag in written.items() if not re.search(rf"`--(\[no-\])?{re.escape(flag)}[ `]", text)]
        assert missing == [], name
        assert all(f"`{key.upper()}`" in text for key in flags.required), name


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("[a](../../docs/ssl-video/method.md#x)", "[a](method.md#x)"),
        ("![a](../../docs/results/acdc.png)", "![a](../results/acdc.png)"),
        ("[core](../contrastive-core/README.md)", "[core](../contrastive-core/index.md)"),
        ("[changes](CHANGELOG.md)", "[changes](reference/changelog.md)"),
        ("[all](../../docs/README.md)", "[all](../index.md)"),
        ("[licence](../../LICENSE)", "licence"),
        (
            "[elsewhere](https://example.org/a.md) and [here](#x)",
            "[elsewhere](https://example.org/a.md) and [here](#x)",
        ),
    ],
)
def test_links_of_a_readme_become_those_of_the_site(written: str, shown: str) -> None:
    readme = ROOT / "packages" / "ssl-video" / "README.md"
    assert site_links(written, readme, ROOT / "docs" / "ssl-video" / "index.md") == shown


def test_links_of_a_page_lead_to_the_pages_of_readmes() -> None:
    page = ROOT / "docs" / "ssl-video" / "method.md"
    assert site_links("[a](../../packages/ssl-vision/README.md)", page, page) == "[a](../ssl-vision/index.md)"
