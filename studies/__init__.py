"""The studies and benchmarks of this project; your own studies can be in any folder."""
