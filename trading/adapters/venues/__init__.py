"""Places that execute orders, each behind ``trading.ports.venue.ExecutionVenue``."""
