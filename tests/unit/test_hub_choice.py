"""REPO[:FILE]: which names are accepted, and which files of a repository they mean."""

from __future__ import annotations

import pytest

from dllama_zmq.errors import UsageError
from dllama_zmq.hub.choice import Choice, choose
from dllama_zmq.hub.name import ModelName, checked_revision, is_safe_file_name

GGUFS = ["README.md", "config.json", "m.Q2_K.gguf", "m.Q4_K_M.gguf", "m.Q4_K_S.gguf", "m.Q8_0.gguf", "mmproj-F16.gguf"]
SPLIT = [f"Q8_0/m-Q8_0-{i:05}-of-00003.gguf" for i in (1, 2, 3)]
TENSORS = [
    "README.md",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
]
DUPLICATES = [
    "consolidated.safetensors",
    "onnx/model.onnx",
    "original/consolidated.00.pth",
    "original/params.json",
    "pytorch_model.bin",
    "tf_model.h5",
    "flax_model.msgpack",
    "runs/events.out",
    "adapter_model.safetensors",
]
META = ["consolidated.00.pth", "consolidated.01.pth", "params.json", "tokenizer.model", "LICENSE", "checklist.chk"]


def chosen(names: list[str], file: str | None = None) -> Choice:
    return choose(names, ModelName("org/m", file), "the hub")


def refusal(names: list[str], file: str | None = None) -> str:
    with pytest.raises(UsageError) as error:
        chosen(names, file)
    return str(error.value)


# --- without FILE -------------------------------------------------------------------------------------------------


def test_the_usual_quantization_of_many_is_taken() -> None:
    assert chosen(GGUFS) == Choice(("m.Q4_K_M.gguf",), "m.Q4_K_M.gguf")


def test_the_only_gguf_is_taken_whatever_it_is() -> None:
    assert chosen(["m-iq3_xxs.gguf", "mmproj-m.gguf"]).files == ("m-iq3_xxs.gguf",)


def test_without_the_usual_quantization_the_others_are_listed() -> None:
    names = ["m-BF16.gguf", "m-UD-Q4_K_XL.gguf", *SPLIT]
    says = "the hub has 3 models: Q8_0, BF16, UD-Q4_K_XL; choose one, as org/m:Q8_0"
    assert refusal(names) == says


def test_models_of_the_same_quantization_are_listed_by_name() -> None:
    assert "2 models: a-Q8_0.gguf, b-Q8_0.gguf; choose one, as org/m:a-Q8_0.gguf" in refusal(
        ["a-Q8_0.gguf", "b-Q8_0.gguf"]
    )


def test_safetensors_come_with_configuration_and_tokenizer_and_without_the_same_weights_in_other_formats() -> None:
    assert chosen(sorted(TENSORS + DUPLICATES)) == Choice(
        (
            "config.json",
            "generation_config.json",
            "merges.txt",
            "model.safetensors.index.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "vocab.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
        ),
        "",
    )


def test_a_repository_of_metas_form_is_taken_where_that_is_all_there_is() -> None:
    files = ("params.json", "tokenizer.model", "consolidated.00.pth", "consolidated.01.pth")
    assert chosen(META) == Choice(files, "")
    inside = chosen([f"original/{name}" for name in META])
    assert inside == Choice(tuple(f"original/{name}" for name in files), "original")


def test_a_model_of_distributed_llama_comes_with_its_tokenizer() -> None:
    names = ["README.md", "dllama_model_x_q40.m", "dllama_tokenizer_x.t"]
    files = ("dllama_model_x_q40.m", "dllama_tokenizer_x.t")
    assert chosen(names) == Choice(files, files[0], files[1])
    assert chosen(names, "dllama_model_x_q40.m") == chosen(names)


@pytest.mark.parametrize(
    "names",
    [[], ["README.md", "pytorch_model.bin", "config.json"], ["model.safetensors"], ["consolidated.00.pth"]],
    ids=["empty", "bin", "no config", "no params"],
)
def test_a_repository_without_a_model_is_refused_with_what_it_has(names: list[str]) -> None:
    assert (", ".join(names) or "it is empty") in refusal(names)


# --- with FILE ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "file", ["Q4_K_S", "q4_k_s", "m.Q4_K_S.gguf", "M.q4_k_s.GGUF", "*Q4_K_S*", "m.q4_k_[s].gguf", "?.Q4_K_S.gguf"]
)
def test_a_file_is_named_by_quantization_name_or_glob_in_any_case(file: str) -> None:
    assert chosen(GGUFS, file).files == ("m.Q4_K_S.gguf",)


