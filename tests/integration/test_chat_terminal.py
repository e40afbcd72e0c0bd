"""`chat` at a terminal: its keys, its commands, and what it says when an answer does not come as usual."""

from __future__ import annotations

import json
import re
import signal
import stat
import sys
import termios
from collections.abc import Iterator

import pytest
from chatting import Chatting, chatting
from command_line import Cli, clean_cli, kill, until
from reciting import END_OF_TURN, write_reciting_model
from terminal import at_terminal, lines_left

COUNTS = ["One.", " Two.", " Three.", END_OF_TURN]
ANSWERS = {
    "A": COUNTS,
    "T": ["<think>", "\n", "Let me see.", "\n", "</think>", "\n\n", "Four."],
    "L": [" la", " lala", "..."],
    "E": ["\x1b[2J", "\r", "bell\x07", "\x9b31m", " safe\tend"],
    "Q": ["So:", "\n", "- **bold**", "\n", "```", "\n", "code", "\n", "```"],
}
LONG = 600
"""Tokens of an answer whose worker is killed as soon as the first are there; half a second of the nodes' time."""
PROGRESS = b"\x1b[?25l"  # hides the cursor, when progress begins to be shown
STOPPED = "[stopped; its text so far stays in the conversation]"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """Two nodes of a model that recites ANSWERS, which all tests here share."""
    folder = tmp_path_factory.mktemp("chat")
    model = write_reciting_model(folder / "parrot.m", ANSWERS, seq_len=1 << 14)
    with clean_cli(folder, model) as cli:
        cli.up(2, max_seq_len=1 << 14)
        yield cli
        cli.down()


@pytest.fixture
def chat(cluster: Cli) -> Iterator[Chatting]:
    """A chat of its own with the cluster."""
    with chatting(cluster, "--temp", "0") as chat:
        yield chat
        if chat.terminal.process.poll() is None:
            chat.leave()


def local_modes(chat: Chatting) -> int:
    """Whether the terminal shows what is typed, and hands it on by lines."""
    return int(termios.tcgetattr(chat.terminal.descriptor)[3])


def n_prompt_tokens(printed: str) -> int:
    """Of what /set verbose tells of an answer."""
    (found,) = re.findall(r"prompt (\d+) token", printed)
    return int(found)


def test_a_message_is_answered_up_to_the_end_of_turn_and_the_next_one_follows_it(chat: Chatting) -> None:
    chat.say("/set verbose")
    first = chat.say("say A")
    assert first.startswith("One. Two. Three.\n3 tokens, ")
    second = chat.say("say A")
    assert second.startswith("One. Two. Three.\n")
    assert n_prompt_tokens(second) > n_prompt_tokens(first) + len("say A")  # the first turn is part of the prompt
    chat.say("/clear")
    chat.say("/set think off")
    assert n_prompt_tokens(chat.say("say A")) > n_prompt_tokens(first)  # the template has written more


def test_a_line_is_edited_and_earlier_ones_come_back(cluster: Cli) -> None:
    history = cluster.home / "chat.history"
    with chatting(cluster) as chat:
        chat.begin("say Ax\x7f")  # Backspace
        assert "One. Two. Three." in chat.answer()
        chat.begin("ay Q\x01s\x05")  # Ctrl-A, Ctrl-E
        assert "- **bold**" in chat.answer()
        chat.begin("\x1b[A\x1b[A")  # up, up
        assert "One. Two. Three." in chat.answer()
        chat.leave()
    with chatting(cluster) as chat:
        chat.begin("\x1b[A")
        assert "One. Two. Three." in chat.answer()
    assert "+say A\n" in history.read_text()
    assert stat.S_IMODE(history.stat().st_mode) == 0o600


def test_tab_completes_commands_settings_and_files(chat: Chatting, cluster: Cli) -> None:
    assert "temperature" in chat.say("/se\t")
    assert chat.say("/set temper\t0.5").startswith("temperature is set")
    assert chat.say("/read clu\t").startswith("cluster.yaml (")
    chat.say("/clear")


def test_ctrl_c_stops_the_answer_and_its_part_stays_in_the_conversation(chat: Chatting, cluster: Cli) -> None:
    chat.say("/set verbose")
    chat.begin("sing L")
    chat.until("la lala la lala")
    chat.terminal.type("\x03")
    printed = chat.answer()
    assert STOPPED in printed
    n_sung = printed.count("la")
    until(lambda: cluster.status().active == 0, 15.0, "the root to stop the answer")
    assert n_prompt_tokens(chat.say("say A")) > n_sung


