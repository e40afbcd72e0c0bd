"""`dllama-zmq doctor`: checks this computer and its cluster, one line for each finding."""

from __future__ import annotations

import os
from pathlib import Path

import typer

from dllama_zmq.cli import flags
from dllama_zmq.cli.chosen import chosen_path, elsewhere, running_here
from dllama_zmq.cli.exit_codes import as_json
from dllama_zmq.cli.notes import inert, note
from dllama_zmq.cli.progress import Display
from dllama_zmq.doctor import Finding, Subject, checks_of, examined
from dllama_zmq.errors import ConfigError
from dllama_zmq.reporting import plural


def doctor(*, which: flags.AnyCluster, there: flags.There, json: flags.Json = False) -> None:
    """Look for what may be wrong on this computer and in its cluster. Says for each what to do.

    Works before anything is configured, beside a cluster's file, and with a running cluster, whose links it measures.
    Exit code 1 where there is a problem.

    Examples:
        dllama-zmq doctor
        dllama-zmq doctor home.yaml --json
        dllama-zmq doctor --connect 192.168.1.10
    """
    subject = _subject(which, there)
    found: list[Finding] = []
    with Display() as display:
        for check in checks_of(subject):
            display.activity(check.doing)
            for one in examined(check):
                found.append(one)
                if not json:
                    display.rest()
                    print(_line(one), flush=True)  # noqa: T201
    problems, warnings = (sum(one.level == level for one in found) for level in ("problem", "warning"))
    if json:
        print(as_json({"problems": problems, "warnings": warnings, "findings": found}))  # noqa: T201
    else:
        note(f"{plural(problems, 'problem')}, {plural(warnings, 'warning')}")
    if problems:
        raise typer.Exit(1)


def _subject(which: flags.AnyCluster, there: flags.There) -> Subject:
    """The cluster to check; none if no file is named and this folder has none, neither a file nor a running one."""
    if (address := elsewhere(there, which.file, which.option)) is not None:
        return Subject(root=address, security=there.security)
    path: Path = chosen_path(which.file, which.option)
    try:
        return Subject(running_here(path))
    except ConfigError as error:
        if os.path.lexists(path):
            return Subject(broken=str(error))
        if which.file is None and which.option is None:
            return Subject()
        raise


def _line(one: Finding) -> str:
    return inert(f"{one.level:<8} {one.about}: {one.text}{f'; {one.cure}' if one.cure else ''}").replace("\n", " ")
