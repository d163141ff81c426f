"""Records, images, captions, names, draws and pairs: what is trained on, in plain values."""
