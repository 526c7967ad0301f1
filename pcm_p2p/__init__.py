"""pcm_p2p: peer-to-peer patch and configuration management.

Rooms, from the nouns upwards (imports point downwards only; ``tests/test_architecture.py`` enforces it):

=============  ======================================================================================
errors, ids    nouns for everyone: the error tree (message, exit code, remedy) and the identifiers
toml_document  TOML text to a validated object, with errors that name file, line, key and remedy
config         the settings of one daemon
durable        writes that survive a power cut
lock_file      one process at a time
private_file   files that hold a secret, refused where others could read them
shown_text     foreign text on a screen that it cannot paint
sidecar        the one asyncio thread, for the two libraries that need asyncio
database       SQLite through the side-car: whole transactions, migrations
content        data at rest: stored forms, chunks, segments, manifests, the store
trust          what a device believes: verified metadata, who is a member
authority      who may say what: keys of people, the fleet folder, signatures, publishing
enrolment      how a device becomes a member: tokens, the desk, joining
policy         what a device should be: signed policy, selectors, activation
wire           what is said between nodes: messages, frames, sessions
gossip         who is there and what is new: discovery, membership, spread
swarm          moving bytes: ownership, picker, pace, fetcher, seeder, origin
apply          making it so: providers, plan, journaled transaction
compliance     saying how it went: facts, assessment, report, outbox, carrying
collector      opening reports, and the console that shows them
daemon         the composition root of an endpoint
lab            a whole fleet on one machine
cli            the commands
=============  ======================================================================================
"""

__version__ = "0.1.0"
