"""authority: the side of those who sign. Keys of people, the fleet folder, proposals, signatures, publishing.

Participants
    **Authorities** are people with keys: root keys say who the others are, targets keys say what is released. A key rests in a
    file under a passphrase or in a token, and signs on its holder's own machine; only public files and signatures travel.
    The **publisher** holds the two online keys (snapshot, timestamp) and writes the origin tree.

Goals
    - Nothing reaches a device that a threshold of people has not seen and signed.
    - What a person signs is what that person was shown: bytes, names of people, dates.
    - SIGKILL at any point leaves the old state or the new one, and the same command repeats the work.
    - A folder that was restored from a backup cannot take the fleet back.
    - No signature is without an entry in the audit log, and no entry can be taken out of it unseen.
    - A signer needs the proposal in a file and the own key: no network, no fleet folder, no trust in who carries.

Non-goals
    Deciding on a device (``trust``), and admitting devices (``enrolment``).

====================  =====  =============================================================================
module                kind   what it holds
====================  =====  =============================================================================
keyfile               shell  an authority's key in a file, encrypted under a passphrase
signing_key           shell  a person's key, wherever it rests, opened for signing
hardware_key          shell  an authority's key in a PKCS#11 token
public_key            core   the public side of a key as it is carried, signed by the key itself
public_key_file       shell  the files that carry it
fingerprint           core   public keys of authorities, as metadata lists and people compare them
words                 core   twelve words for 128 bits
fleet_ca              shell  the fleet's certificate authority
ca_folder             shell  the authorities in the fleet folder: certifying, next and former
revocation            shell  proposing who is revoked
founders              core   the people who found a fleet: who holds which keys, and how many must sign
founding              shell  the first keys and the first root of a fleet
key_test              core   a signature that shows that a key works, and who has not given one
key_test_file         shell  making and recording them
key_sheet             core   what is printed about a fleet's keys
key_sheet_file        shell  writing it, as text or as a page for a browser's printer
fleet_documents       shell  the documents in the authorities' folder, and its lock
staging               shell  from a change of targets to the proposed document of the role that signs them
target_files          shell  files of targets and blobs in the folder
halting               shell  one person's order to stop, and lifting it
delegating            core   delegations as the targets carry them: sites, teams, and who may halt
repository            shell  the authorities' folder: staging, proposals, signatures
release_list          core   releases in a targets document, and their counters
immutable_file        shell  files that never change once they have their name
proposal              core   what would be signed, as a person reads it
difference            core   what a signature would change, complete and in a person's words
document_difference   core   what changes inside one target: a release, a text
shown_text            core   foreign text on a screen that it cannot paint
bundle                core   a proposal in one file, all of it checked against what is signed
signature_file        core   a detached signature, and why one is refused
carried_proposal      core   what a bundle proposes, as it is read and signed
carrying              shell  proposals and signatures as files, out of a fleet folder and in
rotation              core   the keys and the threshold of a role, before and after
expiry                core   what comes near its end, and what one absent person stops
people                shell  changes of the keys and thresholds of roles, proposed
playbook              shell  what to do when something is lost or stolen
health                shell  the findings of expiry for a fleet folder
audit_log             core   the chain of signing acts, and its judgement
audit_journal         shell  that chain in the fleet folder
audit_record          shell  from a signature that was just made to its entry
auditing              shell  verifying a log against a fleet folder or a published tree
pin                   core   what a signer's machine remembers of each fleet
pin_file              shell  the file in which it remembers
site_policy           shell  what devices would set aside of a site's policies, said before it is signed
site_folder           shell  what marks the folder of a site that acts alone, and what may be staged in it
site_repository       shell  founding the repository of a site that acts alone, and listing its root
publish               shell  from a signed proposal to the origin tree; keeping it from expiring
====================  =====  =============================================================================
"""
