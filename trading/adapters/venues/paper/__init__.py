"""A venue that matches on a public book it only watches; no keys, no network, no real money."""
