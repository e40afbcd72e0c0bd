"""An answer's text is split into thinking, content and tool calls, however it is cut into pieces."""

from __future__ import annotations

import pytest
from deltas import joined, parsed
from hypothesis import given
from hypothesis import strategies as st

from dllama_zmq.chat import AnswerParser

ENDS = {
    "plain": "<|im_start|>assistant\n",
    "opened": "<|im_start|>assistant\n<think>\n",
    "opened and closed": "<|im_start|>assistant\n<think>\n\n</think>\n\n",
}


@pytest.mark.parametrize("text", ["", " Hello\n", "a < b", "\n\n", "<thin", "see <think>", "</think>"])
def test_a_plain_answer_is_content_to_the_last_character(text):
    assert parsed(text) == ({"content": text} if text else {})


@pytest.mark.parametrize(
    ("end", "text", "reasoning", "content"),
    [
        ("plain", "<think>\nHm.\n</think>\n\nYes.", "Hm.", "Yes."),
        ("plain", "\n<think>Hm. </think>Yes.\n", "Hm.", "Yes.\n"),
        ("plain", "<think>\n\n</think>\n\nYes.", "", "Yes."),
        ("plain", "<think>\nHm, </thin", "Hm, </thin", ""),
        ("opened", "Hm.\n</think>\n\nYes. </think>", "Hm.", "Yes. </think>"),
        ("opened", "\nHm.\n\nStill", "Hm.\n\nStill", ""),
        ("opened and closed", "Yes.", "", "Yes."),
        ("opened and closed", "<think>Hm.</think>Yes.", "Hm.", "Yes."),
    ],
)
def test_thinking_is_separated_from_content(end, text, reasoning, content):
    expected = {"reasoning": reasoning, "content": content}
    assert parsed(text, prompt_end=ENDS[end]) == {key: value for key, value in expected.items() if value}


@pytest.mark.parametrize(
    "prompt_end",
    [
        "what is <think>?<|im_end|>\n<|im_start|>assistant\n",
        "[INST] what is <think>? [/INST]",
        "what is <think>?<end_of_turn>\n<start_of_turn>model\n",
        "what is <think>?<｜Assistant｜>",
    ],
)
def test_a_question_about_the_mark_opens_no_thinking(prompt_end):
    assert parsed("It is a mark.</think>", prompt_end=prompt_end) == {"content": "It is a mark.</think>"}


def test_a_continued_answer_continues_its_thinking():
    end = "<|im_start|>assistant\n<think>\nThe user wants"
    assert parsed(" a story.</think>Once", prompt_end=end) == {"reasoning": "a story.", "content": "Once"}


def test_mistral_s_marks_of_thinking_are_those_of_its_template():
    template = "{{ '[THINK]' + thinking + '[/THINK]' }}"
    assert parsed("[THINK]Hm.[/THINK]Yes.", template) == {"reasoning": "Hm.", "content": "Yes."}
    assert parsed("[THINK]Hm.[/THINK]Yes.") == {"content": "[THINK]Hm.[/THINK]Yes."}


def test_text_streams_as_it_comes():
    parser = AnswerParser("", ENDS["opened"], None)
    assert joined(parser.push("Let me")) == {"reasoning": "Let me"}
    assert joined(parser.push(" see </th")) == {"reasoning": " see"}
    assert joined(parser.push("is</think>\n\n")) == {"reasoning": " </this"}
    assert joined(parser.push("Ye")) == {"content": "Ye"}
    assert joined(parser.push("s")) == {"content": "s"}
    assert parser.finish() == []
    assert not parser.has_calls


@given(
    st.lists(st.sampled_from(["<think>", "</think>", "<", "</", "\n", " ", "a", "think>", "</thi"]), max_size=12),
    st.lists(st.integers(0, 60), max_size=6),
    st.sampled_from(list(ENDS.values())),
)
def test_where_a_text_is_cut_makes_no_difference(parts, cuts, end):
    text = "".join(parts)
    assert parsed(text, prompt_end=end, cuts=cuts) == parsed(text, prompt_end=end)
