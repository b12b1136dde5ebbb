"""Where preferences come from: rejected items for training rows, and lists of them."""

from llmrec.training.preferences.exposure import exposure_negatives
from llmrec.training.preferences.inputs import NegativeFactory, NegativeSource, PreferenceInputs
from llmrec.training.preferences.nearest import nearest_negatives
from llmrec.training.preferences.popularity import popularity_negatives, uniform_negatives
from llmrec.training.preferences.questions import Questions, choose_questions
from llmrec.training.preferences.self_hard import self_hard_negatives

NEGATIVES: dict[str, NegativeFactory] = {
    "popularity": popularity_negatives,
    "uniform": uniform_negatives,
    "nearest": nearest_negatives,
    "self_hard": self_hard_negatives,
    "exposure": exposure_negatives,
}
"""Sources of rejected items by the name that a YAML gives them."""

__all__ = ["NEGATIVES", "NegativeFactory", "NegativeSource", "PreferenceInputs", "Questions", "choose_questions"]
