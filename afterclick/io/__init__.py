"""Clients, files and threads that several parts share."""
