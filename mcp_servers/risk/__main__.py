"""``python -m mcp_servers.risk``: the risk server."""

from __future__ import annotations

import sys

from mcp_servers.hosting import serve
from mcp_servers.risk.server import build

if __name__ == "__main__":
    sys.exit(serve(build, sys.argv[1:], "risk"))
