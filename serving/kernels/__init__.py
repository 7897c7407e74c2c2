"""Compiled kernels that outlive the server that compiled them."""
