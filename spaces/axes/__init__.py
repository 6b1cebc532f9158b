"""The axes: what may be chosen for a network, layer by layer, and the act that carries a choice out."""
