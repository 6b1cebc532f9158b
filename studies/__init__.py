"""Studies that come with the project; your own can lie anywhere."""
