"""Numbers about generated images: plain features in, float64 statistics out."""
