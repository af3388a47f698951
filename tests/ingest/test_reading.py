"""Every format is read, and a bad line affects no other line."""

from __future__ import annotations

import gzip
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from afterclick.errors import BadDataset, BadInput
from afterclick.events import Interaction
from ingest.formats import Detected, Format, ReadOptions, detect
from ingest.items import read_items
from ingest.reading import _csv_fast, _csv_slow, read_interactions
from ingest.rows import ReadReport
from tests.ingest.conftest import json_lines, ratings_csv, read

NAMED = "user_id,item_id,timestamp,rating\n"


def named(folder: Path, *lines: str, header: str = NAMED) -> Path:
    path = folder / "reviews.csv"
    path.write_bytes(
        (header + "".join(f"{line}\n" for line in lines)).encode("utf-8", "surrogateescape")
    )
    return path


def test_official_ratings_have_no_header(tmp_path: Path) -> None:
    path = ratings_csv(tmp_path, 100)
    rows, report = read(path)
    assert detect(path).format is Format.RATINGS_CSV
    assert (report.good, report.bad) == (100, 0)
    assert rows[0]["item_id"] == "B000"
    assert rows[0]["rating"] in (1.0, 2.0, 3.0, 4.0, 5.0)
    assert 1_300_000_000_000 <= rows[0]["time_ms"] < 1_310_000_000_000


@pytest.mark.parametrize("name", ["reviews_Toys.json", "reviews_Toys.json.gz"])
def test_2014_reviews_include_their_text(tmp_path: Path, name: str) -> None:
    line = {
        "reviewerID": "A1",
        "asin": "B1",
        "overall": 4.0,
        "unixReviewTime": 1252800000,
        "reviewText": "fine\n\x00",
    }
    path = json_lines(tmp_path / name, [line])
    assert detect(path).format is Format.REVIEWS_2014
    rows, _ = read(path)
    assert rows == [
        {
            "user_id": "A1",
            "item_id": "B1",
            "time_ms": 1252800000000,
            "rating": 4.0,
            "text": "fine\n\x00",
            "action": None,
        }
    ]


def test_2023_reviews_have_millisecond_times_and_parent_ids(tmp_path: Path) -> None:
    line = {
        "user_id": "A1",
        "asin": "B2",
        "parent_asin": "B1",
        "rating": 5.0,
        "timestamp": 1588687728923,
        "text": "x",
    }
    path = json_lines(tmp_path / "Toys.jsonl", [line])
    assert detect(path).format is Format.REVIEWS_2023
    rows, _ = read(path)
    assert (rows[0]["item_id"], rows[0]["time_ms"]) == ("B1", 1588687728923)


def test_named_columns_in_any_order_with_unknown_ones(tmp_path: Path) -> None:
    path = named(
        tmp_path,
        "x,4,1300000000,i1,u1",
        "y,,1300000000123,i2,u2",
        header="colour,stars,event_time,product_id,customer_id\n",
    )
    rows, report = read(path)
    assert report.bad == 0
    assert [(r["user_id"], r["item_id"], r["time_ms"], r["rating"]) for r in rows] == [
        ("u1", "i1", 1300000000000, 4.0),
        ("u2", "i2", 1300000000123, None),
    ]


def test_iso_times_without_a_zone_are_utc(tmp_path: Path) -> None:
    path = named(
        tmp_path, "u,i,2014-06-01T00:00:00,5", "u,i,2014-06-01T02:00:00+02:00,5", "u,i,2014-06-01,5"
    )
    rows, _ = read(path)
    assert {r["time_ms"] for r in rows} == {1401580800000}


def test_an_action_column_is_read_and_validated(tmp_path: Path) -> None:
    path = named(
        tmp_path, "u,i,1,click", "u,i,1,", "u,i,1,stare", header="user,item,timestamp,action\n"
    )
    rows, report = read(path)
    assert [r["action"] for r in rows] == ["click", None]
    assert report.samples[0].why.startswith("action:")


def test_quoted_fields_may_contain_commas_quotes_and_line_ends(tmp_path: Path) -> None:
    header = "user_id,item_id,timestamp,text\n"
    path = named(
        tmp_path, "u1,i1,1,plain", 'u2,i2,2,"a, ""b""', "", 'c"', "u3,i3,3,after", header=header
    )
    for block in (7, 1 << 20):
        rows, report = read(path, block)
        assert [r["text"] for r in rows] == ["plain", 'a, "b"\n\nc', "after"]
        assert report.bad == 0


