"""x86_64: registers, the machine's layout, and the tables that describe it to a guest."""
