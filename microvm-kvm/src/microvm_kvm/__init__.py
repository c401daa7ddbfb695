"""Runs microvm machines on Linux's KVM."""
