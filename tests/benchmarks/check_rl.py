"""Check that reinforcement learning learns: from a half-trained model on generated data whose ceiling is known.

    OMP_NUM_THREADS=1 python tests/benchmarks/check_rl.py --seeds 0 1 2 3 4 --jobs 2 --out recipes/results/rl/demo.json

For each seed: supervised training on the demo's data until Recall@1 on validation first reaches half of the ceiling's;
from that checkpoint, on the same training rows, GRPO with an exact match as its reward, S-DPO, and supervised training
again for as many seconds as GRPO took (within 5 %), the control that says what reinforcement learning itself is worth.
All are then read on test, scored over the legal tokens (``allowed``), as both are trained. ``gap`` is the share of the
way from the start's Recall@1 to the ceiling's. Seeds that --out has already are kept, so that a check that was cut off
goes on.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from llmrec.artifacts import made_by, read_json, write_json
from llmrec.errors import InputError, run_command

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = "recipes/configs/demo"
SFT = f"{CONFIGS}/sft_tiny-qwen3_full.yaml"
METHODS = {
    "grpo": ["recipes/grpo.py", "--config", f"{CONFIGS}/grpo_tiny-qwen3_exact.yaml"],
    "s_dpo": ["recipes/dpo.py", "--config", f"{CONFIGS}/dpo_tiny-qwen3_s-dpo.yaml"],
}
KS = ("1", "5", "10")
LOOK_EVERY = 20
SCORE = "allowed"
CLOSE = 0.05
"""How far, as a share, the control's seconds may be from GRPO's."""
TRIES = 4


def run(*command: str, log: Path) -> float:
    """Run a script of this checkout to its end, and return its seconds.

    Raises:
        InputError: it failed.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with log.open("w", encoding="utf-8") as out:
        done = subprocess.run(
            [sys.executable, *command], cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, env=_environment(), check=False
        )
    if done.returncode:
        tail = log.read_text(encoding="utf-8").strip().splitlines()[-1:]
        raise InputError(f"{command[0]} failed ({' '.join(tail)}); see {log}")
    return time.monotonic() - start


def _environment() -> dict[str, str]:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def make_data(work: Path, *, users: int) -> dict[str, float]:
    """Make the demo's data and SIDs where they are not there yet, and return the ceiling."""
    data, vectors = work / "data", str(work / "data" / "embeddings.safetensors")
    steps = {
        data / "manifest.json": ["data_prep/synthetic.py", "--out", str(data), "--users", str(users)],
        data / "embeddings.safetensors": [
            "data_prep/embed_items.py", "--dataset", str(data), "--encoder", "tfidf", "--out", vectors,
        ],
        data / "sids" / "sid_config.json": [
            "data_prep/learn_sids.py", "--dataset", str(data), "--embeddings", vectors, "--levels", "3",
            "--codebook_size", "64", "--unique", "append_rank", "--seed", "0", "--out", str(data / "sids"),
        ],
    }  # fmt: skip
    for made, command in steps.items():
        if not made.exists():
            run(*command, log=work / f"{Path(command[0]).stem}.log")
    return read_json(data / "manifest.json", "dataset manifest")["ceiling"]


def half_way(folder: Path, *, bar: float) -> Path:
    """Return the first checkpoint of a training whose Recall@1 on validation reaches a bar.

    Raises:
        InputError: none does.
    """
    states = sorted(folder.glob("checkpoint-*/trainer_state.json"), key=lambda file: int(file.parent.name[11:]))
    for row in json.loads(states[-1].read_text(encoding="utf-8"))["log_history"]:
        if row.get("eval_recall@1", 0.0) >= bar:
            return folder / f"checkpoint-{row['step']}"
    raise InputError(f"{folder}: no checkpoint reaches Recall@1 {bar:.4f} on validation; train longer (--epochs)")


