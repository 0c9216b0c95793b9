"""The risk room: the only one that can say yes, and the only one that holds the approval key."""
