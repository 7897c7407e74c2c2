"""The sections of the report, one file each, and their order."""
