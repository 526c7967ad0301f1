"""The console: web pages and a JSON API over the archive, in a process of its own.

    python -m pcm_p2p.collector.console --archive PATH --listen HOST:PORT --password-file FILE [--port-file FILE]

Participants
    A person with a browser, a script with the password, and the archive, which this process opens read-only for each request.

Goals
    1. Fleet first: the first page answers "who is patched, who is not, whom do we not know about".
    2. Every number is a link to the rows it counts; every page says as of when. Pages and API show the same objects.
    3. State is always icon, word and colour together; light, dark and high contrast; usable by keyboard and on a telephone.
    4. Works offline: what the browser needs is in ``static``, vendored files with version, licence and hash in
       ``static/vendor/vendored.toml``. No inline script or style, so that the content security policy is ``default-src 'self'``.
    5. A crash here takes no report with it, and nothing that a browser sends reaches the peers' port.

Non-goals
    Changing anything on an endpoint, or authoring what changes endpoints. Several users and roles: there is one password.

===================  ====  ===============================================================================
address              asks  what it is
===================  ====  ===============================================================================
/                    yes   overview
/devices             yes   list; site, state, coverage, release, progress, check, result, trust, attention, q, sort, page
/devices.csv         yes   the same rows, all of them
/devices/{id}        yes   one device
/releases            yes   list
/releases/{n}/{v}    yes   one release; site, progress, reason
/savings             yes   swarm savings; site, release
/events              yes   server-sent events: one ``archive`` event, its id the archive's change count, per change
/api/…               yes   overview, devices, devices/{id}, releases, releases/{n}/{v}, savings as JSON
/login, /logout      no    the password form
/healthz             no    200 if the archive can be read, else 503
/static/…            no    files
===================  ====  ===============================================================================

"Asks": a session cookie, or for ``/api`` HTTP Basic with any user and the password. Without it pages lead to ``/login``, and
the API and the events answer 401.

=============  ==========================================================================================
module         what it holds
=============  ==========================================================================================
__main__       arguments, password file, run until told to stop
serve          the one seam to the ASGI server
app            routes, security headers, errors
access         who may ask: sessions, limits on guessing (cores)
login          the password form and the gate in front of everything else
password       the password file
state          what pages, API and events share: archive, gate, templates
pages          the pages
api            the JSON API
events         server-sent events
presentation   numbers and times as people read them
=============  ==========================================================================================
"""