def test_a_long_prompt_is_seen_to_be_evaluated_and_may_be_interrupted(cluster: Cli) -> None:
    (cluster.folder / "long.txt").write_text("x" * 14_000)
    with chatting(cluster, "--plain", "--temp", "0") as chat:  # which shows the prompt too, once it is evaluated
        chat.say("/read long.txt")
        chat.begin("say A")
        chat.terminal.until(lambda text: re.search(r"evaluating .* [1-9]\d+ of 14\d\d\d tokens", text), 60)
        chat.terminal.type("\x03")
        assert "[stopped; the message is not in the conversation]" in chat.answer()
        assert "conversation  0 turns" in chat.say("/show")
        until(lambda: cluster.status().active == 0, 15.0, "the root to stop the answer")
        chat.say("/clear")
        assert chat.say("say A").startswith("say AOne. Two. Three.\n")
        chat.leave()


def test_keys_of_an_empty_prompt_say_how_to_leave_and_leave(chat: Chatting) -> None:
    chat.terminal.type("\x03")
    assert "Ctrl-D or /bye leaves" in chat.answer()
    chat.terminal.type("half a line\x03")
    assert "leaves" not in chat.answer()  # the line is gone, and no more is said
    assert "One." in chat.say("A")
    chat.begin("/bye")
    assert chat.terminal.to_the_end(20) == 0


def test_a_message_has_several_lines_between_triple_quotes(chat: Chatting) -> None:
    chat.say('"""first line')
    chat.say("")
    assert "One. Two." in chat.say('say A"""')
    saved = chat.say("/save several.json")
    assert saved.startswith("saved 1 turn in several.json")


def test_a_pasted_text_is_one_message(chat: Chatting, cluster: Cli) -> None:
    chat.terminal.type("\x1b[200~pasted\nsay A\x1b[201~\r")
    assert "One. Two." in chat.answer()
    chat.say("/save pasted.json")
    messages = json.loads((cluster.folder / "pasted.json").read_text())["messages"]
    assert messages[0]["content"] == "pasted\nsay A"


def test_thinking_is_dimmed_and_separated(chat: Chatting) -> None:
    chat.begin("think T")
    raw = chat.raw_answer()
    assert (
        b"\x1b[2mThinking...\r\n\x1b[2mLet me see.\x1b[22m\x1b[2m\r\n...done thinking.\x1b[22m\r\n\r\nFour.\r\n" in raw
    )


def test_without_colours_words_mark_thinking(cluster: Cli) -> None:
    with chatting(cluster, NO_COLOR="1") as chat:
        chat.begin("think T")
        raw = chat.raw_answer()
        assert b"Thinking...\r\nLet me see.\r\n...done thinking.\r\n\r\nFour.\r\n" in raw
        chat.leave()


def test_control_characters_of_a_model_do_not_control_the_terminal(chat: Chatting, cluster: Cli) -> None:
    inert = b"\\x1b[2J\\x0dbell\\x07\\x9b31m safe\tend\r\n"
    chat.begin("E")
    assert inert in chat.raw_answer()
    words = [sys.executable, "-m", "dllama_zmq", "generate", "E"]
    with at_terminal(words, cluster.folder, cluster.environment()) as terminal:
        assert terminal.to_the_end(60) == 0
        assert inert in terminal.seen
    assert cluster.run("generate", "E", "--no-echo").out == "".join(ANSWERS["E"]) + "\n"  # as it is, on a pipe


def test_markdown_stays_as_it_is_written(chat: Chatting) -> None:
    assert "So:\n- **bold**\n```\ncode\n```\n" in chat.say("Q")


