"""The axes: what may be chosen for each layer of a network, and the steps that apply the choices."""
