"""Which messages a round merges: one protocol, one module per mode."""