def test_settings_are_shown_changed_and_refused_in_words(chat: Chatting) -> None:
    shown = chat.say("/set")
    assert re.search(r"temperature +0 *\n", shown)
    assert re.search(r"max_tokens +no limit", shown)
    assert "is set" in chat.say("/set max_tokens 2")
    assert "[the answer is cut after 2 tokens, the limit of max_tokens (-n)]" in chat.say("A")
    assert "is set" in chat.say("/set parameter num_predict -1")  # ollama's words
    assert "is set" in chat.say("/set stop Two")
    assert chat.say("A").startswith("One. \n")
    chat.say("/set stop off")
    assert chat.say("A").startswith("One. Two. Three.\n")
    refused = {
        "/set top_p 2": "error: top_p is 2.0; expected more than 0 and at most 1",
        "/set temperature hot": "error: temperature is 'hot'; expected a number",
        "/set colour red": "error: there is no setting 'colour'; /set lists them",
        "/set verbose maybe": "error: verbose is 'maybe'; expected on or off",
        "/set seed": "error: /set seed needs a value",
        "/set max_tokens 0": "error: max_tokens is '0'; expected a number of tokens",
        "/sett": "error: there is no command /sett; did you mean /set?",
        "/drop all": "error: /drop all: expected a number of turns",
        "/bye now": "error: /bye takes no argument",
        "/load": "error: /load needs a file: /load FILE",
        "/load nowhere.json": "error: nowhere.json: there is no such file",
        "/load cluster.yaml": "error: cluster.yaml is no saved conversation",
        "/save cluster.yaml": "error: cluster.yaml exists and is no saved conversation",
        "/read .": "error: .: is no regular file",
    }
    for line, says in refused.items():
        assert chat.say(line).replace("\n", " ").startswith(says)


def test_the_system_message_is_part_of_each_prompt_until_it_is_taken_away(chat: Chatting) -> None:
    chat.say("/set verbose")
    bare = n_prompt_tokens(chat.say("A"))
    chat.say("/clear")
    assert "is set" in chat.say("/system Be very brief.")
    assert chat.say("/system").startswith("Be very brief.\n")
    assert n_prompt_tokens(chat.say("A")) >= bare + len("Be very brief.")
    assert "no system message" in chat.say('/system ""')
    chat.say("/clear")
    assert n_prompt_tokens(chat.say("A")) == bare


def test_regen_answers_the_last_message_anew_and_drop_and_clear_make_room(chat: Chatting) -> None:
    assert "error: there is no answer yet" in chat.say("/regen")
    chat.say("/set verbose")
    first = chat.say("A")
    assert n_prompt_tokens(chat.say("/regen")) == n_prompt_tokens(first)
    chat.say("B A")
    assert "conversation  2 turns" in chat.say("/show")
    assert "1 turn dropped, 1 turn left" in chat.say("/drop")
    assert "conversation  1 turn" in chat.say("/show")
    assert "a new conversation" in chat.say("/clear")
    assert n_prompt_tokens(chat.say("A")) == n_prompt_tokens(first)


def test_a_conversation_is_saved_and_loaded(chat: Chatting, cluster: Cli) -> None:
    chat.say("/system Be brief.")
    chat.say("think T")
    assert "saved 1 turn in talk.json" in chat.say("/save talk.json")
    saved = json.loads((cluster.folder / "talk.json").read_text())
    assert saved == {
        "format": "dllama-zmq chat 1",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "think T"},
            {"role": "assistant", "content": "Four.", "reasoning_content": "Let me see."},
        ],
        "model": "parrot",
    }
    chat.say("/clear")
    chat.say("/system Be long.")
    assert "loaded 1 turn from talk.json" in chat.say("/load talk.json")
    assert chat.say("/system").startswith("Be brief.\n")
    assert "conversation  1 turn" in chat.say("/show")
    assert "saved 1 turn" in chat.say("/save talk.json")  # what is a conversation may be replaced


def test_a_file_goes_with_the_next_message(chat: Chatting, cluster: Cli) -> None:
    (cluster.folder / "note.txt").write_text("What I wrote down.\n")
    assert "note.txt (19 bytes) goes with your next message" in chat.say("/read note.txt")
    chat.say("say A")
    chat.say("/save read.json")
    messages = json.loads((cluster.folder / "read.json").read_text())["messages"]
    assert messages[0]["content"] == "What I wrote down.\n\nsay A"


def test_the_cluster_and_the_last_answer_are_shown(chat: Chatting) -> None:
    chat.say("A")
    nodes = chat.say("/nodes")
    assert re.search(r"root +ready", nodes)
    assert re.search(r"worker1 +ready", nodes)
    assert re.search(r"prediction +2 ", chat.say("/stats"))
    shown = chat.say("/show")
    assert "parrot.m" in shown
    assert "template      of the model" in shown
    help_page = chat.say("/help")
    for command in ("/help, /?", "/bye, /exit", "/regen", "/system [TEXT]", "/nodes", "Ctrl-C"):
        assert command in help_page


