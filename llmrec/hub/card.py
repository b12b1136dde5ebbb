"""The model card: what a bundle is, how to load it with and without llmrec, and how good it is."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow.parquet as pq
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from llmrec.artifacts import read_json, whole_file
from llmrec.errors import InputError
from llmrec.hub.info import ADAPTER_CONFIG_FILE, CARD_FILE, read_info
from llmrec.sids.table import SIDTable

TEMPLATE = Path(__file__).with_name("card_template.md")
SNIPPET_BEAMS, SNIPPET_LINES = 50, 25
BUILT_MODELS = ("tiny-qwen3", "small-qwen3", "tiny-t5", "tiger-t5")
"""Base models that are built from a config, so that there is no base but the name."""
_METHODS = {
    "full": "all weights were trained",
    "lora": "LoRA matrices and the rows of the SID tokens were trained",
    "qlora": "LoRA matrices and the rows of the SID tokens were trained on a base in 4 bits",
    "new_rows": "only the rows of the SID tokens were trained",
}
_SETTINGS = ("exclude_seen", "score", "num_beams", "users")


def save_card(path: str | Path, *, name: str | None = None) -> None:
    """Write a bundle folder's ``README.md``.

    Args:
        path: the folder, with all else of the bundle.
        name: what the card's code loads: a hub id or a folder; None takes ``path``.

    Raises:
        InputError: the folder is no bundle.
    """
    path = Path(path)
    card = render_card(path, name=name or str(path))
    with whole_file(path / CARD_FILE) as part:
        part.write_text(card, encoding="utf-8")


def render_card(path: Path, *, name: str) -> str:
    """Return the model card of a bundle folder as Markdown with its YAML header; ``name`` is what its code loads.

    Raises:
        InputError: the folder is no bundle.
    """
    info, table = read_info(path), SIDTable.load(path)
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    columns = pq.read_table(path / "sid_table.parquet", columns=None).to_pydict()
    popularity = columns.get("popularity") or [0] * len(table)
    often = sorted(np.flatnonzero(~table.is_retired).tolist(), key=lambda row: -popularity[row])[:2]
    history = [table.item_ids[row] for row in often]
    adapter = (path / ADAPTER_CONFIG_FILE).is_file()
    title = _line(name.rstrip("/").rsplit("/", 1)[-1])
    card = ModelCard.from_template(
        _metadata(info, title=title, adapter=adapter),
        template_str=TEMPLATE.read_text(encoding="utf-8"),
        title=title,
        name=json.dumps(name, ensure_ascii=False),
        history=json.dumps(history, ensure_ascii=False),
        adapter=adapter,
        packages="transformers, pyarrow and peft" if adapter else "transformers and pyarrow",
        snippet=standalone_code(
            info, table, tokenizer, name=name, history=history, adapter=adapter, popularity="popularity" in columns,
            architecture=info.get("architecture") or _architecture(path),
        ),
        prompt=_prompt_text(info),
        dataset={key: _line(value) for key, value in info["dataset"].items() if isinstance(value, str)},
        domain=_line(info["prompt"]["domain"]),
        counts=", ".join(f"{_line(key)} {value}" for key, value in (info["dataset"].get("counts") or {}).items()),
        recovered=info["dataset"].get("train") == "recovered",
        protocol=_line(info["protocol"]),
        sids=_sid_text(table),
        updates=_updates_text(info),
        base_model=_line(_base_name(info["base_model"])),
        scratch=info["base_model"] in BUILT_MODELS,
        base_revision=info.get("base_revision"),
        method=_METHODS.get(info["method"], _line(info["method"])),
        training=_training_text(info),
        metrics=_metrics_table(info),
        versions=", ".join(f"{key} {value}" for key, value in (info.get("versions") or {}).items()),
        commit=info.get("commit"),
        weights_licence=info.get("weights_licence"),
    )  # fmt: skip
    return str(card)


def standalone_code(
    info: Mapping[str, Any],
    table: SIDTable,
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str,
    history: list[str],
    adapter: bool,
    popularity: bool,
    architecture: str,
) -> str:
    """Return at most `SNIPPET_LINES` lines that recommend without llmrec: stock ``generate``, held to the SIDs.

    The last of them prints the ten best item ids. Scores are log-probabilities over the whole vocabulary; the end
    token is not scored, also where SIDs end at several depths.

    Args:
        info: the bundle's manifest.
        table: its SIDs.
        tokenizer: its tokenizer.
        name: hub id or folder to load.
        history: item ids to start from, oldest first.
        adapter: whether the bundle is a PEFT adapter.
        popularity: whether ``sid_table.parquet`` has that column.
        architecture: ``causal`` or ``seq2seq``.
    """
    seq2seq = architecture == "seq2seq"
    auto = "AutoModelForSeq2SeqLM" if seq2seq else "AutoModelForCausalLM"
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else _start_token_id(tokenizer)
    prompt = info["prompt"]
    retired = bool(table.is_retired.any())
    sids = len({tuple(codes) for codes in table.codes[~table.is_retired].tolist()})
    live = "live" if retired else "sids"
    unequal = bool((table.codes < 0).any())
    order = "" if table.unique or not popularity else '.sort_by([("popularity", "descending")])'
    revision = f", revision={json.dumps(info['base_revision'])}" if info.get("base_revision") else ""
    dtype = f", dtype=torch.{info['dtype']}" if re.fullmatch(r"b?float\d+", str(info.get("dtype"))) else ""
    settings = f"pad_token_id={end}, eos_token_id={end}" + (", decoder_start_token_id=start" if seq2seq else "")
    lines = ["import pyarrow.parquet as pq", "import torch"]
    lines += ["from peft import PeftModel"] if adapter else []
    lines += [
        f"from transformers import {auto}, AutoTokenizer, GenerationConfig",
        "from transformers.utils import cached_file",
        f"name, history = {_literal(name)}, {_literal(history)}",
        "tokenizer = AutoTokenizer.from_pretrained(name)",
    ]
    if adapter:
        lines += [
            f"model = {auto}.from_pretrained({_literal(info['base_model'])}{revision}{dtype})",
            f"model.resize_token_embeddings({info['vocab_rows']}, mean_resizing=False)",
            "model = PeftModel.from_pretrained(model, name)",
        ]
    else:
        lines += [f"model = {auto}.from_pretrained(name)"]
    chosen = '(live := {i: sids[i] for i, gone in zip(table["item_id"], table["retired"]) if not gone})'
    lines += [
        f'table = pq.read_table(cached_file(name, "sid_table.parquet")){order}.to_pydict()',
        'words = [[f"<{chr(97 + i)}_{code}>" for i, code in enumerate(codes)] for codes in table["codes"]]',
        'sids = dict(zip(table["item_id"], map(tokenizer.convert_tokens_to_ids, words)))',
        "trie = {}  # legal next tokens by the tokens before them",
        f"for sid in {chosen if retired else 'sids'}.values():",
        "    for i in range(len(sid)): trie.setdefault(tuple(sid[:i]), {})[sid[i]] = True",
    ]
    lines += [f"prompt = [token for item in history[-{prompt['max_history']}:] for token in sids[item]]"]
    template = prompt["templates"].get("next_item", "{prompt}").replace("{domain}", prompt["domain"])
    text = f'{_literal(template)}.replace("{{prompt}}", "".join(tokenizer.convert_ids_to_tokens(prompt)))'
    if prompt["kind"] == "chat":
        lines += [
            f'chat = [{{"role": "user", "content": {text}}}]',
            "prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, enable_thinking=False, "
            "return_dict=False)",
        ]
    elif template != "{prompt}":
        lines += [f"text = {text}"]
        lines += [f"prompt = [{_start_token_id(tokenizer)}] + tokenizer.encode(text, add_special_tokens=False)"]
    else:
        lines[-1] = lines[-1].replace("prompt = ", f"prompt = [{_start_token_id(tokenizer)}] + ")
    skip = "1" if seq2seq else "len(prompt)"
    lines += ["start = model.config.decoder_start_token_id"] if seq2seq else []
    lines += [
        f"model.generation_config = GenerationConfig({settings})",
        f"legal = lambda _, ids: list(trie.get(tuple(ids[{skip}:].tolist()), [{end}]))",
        "found = model.generate(torch.tensor([prompt]), prefix_allowed_tokens_fn=legal, do_sample=False,",
    ]
    if unequal:  # the step that only ends a shorter SID must not lower its score
        free = f"lambda _, s: s.index_fill(1, torch.tensor([{end}]), 0.0).where(s.isfinite(), s)"
        lines += [f"    logits_processor=[{free}],"]
    beams = max(SNIPPET_BEAMS, min(10, sids))
    lines += [
        f"    num_beams={beams}, num_return_sequences={min(10, sids)}, max_new_tokens={table.levels}, "
        "length_penalty=0.0)",
        f"print([item for ids in found[:, {skip}:].tolist() "
        f"for item in {live} if sids[item] == [t for t in ids if t != {end}]][:10])",
    ]
    if len(lines) < SNIPPET_LINES:
        lines.insert(next(place for place, line in enumerate(lines) if line.startswith("name,")), "")
    return "\n".join(lines)


def _literal(value: str | list[str]) -> str:
    """Return Python source of a string or of strings, on one line."""
    return json.dumps(value, ensure_ascii=False)


def _start_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return what opens a plain prompt, as `llmrec.tasks.prompt.start_token_id` does: BOS, else EOS, else padding."""
    for token_id in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id):
        if token_id is not None:
            return cast(int, token_id)
    raise InputError("tokenizer: it has no BOS, EOS or padding token; set one of them before training")


