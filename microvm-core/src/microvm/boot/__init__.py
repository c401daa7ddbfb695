"""Kernels and what surrounds them: recognising boot files, placing them in memory."""
