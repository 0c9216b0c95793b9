"""``python -m mcp_servers.execution``: the execution server on standard input, TCP or a unix socket."""

from __future__ import annotations

import sys

from mcp_servers.execution.server import build
from mcp_servers.hosting import serve

if __name__ == "__main__":
    sys.exit(serve(build, sys.argv[1:], "execution"))
