"""Find groups of channels that must be removed together and branches that can be left out, and check them by trial."""
