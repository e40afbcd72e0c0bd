"""`run` and `generate`: stream the answer to stdout; progress and statistics go to stderr."""

from __future__ import annotations

import os
import stat
import sys
from contextlib import AbstractContextManager

from msgspec.structs import replace

from dllama_zmq.bus.client_messages import Logprob
from dllama_zmq.cli import answer_flags, flags
from dllama_zmq.cli.chosen import chosen_path, elsewhere, for_a_call
from dllama_zmq.cli.exit_codes import as_json
from dllama_zmq.cli.notes import inert, note
from dllama_zmq.cli.overrides import fetched
from dllama_zmq.cli.progress import Display
from dllama_zmq.cli.reply import Reply
from dllama_zmq.cli.stats import Stats
from dllama_zmq.cli.using import Used, file_for, used, used_at, with_model


def run(
    *,
    source: flags.ModelOrNone = None,
    prompt: answer_flags.PromptFlags,
    overrides: flags.Overrides,
    answer: answer_flags.Answer,
    cluster: flags.Cluster = None,
) -> None:
    """Continue a text with a model, in any folder. Needs no file: one node on this computer, or --nodes N.

    A cluster of this folder that runs this very model is used; a model of the hub (hf:) is fetched first. Without a
    prompt, at a terminal, it is `chat`.

    Examples:
        dllama-zmq run story.gguf "Once upon a time"
        dllama-zmq run hf:TheBloke/TinyLlama-1.1B-Chat-v1.0-GGUF:Q4_K_M "One day"
        echo 'One day, Lily' | dllama-zmq run demo -n 60 --temp 0
    """
    if prompt.prompt is None and overrides.named_model() is not None:  # then the first argument is the prompt
        prompt, source = replace(prompt, prompt=source), None
    source, overrides = with_model(source, overrides)
    if prompt.is_missing() and not (answer.json or answer.logprobs or answer.stats == "tokens" or answer.has_form()):
        from dllama_zmq.cli.chat.command import Options, converse, has_terminal
        from dllama_zmq.cli.chat.settings import Settings

        if has_terminal():
            stop = tuple(answer.stop_strings())
            settings = Settings(answer.sampling(), answer.max_tokens(), stop, verbose=answer.stats is not None)
            converse(used(*file_for(source, overrides, cluster)), Options(settings))
            return
    text = prompt.read(f'dllama-zmq run {source or "MODEL"} "Once upon a time"')
    asked = answer.checked()
    _answer(text, used(*file_for(source, overrides, cluster)), answer, asked)


def generate(
    *,
    prompt: answer_flags.PromptFlags,
    overrides: flags.Overrides,
    answer: answer_flags.Answer,
    cluster: flags.Cluster = None,
    there: flags.There,
) -> None:
    """Continue a text with this folder's cluster. With none running, brings one up for this call.

    Without a cluster.yaml, -m MODEL is enough: one node on this computer, or --nodes N.

    Examples:
        dllama-zmq generate "Once upon a time"
        dllama-zmq generate -m story.gguf -n 60 --temp 0 "One day"
        dllama-zmq generate -f prompt.txt --json
    """
    text = prompt.read('dllama-zmq generate "Once upon a time"')
    address = elsewhere(there, cluster)
    asked = answer.checked()
    if address is not None:
        _answer(text, used_at(address, there.security, overrides), answer, asked)
    else:
        path, overrides = chosen_path(cluster), fetched(overrides)
        _answer(text, used(for_a_call(path, overrides), overrides), answer, asked)


def _answer(
    prompt: str, source: AbstractContextManager[Used], options: answer_flags.Answer, asked: answer_flags.Asked
) -> None:
    max_tokens, sampling, stop, grammar = asked
    with source as cluster, Display() as display:
        display.activity("asking the root")
        screen = _Screen(prompt, options, max_tokens, display)
        answers = cluster.client.generate(prompt, max_tokens, sampling, stop=stop, grammar=grammar)
        try:
            for answer in answers:
                screen.reply.take(answer)
        finally:
            answers.close()  # cancels the request if we stop early
            screen.reply.end()
        _report(screen.reply, options, max_tokens, cluster, prompt)


