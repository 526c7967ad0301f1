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

Folders: ``publishing`` (the admin's side), ``forms`` (stored forms), ``delta`` (blobs that start from base bytes), ``decoding``
(blobs to chunks, in a process of its own), ``keeping`` (the store of a device, and files made of it). Here: the formats that all
of them speak.

=============  =====  ====================================================================================================
module         kind   what it holds
=============  =====  ====================================================================================================
manifest       noun   the signed description of a release, and every invariant that arithmetic can check
chunk          noun   a chunk and its sealed form
segment        core   which chunks go together; segment blobs, both ways
xz_packing     core   how full segments are packed, by level and by what the data is like
pieces         core   a stored form as bytes and installed files; the layout that says so, both ways
=============  =====  ====================================================================================================

Figures (2 shared cores of the development machine; ``bench/ingest.py``, ``assemble.py``, ``decode.py`` and ``delta.py`` measure
them again): sealing at zstd level 1 runs at 442 MB/s to 42.1 % of a Debian corpus, level 3 at 263 MB/s to 39.5 %, hence level
1. Over eleven Debian updates deltas took 13.8 % of the packages (manifests included), full segments 89 … 101 %.
"""
