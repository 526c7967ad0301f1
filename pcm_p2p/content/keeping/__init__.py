"""keeping: chunks on a device's disk, and files made of them.

Goals
- Nothing enters or leaves as a chunk unless its BLAKE3 is its name; a rotten file is a miss, never a lie.
- A full disk is an answer (``DiskFull``), not a damage: the store is as it was.
- What is dropped is announced before, and the last copy of a site goes last.

============  =====  ==========================================================================================
module        kind   what it holds
============  =====  ==========================================================================================
store         shell  chunks on disk: quota, eviction, rot, drops announced before they happen
inventory     core   what a store holds, and in which order it lets go
chunk_folder  shell  the files of a store, without rules
memory_store  fake   the same verbs in memory, held to the same tests
verification  shell  reading and hashing a whole store, beside everything else
assemble      shell  chunks → one file, verified, or the list of what is missing
installed     shell  chunks out of installed files, read below a root without following links
============  =====  ==========================================================================================
"""
