"""enrolment: how a device becomes a member of the fleet.

Participants
    The **desk** holds the key of the fleet's certificate authority, admits devices that bring a token, and renews certificates.
    A **person** lets devices in that come with a token which asks for approval.
    A **device** that joins makes its key, which never leaves it, and checks the desk against the token.

Goals
    - A member proves itself by a key that never left it. A token is worth one use (or as many as were said) until it expires.
    - Nobody in between can join in another's place, or make a device join another fleet: the token pins authority and root.
    - Whatever is interrupted is repeated with the same command, and costs no further use.

===============  =====  ==================================================================================
module           kind   what it holds
===============  =====  ==================================================================================
token            core   the line that invites a device, and what a desk's record of it says
device_code      core   a device id as two people compare it
introduction     core   what a device and the desk say to each other
admittance       core   whom the desk certifies, and whom it renews
renewal_times    core   when a certificate is renewed, and how long a failure waits
passage          core   what is said to a neighbour that relays, and the bounds of that
token_folder     shell  the desk's records of tokens
waiting_list     shell  the queue of devices that wait for a person's word
published        shell  authorities and the deny list, as they were published
invitation       shell  making tokens in a fleet folder
desk             shell  honours tokens and renews: the service that certifies
errand           shell  going to the desk, directly or through a neighbour
join             shell  the device's side of joining
renew            shell  the device's side of renewing
new_identity     shell  a fresh key for a device whose identity is used twice
first_settings   shell  the config.toml of a device that joins
===============  =====  ==================================================================================

Who may be in between: a neighbour that relays sees ciphertext (``passage``). What is believed of a desk follows from its
certificate alone, whatever address it answers at.

Not done here: relaying over more than one hop, and a certificate's end before its time (``trust.deny``).
"""
