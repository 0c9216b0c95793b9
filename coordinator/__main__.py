"""``python -m coordinator``: standard input and output, ``--http HOST:PORT`` or ``--socket PATH``."""

from __future__ import annotations

import sys

from coordinator.server import build
from mcp_servers.hosting import serve

if __name__ == "__main__":
    sys.exit(serve(build, sys.argv[1:], "coordinator"))