def _architecture(path: Path) -> str:
    config = path / "config.json"
    encoder_decoder = config.is_file() and read_json(config, "model config").get("is_encoder_decoder")
    return "seq2seq" if encoder_decoder else "causal"


def _metadata(info: Mapping[str, Any], *, title: str, adapter: bool) -> ModelCardData:
    results = []
    for row in info["metrics"]:
        settings = [f"{key}={row[key]}" for key in _SETTINGS if row.get(key) is not None]
        for metric, value in row["metrics"].items():
            if value != value:  # a NaN is no YAML number
                continue
            results.append(
                EvalResult(
                    task_type="recommendation",
                    task_name="Sequential recommendation",
                    dataset_type=re.sub(r"[^a-z0-9]+", "-", str(row["dataset"]).lower()).strip("-") or "dataset",
                    dataset_name=_line(row["dataset"]),
                    dataset_config=", ".join([str(row.get("protocol", info["protocol"])), *settings]),
                    dataset_split=str(row["split"]),
                    metric_type=metric,
                    metric_name=metric,
                    metric_value=float(value),
                )
            )
    base = info["base_model"]
    return ModelCardData(
        model_name=title,
        library_name="peft" if adapter else "transformers",
        tags=["llmrec", "recommender-system", "generative-recommendation", "semantic-ids"],
        base_model=base if is_hub_id(base) and "/" in base else None,
        license=info.get("weights_licence"),
        eval_results=results or None,
    )


