"""The execution room: the only one that can trade, and only what risk has signed."""
