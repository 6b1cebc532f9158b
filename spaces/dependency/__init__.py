"""Which channels depend on each other, and which layers a network can do without: found, then checked by trial."""
