"""Runs microvm machines on the system QEMU."""
