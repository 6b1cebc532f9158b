"""The program `slimfront`, also as `python -m slimfront`."""

from search.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
