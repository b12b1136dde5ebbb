"""Policy losses that TRL does not have, one file each, beside those that it has."""
