"""Helpers of the noxfile; nothing here is shipped."""
