"""applying: the changes of a device, made in this process or by the apply service, which is root and believes nobody.

Goals
    - Whoever takes over the daemon on the network can make the service do nothing, something late, or what is
      signed for this device now.
    - The rest of the daemon does not know which of the two it is.

=========  ==============================================================================
module     what it holds
=========  ==============================================================================
client     who makes changes: the applier in this process, or the apply service over its socket
service    what must be root, in a process of its own that verifies everything again
process    the apply service as a process that ends on a signal
channel    messages and bytes between the two, with deadlines
belief     what the apply service trusts by itself, and what follows from it
settings   the apply service's own settings, in a folder of root's
adoption   how the apply service comes by its pinned root
=========  ==============================================================================
"""
