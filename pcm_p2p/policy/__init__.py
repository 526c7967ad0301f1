"""Policy: what a device should be, as signed documents say it, and whether it may be changed at all.

Participants: an **author** writes TOML; the **trust** room hands over bytes that the authority signed; this room makes them
frozen objects and decides, per device and moment, which releases and checks apply. Everything here is pure: no I/O, no
clock, no chance. ``now`` is an argument.

=============  ==============================================================================================
condition      what is asked of one attribute: operators by type (``eq``, ``ge``, ``matches``, ``at_most`` …)
expression     regular expressions of checks, in linear time
selector       whom a document speaks about: everyone, or sites, labels, devices
resource       what a release becomes on a device: package, archive, file, service
fitness        whether the artifacts of a release can be what a policy makes of them
document       the policy document: assignments, the six checks with their remedies, transfer limits
activation     the document without which nothing is changed anywhere
allowance      what the fleet lets a site set by itself
places         what of a device a policy manages or looks at, and what reaches it
precedence     whose word counts: the fleet, a site's delegated role, a site's own repository
desired        all of the above for one device at one moment, and the ``Authorisation`` that ``apply`` asks for
=============  ==============================================================================================

Goals
    A document that decodes is meaningful: unknown keys, operators that do not fit a type, checks that ask nothing and
    remedies that do not exist are refused with file, line, key and remedy, before they are signed and again on each
    device. The same policies give the same decision on every device, in whatever order they arrive. A new fleet
    changes nothing until a signed activation.

Non-goals
    Probing the device (``compliance``), changing it (``apply``), signatures (``trust``). Rings, windows and waivers are
    not in schema 1.

Modes: ``observe`` assesses only; ``notify`` also fetches and says what waits; ``enforce`` also changes. Freshness: a stale
policy stays in force; with a frozen one nothing new is installed. Two policies that assign different versions of one
release are a conflict: the policy with the higher version wins, then the higher id, and the conflict is reported.
"""
