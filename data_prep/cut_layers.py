"""Cut a decoder down to its first layers: its embeddings, its final norm, its head and its tokenizer stay.

python data_prep/cut_layers.py --model weights/smollm2-135m --layers 6 --out weights/smollm2-6l

What is left is no good language model: the layers above held what it learned last. It is for a machine on which the
whole one trains too slowly, and for comparisons among rows that all have this shape.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from llmrec.artifacts import whole_folder
from llmrec.errors import InputError, run_command


def cut_config(config: PreTrainedConfig, layers: int) -> PreTrainedConfig:
    """Return the config with ``layers`` layers, what it says of each layer cut alike; the one given is changed.

    Raises:
        InputError: an encoder-decoder, or fewer than 1 or more than all layers.
    """
    if config.is_encoder_decoder:
        raise InputError(f"--model: {config.model_type} is an encoder-decoder; a causal model can be cut")
    whole = getattr(config, "num_hidden_layers", 0)
    if not 1 <= layers < whole:
        raise InputError(f"--layers {layers}: the model has {whole}; keep at least 1 and leave out at least 1")
    for name, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == whole:  # such as layer_types
            setattr(config, name, value[:layers])
    config.num_hidden_layers = layers
    return config


def load_cut(model: str, layers: int) -> PreTrainedModel:
    """Return the model with its first ``layers`` layers, in the dtype of its files.

    Raises:
        InputError: a model that cannot be loaded, or weights that do not fit what is left of it.
    """
    try:
        config = cut_config(AutoConfig.from_pretrained(model), layers)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            model, config=config, dtype="auto", use_safetensors=True, output_loading_info=True
        )
        made, said = loaded
    except (OSError, ValueError) as error:
        raise InputError(f"--model {model}: cannot be loaded as a causal model ({error})") from error
    above = [name for name in said["unexpected_keys"] if not _is_above(name, layers)]
    if above or said["missing_keys"]:
        odd = ", ".join(sorted([*above, *said["missing_keys"]])[:3])
        raise InputError(f"--model {model}: {odd} would be lost or drawn anew; its layers have names not known here")
    return made


def _is_above(name: str, layers: int) -> bool:
    """Whether a weight is of a layer that is left out: ``model.layers.6.mlp.up_proj.weight`` with 6 layers kept."""
    number = next((part for part in name.split(".") if part.isdigit()), None)
    return number is not None and int(number) >= layers


def main(argv: Sequence[str] | None = None) -> None:
    """Load the first layers, and save them as a model folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or hub id of a causal model")
    parser.add_argument("--layers", type=int, required=True, help="how many to keep, counted from the embeddings")
    parser.add_argument("--out", type=Path, required=True, help="folder of the model")
    args = parser.parse_args(argv)
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise InputError(f"--out {args.out}: is there already; choose another folder")
    model = load_cut(args.model, args.layers)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    with whole_folder(args.out) as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"wrote {args.out}: {type(model).__name__}, {args.layers} layers, {parameters:,} parameters")


if __name__ == "__main__":
    run_command(main)
