"""The virtio standard (1.2): rings, chains and transports. Devices are plugins."""
