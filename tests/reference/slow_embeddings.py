"""Encoding one text at a time, without padding, batches or a cache."""

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer


def slow_encode(path: str, texts: list[str], *, pooling: str, normalize: bool, max_length: int) -> np.ndarray:
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModel.from_pretrained(path).eval()
    rows = []
    for text in texts:
        ids = tokenizer(text, truncation=True, max_length=max_length)["input_ids"]
        with torch.no_grad():
            hidden = model(input_ids=torch.tensor([ids])).last_hidden_state[0].numpy().astype(np.float64)
        vector = {"mean": hidden.mean(axis=0), "cls": hidden[0], "last": hidden[-1]}[pooling]
        rows.append(vector / np.linalg.norm(vector) if normalize else vector)
    return np.array(rows)
