"""The routes of a server that a load test can ask: a module per route, and the table of them."""
