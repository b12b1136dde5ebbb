import gzip
import json
from pathlib import Path

import pytest
from imported import shown

from llmrec.errors import InputError

# Users u and v and items a, b and c form a 2-core; w, x and d do not.
TAKEN = [
    ("u", "a", 5.0, 1_400_000_000),
    ("u", "b", 4.0, 1_300_000_000),
    ("v", "a", 2.0, 1_400_000_001),
    ("u", "c", 1.0, 1_400_000_002),
    ("v", "c", 5.0, 1_400_000_003),
    ("v", "b", 3.0, 1_400_000_000),
    ("w", "a", 5.0, 1_400_000_004),
    ("v", "d", 5.0, 1_400_000_005),
]
META = {
    "a": {"title": "Brush &amp; \"Comb\", 'x'", "brand": "Acmé", "description": ["One.", "Two."]},
    "b": {"brand": "Acme", "categories": [["Beauty", "Hair"], ["Beauty", "Nails"]]},
    "c": {"title": "Crème"},
    "d": {"title": "Dropped"},
    "z": {"title": "Never reviewed"},
}


def reviews_of(release: str) -> list[dict]:
    if release == "2023":
        return [
            {"user_id": user, "parent_asin": item, "asin": "?", "rating": rating, "timestamp": 1000 * time + 123}
            for user, item, rating, time in TAKEN
        ]
    return [
        {"reviewerID": user, "asin": item, "overall": rating, "unixReviewTime": time, "reviewText": "..."}
        for user, item, rating, time in TAKEN
    ]


def meta_of(release: str) -> list[dict]:
    entries = []
    for item, fields in META.items():
        entry = {"parent_asin" if release == "2023" else "asin": item, **fields, "price": 1.5}
        if release == "2018":
            entry["category"] = entry.pop("categories", [])
            entry["brand"] = entry.get("brand", "")
        if release == "2023":
            entry["store"] = entry.pop("brand", None)
            entry["details"] = {"Color": "red"}
        entries.append(entry)
    return entries


def write(path: Path, lines: list[str]) -> Path:
    text = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def write_release(folder: Path, release: str) -> list[object]:
    folder.mkdir(exist_ok=True)
    names = {
        "2014": ("reviews_Beauty.json.gz", "meta_Beauty.json.gz"),
        "2018": ("Beauty_5.json", "meta_Beauty.json"),
        "2023": ("Beauty.jsonl.gz", "meta_Beauty.jsonl"),
    }[release]
    reviews = write(folder / names[0], [json.dumps(review) for review in reviews_of(release)])
    spell = repr if release == "2014" else json.dumps  # The metadata of 2014 are Python dicts, not JSON.
    meta = write(folder / names[1], [spell(entry) for entry in meta_of(release)])
    return ["--reviews", reviews, "--meta", meta]


@pytest.mark.parametrize("release", ["2014", "2018", "2023"])
def test_the_three_releases_import_alike(importer, tmp_path, release):
    dataset = importer("amazon")(*write_release(tmp_path / "source", release), "--k_core", 2)
    assert shown(dataset) == {"u": ["b", "a", "c"], "v": ["b", "a", "c"]}
    assert dataset.catalog.item_ids == ("a", "b", "c")
    assert dict(dataset.catalog.columns) == {
        "title": ("Brush & \"Comb\", 'x'", "Acme. Beauty, Hair, Nails", "Crème"),
        "brand": ("Acmé", "Acme", ""),
        "description": ("One. Two.", "", ""),
        "categories": ("", "Beauty, Hair, Nails", ""),
    }
    assert dataset.interactions.timestamps[:3].tolist() == [1_300_000_000, 1_400_000_000, 1_400_000_002]
    assert dataset.interactions.ratings is not None
    assert dataset.interactions.ratings.tolist() == [4, 5, 1, 3, 2, 5]
    assert dataset.manifest["name"] == "Beauty"
    assert dataset.manifest["domain"] == "beauty products"
    assert dataset.manifest["times"] == "seconds"
    assert dataset.manifest["dropped"] == {"k_core": 2}
    assert dataset.manifest["repairs"] == {"items_without_title": 1}


def test_the_five_core_is_the_default(importer, tmp_path):
    with pytest.raises(InputError, match="of 8 interactions 0 are left, and no user has 3 of them; loosen --k_core"):
        importer("amazon")(*write_release(tmp_path / "source", "2014"))


