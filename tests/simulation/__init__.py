"""A whole fleet in one process: one virtual clock, one seed, faults at will (``python -m simulation --help``)."""
