"""Providers: one file for each kind of resource. The same verbs in each, all blocking, called from a worker thread.

========  ============================================================================================
observe   the present state, as the ``Observed`` of ``apply.step``; changes nothing
prepare   keep what ``undo`` will need, durably, before anything is changed (package, file; the others keep it anyway)
change    make the step so; raises ``ApplyError`` with the reason
undo      restore what was observed, from wherever ``change`` was interrupted; may be repeated
========  ============================================================================================
"""
