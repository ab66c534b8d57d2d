"""Processes and containers: the native driver, the built-in runtime, OCI images."""
