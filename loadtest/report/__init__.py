"""The load report and the forms it is written in."""
