"""One plain NumPy operation a file: the truth that every faster body is held against."""
