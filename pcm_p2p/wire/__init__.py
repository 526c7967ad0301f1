"""wire: what is said between two nodes, and over what.

Participants: two enrolled nodes, either of which dialled the other. Below is TCP; above are the rooms that give messages their
meaning (gossip, swarm, trust, compliance).

===========  ============================================================================================
messages     every message as a frozen class; one table of tags; lengths bounded in the types   [core]
framing      control and bulk frames on one stream; sans I/O                                     [core]
doorkeeper   how many strangers may be at the door, in all and from one source                   [core]
arrival      through which interface a connection came in                                      [shell]
link         TCP and mutual TLS 1.3: an authenticated stream, or the reason why not             [shell]
outgoing     what waits to be written: control first, answers in turn                           [shell]
pending      a request that waits for its answer, and when to give up                           [shell]
session      Hello, ordered messages, requests with answers, liveness, bounded queues           [shell]
===========  ============================================================================================

Goals
    A peer without a certificate of this fleet is closed before any message. No length, count or wait that a peer
    controls is without a bound. Control never waits behind more than one piece of bulk data. One session carries at
    least 150 MB/s of chunks on loopback (bench/session.py).

Non-goals
    Choosing peers, reconnecting and limits across sessions (gossip, swarm). Judging content: an answer is foreign bytes
    until the room that asked has verified it.

Order of a session: TCP → TLS handshake (both certificates verified, identity read) → Hello both ways → anything. A Bye or the
end of the stream ends it; there is no half-closed state.

Compatibility: a field is appended to a message as optional and older nodes ignore it; a new message type is only sent to
peers whose Hello names a protocol that has it.
"""