def test_an_answer_waits_for_a_lost_worker_says_why_and_continues(chat: Chatting, cluster: Cli) -> None:
    worker = cluster.pid("worker1")
    chat.say(f"/set max_tokens {LONG}")
    chat.begin("sing L")
    chat.until("la lala la lala")
    kill(worker)
    printed = chat.answer()
    sung = re.fullmatch(
        r"(?P<before>[ la]+)\n\[the answer waits: (?P<why>[^]]+)\]\n\[the answer continues\]\n(?P<after>[ la]+)\n"
        rf"\[the answer is cut after {LONG} tokens, the limit of max_tokens \(-n\)\]\n+",
        printed,
    )
    assert sung is not None, printed.replace(" la lala" * 10, "*")
    assert re.match(r"worker1 (was lost|ended)\b", sung["why"].replace("\n", " "))  # whichever is heard first
    assert sung["before"] + sung["after"] == " la lala" * (LONG // 2)


def test_on_a_terminal_progress_leaves_the_text_of_generate_alone_while_a_worker_is_lost(cluster: Cli) -> None:
    worker = cluster.pid("worker1")
    words = [sys.executable, "-m", "dllama_zmq", "generate", "sing L", "-n", str(LONG), "--no-echo"]
    with at_terminal(words, cluster.folder, cluster.environment()) as terminal:
        terminal.until(lambda text: "la lala la lala" in text, 60)
        kill(worker)
        assert terminal.to_the_end(60) == 0
        sung = "".join(lines_left(terminal.seen))
    assert sung.startswith(" la lala" * (LONG // 2) + f"{LONG} tokens, "), sung.replace(" la lala" * 10, "*")
    assert PROGRESS in terminal.seen.partition(b"la lala")[2]


def test_a_full_context_is_said_and_nothing_is_left_out(chat: Chatting, cluster: Cli) -> None:
    (cluster.folder / "long.txt").write_text("x" * (1 << 14))
    chat.say("A")
    chat.say("/read long.txt")
    printed = chat.say("A").replace("\n", " ")
    assert re.search(
        r"error: the conversation has \d+ tokens, and the context \d+; /drop removes the oldest turn", printed
    )
    assert "conversation  1 turn" in chat.say("/show")
    chat.say("/clear")
    assert "One. Two. Three." in chat.say("A")


def test_text_typed_during_an_answer_is_the_next_message(chat: Chatting) -> None:
    chat.say("/set max_tokens 300")
    chat.begin("sing L")
    chat.until("la lala")
    chat.begin("say A")
    assert "say A" not in chat.answer()
    assert "One. Two. Three." in chat.answer()


def test_a_root_that_went_away_is_said_and_the_conversation_outlives_it(cluster: Cli) -> None:
    with chatting(cluster, "--temp", "0") as chat:
        chat.say("say A")
        kill(cluster.pid("root"))
        try:
            printed = chat.say("say A").replace("\n", " ")
        finally:
            cluster.run("up")  # the other tests need it
        assert re.match("error: (the root .*went away|nobody answers at ipc://)", printed)
        assert chat.say("say A").startswith("One. Two. Three.\n")
        assert "conversation  2 turns" in chat.say("/show")
        chat.leave()


def test_a_terminated_chat_leaves_the_terminal_as_it_was(cluster: Cli) -> None:
    for in_mid_answer in (False, True):
        with chatting(cluster) as chat:
            if in_mid_answer:
                chat.begin("sing L")
                chat.until("la lala")
            assert not local_modes(chat) & (termios.ECHO | termios.ICANON)
            chat.terminal.process.terminate()
            assert chat.terminal.to_the_end(20) in (-signal.SIGTERM, 128 + signal.SIGTERM)
            assert local_modes(chat) & termios.ECHO
            assert local_modes(chat) & termios.ICANON


def test_the_cluster_of_one_chat_ends_with_its_terminal(cluster: Cli) -> None:
    with clean_cli(cluster.folder, cluster.model) as cli, chatting(cli, "demo", "--temp", "0") as chat:
        printed = chat.say("Once upon a time")
        assert re.match(
            r"Once upon a time, [^[]+\n\[the text has ended: your next message starts a new one\]\n", printed
        )
        assert [node for node in cli.processes() if node.pid != chat.terminal.process.pid]
        chat.terminal.hang_up()
        assert chat.terminal.process.wait(20) == -signal.SIGHUP
