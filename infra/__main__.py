"""`python -m infra`: the `afterclick` command, for child processes that must run this very Python."""

from infra.cli import main

main()
