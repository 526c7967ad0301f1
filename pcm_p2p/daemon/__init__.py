"""daemon: the composition root of an endpoint, and the loops that join the rooms.

Goal: one process that keeps a device at what the signed policy says, with neighbours and without a server in the office.
Non-goals: rules. Every decision is taken by a core of another room; what is here waits, calls and remembers.

==========  ================================================================================================
module      what it does
==========  ================================================================================================
node        builds every room once, wires them, runs them in one nursery, and shuts them down in order
follower    keeps the trusted metadata fresh: digests from peers, polls of the origin, one attempt at a time
steward     trusted metadata → desired state → wanted releases → fetched, staged, applied
reporter    facts × checks → findings → sealed reports in the outbox, on change and at intervals
control     the Unix socket on which ``status``, ``peers``, ``why``, ``assess`` are asked (line of JSON each way)
status      one picture of the node for people and for the lab
==========  ================================================================================================

State folder: ``config.toml``, ``identity/``, ``trust/``, ``store/``, ``staging/``, ``apply/``, ``node.sqlite``, ``run/``.
A second daemon on the same folder is refused by a lock on ``run/lock``.
"""
