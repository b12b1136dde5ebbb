"""The whole way on generated data, in a few minutes on two cores: data, SIDs, training, evaluation, one table.

    python recipes/demo.py

It runs the scripts that you would run, prints each command before it does, and leaves a bundle in runs/demo/. What an
earlier demo left there is replaced.
"""

import argparse
import math
import os
import runpy
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from llmrec.artifacts import read_json
from llmrec.errors import InputError, run_command

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "recipes/configs/demo/sft_tiny-qwen3_full.yaml"
GRPO = "recipes/configs/demo/grpo_tiny-qwen3_exact.yaml"
METRICS = ("recall@5", "ndcg@5", "recall@10", "ndcg@10")
NEXT = """\
Next, real data: Amazon Office as LC-Rec publishes it (Office.inter.json and Office.item.json in the --source folder).

. .venv/bin/activate
python data_prep/lcrec.py      --source ../shared/data/office --name Office --out data/office
python data_prep/embed_items.py     --dataset data/office --encoder tfidf --out data/office/embeddings.safetensors
python data_prep/embed_behaviour.py --dataset data/office --out data/office/behaviour.safetensors
python data_prep/fuse_embeddings.py --views data/office/embeddings.safetensors data/office/behaviour.safetensors \
--out data/office/fused.safetensors
python data_prep/learn_sids.py      --dataset data/office --embeddings data/office/fused.safetensors \
--levels 3 --codebook_size 256 --unique assign_optimal --seed 0 --out data/office/sids
accelerate launch --config_file accelerate_configs/cpu.yaml recipes/sft.py \
--config recipes/configs/office/sft_small-qwen3-2l_full.yaml
python recipes/evaluate.py  --model runs/office --dataset data/office --split test --ks 5 10 --num_beams 20 \
--output runs/office-results.json
"""


def commands(*, data: str, out: str, users: int, epochs: float) -> list[list[str]]:
    """Return the scripts with their flags, in order."""
    vectors = f"{data}/embeddings.safetensors"
    sids = [
        "data_prep/learn_sids.py", "--dataset", data, "--embeddings", vectors,
        "--levels", "3", "--codebook_size", "64", "--unique", "append_rank", "--seed", "0",
    ]  # fmt: skip
    train = ["recipes/sft.py", "--config", CONFIG, "--dataset", data, "--overwrite_output_dir", "true"]
    whole, part = (["--num_train_epochs", f"{share * epochs:g}"] for share in (1, 3 / 8))
    sharpen = ["recipes/grpo.py", "--config", GRPO, "--dataset", data, "--overwrite_output_dir", "true"]
    score = ["recipes/evaluate.py", "--dataset", data, "--split", "test", "--score", "allowed", "--ks", "5", "10"]
    control, early, grpo = (f"{out}-{name}" for name in ("random", "early", "grpo"))
    return [
        ["data_prep/synthetic.py", "--out", data, "--users", str(users)],
        ["data_prep/embed_items.py", "--dataset", data, "--encoder", "tfidf", "--out", vectors],
        [*sids, "--out", f"{data}/sids"],
        [*sids, "--method", "random", "--out", f"{data}/sids-random"],
        [*train, *whole, "--sids", f"{data}/sids", "--output_dir", out],
        [*train, *whole, "--sids", f"{data}/sids-random", "--output_dir", control],
        [*train, *part, "--sids", f"{data}/sids", "--output_dir", early],
        [*sharpen, "--model", early, "--output_dir", grpo],
        [*score, "--model", out, "--name", "model", "--output", f"{out}-results/model.json"],
        [*score, "--model", early, "--name", "model, early", "--output", f"{out}-results/early.json"],
        [*score, "--model", grpo, "--name", "model, early + GRPO", "--output", f"{out}-results/grpo.json"],
        [
            *score, "--model", control, "--name", "model, random SIDs", "--baselines",
            "--output", f"{out}-results/random.json",
        ],
    ]  # fmt: skip


def remove_old_data(path: Path) -> None:
    """Delete the dataset folder of an earlier demo.

    Raises:
        InputError: the folder holds something else.
    """
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not (path / "manifest.json").is_file() or "process" not in read_json(
        path / "manifest.json", "dataset manifest"
    ):
        raise InputError(f"{path}: holds something else than generated data; it is not deleted, choose another --data")
    shutil.rmtree(path)


def run(command: Sequence[str]) -> None:
    """Run a script in this process as if it had been started with these arguments."""
    print(f"\n$ python {shlex.join(command)}", flush=True)
    start = time.monotonic()
    sys.argv = list(command)
    runpy.run_path(command[0], run_name="__main__")
    print(f"({time.monotonic() - start:.0f} s)", flush=True)


def table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Return ``rows`` of metrics by system as aligned text."""
    lines = [f"{'':20}" + "".join(f"{metric:>11}" for metric in METRICS)]
    lines += [f"{name:20}" + "".join(f"{values[metric]:11.4f}" for metric in METRICS) for name, values in rows.items()]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the commands, then print the table and what to do next."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--data", default="data/demo", help="dataset folder to make (%(default)s)")
    parser.add_argument("--out", default="runs/demo", help="bundle to make (%(default)s)")
    parser.add_argument("--users", type=int, default=2500, help="users of the generated data (%(default)s)")
    parser.add_argument("--epochs", type=float, default=8, help="passes over the training data (%(default)s)")
    args = parser.parse_args(argv)
    start = time.monotonic()
    os.chdir(ROOT)
    # All three are read when torch and huggingface_hub are imported, which no script has done yet.
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # on a model this small a second thread waits more than it works
    remove_old_data(Path(args.data))
    for command in commands(data=args.data, out=args.out, users=args.users, epochs=args.epochs):
        run(command)

    names = {"item_knn": "item-knn"}
    kept = ("model", "early", "grpo", "random")
    files = [read_json(f"{args.out}-results/{name}.json", "results file") for name in kept]
    found = {row["name"]: row["metrics"] for file in files for row in file["results"]}
    users = files[0]["results"][0]["users"]
    models = ("model, random SIDs", "model, early", "model, early + GRPO", "model")
    order = ("popularity", "item_knn", "transitions", *models)
    rows = {names.get(name, name): found[name] for name in order}
    rows["ceiling"] = read_json(f"{args.data}/manifest.json", "dataset manifest")["ceiling"]
    print(f"\n{users} test users, ranking over the whole catalogue\n\n{table(rows)}\n")
    # A row is hit or not, so the mean strays from what is expected by the error of a proportion.
    best = rows["ceiling"]["recall@10"]
    luck = 1.96 * math.sqrt(best * (1 - best) / users)
    print("Early: after three eighths of the training. GRPO went on from there, paid for hits alone.")
    print("The ceiling is what the best lists can expect, known from the process that made the data.")
    print(f"Luck with the users drawn moves a recall@10 near it by up to {luck:.3f} either way, 19 times in 20.")
    print(
        f"The model is the bundle in {args.out}/. All of it took {time.monotonic() - start:.0f} s.\n\n{NEXT}", end=""
    )


if __name__ == "__main__":
    run_command(main)
