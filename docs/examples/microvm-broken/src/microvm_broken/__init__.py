"""A broken plugin, on purpose."""
