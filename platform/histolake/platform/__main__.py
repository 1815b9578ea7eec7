"""`python -m histolake.platform` is the `histolake` command."""

from histolake.platform.cli import main

main()
