"""Container networking in the host's namespace: one bridge, a persisted pool of addresses, NAT and published ports.

Order of use in a container's life (``attach``): ``plan`` before the birth, ``connect`` when its network namespace
exists, ``publish`` when it is connected, ``disconnect`` when it ended. Modules here are light: no heavy imports.
"""
