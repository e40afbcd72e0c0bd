"""The Markdown files: what they refer to exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "dllama_zmq"
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(path for top in ("dllama_zmq", "tests", "tools") for path in ROOT.glob(f"{top}/**/*.md"))]
)


def without_code(document: Path) -> str:
    return re.sub(r"^```.*?^```", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(document: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", without_code(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def is_dead(document: Path, link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = document.parent / path if path else document
    return not target.exists() or bool(anchor and target.suffix == ".md" and anchor not in anchors(target))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_link_to_a_file_or_a_heading_leads_there(document: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", without_code(document))
    local = [link for link in links if not re.match(r"\w+:", link)]
    assert [link for link in local if is_dead(document, link)] == []


def test_every_module_and_folder_that_the_map_names_is_in_the_package() -> None:
    names = re.findall(r"`([\w/]+(?:\.py|/))`", (PACKAGE / "ARCHITECTURE.md").read_text())
    assert len(names) > 40
    folders = [PACKAGE, PACKAGE / "kernels", PACKAGE / "gateway"]
    assert [name for name in names if not any((folder / name).exists() for folder in folders)] == []


def test_every_folder_of_the_package_is_on_the_map() -> None:
    page = (PACKAGE / "ARCHITECTURE.md").read_text()
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert sorted(folder for folder in folders if f"`{folder}/`" not in page) == []
