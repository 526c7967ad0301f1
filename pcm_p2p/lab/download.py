"""One plain download, the yardstick of the kernel's counters: a list of segments over one connection, one after the other.

Started by path with ``python -I -S`` in an office's namespace. Arguments: address of the origin, file with one segment id
(hexadecimal) per line. Prints the bytes received.
"""

import http.client
import sys
from pathlib import Path
from urllib.parse import urlsplit

TIMEOUT_S = 30.0
PIECE_BYTES = 1 << 20


def main(address: str, listing: str) -> None:
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT_S)
    received = 0
    for segment in Path(listing).read_text().split():
        connection.request("GET", f"/segments/{segment[:2]}/{segment}")
        response = connection.getresponse()
        if response.status != 200:
            sys.exit(f"segment {segment}: status {response.status}")
        while piece := response.read(PIECE_BYTES):
            received += len(piece)
    sys.stdout.write(f"{received}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
