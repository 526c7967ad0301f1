"""Apply: making a device what the policy says, as one journaled transaction that ends done, rolled back or parked.

Participants: ``policy.desired`` hands over a ``Change`` (all of its resources, or none) and the ``Authorisation`` that
names it; assembled files are the *staged* artifacts; providers know one kind of resource each.

==============  =============================================================================================
step            what is observed on the device, and the reversible steps
plan            core: change minus observation = ordered steps; no steps means it is so already
journal         the one durable record of a transaction under way
receipt         core: per subject, what is in place, how often it was tried, whether it is parked
receipt_folder  the receipts of a device, one file each
device          the verbs of the providers over any resource and step
root            paths below the apply root, walked without following a link
command         a subprocess with a deadline
providers/      package, archive, file, service: observe, prepare, change, undo
transaction     the machine: prepare → journal → change … → verify → commit, or undo
applier         the trio shell around it
judgement       core: whether a change that somebody asks for is due, by what the apply service itself trusts
dialogue        core: what the network's daemon and the apply service say to each other
==============  =============================================================================================

The arrows, each of which survives SIGKILL and a power cut::

    observe → plan → prepare (back-ups durable) → journal: applying, reached 0
      → [journal: reached i+1 → change i]* → verify → journal: done → receipt → journal removed
    on a failure, or on finding the journal at a start:
      journal: rolling_back → undo of every step reached → receipt (rolled_back or parked) → journal removed

A step is journaled before it is made, and ``undo`` restores the state that was observed from any point in between, so a
restart never has to know how far a step had come. A transaction that is found half made is rolled back, never carried on:
the next attempt starts from a known state. Each attempt counts; after ``ATTEMPTS_MAX`` the change is parked until it
differs or an operator resets it. What cannot be rolled back is parked at once, loudly.

Goals
    Nothing is changed without an ``Authorisation`` that names the change. Staged files are hashed again from the bytes that are
    used. No link is followed out of the root, and what is opened is a regular file; in a folder that others can write to, no
    set-user bit and no further name of a file is trusted. Every subprocess has a deadline and no terminal.

Non-goals
    Dependency resolution (a release lists what it needs), reboots, windows.

Private roots: with another root than ``/`` (lab, images) packages are installed by an unprivileged dpkg; packages with
maintainer scripts and services are refused there, since both would act on the machine that runs the daemon.
"""
