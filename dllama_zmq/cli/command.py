"""Additions to typer: a command is imported when it runs, its flags may come in groups, its help page has 80 columns,
and some flags need no value.

A command is a function of a module of this folder. Its parameters are its flags, its docstring is its help, and the
lines below "Examples:" are its examples. A group of flags is a Struct whose fields are annotated like parameters; a
command takes the group as one parameter. The attribute `panel` of the class is their section on the help page.
"""

from __future__ import annotations

import copy
import functools
import gc
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, get_type_hints

import typer
from msgspec import Struct
from typer.core import TyperCommand, TyperGroup

from dllama_zmq.cli.exit_codes import with_exit_codes

WATCH_S = 2.0

_LEFT_OUT = {
    "--watch": (f"{WATCH_S:g}", re.compile(r"-?\.?\d.*")),
    "--stats": ("answer", re.compile("(?!)")),  # never the next word, which is the prompt
}
"""By flag: its value when given alone, and a pattern for a next word that is its value."""

_WIDEST_NAMES = 28

_NoSuchOption: Any = vars(sys.modules[typer.BadParameter.__module__])["NoSuchOption"]  # of the click that typer uses


def _flat(function: Callable[..., None]) -> Callable[..., None]:
    """`function` in the form of typer: each parameter that is a Struct is replaced by the fields of its class."""
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, Any] = {
        name: hint for name, hint in hints.items() if isinstance(hint, type) and issubclass(hint, Struct)
    }
    parameters: list[inspect.Parameter] = []
    kind = inspect.Parameter.KEYWORD_ONLY
    for name, parameter in inspect.signature(function).parameters.items():
        if name not in groups:
            parameters.append(parameter.replace(kind=kind, annotation=hints[name]))
            continue
        annotations = get_type_hints(groups[name], include_extras=True)
        for one in inspect.signature(groups[name]).parameters.values():
            its_class = next(each for each in groups[name].__mro__ if one.name in inspect.get_annotations(each))
            if panel := vars(its_class).get("panel"):
                flag = copy.copy(annotations[one.name].__metadata__[0])  # other commands may have it in another section
                flag.rich_help_panel = panel
                annotations[one.name] = Annotated[annotations[one.name].__origin__, flag]
            parameters.append(one.replace(kind=kind, annotation=annotations[one.name]))

    @functools.wraps(function)
    def flat(**values: Any) -> None:
        made = {
            name: group(**{field: values.pop(field) for field in group.__struct_fields__})
            for name, group in groups.items()
        }
        function(**values, **made)

    flat.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    flat.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return flat


class Command(TyperCommand):
    """The function `where`, MODULE:FUNCTION, imported when its flags are needed: modules that read models import
    slowly.

    `ctx` and `formatter` are of the click that typer uses.
    """

    def __init__(self, name: str, where: str, summary: str, panel: str, others: Sequence[str] = ()) -> None:
        """others: other names of the command, for its help. panel: its section; empty: hidden."""
        super().__init__(name, short_help=summary, rich_help_panel=panel, hidden=not panel, rich_markup_mode=None)
        self._where, self._others = where, others

    def load(self) -> None:
        """Import the function; this command then has its flags and its help."""
        module, _, function = self._where.partition(":")
        target = getattr(importlib.import_module(f"dllama_zmq.cli.{module}"), function)
        typed = typer.Typer(add_completion=False)
        typed.command()(with_exit_codes(_flat(target)))
        made = typer.main.get_command(typed)
        self.params, self.callback = made.params, made.callback
        text, _, examples = (inspect.getdoc(target) or "").partition("\n\nExamples:\n")
        summary, dot, rest = text.partition(".")
        also = f" (also: {', '.join(self._others)})" if self._others else ""
        self.help, self.epilog = f"{summary}{also}{dot}{rest}", inspect.cleandoc(examples)
        if not gc.isenabled():  # `main` has switched it off
            gc.freeze()  # modules and flags live until the end, so the garbage collector can skip them
            gc.enable()

    def make_context(self, *args: Any, **others: Any) -> Any:
        """Call click's method with the function's flags."""
        with_exit_codes(self.load)()
        return super().make_context(*args, **others)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Call click's method with values that were left out filled in."""
        own = {name for parameter in self.params for name in parameter.opts}
        valued = {name for one in self.params if not getattr(one, "is_flag", False) for name in one.opts}
        numbers = {name for parameter in self.params if parameter.metavar in ("N", "T", "P") for name in parameter.opts}
        full, rest = [], list(args)
        while rest and rest[0] != "--":
            word = rest.pop(0)
            if word[:2] in numbers and word[2:3].isalpha() and word.partition("=")[0] not in own:
                raise _NoSuchOption(word, ctx=ctx)  # click would read -ngl as -n with the value gl
            usual, looks = _LEFT_OUT.get(word, ("", None)) if word in valued else ("", None)
            left_out = looks is not None and not (rest and looks.fullmatch(rest[0]))
            full.append(f"{word}={usual}" if left_out else word)
        return super().parse_args(ctx, full + rest)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write a section for each panel, arguments first."""
        _write_parameters(self.get_params(ctx), formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples."""
        if self.epilog:
            with formatter.section("Examples"):
                for line in self.epilog.splitlines():
                    formatter.write(f"{'':{formatter.current_indent}}{line}\n")


