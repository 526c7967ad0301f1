"""forms: delivered files undone to what two versions have in common, and made again byte for byte.

A *stored form* has no compression inside: a package becomes an ar of two plain tars, which dpkg installs as it is. What
cannot be made again exactly stays as it was delivered.

Goals
- Exact or untouched: a file is made again byte for byte before its stored form is believed.
- Hostile archives end in one error within bounded memory and time; nothing here unpacks onto a disk.

=============  =====  ==========================================================================================
module         kind   what it holds
=============  =====  ==========================================================================================
stored_form    shell  which form a file has, and the way to its stored form
deb            shell  .deb → ar with its two tars uncompressed; dpkg installs it as it is
tar            shell  compressed tar → tar
zip            shell  zip → zip whose members are stored, in the same order with the same attributes
decompression  shell  gzip, bzip2, xz, lzma, zstd as bounded streams
member         core   one file within a stored form, and the name under which it meets its older self
members        shell  the members of a stored form, read out of it
=============  =====  ==========================================================================================
"""
