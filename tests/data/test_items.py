import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.data.items import Catalog
from llmrec.errors import InputError


def test_rows_titles_and_hash():
    catalog = Catalog(("b", "a"), {"title": ("Bee", "Ant"), "brand": ("", "Acme")})
    assert len(catalog) == 2
    assert catalog.row_of == {"b": 0, "a": 1}
    assert catalog.titles == ("Bee", "Ant")
    assert catalog.hash == Catalog(("b", "a"), {"title": ("x", "y")}).hash
    assert catalog.hash != Catalog(("a", "b"), {"title": ("x", "y")}).hash


def test_the_hash_does_not_run_ids_together():
    assert Catalog(("ab", "c"), {"title": ("x", "y")}).hash != Catalog(("a", "bc"), {"title": ("x", "y")}).hash


def test_texts_join_what_is_there_and_fall_back_to_the_title():
    catalog = Catalog(("b", "a"), {"title": ("Bee", "Ant"), "brand": ("", "Acme"), "categories": (" ", "Toys, Ants")})
    assert catalog.texts(["title", "brand", "categories"]) == ["Bee", "Ant. Acme. Toys, Ants"]
    assert catalog.texts(["brand"]) == ["Bee", "Acme"]
    with pytest.raises(InputError, match="no column 'price'; it has brand, categories, title"):
        catalog.texts(["price"])


@pytest.mark.parametrize(
    ("ids", "columns", "message"),
    [
        ((), {"title": ()}, "holds no items"),
        (("a", "a"), {"title": ("x", "y")}, "item_id 'a' stands twice"),
        (("a", ""), {"title": ("x", "y")}, "row 1 has an empty item_id"),
        (("a",), {"brand": ("x",)}, "no column 'title'"),
        (("a", "b"), {"title": ("x", "y"), "brand": ("z",)}, "column 'brand' has 1 rows for 2 items"),
        (("a", "b"), {"title": ("x", " \t")}, r"item 'b' \(row 1\) has a blank title"),
    ],
)
def test_an_illegal_catalogue_does_not_construct(ids, columns, message):
    with pytest.raises(InputError, match=message):
        Catalog(ids, columns)


@settings(deadline=None)
@given(st.lists(st.text(min_size=1), min_size=1, unique=True))
def test_row_of_is_the_inverse_of_ids(ids):
    catalog = Catalog(tuple(ids), {"title": ("t",) * len(ids)})
    assert all(catalog.row_of[item_id] == row for row, item_id in enumerate(catalog.item_ids))
