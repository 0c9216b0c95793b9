"""The stop-loss manager: it closes what is open, whoever is alive, by exits that risk has signed."""
