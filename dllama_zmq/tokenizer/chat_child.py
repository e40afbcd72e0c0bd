"""Renders chat templates for its parent process. Run by child_main.py; it imports nothing of this package.

A template is an untrusted program. It runs in Jinja's immutable sandbox, without files, with limits of memory and CPU
time. A request is {"template", "variables", "seconds", "chars"}, its answer {"text"} or {"kind", "what", "line"}.
"""

from __future__ import annotations

import json
import signal
import traceback
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from types import FrameType
from typing import Any, NoReturn

import jinja2
from jinja2 import ext, nodes, sandbox
from jinja2.exceptions import SecurityError, TemplateNotFound, TemplateSyntaxError
from jinja2.parser import Parser

MEMORY_BYTES = 512 << 20
MAX_KEPT_CHARS = 1 << 16
FILE = "<template>"  # Jinja's name of a template without a name


class Refused(jinja2.TemplateError):
    """Raised by the template: it cannot render this conversation."""


class OutOfTime(BaseException):
    """Not an Exception, because Jinja catches those in places. line: that of the template."""

    line = 0


class Sandbox(sandbox.ImmutableSandboxedEnvironment):
    """Jinja's sandbox, with an error for an unsafe attribute instead of an undefined value."""

    intercepted_binops = frozenset({"*", "**"})

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        raise SecurityError(f"it uses the attribute {attribute!r} of a {type(obj).__name__}")

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and not (abs(left) < 1 << 64 and abs(right) < 64):
            raise SecurityError(f"it computes too large a power: {type(left).__name__} to {str(right)[:40]}")
        if operator == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(value, (str, list, tuple)) and isinstance(times, int) and len(value) * times > 1 << 24:
                    raise SecurityError(f"it makes a {type(value).__name__} of {len(value) * times} items")
        return super().call_binop(context, operator, left, right)


class GenerationTag(ext.Extension):
    """`{% generation %}...{% endgeneration %}`, which marks a model's output for training."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's interface

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_inner"), [], [], body).set_lineno(line)

    def _inner(self, caller: Callable[[], str]) -> str:
        return caller()


def refuse(message: str) -> NoReturn:
    raise Refused(message)


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON; Jinja's own filter escapes it for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def environment() -> Sandbox:
    made = Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[GenerationTag, ext.loopcontrols],
        loader=jinja2.DictLoader({}),
    )
    made.filters["tojson"] = to_json
    made.globals["raise_exception"] = refuse
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return made


def compiled(source: str) -> jinja2.Template:
    """A compiled template; it keeps nothing from one conversation to the next."""
    return environment().from_string(source)


kept = lru_cache(maxsize=4)(compiled)
"""Compiling takes 9 ms for Qwen3's template, rendering 0.1 ms."""


def render(source: str, variables: dict[str, Any], max_chars: int) -> str:
    parts: list[str] = []
    n_chars = 0
    template = kept(source) if len(source) < MAX_KEPT_CHARS else compiled(source)
    try:
        for part in template.generate(**variables):
            n_chars += len(part)
            if n_chars > max_chars:
                raise SecurityError(f"its text is longer than {max_chars} characters")
            parts.append(part)
    except OutOfTime as error:
        # Jinja translates line numbers only for Exceptions; here it is still that of the generated code.
        error.line = template.get_corresponding_lineno(line_of(error))
        raise
    return "".join(parts)


def line_of(error: BaseException) -> int:
    """The line of the template where `error` happened; 0 if it is unknown."""
    if isinstance(error, TemplateSyntaxError):
        return error.lineno or 0
    lines = [frame.lineno or 0 for frame in traceback.extract_tb(error.__traceback__) if frame.filename == FILE]
    return lines[-1] if lines else 0


def answer(request: dict[str, Any]) -> dict[str, Any]:
    signal.signal(signal.SIGPROF, out_of_time)  # of the timer that child_main.py has set
    try:
        return {"text": render(request["template"], request["variables"], request["chars"])}
    except Refused as error:
        kind, what, line = "refused", str(error), line_of(error)
    except TemplateSyntaxError as error:
        kind, what, line = "template", f"it is not a Jinja template: {error.message}", line_of(error)
    except TemplateNotFound as error:
        kind, what, line = "template", f"it loads another template, {error}, which does not exist", line_of(error)
    except (SecurityError, OverflowError) as error:
        kind, what, line = "template", str(error), line_of(error)
    except OutOfTime as error:
        kind, what, line = "template", f"it takes longer than {request['seconds']} s", error.line
    except MemoryError as error:
        kind, what, line = "template", f"it needs more than {MEMORY_BYTES >> 20} MB of memory", line_of(error)
    except RecursionError as error:
        kind, what, line = "template", "it recurses too deeply", line_of(error)
    except Exception as error:
        kind, what, line = "conversation", f"{type(error).__name__}: {error}", line_of(error)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return {"kind": kind, "what": what[:500], "line": line}


def out_of_time(signum: int, frame: FrameType | None) -> NoReturn:
    raise OutOfTime
