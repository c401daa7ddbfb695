"""An example backend for microvm: machines of paper."""
