"""The bundle: a model with everything that serves it, saved, loaded and published as one folder."""

from llmrec.hub.bundle import Bundle, load_bundle, save_bundle, save_sidecars
from llmrec.hub.card import save_card
from llmrec.hub.info import INFO_FILE
from llmrec.hub.push import push_to_hub

__all__ = ["INFO_FILE", "Bundle", "load_bundle", "push_to_hub", "save_bundle", "save_card", "save_sidecars"]
