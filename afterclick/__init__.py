"""The shared vocabulary of Afterclick: events, topics, keys, codecs, artifacts, scoring. No I/O."""
