"""The live state of one user, in one round trip to Redis."""
