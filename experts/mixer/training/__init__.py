"""Training of mixers: experts by domain, gates over them, and what the routing turned out to do."""
