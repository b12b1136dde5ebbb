"""Let a chat model write texts about users: intentions, preferences, explanations or rationales.

python data_prep/write_texts.py --dataset data/office --kind intentions --model Qwen/Qwen3-0.6B

The model is any causal language model in Hugging Face form, by hub name or folder. It sees titles, descriptions and
reviews of training interactions under --protocol, never one of validation or test. The texts go to KIND.parquet in
the dataset folder, with a manifest KIND.json. Shards lie in KIND.shards until the end: the same command goes on after
a kill.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmrec.data.folder import PROTOCOLS, load_dataset
from llmrec.data.written_texts import KINDS
from llmrec.embeddings.text import DTYPES, folder_fingerprint
from llmrec.errors import InputError, run_command
from llmrec.launch import checked_device
from llmrec.tasks.writing import TEMPLATES, Shards, check_unwritten, generate_texts, writing_requests


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--dataset", type=Path, required=True, help="dataset folder")
    parser.add_argument("--kind", choices=KINDS, required=True, help="what is written")
    parser.add_argument("--model", required=True, help="hub name or folder of a causal language model")
    parser.add_argument("--revision", help="branch, tag or commit on the hub")
    parser.add_argument("--protocol", choices=PROTOCOLS, help="whose training interactions (default: the dataset's)")
    parser.add_argument("--per_user", type=int, default=2, help="most texts of a user, 0 for all (%(default)s)")
    parser.add_argument("--limit", type=int, help="most texts in all, a seeded sample")
    parser.add_argument("--history", type=int, default=10, help="most recent items that are told (%(default)s)")
    parser.add_argument("--template", type=Path, help="text file with {history}, {item}, {review} to ask with")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (%(default)s); texts are greedy")
    parser.add_argument("--max_new_tokens", type=int, default=80, help="most tokens of a text (%(default)s)")
    parser.add_argument("--batch_size", type=int, default=8, help="prompts in a pass (%(default)s)")
    parser.add_argument("--shard_size", type=int, default=256, help="texts of a shard (%(default)s)")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float32")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace texts that are there, or shards of another run"
    )
    args = parser.parse_args(argv)
    least = {"per_user": 0, "history": 1, "limit": 1, "max_new_tokens": 1, "batch_size": 1, "shard_size": 1}
    for name, low in least.items():
        value = getattr(args, name)
        if value is not None and value < low:
            raise InputError(f"--{name} {value}: at least {low}")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Ask the model about a sample of moments, shard by shard, and join what it wrote."""
    args = parse_args(argv)
    check_unwritten(args.dataset, args.kind, overwrite=args.overwrite)
    dataset = load_dataset(args.dataset)
    splits = dataset.split(args.protocol)
    template = TEMPLATES[args.kind]
    if args.template is not None:
        if not args.template.is_file():
            raise InputError(f"--template {args.template}: no such file")
        template = args.template.read_text(encoding="utf-8").strip()
    requests = writing_requests(
        dataset,
        splits,
        args.kind,
        template=template,
        per_user=args.per_user,
        limit=args.limit,
        history=args.history,
        seed=args.seed,
    )

    device = checked_device(None if args.device == "auto" else args.device)
    try:
        tokenizer = AutoTokenizer.from_pretrained(args.model, revision=args.revision)
        model: Any = AutoModelForCausalLM.from_pretrained(args.model, revision=args.revision, dtype=DTYPES[args.dtype])
    except (OSError, ValueError) as error:
        raise InputError(f"--model {args.model}: not a causal language model that can be loaded ({error})") from error
    model = model.to(device).eval()
    local = Path(args.model).is_dir()
    revision = folder_fingerprint(args.model) if local else getattr(model.config, "_commit_hash", None)

    identity = {
        "model": args.model,
        "revision": revision,
        "template": template,
        "seed": args.seed,
        "protocol": splits.protocol,
        "catalog_hash": dataset.catalog.hash,
        "history": args.history,
        "max_new_tokens": args.max_new_tokens,
        "dtype": args.dtype,
    }
    shards = Shards.open(
        args.dataset, args.kind, requests, identity=identity, size=args.shard_size, overwrite=args.overwrite
    )
    answer = partial(generate_texts, model, tokenizer, batch_size=args.batch_size, max_new_tokens=args.max_new_tokens)
    written = shards.write(answer)
    path, count = shards.join(args.kind, identity | {"torch": torch.__version__})
    print(f"{path}: {count} texts, {written} written now, {len(requests) - count} blank and left out")


if __name__ == "__main__":
    run_command(main)