class _Screen:
    """Prints one answer as it arrives, and progress on `display`. A `reply.Screen`."""

    def __init__(self, prompt: str, options: answer_flags.Answer, max_tokens: int | None, display: Display) -> None:
        self.reply = Reply(self, stats=Stats(display.line if options.stats == "tokens" else None))
        self._echoed = prompt if options.echo else ""
        self._options, self._max_tokens, self._display = options, max_tokens, display
        one_terminal = sys.stdout.isatty() and sys.stderr.isatty()
        # On one terminal, text and the lines of --stats=tokens would mix, so the text is printed at the end.
        self._streams = not options.json and not (options.stats == "tokens" and one_terminal)
        # Progress must not interrupt the text: a pipe may lead to the same terminal (`| tee`), and one file may take
        # both (`> log 2>&1`).
        self._tells_tokens = not self._streams or _is_file_of_its_own(sys.stdout.fileno(), sys.stderr.fileno())
        self._shown = False
        self._waits = False  # the answer waits, and the line of the text was ended

    def waits(self, why: str) -> None:
        """Say so."""
        self._break_line()
        self._display.activity(f"waiting: {why}")

    def prompt(self, done: int, total: int) -> None:
        """Show how far the prompt is evaluated."""
        self._break_line()
        self._display.activity("evaluating the prompt", done, total, "tokens")

    def thinking(self, text: str) -> None:
        """Without a template no text is thinking."""

    def content(self, text: str) -> None:
        """Write more of the answer, or tell how many tokens there are."""
        if self._streams:
            if not self._tells_tokens:
                self._display.rest()  # before the first word, which the display would erase
            _write(text if self._shown else self._echoed + text)
            self._shown, self._waits = True, False
        if self._tells_tokens:
            self._display.activity("generating", len(self.reply.tokens), self._max_tokens or 0, "tokens")

    def end(self) -> None:
        """Finish the text."""
        self._display.rest()
        if self._streams and self._shown:
            _write("\n")
        elif not self._streams and not self._options.json and self.reply.started is not None:
            _write(f"{self._echoed}{self.reply.content}\n")

    def _break_line(self) -> None:
        """End the line of text on a terminal; the progress of an answer that waits would erase it."""
        if self._shown and not self._waits and sys.stdout.isatty():
            self._waits = True
            _write("\n")


def _report(reply: Reply, options: answer_flags.Answer, max_tokens: int | None, cluster: Used, prompt: str) -> None:
    """Print the notes after a complete answer, or its JSON object."""
    if options.stats:
        reply.stats.print_table(cluster.n_nodes)
    elif sys.stderr.isatty():
        note(reply.stats.sentence())
    n_answer = len(reply.tokens)
    if reply.started is not None and reply.reason == "length" and n_answer != max_tokens:
        note(
            f"the answer ends here because the context is full: {reply.started.prompt_tokens} tokens of the prompt and "
            f"{n_answer} of the answer; -c makes room for more, up to the model's own context (`dllama-zmq inspect` "
            "shows it)"
        )
    elif reply.reason == "length" and options.has_form():
        note(f"the answer is cut after {n_answer} tokens, before its form is complete; -n allows more")
    if options.json:
        logprobs = {"logprobs": [_as_maps(*of_token) for of_token in reply.logprobs]} if reply.logprobs else {}
        _write(as_json(reply.as_map(cluster.model, prompt) | logprobs) + "\n")


def _as_maps(chosen: Logprob, *likeliest: Logprob) -> dict[str, object]:
    """The log-probability of a token, and of the most likely ones, as JSON objects."""
    own, *top = ({"token": one.token, "text": one.text, "logprob": one.logprob} for one in (chosen, *likeliest))
    return {**own, "top": top}


def _is_file_of_its_own(out: int, err: int) -> bool:
    """Whether the descriptor `out` writes to a regular file that `err` does not write to."""
    return stat.S_ISREG(os.fstat(out).st_mode) and not os.path.sameopenfile(out, err)


def _write(text: str) -> None:
    """Write text; on a terminal with control characters shown, elsewhere unchanged."""
    sys.stdout.write(inert(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()
