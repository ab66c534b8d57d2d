"""Containers that libvirt starts (``lxc:///``): the tree that the built-in engine starts, under another engine."""
