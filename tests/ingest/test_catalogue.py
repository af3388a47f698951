"""Metadata in every format becomes items; invalid lines are reported."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from afterclick.events import Item
from ingest.fields import plain
from ingest.items import read_items
from ingest.rows import ReadReport
from tests.ingest.conftest import json_lines


def items(path: Path) -> tuple[list[Item], ReadReport]:
    report = ReadReport()
    return list(read_items(path, report)), report


def test_2014_metadata_may_be_python_literals(tmp_path: Path) -> None:
    path = tmp_path / "meta_Toys.json"
    path.write_text(
        "{'asin': 'B1', 'title': \"Kids' Bear\", 'price': 3.5, 'brand': 'Bo', "
        "'categories': [['Toys'], ['Toys', 'Plush', 'Bears']], 'salesRank': {'Toys': 1}}\n"
        '{"asin": "B2", "categories": [["Toys"]]}\n'
    )
    found, report = items(path)
    assert found == [
        Item(
            item_id="B1",
            title="Kids' Bear",
            categories=("Toys", "Plush", "Bears"),
            brand="Bo",
            price=3.5,
        ),
        Item(item_id="B2", categories=("Toys",)),
    ]
    assert report.bad == 0


def test_a_literal_is_never_evaluated(tmp_path: Path) -> None:
    path = tmp_path / "meta_Toys.json"
    mark = tmp_path / "was-here"
    path.write_text(
        "{'asin': 'B1', 'title': 'good'}\n"
        f"{{'asin': __import__('pathlib').Path({str(mark)!r}).touch()}}\n"
        + "{'asin': " + "(" * 5000 + ")" * 5000 + "}\n"
        + "{'asin': 'B" + "9" * 10 + "', 'x': " + "-" * 100_000 + "1}\n"
    )  # fmt: skip
    found, report = items(path)
    assert [item.item_id for item in found] == ["B1"]
    assert report.bad == 3
    assert not mark.exists()


def test_2023_metadata_has_store_and_flat_categories(tmp_path: Path) -> None:
    row = {
        "parent_asin": "B1",
        "title": "T",
        "categories": ["A", "B", "A"],
        "price": "$1,299.00",
        "store": "S",
    }
    found, _ = items(json_lines(tmp_path / "meta.jsonl.gz", [row]))
    assert found == [Item(item_id="B1", title="T", categories=("A", "B"), brand="S", price=1299.0)]


@pytest.mark.parametrize(
    ("price", "expected"),
    [
        (None, None),
        ("", None),
        ("from 8.99", 8.99),
        ("—", None),
        (-1, None),
        (True, None),
        (12, 12.0),
        ("9" * 40, None),
        ("$.99", 0.99),
        ("1.299,00 €", 1299.0),
        ("12,99 €", 12.99),
        ("1.299 €", 1299.0),
        ("1.299", 1.299),
        ("1,299", 1299.0),
        ("1.234.567,89 EUR", 1234567.89),
        ("CHF 1'299.50", 1299.5),
        ("₹1,49,999.00", 149999.0),
        ("Rs. 499", 499.0),
        (".a-box-inner{background-color:#fffbf3}", None),
        ("3 for 2", None),
    ],
)
def test_prices_are_parsed_in_every_format(
    tmp_path: Path, price: object, expected: float | None
) -> None:
    found, report = items(
        json_lines(tmp_path / "meta.jsonl", [{"parent_asin": "B1", "title": "t", "price": price}])
    )
    assert (found[0].price, report.bad) == (expected, 0)


def test_the_longest_of_several_category_paths_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text(
        'item_id,title,categories\nB1,Case,"Phones,Cases;;Electronics,Audio,Cases;;"\nB2,None,;;\n'
    )
    found, _ = items(path)
    assert [item.categories for item in found] == [("Electronics", "Audio", "Cases"), ()]


def test_named_csv_with_quoted_categories(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text(
        'item_id,title,categories\nB1,"A ""fine"" bag, red","Bags,Red ones"\nB2,,\nB3,x\n'
    )
    found, report = items(path)
    assert found == [
        Item(item_id="B1", title='A "fine" bag, red', categories=("Bags", "Red ones")),
        Item(item_id="B2"),
    ]
    assert (report.bad, report.samples[0].line) == (1, 4)


def test_parquet_items(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"item_id": [1, 2], "title": ["a", None], "genres": ["x|y", ""]}),
        tmp_path / "i.parquet",
    )
    found, _ = items(tmp_path / "i.parquet")
    assert found == [Item(item_id="1", title="a", categories=("x", "y")), Item(item_id="2")]


def test_hostile_metadata_is_cleaned_or_reported(tmp_path: Path) -> None:
    path = tmp_path / "meta_x.json"
    path.write_bytes(
        b"{'asin': 'B1', 'title': 'a\\x00b\\ud800'}\n"
        b"{'asin': 'B\\x00'}\n"
        b'{"asin": "B2", "title": ["no", "text"], "categories": 7, "price": {"a": 1}}\n'
        b"{'title': 'no id'}\n"
        b"\xff\xfe\n"
    )
    found, report = items(path)
    assert found == [Item(item_id="B1", title="a b?"), Item(item_id="B2")]
    assert [sample.line for sample in report.samples] == [2, 4, 5]


def test_generated_items_have_titles_categories_brands_and_prices(shop: Path) -> None:
    found, report = items(shop / "items.csv")
    assert (len(found), report.bad) == (120, 0)
    assert all(i.title and len(i.categories) == 3 and i.brand and i.price for i in found)


def test_prices_and_titles_that_are_none_are_counted_with_their_lines(tmp_path: Path) -> None:
    rows = [
        {"parent_asin": "B1", "title": "USB hub", "price": ".a{color:#fffbf3}"},
        {"parent_asin": "B2", "title": "var aPageStart=(new Date()).getTime();", "price": "5"},
        {"parent_asin": "B3", "title": "USB hub", "price": "see in cart"},
    ]
    found, report = items(json_lines(tmp_path / "meta.jsonl", rows))
    assert [(item.title, item.price) for item in found] == [
        ("USB hub", None),
        (None, 5.0),
        ("USB hub", None),
    ]
    assert report.bad == 0
    assert report.dropped == {
        "price is not a price": [2, 1, 3],
        "title is a script or style sheet": [1, 2],
    }


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("AT&amp;T Cable &quot;3ft&quot;", 'AT&T Cable "3ft"'),
        ("AT&amp;amp;T", "AT&T"),
        ('<span id="productTitle">\n  USB hub </span>', "USB hub"),
        ("A <b>bold</b> hub<!-- x -->", "A bold hub"),
        ("Cable <3ft & thin> 2m", "Cable <3ft & thin> 2m"),
        ("<script>alert(1)</script>", None),
        (".title { color: red; }", None),
        ("Lens 2.8 (f: 50mm)", "Lens 2.8 (f: 50mm)"),
        ("Variable power supply = 12 V", "Variable power supply = 12 V"),
        ("  ", None),
    ],
)
def test_titles_are_plain_text(title: str, expected: str | None) -> None:
    try:
        found = plain(title)
    except ValueError:
        found = None
    assert found == expected
