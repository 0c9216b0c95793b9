"""Members of the desk that the coordinator hosts. Each has its own key, its own Redis user and its own connection."""
