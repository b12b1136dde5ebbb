"""Alignment tasks: generators of examples that tie words, histories and SIDs together."""
