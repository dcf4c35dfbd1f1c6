"""The bitemporal store: observations with two clocks, written by INSERT only."""
