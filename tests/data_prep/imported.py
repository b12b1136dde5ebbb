"""What an import holds, as a reader would write it down."""

from llmrec.data.folder import DatasetFolder


def shown(dataset: DatasetFolder) -> dict[str, list[str]]:
    """Each user's item ids, oldest first."""
    ids = dataset.catalog.item_ids
    sequences = dataset.interactions.sequences()
    users = dataset.interactions.user_ids
    return {user: [ids[item] for item in items] for user, items in zip(users, sequences, strict=True)}
