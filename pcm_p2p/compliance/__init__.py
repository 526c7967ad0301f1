"""compliance: saying how it went, and getting that said to a collector.

Participants: the **device** (author: assesses, reports, keeps until acknowledged), the **carrier** (any daemon at the same site,
or a relay: takes records of others and brings them to whoever has a route), the **collector** (opens, stores, acknowledges).

    facts → assessment → report → record → outbox → courier → (carrier →) collector → acknowledgement → outbox

Goals
- A state is what a probe saw. What could not be seen is ``error`` or ``not_run`` with the reason, never a guess, never a pass.
- Every numbered report arrives, once: nothing is deleted before a collector signed that it has it, and everything may be sent
  any number of times. SIGKILL at any point, lost and repeated messages, a neighbour that forgets and a state folder that was
  restored from a backup change neither.
- A carrier learns author, number and size of what it carries and nothing else; it can withhold, never alter.
- Junk costs little: size, schema, certificate, signature and quotas are checked before anything is stored.

Non-goals
- Order of arrival. Records are numbered; the collector sorts.
- Routing over several sites. A carrier hands on to a neighbour that says it has a route, or waits until it has one itself.
- Changing anything on the device: see ``apply``.

==================  =====  ==================================================================================
module              kind   what it holds
==================  =====  ==================================================================================
finding             noun   result of one check, and the states
facts/              shell  one probe per resource: what is there, below a root
version_order       core   the order of Debian versions
assessment          core   checks × observations → findings
inspection          shell  runs the checks of a device, each with its deadline
report              noun   the whole picture as JSON, packed
record              core   a packed report sealed, signed and numbered
acknowledgement     core   what collectors sign
parcel              noun   a stored record, and what a transaction did
outbox              shell  own and carried records and acknowledgements: one transaction per method
own_records         shell  its numbering and what waits under it
carried_records     shell  its records of others, within quotas
held_acks           shell  its acknowledgements
outbox_tables       shell  its tables
handover            noun   the answer to a hand-over on the wire
carriage            noun   what the courier hears, and what it wants done
courier             core   what to send to whom, and when
carry               shell  performs what the courier decides; answers neighbours
==================  =====  ==================================================================================

Numbers: a record is at most 256 KiB; a carrier keeps 64 MiB or 20,000 records of others, 1 % of that per author, each for the
lifetime its author gave it (30 days); own records are never dropped: at 64 MiB without an acknowledgement no new report gets a
number until there is room.
"""
