"""The conformance suite of streamfleet."""
