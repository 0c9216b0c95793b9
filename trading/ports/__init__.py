"""What the rooms need from the world, as Protocols. Nothing here does anything."""
