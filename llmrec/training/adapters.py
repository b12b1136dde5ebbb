"""LoRA, QLoRA and rows-only training that keep the new SID rows."""

from collections.abc import Sequence
from functools import partial

from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.other import TrainableTokensWrapper
from torch import nn
from transformers import PreTrainedModel

from llmrec.errors import InputError
from llmrec.training.rows import tables_of
from llmrec.training.sid_rows import multiply_few_rows
from llmrec.vocab import SIDVocab


def let_trl_read_wrapped_heads() -> None:
    """Give PEFT's wrapper of an output head the ``bias`` that TRL's fused head reads (TRL 1.16 fails without it)."""
    if not hasattr(TrainableTokensWrapper, "bias"):
        TrainableTokensWrapper.bias = property(  # type: ignore[attr-defined]
            lambda self: getattr(self.original_module, "bias", None)
        )


def table_names(model: PreTrainedModel) -> list[str]:
    """Return the last name of the input embedding module, and of the head where its rows are its own."""
    names = []
    for table in tables_of(model):
        found = [name.rpartition(".")[2] for name, module in model.named_modules() if module is table]
        names.append(found[0])
    return names


def attach_adapter(
    model: PreTrainedModel,
    vocab: SIDVocab,
    *,
    method: str,
    rank: int = 16,
    alpha: int = 32,
    dropout: float = 0.0,
    target_modules: Sequence[str] | None = None,
) -> PeftModel:
    """Wrap a model so that its SID rows train in the input and in the output, with LoRA matrices or alone.

    Args:
        model: a model whose tables hold the SID tokens.
        vocab: which rows are new.
        method: ``lora`` or ``qlora`` (LoRA on all linear layers but the head, plus the rows), or ``new_rows`` (the
            rows alone).
        rank: of the LoRA matrices.
        alpha: LoRA scale.
        dropout: before the LoRA matrices.
        target_modules: modules that get LoRA; None takes all linear layers but the head.

    Raises:
        InputError: another method.
    """
    let_trl_read_wrapped_heads()
    rows = vocab.trainable_token_indices
    names = table_names(model)
    if method not in ("lora", "qlora", "new_rows"):
        raise InputError(f"method: {method!r} needs no adapter; choose lora, qlora or new_rows")
    targets: list[str] | str = list(target_modules) if target_modules else "all-linear"
    if method == "new_rows":
        # PEFT's rows-only adapter wraps a tied head in a way that TRL refuses, and LoRA must have a target: one matrix
        # of rank 1 that is frozen at zero.
        rank, dropout, targets = 1, 0.0, [_first_linear(model)]
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=targets,
        # The dict form: a plain list would leave an untied head's new rows untrained, without a word.
        trainable_token_indices=dict.fromkeys(names, rows),
    )
    adapted = get_peft_model(model, config)
    multiply_few_rows(adapted)
    if method == "new_rows":
        for name, parameter in adapted.named_parameters():
            parameter.requires_grad_("trainable_tokens_delta" in name)
    # PEFT's "auto" would write both whole tables beside the rows whenever the base was resized.
    save = partial(adapted.save_pretrained, save_embedding_layers=False)
    adapted.save_pretrained = save  # type: ignore[method-assign,assignment]
    return adapted  # type: ignore[return-value]


def _first_linear(model: PreTrainedModel) -> str:
    head = model.get_output_embeddings()
    return next(name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head)
