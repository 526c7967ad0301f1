"""carry: proposals and signatures as files, to machines without a network and back.

Goals
    - A signer needs the file and the own key: no fleet folder, no trust in who carries.
    - Signatures merge in any order; one that does not count is refused by name.

=================  =====  ==============================================================================
module             kind   what it holds
=================  =====  ==============================================================================
bundle             core   a proposal in one file, all of it checked against what is signed
signature_file     core   a detached signature, and why one is refused
carried_proposal   core   what a bundle proposes, as it is read and signed
carrying           shell  proposals and signatures as files, out of a fleet folder and in
pin                core   what a signer's machine remembers of each fleet
pin_file           shell  the file in which it remembers
=================  =====  ==============================================================================
"""
