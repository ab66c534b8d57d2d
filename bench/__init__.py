"""The measurement: suite -> schedule -> trial -> store -> statistics -> report."""
