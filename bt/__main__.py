"""`python -m bt` is the `retrap` command, for a checkout that is not installed."""

from bt.cli.main import main

main()
