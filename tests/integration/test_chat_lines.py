"""`chat` over a pipe: a message a line, an answer after the other, or objects of JSON; and a model without template."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chatting import chatting
from command_line import Cli, clean_cli, finish, read_some
from reciting import END_OF_TURN, TEMPLATE, write_reciting_model

from dllama_zmq.formats import read_t, write_t

ANSWERS = {
    "A": ["One.", " Two.", " Three.", END_OF_TURN],
    "T": ["<think>", "\n", "Let me see.", "\n", "</think>", "\n\n", "Four."],
    "M": ["First line.", "\n\n", "Last line."],
    "L": [" la", " lala", "..."],
    "S": [" tra", " S", "..."],
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """One node of a model that recites ANSWERS and has no template of its own."""
    folder = tmp_path_factory.mktemp("lines")
    model = write_reciting_model(folder / "parrot.m", ANSWERS, template=None)
    (folder / "turns.jinja").write_text(TEMPLATE)
    with clean_cli(folder, model) as cli:
        cli.up(1, max_seq_len=512)
        yield cli
        cli.down()


def objects(cli: Cli, lines: str, *words: str) -> list[dict[str, Any]]:
    """What `chat --json` answers to these lines."""
    result = cli.run("chat", "--json", "--template", "turns.jinja", *words, stdin=lines)
    assert result.code == 0, result.said
    return [json.loads(line) for line in result.out.splitlines()]


def test_each_line_is_a_message_and_an_empty_line_stands_between_two_answers(cluster: Cli) -> None:
    lines = 'say A\n\nthink T\n"""several\nlines M"""\n/help A\n'
    result = cluster.run("chat", "--template", "turns.jinja", stdin=lines)
    answers = ["One. Two. Three.", "Four.", "First line.\n\nLast line.", "One. Two. Three."]
    assert (result.code, result.err, result.out) == (0, "", "\n\n".join(answers) + "\n"), result.said


def test_an_object_of_json_has_all_of_each_answer(cluster: Cli) -> None:
    first, second = objects(cluster, "say A\nthink T\n", "--seed", "5", "-sys", "Be brief.")
    assert first.keys() == {
        "model",
        "prompt",
        "text",
        "reasoning",
        "tokens",
        "prompt_tokens",
        "cached_tokens",
        "finish_reason",
        "seed",
        "stats",
    }
    assert (first["prompt"], first["text"], first["finish_reason"], first["seed"]) == (
        "say A",
        "One. Two. Three.",
        "stop",
        5,
    )
    assert (second["text"], second["reasoning"]) == ("Four.", "Let me see.")
    assert len(first["tokens"]) == 3
    assert second["prompt_tokens"] > first["prompt_tokens"] + len("think T")
    (bare,) = objects(cluster, "say A\n")
    (quiet,) = objects(cluster, "say A\n", "--no-think")
    assert quiet["prompt_tokens"] > bare["prompt_tokens"]  # the template has written more
    assert first["prompt_tokens"] == bare["prompt_tokens"] + len("<|system|>Be brief.")


def test_an_answer_that_fills_the_context_is_cut_and_that_is_said(cluster: Cli) -> None:
    result = cluster.run("chat", "--template", "turns.jinja", stdin="sing L\n")
    assert result.code == 0, result.said
    found = re.fullmatch(
        r"the answer is cut because the context is full: (\d+) tokens of the conversation and (\d+) of the answer; -c "
        r"makes room for more, up to the model's own context\n",
        result.err,
    )
    assert found is not None, result.said
    n_prompt, n_answer = map(int, found.groups())
    assert n_prompt + n_answer in (512, 513)  # the last token is not evaluated
    assert result.out == " la lala" * (n_answer // 2) + " la" * (n_answer % 2) + "\n"


def test_an_answer_comes_before_the_next_message_is_there(cluster: Cli) -> None:
    with cluster.started("chat", "--json", "--template", "turns.jinja", stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        for _ in range(2):
            process.stdin.write(b"say A\n")
            process.stdin.flush()
            assert json.loads(read_some(process, 100).decode())["text"] == "One. Two. Three."
        assert finish(process, 30, 0.0, b"").code == 0


def test_without_a_template_each_message_continues_the_text_and_the_chat_says_so(cluster: Cli) -> None:
    result = cluster.run("chat", "--json", "-n", "2", stdin="sing L\nand A\nA\n")
    assert result.code == 0, result.said
    assert result.err.startswith("parrot has no chat template: it continues texts and does not converse")
    sung, cut, counted = (json.loads(line) for line in result.out.splitlines())
    assert (sung["text"], sung["finish_reason"]) == (" la lala", "length")
    assert cut["prompt_tokens"] > sung["prompt_tokens"] + len(" la lala and")  # the text is open: it is gone on with
    assert counted["prompt_tokens"] > cut["prompt_tokens"]
    result = cluster.run("chat", "--plain", "--json", stdin="say A\nA\n")
    said, anew = (json.loads(line) for line in result.out.splitlines())
    assert (result.err, said["text"], said["finish_reason"]) == ("", "One. Two. Three.", "stop")
    assert anew["prompt_tokens"] < said["prompt_tokens"]  # the first text has ended


def test_a_template_that_only_fits_the_special_tokens_is_named(tmp_path: Path) -> None:
    model = write_reciting_model(tmp_path / "parrot.m", ANSWERS, template=None)
    words = read_t(model.with_suffix(".t"))
    words.pieces[-2:], words.scores[-2:] = [b"<|im_start|>", b"<|im_end|>"], [0.0, 0.0]
    write_t(model.with_suffix(".t"), words)
    with clean_cli(tmp_path, model) as cli:
        cli.up(1, max_seq_len=512)
        result = cli.run("chat", "--json", "-n", "2", stdin="say A\n")
        assert (result.code, len(result.out.splitlines())) == (0, 1), result.said
        assert result.err == (
            "parrot has no chat template of its own, so it may not have learned to converse; the built-in chatml one "
            "fits its special tokens (--plain continues texts instead).\n"
        )
        assert cli.run("chat", "--json", "-n", "2", "--template", "chatml", stdin="say A\n").err == ""
        cli.down()


def test_at_a_terminal_a_model_without_a_template_is_introduced_and_enter_continues(cluster: Cli) -> None:
    with chatting(cluster, "--temp", "0") as chat:
        welcome = chat.terminal.text().replace("\n", " ")
        assert "parrot has no chat template: it continues texts and does not converse" in welcome
        assert "Type the beginning of a text, such as: Once upon a time" in welcome
        assert "/help lists commands, Ctrl-D leaves." in welcome
        printed = chat.say("We count A")
        assert printed.startswith(
            "We count AOne. Two. Three.\n[the text has ended: your next message starts a new one]"
        )
        chat.say("/set max_tokens 2")
        printed = chat.say("sing S")
        assert printed.startswith("sing S tra S\n[the answer is cut after 2 tokens")
        assert "Enter alone lets the model continue" in printed
        assert chat.say("").startswith(" tra S\n")
        assert "error: a system message needs a chat template" in chat.say("/system Be brief.")
        assert "template      none: texts are continued" in chat.say("/show")
        chat.leave()


def test_run_without_a_prompt_at_a_terminal_is_a_chat(cluster: Cli) -> None:
    with chatting(cluster, str(cluster.model), "--temp", "0", "--stats", command="run") as chat:
        printed = chat.say("A")
        assert "One. Two. Three.\n" in printed
        assert "3 tokens, " in printed
        chat.leave()
    assert "the prompt is missing" in cluster.run("run", str(cluster.model)).error(2)


def test_a_cluster_elsewhere_is_talked_with(cluster: Cli) -> None:
    address = f"127.0.0.1:{cluster.ports['clients']}"
    result = cluster.run("chat", "--connect", address, "--template", "turns.jinja", stdin="A")
    assert (result.code, result.out, result.err) == (0, "One. Two. Three.\n", ""), result.said


@pytest.mark.parametrize(
    ("words", "lines", "code", "says"),
    [
        (["--template", "nonsense"], "A\n", 2, "'nonsense' is not a chat template; expected one of llama2, llama3"),
        (["-sys", "Be brief."], "A\n", 2, "--system needs a chat template, and parrot has none in use"),
        (["--template", "llama2", "--plain"], "A\n", 2, "--plain and --template exclude each other"),
        (["--plain"], b"A\n\xff\n", 2, "line 2 of stdin is not UTF-8 text: byte 0 is 0xff"),
        (["--plain"], '"""A\n', 2, 'the last message begins with """ but does not end with """'),
        (["--plain"], "x" * 5000, 1, "the prompt has 5002 tokens"),
        (["--template", "broken.jinja"], "A\n", 1, "the given template: chat template, line 1: it is not a Jinja"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_message_that_cannot_be_answered_is_refused_in_one_sentence(
    cluster: Cli, words: list[str], lines: str | bytes, code: int, says: str
) -> None:
    (cluster.folder / "broken.jinja").write_text("{% for %}")
    assert says in cluster.run("chat", *words, stdin=lines).error(code)


def test_nothing_on_stdin_is_said(cluster: Cli) -> None:
    result = cluster.run("chat", "demo", stdin="")
    assert (result.code, result.out, result.err) == (0, "", "stdin had no message\n")


def test_where_there_is_no_cluster_and_no_model_both_are_named(cluster: Cli) -> None:
    (cluster.folder / "empty").mkdir()
    result = cluster.run("chat", "--cluster", "empty", stdin="A\n")
    assert "a model is enough without one: " in result.error()
    assert "`chat MODEL`" in result.err
