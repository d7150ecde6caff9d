"""What is measured of a trained method, and what it is held against."""
