"""`python -m grekko` and the console script ``grekko``."""

from __future__ import annotations

from grekko.cli import main

if __name__ == "__main__":
    main()
