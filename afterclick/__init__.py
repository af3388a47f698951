"""The shared vocabulary: events, topics, keys, codecs, models, features and ranking."""