def is_hub_id(name: str) -> bool:
    """Return whether a model's name can be a hub id, and names no folder of this machine."""
    return (
        re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) is not None and not name.startswith(".") and not Path(name).exists()
    )


def _base_name(base: str) -> str:
    """Return what a card calls a base model: its hub id, or the last part of its folder, the rest being private."""
    return base if is_hub_id(base) else re.split(r"[\\/]", base.rstrip("\\/"))[-1]


def _prompt_text(info: Mapping[str, Any]) -> str:
    prompt = info["prompt"]
    form = "a start token, then the SIDs of" if prompt["kind"] == "plain" else "a chat turn of the user about"
    return f"{form} the last {prompt['max_history']} items, oldest first; the answer is the SID of the next one"


def _sid_text(table: SIDTable) -> str:
    sizes = " x ".join(map(str, table.codebook_sizes))
    shared = "no two items share a SID" if table.unique else "some items share a SID and come out by popularity"
    depth = "" if (table.codes >= 0).all() else "; SIDs end at several depths"
    gone = int(table.is_retired.sum())
    retired = f"; {gone} items are retired: histories may hold them, and they never come out" if gone else ""
    items = f"{len(table)} items"
    return f"method `{_line(table.method)}`, {table.levels} levels ({sizes} codes), {items}, {shared}{depth}{retired}"


def _updates_text(info: Mapping[str, Any]) -> str:
    updates = info.get("updates") or ()
    if not updates:
        return ""
    totals = {key: sum(update.get(key, 0) for update in updates) for key in ("added", "retired", "restored")}
    done = ", ".join(f"{count} items {key}" for key, count in totals.items() if count)
    return (
        f"The catalogue changed after training ({_line(updates[-1]['date'])}): {done}. No old SID changed and "
        "the weights are as they were; the figures below were measured before, unless their row says otherwise."
    )


def _training_text(info: Mapping[str, Any]) -> str:
    parts = [f"seed {info['seed']}"]
    parts += [f"supervise `{_line(info['supervise'])}`"] if info.get("supervise") else []
    if info.get("tasks"):
        tasks = info["tasks"]
        names = [f"{key} {value}" for key, value in tasks.items()] if isinstance(tasks, Mapping) else tasks
        parts += ["tasks " + ", ".join(f"`{_line(name)}`" for name in names)]
    if isinstance(info.get("training"), Mapping):
        parts += [
            f"{_line(key)} {_line(value)}"
            for key, value in info["training"].items()
            if key != "seed" and value is not None
        ]
    return ", ".join(parts)


def _metrics_table(info: Mapping[str, Any]) -> str:
    rows = info["metrics"]
    if not rows:
        return "None were recorded. `recipes/evaluate.py` measures them from this bundle and a dataset folder."
    names = list(dict.fromkeys(name for row in rows for name in row["metrics"]))
    heads = ["dataset", "split", "protocol", *_SETTINGS]
    note = "`users` is how many rows of the split were scored, all of them or a sample."
    if any(row["split"] == "valid" for row in rows):
        note += (
            " Checkpoints are chosen by the split `valid`, so its figures flatter the model a little; "
            "`recipes/evaluate.py` measures the test split."
        )
    lines = [note, "", "| " + " | ".join([*heads, *names]) + " |", "|" + "---|" * (len(heads) + len(names))]
    for row in rows:
        values = {"protocol": info["protocol"], **{key: value for key, value in row.items() if value is not None}}
        cells = [_cell(values.get(head, "")) for head in heads]
        cells += [f"{row['metrics'][name]:.4f}" if name in row["metrics"] else "" for name in names]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _line(value: Any) -> str:
    """Return text on one line, without the characters that Markdown or HTML would read as markup of their own."""
    return re.sub(r"[`<>|]", "", " ".join(str(value).split()))


def _cell(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else _line(value)
