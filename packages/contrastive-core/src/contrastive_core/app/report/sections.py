"""Build the final sections of every report, settings and environment."""

from __future__ import annotations

import datetime
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from html import escape
from pathlib import PurePath
from typing import Any, get_args, get_type_hints

from contrastive_core.app.report import page, run_record


def settings(
    config: Mapping[str, Any],
    command: Callable[..., Any],
    *,
    name: str,
    again: str,
    sessions: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Return the section with the resolved configuration and the command that repeats the run.

    Settings that the user set to a value other than the default are in bold. Settings that the command chose itself,
    because no value was given, are not in bold.

    Args:
        config: Configuration of the run.
        command: Command with whose defaults the configuration is compared.
        name: Heading of the settings that belong to no group.
        again: Command line that repeats the run.
        sessions: Records of the starts of the run; the first lists the settings that the command chose.
    """
    resolved_names = set(sessions[0].get("resolved", ()) if sessions else ())
    values, defaults = dict(_leaves(config)), dict(_leaves(_defaults(command)))
    groups: dict[str, dict[str, str]] = {}
    for key, value in values.items():
        group, _, last = key.rpartition(".")
        groups.setdefault(group, {})[last] = _readable(value)
    tables = ""
    for group, inside in groups.items():
        prefix = f"{group}." if group else ""
        changed_names = [
            n
            for n in inside
            if prefix + n not in resolved_names
            and prefix + n in defaults
            and _as_yaml(values[prefix + n]) != _as_yaml(defaults[prefix + n])
        ]
        tables += (
            f"<section><h3>{escape(group or name)}</h3>{page.settings_table(inside, changed=changed_names)}</section>"
        )
    return page.section(
        "Settings",
        page.paragraph("Settings in bold were set to a value other than the default.", kind="note"),
        f'<div class="columns">{tables}</div>',
        page.paragraph("To repeat the run:"),
        page.command(again),
    )


def surroundings(config: Mapping[str, Any], sessions: Sequence[Mapping[str, Any]], *, packages: Sequence[str]) -> str:
    """Return the section with the hardware and software of the run and the software that has written the report.

    Args:
        config: Configuration of the run, with the group ``run``.
        sessions: Hardware and software of each start.
        packages: Packages whose versions are shown in addition to Python and the dependencies of the training engine.
    """
    options = config.get("run", {})
    run_environment: dict[str, str] = {}
    for session in sessions[-1:]:
        run_environment = {
            **{name: str(session.get(name)) for name in ("device", "processes", "threads", "torch")},
            **{name: str(options.get(name)) for name in ("precision", "seed")},
            "starts": str(len(sessions)),
        }
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    commit = run_record.source_commit()
    report_environment = {"date": today, **run_record.hardware(), **run_record.versions(packages)}
    if commit:
        report_environment["commit"] = commit
    parts = [f"<section><h3>The run</h3>{page.settings_table(run_environment)}</section>"] if run_environment else []
    parts.append(f"<section><h3>This report</h3>{page.settings_table(report_environment)}</section>")
    return page.section("Environment", f'<div class="columns">{"".join(parts)}</div>')


def _leaves(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from _leaves(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item


def _as_yaml(value: object) -> object:
    """Convert a value to its form in the configuration file, that is, tuples to lists and paths to text."""
    if isinstance(value, list | tuple):
        return [_as_yaml(item) for item in value]
    return str(value) if isinstance(value, PurePath) else value


def _defaults(command: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(command).parameters
    values = {name: p.default for name, p in parameters.items() if p.default is not p.empty}
    hints = get_type_hints(command)
    for name, value in values.items():
        group: Any = next((kind for kind in get_args(hints.get(name)) if is_dataclass(kind)), None)
        if value is None and group is not None:  # an optional group
            values[name] = group()
    return {n: asdict(v) if is_dataclass(v) and not isinstance(v, type) else v for n, v in values.items()}


def _readable(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)
