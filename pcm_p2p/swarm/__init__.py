"""The swarm room: how an office gets the bytes of a release, each of them over the WAN once.

Participants: the devices of one site that want the same manifest. Each runs one ``Fetcher`` (what I still need), one
``Seeder`` (what I serve) and one ``OriginClient``. There is no coordinator: every device computes the same owner of a
segment from the same few facts, and claims make it exact where views differ.

Flow of one release: ``Fetcher.want(manifest)`` looks into the store, announces ``Holdings``, waits until the roster
is quiet, then owners start segments and say so (``Claim``, each second, with progress). What they fetch for a run is
the cheapest blob that the office can use: a delta if somebody has its base, else the full segment. The owner of a
delta takes the base chunks that it lacks from neighbours meanwhile. A fetched segment is decoded in another process;
each chunk is announced (``Have``, within 10 ms) while the rest is still on its way. All others take chunks from holders
on the LAN.

Flow of one that is in place: ``Fetcher.keep(manifest)`` goes on announcing what is here, and says that nothing of it is
fetched over the WAN, so that nobody waits for this device as an owner. The office keeps k copies of each group of chunks
(``keepers``); a device takes its share from neighbours, lets go of what others keep, and hands over before it ends what
only it has (``keeping``). Neighbours hear of a copy that goes before it goes.

Goals
- WAN bytes of the office ÷ bytes that the office needed once ≤ 1.05, with 6 and with 20 devices started together.
- If the base of an update is anywhere in the office, whole or in pieces, in caches or (with some seconds of patience)
  among installed files, the office pays for the deltas: ≤ 1.03 of their bytes, ≤ 1.10 when an owner crashes.
- Locality is a rule: no chunk crosses the WAN while a device of the site that holds it is online and serving.
- An owner that stalls, crashes or lies is replaced within seconds; nobody waits for one neighbour for ever.
- SIGKILL at any point costs at most the piece in flight: partial segments and stored chunks are on disk.
- Every wait has a reason that a person can read: ``progress().waiting`` and ``why()``.

Non-goals: trust in bytes (chunk ids do that), which releases to want (policy), sessions (gossip), the WAN between sites.

===============  =====  =================================================================================================
module           kind   what it holds
===============  =====  =================================================================================================
events           noun   what happens to an exchange, and what it wants done
holdings         core   who in the office has which chunk: one int per device as a bit field
lending          core   what neighbours' words about a base release say about the release that is made from it
announcements    core   Holdings, Have, Drop, Claim, SegmentFailed: to and from their messages, checked against a manifest
rendezvous       core   weighted highest-random-weight hashing in integers
keepers          core   who keeps which chunk of a release that is in place: k copies in the office, more where uptime is low
keeping          core   what this device does about a kept release: fetch a copy, let one go, hand the last ones over
claims           core   what neighbours say they fetch, leases and lapses, and how far to believe it
prices           core   the ways to have a run over the WAN (deltas, full): which are usable, which is cheapest; when to wait
settling         core   when the roster is settled enough to start
troubles         core   who failed with which segment how often, and until when it rests
turns            core   whose turn it is: the order of the candidates for a segment
agenda           core   when I may start which open run
fetching         core   one run that I fetch: its blob, its progress, the lease to ask for
ownership        core   which segment I fetch over the WAN, and when: folds events through the seven above
picker           core   which chunk I ask which neighbour for: local rarest first, pipelines, hedging
conduct          core   strikes of neighbours that serve badly, and the ban that follows
rebuilding       core   which base chunks this device makes of installed files, and when
exchange         core   one manifest: folds events through the others; what the daemon and the simulation both run
pace             both   token bucket, and the shell that waits for it
mirrors          core   which mirror of the origin to ask next, back-off, blame
origin           shell  HTTP client: range resume, deadlines, minimum rate, counters
origin_server    shell  a static tree over HTTP with ranges, for fleets without a web server, and for the lab
peers            noun   what this room needs from others: sessions and the chunk store, as protocols
workers          shell  threads for store writes and decoding
transfer         shell  one wanted manifest in the fetcher: its tasks, its counters, what people are told about it
announcer        shell  announcements on their way out, in order
chunk_fetch      shell  one chunk from one neighbour
parts            shell  what parts of segments on the disk are worth, and when they go
segment_fetch    shell  one blob for one run: from the origin through the decoder to chunks in the store
fetcher          shell  runs exchanges in trio: timers, requests, segment tasks, progress
seeder           shell  answers ``ChunkGet`` from the store within upload slots and pace
===============  =====  =================================================================================================
"""
