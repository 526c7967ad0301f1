"""cli: the commands of ``pcm-p2p``. Parse, call one room, print, map errors to exit statuses; nothing is decided here.

================  =====================================================================================
module            commands
================  =====================================================================================
main              the application, ``--version``, exit statuses
output            how facts are printed: tables for people, ``--json`` for programs; ``NO_COLOR`` holds
help_page         what ``--help`` looks like
addresses         ``HOST:PORT`` as people write it; port files
passphrase        where a passphrase comes from
one_file          what the tool for keys and signatures refuses to run
next_step         what is to be done after staging, signing or merging
fleet             ``fleet stage``, ``fleet activate``, ``fleet renew``, ``fleet refresh``
ceremony          ``fleet init``, ``fleet sheet``
ceremony_walk     the questions of ``fleet init`` on a terminal
key               ``key new``, ``key show``, ``key public``, ``key compare``, ``key passphrase``, ``key test``
key_choice        a key file or a key in a token, and what opens it
founder_options   options of the commands that found a fleet or a site
release           ``release add``, ``release show``
release_plan      ``release plan``
release_bases     which releases deltas start from, without ``--base``
release_progress  the bar while a release is made
policy            ``policy check``, ``policy put``, ``policy remove``
site_policy       ``policy allow``
delegation        ``site delegate``, ``site show``, ``site revoke``, ``team delegate``, ``team show``, ``team revoke``
workspace         ``fleet workspace``
halt              ``halt order``, ``halt list``, ``halt lift``
site_alone        ``site found``, ``site autonomous``
site_floor        ``site floor``
signing           ``sign``, ``merge``, ``publish``
proposal          ``proposal show``, ``proposal export``, ``proposal import``, ``proposal discard``
people            ``key rotate``, ``key add``, ``key remove``, ``fleet threshold``
recover           ``fleet recover lost-laptop``, ``lost-root-key``, ``stolen-online-key``, ``stolen-site-key``, ``lost-device``
fleet_check       ``fleet check``
audit             ``audit verify``, ``audit show``
origin            ``origin serve``
enroll            ``enroll desk``, ``enroll token``, ``enroll list``, ``enroll revoke``, ``enroll join``
enroll_queue      ``enroll pending``, ``enroll approve``, ``enroll deny``
device            ``device revoke``, ``device restore``, ``device list``
new_authority     ``fleet new-authority``
node              ``daemon``, ``status``, ``peers``, ``why``, ``doctor``, ``assess``
apply_service     ``apply-service run``, ``apply-service adopt``, ``apply-service show``, ``apply-service reset``
store             ``store stats``, ``store verify``, ``store gc``
collector         ``collector``
lab               ``lab up``, ``lab run``
================  =====================================================================================

Facts go to standard output, everything else (progress, warnings, errors) to standard error, so that a pipe sees facts only.
Rooms are imported inside the commands: ``pcm-p2p --help`` must not pay for TLS, SQLite and TUF.
"""
