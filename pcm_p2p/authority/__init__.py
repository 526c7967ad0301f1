"""authority: the side of those who sign. Keys of people, the fleet folder, proposals, signatures, publishing.

Participants
    **Authorities** are people with key files: root keys say who the others are, targets keys say what is released. Their keys
    rest encrypted under a passphrase and sign on the authority's own machine.
    The **publisher** holds the two online keys (snapshot, timestamp) and writes the origin tree.

Goals
    - Nothing reaches a device that a threshold of people has not seen and signed.
    - What a person signs is what that person was shown: bytes, names of people, dates.
    - SIGKILL at any point leaves the old state or the new one, and the same command repeats the work.
    - A folder that was restored from a backup cannot take the fleet back.

Non-goals
    Deciding on a device (``trust``), and admitting devices (``enrolment``).

====================  =====  =============================================================================
module                kind   what it holds
====================  =====  =============================================================================
keyfile               shell  an authority's key in a file, encrypted under a passphrase
signing_key           shell  a person's key, wherever it rests, opened for signing
public_key            core   the public side of a key as it is carried, signed by the key itself
public_key_file       shell  the files that carry it
fingerprint           core   public keys of authorities, as metadata lists and people compare them
words                 core   twelve words for 128 bits
fleet_ca              shell  the fleet's certificate authority
founding              shell  the first keys and the first root of a fleet
fleet_documents       shell  the documents in the authorities' folder, and its lock
repository            shell  the authorities' folder: staging, proposals, signatures
release_list          core   releases in a targets document, and their counters
immutable_file        shell  files that never change once they have their name
proposal              core   what would be signed, as a person reads it
difference            core   what a signature would change, complete and in a person's words
document_difference   core   what changes inside one target: a release, a text
shown_text            core   foreign text on a screen that it cannot paint
publish               shell  from a signed proposal to the origin tree; keeping it from expiring
====================  =====  =============================================================================
"""
