"""The reference on the site has every public name, every command and every flag."""

from __future__ import annotations

import importlib
import re

import pytest

import tools.docs
from tools.docs import site_links
from tools.results import ROOT


def test_every_public_name_has_an_entry(package: str) -> None:
    module = package.replace("-", "_")
    text = "\n".join(tools.docs.reference_files(package).values())
    missing = [name for name in importlib.import_module(module).__all__ if f":: {module}.{name}\n" not in text]
    assert missing == []


def test_every_command_and_flag_has_an_entry() -> None:
    """The flags are read from what `--print_config` and a person would give: those of the signature, nested or not."""
    files = tools.docs.reference_files("ssl-video")
    text = files["commands/train.md"]
    assert {"`--split`", "`--pseudo.threshold`", "`--views`"} <= set(re.findall(r"`--[\w.]+`", text))
    verbs = importlib.import_module("ssl_video.cli").VERBS
    assert {f"commands/{name}.md" for name in verbs} <= set(files)


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
