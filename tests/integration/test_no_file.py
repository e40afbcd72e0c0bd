"""Without a cluster.yaml: a model is enough, in any folder; and what is said where there is neither."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from command_line import Cli, finish, json_object, kill, until
from gguf_writer import gguf_of

import dllama_zmq

PROMPT = "once upon a time"
HF_FOLDER = Path(__file__).parents[1] / "golden" / "hf_llama"


@pytest.fixture(scope="module")
def text(small_model: Path) -> str:
    """The greedy continuation on one node."""
    with dllama_zmq.load(small_model) as model:
        return "".join(model.generate(PROMPT, max_tokens=10))


@pytest.fixture
def own(cli: Cli) -> Cli:
    """The command line in a folder that holds a GGUF and nothing else."""
    (cli.folder / "own.gguf").write_bytes(gguf_of(cli.model, cli.model.with_suffix(".t")))
    return cli


GREEDY = ["--temp", "0", "-n", "10"]


def test_two_commands_after_installation_are_enough_for_the_first_token_of_an_own_gguf(
    small_model: Path, text: str
) -> None:
    """An empty home, an empty folder with the model in it: one to go there, one to run."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="d") as home:
        folder = Path(home) / "models"
        folder.mkdir()
        (folder / "own.gguf").write_bytes(gguf_of(small_model, small_model.with_suffix(".t")))
        commands = [f"cd {folder}", f"dllama-zmq run own.gguf '{PROMPT}' --temp 0 -n 10 --kernels numpy"]
        bare = {"HOME": home, "PATH": f"{Path(sys.executable).parent}{os.pathsep}/usr/bin{os.pathsep}/bin"}
        done = subprocess.run(
            ["sh", "-ec", "\n".join(commands)],
            env=bare,
            capture_output=True,
            text=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
            cwd="/",
        )
        left = [path.name for path in folder.iterdir()]
    assert (done.returncode, done.stdout) == (0, f"{PROMPT}{text}\n"), done.stderr
    assert len(commands) == 2
    assert left == ["own.gguf"]


@pytest.mark.few(3)
@pytest.mark.parametrize(
    "words",
    [
        ["run", "own.gguf", PROMPT],
        ["run", "own.gguf", "-p", PROMPT],
        ["run", "-m", "own.gguf", PROMPT],
        ["run", "own.gguf", PROMPT, "--nodes", "2"],
        ["generate", "-m", "own.gguf", PROMPT],
        ["generate", "-m", "./own.gguf", "-f", "prompt.txt", "--nodes", "4"],
    ],
    ids=" ".join,
)
def test_a_model_alone_answers_and_leaves_nothing_behind(own: Cli, text: str, words: list[str]) -> None:
    (own.folder / "prompt.txt").write_text(f"{PROMPT}\n")
    result = own.run(*words, *GREEDY)
    assert (result.code, result.out) == (0, f"{PROMPT}{text}\n"), result.said
    n_nodes = int(words[words.index("--nodes") + 1]) if "--nodes" in words else 1
    assert f"on {n_nodes} node{'s' if n_nodes > 1 else ''} for this call" in result.err
    assert "no effect" not in result.err
    assert json_object(own.run_here("ps", "--json").out) == {"clusters": []}


@pytest.mark.parametrize("dash", [["-"], []], ids=["-", "nothing"])
def test_piped_input_is_the_prompt_without_its_last_line_end(own: Cli, text: str, dash: list[str]) -> None:
    result = own.run("run", "own.gguf", *dash, *GREEDY, stdin=f"{PROMPT}\n")
    assert (result.code, result.out) == (0, f"{PROMPT}{text}\n"), result.said


def test_up_without_a_file_is_found_by_its_folder_and_by_its_name(own: Cli, text: str) -> None:
    up = own.run_here("up", "-d", "-m", "own.gguf", "--nodes", "2")
    assert up.code == 0, up.said
    (row,) = json_object(own.run_here("ps", "--json").out)["clusters"]
    assert (row["nodes"], row["state"], row["model"]) == (2, "up", str(own.folder / "own.gguf"))
    assert (row["file"], row["folder"]) == (None, str(own.folder))
    answer = own.run("generate", PROMPT, *GREEDY)
    assert (answer.out, answer.err) == (f"{PROMPT}{text}\n", "")
    same = own.run("run", "own.gguf", PROMPT, *GREEDY)
    assert (same.out, same.err) == (f"{PROMPT}{text}\n", "")  # the running one answers
    elsewhere = own.folder / "elsewhere"
    elsewhere.mkdir()
    there = Cli(own.home, elsewhere, own.model)
    assert there.run_here("status", row["name"]).out.startswith(f"{row['name']}: ready")
    sentence = there.run_here("status").error()
    assert sentence.endswith(f"name of a running one; these run on this computer: {row['name']}")
    assert there.run_here("down", row["name"]).code == 0
    assert own.run_here("ps").err == "no cluster runs on this computer\n"


