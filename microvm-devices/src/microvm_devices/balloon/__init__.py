"""virtio-balloon: memory goes back to the host (virtio 1.2, 5.5 Traditional Memory Balloon)."""
