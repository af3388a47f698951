"""Faults with their controls; run by `afterclick bench faults`."""
