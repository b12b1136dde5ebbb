"""Trie, constrained beam search, and the recommender that puts item ids in and out."""
