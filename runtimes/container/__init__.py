"""The built-in container engine: namespaces, cgroups and an overlay, without a daemon."""
