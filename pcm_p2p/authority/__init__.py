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

Folders: ``keys`` (what they sign with), ``people`` (who they are, and how that changes), ``carry`` (proposals and signatures as
files), ``audit`` (the log of signing acts). Here: the fleet folder, what is proposed in it, and publishing.

Non-goals
    Deciding on a device (``trust``), and admitting devices (``enrolment``).

====================  =====  =============================================================================
module                kind   what it holds
====================  =====  =============================================================================
fleet_ca              shell  the fleet's certificate authority
ca_folder             shell  the authorities in the fleet folder: certifying, next and former
revocation            shell  proposing who is revoked
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
halt_difference       core   which halts are lifted or confirmed, in words
site_policy           shell  what devices would set aside of a site's policies, said before it is signed
site_judgement        core   the same by the rules of ``policy``, in sentences
fleet_floor           core   what the fleet lets a site that acts alone set: signed, in one file
held_floor            shell  that file in the site's folder, and the site's policies judged by it
site_folder           shell  what marks the folder of a site that acts alone, and what may be staged in it
site_repository       shell  founding the repository of a site that acts alone, and listing its root
publish               shell  from a signed proposal to the origin tree; keeping it from expiring
====================  =====  =============================================================================
"""
