"""Item embeddings: text to vectors, and the file that ties vectors to a catalogue."""
