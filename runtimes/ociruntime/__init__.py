"""isomark-oci: the built-in engine behind the OCI runtime command line, for podman, containerd and other engines."""
