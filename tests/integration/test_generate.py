"""`generate` as its user sees it: what goes to stdout, every spelling of a flag. Its end: `test_generate_ends.py`."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from command_line import Cli, finish, json_object, read_some
from integration.answers import PROMPT, alone

import dllama_zmq
from dllama_zmq.errors import RequestError
from dllama_zmq.grammar import Grammar
from dllama_zmq.local import LocalModel
from dllama_zmq.sampling import Sampling

PHASE_KEYS = {"tokens", "tokens_per_s", "g_ms", "i_ms", "t_ms", "s_kb", "r_kb"}
ESCAPE = "\x1b"
SOON_S = 15.0  # on a busy machine


# --- the answer ---------------------------------------------------------------------------------------------------


def test_the_text_goes_to_stdout_and_nothing_else_is_said(running: Cli, local: LocalModel) -> None:
    result = running.generate("-n", "30")
    assert (result.out, result.err) == (f"{PROMPT}{alone(local, PROMPT, 30)}\n", "")


def test_every_flag_of_sampling_is_the_samplings_of_that_name(running: Cli, local: LocalModel) -> None:
    flags = "--temp 0.9 --seed 4 --min-p 0.02 --typical 0.95 --repeat-penalty 1.2 --presence-penalty 0.3"
    more = "--frequency-penalty 0.4 --logit-bias 100-100 --logit-bias 101+1.5 --top-k 50 --top-p 0.99"
    sampling = Sampling(0.9, 0.99, 50, 4, 0.02, 0.95, 1.2, 0.3, 0.4, {100: -100.0, 101: 1.5})
    result = running.generate("-n", "30", *flags.split(), *more.split())
    assert result.out == f"{PROMPT}{''.join(local.generate(PROMPT, 30, sampling))}\n"
    assert result.out != f"{PROMPT}{''.join(local.generate(PROMPT, 30, Sampling(0.9, seed=4)))}\n"


def test_the_answer_ends_before_a_stop_string(running: Cli, local: LocalModel) -> None:
    text = "".join(local.generate(PROMPT, 40))
    stop = text[30:33]
    before = text[: text.index(stop)]
    report = json_object(running.generate("-n", "40", "--json", "--stop", stop, "--stop", "not there").out)
    assert (report["text"], report["finish_reason"]) == (before, "stop")
    assert len(report["tokens"]) < 40
    assert "".join(local.generate(PROMPT, 40, stop=[stop])) == before
    with pytest.raises(RequestError, match="expected a list of texts"):
        next(local.generate(PROMPT, 40, stop=stop))


def test_the_answer_has_the_form_that_is_asked_for(running: Cli, small_model: Path, tmp_path: Path) -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["n"],
        "additionalProperties": False,
    }
    (tmp_path / "s.json").write_text(json.dumps(schema))
    (tmp_path / "g.lark").write_text('start: "a" /[0-9]{3}/')
    with dllama_zmq.load(small_model) as model:
        expected = "".join(model.generate(PROMPT, 90, grammar=Grammar("json_schema", json.dumps(schema))))
    assert set(json.loads(expected)) == {"n"}
    for flag in (["-j", json.dumps(schema)], ["--json-schema-file", tmp_path / "s.json"]):
        report = json_object(running.generate("--json", "-n", "90", *map(str, flag)).out)
        assert (report["text"], report["finish_reason"]) == (expected, "stop")
    assert running.generate("--no-echo", "--grammar", 'root ::= "yes" | "no"').out in ("yes\n", "no\n")
    assert re.fullmatch(r"a\d{3}\n", running.generate("--no-echo", "--grammar-file", str(tmp_path / "g.lark")).out)
    cut = running.generate("-n", "2", "-j", json.dumps(schema))
    assert "the answer is cut after 2 tokens, before its form is complete; -n allows more" in cut.err
    refused = running.run("generate", PROMPT, "-j", '{"not": {}}')
    assert refused.code == 1
    assert "the grammar (json_schema) cannot be used" in refused.err


def test_log_probabilities_are_those_of_the_models_logits(running: Cli, local: LocalModel) -> None:
    report = json_object(running.generate("-n", "8", "--json", "--logprobs", "3", "--temp", "1.5", "--seed", "2").out)
    tokens = report["tokens"]
    logits = local.logits([*local.tokenizer.encode(PROMPT), *tokens])[-len(tokens) - 1 : -1].astype(np.float64)
    assert len(report["logprobs"]) == len(tokens)
    for token, row, logprobs in zip(tokens, logits, report["logprobs"], strict=True):
        expected = row - np.log(np.exp(row - row.max()).sum()) - row.max()
        best = np.argsort(-row, kind="stable")[:3].tolist()
        assert logprobs["token"] == token
        assert [one["token"] for one in logprobs["top"]] == best
        for one in (logprobs, *logprobs["top"]):
            assert one["logprob"] == pytest.approx(expected[one["token"]], abs=1e-5)
            name = local.tokenizer.piece(one["token"]).decode(errors="replace")
            assert one["text"] == (local.tokenizer.decode([one["token"]], continues=True) or name)


def test_json_is_one_object_with_everything_in_it(running: Cli, local: LocalModel) -> None:
    result = running.generate("-n", "30", "--json", "--seed", "5")
    report = json_object(result.out)
    assert result.err == ""
    assert report.keys() == {
        "model",
        "prompt",
        "text",
        "tokens",
        "prompt_tokens",
        "cached_tokens",
        "finish_reason",
        "seed",
        "stats",
    }
    assert report["model"] == str(running.model)
    assert (report["prompt"], report["text"]) == (PROMPT, alone(local, PROMPT, 30))
    assert (len(report["tokens"]), report["finish_reason"], report["seed"]) == (30, "length", 5)
    assert report["stats"].keys() == {"prompt", "prediction"}
    assert all(phase.keys() == PHASE_KEYS for phase in report["stats"].values())
    assert report["stats"]["prompt"]["tokens"] == report["prompt_tokens"]
    assert report["stats"]["prediction"]["tokens"] == 29  # the prompt's last step gives the first token


def test_stats_are_a_table_of_both_phases_with_a_legend(running: Cli) -> None:
    head, prompt, prediction, legend, *_ = running.generate("-n", "6", "--stats").err.splitlines()
    assert head.split() == ["tokens", "tokens/s", "ms", "computing", "waiting", "sent", "received"]
    row = r"\d+ +[\d.]+ +[\d.]+ +[\d.]+ +[\d.]+ +[\d.]+ kB +[\d.]+ kB"
    assert re.fullmatch(rf"prompt +{row}", prompt)
    assert re.fullmatch(rf"prediction +{row}", prediction)
    assert prediction.split()[1] == "5"
    assert legend.startswith("per token, ")
    assert max(map(len, (head, prompt, prediction, legend))) <= 80


def test_stats_of_tokens_are_a_line_for_each_step_too(running: Cli) -> None:
    result = running.generate("-n", "6", "--stats=tokens")
    legend, *steps = result.err.splitlines()[:7]
    assert all(f"({letter})" in legend for letter in "GITSR")
    figures = r"G +[\d.]+  I +[\d.]+  T +[\d.]+  S +[\d.]+  R +[\d.]+  "
    assert [bool(re.match(figures, line)) for line in steps] == [True] * 6  # one of the prompt, five of the prediction
    assert re.search(r"  prompt (\d+)/\1$", steps[0])
    assert "prediction " in result.err
    assert result.out.startswith(PROMPT)


def test_the_word_after_stats_is_the_prompt(running: Cli) -> None:
    result = running.run("generate", "--stats", "tokens", "-n", "3")
    assert (result.code, result.out.startswith("tokens")) == (0, True), result.said


def test_the_same_seed_gives_the_same_text_and_another_seed_another(running: Cli) -> None:
    words = ["generate", PROMPT, "--temp", "1", "-n", "20", "--no-echo"]
    results = [running.run(*words, "--seed", seed) for seed in ("11", "11", "12")]
    assert [result.code for result in results] == [0] * 3, [result.said for result in results]
    texts = [result.out for result in results]
    assert texts[0] == texts[1] != texts[2]


def test_eight_nodes_give_the_greedy_text_of_one(cli: Cli, local: LocalModel) -> None:
    cli.up(8)
    assert cli.generate("-n", "40").out == f"{PROMPT}{alone(local, PROMPT, 40)}\n"
    cli.down()


def test_every_spelling_of_every_flag_means_the_same(running: Cli) -> None:
    lines = [
        "generate PROMPT --steps 20 --temperature 0.7 --top-p 0.9 --top-k 20 --seed 5 --no-echo",
        "inference --prompt PROMPT --n-predict 20 --temp 0.7 --topp 0.9 --topk 20 -s 5 --no-display-prompt",
        "run -p PROMPT -n 20 --temp 0.7 --topp 0.9 --topk 20 -s 5 --no-echo",
        "generate -p PROMPT --predict 20 --temp 0.7 --topp 0.9 --topk 20 -s 5 --no-echo --nthreads 1 --sync f32",
        "generate -p PROMPT --max-tokens 20 --temp 0.7 --topp 0.9 --topk 20 -s 5 --no-echo -t 1 "
        "--buffer-float-type F32 --cluster cluster.yaml",
        "generate -p PROMPT -n 20 --temp 0.7 --topp 0.9 --topk 20 -s 5 --echo --threads 1",
    ]
    results = [running.run(*(PROMPT if word == "PROMPT" else word for word in line.split())) for line in lines]
    assert [result.code for result in results] == [0] * len(lines), [result.said for result in results]
    *without, with_prompt = [result.out for result in results]
    assert set(without) == {without[0]}
    assert len(without[0]) > 20
    assert with_prompt == PROMPT + without[0]
    assert results[3].err == "small is running already: --threads 1 has no effect on it\n"


def test_model_and_kernels_may_be_others_than_the_files_for_one_call(cli: Cli, local: LocalModel) -> None:
    """The path is relative to where the command runs; the log says which back end it was."""
    cli.write(2, model="demo")
    shutil.copy(cli.model, cli.folder / "other.m")
    shutil.copy(cli.model.with_suffix(".t"), cli.folder / "other.t")
    (cli.folder / "elsewhere").mkdir()
    (cli.folder / "cluster.yaml").rename(cli.folder / "elsewhere" / "cluster.yaml")
    result = cli.run(
        "generate",
        PROMPT,
        "--temp",
        "0",
        "-n",
        "10",
        "-m",
        "other.m",
        "--kernels",
        "numpy",
        "--cluster",
        "elsewhere/cluster.yaml",
    )
    assert (result.code, result.out) == (0, f"{PROMPT}{alone(local, PROMPT, 10)}\n"), result.said
    assert "kernels=numpy" in (cli.log_folder / "worker1.log").read_text()


def test_a_dash_reads_the_prompt_from_stdin(running: Cli) -> None:
    given = running.run("generate", "-", "--temp", "0", "-n", "10", stdin=PROMPT)
    assert given.out == running.generate("-n", "10").out


def test_an_empty_prompt_begins_a_text_where_the_tokenizer_begins_texts_of_itself(running: Cli) -> None:
    report = json_object(running.run("generate", "", "--temp", "0", "-n", "5", "--json").out)
    assert (report["prompt_tokens"], len(report["tokens"])) == (1, 5)


def test_several_clients_at_once_get_their_own_whole_answers(running: Cli, local: LocalModel) -> None:
    prompts = ["once upon a time", "a cat and a dog", "the sun was"]
    with ExitStack() as stack:
        start = time.monotonic()
        processes = [
            stack.enter_context(running.started("generate", prompt, "--temp", "0", "-n", "40")) for prompt in prompts
        ]
        results = [finish(process, 60, start) for process in processes]
    assert [result.code for result in results] == [0] * 3
    assert [result.out for result in results] == [f"{p}{alone(local, p, 40)}\n" for p in prompts]


@pytest.mark.parametrize(
    "words", [["status"], ["generate", "a", "-n", "3", "--temp", "0", "--stats"], ["generate", "--nonsense"]]
)
def test_no_escape_codes_without_a_terminal(running: Cli, words: list[str]) -> None:
    result = running.run(*words, TERM="xterm-256color")
    assert result.err if "generate" in words else result.out
    assert ESCAPE not in result.out + result.err


# --- with no cluster running --------------------------------------------------------------------------------------


def test_with_no_cluster_running_it_brings_one_up_for_the_call(cli: Cli, local: LocalModel) -> None:
    cli.write(2)
    result = cli.generate("-n", "10", TERM="xterm-256color")
    assert ESCAPE not in result.err
    assert result.err.startswith("small is not running: bringing up cluster.yaml for this call")
    assert result.out == f"{PROMPT}{alone(local, PROMPT, 10)}\n"
    assert cli.processes() == []
    assert cli.run("status", "--json").out == '{"state":"down"}\n'


def test_the_cluster_of_one_call_is_as_the_flags_say(cli: Cli) -> None:
    cli.write(2)
    with cli.started("generate", PROMPT, "--temp", "0", "-n", "1900", "--buffer-float-type", "q80") as process:
        read_some(process, len(PROMPT) + 5)
        assert cli.status().sync == "q80"
        process.send_signal(signal.SIGINT)
        ended = finish(process, SOON_S, time.monotonic())
    assert ended.code == 130, ended.said
    assert "Traceback" not in ended.err
    assert cli.processes() == []
