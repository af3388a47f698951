"""`afterclick up`: the processes of one installation on this machine."""
