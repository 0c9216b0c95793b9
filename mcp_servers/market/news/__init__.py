"""News from outside: read, cut, marked as untrusted, never believed."""
