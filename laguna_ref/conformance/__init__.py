"""Other implementations held against this one."""
