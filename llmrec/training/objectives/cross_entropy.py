"""Cross-entropy under the full softmax: what every other objective is compared with."""

from torch import Tensor

from llmrec.training.labelled import Head, Labelled
from llmrec.training.objectives.base import Objective, ObjectiveContext


def cross_entropy(context: ObjectiveContext) -> Objective:
    """Return minus the log-probability of each label over the whole vocabulary."""
    return negative_log_likelihood


def negative_log_likelihood(labelled: Labelled, head: Head) -> Tensor:
    """Return minus the log-probability of each label over the whole vocabulary, ``(labels,)``."""
    return -head.log_probs(labelled.hidden, labelled.targets, equal=True)
