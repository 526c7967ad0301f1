"""site: the repository with which the device's own site acts alone, beside the fleet's and below it.

Goals
    - What the office publishes reaches its devices while the WAN is down, within what the fleet allows.
    - The fleet takes a site back with one new root.

===========  ==============================================================================
module       what it holds
===========  ==============================================================================
repository   the repository with which the device's own site acts alone, followed beside the fleet's
folder       where what is trusted of that repository lies
floor        what the fleet lets the site set, taken over into the folder of its authority
segments     segments of the site's own releases, from a folder or a web server in the office
===========  ==============================================================================
"""
