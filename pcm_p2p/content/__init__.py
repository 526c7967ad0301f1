"""The content room: files become chunks and segments, chunks become files again, and every byte is checked on the way.

Participants: the admin's machine, which runs ``ingest`` once per release; every device, which keeps chunks in a
``ChunkStore`` and runs ``assemble``; the swarm, which moves sealed chunks and segment blobs and asks this room what they are.

Flow
- Admin: delivered file → *stored form* (inner compression undone, so that two versions share chunks) → content-defined
  chunks → *segments*, runs of at most 16 MiB of chunks in one compressed blob, and the same runs as deltas to earlier
  releases (``comparison``: which base bytes; ``packing``: which blobs are worth it) → ``Manifest``.
- Device: segment blob, for a delta with its base chunks → ``decoder`` → verified chunks → store → (neighbours, sealed) →
  ``assemble`` → the stored form, byte for byte.

Words
- *chunk*: 64 KiB … 4 MiB of a stored form, named by its BLAKE3. *Sealed*: the same as one zstd frame; this form is on disk
  and on the wire. *Segment*: what the origin serves. *Stored form*: what devices assemble and install.
- *Run*: the chunks that one full segment yields. *Base*: an earlier release, and those of its chunks that a delta starts from.
  *Layout*: how the stored form of a base is made of installed files.

Goals
- Nothing enters the store or leaves it as a chunk unless its BLAKE3 is its name; a rotten file is a miss, never a lie.
- Ingest and assembly stream: memory does not grow with the artifact. Decoders bound their output before they allocate it.
- SIGKILL at any point costs the piece in hand: finished segments and stored chunks are found again, no half file has a name.
- A full disk is an answer (``DiskFull``), not a damage: the store is as it was.

Non-goals: where bytes come from (swarm), whether a manifest is to be believed (trust), unpacking onto a device (apply).
No fsync in the chunk path: a chunk that a power cut tore fails its hash and is fetched again.

=============  =====  ====================================================================================================
module         kind   what it holds
=============  =====  ====================================================================================================
manifest       noun   the signed description of a release, and every invariant that arithmetic can check
chunk          noun   a chunk and its sealed form
chunker        core   cut points that move with the content
segment        core   which chunks go together; segment blobs, both ways
decoding       core   what decoding a segment takes and gives, and how it fails
decoder        shell  the daemon's side of decoding: one worker process, and its stand-in for virtual time
decode_worker  shell  the process that decodes: low priority, a ceiling on memory, gone with the daemon
delta          core   blobs that make a run of chunks from base chunks, both ways
covers         core   the covers of a patch, made to reach farther
gzip_members   core   where gzip members lie in other bytes, and what is in them
repacking      core   what a delta does with gzip members: unpacked before the patch, packed again behind it
stretches      core   what a run and its base have in common in long stretches, of which HDiffPatch need not know
gzip_program   shell  the program gzip of this device, tried before it is believed
members        shell  the members of a stored form, so that a file meets its older self
matching       core   which chunks of an earlier release a run is made from
deltas         core   which deltas a release gets, and what its manifest says of bases
inventory      core   what a store holds, and in which order it lets go
chunk_folder   shell  the files of a store, without rules
store          shell  chunks on disk: quota, eviction, rot, drops announced before they happen
memory_store   fake   the same verbs in memory, held to the same tests
verification   shell  reading and hashing a whole store, beside everything else
assemble       shell  chunks → one file, verified, or the list of what is missing
stored_form    shell  which form a file has, and the way to its stored form
form_deb       shell  .deb → ar with its two tars uncompressed; dpkg installs it as it is
form_tar       shell  compressed tar → tar
form_zip       shell  zip → zip whose members are stored, in the same order with the same attributes
decompression  shell  gzip, bzip2, xz, lzma, zstd as bounded streams
pieces         core   a stored form as bytes and installed files; the layout that says so, both ways
layout         shell  the layout of a package or archive, made where it is published
installed      shell  chunks out of installed files, read below a root without following links
workplace      shell  the ingest folder: one user at a time, leftovers swept, notes of finished segments
compressor     shell  the worker process that makes segment blobs, and the crew of them
sides          shell  members and anchors of a release, read for matching
comparison     shell  a release in the making against its bases: which can be used, which deltas to make
bases          shell  earlier releases made again of their segments, for deltas to start from
packing        shell  which blobs are there, which are to be made, which deltas are worth it
ingest         shell  delivered files → manifest and segment blobs
preview        shell  what an update would cost, and which members of the container cost it
=============  =====  ====================================================================================================

Figures (2 shared cores of the development machine; ``bench/ingest.py``, ``assemble.py``, ``decode.py`` and ``delta.py`` measure
them again): sealing at zstd level 1 runs at 442 MB/s to 42.1 % of a Debian corpus, level 3 at 263 MB/s to 39.5 %, hence level
1. Over eleven Debian updates deltas took 14.2 % of the packages (manifests included), full segments 89 … 101 %.
"""
