"""trust: what a device believes and why, and how members recognise each other. How people sign is ``authority``, how devices
become members is ``enrolment``; what all three agree on (roles, names in the tree, lint, certificates) stands here.

Participants
    **Authorities** are people with key files: root keys say who the others are, targets keys say what is released and who may
    sign for a site or a team. Their keys rest encrypted under a passphrase and sign on the authority's own machine.
    **Sites and teams** sign their own policies or releases, each for its own folder, within what the fleet allows.
    The **publisher** holds the two online keys (snapshot, timestamp) and writes the origin tree. It can say "this is the newest
    you signed" and nothing else.
    The **desk** holds the key of the fleet's certificate authority and admits devices that bring a token.
    **Devices** verify everything themselves and keep what they last found good.
    **Carriers** (origin, mirrors, peers) are believed in nothing; they can only be slow or absent.

Goals
    - No byte is acted on before a threshold of authorities has signed its hash, length and version.
    - No carrier, and no thief of the online keys, makes a device go back to an older version or mix two of them.
    - What is wrong with one site or team keeps no device from anything else. One key stops a rollout; it takes a threshold to let
      it go on, and while a device does not know the newest halts, it applies nothing new.
    - A device that hears nothing new knows so: its view becomes stale and then frozen, and says since when.
    - What was good stays usable when a newer thing turns out bad: replacing the view is one atomic step.
    - SIGKILL at any point, on either side, leaves the old state or the new one, and the same command repeats the work.
    - A member proves itself by a key that never left it. A token is worth one use (or as many as were said) until it expires.
    - A member that was revoked, or certified by an authority that was, is out as soon as a device has read of it: in live
      sessions too, and no damaged file, old list or restored folder lets it in again.

Non-goals
    Secrecy of policies and releases from members: every device may read the whole tree, and whoever was one may keep what it
    read; the origin tree is not secret at all.

Who signs what

==========  ====================  ========  ==================================================================
role        keys                  lifetime  what it states
==========  ====================  ========  ==================================================================
root        authorities, offline  2 years   keys and thresholds of all roles, and the fleet's id (``x-pcm-fleet``)
targets     authorities, offline  1 year    every target by path, length and SHA-256: policies, manifests, documents
site-…      a site's people       90 days   the site's own policies, ``policies/<site>/*``
team-…      a team's people       90 days   the team's own releases, ``releases/<team>/*``
halt        any one authority     2 years   what must not be applied, ``halts/*`` (``halt``)
snapshot    publisher, online     30 days   which versions of targets and of delegated roles belong to now
timestamp   publisher, online     7 days    which snapshot is the newest
ca          desk                  10 years  certificates: this key is device D in role R of fleet F
==========  ====================  ========  ==================================================================

Origin tree (static files, any web server; peers serve the same paths)::

    metadata/timestamp.json                       written last; everything else never changes once written
    metadata/N.root.json  N.snapshot.json  N.targets.json  N.<delegated role>.json
    targets/<folder>/<sha256>.<name>
    segments/ab/<64 hexadecimal digits>

Targets: ``index.json`` (the only way to list), ``fleet/fleet.toml``, ``fleet/activation.toml``, ``identity/ca.pem``,
``identity/deny.json``, ``fleet/lifted.toml``, ``fleet/allowances.toml``, ``policies/<id>.toml``,
``releases/main/<name>@<version>.manifest``; for people ``audit/log.jsonl``. A delegated role has its own index in its own folder.

===============  =====  ==================================================================================
module           kind   what it holds
===============  =====  ==================================================================================
certificate      core   what is written into certificates
identity         shell  device identity, mutual TLS contexts, signatures with a domain
delegation       core   delegated roles: their names, and the one folder that each speaks for
lint             core   rules for metadata beyond the TUF specification
index            core   names in the tree; the list of policies and releases
deny             core   devices and authorities that count no longer
fleet_document   core   origins, collectors and sites of a fleet
site_root        core   sites that act alone: how the fleet vouches for the root of their repository
floor            core   versions below which nothing is accepted again
evidence         shell  proof that a role signed one version twice
view             shell  what a device believes now, and how fresh it is
updater          shell  python-tuf as it is run here: limits, network, whom to blame
tufcli           shell  the updater behind the command line of the public conformance suite
delegates        shell  the delegated roles in a trial, each by itself
halt             core   orders to stop, bound to the key that gave them, until a threshold lifts them
root_chain       shell  the roots that a device keeps
trial            shell  one attempt at a source, in a copy that is thrown away unless all of it is good
client           shell  the device's side: attempts, the swap, serving to peers
===============  =====  ==================================================================================

What the library (python-tuf) leaves to us, and where it is done
    - that a key counts once however often it is listed, and that key ids fit their keys: ``lint``
    - a fleet's id in the root, so that metadata of another fleet with a shared key is foreign: ``lint``
    - last known good independent of expiry, and the atomic change to the next: ``trial``, ``client``
    - which delegations there may be, and that one bad delegate stands alone: ``delegation``, ``lint``, ``delegates``
    - time that only goes forward, and versions that zeroed cache files cannot bring back: ``floor``
    - equal version with other bytes is evidence, not an update: ``trial``
    - keys at rest and the order of writing an origin tree: ``authority.keys.keyfile``, ``authority.publish``

TLS, as run against OpenSSL 3: ``VERIFY_X509_STRICT`` wants SKI, basicConstraints and keyUsage in the CA and an AKI in leaves.
With TLS 1.3 a refused client sees its handshake succeed and learns the truth at its first read.
"""