def test_an_unclosed_quote_costs_one_line(tmp_path: Path) -> None:
    good = [f"u{n},i,{n},5" for n in range(1000)]
    path = named(tmp_path, *good[:10], 'u,"i,1,5', *good[10:])
    rows, report = read(path, 64)
    assert [r["user_id"] for r in rows] == [line.split(",")[0] for line in good]
    assert [(s.line, report.bad) for s in report.samples] == [(12, 1)]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1401580800], pa.int64()),
        pa.array([datetime(2014, 6, 1)]),
        pa.array(["2014-06-01"]),
    ],
)
def test_parquet_times_may_have_any_type(tmp_path: Path, column: pa.Array) -> None:
    table = pa.table(
        {"user": ["u"], "asin": ["i"], "time": column, "rating": pa.array([4], pa.int32())}
    )
    pq.write_table(table, tmp_path / "r.parquet")
    rows, _ = read(tmp_path / "r.parquet")
    assert (rows[0]["time_ms"], rows[0]["rating"]) == (1401580800000, 4.0)


def test_a_bad_parquet_row_is_reported_by_its_number(tmp_path: Path) -> None:
    users = ["u", None, "a\x00b", "x" * 129, "u"]
    pq.write_table(
        pa.table({"user": users, "item": ["i"] * 5, "time": [1] * 5}), tmp_path / "r.parquet"
    )
    rows, report = read(tmp_path / "r.parquet")
    assert len(rows) == 2
    assert [s.line for s in report.samples] == [2, 3, 4]


HOSTILE = [
    ("u,i,1300000000", "fields"),
    ("u,i,1300000000,5,6", "fields"),
    (",i,1300000000,5", "user"),
    ("u,,1300000000,5", "item"),
    ("u,i,,5", "timestamp"),
    ("u,i,soon,5", "timestamp"),
    ("u,i,nan,5", "timestamp"),
    ("u,i,Infinity,5", "timestamp"),
    ("u,i,-1,5", "timestamp"),
    ("u,i,1e300,5", "timestamp"),
    ("u,i,99999999999999999999,5", "timestamp"),
    ("u,i,1_000,5", "timestamp"),
    ("u,i,1300000000,NaN", "rating"),
    ("u,i,1300000000,inf", "rating"),
    ("u,i,1300000000,-0.1", "rating"),
    ("u,i,1300000000,6", "rating"),
    ("u,i,1300000000,five", "rating"),
    ("u\x00,i,1300000000,5", "user"),
    ("u\t,i,1300000000,5", "user"),
    ("u,i\x7f,1300000000,5", "item"),
    ("u\udcff,i,1300000000,5", "user"),
    ("x" * 129 + ",i,1300000000,5", "user"),
    ("\x00" * 50, "fields"),
    ("[" * 50_000, "fields"),
]


def test_hostile_lines_are_reported_with_number_and_reason(tmp_path: Path) -> None:
    lines = [line for bad, _ in HOSTILE for line in ("u,i,1300000000,5", bad)]
    rows, report = read(named(tmp_path, *lines), 1 << 20)
    assert len(rows) == len(HOSTILE)
    assert report.bad == len(HOSTILE)
    for place, sample in enumerate(report.samples):
        assert sample.line == 3 + 2 * place
        assert HOSTILE[place][1] in sample.why
        assert sample.excerpt.isprintable()


HOSTILE_JSON = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"[" * 100_000,
    b'{"reviewerID": "a", "asin": "b", "overall": NaN, "unixReviewTime": 1}',
    b'{"reviewerID": "a", "asin": "b", "overall": 1e999, "unixReviewTime": 1}',
    b'{"reviewerID": "\\ud800", "asin": "b", "overall": 5, "unixReviewTime": 1}',
    b'{"reviewerID": "\xff", "asin": "b", "overall": 5, "unixReviewTime": 1}',
    b'{"reviewerID": "a\\u0000", "asin": "b", "overall": 5, "unixReviewTime": 1}',
    b'{"reviewerID": null, "asin": "b", "overall": 5, "unixReviewTime": 1}',
    b'{"reviewerID": true, "asin": "b", "overall": 5, "unixReviewTime": 1}',
    b'{"reviewerID": "a", "asin": ["b"], "overall": 5, "unixReviewTime": 1}',
    b'{"reviewerID": "a", "asin": "b", "overall": {}, "unixReviewTime": 1}',
    b'{"reviewerID": "a", "asin": "b", "overall": 5, "unixReviewTime": "x"}',
    b'{"reviewerID": "a", "asin": "b", "overall": 5}',
    b'{"reviewerID": "a", "asin": "b", "overall": 5, "unixReviewTime": 1, "reviewText": 7}',
]


