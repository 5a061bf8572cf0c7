"""Floor 0: the mathematics. Tensors in, tensors out; no files, no devices, no Ray, no logging."""
