"""daemon: the composition root of an endpoint, and the loops that join the rooms.

Goal: one process that keeps a device at what the signed policy says, with neighbours and without a server in the office.
Non-goals: rules. Every decision is taken by a core of another room; what is here waits, calls and remembers.

===============  =============================================================================================
module           what it does
===============  =============================================================================================
service          takes the state folder, runs the node, ends it on a signal
node             builds every room once, wires them, runs them in one nursery, and shuts them down in order
admission        whose certificates may speak with this device now: authorities and deny list of the trusted view
surroundings     what the signed fleet document says: collectors, and to whom reports are sealed
neighbours       the overlay as swarm, trust and compliance want to see it
follower         keeps the trusted metadata fresh: asks neighbours that have news, polls the origin in turn
documents        the documents of a trusted view, decoded, and what of them does not read
workspace        a fleet folder to sign in, made from a published tree, for people of a site or team
halted           what is halted on this device
steward          trusted metadata → desired state → wanted releases → fetched, staged, applied
rebuilder        base chunks that the office lacks, made out of installed files
keepsakes        real bytes to roll back to, from the chunks of what was applied
ledger           the manifests of what was applied, and with them the floor of release counters
caretaker        the cooperative cache: which copies to fetch, let go, evict last, hand over before leaving
reporter         facts × checks → findings → sealed reports in the outbox, on change and at intervals
meter            bytes moved, in total and per release, kept over restarts
uptime           how much of the last two weeks this device was up: what the cooperative cache weighs it by
limits           the rates to keep to: the device's own and policy's, the lower of each
upkeep           what is in the store, whether it is good, and letting surplus copies go, for ``pcm-p2p store``
memory           gives freed memory back to the system
control          the Unix socket on which ``status``, ``peers``, ``why``, ``assess``, ``store`` are asked (line of JSON each way)
status           one picture of the node for people and for the lab
doctor           a read-only look at one device's set-up
standing         certificate, clones, and the way to the desk: wired, and answered for in status and reports
renewal          keeps the certificate from ending
tunnel           carries what a device without a route says to the desk, and back
vicinity         looks around by mDNS for members that may relay an errand to the desk
desk             the service that honours tokens and keeps online metadata signed
collect_trust    what a collector believes, learned from the origin and from its visitors
collect          the composition root of a collector
state_check      whose the state folder is, who else could write into it, who could read its keys
state_lock       one program a state folder
log              where log lines go
===============  =============================================================================================

Folders: ``applying`` (who makes the changes), ``site`` (the repository of a site that acts alone).

Roll-back: a device does not hold the whole release that it has in place, since the office keeps a few copies of it and not one a
device. Before a change, the package that it replaces is gathered from neighbours; the reason, and what happens when nobody has
it, is in ``caretaker``.

Two processes: what speaks with the network need not be root. Where ``[apply] service`` names a socket, the apply service makes
the changes: root, without network, with a state folder, a pinned root and its own decision (``applying.service``). The daemon
names changes and brings bytes. Without it, the daemon applies by itself: labs, private roots.

State folder: ``config.toml``, ``identity/``, ``trust/``, ``site-trust/``, ``store/``, ``staging/``, ``apply/``, ``node.sqlite``,
``run/``, ``uptime.json``, ``denied.json``, ``former-authorities.pem``.
A second daemon on the same folder is refused by a lock on ``run/lock``.
"""