def test_hostile_json_lines_do_not_stop_the_read(tmp_path: Path) -> None:
    good = b'{"reviewerID": "a", "asin": "b", "overall": 5, "unixReviewTime": 1}'
    path = tmp_path / "reviews.json"
    path.write_bytes(b"\n".join([good, *(part for bad in HOSTILE_JSON for part in (bad, good))]))
    rows, report = read(path, 300)
    assert len(rows) == len(HOSTILE_JSON) + 1
    assert report.bad == len(HOSTILE_JSON) - 1  # a blank line is skipped
    assert report.samples[0].line == 4


def test_a_text_over_the_limit_is_truncated(tmp_path: Path) -> None:
    line = {
        "reviewerID": "A",
        "asin": "B",
        "overall": 4,
        "unixReviewTime": 1,
        "reviewText": "é" * 40_000,
    }
    rows, _ = read(json_lines(tmp_path / "r.json", [line]))
    assert len(rows[0]["text"]) == 32_768


def test_windows_line_ends_byte_order_marks_and_no_last_newline(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_bytes(b"\xef\xbb\xbfuser_id,item_id,timestamp\r\nu1,i1,1\r\n\r\nu2,i2,2")
    rows, report = read(path, 10)
    assert [r["user_id"] for r in rows] == ["u1", "u2"]
    assert report.bad == 0


def test_a_file_without_line_ends_is_one_bad_line(tmp_path: Path) -> None:
    path = named(tmp_path, "u,i,1,5", "x" * 1_000_000)
    _, report = read(path, 4096)
    assert (report.good, report.bad) == (1, 1)


def test_a_truncated_gzip_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "r.csv.gz"
    content = NAMED + "".join(f"u{n},i{n * 7919 % 997},{n},5\n" for n in range(50_000))
    path.write_bytes(gzip.compress(content.encode())[:-1000])
    with pytest.raises(BadDataset, match="truncated"):
        read(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello\nworld\n",
        b'{"a": 1}\n',
        b"a,b,c\n1,2,3\n",
        b"\x00\x01\x02" * 99,
        b"\x1f\x8bnot gzip",
    ],
)
def test_a_file_in_no_known_format_is_rejected(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "what.csv"
    path.write_bytes(content)
    with pytest.raises(BadDataset, match=r"what\.csv"):
        detect(path)


FIELDS = st.one_of(
    st.sampled_from(
        [
            "u1",
            "",
            "NA",
            "null",
            "nan",
            "inf",
            "-0",
            "5",
            "5.0",
            "05",
            "1e0",
            " 5",
            "+4",
            "0x5",
            "1_0",
            "٣",
        ]
    ),
    st.sampled_from(
        ["1300000000", "1300000000123", "-5", "1e9", "1300000000.5", "2014-06-01", "9" * 30]
    ),
    st.text(max_size=5),
)
LINES = st.lists(st.lists(FIELDS, min_size=3, max_size=5).map(",".join), max_size=8)


@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@example(["u1,u1,0x5,"], False)
@example(["0x1, 0x2, 0X5,"], True)
@given(LINES, st.booleans())
def test_the_fast_and_the_slow_reader_agree(lines: list[str], named_columns: bool) -> None:
    places = {"user_id": 0, "item_id": 1, "time": 2, "rating": 3}
    form = Format.NAMED_CSV if named_columns else Format.RATINGS_CSV
    found = Detected(form, places, ("user_id", "item_id", "timestamp", "rating"))
    raw = "\n".join(lines).encode("utf-8", "surrogatepass")
    fast = _csv_fast(raw, found)
    if fast is not None:
        report = ReadReport()
        slow = [r for b in _csv_slow(iter([(1, raw)]), found, report, False) for r in b.to_pylist()]
        assert fast.to_pylist() == slow
        assert report.bad == 0


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.integers(1, 50))
def test_any_bytes_are_read_as_valid_events_and_bad_lines(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, block: int
) -> None:
    path = tmp_path_factory.mktemp("any") / "r.csv"
    path.write_bytes(NAMED.encode() + content)
    report = ReadReport()
    for batch in read_interactions(path, report, block_bytes=block):
        for row in batch.to_pylist():
            fields = {k: row[k] for k in ("user_id", "item_id", "rating", "text")}
            Interaction(action="review", **fields)
    assert report.rows == report.good + report.bad
    if b'"' not in content:
        assert report.rows == sum(bool(line.strip()) for line in content.split(b"\n"))


