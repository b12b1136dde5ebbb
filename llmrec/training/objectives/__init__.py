"""What is minimised where a label stands: cross-entropy, and what can take its place."""
