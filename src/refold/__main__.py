"""``python -m refold``: the command line."""

from refold.cli import main

main()
