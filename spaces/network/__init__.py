"""A network and its layers: describe, observe, copy, cut, replace and deploy them."""
