"""streamfleet: a work queue on Redis Streams and Valkey Streams."""
