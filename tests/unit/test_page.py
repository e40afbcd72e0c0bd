"""The web page's files: they load nothing of another host, run no text, and their modules do what they say."""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "dllama_zmq" / "gateway" / "page"
FILES = sorted(PAGE.iterdir())
MODULES = [path for path in FILES if path.suffix == ".js"]
NAMESPACE = "http://www.w3.org/2000/svg"  # the name of SVG; nothing is fetched from there
WORDS = (
    *("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "DOMParser", "createContextualFragment"),
    *("setHTML", "srcdoc", "eval(", "Function(", "javascript:", "cssText", "@import"),
)
"""What makes code, elements or style of text."""


class Elements(HTMLParser):
    """Every element of index.html with its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed((PAGE / "index.html").read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def values(self, name: str) -> list[str]:
        return [value for _, attributes in self.found if (value := attributes.get(name)) is not None]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_file_of_the_page_names_another_host(path: Path) -> None:
    named = set(re.findall(r"\b[a-z]+://[\w.-]+[^\s\"'<>]*", path.read_text())) | set(
        re.findall(r"[\"'(]//[\w.-]+", path.read_text())
    )
    assert named <= {NAMESPACE}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_file_of_the_page_makes_code_or_elements_of_text(path: Path) -> None:
    text = path.read_text()
    assert [word for word in WORDS if word in text] == []
    assert re.findall(r"[^#]\bimport\(|setTimeout\(\s*[\"'`]|setAttribute\(\s*[\"'`](?:style|on)", text) == []


def test_index_html_has_no_script_and_no_style_of_its_own() -> None:
    elements = Elements()
    assert not any(tag == "style" for tag, _ in elements.found)
    assert all("src" in attributes for tag, attributes in elements.found if tag == "script")
    names = {name for _, attributes in elements.found for name in attributes}
    assert [name for name in names if name == "style" or name.startswith("on")] == []
    text = (PAGE / "index.html").read_text()
    assert re.findall(r"<script[^>]*>(?!</script>)", text) == []


def test_every_file_that_the_page_names_is_there() -> None:
    elements = Elements()
    linked = [value for value in elements.values("src") + elements.values("href") if not value.startswith("#")]
    imported = [name for path in MODULES for name in re.findall(r"from \"(.*)\";", path.read_text())]
    assert len(linked) == 4
    assert len(imported) > len(MODULES)
    assert [name for name in linked + imported if not (PAGE / name).is_file()] == []


def test_every_element_that_a_module_asks_for_is_in_index_html_once() -> None:
    ids = Elements().values("id")
    asked = {name for path in MODULES for name in re.findall(r"byId\(\"(.*?)\"\)", path.read_text())}
    assert len(set(ids)) == len(ids)
    assert asked > {"prompt", "nodes"}
    assert asked - set(ids) == set()


def test_every_file_of_the_page_is_installed_with_the_package() -> None:
    project = tomllib.loads((PAGE.parents[2] / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["dllama_zmq"]
    names = [path.relative_to(PAGE.parents[1]).as_posix() for path in FILES]
    assert [name for name in names if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns)] == []


def test_the_modules_do_what_they_say(tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node.js (node) is not installed; it runs tests/page/*.test.js")
    shutil.copytree(PAGE, tmp_path / "page")
    shutil.copytree(Path(__file__).parents[1] / "page", tmp_path / "tests", ignore=shutil.ignore_patterns("*.py"))
    (tmp_path / "package.json").write_text('{"type": "module"}')  # as type="module" says to a browser
    tests = sorted(str(path) for path in (tmp_path / "tests").iterdir())
    ran = subprocess.run([node, "--test", *tests], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert int(re.findall(r"^. pass (\d+)$", ran.stdout, re.MULTILINE)[0]) >= 30, ran.stdout
