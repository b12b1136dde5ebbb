"""Rows of one user belong together: sums by user, and how far a mean over rows is from chance among users."""

from collections.abc import Sequence

import numpy as np

from llmrec.errors import InputError

DIGITS = 12
"""Sums are rounded to so many, so that those that were added in another order are equal."""


def number_users(users: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return ``(rows,)`` int32: users by number, in order of first appearance, so that no id is left.

    Args:
        users: ``(rows,)`` the user of each row.
    """
    _, first, places = np.unique(np.asarray(users), return_index=True, return_inverse=True)
    numbers = np.empty(len(first), dtype=np.int32)
    numbers[np.argsort(first)] = np.arange(len(first), dtype=np.int32)
    return numbers[places]


def repeated_users(users: np.ndarray | None, rows: int) -> np.ndarray | None:
    """Return ``(rows,)`` numbers from 0 where some user has several rows; None where each has one, or none is known.

    Args:
        users: ``(rows,)`` the user of each row; None where they are not known.
        rows: how many there are.

    Raises:
        InputError: another number of users than of rows.
    """
    if users is None:
        return None
    if len(users) != rows:
        raise InputError(f"users of {len(users)} rows, and there are {rows} values; give the user of each row")
    found, numbers = np.unique(users, return_inverse=True)
    return None if len(found) == rows else numbers


def user_sums(values: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Return ``(users,)`` sums of values over each user's rows, to `DIGITS` digits.

    Args:
        values: ``(rows,)``.
        numbers: ``(rows,)`` users from 0, each of whom has a row.
    """
    return np.round(np.bincount(numbers, weights=values), DIGITS)


def error_of_mean(values: np.ndarray, numbers: np.ndarray | None = None) -> tuple[float, float]:
    """Return the variance of the mean over rows by the chance of users, and its degrees of freedom.

    Args:
        values: ``(rows,)``.
        numbers: ``(rows,)`` users from 0, of whom some have several rows; None where each row is a user of its own.

    Returns:
        Variance, and degrees of freedom above 0; without a second user the variance is infinite and there is one.

    Paper: the jackknife that leaves out a user at a time (Tukey 1958; Bell and McCaffrey 2002 have why it is
    preferable where users have very different numbers of rows); degrees of freedom from the number of users of one
    size that would weigh alike (Carter, Schnepel and Steigerwald 2017, with users equally alike throughout).
    """
    rows = len(values)
    if numbers is None:
        return (float(np.var(values, ddof=1)) / rows, rows - 1.0) if rows > 1 else (np.inf, 1.0)
    sizes = np.bincount(numbers).astype(np.float64)
    users = len(sizes)
    if users < 2:
        return np.inf, 1.0
    without = (np.sum(values) - np.bincount(numbers, weights=values)) / (rows - sizes)
    variance = float(((without - np.mean(values)) ** 2).sum()) * (users - 1) / users
    return variance, max(1.0, rows**2 / float((sizes**2).sum()) - 1)
