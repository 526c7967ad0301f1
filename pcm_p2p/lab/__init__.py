"""lab: a whole fleet on one machine, for a first look, training, sizing, tests and benchmarks.

Participants: a scenario, two versions of a real package, an authority desk, origins, a collector with its console, and one
daemon per device, each its own process with its own state folder. The lab starts them through the same command lines that an
admin types, and measures through the same control socket that ``pcm-p2p status`` asks.

Goals: the real thing end to end; nothing left behind, however the lab ends; figures that can be repeated.
Non-goals: emulating anything. What is not real (the size of the fleet, loss on the wire) is not claimed.

==========  ====================================================================================================
module      what it does
==========  ====================================================================================================
scenario    [core] the TOML document: sites, devices, link rates, release, faults
result      [core] statuses and counters → the JSON object, the table, the verdict
packages    two versions of a real package: apt without root, else two wheels, else two given files
debian      what the package archive offers: its lists, its private copy, what a .deb says about itself
launcher    runs in a child before its program: namespace, death with the parent
guard       ends what a killed lab left behind
processes   starts, watches and ends the processes of one run
network     loopback, or one network namespace per device on a bridge with a shaped link per office
doorway     opens a console inside a namespace to the browser of the machine
fleet       the processes by role: what is started with which command line, folder and settings
run         the story: first version everywhere, new version, faults, measurements
progress    live picture on a terminal, plain lines elsewhere
download    one plain download, the yardstick of the kernel's counters
==========  ====================================================================================================

Folders (below ``.lab/`` of the checkout, or of the working folder where there is no checkout)::

    packages/        downloaded pairs; kept, so the second run needs no network
    apt/             private cache of apt, and private lists where the machine's own are missing
    fleets/fN/       one run: authority/, origin/, collector/, devices/, roots/, logs/; removed by a later run

Kill the lab with SIGKILL and the kernel ends its children (parent-death signal), the guard ends theirs, and network namespaces
vanish because only file descriptors of the lab hold them.
"""
