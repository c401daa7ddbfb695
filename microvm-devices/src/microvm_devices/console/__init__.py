"""virtio-console: a terminal, and named streams beside it (virtio 1.2, 5.3 Console Device)."""