def test_up_where_one_runs_without_a_file_says_so(own: Cli) -> None:
    assert own.run_here("up", "-m", "own.gguf").code == 0
    for command in (["up"], ["up", "--nodes", "2"], ["up", "--foreground"]):
        sentence = own.run_here(*command).error()
        assert "of this folder runs already, without a file, with " in sentence
        assert sentence.endswith("`dllama-zmq down` stops it")
    assert own.run_here("down").code == 0


def test_restart_brings_it_up_as_it_was_with_what_the_flags_change(own: Cli) -> None:
    assert own.run_here("up", "-m", "own.gguf", "--nodes", "2").code == 0
    before = json_object(own.run_here("status", "--json").out)
    assert own.run_here("restart", "-c", "64").code == 0
    after = json_object(own.run_here("status", "--json").out)
    assert (before["seq_len"], after["seq_len"]) == (2048, 64)
    assert before["model"] == after["model"]
    assert len(after["nodes"]) == 2
    assert before["pid"] != after["pid"]
    assert own.run_here("stop").code == 0


def test_run_answers_with_its_model_whatever_the_file_of_the_folder_says(own: Cli, text: str) -> None:
    own.write(2, model="demo")
    result = own.run("run", "own.gguf", PROMPT, *GREEDY)
    assert (result.code, result.out) == (0, f"{PROMPT}{text}\n"), result.said


def test_nodes_takes_the_first_of_a_file(own: Cli) -> None:
    own.write(4)
    assert own.run_here("up", "--nodes", "2").code == 0
    assert [node["name"] for node in json_object(own.run_here("status", "--json").out)["nodes"]] == ["root", "worker1"]
    own.down()
    assert "--nodes 8: the cluster of cluster.yaml has 4" in own.run_here("up", "--nodes", "8").error(2)
    assert "--nodes 3" in own.run_here("up", "--nodes", "3").error(2)


def test_a_tokenizer_can_be_named_on_the_command_line(own: Cli, text: str) -> None:
    bare = own.folder / "bare.m"
    bare.write_bytes(own.model.read_bytes())
    sentence = own.run_here("run", "bare.m", PROMPT, *GREEDY).error()
    assert sentence.startswith(f"tokenizer: there is no {own.folder / 'bare.t'}; ")
    assert "--tokenizer" in sentence
    result = own.run("run", "bare.m", PROMPT, *GREEDY, "--tokenizer", str(own.model.with_suffix(".t")))
    assert (result.code, result.out) == (0, f"{PROMPT}{text}\n"), result.said


# --- what is said -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["up"], ["generate", "hi"], ["up", "--foreground"]])
def test_without_file_and_model_the_error_names_both_ways(cli: Cli, command: list[str]) -> None:
    sentence = cli.run_here(*command).error()
    assert sentence.startswith("cluster.yaml: there is no such file; ")
    assert 'dllama-zmq run MODEL "Once upon a time"' in sentence
    assert "dllama-zmq init" in sentence


@pytest.mark.parametrize("command", [["down"], ["status"], ["logs"], ["restart"]])
def test_without_file_and_cluster_it_is_said_how_to_find_one(cli: Cli, command: list[str]) -> None:
    assert cli.run_here(*command).error() == (
        f"there is no cluster.yaml, and no cluster runs for its folder {cli.folder}; give a cluster's file or the name "
        "of a running one; no cluster runs on this computer"
    )


@pytest.mark.parametrize(
    "command",
    [["bench", "--cluster"], ["netstat", "--cluster"], ["logs", "--cluster"], ["status"], ["up"], ["restart"]],
)
def test_a_word_that_is_no_cluster_is_refused_as_the_name_or_the_file_that_it_looks_like(
    cli: Cli, command: list[str]
) -> None:
    name = cli.run_here(*command, "nosuch").error()
    assert name == (
        "nosuch: expected a cluster's file or the name of a running one; there is no such file, and no cluster "
        "runs on this computer"
    )
    file = cli.run_here(*command, "my files/nosuch.yaml").error()
    assert file.startswith(
        "my files/nosuch.yaml: there is no such file; check its path, or write one: dllama-zmq init '"
    )


