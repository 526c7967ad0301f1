"""A passage to the desk through a neighbour: what is said before TLS, and its bounds. Pure.

A device that has no route to the desk connects to the ordinary port of a member and says ``PREAMBLE``, which is no TLS: a TLS
record begins with 0x16. The member connects to a desk that the *signed* fleet document names, never to a place that the device
names, answers with one byte, and passes bytes on in both directions until one side ends or a bound is reached. TLS is between the
device and the desk, whose authority the device knows beforehand: the member in between sees ciphertext, and can cut the
connection and nothing else. One hop: a member that cannot reach the desk itself says so, and the device tries the next.

====  ===========================================================
byte  the member says
====  ===========================================================
``+``  the desk is there; what follows goes to it
``-``  I know of no desk: no fleet document yet, or none names one
``!``  I cannot reach the desk either
``*``  not at present: as many passages as I open are open
``x``  I open none: ``[enrolment] relay = false``
====  ===========================================================
"""

from __future__ import annotations

from typing import Literal

PREAMBLE = b"pcm.desk/1 please\n"
TLS_FIRST_BYTE = b"\x16"

Word = Literal["open", "no desk", "no route", "busy", "unwilling"]
WORDS: dict[bytes, Word] = {b"+": "open", b"-": "no desk", b"!": "no route", b"*": "busy", b"x": "unwilling"}
BYTES: dict[Word, bytes] = {word: byte for byte, word in WORDS.items()}
MEANINGS: dict[Word, str] = {
    "open": "has a route to the desk",
    "no desk": "does not know of a desk",
    "no route": "has no route to the desk either",
    "busy": "is busy with other devices",
    "unwilling": "does not relay",
}

PASSAGES_MAX = 2
"""At once. An office that starts anew takes turns: an enrolment is done in less than a second."""
SIZE_BYTES_MAX = 1 << 20
"""Each way. A reply with the largest root has 0.6 MB."""
PASSAGE_TIMEOUT_S = 30.0
PREAMBLE_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 5.0
"""Choice: to one address of the desk; as many as the fleet document names are tried."""
EACH_MAX = 1
"""At once, of one source."""
BURST = 10
RATE_PER_S = 0.2
"""Of one source: ten at once, then one in five seconds. A device that waits for approval asks less often than that."""
