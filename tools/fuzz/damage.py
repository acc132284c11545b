"""Damage the content of files: bytes, header fields, and the values of JSON, YAML and CSV documents."""

from __future__ import annotations

import copy
import csv
import io
import json
import random
import struct
from collections.abc import Callable, Mapping
from typing import Any, Literal

import yaml

Kind = Literal["bytes", "lines", "json", "yaml", "csv"]

_TOKENS = (
    b"[" * 3000,
    b"{" * 3000,
    b"9" * 5000,
    b"-1",
    b"1e999",
    b"NaN",
    b"null",
    b"\x00",
    b"\xff\xff\xff\x7f",
    b'"',
    b"../",
    b"\xff\xfe",
    b"\x1b[2J",
)
_INTEGERS: tuple[int, ...] = (
    0,
    1,
    -1,
    2,
    127,
    128,
    255,
    256,
    32767,
    32768,
    65535,
    65536,
    (1 << 24) + 1,
    (1 << 31) - 1,
    1 << 31,
)
_INTEGERS += ((1 << 32) - 1, 1 << 32, (1 << 63) - 1, (1 << 64) - 1, -(1 << 31), -(1 << 63))
_FLOATS = (0.0, -0.0, 1e-45, 1e-30, 1e30, 1e300, -1.0, float("nan"), float("inf"), float("-inf"))


def _values() -> list[Any]:
    """Return values that replace the expected value in a document."""
    deep: Any = 1
    for _ in range(60):
        deep = [deep]
    numbers = [*_INTEGERS, *_FLOATS, 10**40, 0.5]
    texts = [
        "",
        " ",
        "\x00",
        "\x1b[2J",
        "../../x",
        "/etc/passwd",
        "a" * 5000,
        "nan",
        "-1",
        "1e9",
        "\u202egnp",
        "os:abort",
    ]
    return [*numbers, *texts, None, True, False, [], {}, [None], [[]], {"": None}, {"a": 1}, [0] * 300, deep]


_VALUES = _values()


def damage(content: bytes, kind: Kind, draw: random.Random, *, other: bytes = b"", header: int = 512) -> bytes:
    """Return a damaged copy of the content of a file.

    Args:
        content: Valid content.
        kind: Structure of the format. In three of four cases, the values of a document are changed, otherwise bytes.
        draw: Random generator of all decisions.
        other: Content of another file of the format, parts of which are inserted into this one.
        header: Length of the initial part in which half of the changes are made.
    """
    structured = _STRUCTURED.get(kind)
    if structured is not None and _is_text(content) and draw.random() < 0.75:
        document = structured(content, draw) if content.strip() else content
        if draw.random() < 0.9:
            return document
        content = document
    return _damage_bytes(content, draw, other, header)


def _is_text(content: bytes) -> bool:
    """Return whether a file is a text document; other files of a folder contain tensors or voxels."""
    start = content.lstrip()[:1]
    return b"\0" not in content[:8] and start != b"" and (start.isascii() and content[:512].isascii())


def _damage_bytes(content: bytes, draw: random.Random, other: bytes, header: int) -> bytes:
    """Make one to four changes to bits, bytes and numbers, or remove, duplicate, insert and exchange parts."""
    result = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        reach = min(len(result), header) if draw.random() < 0.5 else len(result)
        place = draw.randrange(reach + 1)
        kind = draw.choice(("bit", "byte", "number", "number", "cut", "remove", "double", "token", "splice", "zero"))
        if kind == "bit" and place < len(result):
            result[place] ^= 1 << draw.randrange(8)
        elif kind == "byte" and place < len(result):
            result[place] = draw.choice((0, 255, 127, 128, draw.randrange(256)))
        elif kind == "number":
            number = _number(draw)
            place -= place % len(number) if draw.random() < 0.7 else 0
            result[place : place + len(number)] = number[: max(0, len(result) - place)]
        elif kind == "cut":
            del result[draw.randrange(len(result) + 1) :]
        elif kind == "remove":
            del result[place : place + draw.randint(1, 64)]
        elif kind == "double":
            result[place:place] = result[place : place + draw.choice((1, 4, 64, 4096))]
        elif kind == "token":
            result[place:place] = draw.choice(_TOKENS)
        elif kind == "splice" and other:
            start = draw.randrange(len(other))
            piece = other[start : start + draw.choice((8, 64, 1024))]
            result[place : place + draw.choice((0, len(piece)))] = piece
        elif kind == "zero":
            length = draw.randint(1, 256)
            result[place : place + length] = bytes(min(length, len(result) - place))
    return bytes(result)


def _number(draw: random.Random) -> bytes:
    order = draw.choice("<>")
    if draw.random() < 0.3:
        kind = draw.choice("fd")
        value = draw.choice(_FLOATS)
        return struct.pack(order + kind, value if kind == "d" or abs(value) < 1e38 or value - value != 0 else 3e38)
    size = draw.choice((1, 2, 2, 4, 4, 8))
    value = draw.choice(_INTEGERS) & ((1 << (8 * size)) - 1)
    return value.to_bytes(size, "little" if order == "<" else "big")


