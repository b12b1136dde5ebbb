import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from encoder_kit import ROOT, script, small_catalog, write_encoder, write_small_dataset
from reference.slow_embeddings import slow_encode

from llmrec.data.items import Catalog
from llmrec.embeddings.store import load_embeddings, load_manifest
from llmrec.embeddings.tfidf import embed_tfidf
from llmrec.errors import InputError

CATALOG = small_catalog(40)
embed_items = script("embed_items")


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_small_dataset(tmp_path / "data", CATALOG)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("bert"))


def flags(dataset: Path, encoder: object, *more: str, out: str = "embeddings.safetensors") -> list[str]:
    return ["--dataset", str(dataset), "--encoder", str(encoder), "--out", str(dataset / out), *more]


def test_tfidf_by_name(dataset: Path, capsys):
    embed_items(flags(dataset, "tfidf", "--dim", "8", "--seed", "3"))
    vectors = load_embeddings(dataset / "embeddings.safetensors", catalog=CATALOG)
    texts = CATALOG.texts(["title", "brand", "categories"])
    np.testing.assert_array_equal(vectors, embed_tfidf(texts, dim=8, seed=3))
    manifest = load_manifest(dataset / "embeddings.safetensors")
    assert manifest["text"] == {"columns": ["title", "brand", "categories"], "separator": ". ", "prefix": ""}
    assert (manifest["encoder"], manifest["dim"], manifest["seed"]) == ("tfidf", 8, 3)
    assert manifest["dataset_hash"]
    assert manifest["made_by"]["command"]
    assert "40 items, 8 dimensions, by tfidf" in capsys.readouterr().out


def test_an_encoder_with_its_template(dataset: Path, bert: Path):
    embed_items(flags(dataset, bert, "--columns", "brand", "title", "--prefix", "the ", "--pooling", "cls"))
    vectors = load_embeddings(dataset / "embeddings.safetensors", catalog=CATALOG)
    assert CATALOG.columns["brand"][1] == "acme"
    texts = ["the " + (f"{brand}. " if brand else "") + title for brand, title in zip(
        CATALOG.columns["brand"], CATALOG.titles, strict=True)]  # fmt: skip
    slow = slow_encode(str(bert), texts, pooling="cls", normalize=True, max_length=256)
    np.testing.assert_allclose(vectors, slow, atol=2e-5)
    manifest = load_manifest(dataset / "embeddings.safetensors")
    assert manifest["revision"].startswith("sha256:")
    assert (manifest["pooling"], manifest["text"]["prefix"]) == ("cls", "the ")


def test_the_cache_is_used_again_unless_told_not_to(dataset: Path, bert: Path, monkeypatch: pytest.MonkeyPatch):
    embed_items(flags(dataset, bert))
    first = load_embeddings(dataset / "embeddings.safetensors")

    def refuse(*_: object) -> None:
        raise AssertionError("encoded again")

    monkeypatch.setattr("llmrec.embeddings.text.TextEncoder.encode_batch", refuse)
    embed_items(flags(dataset, bert))
    np.testing.assert_array_equal(load_embeddings(dataset / "embeddings.safetensors"), first)
    with pytest.raises(AssertionError, match="encoded again"):
        embed_items(flags(dataset, bert, "--no_cache"))


def test_no_cache_leaves_none(dataset: Path, bert: Path):
    embed_items(flags(dataset, bert, "--no_cache"))
    dataset_files = {"items.parquet", "interactions.parquet", "manifest.json"}
    assert {path.name for path in dataset.iterdir()} - dataset_files == {
        "embeddings.safetensors",
        "embeddings.safetensors.json",
    }


def test_the_default_columns_are_those_there_are(tmp_path: Path):
    catalog = Catalog(CATALOG.item_ids, {"title": CATALOG.titles, "notes": CATALOG.titles})
    embed_items(flags(write_small_dataset(tmp_path / "data", catalog), "tfidf", "--dim", "4"))
    assert load_manifest(tmp_path / "data" / "embeddings.safetensors")["text"]["columns"] == ["title"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--columns", "title", "colour"], "no column 'colour'; it has brand, categories, description, title"),
        (["--dim", "4000"], "set --dim to"),
        (["--out", "vectors.npy"], r"vectors\.npy: embeddings are a \.safetensors file"),
    ],
)
def test_bad_flags_are_one_clear_error(dataset: Path, more: list[str], message: str):
    with pytest.raises(InputError, match=message):
        embed_items(flags(dataset, "tfidf", *more))
    assert not list(dataset.glob("embeddings*"))


