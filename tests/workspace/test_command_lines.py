"""The three command lines: what `--help` loads and shows, and that a flag has one meaning in all of them."""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import inspect
import re
from collections import defaultdict
from pathlib import Path

import pytest

from contrastive_core.app.declarations import declared_function
from contrastive_core.app.flags import Flags
from contrastive_core.app.help import help_text, placeholder
from contrastive_core.training.config import DeviceName
from tests.workspace.test_light_imports import loaded, strangers

VERB_HELP = """
from contrastive_core.app.cli import _holds_dataclass
from contrastive_core.app.declarations import declared_function
from contrastive_core.app.flags import Flags
from {domain}.cli import VERBS, main
for verb, about in VERBS.items():
    for words in (["--help"], ["--help-all"], ["--gpus", "2"]):
        main([verb, *words])
    # jsonargparse imports the module of a dataclass that is optional, to print its fields.
    if not any(map(_holds_dataclass, Flags(declared_function(about.target)).types.values())):
        main([verb, "--print_config"])
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


PACKAGES = ("ssl_vision", "ssl_medseg", "ssl_video")
CONTRIBUTING = Path(__file__).parents[2] / ".github" / "CONTRIBUTING.md"


def values_of_flags() -> dict[str, dict[str, set[str]]]:
    """Return the value of each flag of `--help-all` (`N`, `PATH`, `TEXT`), by short name, with the commands."""
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for package in PACKAGES:
        for verb, about in importlib.import_module(f"{package}.cli").VERBS.items():
            flags = Flags(declared_function(about.target))
            for key, kind in flags.types.items():
                name = flags.short_name(key)
                if not dataclasses.is_dataclass(kind):
                    # Choices of a word are words: methods differ between domains.
                    words = re.sub(r"\{[^}]*\}", "TEXT", placeholder(kind)).replace("TEXT|TEXT", "TEXT")
                    value = words if kind is not bool else "on or off"
                    found[name][value].add(f"{package.replace('_', '-')} {verb}")
    return found


def table() -> dict[str, str]:
    """Return the table "One flag, one meaning" of CONTRIBUTING: flag and value."""
    rows = re.findall(r"^\| `--([\w-]+)(?: (\S+))?` \|", CONTRIBUTING.read_text(encoding="utf-8"), re.MULTILINE)
    return {flag.replace("-", "_"): value or "on or off" for flag, value in rows}


def test_the_short_help_is_short() -> None:
    flags_of = {}
    for package in PACKAGES:
        for verb, about in importlib.import_module(f"{package}.cli").VERBS.items():
            function = declared_function(about.target)
            text = help_text(verb, function, Flags(function), common=about.common)
            flags_of[f"{package} {verb}"] = len(re.findall(r"^  --", text, re.MULTILINE))
    assert {verb: count for verb, count in flags_of.items() if count > 15} == {}
    assert max(flags_of.values()) > 10


def test_a_flag_takes_the_same_in_all_command_lines() -> None:
    several = {
        flag: {value: sorted(verbs) for value, verbs in values.items()}
        for flag, values in values_of_flags().items()
        if len(values) > 1
    }
    assert several == {}


def test_positional_arguments_have_one_order() -> None:
    """What is used, the data, what is written; everything else, such as a split, is a flag."""
    order = [("model", "init", "teacher", "source", "run", "predicted"), ("data",), ("out",)]
    wrong = {}
    for package in PACKAGES:
        for verb, about in importlib.import_module(f"{package}.cli").VERBS.items():
            found = Flags(declared_function(about.target)).positional
            places = [next((n for n, names in enumerate(order) if name in names), -1) for name in found]
            if places != sorted(set(places)) or -1 in places:
                wrong[f"{package} {verb}"] = found
    assert wrong == {}


def test_no_two_commands_write_to_the_same_folder_by_default() -> None:
    """The demos of all packages run one after another in one folder, as the README lists them."""
    outputs = [
        parameter.default
        for package in PACKAGES
        for about in importlib.import_module(f"{package}.cli").VERBS.values()
        for name, parameter in inspect.signature(declared_function(about.target)).parameters.items()
        if name == "out" and isinstance(parameter.default, Path)
    ]
    assert len(outputs) >= len(PACKAGES)
    assert len(set(outputs)) == len(outputs)


@pytest.mark.parametrize(
    ("domain", "words"),
    [
        ("ssl_medseg", ["train", "hearts", "run"]),
        ("ssl_medseg", ["pretrain", "hearts", "run"]),
        ("ssl_medseg", ["selftrain", "first", "hearts", "run"]),
        ("ssl_video", ["train", "videos", "run"]),
    ],
)
def test_a_missing_split_names_its_flag_and_how_to_make_one(
    domain: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    program = domain.replace("_", "-")
    assert importlib.import_module(f"{domain}.cli").main(words) == 2
    said = capsys.readouterr().err
    assert f"missing: --split (split file, as written by {program} make-splits" in said


_UNDERSCORED = re.compile(r"(?<![\w-])--[a-z][a-z0-9.]*_[a-z0-9_.]*")
_OF_OTHER_PROGRAMS = (
    "--verify_dataset_integrity",  # nnU-Net
    *("--config_file", "--meta_file", "--bundle_root", "--dataset_dir", "--output_dir"),  # MONAI
    "--batch_size 1024 --temp",  # SupContrast
)


def test_flags_are_spelt_with_dashes_as_in_the_help() -> None:
    """In messages, docstrings and pages; command lines accept both spellings."""
    root = CONTRIBUTING.parents[1]
    texts = {
        path: path.read_text(encoding="utf-8")
        for pattern in ("docs/**/*.md", "docs/**/*.ipynb", "packages/*/*.md", ".github/*.md", "README.md")
        for path in root.glob(pattern)
        if "reference" not in path.parts
    }
    for path in root.glob("packages/*/src/**/*.py"):
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        literals = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        texts[path] = "\n".join(literals)
    assert len(texts) > 300
    wrong = {}
    for path, text in texts.items():
        ours = functools.reduce(lambda rest, theirs: rest.replace(theirs, ""), _OF_OTHER_PROGRAMS, text)
        if found := _UNDERSCORED.findall(ours):
            wrong[str(path.relative_to(root))] = found
    assert wrong == {}


#: Beginning of the text of flags that stand in many commands; a command may add what is particular to it.
SHARED_TEXTS = {
    "device": r"Device to run on: auto, cpu, cuda or mps\.",
    "overwrite": r"Whether to replace files that this command did not write\.",
    "json": r"Whether to print JSON instead of text\.",
    "seed": r"Seed of all random draws[.:]",
    "part": r"Part of (the data|the split|a manifest)",
    "max_bad": r"Largest fraction of unreadable \w+ that does not stop the command; above 0, at least one \w+\.",
    "load": r"Source of the images",
    "out": r"(Folder|File|Table|(HTML|JSON|CSV) file|Run folder)\b",
}


def test_a_flag_has_one_text() -> None:
    wrong, found = {}, set()
    for package in PACKAGES:
        for verb, about in importlib.import_module(f"{package}.cli").VERBS.items():
            function = declared_function(about.target)
            flags = Flags(function)
            for key, kind in flags.types.items():
                if (name := flags.short_name(key)) in SHARED_TEXTS and not dataclasses.is_dataclass(kind):
                    text = " ".join(flags.text(key).split())
                    found.add(name)
                    if not re.match(SHARED_TEXTS[name], text):
                        wrong[f"{package} {verb} --{name}"] = text
                    if name == "device" and kind != DeviceName:
                        wrong[f"{package} {verb} --{name}"] = str(kind)
    assert wrong == {}
    assert found == set(SHARED_TEXTS)


#: What a command works on: arguments that are not settings and may belong to the signatures of several commands.
WORKED_ON = {
    *("data", "out", "model", "init", "run", "split", "part", "labels", "encoder", "network", "cache"),
    *("name", "overwrite", "json", "pictures", "show_paths"),
}
#: Settings of commands that have no group for them, or with another default and meaning in each command.
SINGLE = {"seed", "device", "temperature", "epochs", "image_size", "from_layer", "method"}


@pytest.mark.parametrize("domain", PACKAGES)
def test_settings_of_several_commands_are_fields_of_one_dataclass(domain: str) -> None:
    declared: dict[str, set[str]] = defaultdict(set)
    for verb, about in importlib.import_module(f"{domain}.cli").VERBS.items():
        flags = Flags(declared_function(about.target))
        for key, kind in flags.types.items():
            if "." not in key and not dataclasses.is_dataclass(kind):
                declared[key].add(verb)
    several = {name: verbs for name, verbs in declared.items() if len(verbs) > 1}
    assert len(several) > 5
    assert {name: verbs for name, verbs in several.items() if name not in WORKED_ON | SINGLE} == {}


def _home(kind: type) -> str:
    """The module of a class; copies that are read for flags alone have underscores in its name."""
    return kind.__module__.replace(".", "_")


def test_a_group_has_one_home() -> None:
    """A dataclass of settings has a name that no other of its package has, and the core's are not declared again."""
    homes: dict[str, dict[str, type]] = defaultdict(dict)
    for package in PACKAGES:
        for about in importlib.import_module(f"{package}.cli").VERBS.values():
            for kind in Flags(declared_function(about.target)).types.values():
                if isinstance(kind, type) and dataclasses.is_dataclass(kind):
                    owner = kind.__module__.partition("contrastive_core")[1] or package
                    same = homes[owner].setdefault(kind.__name__, kind)
                    assert [same.__qualname__, _home(same)] == [kind.__qualname__, _home(kind)]
    assert {"RunOptions", "InferenceOptions"} <= set(homes["contrastive_core"])
    assert len(homes) == 4


def test_flags_keep_the_table() -> None:
    said, found = table(), values_of_flags()
    assert len(said) > 15
    kinds = {"FILE": "PATH", "FOLDER": "PATH", "PATH": "PATH", "NAME": "TEXT", "DATA": "TEXT", "NAME,...": "TEXT,..."}
    kinds["MODEL"] = "TEXT"  # a folder, a file, or a name

    wrong = {
        flag: {taken: sorted(verbs) for taken, verbs in found[flag].items()}
        for flag, value in said.items()
        if flag in found and set(found[flag]) != {kinds.get(value, value)}
    }
    assert wrong == {}
    shared = {
        flag for flag, values in found.items() if len({verb.split()[0] for v in values.values() for verb in v}) > 1
    }
    assert shared - set(said) == set()
