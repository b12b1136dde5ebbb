import pytest

from llmrec.data.item_text import clean_text, fallback_title, is_number, text_columns


@pytest.mark.parametrize(
    ("value", "column", "text"),
    [
        (" Salt &amp; Pepper\n 1/2 &quot;in&quot; ", "title", 'Salt & Pepper 1/2 "in"'),
        ("['First.', 'It\\'s second.']", "description", "First. It's second."),
        (["First.", " ", "Second."], "description", "First. Second."),
        ("'Beauty', \"Women's\", 'Creams, Gels'", "categories", "Beauty, Women's, Creams, Gels"),
        ([["Toys", "Games"], ["Toys", "Cards"]], "categories", "Toys, Games, Cards"),
        ("'Beauty'", "categories", "Beauty"),
        ("'47 Brand", "brand", "'47 Brand"),
        ("['&eacute;t&eacute;']", "categories", "été"),
        ("'Til Tuesday', live, 'unplugged'", "title", "'Til Tuesday', live, 'unplugged'"),
        ("'Tis the season, they said'", "description", "'Tis the season, they said'"),
        ("[1, 2]", "title", "[1, 2]"),
        ("[rec]", "title", "[rec]"),
        ("[]", "description", ""),
        (1995, "year", "1995"),
        (None, "brand", ""),
        (float("nan"), "brand", ""),
        ({"Color": "red"}, "details", ""),
        ("", "brand", ""),
    ],
)
def test_fields_become_one_line(value, column, text):
    assert clean_text(value, column) == text


def test_names_of_columns_are_made_one():
    assert text_columns(["movie_title", "release_year", "class", "price"], {"price": "float"}) == {
        "movie_title": "title", "release_year": "year", "class": "genres",
    }  # fmt: skip
    assert text_columns(["name", "title", "genre", "class"]) == {
        "name": "name", "title": "title", "genre": "genres", "class": "class",
    }  # fmt: skip


def test_titles_of_items_that_have_none():
    assert fallback_title("7", {"brand": "Acme", "categories": "Toys, Cards"}) == "Acme. Toys, Cards"
    assert fallback_title("7", {"brand": "", "categories": "Toys"}) == "Toys"
    assert fallback_title("7", {"genres": "Drama"}) == "Drama"
    assert fallback_title("7", {}) == "7"


def test_numbers():
    assert is_number("-1.5e3")
    assert not is_number("B00A1")
