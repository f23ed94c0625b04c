"""Every format gives the same rows, whole or in pieces; what cannot be read is a bad row, or is said by file."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import feather, parquet

from enginehouse.contract.errors import InvalidInput
from enginehouse.faces.scoring import readers
from enginehouse.faces.scoring.readers import Limits, Wanted
from enginehouse.faces.scoring.sources import listing
from enginehouse.faces.scoring.units import cut

from .foreign_bodies import FOREIGN

ROWS = 103
IDS = [2**53 + at for at in range(ROWS)]
X = np.random.default_rng(3).standard_normal((ROWS, 2, 3)).astype(np.float32)
TABLE = pa.table({"id": IDS, "x": pa.array(X.tolist(), pa.list_(pa.list_(pa.float32())))})
WANTED = [Wanted("id", "as it is", pa.int64()), Wanted("x", "number")]


def as_stream(path: Path) -> None:
    with pa.ipc.new_stream(path, TABLE.schema) as writer:
        writer.write_table(TABLE, max_chunksize=10)


def as_npz(path: Path, save: Callable[..., None] = np.savez, **arrays: Any) -> None:
    save(path, **({"id": np.array(IDS), "x": X} | arrays))


def as_jsonl(path: Path, end: str = "\n") -> None:
    path.write_text("\n\n".join(json.dumps(row) for row in TABLE.to_pylist()) + end)


def as_csv(path: Path) -> None:
    lines = [f'{row["id"]},"a ""b""\n, c","{json.dumps(row["x"])}"' for row in TABLE.to_pylist()]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(["id,text,x", *lines]).encode())


WRITERS: dict[str, Callable[[Path], object]] = {
    "one.parquet": lambda path: parquet.write_table(TABLE, path),
    "groups.parquet": lambda path: parquet.write_table(TABLE, path, row_group_size=7),
    "large.pq": lambda path: parquet.write_table(TABLE, path, row_group_size=60),
    "a.arrow": lambda path: feather.write_feather(TABLE, path, chunksize=10, compression="uncompressed"),
    "b.feather": lambda path: feather.write_feather(TABLE, path, chunksize=50),
    "c.ipc": as_stream,
    "d.npz": as_npz,
    "packed.npz": lambda path: as_npz(path, np.savez_compressed),
    "big.npz": lambda path: as_npz(path, x=X.astype(">f4"), id=np.array(IDS, ">i8")),
    "columns.npz": lambda path: as_npz(path, x=np.asfortranarray(X)),
    "e.jsonl": as_jsonl,
    "f.ndjson": lambda path: as_jsonl(path, ""),
    "g.csv": as_csv,
}


@pytest.mark.parametrize("limit", [1000, 40, 9, 1])
@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_rows_in_pieces_of_any_size(tmp_path: Path, name: str, limit: int) -> None:
    WRITERS[name](tmp_path / name)
    found = listing(str(tmp_path / name))
    units = cut(found.files, Limits(limit), 0)
    assert all(0 < unit.rows <= limit for unit in units)
    assert len({unit.id for unit in units}) == len(units)
    wanted = WANTED if found.format != "csv" else [Wanted("id", "as it is", pa.string()), WANTED[1]]
    ids, values, numbers = [], [], []
    for unit in units:
        rows = readers.of(found.format).read(unit.file, unit.part, wanted)
        assert not rows.bad
        ids += rows.table.column("id").to_pylist()
        values += rows.table.column("x").to_pylist()
        numbers += list(rows.numbers)
    assert [int(each) for each in ids] == IDS
    assert numbers == list(range(ROWS))
    np.testing.assert_array_equal(np.array(values, np.float32), X)
    # The first rows of a part, as a job looks at before it begins.
    unit = units[-1]
    some = readers.of(found.format).read(unit.file, readers.Part(unit.part.first, 1, unit.part.at), wanted)
    assert some.table.num_rows == 1


@pytest.mark.parametrize("name", ["ray.data.arrow_tensor", "ray.data.arrow_tensor_v2"])
def test_tensors_that_ray_data_wrote_have_their_shape(tmp_path: Path, name: str) -> None:
    """As Ray 2.60 writes them: flat lists, and the shape in the field's metadata."""
    kind = pa.large_list(pa.float32()) if name.endswith("2") else pa.list_(pa.float32())
    told = {"ARROW:extension:name": name, "ARROW:extension:metadata": "[2, 3]"}
    column = pa.array([each.reshape(-1) for each in X], kind)
    schema = pa.schema([pa.field("id", pa.int64()), pa.field("x", kind, metadata=told)])
    parquet.write_table(pa.table([pa.array(IDS), column], schema), tmp_path / "in.parquet")
    (file,) = listing(str(tmp_path / "in.parquet")).files
    reader = readers.of("parquet")
    (part,) = reader.parts(file, Limits())
    kind = pa.fixed_shape_tensor(pa.float32(), [2, 3])
    assert reader.look(file).schema.field("x").type == kind
    rows = reader.read(file, part, WANTED)
    np.testing.assert_array_equal(rows.table.column("x").combine_chunks().to_numpy_ndarray(), X)


