"""The cases: each is a function of pytest that is given a `Scene`."""
