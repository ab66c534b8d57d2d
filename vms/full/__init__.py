"""The full guest: a server as one installs it, from firmware and boot loader to the workload as a systemd unit."""
