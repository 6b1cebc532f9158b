"""From the shapes of layers to numbers: many architectures at once, without building any of them."""