@pytest.mark.dataset
def test_the_real_data_is_read_completely(dataset: Path) -> None:
    rows, report = 0, ReadReport()
    for batch in read_interactions(dataset / "reviews.csv.gz", report):
        rows += len(batch)
    assert (rows, report.bad) == (712_928, 0)


def test_the_unit_of_times_is_detected_by_magnitude(tmp_path: Path) -> None:
    rows, _ = read(
        named(
            tmp_path,
            *(f"u,i,{1_300_000_000 * unit},5" for unit in (1, 10**3, 10**6, 10**9)),
        )
    )
    assert {r["time_ms"] for r in rows} == {
        int(datetime(2011, 3, 13, 7, 6, 40, tzinfo=UTC).timestamp() * 1000)
    }


def test_parent_ids_are_preferred_in_every_container(tmp_path: Path) -> None:
    """A review of the 2023 collection has one item id, whichever way it is stored."""
    row = {"user_id": "A1", "asin": "B2", "parent_asin": "B1", "rating": 5, "timestamp": 1}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "reviews.parquet")
    lines = json_lines(tmp_path / "reviews.jsonl", [row])
    text = named(tmp_path, "A1,B2,B1,5,1", header="user_id,asin,parent_asin,rating,timestamp\n")
    for path in (lines, text, tmp_path / "reviews.parquet"):
        assert [r["item_id"] for r in read(path)[0]] == ["B1"], path


@pytest.mark.parametrize("separator", [";", "\t", "|"])
@pytest.mark.parametrize("quoted", ['"i 1"', "i 1"])
def test_common_separators_are_detected(tmp_path: Path, separator: str, quoted: str) -> None:
    rows = ("user_id,item_id,timestamp,text", f"u1,{quoted},1300000000,", "u2,i2,1300000000,b")
    path = tmp_path / "r.csv"
    path.write_text("\n".join(rows).replace(",", separator) + "\n")
    found, report = read(path)
    assert [(r["user_id"], r["item_id"], r["text"]) for r in found] == [
        ("u1", "i 1", None),
        ("u2", "i2", "b"),
    ]
    assert (report.bad, detect(path).separator) == (0, separator)


