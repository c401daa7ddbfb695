"""What is fixed by an architecture and by our choice of addresses on it."""
