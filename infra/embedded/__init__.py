"""The real Kafka and Valkey as child processes of this one: for `afterclick up` and for the tests."""
