"""The pages of --help, and what is said of words that no command takes."""

from __future__ import annotations

import io
import shlex
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import typer

from dllama_zmq.cli import completion
from dllama_zmq.cli.app import app
from dllama_zmq.cli.wrong_use import exit_code

GROUP: Any = typer.main.get_command(app)
SHOWN = [name for name, command in GROUP.commands.items() if not command.hidden]


def page(*words: str) -> str:
    """What `dllama-zmq ... --help` prints on a terminal of 80 columns."""
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out):
        patch.setenv("COLUMNS", "80")
        assert exit_code(app, [*words, "--help"]) == 0
    return out.getvalue()


def refusal(*words: str) -> str:
    """The one sentence on stderr of a command that is used wrongly."""
    err = io.StringIO()
    with redirect_stderr(err):
        assert exit_code(app, list(words)) == 2
    assert err.getvalue().count("\n") == 1
    return err.getvalue().removeprefix("error: ").rstrip()


def test_without_a_command_the_page_of_help_is_shown_as_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert exit_code(app, []) == 2
    assert capsys.readouterr().err.strip() == page().strip()


@pytest.mark.parametrize("words", [[], *([name] for name in SHOWN)], ids=" ".join)
def test_a_page_fits_80_columns_and_shows_no_range_and_no_type_of_python(words: list[str]) -> None:
    text = page(*words)
    assert max(map(len, text.splitlines())) <= 80
    assert not any(sign in text for sign in ("<=", "<int", "<str", "<bool", "<path", "INTEGER", "[[", "…n"))


@pytest.mark.parametrize("name", SHOWN)
def test_a_page_has_examples_that_the_command_takes(name: str) -> None:
    _, _, examples = page(name).partition("Examples:\n")
    lines = [shlex.split(line.split(" | ")[-1]) for line in examples.splitlines() if line.strip()]
    assert lines
    for program, command, *words in lines:
        assert (program, command) == ("dllama-zmq", name)
        GROUP.commands[name].make_context(name, words)  # raises where it does not take them


def test_a_page_gives_the_short_name_first_and_leaves_other_spellings_out() -> None:
    text = page("generate")
    assert "  -n, --steps N " in text
    assert "--n-predict" not in text
    assert "--buffer-float-type" not in text


