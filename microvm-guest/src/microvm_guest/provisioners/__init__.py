"""Provisioners: what is brought into a guest, and how it is used from outside."""
