import zipfile
from pathlib import Path

import pytest
from imported import shown

from llmrec.errors import InputError

TAKEN = [
    ("1", "10", "5", "881250949"),
    ("2", "7", "3", "881250950"),
    ("1", "7", "4", "881250940"),
    ("1", "9", "2", "9"),
]
MOVIES = [
    ("7", 'Amélie, "Le" (2001)', ["Comedy", "Romance"]),
    ("9", "Untitled", []),
    ("10", "Film (Noir) (1947)", ["Film-Noir"]),
    ("11", "Never seen (1999)", ["Drama"]),
]
GENRES = (
    "unknown Action Adventure Animation Children's Comedy Crime Documentary Drama Fantasy Film-Noir Horror Musical"
)
ALL_GENRES = (*GENRES.split(), "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western")


def files_of(release: str) -> dict[str, bytes]:
    if release == "100k":
        ratings = "".join("\t".join(row) + "\n" for row in TAKEN)
        movies = ""
        for item, title, genres in MOVIES:
            flags = ["1" if genre in genres else "0" for genre in ALL_GENRES]
            movies += "|".join([item, title, "01-Jan-1995", "", "http://x", *flags]) + "\n"
        return {"u.data": ratings.encode(), "u.item": movies.encode("latin-1"), "u1.base": b"1\t1\t1\t1\n"}
    if release == "1m":
        ratings = "".join("::".join(row) + "\n" for row in TAKEN)
        movies = "".join(f"{item}::{title}::{'|'.join(genres)}\n" for item, title, genres in MOVIES)
        return {"ratings.dat": ratings.encode(), "movies.dat": movies.encode("latin-1")}
    ratings = "userId,movieId,rating,timestamp\n" + "".join(",".join(row) + "\n" for row in TAKEN)
    movies = "movieId,title,genres\n"
    for item, title, genres in MOVIES:
        quoted = '"' + title.replace('"', '""') + '"'
        movies += f"{item},{quoted},{'|'.join(genres) or '(no genres listed)'}\n"
    return {"ratings.csv": ratings.encode(), "movies.csv": movies.encode(), "tags.csv": b"x\n"}


def write_release(folder: Path, release: str, *, packed: bool = False) -> Path:
    if packed:
        path = folder / f"ml-{release}.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files_of(release).items():
                archive.writestr(f"ml-{release}/{name}", content)
        return path
    path = folder / f"ml-{release}"
    path.mkdir()
    for name, content in files_of(release).items():
        (path / name).write_bytes(content)
    return path


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("release", ["100k", "1m", "20m"])
def test_the_releases_import_alike(importer, tmp_path, release, packed):
    dataset = importer("movielens")("--source", write_release(tmp_path, release, packed=packed), "--strict")
    assert shown(dataset) == {"1": ["9", "7", "10"], "2": ["7"]}
    assert dataset.catalog.item_ids == ("10", "7", "9")
    assert dict(dataset.catalog.columns) == {
        "title": ("Film (Noir)", 'Amélie, "Le"', "Untitled"),
        "year": ("1947", "2001", ""),
        "genres": ("Film-Noir", "Comedy, Romance", ""),
    }
    assert dataset.interactions.ratings is not None
    assert dataset.interactions.ratings.tolist() == [2, 4, 5, 3]
    assert dataset.manifest["name"] == f"ml-{release}"
    assert dataset.manifest["domain"] == "movies"
    assert dataset.manifest["times"] == "seconds"


def test_flags(importer, tmp_path):
    source = write_release(tmp_path, "1m")
    dataset = importer("movielens")("--source", source, "--keep_unseen_items", "--name", "films", "--domain", "films")
    assert dataset.catalog.item_ids == ("10", "7", "9", "11")
    assert (dataset.manifest["name"], dataset.manifest["domain"]) == ("films", "films")
    with pytest.raises(InputError, match="no user has 3 of them; loosen --min_rating"):
        importer("movielens")("--source", source, "--min_rating", 4)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (("ratings.dat", "1::9::2::9", "1::9::2::9.0"), "timestamps_not_whole", "row 4: timestamp '9.0'"),
        (("movies.dat", "11::", "9::"), "duplicate_items", r"movies\.dat: row 4: item '9' stands there again"),
        (("movies.dat", "9::Untitled", "8::Untitled"), "interactions_with_unknown_items", "row 4: item '9' is not in"),
        (("movies.dat", "Untitled", ""), "items_without_title", "item '9' has no title"),
    ],
)
def test_dirt(importer, tmp_path, change, kind, message):
    source = write_release(tmp_path, "1m")
    file, old, new = change
    path = source / file
    path.write_bytes(path.read_bytes().replace(old.encode(), new.encode(), 1))
    with (source / "ratings.dat").open("a") as ratings:
        ratings.write("1::10::1::881250999\n")  # So that user 1 keeps three without item 9.
    assert importer("movielens")("--source", source).manifest["repairs"] == {kind: 1}
    with pytest.raises(InputError, match=message):
        importer("movielens")("--source", source, "--strict")


@pytest.mark.parametrize(
    ("release", "file", "content", "message"),
    [
        ("100k", "u.item", None, "no release of MovieLens; expected one of: u.data and u.item"),
        ("100k", "u.data", b"", r"u\.data: it is empty"),
        ("100k", "u.item", b"1|x\n", "line 1 has 2 fields, expected 24"),
        ("1m", "ratings.dat", b"1::2::3\n", "line 1 has 3 fields, expected 4"),
        ("1m", "ratings.dat", b"1::2::3::today\n", "row 1 has timestamp 'today'"),
        ("1m", "ratings.dat", b"1::7::good::3\n", "row 1 has rating 'good'"),
        ("1m", "ratings.dat", b"1::7::4::3\n", "no user has 3 of them"),
        ("20m", "ratings.csv", b"user,movie\n1,2\n", "no column 'userId'; it has user, movie"),
        ("20m", "movies.csv", b"id,title\n1,2\n", "no column 'movieId'; it has id, title"),
    ],
)
def test_bad_input(importer, tmp_path, release, file, content, message):
    source = write_release(tmp_path, release)
    if content is None:
        (source / file).unlink()
    else:
        (source / file).write_bytes(content)
    with pytest.raises(InputError, match=message):
        importer("movielens")("--source", source)
    assert not (tmp_path / "out").exists()


def test_bad_archives(importer, tmp_path):
    path = write_release(tmp_path, "1m", packed=True)
    with pytest.raises(InputError, match="no such folder or zip archive"):
        importer("movielens")("--source", tmp_path / "gone.zip")
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    with pytest.raises(InputError, match="no whole zip archive"):
        importer("movielens")("--source", path)
    spoiled = whole.replace(b"881250949", b"881250948")
    path.write_bytes(spoiled)
    with pytest.raises(InputError, match=r"ratings\.dat: damaged or cut off"):
        importer("movielens")("--source", path)
