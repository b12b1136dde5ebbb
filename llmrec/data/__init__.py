"""Catalogues, interactions, histories and splits."""
