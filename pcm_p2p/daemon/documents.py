"""The documents of a trusted view, decoded: policies and activation, and what of them does not read.

A document can be signed and still not be usable by this version: it is passed over by name, and the others count. Whoever
decides what a device should be (the steward; a process that applies on its own account) reads them here.
"""

from __future__ import annotations

from dataclasses import dataclass

from pcm_p2p.errors import InputError
from pcm_p2p.policy.activation import Activation, decode_activation
from pcm_p2p.policy.document import Policy, decode_policy
from pcm_p2p.trust.index import ACTIVATION
from pcm_p2p.trust.view import TrustedView


@dataclass(frozen=True)
class Documents:
    """What a view says, as objects. ``problems`` are sentences about what was passed over."""

    policies: tuple[Policy, ...] = ()
    activation: Activation | None = None
    problems: tuple[str, ...] = ()


def read_documents(view: TrustedView) -> Documents:
    """Read and decode. Raises ``StorageError`` where the disk has lost a document that is kept."""
    policies, problems = [], []
    activation = None
    for path in view.index().policies:
        try:
            policies.append(decode_policy(view.read(path), path))
        except InputError as error:
            problems.append(f"policy not usable: {error.message}")
    if ACTIVATION in view.kept:
        try:
            activation = decode_activation(view.read(ACTIVATION))
        except InputError as error:
            problems.append(f"activation not usable: {error.message}")
    return Documents(tuple(policies), activation, tuple(problems))
