"""`python -m enginehouse`."""

from enginehouse.tools.cli import main

main()