def test_the_first_page_lists_every_command_once_by_what_it_is_for() -> None:
    text = page()
    assert [line for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")] == [
        "Generate text:",
        "Clusters:",
        "Other computers:",
        "Models:",
        "Measure:",
        "Options:",
    ]
    for name in SHOWN:
        assert sum(line.startswith(f"  {name} ") for line in text.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["gnerate"], "there is no command 'gnerate'; did you mean generate?"),
        (["generate", "hi", "--step", "3"], "there is no flag --step; did you mean --steps"),
        (["generate", "hi", "--n-predit", "3"], "there is no flag --n-predit; did you mean --n-predict"),
        (
            ["generate", "hi", "-n", "abc"],
            "-n, --steps: expected a whole number of tokens, or -1 for no limit, got 'abc'",
        ),
        (["generate", "hi", "-n"], "-n needs a value"),
        (["run", "demo", "hi", "-nx", "99"], "there is no flag -nx; see"),
        (["generate", "hi", "-cx"], "there is no flag -cx; see"),
        (["generate", "hi", "--promt", "x"], "there is no flag --promt; did you mean --prompt or --predict?"),
        (["generate", "hi", "--seed", "-7"], "-s, --seed: expected a whole number, -1 or more, got '-7'"),
        (["generate", "hi", "--stop", ""], "--stop: a stop string of 0 characters; expected 1 to 256"),
        (["generate", "hi", "-j", "{}", "--grammar", 'root ::= "a"'], "the answer can have only one form"),
        (["generate", "hi", "--grammar", ""], "a grammar of kind gbnf and 0 characters"),
        (["generate", "hi", "--logprobs", "3"], "--logprobs needs --json: plain text has no place for them"),
        (
            ["generate", "hi", "--logit-bias", "yes"],
            "--logit-bias is 'yes'; expected a token id and the bias of its logit",
        ),
        (["generate", "hi", "--typical", "0"], "typical_p is 0.0; expected more than 0 and at most 1 (1: off)"),
        (["generate", "hi", "--temp", "hot"], "--temperature: expected a number, got 'hot'"),
        (["generate", "hi", "--sync", "f8"], "--sync: expected f32, f16 or q80, got 'f8'"),
        (["generate", "once", "upon"], "the prompt is in several words; put quotes around it"),
        (["down", "a", "b"], "too many arguments; `down` takes FILE"),
        (["bench", "x"], "too many arguments; `bench` takes no argument"),
        (["bench", "--layers", "9" * 12], "--layers: expected at most 16777216"),
        (
            ["-hf", "org/name", "once upon"],
            "-hf is given and no command is; did you mean `dllama-zmq run -hf org/name 'once upon'`?",
        ),
        (["-m=x.gguf"], "-m=x.gguf is given and no command is; did you mean `dllama-zmq run -m=x.gguf`?"),
        (["--shape", "tinyllama"], "--shape is given and no command is; did you mean `dllama-zmq bench --shape tinyll"),
        (["demo"], "demo is given and no command is; did you mean `dllama-zmq run demo`?"),
        (["org/name:Q4_K_M"], "org/name:Q4_K_M is given and no command is; did you mean `dllama-zmq run org/name:Q4_"),
        (["--no-such"], "there is no flag --no-such"),
        (
            ["generate", "hi", "--repeat-last-n", "64"],
            "--repeat-last-n is not in this version, which samples as `dllama-zmq gene",
        ),
        (["run", "demo", "hi", "--mirostat=2"], "--mirostat is not in this version, which samples as `dllama-zmq gen"),
        (
            ["run", "demo", "hi", "--n-gpu-layers", "99"],
            "--n-gpu-layers is not in this version, which runs models on C",
        ),
        (["run", "demo", "hi", "-ngl", "99"], "-ngl is not in this version, which runs models on CPUs; leave it out"),
        (["run", "demo", "-cnv"], "-cnv is not in this version, which talks with `dllama-zmq chat`; leave it out"),
        (["run", "demo", "-sys", "Be brief."], "-sys is not in this version, which talks with `dllama-zmq chat`"),
        (["generate", "hi", "--stop", "x", "--step", "3"], "there is no flag --step; did you mean --steps"),
        (["chat", "demo", "-sys", "x", "--templat", "y"], "there is no flag --templat; did you mean --template"),
        (["chat", "demo", "hi"], "too many arguments; `chat` takes MODEL"),
        (["chat", "demo", "-m", "demo"], "two models are given, as an argument and as a flag; give one"),
        (["inspect", "demo", "-m", "demo"], "two models are given, as an argument and as a flag; give one"),
        (["inspect"], "no model is given: dllama-zmq inspect MODEL"),
        (["plan", "demo", "-m", "demo"], "demo and demo are given; give one model"),
        (["chat", "--plain", "--template", "chatml"], "--plain and --template exclude each other; give one of"),
        (["chat", "--template", "./not-there.jinja"], "not-there.jinja: there is no such file; check the path"),
        (["chat", "--temp", "-1"], "temperature is -1.0; expected 0 (greedy), or 0.001 to 100"),
        (["chat", "-n", "0"], "--steps is 0; expected 1 or more, or -1 for no limit"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_use_names_the_word_and_what_was_expected(words: list[str], says: str) -> None:
    assert refusal(*words).startswith(says)


@pytest.mark.parametrize("command", ["netstat", "bench", "status", "up"])
@pytest.mark.parametrize("flag", ["-f", "--file", "--cluster"])
def test_a_cluster_s_file_is_given_alike_to_every_command_without_a_prompt(command: str, flag: str) -> None:
    given = GROUP.commands[command].make_context(command, [flag, "home.yaml"]).params
    assert "home.yaml" in (str(given.get("cluster")), str(given.get("option")))  # text, in older versions of typer


@pytest.mark.parametrize("command", ["up", "run", "chat", "bench", "plan", "inspect", "show", "init"])
def test_a_model_is_given_alike_to_every_command_that_takes_one(command: str) -> None:
    assert GROUP.commands[command].make_context(command, ["-m", "demo"]).params["model"] == "demo"


@pytest.mark.parametrize(("word", "value"), [("-n5", 5), ("-n-1", -1), ("-n=7", None), ("--n-predict=9", 9)])
def test_a_number_may_stand_at_its_flag(word: str, value: int | None) -> None:
    if value is None:
        assert refusal("generate", "hi", word).startswith("-n, --steps: expected a whole number")
    else:
        assert GROUP.commands["generate"].make_context("generate", ["hi", word]).params["steps"] == value


@pytest.mark.parametrize(("words", "value"), [([], 2.0), (["0.5"], 0.5), (["--json"], 2.0)])
def test_the_value_of_watch_may_be_left_out(words: list[str], value: float) -> None:
    assert GROUP.commands["netstat"].make_context("netstat", ["--watch", *words]).params["watch"] == value


def test_values_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("own.gguf", "own.m", "home.yaml", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "cluster.yaml").write_text("model: demo\nworkers: 1\n")
    monkeypatch.chdir(tmp_path)
    assert completion.models("own") == ["own.gguf", "own.m"]
    assert completion.models("fol") == ["folder/"]
    assert completion.models("dem") == ["demo"]
    assert completion.templates("llama") == ["llama2", "llama3"]
    assert completion.files("h") == ["home.yaml"]
    assert completion.nodes("") == ["root", "worker1", "gateway"]
    assert completion.shapes("tiny") == ["tinyllama"]


def test_completion_offers_only_words_that_it_can_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cluster.yaml").write_text("modle: demo\n")
    monkeypatch.chdir(tmp_path)
    assert completion.nodes("") == ["root"]
    assert completion.models("nowhere/x") == []
