"""Several load pods as one client."""
