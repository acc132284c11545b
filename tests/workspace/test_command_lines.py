"""The three command lines: what `--help` loads and shows, and that a flag means the same in all of them."""

from __future__ import annotations

import pytest

from tests.workspace.test_light_imports import loaded, strangers

VERB_HELP = """
from {domain}.cli import VERBS, main
for verb in VERBS:
    for words in (["--help"], ["--help-all"], ["--gpus", "2"], ["--print_config"]):
        main([verb, *words])
print()
"""


@pytest.mark.parametrize("domain", ["ssl_vision", "ssl_medseg", "ssl_video"])
def test_help_and_refusals_of_every_verb_load_nothing_heavy(domain: str) -> None:
    light = {"contrastive_core", domain, "jsonargparse", "yaml", "docstring_parser", "typeshed_client", "attr", "attrs"}
    program = VERB_HELP.format(domain=domain)
    found = strangers(program, *light, beside="import jsonargparse, docstring_parser, yaml")
    assert found == set()


@pytest.mark.parametrize("domain", ["ssl_vision", "ssl_medseg", "ssl_video"])
def test_the_signature_read_from_the_source_is_the_signature(domain: str) -> None:
    program = f"""
import contextlib, importlib, inspect, io
import jsonargparse
from contrastive_core.app.declarations import declared_function
from contrastive_core.app.flags import Flags
from {domain}.cli import VERBS
def config(function):
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_function_arguments(function, as_group=False, as_positional=False)
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        parser.parse_args(["--print_config"])
    return text.getvalue()
declared = {{name: declared_function(verb.target) for name, verb in VERBS.items()}}
for name, verb in VERBS.items():
    module, _, attribute = verb.target.partition(":")
    real, read = getattr(importlib.import_module(module), attribute), declared[name]
    assert real is not read, name
    assert config(real) == config(read), name
    assert list(Flags(real).types) == list(Flags(read).types), name
    assert inspect.getdoc(real) == inspect.getdoc(read), name
    assert all(Flags(real).full_name(flag) for flag in verb.common), name
"""
    loaded(program)
