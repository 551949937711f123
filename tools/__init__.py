"""What people call: the driver `optimize()`, the click commands, the report."""
