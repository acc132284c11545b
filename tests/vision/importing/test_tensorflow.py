"""The reader of TensorFlow checkpoints, on files from TensorFlow and on damaged and hostile ones."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from contrastive_core.errors import UserError
from ssl_vision.importing.tensorflow import ObjectGraph, TensorBundle, crc32c, is_bundle, masked_crc32c

FILES = Path(__file__).parent / "tensorflow_files"


@pytest.fixture
def kinds(tmp_path: Path) -> Path:
    shutil.unpack_archive(FILES / "kinds.tar.xz", tmp_path)
    return tmp_path


def bit_by_bit(data: bytes) -> int:
    state = 0xFFFFFFFF
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = state >> 1 ^ (0x82F63B78 if state & 1 else 0)
    return state ^ 0xFFFFFFFF


@given(st.binary(max_size=3000))
def test_checksum_equals_the_definition(data: bytes) -> None:
    assert crc32c(data) == bit_by_bit(data)


def test_checksum_of_long_data_joins_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720, B.4, and every other description
    data = random.Random(0).randbytes(20_000)
    whole = crc32c(data)
    assert whole == bit_by_bit(data)
    monkeypatch.setattr("ssl_vision.importing.tensorflow._BLOCK", 777)
    assert crc32c(data) == whole


def test_every_type_comes_back(kinds: Path) -> None:
    bundle = TensorBundle(kinds / "saver")
    signed = [[-2, -1, 0], [1, 2, 3]]
    for name in ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8"):
        assert torch.equal(bundle.tensor(f"kinds/{name}"), torch.tensor(signed, dtype=getattr(torch, name)))
    assert bundle.tensor("kinds/uint8").tolist() == [[0, 1, 2], [3, 4, 5]]
    assert bundle.tensor("kinds/bool").tolist() == [[False, True, True], [True, True, True]]
    assert bundle.tensor("global_step").item() == 7
    assert bundle.tensor("empty").shape == (0, 3)
    assert [bundle.tensor(f"base_model/conv2d_{i}/kernel").item() for i in range(40)] == list(range(40))


def test_a_checkpoint_may_lie_in_several_files(kinds: Path) -> None:
    bundle = TensorBundle(kinds / "sharded" / "two.data-00001-of-00002")
    assert bundle.tensor("a").tolist() == [1, 2]
    assert bundle.tensor("b").tolist() == [[3], [4]]
    (kinds / "sharded" / "two.data-00001-of-00002").unlink()
    with pytest.raises(UserError, match="data-00001-of-00002 is missing"):
        TensorBundle(kinds / "sharded").tensor("b")


@pytest.mark.parametrize(("name", "what"), [("parts/split", "partitioned"), ("name", "type 7")])
def test_tensors_that_are_no_weights_are_refused(kinds: Path, name: str, what: str) -> None:
    with pytest.raises(UserError, match=what):
        TensorBundle(kinds / "saver").tensor(name)


def test_objects_lead_to_their_tensors(kinds: Path) -> None:
    bundle = TensorBundle(kinds / "object" / "ckpt-1")
    graph = ObjectGraph(bundle)
    root = graph.with_child("model")
    assert root is not None
    assert bundle.tensor(graph.tensor(root, "model", "kernel") or "").tolist() == [[0, 1, 2], [3, 4, 5]]
    assert bundle.tensor(graph.tensor(root, "model", "parts", "1") or "").tolist() == [3]
    assert graph.tensor(root, "model", "bias") is None


@pytest.mark.parametrize("name", ["saver", "saver/model.ckpt-7", "saver/model.ckpt-7.index",
                                  "saver/model.ckpt-7.data-00000-of-00001"])  # fmt: skip
def test_a_checkpoint_may_be_named_by_any_of_its_files(kinds: Path, name: str) -> None:
    assert TensorBundle(kinds / name).tensor("global_step").item() == 7


def test_a_folder_of_several_takes_the_latest_by_name_only(kinds: Path) -> None:
    for file in (kinds / "saver").glob("model.ckpt-7.*"):
        shutil.copy(file, file.with_name(file.name.replace("-7", "-3")))
    assert TensorBundle(kinds / "saver").prefix.name == "model.ckpt-7"
    (kinds / "saver" / "checkpoint").write_text('model_checkpoint_path: "../../elsewhere/model.ckpt-3"\n')
    assert TensorBundle(kinds / "saver").prefix == kinds / "saver" / "model.ckpt-3"
    for content in (None, b"\xff\x00", b'model_checkpoint_path: "' + b"x" * 5000):
        (kinds / "saver" / "checkpoint").unlink(missing_ok=True)
        if content is not None:
            (kinds / "saver" / "checkpoint").write_bytes(content)
        with pytest.raises(UserError, match="holds 2 TensorFlow checkpoints"):
            TensorBundle(kinds / "saver")


def test_what_is_no_checkpoint_is_said_to_be_none(tmp_path: Path) -> None:
    assert not is_bundle(tmp_path / "weights.pt")
    with pytest.raises(UserError, match="holds no TensorFlow checkpoints"):
        TensorBundle(tmp_path)
    with pytest.raises(UserError, match=r"expected a TensorFlow checkpoint, a\.index"):
        TensorBundle(tmp_path / "a")
    (tmp_path / "old.ckpt").write_bytes(bytes(100) + (0xDB4775248B80FB57).to_bytes(8, "little"))
    with pytest.raises(UserError, match="first version"):
        TensorBundle(tmp_path / "old.ckpt")
    for content in (b"", b"text", bytes(100)):
        (tmp_path / "a.index").write_bytes(content)
        with pytest.raises(UserError, match="not a TensorFlow checkpoint"):
            TensorBundle(tmp_path / "a")


def content(prefix: Path) -> dict[str, object]:
    """Return everything that can be read from a checkpoint."""
    bundle = TensorBundle(prefix)
    numbers = [name for name in bundle.entries if name not in ("name", "parts/split", "_CHECKPOINTABLE_OBJECT_GRAPH")]
    read: dict[str, object] = {name: (bundle.tensor(name).dtype, bundle.tensor(name).tolist()) for name in numbers}
    if "_CHECKPOINTABLE_OBJECT_GRAPH" in bundle.entries:
        read["objects"] = ObjectGraph(bundle).nodes
    return read


@pytest.mark.parametrize("prefix", ["saver/model.ckpt-7", "object/ckpt-1"])
def test_no_damaged_byte_goes_unseen(kinds: Path, prefix: str) -> None:
    """A changed byte is an error or changes nothing (padding, unused text), but never gives another number."""
    whole = content(kinds / prefix)
    dice = random.Random(0)
    refused = 0
    for ending, step in ((".index", 11), (".data-00000-of-00001", 7)):
        path = kinds / f"{prefix}{ending}"
        good = path.read_bytes()
        for at in range(0, len(good), step):
            path.write_bytes(good[:at] + bytes([good[at] ^ dice.randrange(1, 256)]) + good[at + 1 :])
            try:
                assert content(kinds / prefix) == whole
            except UserError:
                refused += 1
        path.write_bytes(good[: len(good) // 2])
        with pytest.raises(UserError):
            content(kinds / prefix)
        path.write_bytes(good)
    assert refused > 60


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def block(entries: list[tuple[bytes, bytes]], kind: int = 0) -> bytes:
    body = b"".join(varint(0) + varint(len(k)) + varint(len(v)) + k + v for k, v in entries) + bytes(4)
    body += (1).to_bytes(4, "little")
    return body + bytes([kind]) + masked_crc32c(body + bytes([kind])).to_bytes(4, "little")


def write_index(path: Path, entries: list[tuple[bytes, bytes]], *, kind: int = 0, handle: bytes | None = None) -> None:
    """Write a table with valid checksums and any content."""
    data = block(entries, kind)
    index = block([(b"\xff", handle if handle is not None else varint(0) + varint(len(data) - 5))])
    footer = varint(0) * 2 + varint(len(data)) + varint(len(index) - 5)
    path.write_bytes(data + index + footer.ljust(40, b"\0") + (0xDB4775248B80FB57).to_bytes(8, "little"))


HEADER = (b"", b"\x08\x01")
ENTRY = b"\x08\x01\x12\x04\x12\x02\x08\x02\x28\x08\x35"  # float32 [2], 8 bytes, and a checksum


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([(b"", b"\x08\x00"), (b"w", ENTRY + bytes(4))], "0 data files"),
        ([(b"", b"\x08\xff\xff\xff\xff\x07"), (b"w", ENTRY + bytes(4))], "data files"),
        ([(b"", b"\x08\x01\x10\x01"), (b"w", ENTRY + bytes(4))], "big-endian"),
        ([HEADER, (b"w", ENTRY + bytes(4))], "checksum of w"),
        ([HEADER, (b"w", ENTRY + bytes(3))], "too early"),
        ([HEADER, (b"w", b"\x08\x01\x20\xff\xff\xff\xff\x0f\x28\x08" + ENTRY[2:8])], "is said to take|is stored at"),
        ([HEADER, (b"w", ENTRY[:8] + b"\x20\x80\x80\x80\x80\x80\x20\x28\x08")], "truncated"),
        ([HEADER, (b"w", b"\x08\x01\x12\x0e\x12\x0c\x08" + b"\xff" * 9 + b"\x01" + b"\x28\x08")], "damaged"),
        ([HEADER, (b"w", b"\x08\x01\x12\x08\x12\x06\x08\x80\x80\x80\x80\x40\x28\x08")], "is said to take"),
        ([HEADER, (b"w", b"\x08\x01\x12\x0b\x12\x09\x08\x80\x80\x80\x80\x80\x80\x80\x40")], "an impossible shape"),
        ([HEADER, (b"w", b"\x08\x01\x12\x24" + b"\x12\x02\x08\x01" * 9 + b"\x28\x04")], "an impossible shape"),
        ([HEADER, (b"w\x1b[2J", ENTRY + bytes(4))], "control characters"),
        ([HEADER, (b"w", b"\x0b")], "unknown kind"),
        ([HEADER, (b"w", b"\x12\xff\xff\xff\x7f")], "too early"),
        ([HEADER, (b"w", ENTRY[:8] + b"\x18\x07\x28\x08")], "is missing"),
        ([HEADER, (b"w", b"\x08" + b"\x80" * 11)], "64 bits"),
        ([(b"z", b""), (b"b", b"")], "not in order"),
        ([HEADER, (b"\xff\xfe", b"")], "UTF-8"),
    ],
)
def test_hostile_files_with_good_checksums_are_refused(
    tmp_path: Path, entries: list[tuple[bytes, bytes]], message: str
) -> None:
    write_index(tmp_path / "a.index", entries)
    (tmp_path / "a.data-00000-of-00001").write_bytes(bytes(8))
    with pytest.raises(UserError, match=message):
        TensorBundle(tmp_path / "a").tensor("w")


@pytest.mark.parametrize(
    ("kind", "handle", "message"),
    [(1, None, "compressed"), (0, varint(1 << 40) + varint(9), "outside itself"), (0, b"\x80", "inside a number")],
)
def test_hostile_blocks_are_refused(tmp_path: Path, kind: int, handle: bytes | None, message: str) -> None:
    write_index(tmp_path / "a.index", [HEADER, (b"w", ENTRY + bytes(4))], kind=kind, handle=handle)
    with pytest.raises(UserError, match=message):
        TensorBundle(tmp_path / "a")


def test_the_writer_of_these_tests_writes_what_can_be_read(tmp_path: Path) -> None:
    data = torch.tensor([1.5, -2.0])
    raw = data.numpy().tobytes()
    write_index(tmp_path / "a.index", [HEADER, (b"w", ENTRY + masked_crc32c(raw).to_bytes(4, "little"))])
    (tmp_path / "a.data-00000-of-00001").write_bytes(raw)
    assert torch.equal(TensorBundle(tmp_path / "a").tensor("w"), data)
