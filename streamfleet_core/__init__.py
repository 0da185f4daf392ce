"""The sans-IO core of streamfleet."""
