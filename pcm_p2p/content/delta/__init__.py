"""delta: blobs that make a run of chunks of base bytes, both ways.

The patch is HDiffPatch's and its library alone applies it; what is here chooses what it is asked, and says it in its format.

Goals
- Devices read one bounded format, and whatever it says ends in bytes of the right length or one error.
- A member that gzip packed costs what changed in it, where the same gzip is at hand; nothing else depends on it.

============  =====  ==========================================================================================
module        kind   what it holds
============  =====  ==========================================================================================
blob          core   blobs that make a run of chunks from base chunks, both ways
covers        core   the covers of a patch, made to reach farther
stretches     core   what a run and its base have in common in long stretches, of which HDiffPatch need not know
gzip_members  core   where gzip members lie in other bytes, and what is in them
repacking     core   what a delta does with gzip members: unpacked before the patch, packed again behind it
============  =====  ==========================================================================================
"""
