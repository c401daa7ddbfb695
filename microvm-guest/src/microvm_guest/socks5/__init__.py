"""SOCKS5 on both sides of a guest: through it, and out of it."""
