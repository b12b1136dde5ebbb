"""A bundle as a policy: whole weights, adapters, new adapters; its data; and what does not fit is refused."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import PreTrainedModel, set_seed

from llmrec.data.folder import DatasetFolder, write_dataset
from llmrec.data.items import Catalog
from llmrec.data.splits import History
from llmrec.decoding.recommender import LLMRecommender
from llmrec.errors import InputError
from llmrec.hub import load_bundle, save_bundle
from llmrec.sids.table import SIDTable
from llmrec.training.grpo_config import GRPORecipeConfig
from llmrec.training.policy import Policy, load_policy, prompt_rows, read_start, rows_to_prompts
from llmrec.training.reference_policy import load_reference
from llmrec.training.rl_config import RLArguments
from llmrec.training.rl_finish import rl_identity
from tests.rl_kit import write_adapter, write_bundle


@pytest.fixture(scope="module")
def bundles(tmp_path_factory, dataset, tokenizer, table, vocab) -> Callable[..., Path]:
    made: dict[str, Path] = {}

    def bundle(kind: str, make: Callable[..., PreTrainedModel], **more: Any) -> Path:
        name = kind + json.dumps(more)
        if name not in made:
            given = {"dataset": dataset, "tokenizer": tokenizer, "table": table, **more}
            path = tmp_path_factory.mktemp("bundles") / kind
            if kind == "full":
                write_bundle(path, make(), **given)
            else:
                write_adapter(path, path.with_name("base"), make, vocab, method=kind, **given)
            made[name] = path
        return made[name]

    return bundle


@pytest.fixture
def arguments(bundles, make_model, dataset: DatasetFolder) -> Callable[..., RLArguments]:
    def made(kind: str = "full", **values: Any) -> RLArguments:
        return RLArguments(dataset=str(dataset.path), model=str(bundles(kind, make_model)), **values)

    return made


def trained(policy: Policy) -> list[str]:
    return [name for name, value in policy.model.named_parameters() if value.requires_grad]


def recommended(model: Any, policy: Policy) -> list[list[int]]:
    found = LLMRecommender(model, policy.tokenizer, policy.vocab, policy.form, num_beams=10)
    return [[int(item) for item in row] for row in found.recommend([[1, 2, 3], [7]], k=10)]


@pytest.mark.parametrize(
    ("kind", "method", "adapter", "some"),
    [
        ("full", None, False, "embed_tokens.weight"),
        ("lora", None, True, "lora_A.default.weight"),
        ("new_rows", None, True, "trainable_tokens_delta.default"),
        ("lora", "full", False, "q_proj.weight"),
        ("full", "lora", True, "lora_B.default.weight"),
        ("full", "new_rows", True, "trainable_tokens_delta.default"),
    ],
)
def test_a_policy_is_its_bundle_and_trains(arguments, kind: str, method, adapter: bool, some: str, tmp_path) -> None:
    given = arguments(kind, method=method)
    set_seed(0)
    policy = load_policy(given)
    assert isinstance(policy.model, PeftModel) is adapter
    names = trained(policy)
    assert any(name.endswith(some) for name in names)
    if policy.method == "new_rows":
        assert all("trainable_tokens_delta" in name for name in names)
    if adapter:
        assert any("trainable_tokens_delta" in name for name in names), "SID rows train beside the matrices"
    bundle = load_bundle(given.model)
    before = recommended(bundle.model, policy)
    assert recommended(policy.model, policy) == before
    info = {**policy.info, "method": policy.method, "base_model": read_start(given).base_model}
    save_bundle(tmp_path / "b", model=policy.model, tokenizer=policy.tokenizer, table=policy.table, info=info)
    assert recommended(load_bundle(tmp_path / "b").model, policy) == before, "written as it was read"


def test_prompts_are_of_training_targets(arguments, dataset: DatasetFolder) -> None:
    given = arguments()
    start = read_start(given)
    policy = load_policy(given, start)
    rows = prompt_rows(start.inputs, given, policy.vocab, seed=0)
    assert rows.column_names == ["prompt", "target", "history", "user_row"]
    sequences = dataset.interactions.sequences()
    for row in rows:
        known = sequences[row["user_row"]][:-2]  # the last two are held out
        place = len(known) - 1 - known[::-1].index(row["target"])
        assert row["history"] == list(known[:place][-6:]) or row["target"] in known[:place]
        ids = policy.form.encode(policy.tokenizer, row["prompt"], "next_item")
        assert ids == policy.form.encode_history(policy.tokenizer, policy.vocab, row["history"])
    assert len(rows) == sum(len(sequence) - 3 for sequence in sequences)
    last = prompt_rows(start.inputs, arguments(targets="last"), policy.vocab, seed=0)
    assert last["target"] == [sequence[-3] for sequence in sequences]
    few = [prompt_rows(start.inputs, arguments(prompts=7), policy.vocab, seed=seed)["prompt"] for seed in (0, 0, 1)]
    assert len(few[0]) == 7
    assert few[0] == few[1] != few[2]


def test_retired_targets_are_no_prompts(arguments, dataset: DatasetFolder) -> None:
    given = arguments()
    start = read_start(given)
    vocab = load_policy(given, start).vocab
    whole = prompt_rows(start.inputs, given, vocab, seed=0)
    gone = whole["target"][0]
    vocab.retired = np.arange(len(vocab)) == gone
    assert prompt_rows(start.inputs, given, vocab, seed=0)["target"] == [
        target for target in whole["target"] if target != gone
    ]
    vocab.retired = np.ones(len(vocab), dtype=bool)
    with pytest.raises(InputError, match=f"all training targets of {given.dataset} are retired items"):
        prompt_rows(start.inputs, given, vocab, seed=0)


def test_a_run_of_another_dtype_does_not_go_on(arguments, tmp_path: Path) -> None:
    training = GRPORecipeConfig(output_dir=str(tmp_path / "out"), use_cpu=True, bf16=False, report_to="none")
    start = read_start(arguments())
    same, other = (rl_identity(arguments(dtype=dtype), training, start) for dtype in (None, "bfloat16"))
    assert start.info["dtype"] == "float32"
    assert same == rl_identity(arguments(dtype="float32"), training, start)
    assert {name for name in same if same[name] != other[name]} == {"dtype"}


def test_a_target_outside_the_sid_table_is_refused(vocab) -> None:
    with pytest.raises(
        InputError, match="prompt 1: item 30 is not in the SID table of 30 items; train on the dataset"
    ):
        rows_to_prompts([History(0, (1,), 2), History(0, (1,), 30)], vocab, max_history=5)


def test_another_catalogue_is_refused(arguments, dataset: DatasetFolder, tmp_path: Path) -> None:
    titles = tuple(title + "!" for title in dataset.catalog.titles)
    catalog = Catalog(tuple(f"x{row}" for row in range(len(titles))), {"title": titles})
    manifest = {name: dataset.manifest[name] for name in ("name", "domain", "source", "licence", "times")}
    write_dataset(tmp_path / "other", catalog=catalog, interactions=dataset.interactions, manifest=manifest)
    with pytest.raises(InputError, match="catalog"):
        read_start(replace(arguments(), dataset=str(tmp_path / "other")))


def test_another_protocol_is_refused(arguments) -> None:
    with pytest.raises(InputError, match="was trained under protocol 'leave_one_out', and this run's is 'temporal'"):
        read_start(arguments(protocol="temporal"))


def test_an_adapter_of_another_method_is_refused(arguments) -> None:
    with pytest.raises(
        InputError, match=r"method: qlora on .*, an adapter that was trained by lora; leave method out"
    ):
        read_start(arguments("lora", method="qlora"))


def test_no_bundle_is_refused(arguments, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"not a bundle, it has no llmrec\.json"):
        read_start(replace(arguments(), model=str(tmp_path / "empty")))


def test_a_hub_id_without_a_network_is_refused(arguments) -> None:
    with pytest.raises(InputError, match="nobody/nothing: neither a folder nor a hub repository that can be read"):
        read_start(replace(arguments(), model="nobody/nothing"))


def test_a_bundle_without_its_sid_rows_is_refused(arguments, tmp_path: Path) -> None:
    path = tmp_path / "bare"
    shutil.copytree(arguments("lora").model, path)
    config = json.loads((path / "adapter_config.json").read_text())
    config["trainable_token_indices"] = None
    (path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="the adapter holds no trained rows of 11 of 11 SID tokens"):
        load_policy(replace(arguments(), model=str(path)))


def test_a_reference_of_another_base_is_refused(arguments, bundles, make_model) -> None:
    given = arguments()
    start = read_start(given)
    policy = load_policy(given, start)
    other = bundles("full", make_model, base_model="small-qwen3")
    with pytest.raises(InputError, match=r"reference: .* was made from another base model \('small-qwen3' there"):
        load_reference(replace(given, reference=str(other)), start, policy)


def test_a_reference_of_other_sids_is_refused(arguments, tmp_path, make_model, dataset, tokenizer, table) -> None:
    given = arguments()
    start = read_start(given)
    policy = load_policy(given, start)
    codes = np.asarray(table.codes)[::-1].copy()
    other = SIDTable(table.item_ids, codes, table.codebook_sizes, "by_hand", {}, {})
    write_bundle(tmp_path / "other", make_model(), dataset=dataset, tokenizer=tokenizer, table=other)
    with pytest.raises(InputError, match="was made from another SIDs"):
        load_reference(replace(given, reference=str(tmp_path / "other")), start, policy)


def test_a_reference_under_the_policy_s_own_adapter_is_taken(arguments, bundles, make_model) -> None:
    full = bundles("full", make_model)
    given = arguments(method="lora", reference=str(full))
    start = read_start(given)
    policy = load_policy(given, start)
    reference = load_reference(given, start, policy)
    assert reference is not None
    assert not any(value.requires_grad for value in reference.parameters())
    assert torch.equal(reference.get_input_embeddings().weight, load_bundle(full).model.get_input_embeddings().weight)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": ""}, "model: ''; give a path or name"),
        ({"method": "all"}, "method: 'all'; choose one of full, lora, qlora, new_rows"),
        ({"softmax": "items"}, "softmax: 'items'; choose one of full, sids, allowed"),
        ({"targets": "first"}, "targets: 'first'; choose one of all, last"),
        ({"prompts": 0}, "prompts: 0; a whole number, at least 1"),
        ({"train_users": 0.0}, "train_users: 0.0; a share of the users"),
        ({"eval_ks": [50]}, r"eval_ks: \[50\]; none is above eval_beams \(20\)"),
        ({"dtype": "int8"}, "dtype: 'int8'; choose one of float32"),
        ({"lora_target_modules": "q_proj"}, "lora_target_modules: 'q_proj'; a list of module names"),
    ],
)
def test_settings_that_do_not_fit_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RLArguments(**{"dataset": "data/x", "model": "runs/x", **values})
