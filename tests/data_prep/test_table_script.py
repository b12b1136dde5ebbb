import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from imported import shown

from llmrec.errors import InputError

ORDERS = """customer,sku,when,stars,kind
ann,b,30,5,buy
ann,a,10,4,view
bob,a,20,3,buy
ann,c,20.0,1,buy
ann,x,40,5,buy
ann,b,50,2,buy
"""
PRODUCTS = """sku,label,maker,weight
a,"Käse, 5"" 'jung'",Acme,1.5
b,,Acme,2
c,C,,
c,Again,,
z,Z,Zed,
"""
COLUMNS = [
    "--user_column",
    "customer",
    "--item_column",
    "sku",
    "--timestamp_column",
    "when",
    "--title_column",
    "label",
]


@pytest.fixture
def flags(tmp_path: Path) -> list[object]:
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "orders.csv").write_text(ORDERS)
    (folder / "products.csv").write_text(PRODUCTS)
    return ["--interactions", folder / "orders.csv", "--items", folder / "products.csv"]


def test_a_dirty_source(importer, flags):
    dataset = importer("table")(*flags, *COLUMNS, "--rating_column", "stars", "--licence", "ours")
    assert shown(dataset) == {"ann": ["a", "c", "b", "b"], "bob": ["a"]}
    assert dict(dataset.catalog.columns) == {
        "title": ("b", "Käse, 5\" 'jung'", "C"),
        "maker": ("Acme", "Acme", ""),
    }
    assert dataset.interactions.ratings is not None
    assert dataset.interactions.ratings.tolist() == [4, 1, 5, 2, 3]
    assert dataset.manifest["name"] == "orders"
    assert dataset.manifest["licence"] == "ours"
    assert dataset.manifest["times"] == "seconds"
    assert dataset.manifest["repairs"] == {
        "duplicate_items": 1,
        "interactions_with_unknown_items": 1,
        "items_without_title": 1,
        "timestamps_not_whole": 1,
    }
    with pytest.raises(InputError, match=r"row 5: timestamp '20\.0' is no whole number"):
        importer("table")(*flags, *COLUMNS, "--strict")


@pytest.mark.parametrize(
    ("more", "sequences"),
    [
        (["--rating_column", "stars", "--min_rating", "2"], {"ann": "abb", "bob": "a"}),
        (["--event_column", "kind", "--event_types", "buy"], {"ann": "cbb", "bob": "a"}),
        (["--drop_repeats", "last"], {"ann": "acb", "bob": "a"}),
        (["--limit", "4"], {"ann": "acb", "bob": "a"}),
        (["--no_times"], {"ann": "bacb", "bob": "a"}),
    ],
)
def test_filters(importer, flags, more, sequences):
    dataset = importer("table")(*flags, *COLUMNS, *more)
    assert {user: "".join(items) for user, items in shown(dataset).items()} == sequences
    assert dataset.manifest["times"] == ("position" if "--no_times" in more else "seconds")


def test_other_forms_and_names(importer, flags):
    folder = flags[1].parent
    moment = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    times = [moment + datetime.timedelta(days=day) for day in (3, 1, 2)]
    table = {"user_id": [1, 1, 1], "item_id": [10, 20, 10], "timestamp": pa.array(times, pa.timestamp("us", "UTC"))}
    pq.write_table(pa.table(table), folder / "taken.parquet")
    (folder / "items.jsonl").write_text('{"id": 20, "name": "Twenty"}\n{"id": 10, "name": "Ten"}\n')
    dataset = importer("table")(
        "--interactions", folder / "taken.parquet", "--items", folder / "items.jsonl", "--items_id_column", "id"
    )
    assert shown(dataset) == {"1": ["20", "10", "10"]}
    assert dataset.catalog.titles == ("Ten", "Twenty")
    assert dataset.interactions.timestamps.tolist() == [1577923200, 1578009600, 1578096000]  # 2020-01-02, 03, 04.
    (folder / "taken.tsv").write_text("user_id\titem_id\ttimestamp\n1\t10\t3999\n1\t20\t1000\n1\t10\t4000\n")
    dataset = importer("table")("--interactions", folder / "taken.tsv", "--time_unit", "ms")
    assert dataset.interactions.timestamps.tolist() == [1, 3, 4]
    assert dataset.catalog.titles == ("10", "20")


@pytest.mark.parametrize(
    ("orders", "products", "more", "message"),
    [
        (None, PRODUCTS, [], r"orders\.csv: no such file"),
        ("", PRODUCTS, [], r"orders\.csv: it is empty"),
        (ORDERS, None, [], r"products\.csv: no such file"),
        (ORDERS, "", [], r"products\.csv: it is empty"),
        (ORDERS, PRODUCTS, ["--user_column", "who"], "no column 'who'; it has customer, .*: name it by --user_column"),
        (ORDERS, PRODUCTS, ["--item_column", "ware"], "no column 'ware'.*--item_column"),
        (ORDERS, PRODUCTS, ["--timestamp_column", "at"], "no column 'at'.*or say --no_times"),
        (ORDERS, PRODUCTS, ["--items_id_column", "id"], "no column 'id'"),
        (ORDERS, PRODUCTS, ["--title_column", "name"], "no column 'name'.*--title_column"),
        (ORDERS, PRODUCTS, ["--min_rating", "3"], "no column 'rating'.*--rating_column"),
        (ORDERS, PRODUCTS, ["--event_types", "buy"], "no column 'event_type'.*--event_column"),
        (ORDERS.replace("30", "1 May"), PRODUCTS, [], "row 2 has timestamp '1 May'"),
        (ORDERS + "ann,b\n", PRODUCTS, [], "line 8 has 2 fields, expected 5"),
        ("customer,sku,when\nann,b,1\nann,b,2\n", PRODUCTS, [], "no user has 3 of them"),
    ],
)
def test_bad_input(importer, flags, orders, products, more, message):
    for path, text in ((flags[1], orders), (flags[3], products)):
        if text is None:
            path.unlink()
        else:
            path.write_text(text)
    with pytest.raises(InputError, match=message):
        importer("table")(*flags, *COLUMNS, *more)
    assert not (flags[1].parents[1] / "out").exists()


def test_a_row_of_json_without_its_time(importer, flags):
    path = flags[1].with_name("taken.jsonl")
    path.write_text('{"user_id": 1, "item_id": 2, "timestamp": 3}\n{"user_id": 1, "item_id": 2}\n')
    with pytest.raises(InputError, match="row 2 has timestamp ''"):
        importer("table")("--interactions", path)
