"""The zip archive of `torch.save`, memory-mapped: its records' locations. Knows no pickle and no tensor.

`zipfile` reads only the directory, and at most MAX_DIRECTORY_BYTES at a time. Records are stored uncompressed, so they
are mapped.
"""

from __future__ import annotations

import io
import struct
import zipfile

from dllama_zmq.errors import FormatError, UnsupportedModel
from dllama_zmq.formats.mapped import MappedFile
from dllama_zmq.quants import U8

MAX_DIRECTORY_BYTES = 1 << 20
"""About 100 bytes per record; a shard of Llama 3.1 405B has 1,138 records."""
_LOCAL = struct.Struct("<4s22xHH")
_ADVICE = "Copy or download it again."


class Archive:
    """The records of a file of `torch.save`, by name, without their common folder."""

    def __init__(self, pages: MappedFile) -> None:
        """Raises FormatError, or UnsupportedModel for files of PyTorch before 1.6."""
        self.pages = pages
        if pages.view(0, min(4, pages.nbytes)).tobytes() != b"PK\x03\x04":
            raise UnsupportedModel(
                f"{pages.path}: not a zip archive: it is damaged, or of PyTorch before 1.6, which is not supported. "
                "Get the model's safetensors, or save it again with torch.save of a current PyTorch."
            )
        try:
            with _Bounded(pages.path) as file, zipfile.ZipFile(file) as archive:
                infos = archive.infolist()
        # zipfile does not document its errors for a damaged directory; all of these were seen.
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, struct.error, OverflowError) as error:
            raise FormatError(
                f"{pages.path}: the directory at the end of the file is damaged: {str(error)[:200]}. {_ADVICE}"
            ) from error
        self.records: dict[str, tuple[int, int]] = {}
        """Offset and length in bytes of each record."""
        folder = infos[0].filename.partition("/")[0] if infos else ""
        for info in infos:
            head, _, name = info.filename.partition("/")
            if head != folder or not name or name in self.records:
                raise FormatError(
                    f"{pages.path}: record {info.filename[:80]!r} occurs twice, or not in {folder[:80]!r}. {_ADVICE}"
                )
            self.records[name] = self._record(info)
        pages.check_apart((*record, f"record {name}") for name, record in self.records.items())

    def bytes(self, name: str) -> U8:
        """The bytes of a record. Raises FormatError if there is none of that name."""
        return self.pages.view(*self.find(name))

    def find(self, name: str) -> tuple[int, int]:
        """Offset and length in bytes of a record. Raises FormatError if there is none of that name."""
        if name not in self.records:
            raise FormatError(f"{self.pages.path}: the record {name[:80]!r} is missing. {_ADVICE}")
        return self.records[name]

    def _record(self, info: zipfile.ZipInfo) -> tuple[int, int]:
        where = f"{self.pages.path}: record {info.filename[:80]!r}"
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1:
            raise UnsupportedModel(f"{where} is compressed or encrypted, which torch.save never does. {_ADVICE}")
        at = info.header_offset
        if not 0 <= at <= self.pages.nbytes - _LOCAL.size:
            raise FormatError(f"{where} begins at {at}; the file has {self.pages.nbytes} bytes. {_ADVICE}")
        magic, n_name, n_extra = _LOCAL.unpack(self.pages.view(at, _LOCAL.size).tobytes())
        if magic != b"PK\x03\x04":
            raise FormatError(f"{where}: offset {at}: no record begins there. {_ADVICE}")
        at += _LOCAL.size + int(n_name) + int(n_extra)
        if at + info.file_size > self.pages.nbytes:
            raise FormatError(
                f"{where}: {info.file_size} bytes from offset {at}; the file has {self.pages.nbytes}. {_ADVICE}"
            )
        return at, info.file_size


class _Bounded(io.FileIO):
    """A file of which each `read` is limited to MAX_DIRECTORY_BYTES."""

    def read(self, n_bytes: int | None = -1) -> bytes:
        most = MAX_DIRECTORY_BYTES + 1
        data = super().read(most if n_bytes is None or n_bytes < 0 else min(n_bytes, most))
        if len(data) == most:
            raise ValueError(f"more than {MAX_DIRECTORY_BYTES} bytes of directory")
        return data
