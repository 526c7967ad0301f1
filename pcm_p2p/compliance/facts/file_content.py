"""Lines of a text file that match an expression. A hit is the first group, or the whole match where there is no group.

The search runs here and not in the assessment because it needs a budget: a line is cut at ``LINE_CHARS_MAX``, a file at
``SIZE_BYTES_MAX``, and the clock is looked at between lines. The expression itself was checked when the policy was read.
"""

from __future__ import annotations

from pcm_p2p.compliance.facts.below_root import Below
from pcm_p2p.compliance.facts.observation import CannotTell, Observation
from pcm_p2p.policy.expression import Expression

SIZE_BYTES_MAX = 8 << 20
"""Choice: configuration is smaller; a log is not configuration."""
LINE_CHARS_MAX = 4_096
HITS_MAX = 10_000


def observe(below: Below, path: str, pattern: str) -> Observation:
    """``hits``: None if there is no file. Raises ``CannotTell``, ``OutOfBudget``."""
    data = below.read(path, SIZE_BYTES_MAX)
    if data is None:
        return {"hits": None}
    if b"\0" in data[:8_192]:
        raise CannotTell(f"{path} is not a text file")
    expression = Expression(pattern)
    hits: list[str] = []
    for line in data.decode("utf-8", "replace").splitlines():
        below.check_time(path)
        if len(line) > LINE_CHARS_MAX:
            raise CannotTell(f"{path} has a line of {len(line)} characters; at most {LINE_CHARS_MAX} are searched")
        if (hit := expression.search(line)) is not None:
            hits.append(hit)
            if len(hits) > HITS_MAX:
                raise CannotTell(f"{path} has more than {HITS_MAX} lines that match")
    return {"hits": tuple(hits)}
