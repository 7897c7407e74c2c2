"""A server of known delays, and the client measured against it."""
