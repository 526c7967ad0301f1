"""facts: what is there. One probe per kind of resource; shells that read and never write, for worker threads.

Participants: ``prober`` picks the probe for a check and turns every way of not knowing into ``Unknown``; the probes read below a
root, so that a private root (lab, images, fixture trees of tests) is probed like the system itself.

Goals
- An attribute is observed, absent (``None``), or ``Unknown`` with state and reason. Nothing is guessed, nothing is skipped.
- Nothing above the root is read: links are followed as if the root were ``/`` (``below_root``).
- Reading is bounded in bytes and time; a probe out of budget says ``not_run``.

Non-goals: judging (``assessment``), changing (``apply``).

=============  ===========================================  =================================================
module         attributes                                   source of truth
=============  ===========================================  =================================================
package        installed version arch held                  dpkg's status file and its journal
file           exists type owner group mode sha256          lstat, passwd and group below the root
               size_bytes symlink_target
file_content   hits                                         the file's lines
sysctl         live persisted                               procfs; sysctl.d in systemd's merge order
service        exists enabled active masked                 ``systemctl show``; only the running system
mount          mounted fstype device options fstab_options  mountinfo, fstab
=============  ===========================================  =================================================
"""
