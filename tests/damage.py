"""How files are damaged for the fuzz tests: bits, bytes, and what the bytes mean (JSON values, columns, headers), drawn with hypothesis."""

from __future__ import annotations

import gzip
import io
import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

Draw = Callable[[st.SearchStrategy], Any]

DEEP: Any = []
for _ in range(400):
    DEEP = [DEEP]
VALUES = [
    *(None, True, False, 0, 1, -1, 2, 255, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**30, 0.5, -0.0, 1e308, 5e-324),
    *(float("nan"), float("inf"), "", "0", "../../outside", "/etc/passwd", "a\0b", "\ud800", "\x1b[31m", "[/red]", "con", "é" * 3, "x" * 5000, "." * 3),
    *([], [1], [None], [[]], {}, {"a": 1}, DEEP, "nan", "float64", "int8", "r", list(range(300))),
]
NASTY = [b"\0" * 4, b"\xff" * 4, b"\xff" * 8, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\xc0\x7f", b"\0\0\x80\x7f", struct.pack("<d", float("nan"))]
NASTY += [struct.pack("<Q", n) for n in (1, 2**31, 2**40, 2**63 - 1, 2**63)]


@st.composite
def bytes_changed(draw: Draw, whole: bytes) -> bytes:
    """One to four changes of bytes, more often near the ends, where headers and footers are."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.one_of(st.integers(0, 300), st.integers(-300, -1), st.integers(0, max(0, len(data) - 1)))) % max(1, len(data))
        match draw(st.sampled_from(["flip", "flip", "overwrite", "insert", "delete", "copy", "cut"])):
            case "flip" if data:
                data[place] ^= 1 << draw(st.integers(0, 7))
            case "overwrite":
                value = draw(st.sampled_from(NASTY))
                data[place : place + len(value)] = value
            case "insert":
                data[place:place] = draw(st.binary(min_size=1, max_size=8))
            case "delete":
                del data[place : place + draw(st.integers(1, 64))]
            case "copy":
                start = draw(st.integers(0, max(0, len(data) - 1)))
                data[place:place] = data[start : start + draw(st.integers(1, 64))]
            case "cut":
                del data[place:]
    return bytes(data)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a JSON value."""
    found: list[tuple[Any, Any]] = []
    stack = [value]
    while stack:
        at = stack.pop()
        keys = list(at) if isinstance(at, dict) else range(len(at)) if isinstance(at, list) else ()
        for key in keys:
            found.append((at, key))
            stack.append(at[key])
    return found


@st.composite
def value_changed(draw: Draw, text: bytes) -> Any:
    """A JSON value with one to three places changed, removed, renamed or moved."""
    value = json.loads(text)
    for _ in range(draw(st.integers(1, 3))):
        places = _places(value)
        if not places or draw(st.integers(0, 30)) == 0:
            return draw(st.sampled_from(VALUES))
        # half of the time near the root, where a long list does not crowd out the rest
        few = [place for place in places if isinstance(place[0], dict)] or places
        chosen = few if draw(st.booleans()) else places
        at, key = chosen[draw(st.integers(0, len(chosen) - 1))]
        match draw(st.sampled_from(["set", "set", "set", "set", "remove", "rename", "other"])):
            case "remove":
                del at[key]
            case "rename" if isinstance(at, dict):
                at[draw(st.sampled_from(["", "x", "format", "folder", "model", "../x"]))] = at.pop(key)
            case "other":
                source, name = places[draw(st.integers(0, len(places) - 1))]
                at[key] = json.loads(json.dumps(source[name]))
            case _:
                at[key] = json.loads(json.dumps(draw(st.sampled_from(VALUES))))  # a copy, for it may be changed next
    return value


@st.composite
def json_changed(draw: Draw, whole: bytes) -> bytes:
    match draw(st.integers(0, 20)):
        case 0:
            depth = draw(st.sampled_from([900, 5000, 200_000]))
            return draw(st.sampled_from([b"[", b'{"a":'])) * depth
        case 1:
            return b"1" * 5000
        case 2 | 3 | 4 | 5:
            return draw(bytes_changed(whole))
    return json.dumps(draw(value_changed(whole))).encode()


@st.composite
def lines_changed(draw: Draw, whole: bytes) -> bytes:
    """A .jsonl file: one of its lines."""
    lines = whole.splitlines(keepends=True)
    i = draw(st.integers(0, len(lines) - 1))
    lines[i] = draw(json_changed(lines[i]))
    return b"".join(lines)


@st.composite
def gzip_changed(draw: Draw, whole: bytes) -> bytes:
    if draw(st.booleans()):
        return draw(bytes_changed(whole))
    return gzip.compress(draw(lines_changed(gzip.decompress(whole))), mtime=0)


@st.composite
def safetensors_changed(draw: Draw, whole: bytes) -> bytes:
    """The header of a safetensors file as JSON, the metadata's own JSON, or bytes."""
    kind = draw(st.integers(0, 4))
    if kind == 0:
        return draw(bytes_changed(whole))
    size = int.from_bytes(whole[:8], "little")
    header, data = json.loads(whole[8 : 8 + size]), whole[8 + size :]
    if kind == 4:  # a number of a tensor
        value = draw(st.sampled_from(NASTY))
        place = draw(st.integers(0, max(0, len(data) // 4 - 2))) * 4
        return whole[: 8 + size] + data[:place] + value + data[place + len(value) :]
    meta = header.get("__metadata__", {}).get("meta")
    if kind == 1 and meta is not None:
        header["__metadata__"]["meta"] = draw(json_changed(meta.encode())).decode("utf-8", "replace")
    elif kind == 2:
        tensors = [name for name in header if name != "__metadata__"]
        about = header[draw(st.sampled_from(tensors))]
        change = draw(st.sampled_from(["dtype", "shape", "flat"]))
        if change == "dtype":
            about["dtype"] = draw(st.sampled_from(["F64", "I64", "U8", "BOOL", "F16", "BF16", "F32", "I32", "F8_E4M3", "U64", "C64", "F4"]))
        elif change == "shape":
            about["shape"] = about["shape"][::-1] if draw(st.booleans()) else [1, *about["shape"]]
        else:
            about["shape"] = [int(np.prod(about["shape"], dtype=object))]
    else:
        header = draw(value_changed(json.dumps(header).encode()))
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@st.composite
def npy_changed(draw: Draw, whole: bytes) -> bytes:
    """The header of a .npy file, its version, or bytes."""
    if draw(st.integers(0, 2)) == 0:
        return draw(bytes_changed(whole))
    size = int.from_bytes(whole[8:10], "little")
    header, data = whole[10 : 10 + size].decode("latin1"), whole[10 + size :]
    old, news = draw(
        st.sampled_from(
            [
                ("'<u2'", ["'|O'", "'<i8'", "'<u4'", "'>u2'", "'<f2'", "'<U1'", "'|V2'", "[('a', '<u2')]", "'<u2, <u2'", "None", "'m8[s]'", "1", "'('"]),
                ("False", ["True", "0", "'no'", "None"]),
                ("(", ["(1, ", "(0, ", "(-1, ", "(2**60, ", f"({2**40}, ", f"({10**25}, ", "[", "((", "('a', ", "(True, "]),
                ("{", ["{'x': 1, ", "[", "{{", "(" * 300, ""]),
            ]
        )
    )
    text = header.replace(old, draw(st.sampled_from(news)), 1).encode("latin1")
    version = draw(st.sampled_from([b"\x01\0", b"\x01\0", b"\x02\0", b"\x03\0", b"\x09\0"]))
    return whole[:6] + version + len(text).to_bytes(2 if version[0] == 1 else 4, "little") + text + data


TYPES = [pa.string(), pa.int8(), pa.int64(), pa.float64(), pa.bool_(), pa.binary(), pa.list_(pa.int32()), pa.null(), pa.timestamp("s"), pa.decimal128(5, 2)]
CELLS = ["", "../x", "a/b", "a\0b", "[/x]", "con", -1, 0, 2**31, 2**62, float("nan"), float("inf"), True, b"\xff\xfe", [1], None]


@st.composite
def parquet_changed(draw: Draw, whole: bytes) -> bytes:
    """Columns of a parquet file (type, values, presence), its rows, or bytes."""
    if draw(st.integers(0, 2)) == 0:
        return draw(bytes_changed(whole))
    table = pq.read_table(io.BytesIO(whole))
    i = draw(st.integers(0, table.num_columns - 1))
    name, column = table.column_names[i], table.column(i)
    match draw(st.sampled_from(["type", "type", "cell", "cell", "drop", "rename", "rows", "twice", "metadata"])):
        case "type":
            kind = draw(st.sampled_from(TYPES))
            try:
                new = column.cast(kind)
            except pa.ArrowException:
                new = pa.nulls(len(column), kind)
            table = table.set_column(i, name, new)
        case "cell":
            values, cell = column.to_pylist(), draw(st.sampled_from(CELLS))
            for _ in range(draw(st.integers(1, 3))):
                if values:
                    values[draw(st.integers(0, len(values) - 1))] = cell
            try:
                table = table.set_column(i, name, pa.array(values))
            except (pa.ArrowException, OverflowError):
                table = table.set_column(i, name, pa.array([cell] * len(values)))
        case "drop":
            table = table.remove_column(i)
        case "rename":
            table = table.rename_columns([draw(st.sampled_from(["x", "", "model", "layer"])) if n == i else c for n, c in enumerate(table.column_names)])
        case "rows":
            table = draw(st.sampled_from([table.slice(1), table.slice(0, 0), pa.concat_tables([table, table]), table.take(pa.array(range(len(table))[::-1]))]))
        case "twice":
            table = table.append_column(name, column)
        case "metadata":
            known = (table.schema.metadata or {}).get(b"pandas", b"{}")
            table = table.replace_schema_metadata({"pandas": draw(json_changed(known))})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()
