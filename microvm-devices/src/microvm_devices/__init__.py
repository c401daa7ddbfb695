"""Virtio devices of the microvm framework."""