def test_other_embeddings_are_not_replaced_unasked(dataset: Path, bert: Path):
    embed_items(flags(dataset, "tfidf", "--dim", "4"))
    embed_items(flags(dataset, "tfidf", "--dim", "4"))  # the same again is no other
    with pytest.raises(InputError, match=r"holds other embeddings \(encoder: 'tfidf' there, .*--overwrite"):
        embed_items(flags(dataset, bert))
    with pytest.raises(InputError, match=r"\(dim: 4 there, 5 now\)"):
        embed_items(flags(dataset, "tfidf", "--dim", "5"))
    with pytest.raises(InputError, match=r"\(text: "):
        embed_items(flags(dataset, "tfidf", "--dim", "4", "--columns", "title"))
    embed_items(flags(dataset, bert, "--overwrite"))
    assert load_embeddings(dataset / "embeddings.safetensors").shape == (40, 16)


def test_a_file_of_unknown_origin_is_not_replaced_unless_asked(dataset: Path):
    (dataset / "embeddings.safetensors").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"embeddings\.safetensors: has no manifest .*--overwrite"):
        embed_items(flags(dataset, "tfidf", "--dim", "4"))
    assert (dataset / "embeddings.safetensors").read_bytes() == b"mine"
    embed_items(flags(dataset, "tfidf", "--dim", "4", "--overwrite"))
    assert load_embeddings(dataset / "embeddings.safetensors").shape == (40, 4)


def test_an_encoder_that_is_nowhere_is_never_replaced_by_tfidf(dataset: Path):
    with pytest.raises(InputError, match=r"cannot be loaded .*or 'tfidf'"):
        embed_items(flags(dataset, dataset))
    assert not list(dataset.glob("embeddings*"))


def command(*more: str) -> list[str]:
    return [*more, str(ROOT / "data_prep" / "embed_items.py")]


ENVIRON = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.mark.slow
def test_two_processes_equal_one(dataset: Path, bert: Path):
    torchrun = command(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    small = ("--max_tokens", "64")
    for more in ((), ("--no_cache",)):
        subprocess.run(
            [*torchrun, *flags(dataset, bert, *small, *more, out="two.safetensors")], check=True, env=ENVIRON
        )
    subprocess.run(
        [*command(sys.executable), *flags(dataset, bert, *small, out="one.safetensors")], check=True, env=ENVIRON
    )
    one, two = (load_embeddings(dataset / f"{name}.safetensors", catalog=CATALOG) for name in ("one", "two"))
    np.testing.assert_array_equal(one, two)
    shards = list((dataset / "two.safetensors.cache").glob("rows-*"))
    assert len(shards) == 2  # one a process
    assert not (dataset / "two.safetensors.rows").exists()


@pytest.mark.slow
def test_a_run_that_was_killed_outright_goes_on(tmp_path: Path, bert: Path):
    catalog = small_catalog(3000, seed=1)
    dataset = write_small_dataset(tmp_path / "data", catalog)
    slowly = tmp_path / "slowly.py"
    # The script as it is, but each batch waits and every finished one is flushed.
    slowly.write_text(
        "import runpy, sys, time\n"
        "from llmrec.embeddings import cache, text\n"
        "encode = text.TextEncoder.encode_batch\n"
        "text.TextEncoder.encode_batch = lambda self, ids: (time.sleep(0.05), encode(self, ids))[1]\n"
        "cache.RowCache.__init__.__kwdefaults__['flush_seconds'] = 0.0\n"
        f"sys.path.insert(0, {str(ROOT / 'data_prep')!r})\n"
        f"runpy.run_path({str(ROOT / 'data_prep' / 'embed_items.py')!r})['main']()\n"
    )
    more = flags(dataset, bert, "--max_tokens", "64")
    process = subprocess.Popen([sys.executable, str(slowly), *more], env=ENVIRON)
    shards = dataset / "embeddings.safetensors.cache"
    deadline = time.monotonic() + 120
    while len(list(shards.glob("rows-*"))) < 5 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = len(list(shards.glob("rows-*")))
    assert 5 <= kept < 400
    assert not (dataset / "embeddings.safetensors").exists()
    embed_items(more)
    embed_items(flags(dataset, bert, "--max_tokens", "64", out="whole.safetensors"))
    resumed, whole = (load_embeddings(dataset / f"{name}.safetensors") for name in ("embeddings", "whole"))
    np.testing.assert_array_equal(resumed, whole)
    assert len(list(shards.glob("rows-*"))) > kept


def test_a_launch_that_started_too_few_processes_is_refused(
    dataset: Path, bert: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("MASTER_PORT", "29511")
    with pytest.raises(InputError, match="torchrun --nproc_per_node 2"):
        embed_items(flags(dataset, bert))
