"""A network in parts: its layers as data, and how to observe, copy, cut, replace and ship them."""
