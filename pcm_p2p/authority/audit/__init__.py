"""audit: the chain of signing acts, and its verification.

Goals
    - Every signature has an entry that holds it; no entry can be altered, moved, or taken out unseen.
    - The log is published with the fleet, and anybody verifies it without a network.

=============  =====  ==============================================================================
module         kind   what it holds
=============  =====  ==============================================================================
log            core   the chain of signing acts, and its judgement
journal        shell  that chain in the fleet folder
record         shell  from a signature that was just made to its entry
verification   shell  verifying a log against a fleet folder or a published tree
=============  =====  ==============================================================================
"""
