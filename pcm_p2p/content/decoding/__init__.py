"""decoding: segment blobs become verified chunks in a process of its own.

Goals
- Whatever a blob does to a decoder, the daemon goes on: the worker has a ceiling on memory and a deadline, and is replaced.
- Nothing that comes back is believed: each chunk is hashed by who asked.

============  =====  ==========================================================================================
module        kind   what it holds
============  =====  ==========================================================================================
job           core   what decoding a segment takes and gives, and how it fails
decoder       shell  the daemon's side of decoding: one worker process, and its stand-in for virtual time
worker        shell  the process that decodes: low priority, a ceiling on memory, gone with the daemon
gzip_program  shell  the program gzip of this device, tried before it is believed
============  =====  ==========================================================================================
"""