def test_dirt(importer, tmp_path):
    flags = write_release(tmp_path / "source", "2018")
    reviews = reviews_of("2018")
    extra = [reviews[0], {**reviews[0], "overall": 1.0}, {**reviews[0], "unixReviewTime": 1_400_000_009}]
    unknown = [{**reviews[0], "asin": "y"}, {**reviews[2], "asin": "y"}]
    write(flags[1], [json.dumps(review) for review in [*reviews, *extra, *unknown]])
    meta = [*meta_of("2018"), {"asin": "a", "title": "Again"}, {"title": "No id"}]
    write(flags[3], [json.dumps(entry) for entry in meta])
    dataset = importer("amazon")(*flags, "--k_core", 2)
    assert shown(dataset) == {"u": ["b", "a", "c", "a"], "v": ["b", "a", "c"]}
    assert dataset.catalog.titles[0] == "Brush & \"Comb\", 'x'"
    assert dataset.manifest["repairs"] == {
        "duplicate_interactions": 2,
        "duplicate_items": 1,
        "interactions_with_unknown_items": 2,
        "items_without_id": 1,
        "items_without_title": 1,
    }
    with pytest.raises(InputError, match="row 9: user 'u' and item 'a' stand in an earlier row with the same time"):
        importer("amazon")(*flags, "--k_core", 2, "--strict")


@pytest.mark.parametrize(
    ("file", "entry", "message"),
    [
        (3, {"asin": "a", "title": "Again"}, r"meta_Beauty\.json: row 6: item 'a' stands there again"),
        (1, {"reviewerID": "u", "asin": "b", "unixReviewTime": "7.0"}, "row 9: timestamp '7.0' is no whole number"),
        (3, {"asin": "", "title": "x"}, "row 6: no item id"),
        (3, None, r"meta_Beauty\.json: item 'b' has no title"),
    ],
)
def test_strict(importer, tmp_path, file, entry, message):
    flags = write_release(tmp_path / "source", "2018")
    with flags[file].open("a") as lines:
        lines.write("" if entry is None else json.dumps(entry) + "\n")
    with pytest.raises(InputError, match=message):
        importer("amazon")(*flags, "--k_core", 2, "--strict")


def test_filters(importer, tmp_path):
    flags = [*write_release(tmp_path / "source", "2023"), "--k_core", 1]
    dataset = importer("amazon")(*flags, "--min_rating", 3)
    assert shown(dataset) == {"u": ["b", "a"], "v": ["b", "c", "d"], "w": ["a"]}
    assert dataset.manifest["dropped"] == {"min_rating": 2}
    assert shown(importer("amazon")(*flags, "--limit", 4)) == {"u": ["b", "a", "c"], "v": ["a"]}


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (1, None, r"Beauty_5\.json: no such file; expected the reviews"),
        (1, "", r"Beauty_5\.json: it is empty"),
        (3, None, r"meta_Beauty\.json: no such file; expected the metadata"),
        (3, "", r"meta_Beauty\.json: it is empty"),
        (
            1,
            '{"user": 1}\n',
            "the first review has the keys user; expected reviewerID, asin, unixReviewTime or user_id",
        ),
        (1, '{"reviewerID": "u"\n', "line 1 is no JSON object"),
        (3, '{"parent_asin": "a"}\n', "the first item has no 'asin' but parent_asin; take the metadata of the 2014"),
        (1, '{"reviewerID": "u", "asin": "a", "unixReviewTime": "05 3, 2014"}\n', "row 1 has timestamp '05 3, 2014'"),
        (1, '{"reviewerID": "u", "asin": "a", "unixReviewTime": null}\n', "row 1 has timestamp ''"),
    ],
)
def test_bad_input(importer, tmp_path, file, text, message):
    flags = write_release(tmp_path / "source", "2018")
    if text is None:
        flags[file].unlink()
    else:
        flags[file].write_text(text)
    with pytest.raises(InputError, match=message):
        importer("amazon")(*flags, "--k_core", 2)
    assert not (tmp_path / "out").exists()


def test_a_download_that_broke_off(importer, tmp_path):
    flags = write_release(tmp_path / "source", "2014")
    flags[1].write_bytes(flags[1].read_bytes()[:-20])
    with pytest.raises(
        InputError, match=r"reviews_Beauty\.json\.gz: damaged or cut off .* download the reviews again"
    ):
        importer("amazon")(*flags)


@pytest.mark.parametrize(("release", "key"), [("2014", "reviewText"), ("2023", "text")])
def test_review_texts_are_kept_when_asked_for(importer, tmp_path, release, key):
    flags = write_release(tmp_path / "source", release)
    said = [f'"{item}",  {user}\n— 日本' for user, item, _, _ in TAKEN]
    reviews = [{**review, key: text} for review, text in zip(reviews_of(release), said, strict=True)]
    reviews[0][key] = None
    write(flags[1], [json.dumps(review) for review in reviews])
    dataset = importer("amazon")(*flags, "--k_core", 2, "--review_texts")
    # Users b a c each, by time; the first review of the file is that of u and a.
    assert dataset.interactions.texts["review"].to_pylist() == [
        '"b", u — 日本', "", '"c", u — 日本', '"b", v — 日本', '"a", v — 日本', '"c", v — 日本'
    ]  # fmt: skip


def test_review_texts_stay_out_otherwise(importer, tmp_path):
    dataset = importer("amazon")(*write_release(tmp_path / "source", "2018"), "--k_core", 2)
    assert dataset.interactions.texts == {}
