"""What a container may do: capabilities, the filter on system calls, device rules, and the levels that bundle them."""
