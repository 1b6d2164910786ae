"""The conversations that laguna-tiny learns from, generated: no outside data."""
