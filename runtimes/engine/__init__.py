"""The life of containers: state on disk, a monitor for each, and the commands that people give. No daemon."""