def _damage_lines(content: bytes, draw: random.Random) -> bytes:
    """Damage a text header of lines `key: value` or `key = value`: replace values; remove, duplicate or move lines."""
    head, gap, body = content.partition(b"\n\n")
    if b"ElementDataFile" in content:
        at = content.index(b"\n", content.index(b"ElementDataFile")) + 1
        head, gap, body = content[:at].rstrip(b"\n"), b"\n", content[at:]
    lines = head.split(b"\n")
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(len(lines))
        key, sign, value = lines[at].partition(b"=" if b"=" in lines[at] else b":")
        action = draw.choice(("value", "value", "value", "number", "number", "remove", "double", "move"))
        fields = value.split()
        if action == "number" and fields:
            fields[draw.randrange(len(fields))] = str(draw.choice((*_INTEGERS, *_FLOATS))).encode()
            lines[at] = key + sign + b" " + b" ".join(fields)
        elif action == "value":
            lines[at] = key + sign + b" " + str(draw.choice(_VALUES)).encode("utf-8", "replace")[:4000]
        elif action == "remove" and len(lines) > 1:
            del lines[at]
        elif action == "double":
            lines.insert(at, lines[at])
        else:
            lines.insert(draw.randrange(len(lines)), lines.pop(at))
    return b"\n".join(lines) + gap + body


def _damage_json(content: bytes, draw: random.Random) -> bytes:
    lines = content.decode().splitlines()
    if len(lines) > 1 and all(line[:1] == "{" and line[-1:] == "}" for line in lines):  # JSON lines
        at = draw.randrange(len(lines))
        lines[at] = json.dumps(_change_document(json.loads(lines[at]), draw))
        return ("\n".join(lines) + "\n").encode("utf-8", "surrogatepass")
    return json.dumps(_change_document(json.loads(content), draw)).encode("utf-8", "surrogatepass")


def _damage_yaml(content: bytes, draw: random.Random) -> bytes:
    if draw.random() < 0.2:
        bomb = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
        tags = ("!!python/object/apply:os.abort []\n", "&x [*x]\n", "? [1, 2]\n: 3\n", "!!binary x\n", "2001-99-99\n")
        return draw.choice((b"a0: &a0 [1]\n" + bomb.encode(), *(b"k: " + tag.encode() + content for tag in tags)))
    return yaml.safe_dump(_change_document(yaml.safe_load(content), draw), allow_unicode=True).encode(
        "utf-8", "replace"
    )


def _change_document(document: Any, draw: random.Random) -> Any:
    """Return a document with one to three of its values replaced, removed, duplicated or renamed."""
    document = [document]
    for _ in range(draw.randint(1, 3)):
        places = _places(document)
        holder, key = draw.choice(places)
        action = draw.choice(("value", "value", "value", "remove", "rename", "wrap", "double", "neighbour"))
        if action == "value":
            holder[key] = copy.deepcopy(draw.choice(_VALUES))
        elif action == "wrap":
            holder[key] = draw.choice(([holder[key]], {"x": holder[key]}, str(holder[key])))
        elif action == "neighbour":
            neighbour, name = draw.choice(places)
            holder[key] = json.loads(json.dumps(neighbour[name], default=str))
        elif action == "double" and isinstance(holder, list) and holder is not document:
            holder.insert(key, copy.deepcopy(holder[key]))
        elif holder is not document:
            value = holder.pop(key)
            if action == "rename" and isinstance(holder, dict):
                holder[draw.choice((f"{key}x", "", "a" * 3000, f"../{key}"))] = value
    return document[0]


def _places(document: Any) -> list[tuple[Any, Any]]:
    """Return container and key of every value of a document."""
    keys = document.keys() if isinstance(document, dict) else range(len(document))
    places = [(document, key) for key in keys]
    for holder, key in list(places):
        if isinstance(holder[key], (dict, list)) and len(places) < 2000:
            places += _places(holder[key])
    return places


def _damage_csv(content: bytes, draw: random.Random) -> bytes:
    text = content.decode()
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    rows = list(csv.reader(io.StringIO(text), delimiter=delimiter))
    for _ in range(draw.randint(1, 3)):
        row = draw.choice(rows)
        at = draw.randrange(len(row) + 1)
        action = draw.choice(("value", "value", "value", "remove", "add", "row", "double", "column"))
        if action == "value" and at < len(row):
            row[at] = str(draw.choice(_VALUES))
        elif action == "remove" and at < len(row):
            del row[at]
        elif action == "add":
            row.insert(at, str(draw.choice(_VALUES))[:200])
        elif action == "row" and len(rows) > 1:
            rows.remove(row)
        elif action == "double":
            rows.insert(draw.randrange(len(rows) + 1), list(row))
        elif action == "column":
            first = draw.randrange(max(1, len(rows[0])))
            rows = [each[first:] + each[:first] for each in rows]
    out = io.StringIO()
    csv.writer(out, delimiter=draw.choice((delimiter, delimiter, delimiter, ";")), lineterminator="\n").writerows(rows)
    encoding = draw.choice(("utf-8", "utf-8", "utf-8", "utf-16", "latin-1", "utf-8-sig"))
    return out.getvalue().encode(encoding, "replace")


_STRUCTURED: Mapping[str, Callable[[bytes, random.Random], bytes]] = {
    "lines": _damage_lines,
    "json": _damage_json,
    "yaml": _damage_yaml,
    "csv": _damage_csv,
}
