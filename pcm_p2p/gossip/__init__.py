"""gossip: who is there, and who has something newer.

Participants: the devices of one site, each with sessions to about 20 others; a few sessions with other sites where they meet. No
master, no tracker, no election.

=============  ==========================================================================================
membership     who is at this site, who is suspect, who is gone                                [core]
targets        the addresses that may be dialled, and which of them now                       [core]
beacon         whether this device announces itself by mDNS                                    [core]
clones         whether two devices use one key                                                [core]
spread         whose metadata is newer, whom to ask, who lies                                  [core]
discovery      mDNS through the asyncio side-car: introductions, nothing more                  [shell]
overlay        listener, dialler, one session per device, messages to their handlers           [shell]
clone_watch    who is alive, as sessions show it; on proof of a clone it ends and refuses them [shell]
settings       site, role, addresses and seeds of an overlay                                  [shell]
peer           a device with a live session, and that one came or went                         [core]
exposure       on which addresses a device lets itself be reached                              [core]
doors          the listeners, opened and closed as addresses come and go                        [shell]
session_table  one session per device, who is let in, how much was carried                     [shell]
announcer      keeps this device announced while it is a beacon                               [shell]
handlers       who wants which message, and what their faults may do                           [shell]
spreader       digests over the sessions, attempts to whoever verifies                         [shell]
roster_file    incarnation, port and last-known roster over a restart                          [shell]
=============  ==========================================================================================

Goals
    Devices that start together know each other within seconds (22 on one machine: 1.5 s to a full mesh, measured). A release
    that one device learns of reaches all without the origin, in as many hops as the mesh is wide. Idle costs next to
    nothing: one ping and one pong per session in five seconds, a tick a second. No single peer can declare another
    dead, fill the roster, or keep others busy with claims of newer metadata that it cannot show.

Non-goals
    Agreement. Views may differ at any time; what rests on them (who fetches, who announces) tolerates it. Sites do not
    gossip rosters with each other. Trust in metadata: spread says whom to ask, ``trust`` says what is true.

The discovery ladder: configured seeds, mDNS, the last-known roster, rosters of those who were reached. All of it is hints: who
somebody is follows from mutual TLS, that somebody is there from a session.
"""
