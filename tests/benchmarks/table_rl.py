"""Put what reinforcement learning brings on real data into one table, over several seeds.

    OMP_NUM_THREADS=1 python tests/benchmarks/table_rl.py --dataset data/office --jobs 2 \
        --starts runs/office-2l-0 runs/office-2l-1 runs/office-2l-2 \
        --configs recipes/configs/office/grpo_small-qwen3-2l_exact.yaml \
        --rows recipes/results/office --out recipes/results/rl/office.json

Start number S, and every config run from it with ``--seed S``, are read on the test part once, seen items kept and
left out (--exclude_seen). Configs choose on validation by themselves. Beside the table, a results file a system and
seed goes to --rows, as recipes/evaluate.py writes it, for recipes/compare.py. What --out has already is kept, so that
a table that was cut off goes on.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from check_rl import run

from llmrec.artifacts import made_by, read_json, write_json
from llmrec.errors import run_command

METRICS = ("recall@5", "ndcg@5", "recall@10", "ndcg@10", "coverage@10")
SCORE = "allowed"


def read(bundle: Path, name: str, *, out: Path, args: argparse.Namespace, log: Path) -> dict[str, Any]:
    """Score a bundle on test, and return its metrics with seen items kept and left out."""
    run(
        "recipes/evaluate.py", "--model", str(bundle), "--dataset", args.dataset, "--split", "test", "--ks", "5", "10",
        "--num_beams", "20", "--score", SCORE, "--exclude_seen", args.exclude_seen, "--baselines", "popularity",
        "--name", name, "--output", str(out), log=log,
    )  # fmt: skip
    rows = [row for row in read_json(out, "results file")["results"] if row["name"].startswith(name)]
    return {
        "left out" if row["exclude_seen"] else "kept": {key: row["metrics"][key] for key in METRICS} for row in rows
    }


def one(seed: int, config: Path | None, args: argparse.Namespace) -> dict[str, Any]:
    """Train a config from a start, or take the start itself, and read it on test."""
    start, said = args.starts[seed], {}
    name = "start" if config is None else config.stem
    folder, log = args.work / f"{name}-{seed}", args.work / f"{name}-{seed}.log"
    if config is None:
        folder = start
    else:
        script = f"recipes/{config.stem.split('_')[0]}.py"
        seconds = run(
            script, "--config", str(config), "--model", str(start), "--dataset", args.dataset, "--seed", str(seed),
            "--output_dir", str(folder), "--overwrite_output_dir", "true", log=log,
        )  # fmt: skip
        said = {"seconds": round(seconds, 1), "best": read_json(folder / "llmrec.json", "manifest").get("best")}
    file = args.rows / (f"{name}_seed{seed}.json" if seed else f"{name}.json")
    if config is None:
        file = args.work / file.name
    return {**said, **read(folder, name, out=file, args=args, log=args.work / f"{name}-{seed}-test.log")}


def table(found: dict[str, dict[str, Any]]) -> str:
    """Return the means and standard deviations over seeds as a table in markdown."""
    lines = ["| system | seen | seeds | R@5 | N@5 | R@10 | N@10 | coverage@10 | seconds |", "|---|---|" + "---:|" * 7]
    for name, seeds in found.items():
        for seen in sorted(next(iter(seeds.values())).keys() & {"kept", "left out"}):
            values = [[row[seen][key] for row in seeds.values()] for key in METRICS]
            seconds = [row["seconds"] for row in seeds.values() if "seconds" in row]
            cells = [_mean(column) for column in values]
            cells.append(f"{statistics.mean(seconds):.0f}" if seconds else "-")
            lines.append(f"| {name} | {seen} | {len(seeds)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread}"


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--starts", type=Path, nargs="+", required=True, help="bundles, one a seed, from seed 0")
    parser.add_argument("--configs", type=Path, nargs="+", required=True, help="of recipes/grpo.py and recipes/dpo.py")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--exclude_seen", default="both", help="both, true or false: how test is read")
    parser.add_argument("--work", type=Path, default=Path("runs/table_rl"), help="folder for runs and logs")
    parser.add_argument("--rows", type=Path, required=True, help="folder of the results files")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    found: dict[str, dict[str, Any]] = read_json(args.out, "table")["systems"] if args.out.is_file() else {}
    asked = [(seed, config) for seed in range(len(args.starts)) for config in (None, *args.configs)]
    names = {config: "start" if config is None else config.stem for _, config in asked}
    left = [(seed, config) for seed, config in asked if str(seed) not in found.get(names[config], {})]
    with ThreadPoolExecutor(args.jobs) as pool:
        jobs = {key: pool.submit(one, *key, args) for key in left}
        for (seed, config), job in jobs.items():
            found.setdefault(names[config], {})[str(seed)] = job.result()
            print(f"{names[config]}, seed {seed}: {json.dumps(found[names[config]][str(seed)])}", flush=True)
            write_json(args.out, {"systems": found, "made_by": made_by()})
    text = table(found)
    args.out.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    run_command(main)
