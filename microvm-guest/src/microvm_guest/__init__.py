"""The guest side of microvm: image, agent, and the channels into it."""