def test_a_quantization_is_a_whole_word() -> None:
    assert "has no 'Q4_K'; the nearest are" in refusal(GGUFS, "Q4_K")
    assert "has no 'K_M'" in refusal(GGUFS, "K_M")


def test_an_images_projector_is_no_model_of_its_quantization() -> None:
    assert "has no 'F16'" in refusal(GGUFS, "F16")
    assert chosen(GGUFS, "mmproj-F16.gguf").files == ("mmproj-F16.gguf",)


@pytest.mark.parametrize("file", ["Q8_0", SPLIT[0], SPLIT[2], "m-Q8_0-00002-of-00003.gguf", "*00002*"])
def test_a_split_gguf_comes_with_all_parts_and_is_named_by_the_first(file: str) -> None:
    assert chosen([*reversed(SPLIT), "m-BF16.gguf"], file) == Choice(tuple(SPLIT), SPLIT[0])


def test_a_split_gguf_that_lacks_a_part_is_refused() -> None:
    assert f"the hub has no {SPLIT[1]}" in refusal([SPLIT[0], SPLIT[2]], "Q8_0")


@pytest.mark.parametrize("name", ["m-00001-of-00000.gguf", "m-00001-of-99999.gguf"])
def test_a_number_of_parts_that_cannot_be_is_refused(name: str) -> None:
    assert "1 to 10000 parts" in refusal([name])


def test_a_glob_of_several_models_is_refused_with_their_names() -> None:
    says = "the hub has 2 models like '*q4*': Q4_K_M, Q4_K_S; choose one, as org/m:Q4_K_M"
    assert refusal(GGUFS, "*q4*") == says


def test_a_glob_of_other_files_takes_them_all() -> None:
    names = [f"original/{name}" for name in META] + ["config.json"]
    assert chosen(names, "original/*") == Choice(tuple(sorted(names[:-1])), "original")
    assert chosen(names, "*.json") == Choice(("config.json", "original/params.json"), "")


def test_a_wrong_name_is_refused_with_the_nearest() -> None:
    assert "the nearest are m.Q8_0.gguf, " in refusal(GGUFS, "m.Q8_1.gguf")
    assert refusal(GGUFS, "Q4_K_X").endswith("; it has Q2_K, Q4_K_M, Q4_K_S, Q8_0")
    assert "the nearest are tokenizer.json, tokenizer_config.json, " in refusal(TENSORS, "tokeniser.json")


# --- names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("org/m", ModelName("org/m")),
        ("hf:org/m", ModelName("org/m")),
        ("gpt2", ModelName("gpt2")),
        ("org/m-1.1B_x:Q4_K_M", ModelName("org/m-1.1B_x", "Q4_K_M")),
        ("org/m:Q8_0/m-*.gguf", ModelName("org/m", "Q8_0/m-*.gguf")),
    ],
)
def test_a_name_is_read(text: str, name: ModelName) -> None:
    assert ModelName.parse(text) == name
    assert ModelName.parse(str(name)) == name


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "org/m:",
        "a/b/c",
        "/m",
        "org/",
        "../m",
        "org/..",
        "org/a..b",
        "a--b/c",
        "org/m.git",
        "org/m\n",
        "org/m:a\nb",
        "https://huggingface.co/org/m",
        "örg/m",
        "org/" + "m" * 97,
        "org/m:" + "x" * 1025,
    ],
)
def test_texts_that_are_no_names_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"is not the name of a hub's model|has no file after the colon"):
        ModelName.parse(text)


@pytest.mark.parametrize("text", ["main", "refs/pr/1", "v1.0", "0123456789abcdef0123456789abcdef01234567"])
def test_a_revision_is_accepted(text: str) -> None:
    assert checked_revision(text) == text


@pytest.mark.parametrize("text", ["", "..", "a/../b", "/etc", "a//b", "a\n", "-x"])
def test_a_revision_that_leads_out_of_the_cache_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a branch, tag or commit"):
        checked_revision(text)


@pytest.mark.parametrize("name", ["", "/a", "a/../b", "..", "a//b", "a/", "a\\b", "a\nb", "a\0", "x" * 201, 7, None])
def test_a_file_name_that_leads_elsewhere_is_known(name: object) -> None:
    assert not is_safe_file_name(name)
    assert is_safe_file_name("original/consolidated.00.pth")
