"""Reading documents out of files: plain text, JSON lines, JSON arrays, Parquet, each also gzipped."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compress.errors import UserError

TEXT = (".txt", ".md", ".raw")
ROWS = (".jsonl", ".json", ".ndjson")
PARQUET = (".parquet",)
IN_FOLDERS = (".txt", *ROWS, *PARQUET)
"""What counts inside a folder: a README.md beside the data is no data."""


def data_suffix(path: Path) -> str:
    """Suffix of a file in small letters, that under .gz for a gzipped one."""
    return Path(path.name[:-3] if path.suffix.lower() == ".gz" else path.name).suffix.lower()


def data_files(path: Path) -> list[Path]:
    """The file itself, or all data files of a folder and of those below it, sorted by path.

    Raises:
        UserError: nothing there, a folder without data files, or a file of another kind.
    """
    if path.is_dir():
        found = sorted(f for f in path.rglob("*") if f.is_file() and data_suffix(f) in IN_FOLDERS)
        found = [f for f in found if not any(part.startswith(".") for part in f.relative_to(path).parts)]
        if not found:
            raise UserError(
                f"The folder {path} holds no text: none of its files ends in {', '.join(IN_FOLDERS)} (or these + .gz).",
                "Give another folder or file: data.path=FILE_OR_FOLDER.",
            )
        return found
    if not path.exists():
        raise UserError(f"There is no file or folder {path}.", "Give one that exists: data.path=FILE_OR_FOLDER.")
    if data_suffix(path) not in (*TEXT, *ROWS, *PARQUET):
        raise UserError(
            f"{path} is not of a kind that is read ({', '.join((*TEXT, *ROWS, *PARQUET))}, or these + .gz).",
            "Convert it, or rename it to .txt if it is plain text.",
        )
    return [path]


def read_documents(path: Path, field: str) -> list[str]:
    """All documents of a file or folder in order; blank ones are dropped.

    Args:
        path: file or folder.
        field: which field of a row is the text (.txt files have none: a file is a document).

    Raises:
        UserError: the path, a file, a row or the field cannot be read as text, or all of it is blank.
    """
    files = data_files(path)
    documents = [document for file in files for document in _read_file(file, field) if document.strip()]
    if not documents:
        what = f"The {len(files)} text files in {path} are" if path.is_dir() else f"{path} is"
        raise UserError(f"{what} empty.", "Give a file or folder with text in it: data.path=FILE_OR_FOLDER.")
    return documents


def _read_file(file: Path, field: str) -> Iterator[str]:
    content = _read_bytes(file)
    suffix = data_suffix(file)
    if suffix in TEXT:
        yield _decode(content, str(file))
    elif suffix in PARQUET:
        yield from _read_parquet(content, file, field)
    elif suffix == ".json" and content.lstrip()[:1] == b"[":
        yield from _read_json_array(content, file, field)
    else:
        for number, line in enumerate(content.split(b"\n"), start=1):
            if line.strip():
                where = f"{file}, line {number}"
                yield _text_of(_parse(_decode(line, where), where), field, where)


def _read_bytes(file: Path) -> bytes:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}.", "Check its permissions.") from error
    if file.suffix.lower() != ".gz":
        return content
    try:
        return gzip.decompress(content)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(
            f"{file} is not a whole gzip file: {error}.", f"Fetch or make it again ('gzip -t {file}' checks it)."
        ) from error


def _decode(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where} is not UTF-8: byte {error.start} is 0x{content[error.start]:02x}.",
            "Convert it, for instance: iconv -f LATIN1 -t UTF-8 IN > OUT.",
        ) from error


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{where} is not JSON: {error.msg} at column {error.colno}.",
            "Each line of a .jsonl file is one JSON object; mend or remove that line.",
        ) from error


def _read_json_array(content: bytes, file: Path, field: str) -> Iterator[str]:
    try:
        rows = json.loads(_decode(content, str(file)))
    except json.JSONDecodeError as error:
        raise UserError(
            f"{file} is not JSON: {error.msg} at line {error.lineno}.", "Mend it, or write it as .jsonl."
        ) from error
    for number, row in enumerate(rows, start=1):
        yield _text_of(row, field, f"{file}, row {number}")


def _text_of(row: Any, field: str, where: str) -> str:
    if not isinstance(row, dict):
        raise UserError(
            f"{where} is not a JSON object but {type(row).__name__}.",
            f'Each row looks like {{"{field}": "..."}}.',
        )
    if field not in row:
        raise UserError(
            f"{where} has no field {field!r}; its fields are {_names(row)}.",
            "Name the one with the text: data.field=NAME.",
        )
    return checked_text(row[field], field, where)


def checked_text(value: Any, field: str, where: str) -> str:
    """`value` if it is text that can be encoded.

    Raises:
        UserError: it is of another type, or half of a surrogate pair (no tokenizer takes that).
    """
    if not isinstance(value, str):
        raise UserError(
            f"{where}: field {field!r} is not text but {type(value).__name__}.",
            "Name the field with the text: data.field=NAME.",
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: field {field!r} holds half a surrogate pair.", "Mend or remove that row.") from error
    return value


def _read_parquet(content: bytes, file: Path, field: str) -> Iterator[str]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        opened = parquet.ParquetFile(io.BytesIO(content))
        names = opened.schema_arrow.names
        column = opened.read(columns=[field]).column(field).to_pylist() if field in names else None
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file} is not a whole Parquet file: {error}.", "Fetch or make it again.") from error
    if column is None:
        raise UserError(
            f"{file} has no column {field!r}; its columns are {_names(names)}.",
            "Name the one with the text: data.field=NAME.",
        )
    for number, value in enumerate(column, start=1):
        yield checked_text(value, field, f"{file}, row {number}")


def _names(names: Any) -> str:
    return ", ".join(map(str, names)) or "none at all"
