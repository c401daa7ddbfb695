"""Fakes and contract tests for the authors of backends, devices and provisioners."""
