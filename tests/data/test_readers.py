"""Every file format gives the same documents, and every broken file one message that says where and what to do."""

from __future__ import annotations

import gzip
import json

import pyarrow as pa
import pytest
from pyarrow import parquet

from compress.data.readers import read_documents
from compress.errors import UserError

DOCUMENTS = ["First document.\n\nIts second paragraph.", "Zweites Dokument: äöü €\u2028line", "three"]


def write(path, documents=DOCUMENTS, field="text"):
    """One file in the format its name tells, made without the code under test."""
    name = path.name.removesuffix(".gz")
    plain = path.with_name(name)
    rows = [{"id": i, field: document} for i, document in enumerate(documents)]
    if name.endswith(".parquet"):
        parquet.write_table(pa.Table.from_pylist(rows), plain)
    elif name.endswith(".array.json"):
        plain.write_text(json.dumps(rows), encoding="utf-8")
    elif name.endswith((".jsonl", ".json")):
        plain.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    else:
        plain.write_bytes(documents[0].encode())
    if path.name.endswith(".gz"):
        path.write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
    return path


@pytest.mark.parametrize("zipped", ["", ".gz"])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".array.json", ".parquet"])
def test_rows_of_every_format_are_documents(tmp_path, suffix, zipped):
    path = write(tmp_path / f"a{suffix}{zipped}", field="body")
    assert read_documents(path, "body") == DOCUMENTS


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "A.TXT", "wiki.valid.raw", "a.md"])
def test_a_text_file_is_one_document(tmp_path, name):
    assert read_documents(write(tmp_path / name), "text") == DOCUMENTS[:1]


def test_carriage_returns_stay_and_a_byte_order_mark_goes(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    assert read_documents(tmp_path / "a.txt", "text") == ["one\r\ntwo\r\n"]


def test_a_folder_is_read_in_sorted_order_with_what_is_below_it(tmp_path):
    (tmp_path / "sub").mkdir()
    write(tmp_path / "z.txt", ["last"])
    write(tmp_path / "sub" / "b.jsonl.gz", ["second", " \n", "third"])
    write(tmp_path / "a.parquet", ["first"])
    write(tmp_path / "README.md", ["no data"])
    write(tmp_path / ".hidden.txt", ["no data"])
    assert read_documents(tmp_path, "text") == ["first", "second", "third", "last"]


def broken(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    return tmp_path / name


CASES = {
    "json line": ("a.jsonl", b'{"text": "a"}\n\n{"text": \n', "text", ["a.jsonl, line 3", "not JSON", "column"]),
    "row no object": ("a.jsonl", b'["a"]\n', "text", ["line 1", "list", '{"text": "..."}']),
    "field missing": ("a.jsonl", b'{"body": "a", "id": 1}\n', "text", ["line 1", "'text'", "body, id", "data.field="]),
    "field no text": ("a.jsonl", b'{"text": "a"}\n{"text": 5}\n', "text", ["line 2", "int", "data.field="]),
    "null": ("a.jsonl", b'{"text": null}\n', "text", ["line 1", "NoneType"]),
    "surrogate": ("a.jsonl", b'{"text": "\\ud800"}\n', "text", ["line 1", "surrogate"]),
    "array": ("a.json", b'[{"text": "a"},\n {"text": ]', "text", ["a.json", "line 2"]),
    "array field": ("a.json", b'[{"text": "a"}, {"x": "a"}]', "text", ["row 2", "fields are x"]),
    "no utf-8": ("a.txt", b"caf\xe9", "text", ["a.txt", "not UTF-8", "byte 3", "0xe9", "iconv"]),
    "no utf-8 line": ("a.jsonl", b'{"text": "a"}\n{"text": "\xe9"}\n', "text", ["line 2", "not UTF-8"]),
    "gzip": ("a.txt.gz", b"plain text", "text", ["a.txt.gz", "gzip"]),
    "gzip cut": ("a.txt.gz", gzip.compress(b"x" * 9999)[:-9], "text", ["a.txt.gz", "gzip"]),
    "gzip damaged": ("a.txt.gz", gzip.compress(bytes(range(256)) * 9)[:60] + b"\0" * 99, "text", ["a.txt.gz", "gzip"]),
    "parquet": ("a.parquet", b"PAR1 no parquet PAR1", "text", ["a.parquet", "Parquet"]),
    "empty": ("a.txt", b"", "text", ["a.txt", "empty", "data.path="]),
    "blank": ("a.jsonl", b'{"text": " \\n"}\n', "text", ["a.jsonl", "empty"]),
    "format": ("a.pdf", b"%PDF", "text", ["a.pdf", ".parquet", ".jsonl", "Convert"]),
}


@pytest.mark.parametrize("case", CASES)
def test_broken_files_are_refused_in_words(tmp_path, case):
    name, content, field, expected = CASES[case]
    path = broken(tmp_path, name, content)
    with pytest.raises(UserError) as caught:
        read_documents(path, field)
    assert all(part in str(caught.value) for part in expected), str(caught.value)
    assert caught.value.hint


def test_parquet_without_the_column_lists_those_it_has(tmp_path):
    path = write(tmp_path / "a.parquet", field="body")
    with pytest.raises(UserError, match="no column 'text'; its columns are id, body"):
        read_documents(path, "text")


def test_missing_path_and_folder_without_text(tmp_path):
    with pytest.raises(UserError, match=r"no file or folder .*nowhere"):
        read_documents(tmp_path / "nowhere", "text")
    (tmp_path / "a.csv").write_text("a,b")
    with pytest.raises(UserError, match="holds no text"):
        read_documents(tmp_path, "text")
    (tmp_path / "a.txt").write_text("\n")
    with pytest.raises(UserError, match=r"1 text files in .* empty"):
        read_documents(tmp_path, "text")
