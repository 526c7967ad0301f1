"""The collector: opens reports, keeps them, acknowledges them, and lets people see the fleet.

Participants
    *Devices* (or a neighbour that carries for them) put sealed records into a session. The *collector daemon* verifies, opens
    and archives them and answers with its signed acknowledgement. The *console* is another process that reads the archive
    and never writes it. *People* look at the console with a browser; scripts use its JSON API.

Goals
    1. No report is lost or counted twice: a record is acknowledged only after the archive's transaction is on disk, and a
       record that comes again (carried by two neighbours, or after a crash) changes nothing.
    2. The archive depends on the set of reports, not on their order: reports that arrive late, through any carrier, at any
       of several collectors, end in the same rows (received times apart).
    3. Honest state. ``error`` and ``not_run`` are never folded into something kinder; a device whose last report is old is
       *stale* and stands beside the others, never inside them; one that was seen but never reported is drawn as *unknown*.
    4. A number and the list behind it come from one query (``fleet.FLEET`` and one ``where``), so they cannot disagree.
    5. What the console shows, it cannot change: it opens the archive read-only and holds no key.

Non-goals
    Authoring policy or releases (key tool and publisher only); being trusted with content; sharing state with other
    collectors (each device's records reach each collector by themselves).

Record in, rows out (``archive``)

=============  ==================================================================================================
table          one row is
=============  ==================================================================================================
report         one opened record: (device, epoch, seq), times, carrier, hash chain, zstd of the body
stream         how far one (device, epoch) is contiguous: what an acknowledgement states
conflict       a second, different record under a number that is taken: a cloned identity or a restored backup
device         the latest report of a device, by (epoch, seq), never by arrival
device_policy  a policy in force on it
finding        one check's result in it
release        one release in it: state, since, why, sizes
usage          byte counters of one report, as told and as difference to the report before; release '' is the whole device
completion     the first report in which a release was complete on a device: when a plain download would have been paid
moved          sums of the two above per site, release and device, kept by triggers
moved_in_time  the same sums per site, release and ten seconds
change         what differs between a report and the one before it: the timeline
sighting       a device that somebody in the fleet has seen, whether or not it ever reported
fork           proof on a device that a role signed one version twice
clone          a device saw that two devices use one identity
revoked        a device on the fleet's deny list, and how many of its reports were refused since
meta           the count of archive changes (the console's event id)
=============  ==================================================================================================

Words of state that the pages use

==============  =================================================================================================
state           of a device
==============  =================================================================================================
compliant       fresh report, at least one check passed, none failed, none undecided
failing         fresh report, at least one check failed
undecided       fresh report, none failed, at least one could not be decided (error, not_run)
unchecked       fresh report without a single decided check
stale           it did report, but not within ``stale_after`` (6 hours: three assessment intervals, our choice)
unknown         seen in the fleet, never reported
revoked         on the fleet's deny list; whatever it last reported
==============  =================================================================================================

==============  =================================================================================================
progress        of a release on a device
==============  =================================================================================================
installed       applied, fresh report
under way       wanted, fetching, staged, waiting, applying; fresh report
in trouble      failed, rolled_back, parked; fresh report
stale           any of them, but the report is old
==============  =================================================================================================

Modules

=============  ==================================================================================================
schema         the tables
archive        the one way in: ``Archive.take``
changes        core: two consecutive report bodies to the list of what changed
usage          core: cumulative counters to differences, counter resets included
snapshot       read-only view of the archive at one moment
fleet          devices: filter, list, counts
device         everything about one device
timeline       what changed, on one device and in the fleet
releases       releases: which devices have it, which wait and why
savings        WAN, LAN and plain-download bytes per site, release and time
overview       the fleet on one page
intake         records to archive and acknowledgement
collector      the daemon: sessions in, acknowledgements out
seal_key       the key that reports are sealed to
supervisor     the console as a process of its own
console/       the web pages and the JSON API
=============  ==================================================================================================
"""