def test_where_a_cluster_is_expected_a_model_is_called_one_and_the_clusters_are_named(cli: Cli) -> None:
    cli.write(1, name="home")
    (cli.folder / "other.yaml").write_text("services: {}\n")
    assert cli.run_here("up").code == 0
    for command in ("down", "restart", "status", "stop"):
        assert cli.run_here(command, "demo").error() == (
            "demo: expected a cluster's file or the name of a running one; there is no such file (this folder has "
            "cluster.yaml), and these run on this computer: home; demo is a model: dllama-zmq up -m demo brings up a "
            "cluster of it"
        )
    assert cli.run_here("down").code == 0


@pytest.mark.parametrize("command", [["up"], ["status"], ["generate", "hi", "--cluster"]])
def test_a_file_of_another_kind_in_place_of_a_clusters_is_called_what_it_is(cli: Cli, command: list[str]) -> None:
    (cli.folder / "page").write_text("<!DOCTYPE html>\n<p>404: Not Found: really</p>")
    sentence = cli.run_here(*command, "page").error()
    assert sentence.startswith("page is a web page, not a cluster's file: ")
    assert sentence.endswith("; dllama-zmq init writes one")


@pytest.mark.parametrize("name", ["blob", "config.json"])
def test_a_model_in_place_of_a_clusters_file_goes_after_m(cli: Cli, name: str) -> None:
    (cli.folder / "blob").write_bytes(b"GGUF" + bytes(20))
    (cli.folder / "config.json").write_text("{}")
    assert "is a model, and a model goes after -m: dllama-zmq up -m " in cli.run_here("up", name).error(2)


@pytest.mark.parametrize("command", [["inspect"], ["run", "-p", "hi"], ["convert", "--tokenizer", "x.t"]])
@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("README.md", "# My model\nIt is a löng story.\n" * 40, "is a text file; expected a model: a .m or GGUF file"),
        ("home.yaml", "model: demo\n", "If it describes a cluster: dllama-zmq up "),
        ("model.bin", "<!DOCTYPE html>\n<html>", "is a web page; expected a model"),
        ("hf/tokenizer_config.json", "{}", "To name the model beside it, give the folder: "),
        ("empty", "", "the file is empty"),
    ],
)
def test_a_file_that_is_no_model_is_called_what_it_is(
    cli: Cli, command: list[str], name: str, text: str, says: str
) -> None:
    path = cli.folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    if name.startswith("hf/"):
        (path.parent / "config.json").write_text("{}")
    sentence = cli.run_here(*command[:1], name, *(["out.m"] if command[0] == "convert" else []), *command[1:]).error()
    assert says in sentence


def test_a_folder_without_a_tokenizer_is_refused_with_what_this_command_takes(cli: Cli) -> None:
    shutil.copytree(HF_FOLDER, cli.folder / "hf")
    missing = (
        f"{cli.folder / 'hf'}: this folder has no tokenizer.json and no tokenizer.model. Put the model's own there."
    )
    alone = cli.run_here("run", "hf", PROMPT).error()
    assert alone == f"{missing} --tokenizer FILE gives another one."
    cli.write(1, model="hf")
    of_file = cli.run_here("up").error()
    assert of_file == f"{missing} --tokenizer FILE, or `tokenizer:` in cluster.yaml, gives another one."
    for command in (["inspect", "hf"], ["convert", "hf", "out.m", "--weights", "f32"]):
        done = cli.run_here(*command)
        assert done.code == 0, done.said
        assert "Put the model's own there" in done.out + done.err
        assert "--tokenizer" not in done.out + done.err
        assert "cluster.yaml" not in done.out + done.err


def test_a_cluster_without_a_file_gets_other_nodes_by_coming_up_anew(own: Cli) -> None:
    assert own.run_here("up", "-m", "own.gguf").code == 0
    sentence = own.run_here("generate", PROMPT, "--nodes", "2").error(2)
    assert sentence.startswith(
        f"--nodes 2: cluster '{json_object(own.run_here('status', '--json').out)['name']}' of this "
    )
    model = own.folder / "own.gguf"
    assert sentence.endswith(f"again: dllama-zmq down, then dllama-zmq up -m {model} --nodes 2")
    assert own.run_here("down").code == 0


