"""keys: what authorities sign with. Where a key rests, how its public side travels, and how people compare and try it.

Goals
    - A private key never leaves its file or token but to sign, and is in no output.
    - What a person brings as a key was made by who holds it: public files are signed by their own key.
    - Two people can tell over the telephone whether they mean the same key.

================  =====  ==============================================================================
module            kind   what it holds
================  =====  ==============================================================================
keyfile           shell  an authority's key in a file, encrypted under a passphrase
signing_key       shell  a person's key, wherever it rests, opened for signing
hardware_key      shell  an authority's key in a PKCS#11 token
public_key        core   the public side of a key as it is carried, signed by the key itself
public_key_file   shell  the files that carry it
fingerprint       core   public keys of authorities, as metadata lists and people compare them
words             core   twelve words for 128 bits
key_test          core   a signature that shows that a key works, and who has not given one
key_test_file     shell  making and recording them
key_sheet         core   what is printed about a fleet's keys
key_sheet_file    shell  writing it, as text or as a page for a browser's printer
================  =====  ==============================================================================
"""
