"""``python -m mcp_servers.wallet``: standard input and output, ``--http HOST:PORT`` or ``--socket PATH``."""

from __future__ import annotations

import sys

from mcp_servers.hosting import serve
from mcp_servers.wallet.server import build

if __name__ == "__main__":
    sys.exit(serve(build, sys.argv[1:], "wallet"))
