"""publishing: what the admin's machine does once per release. Delivered files become a manifest and segment blobs.

``ingest`` reads top to bottom as the flow: stored form, chunks, runs, what earlier releases have in common with them
(``comparison``), which blobs are worth it (``packing``), manifest. ``preview`` is the same without publishing.

Goals
- The same files, versions and libraries give the same bytes.
- SIGKILL costs the piece in hand: finished blobs are found again by their name.
- Every core works until the end, and memory does not grow with the artifact.

==========  =====  ==========================================================================================
module      kind   what it holds
==========  =====  ==========================================================================================
ingest      shell  delivered files → manifest and segment blobs
chunker     core   cut points that move with the content
sides       shell  members and anchors of a release, read for matching
matching    core   which chunks of an earlier release a run is made from
deltas      core   which deltas a release gets, and what its manifest says of bases
layout      shell  the layout of a package or archive, made where it is published
bases       shell  earlier releases made again of their segments, for deltas to start from
comparison  shell  a release in the making against its bases: which can be used, which deltas to make
workplace   shell  the ingest folder: one user at a time, leftovers swept, notes of finished segments
compressor  shell  the worker process that makes segment blobs, and the crew of them
packing     shell  which blobs are there, which are to be made, which deltas are worth it
preview     shell  what an update would cost, and which members of the container cost it
==========  =====  ==========================================================================================
"""
