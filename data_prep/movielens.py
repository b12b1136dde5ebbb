"""Import MovieLens from the folder or zip archive that GroupLens publishes: ml-100k, ml-1m, or ml-20m and its like.

    python data_prep/movielens.py --source ml-1m.zip --out data/ml-1m

The release is told from its files: ``u.data`` (100k), ``ratings.dat`` (1m), ``ratings.csv`` (20m, 25m, 32m). The year
at the end of a title becomes the column ``year``; ``--min_rating 4`` keeps only what users liked.
"""

import argparse
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from llmrec.data.collecting import Row, collect
from llmrec.data.import_flags import add_import_arguments, read_rules, write_import
from llmrec.data.import_rules import Repairs
from llmrec.data.importing import Record, build
from llmrec.data.sources import open_table, read_lines
from llmrec.errors import InputError, run_command

GENRES_100K = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
_YEAR = re.compile(r"(.*\S)\s*\((\d{4})\)")


class Place(NamedTuple):
    """A file, in a folder or as the member of a zip archive."""

    path: Path
    member: str | None

    def __str__(self) -> str:
        return f"{self.path}:{self.member}" if self.member else str(self.path)


def find_places(source: Path) -> dict[str, Place]:
    """Return the files of a release by name.

    Raises:
        InputError: neither folder nor zip archive.
    """
    if source.is_dir():
        return {path.name: Place(path, None) for path in sorted(source.rglob("*"), reverse=True) if path.is_file()}
    if not source.is_file():
        raise InputError(f"{source}: no such folder or zip archive; expected a release of MovieLens")
    try:
        with zipfile.ZipFile(source) as archive:
            return {Path(member).name: Place(source, member) for member in reversed(archive.namelist())}
    except zipfile.BadZipFile as error:
        raise InputError(f"{source}: no folder, and no whole zip archive ({error}); download it again") from error


def split_fields(place: Place, separator: str, width: int) -> Iterator[tuple[int, list[str]]]:
    """Yield the fields of the older releases' lines."""
    for line, text in read_lines(place.path, "release", encoding="latin-1", member=place.member):
        fields = text.split(separator)
        if len(fields) != width:
            raise InputError(f"{place}: line {line} has {len(fields)} fields, expected {width}: {text[:80]!r}")
        yield line, fields


def movie(line: int, item_id: str, title: str, genres: str) -> Record:
    """Return a movie, its year taken from the end of the title."""
    match = _YEAR.fullmatch(title.strip())
    title, year = match.groups() if match else (title, "")
    genres = "" if genres == "(no genres listed)" else genres
    return Record(line, item_id, {"title": title, "year": year, "genres": genres.split("|")})


def read_100k(ratings: Place, movies: Place) -> tuple[Iterator[Row], Iterator[Record]]:
    """Read ``u.data`` and ``u.item``."""
    rows = (Row(line, user, item, time, rating) for line, (user, item, rating, time) in split_fields(ratings, "\t", 4))

    def records() -> Iterator[Record]:
        for line, fields in split_fields(movies, "|", 5 + len(GENRES_100K)):
            genres = [genre for genre, flag in zip(GENRES_100K, fields[5:], strict=True) if flag == "1"]
            yield movie(line, fields[0], fields[1], "|".join(genres))

    return rows, records()


def read_1m(ratings: Place, movies: Place) -> tuple[Iterator[Row], Iterator[Record]]:
    """Read ``ratings.dat`` and ``movies.dat``."""
    rows = (Row(line, user, item, time, rating) for line, (user, item, rating, time) in split_fields(ratings, "::", 4))
    records = (movie(line, *fields) for line, fields in split_fields(movies, "::", 3))
    return rows, records


def read_20m(ratings: Place, movies: Place) -> tuple[Iterator[Row], Iterator[Record]]:
    """Read ``ratings.csv`` and ``movies.csv``."""
    taken = open_table(ratings.path, "ratings", member=ratings.member)
    taken.require(["userId", "movieId", "rating", "timestamp"])
    table = open_table(movies.path, "movies", member=movies.member)
    table.require(["movieId", "title", "genres"])
    rows = (Row(line, row["userId"], row["movieId"], row["timestamp"], row["rating"]) for line, row in taken.rows)
    return rows, (movie(line, row["movieId"], row["title"], row["genres"]) for line, row in table.rows)


RELEASES = {
    ("u.data", "u.item"): read_100k,
    ("ratings.dat", "movies.dat"): read_1m,
    ("ratings.csv", "movies.csv"): read_20m,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Import MovieLens."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder or zip archive of a release")
    add_import_arguments(parser, ratings=True)
    parser.set_defaults(domain="movies")
    args = parser.parse_args(argv)
    rules = read_rules(args)
    repairs = Repairs(strict=rules.strict)

    places = find_places(args.source)
    files = next((files for files in RELEASES if all(name in places for name in files)), None)
    if files is None:
        pairs = "; ".join(" and ".join(names) for names in RELEASES)
        raise InputError(f"{args.source}: no release of MovieLens; expected one of: {pairs}")
    ratings, movies = (places[name] for name in files)
    rows, records = RELEASES[files](ratings, movies)
    collected = collect(rows, path=Path(str(ratings)), rules=rules, repairs=repairs)
    imported = build(collected, rules=rules, repairs=repairs, records=records, items_path=Path(str(movies)))
    report = write_import(
        args,
        imported,
        name=args.source.resolve().name.removesuffix(".zip"),
        source=f"MovieLens, {files[0]} and {files[1]}",
        licence="GroupLens terms: research use, with acknowledgement, without redistribution",
        times="seconds",
    )
    print(report)


if __name__ == "__main__":
    run_command(main)