def test_a_cluster_without_a_file_whose_root_was_killed_has_ended_unexpectedly(own: Cli) -> None:
    assert own.run_here("up", "-m", "own.gguf").code == 0
    pid = json_object(own.run_here("status", "--json").out)["pid"]
    kill(pid)
    until(lambda: not own.processes(), 15, "the root to end, and the front, which has its lock too")
    for command in (["generate", PROMPT], ["status"], ["up"]):
        sentence = own.run_here(*command).error()
        assert "of this folder ended unexpectedly; `dllama-zmq logs root` shows its log, " in sentence
    assert "up name=" in own.run("logs", "root").out
    assert own.run_here("down").code == 0  # clears away what was left
    assert "ended unexpectedly" not in own.run_here("status").error()
    assert own.run_here("up", "-m", "own.gguf").code == 0
    assert own.run_here("down").code == 0


def test_an_answer_that_the_context_ends_is_said_to_be_cut(own: Cli) -> None:
    cut = own.run("run", "own.gguf", PROMPT, "--temp", "0", "-n", "40", "-c", "30", "--json")
    assert json_object(cut.out)["finish_reason"] == "length"
    assert "the answer ends here because the context is full: " in cut.err
    assert "context is full" not in own.run("run", "own.gguf", PROMPT, *GREEDY).err


def test_a_text_file_is_no_tokenizer(own: Cli) -> None:
    (own.folder / "notes.txt").write_text("tokens, and more tokens\n")
    sentence = own.run_here("run", "own.gguf", PROMPT, "--tokenizer", "notes.txt").error()
    assert sentence.startswith(f"{own.folder / 'notes.txt'} is a text file; expected a tokenizer: tokenizer.json, ")


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["run", "ownn.gguf", "hi"], 1, "there is no such file or folder; did you mean own.gguf?"),
        (["run", "The/Tiny-GGUF", "hi"], 1, "run `dllama-zmq pull The/Tiny-GGUF` and write hf:The/Tiny-GGUF"),
        (["generate", "-m", "nosuch.gguf", "hi"], 1, "nosuch.gguf cannot be opened"),
        (["run", "llama3"], 1, "there is no model llama3; give a file, a folder or demo; `dllama-zmq list`"),
        (["run", "llama3:8b", "hi"], 1, "`dllama-zmq pull USER/REPO[:FILE]` fetches one"),
        (["run", "dem"], 1, "there is no model dem"),
        (["run", "/dev/null", "hi"], 1, "/dev/null is a device; give a model's file or folder, or demo"),
        (["up", "demo"], 2, "demo is a model, and a model goes after -m: dllama-zmq up -m demo"),
        (["up", "own.gguf", "--nodes", "2"], 2, "a model goes after -m: dllama-zmq up -m own.gguf"),
        (["up", "--foreground", "hf:org/name"], 2, "a model goes after -m: dllama-zmq up -m hf:org/name"),
        (["rm", "demo"], 2, "demo is part of the package"),
        (["run", "own.gguf"], 2, 'the prompt is missing; give a text to continue: dllama-zmq run own.gguf "'),
        (["run", "own.gguf", "hi", "-m", "demo"], 2, "two models are given"),
        (["generate", "hi", "-m", "demo", "-hf", "org/m"], 2, "--model and --hf-repo exclude each other"),
        (["run", "own.gguf", "hi", "-f", "x"], 2, "the prompt is given twice"),
        (["run", "own.gguf", "-f", "nosuch.txt"], 1, "--file nosuch.txt: the prompt cannot be read (No such file"),
        (["run", "own.gguf", "hi", "--nodes", "3"], 2, "3 nodes; use 1, 2, 4, 8"),
        (["run", "once", "upon", "a", "time"], 2, "the prompt is in several words"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_impossible_calls_are_refused_in_one_sentence(own: Cli, words: list[str], code: int, says: str) -> None:
    assert says in own.run_here(*words).error(code)


def test_at_a_terminal_generate_says_that_it_waits_for_the_prompt(own: Cli, text: str) -> None:
    """A pipe in which nothing comes: nobody is left without a word for 2 s, and what comes then is the prompt."""
    with own.started("run", "own.gguf", *GREEDY, stdin=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == b"reading the prompt from stdin, until its end\n"
        result = finish(process, 60, time.monotonic(), PROMPT.encode())
    assert (result.code, result.out) == (0, f"{PROMPT}{text}\n"), result.said


def test_a_closed_stdin_is_no_prompt(own: Cli) -> None:
    command = ["sh", "-c", 'exec "$0" -m dllama_zmq run own.gguf <&-', sys.executable]
    done = subprocess.run(command, cwd=own.folder, env=own.environment(), capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert "the prompt is missing" in done.stderr