CONTENT = f"{NAMED}ü,i,1300000000,5\n".encode()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("r.csv", CONTENT.decode().encode("utf-16")),
        ("r.csv", b"\xfe\xff" + CONTENT.decode().encode("utf-16-be")),
        ("r.csv", CONTENT.decode().encode("utf-32")),
        ("r.csv.zst", pa.compress(CONTENT, "zstd", asbytes=True)),
        ("r.csv.gz", gzip.compress(CONTENT.decode().encode("utf-16"))),
    ],
    ids=["utf-16", "utf-16-be", "utf-32", "zst", "utf-16 in gz"],
)
def test_encodings_by_their_mark_and_compression(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert [r["user_id"] for r in read(tmp_path / name)[0]] == ["ü"]


def test_a_zip_with_one_data_file_is_read_and_others_are_refused(tmp_path: Path) -> None:
    for members in (1, 2):
        with zipfile.ZipFile(tmp_path / f"{members}.csv.zip", "w") as archive:
            archive.writestr("README.txt", "about")
            for n in range(members):
                archive.writestr(f"data/r{n}.csv", CONTENT)
    assert [r["user_id"] for r in read(tmp_path / "1.csv.zip")[0]] == ["ü"]
    with pytest.raises(BadDataset, match=r"2 data files \(data/r0\.csv, .*extract it"):
        read(tmp_path / "2.csv.zip")


def test_a_stated_encoding_is_used_and_a_wrong_one_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_bytes(CONTENT.decode().encode("latin-1"))
    detected = detect(path, ReadOptions(encoding="latin-1"))
    report = ReadReport()
    batches = list(read_interactions(path, report, detected))
    assert batches[0]["user_id"].to_pylist() == ["ü"]
    with pytest.raises(BadDataset, match=r"is not in ascii .* --encoding"):
        detect(path, ReadOptions(encoding="ascii"))
    with pytest.raises(BadInput, match="encoding 'klingon' is unknown"):
        ReadOptions.parse(None, "klingon")


def test_the_order_of_users_and_items_is_recognised_by_their_ids(tmp_path: Path) -> None:
    """The 2018 ratings have the item first, the 2014 ones the user."""
    old, new = tmp_path / "2014.csv", tmp_path / "2018.csv"
    old.write_text("A1V6B6TNIC10QE,0143026860,1.0,1424304000\nA2SUAM1J3GNN3B,B0000DYV9H,5,1\n")
    new.write_text("0143026860,A1V6B6TNIC10QE,1.0,1424304000\nB0000DYV9H,A2SUAM1J3GNN3B,5,1\n")
    expected = [("A1V6B6TNIC10QE", "0143026860"), ("A2SUAM1J3GNN3B", "B0000DYV9H")]
    for path in (old, new):
        assert [(r["user_id"], r["item_id"]) for r in read(path)[0]] == expected
    assert detect(new).why == "column 1 has product ids, column 2 has user ids of Amazon"
    assert "assumed" in detect(ratings_csv(tmp_path)).why


def test_columns_may_be_stated_by_name_or_number(tmp_path: Path) -> None:
    by_name = named(tmp_path, "5,x,u,i", header="when,note,who,what\n")
    by_number = tmp_path / "plain.csv"
    by_number.write_text("i;u;5\n")
    for path, columns in (
        (by_name, "user=who,item=what,time=when"),
        (by_number, "user=2,item=1,time=3"),
    ):
        detected = detect(path, ReadOptions.parse(columns, None))
        batches = list(read_interactions(path, ReadReport(), detected))
        assert [r for b in batches for r in b.to_pylist()] == [
            {
                "user_id": "u",
                "item_id": "i",
                "time_ms": 5000,
                "rating": None,
                "text": None,
                "action": None,
            }
        ]
    with pytest.raises(BadDataset, match="has no column 'whom' for user_id; its columns: when"):
        detect(by_name, ReadOptions.parse("user=whom,item=what,time=when", None))
    with pytest.raises(BadInput, match="'usr=who' is not FIELD=COLUMN"):
        ReadOptions.parse("usr=who", None)


def test_movielens_as_published(tmp_path: Path) -> None:
    (tmp_path / "ratings.dat").write_text("1::1193::5::978300760\n1::661::3::978302109\n")
    (tmp_path / "movies.dat").write_bytes("1193::Amélie (2001)::Comedy|Romance\n".encode("latin-1"))
    (tmp_path / "u.data").write_text("196\t242\t3\t881250949\n")
    rows, report = read(tmp_path / "ratings.dat")
    assert [(r["user_id"], r["item_id"], r["rating"]) for r in rows] == [
        ("1", "1193", 5.0),
        ("1", "661", 3.0),
    ]
    assert report.bad == 0
    assert read(tmp_path / "u.data")[0][0]["time_ms"] == 881250949000
    items = list(read_items(tmp_path / "movies.dat", ReadReport()))
    assert [(i.item_id, i.title, i.categories) for i in items] == [
        ("1193", "Amélie (2001)", ("Comedy", "Romance"))
    ]


def test_retailrocket_actions_are_translated(tmp_path: Path) -> None:
    path = named(
        tmp_path,
        "1433221332117,257597,view,355908,",
        "1433221332118,257597,addtocart,355908,",
        "1433221332119,257597,transaction,355908,4000",
        header="timestamp,visitorid,event,itemid,transactionid\n",
    )
    rows, _ = read(path)
    assert [r["action"] for r in rows] == ["view", "basket", "purchase"]
