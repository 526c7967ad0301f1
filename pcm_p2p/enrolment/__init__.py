"""enrolment: how a device becomes a member of the fleet.

Participants
    The **desk** holds the key of the fleet's certificate authority and admits devices that bring a token.
    A **device** that joins makes its key, which never leaves it, and checks the desk against the token.

Goals
    - A member proves itself by a key that never left it. A token is worth one use (or as many as were said) until it expires.
    - Nobody in between can join in another's place, or make a device join another fleet: the token pins authority and root.
    - Whatever is interrupted is repeated with the same command, and costs no further use.

================  =====  =================================================================================
module            kind   what it holds
================  =====  =================================================================================
token             shell  the line that invites a device, and the desk's record of it
invitation        shell  making tokens in a fleet folder
introduction      shell  what a device and the desk say to each other
desk              shell  honours tokens: the service that certifies
join              shell  the device's side of it
first_settings    shell  the config.toml of a device that joins
================  =====  =================================================================================
"""
