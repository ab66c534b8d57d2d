"""OCI images: the store, the layers, their unpacking, and the one image that a workload set runs from."""
