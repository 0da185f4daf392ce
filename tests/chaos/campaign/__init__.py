"""Chaos on real servers: processes, faults, and a verdict from logs that the library does not write."""