def test_one_array_is_a_column(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    (file,) = listing(str(tmp_path / "x.npy")).files
    reader = readers.of("npy")
    (part,) = reader.parts(file, Limits())
    rows = reader.read(file, part, [Wanted("array", "number")])
    np.testing.assert_array_equal(np.array(rows.table.column("array").to_pylist()), X)


LINES = {
    '{"id": 1, "x": 1': "undecodable",
    "[1]": "undecodable",
    "\xff": "undecodable",
    '{"id": 2, "x": "1.5"}': "cast",
    '{"id": 3, "x": {"a": 1}}': "cast",
    '{"id": 4, "x": [1]}': "shape",
    '{"id": "five", "x": 1}': "cast",
    '{"id": 1.5, "x": 1}': "cast",
    '{"id": 6, "x": 1e400}': "undecodable",
    '{"id": 6, "x": 100000000000000000000000000}': "cast",
}


@pytest.mark.parametrize("line", LINES)
def test_a_line_that_cannot_be_read_is_one_bad_row(tmp_path: Path, line: str) -> None:
    good = ['{"id": 7, "x": 1}', '{"id": 9223372036854775807, "x": NaN, "more": []}', '{"id": null}']
    path = tmp_path / "in.jsonl"
    path.write_bytes("\n".join([good[0], line, *good[1:]]).encode("latin-1"))
    reader, (file,) = readers.of("jsonl"), listing(str(path)).files
    assert reader.look(file).schema.names[:2] == ["id", "x"]
    (part,) = reader.parts(file, Limits())
    rows = reader.read(file, part, WANTED)
    assert {number: why.kind for number, why in rows.bad.items()} == {1: LINES[line]}
    assert list(rows.numbers) == [0, 2, 3]
    assert rows.table.column("id").to_pylist() == [7, 2**63 - 1, None]
    x = rows.table.column("x").to_pylist()
    assert (x[0], x[2]) == (1, None) and np.isnan(x[1])


@pytest.mark.parametrize("record", ["1,2,3", "1", '"b"c,2', "1,abc", "1,\xff", '1,"2', "1,1e400", "1,1_0", "1,0x1"])
def test_a_record_that_cannot_be_read_is_one_bad_row(tmp_path: Path, record: str) -> None:
    path = tmp_path / "in.csv"
    path.write_bytes("\n".join(["id,x", "007,.5", '"a\nb",1', '5" c,', record]).encode("latin-1"))
    reader, (file,) = readers.of("csv"), listing(str(path)).files
    (part,) = reader.parts(file, Limits())
    rows = reader.read(file, part, [Wanted("id", "as it is", pa.string()), Wanted("x", "number")])
    assert {number: why.kind for number, why in rows.bad.items()} == {3: "undecodable"}
    assert rows.table.to_pydict() == {"id": ["007", "a\nb", '5" c'], "x": [0.5, 1.0, None]}


def test_images_of_a_folder_are_rows_called_by_their_paths(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("2.png", "b/1.jpg"):
        Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not one")
    found = listing(str(tmp_path))
    assert [file.name for file in found.files] == ["2.png", "b/1.jpg"]
    assert found.skipped == ("notes.txt: no format that is read here",)
    units = cut(found.files, Limits(), 0)
    assert [[file.name for file in unit.files] for unit in units] == [["2.png", "b/1.jpg"]]


@pytest.mark.parametrize("kind", ["parquet", "npz", "arrow", "npy"])
def test_what_is_no_such_file_is_called_what_it_is(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"in.{kind}"
    path.write_bytes(FOREIGN["jpeg"][0])
    (file,) = listing(str(path)).files
    with pytest.raises(InvalidInput, match=f"in.{kind}: not readable as .*: it is a JPEG picture"):
        readers.of(kind).look(file)


def test_a_file_that_is_named_alone_is_told_by_how_it_begins(tmp_path: Path) -> None:
    for name, write in {"a": WRITERS["one.parquet"], "b": WRITERS["a.arrow"]}.items():
        write(tmp_path / name)
    stream = io.BytesIO()
    np.savez(stream, x=X)
    (tmp_path / "c").write_bytes(stream.getvalue())
    formats = [listing(str(tmp_path / name)).format for name in "abc"]
    assert formats == ["parquet", "arrow", "npz"]
    (tmp_path / "d").write_text("hello")
    with pytest.raises(InvalidInput, match="name one with --format"):
        listing(str(tmp_path / "d"))
    assert listing(str(tmp_path / "d"), "csv").format == "csv"


def test_folders_and_patterns_say_what_they_leave_out(tmp_path: Path) -> None:
    for name in ("day=1/a.parquet", "day=2/b.parquet", "day=2/_c.parquet", "_SUCCESS", "d.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InvalidInput, match="files of several formats: 1 csv, 2 parquet; name one with --format"):
        listing(str(tmp_path))
    found = listing(str(tmp_path), "parquet")
    assert [file.name for file in found.files] == ["day=1/a.parquet", "day=2/b.parquet"]
    assert [each.partition(":")[0] for each in found.skipped] == ["_SUCCESS", "d.csv", "day=2/_c.parquet"]
    found = listing(f"{tmp_path}/day=*/?.parquet")
    assert [file.name for file in found.files] == ["day=1/a.parquet", "day=2/b.parquet"]
    with pytest.raises(InvalidInput, match="no such file or folder"):
        listing(str(tmp_path / "absent"))
