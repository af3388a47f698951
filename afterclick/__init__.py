"""The shared vocabulary: events, topics, keys, codecs, models, features, ranking; clients are in `io`."""
