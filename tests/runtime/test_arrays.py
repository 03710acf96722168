"""NumPy's files from outside: what they claim is checked before any of it is believed."""

from __future__ import annotations

import io
import resource
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tgm_scale.runtime.outside.arrays import array_of, fields_of


def saved(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


@pytest.mark.parametrize(
    "array",
    [np.arange(6).reshape(2, 3), np.asfortranarray(np.ones((2, 3), "f2")), np.array(7), np.zeros((0, 3)), np.bool_(1)],
    ids=range(5),
)
def test_an_array_is_read_as_numpy_reads_it(array: np.ndarray) -> None:
    found = array_of(saved(array))
    assert found.dtype == array.dtype and found.shape == array.shape and (found == array).all()


WHOLE = saved(np.arange(100))
DAMAGED = {
    "empty": b"",
    "text": b"text" * 100,
    "cut": WHOLE[:-1],
    "longer": WHOLE + b"0",
    "1 TB": WHOLE.replace(b"(100,)", b"(10**11,)"),
    "claims 1 TB": WHOLE.replace(b"(100,), }     ", b"(1000000000,), }"),
    "negative": WHOLE.replace(b"(100,)", b"(-10,)"),
    "no header": WHOLE.replace(b"'descr'", b"'descx'"),
    "nested header": WHOLE[:10] + b"(" * (len(WHOLE) - 10),
    "objects": saved(np.array([{}], dtype=object)),
    "another version": WHOLE[:6] + b"\x09" + WHOLE[7:],
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damage_is_a_value_error(kind: str) -> None:
    with pytest.raises(ValueError):
        array_of(DAMAGED[kind])


def test_no_more_is_unpacked_than_is_allowed(tmp_path: Path) -> None:
    """100 kB that unpack to 100 MB: refused for the price of what is allowed."""
    file = tmp_path / "a.npz"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.npy", "w") as stream:
        for _ in range(100):
            stream.write(bytes(1 << 20))
    assert file.stat().st_size < 200_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"a\.npz: field a: more than 1,000 bytes"):
        fields_of(file, ["a"], 1000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000, "kB"


def test_a_field_that_is_missing_is_named_beside_those_found(tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    np.savez_compressed(file, shape=np.arange(3), other=np.arange(3))
    assert fields_of(file, ["shape"], 100)[0].tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match=r"a\.npz: has no field packed \(found: shape, other\)"):
        fields_of(file, ["shape", "packed"], 100)
    data = file.read_bytes()
    for broken in (b"", data[:50], data[:-30], b"\0" * 100, data.replace(b"PK\x03\x04", b"PK\x03\x05")):
        file.write_bytes(broken)
        with pytest.raises(ValueError, match=r"a\.npz"):
            fields_of(file, ["shape"], 100)


@pytest.mark.parametrize(("kind", "shape"), [("|S0", "(1099511627776,)"), ("|V0", "(3,)"), ("<f4", "(True,)")])
def test_numbers_of_no_bytes_and_sides_of_no_number_are_refused(kind: str, shape: str) -> None:
    header = f"{{'descr':'{kind}','fortran_order':False,'shape':{shape}}}".encode()
    header += b" " * (63 - (10 + len(header)) % 64) + b"\n"
    with pytest.raises(ValueError, match="bytes each"):
        array_of(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(4))


def test_an_archive_that_points_before_its_beginning_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones(3))
    data = bytearray((tmp_path / "a.npz").read_bytes())
    end = data.rindex(b"PK\x05\x06")
    data[end + 16 : end + 20] = (len(data) * 2).to_bytes(4, "little")  # where the directory begins
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.npz: no whole \.npz file"):
        fields_of(tmp_path / "a.npz", ["x"], 1000)
