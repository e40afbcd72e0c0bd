"""The files of a cluster: how cluster.yaml is read and refused, and where its model and tokenizer are."""

from __future__ import annotations

from pathlib import Path

import pytest

import dllama_zmq
from dllama_zmq.cluster import (
    MAX_FILE_BYTES,
    ClusterFile,
    load_cluster,
)
from dllama_zmq.errors import ConfigError
from dllama_zmq.sources import absolute_model

PACKAGE_DATA = Path(dllama_zmq.__file__).parent / "data"


def write(folder: Path, text: str) -> ClusterFile:
    """`text` as a cluster file in `folder`, loaded."""
    path = folder / "cluster.yaml"
    path.write_text(text)
    return load_cluster(path)


def test_a_missing_file_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: there is no such file; go to the folder"):
        load_cluster(tmp_path / "none.yaml")


def test_a_folder_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_cluster(tmp_path)


def test_a_file_of_more_than_a_mebibyte_is_refused_unread(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="larger than 1048576 bytes"):
        write(tmp_path, "#" * (MAX_FILE_BYTES + 1))


def test_a_file_that_is_no_utf8_is_refused_at_the_byte(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_bytes(b"model: demo\nname: \xff\n")
    with pytest.raises(ConfigError, match=r"cluster\.yaml:2:7: not UTF-8"):
        load_cluster(path)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b" <!DOCTYPE html>\n<html><body>root: x</body></html>", "a web page"),
        (b"GGUF\x03\0\0\0" + bytes(100), "a GGUF model"),
        (b"\xcd\xab\x00\x0a" + bytes(100), "a .m model"),
        (b"PK\x03\x04" + bytes(100), "a zip archive"),
        (b'{"architectures": ["LlamaForCausalLM"]}', "a JSON file"),
        (b"[1, 2]", "a JSON file"),
        (b"Dear all,\nthis is: a note: with colons\n", "a text file"),
        (b"demo\n", "a text file"),
        (b"# My model\nIt is a *story*.\n\nYou write:\n```yaml\nmodel: demo\n```\n", "a text file"),
        (bytes(range(200)), "a file of binary data"),
    ],
)
def test_a_file_of_another_kind_is_called_what_it_is(tmp_path: Path, data: bytes, kind: str) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=rf"cluster\.yaml is {kind}, not a cluster's file: that is YAML with"):
        load_cluster(path)
    path.write_bytes(data + b" " * MAX_FILE_BYTES)
    with pytest.raises(ConfigError, match=rf"cluster\.yaml is ({kind}|larger than 1048576 bytes), not a cluster's"):
        load_cluster(path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model: [demo\n", r":2:1: not valid YAML"),
        ('{"model": "demo", "sync": 3}', r":1:27: sync: expected "),
        ("services: {}\n", r":1:1: unknown key 'services'"),
        ("# nothing\n", ": the file is empty"),
        ("\ufeffmodel: demo\nname: \u00e9\n", r":2:7: name: expected"),
    ],
)
def test_a_mistake_in_a_clusters_file_is_named_with_its_place(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=rf"cluster\.yaml{says}"):
        write(tmp_path, text)


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_bytes(b"\xef\xbb\xbfmodel: demo\n")
    assert load_cluster(path).cluster.model == "demo"


def test_paths_are_relative_to_the_file_and_the_tokenizer_lies_beside_the_model(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    for name in ("story.m", "story.t"):
        (tmp_path / "models" / name).touch()
    file = write(tmp_path, "model: models/story.m")
    assert file.model_path() == tmp_path / "models" / "story.m"
    assert file.tokenizer_path() == tmp_path / "models" / "story.t"


def test_a_path_is_shown_without_dots_and_the_link_before_them_is_followed(tmp_path: Path) -> None:
    for folder in ("clusters", "models", "far/away"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "blob").touch()
    for model in (tmp_path / "models" / "a.gguf", tmp_path / "far" / "b.gguf"):
        model.symlink_to(tmp_path / "blob")  # as in the cache of a hub: the name is the link's
    (tmp_path / "clusters" / "link").symlink_to(tmp_path / "far" / "away")
    for text, model in (("../models/a.gguf", "models/a.gguf"), ("link/../b.gguf", "far/b.gguf")):
        assert write(tmp_path / "clusters", f"model: {text}").unchecked_model_path() == tmp_path.resolve() / model
        assert absolute_model(str(tmp_path / "clusters" / text)) == str(tmp_path.resolve() / model)


def test_a_tilde_means_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "story.m").touch()
    assert write(tmp_path, "model: ~/story.m").model_path() == tmp_path / "story.m"


def test_the_home_folder_of_nobody_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model: ~no-such-user/story.m: no such home folder"):
        write(tmp_path, "model: ~no-such-user/story.m").model_path()


def test_a_missing_model_is_refused_with_its_path_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=rf"model: there is no {tmp_path}/story\.m; write .* demo for the shipped one"
    ):
        write(tmp_path, "model: story.m").model_path()


def test_a_missing_tokenizer_is_refused_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "story.m").touch()
    with pytest.raises(ConfigError, match=rf"tokenizer: there is no {tmp_path}/story\.t; .*--tokenizer"):
        write(tmp_path, "model: story.m").tokenizer_path()


def test_a_gguf_file_and_a_folder_bring_their_tokenizers_with_them(tmp_path: Path) -> None:
    (tmp_path / "story.gguf").touch()
    (tmp_path / "story").mkdir()
    for name in ("story.gguf", "story"):
        file = write(tmp_path, f"model: {name}")
        assert file.model_path() == file.tokenizer_path() == tmp_path / name


def test_the_tokenizer_of_a_safetensors_file_is_that_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "story").mkdir()
    (tmp_path / "story" / "model.safetensors").touch()
    assert write(tmp_path, "model: story/model.safetensors").tokenizer_path() == tmp_path / "story"


def test_demo_means_the_files_shipped_in_the_package(tmp_path: Path) -> None:
    file = write(tmp_path, "model: demo")
    if not (PACKAGE_DATA / "demo.m").exists():
        pytest.skip("the demo model is not built yet")
    assert file.model_path() == PACKAGE_DATA / "demo.m"
    assert file.tokenizer_path() == PACKAGE_DATA / "demo.t"
