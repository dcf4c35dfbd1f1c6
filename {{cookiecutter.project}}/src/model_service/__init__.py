"""One model, one repository, one container: load, train, gate, wrap, serve."""
