"""Putting a kernel into an x86_64 guest's memory, and describing the machine to it."""
