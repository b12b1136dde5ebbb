"""Baselines of counts: what a table knows without any model."""

from llmrec.baselines.base import Baseline
from llmrec.baselines.item_knn import ItemKNN
from llmrec.baselines.popularity import Popularity
from llmrec.baselines.transitions import Transitions

BASELINES: dict[str, type[Baseline]] = {"popularity": Popularity, "item_knn": ItemKNN, "transitions": Transitions}
