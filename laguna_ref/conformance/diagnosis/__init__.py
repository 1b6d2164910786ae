"""The name of the bug: what a backend computed, held against every fault of the catalogue."""