class Group(TyperGroup):
    """All commands, in sections. A subclass has `table`: by section and command (with its other names), its place and
    its line on the first help page. The other names appear only in the command's own help."""

    table: Mapping[str, Mapping[str, tuple[str, str]]] = {}

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for panel, commands in self.table.items():
            for names, (where, summary) in commands.items():
                first, *others = names.split()
                self.commands[first] = Command(first, where, summary, panel, others)
                self.commands.update({name: Command(name, where, summary, panel="") for name in others})

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the commands of each panel in the order of `table`, then the flags."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command: Any = self.get_command(ctx, name)
            if not command.hidden:
                panels.setdefault(command.rich_help_panel, []).append((name, command.short_help))
        for panel, rows in panels.items():
            with formatter.section(panel):
                formatter.write_dl(rows)
        _write_parameters(self.get_params(ctx), formatter)


def _write_parameters(parameters: Sequence[Any], formatter: Any) -> None:
    panels: dict[str, list[tuple[str, str]]] = {}
    for one in sorted(parameters, key=lambda one: one.param_type_name != "argument"):
        if not getattr(one, "hidden", False):
            usual = "Arguments" if one.param_type_name == "argument" else "Options"
            panels.setdefault(getattr(one, "rich_help_panel", None) or usual, []).append((_names(one), _help(one)))
    first = [panel for panel in ("Arguments", "Options") if panel in panels]
    for panel in dict.fromkeys([*first, *panels]):
        with formatter.section(panel):
            formatter.write_dl(panels[panel], col_max=_WIDEST_NAMES)


def flag_name(parameter: Any) -> str:
    """The short and the first long name of a flag; the metavar of an argument."""
    if parameter.param_type_name == "argument":
        return str(parameter.metavar or parameter.name)
    names = [*parameter.opts, *(name for name in parameter.secondary_opts if name.strip())]
    short = [name for name in names if not name.startswith("--")][:1]
    long = [name for name in parameter.opts if name.startswith("--")][:1]
    return ", ".join([*short, *long] or parameter.opts[:1])


def _names(parameter: Any) -> str:
    names = flag_name(parameter)
    if parameter.param_type_name == "argument":
        return names
    if parameter.secondary_opts:
        return f"{names}, {parameter.secondary_opts[0].strip()}"
    return f"{names} {parameter.metavar}" if parameter.metavar else names


def _help(parameter: Any) -> str:
    default = parameter.default
    shown = parameter.show_default and default not in (None, "") and not isinstance(default, bool)
    return f"{parameter.help or ''}{f' [{default}]' if shown else ''}"