def check_seed(seed: int, work: Path, *, ceiling: Mapping[str, float], epochs: float) -> dict[str, Any]:
    """Train and score all systems of one seed."""
    data, here = work / "data", work / f"seed-{seed}"
    own = ["--dataset", str(data), "--overwrite_output_dir", "true", "--seed", str(seed)]
    first = here / "sft"
    train = [
        "recipes/sft.py",
        "--config",
        SFT,
        "--sids",
        str(data / "sids"),
        *own,
        "--eval_ks",
        *KS,
        "--eval_score",
        SCORE,
    ]
    seconds = run(
        *train, "--output_dir", str(first), "--num_train_epochs", f"{epochs:g}", "--eval_strategy", "steps",
        "--eval_steps", str(LOOK_EVERY), "--save_strategy", "steps", "--save_steps", str(LOOK_EVERY),
        "--save_total_limit", "1000", log=here / "sft.log",
    )  # fmt: skip
    start = half_way(first, bar=ceiling["recall@1"] / 2)
    last = max(int(path.name[11:]) for path in first.glob("checkpoint-*"))
    folders, took = {"start": start}, {"start": seconds * int(start.name[11:]) / last}
    for name, command in METHODS.items():
        folders[name] = here / name
        took[name] = run(
            *command, "--model", str(start), *own, "--eval_ks", *KS, "--output_dir", str(folders[name]),
            log=here / f"{name}.log",
        )  # fmt: skip
    # The schedule of the first training had not come down yet: this one starts where it stood and comes down
    folders["sft_again"] = here / "sft_again"

    def again(steps: int) -> float:
        return run(
            *train, "--start_from", str(start), "--output_dir", str(folders["sft_again"]), "--max_steps", str(steps),
            "--eval_strategy", "steps", "--eval_steps", str(max(steps // 5, 1)), "--save_strategy", "steps",
            "--save_steps", str(max(steps // 5, 1)), log=here / "sft_again.log",
        )  # fmt: skip

    steps, took["sft_again"] = run_for(took["grpo"], again, first=math.ceil(took["grpo"] * last / seconds))
    found: dict[str, Any] = {}
    for name, folder in folders.items():
        results = here / f"{name}.json"
        run(
            "recipes/evaluate.py", "--model", str(folder), "--dataset", str(data), "--split", "test", "--ks", *KS,
            "--num_beams", "20", "--score", SCORE, "--name", name, "--output", str(results),
            log=here / f"{name}-test.log",
        )  # fmt: skip
        found[name] = {**_metrics(results), "seconds": round(took[name], 1)}
    gap = ceiling["recall@1"] - found["start"]["recall@1"]
    for row in found.values():
        row["gap"] = (row["recall@1"] - found["start"]["recall@1"]) / gap
    return {"start_step": int(start.name[11:]), "steps_again": steps, "systems": found}


def run_for(wanted: float, train: Callable[[int], float], *, first: int) -> tuple[int, float]:
    """Train for about as many seconds as are wanted, anew with more or fewer steps until that is met.

    Args:
        wanted: seconds, of which a start takes its part however few steps follow.
        train: takes steps and returns seconds.
        first: steps that are tried first.

    Returns:
        Steps and seconds of the last training: within `CLOSE` of what is wanted, or of the `TRIES`-th.
    """
    tried = [(first, train(first))]
    while len(tried) < TRIES and abs(tried[-1][1] / wanted - 1) > CLOSE:
        steps, took = tried[-1]
        other_steps, other = tried[-2] if len(tried) > 1 else (0, 0.0)
        if (took - other) * (steps - other_steps) > 0:
            steps += round((wanted - took) * (steps - other_steps) / (took - other))
        tried.append((max(steps, 1), train(max(steps, 1))))
    return tried[-1]


def _metrics(file: Path) -> dict[str, float]:
    row = read_json(file, "results file")["results"][-1]
    return {name: row["metrics"][name] for name in ("recall@1", "recall@5", "recall@10", "ndcg@10")}


def main(argv: Sequence[str] | None = None) -> None:
    """Check all seeds, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--jobs", type=int, default=1, help="seeds at a time")
    parser.add_argument("--users", type=int, default=2500, help="of the generated data")
    parser.add_argument("--epochs", type=float, default=4, help="of the first training")
    parser.add_argument("--work", type=Path, default=Path("runs/check_rl"), help="folder for data and runs")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    work = args.work.resolve()
    ceiling = make_data(work, users=args.users)
    found: dict[str, Any] = read_json(args.out, "checked seeds")["seeds"] if args.out.is_file() else {}
    left = [seed for seed in args.seeds if str(seed) not in found]
    with ThreadPoolExecutor(args.jobs) as pool:
        jobs = {seed: pool.submit(check_seed, seed, work, ceiling=ceiling, epochs=args.epochs) for seed in left}
        for seed, job in jobs.items():
            found[str(seed)] = job.result()
            print(f"seed {seed}: {json.dumps(found[str(seed)])}", flush=True)
            write_json(args.out, {"ceiling": ceiling, "seeds": found, "made_by": made_by()})


if __name__ == "__main__":
    run_command(main)
