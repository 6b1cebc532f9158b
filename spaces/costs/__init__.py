"""Exact costs from the shapes of layers, for many architectures at once and without building any network."""
