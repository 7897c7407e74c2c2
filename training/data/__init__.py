"""Reading, checking and splitting data."""
