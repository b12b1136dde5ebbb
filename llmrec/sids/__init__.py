"""Semantic IDs: tokenizers that learn them, tables that hold them, and measures of their quality."""
