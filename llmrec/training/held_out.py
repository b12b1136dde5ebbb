"""What earlier weights have learned may be held out now: they are taken under their own protocol alone."""

from collections.abc import Mapping
from typing import Any

from llmrec.errors import InputError


def check_protocol(manifest: Mapping[str, Any], protocol: str | None, *, source: str) -> None:
    """Raise when a bundle or checkpoint was trained under another protocol than the run's.

    Another catalogue needs no check of its own: its hash is part of the hash of the SIDs, which is compared too.

    Args:
        manifest: what its ``llmrec.json`` says.
        protocol: of the run; None compares nothing, as does a manifest that names none.
        source: for the message: the argument that names the bundle, and the bundle.

    Raises:
        InputError: as said.
    """
    there = manifest.get("protocol")
    if None not in (there, protocol) and there != protocol:
        raise InputError(
            f"{source} was trained under protocol {there!r}, and this run's is {protocol!r}: it has trained on rows "
            f"that are held out here, so what is measured would be learned by heart; give --protocol {there}, or a "
            f"bundle that was trained under {protocol}"
        )
