"""`python -m infra`: the `afterclick` command by this Python, for child processes."""

from infra.cli import main

main()
