"""virtio-net (virtio 1.2, 5.1 Network Device), and net backends: a plugin each."""
