"""people: who signs in a fleet: how it begins, how that changes, what comes near its end, and what to do on bad days.

Goals
    - Any key can be replaced in band, a root key included; who is missing is named.
    - On a bad day one command says what to do, does what can be done, and lists what remains.

=========  =====  ==============================================================================
module     kind   what it holds
=========  =====  ==============================================================================
founders   core   the people who found a fleet: who holds which keys, and how many must sign
founding   shell  the first keys and the first root of a fleet
rotation   core   the keys and the threshold of a role, before and after
expiry     core   what comes near its end, and what one absent person stops
changes    shell  changes of the keys and thresholds of roles, proposed
playbook   shell  what to do when something is lost or stolen
health     shell  the findings of expiry for a fleet folder
=========  =====  ==============================================================================
"""
