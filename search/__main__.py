"""`python -m search` is `slimfront`."""

from search.cli import main

raise SystemExit(main())
