"""Real servers as child processes: Kafka and Valkey, without containers."""
