"""llmrec: fine-tune language models into generative recommenders with semantic IDs."""
